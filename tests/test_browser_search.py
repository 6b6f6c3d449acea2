"""Search in real Chromium: a newcomer asks a rule, sees what it finds, adopts it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lowrank_core.selection import make, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.workspace import Workspace
from tests.conftest import AT_REST
from tests.hands import DRAWN, until


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve()


def at_rest(page: Page) -> None:
    page.wait_for_selector(AT_REST)
    expect(page.get_by_role("button", name="Start search").last).to_be_enabled()  # for a moment there are two


def choose(page: Page, rule: str) -> None:
    at_rest(page)
    box = page.get_by_role("combobox", name="Rule")
    box.click()
    box.fill(rule)
    page.get_by_role("option", name=re.compile(f"^{rule}:")).click()
    expect(page.get_by_text("The same share of the largest paying rank")).to_be_visible()
    at_rest(page)


def test_a_newcomer_asks_a_rule_and_drags_its_plan_further(url: str, page: Page, tmp_path: Path) -> None:
    page.goto(f"{url}/Search")
    choose(page, "Uniform")
    expect(page.get_by_role("slider", name="Multiplies budget")).to_have_value("50")
    page.get_by_role("button", name="Start search").last.click()
    expect(page.get_by_role("button", name="Adopt this plan")).to_be_visible()
    at_rest(page)
    legend = page.locator(".legendtext")
    expect(legend).to_have_text(["front, predicted", "tried", "answer", "dense"])  # the front comes when it is known
    expect(page.get_by_text("points against dense (95 %")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as CSV").click()
    assert download.value.suggested_filename == "digits-cnn-searches.csv"
    download.value.save_as(tmp_path / "searches.csv")
    header, row = (tmp_path / "searches.csv").read_text().splitlines()
    assert header.startswith("rule,asked,multiplies,")
    assert row.startswith("uniform,50 % multiplies,")
    expect(page.get_by_role("button", name="Adopt this plan")).to_be_visible()
    page.get_by_role("button", name="Open on Ranks").click()
    expect(page).to_have_url(re.compile("/Ranks"))
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")

    workspace = Workspace.open("builtin:digits-cnn")
    *_, answer = search(make("uniform", {}), problem_of(workspace, multiplies=0.5))
    for name, choice in answer.candidate.plan.choices:
        expect(page.get_by_role("slider", name=f"{name} rank", exact=True)).to_have_value(str(choice.rank[0]))
    page.get_by_role("button", name="Undo").click()
    rank = str(answer.candidate.plan.get("fc1").rank[0])
    expect(page.get_by_role("slider", name="fc1 rank", exact=True)).not_to_have_value(rank)
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()  # it was one step


PLACES = """name => {
    const chart = document.querySelector(".js-plotly-plot"), { xaxis, yaxis, legend } = chart._fullLayout;
    const box = chart.getBoundingClientRect(), [low, high] = yaxis.range;
    const marks = chart.data.flatMap(trace => [...trace.x].map((x, i) => ({
        name: trace.name, x: box.x + xaxis._offset + xaxis.l2p(x), y: box.y + yaxis._offset + yaxis.l2p(trace.y[i]),
        isSeen: low < trace.y[i] && trace.y[i] < high })));
    const room = one => Math.min(...marks.filter(other => other !== one).map(
        other => Math.hypot(other.x - one.x, other.y - one.y)));
    const seen = marks.filter(one => one.name === name && one.isSeen).sort((one, other) => room(other) - room(one));
    return [seen[0].x, seen[0].y];
}"""
"""Where on the screen the dot of a series is that stands farthest from every other one."""


def test_a_click_on_a_dot_or_a_row_shows_that_plan_or_that_search(url: str, page: Page) -> None:
    page.set_viewport_size({"width": 1440, "height": 1800})  # all of the page is on the screen
    page.goto(f"{url}/Search")
    choose(page, "Uniform")
    plan, shown = (page.get_by_role("combobox", name=name) for name in ("Plan", "Search shown"))
    for share in ("50", "49.9"):
        page.get_by_role("button", name="Start search").last.click()
        asked = f"{share} % multiplies"
        if share == "50":
            expect(page.get_by_role("button", name="Adopt this plan")).to_be_visible()
            at_rest(page)
            page.get_by_role("slider", name="Multiplies budget").press("ArrowLeft")
            expect(page.get_by_text("348.6 k of")).to_be_visible()
            at_rest(page)
        else:
            expect(shown).to_have_value(f"Uniform: {asked}")
    expect(page.locator(".legendtext").first).to_have_text("front, predicted")
    at_rest(page)
    expect(plan).to_have_value(re.compile("the answer$"))

    page.mouse.move(*page.evaluate(PLACES, "answer"))
    expect(page.locator(".hoverlayer")).to_contain_text("points against dense")
    page.mouse.move(*page.evaluate(PLACES, "front, predicted"))
    expect(page.locator(".hoverlayer")).to_contain_text("best within this budget: predicted")
    page.mouse.down()
    page.mouse.up()
    expect(plan).to_have_value(re.compile(r"^front, at .* of the multiplies, .* kB: predicted"))
    expect(page.get_by_text("for 9 plans of 10), not measured.")).to_be_visible()
    expect(page.get_by_role("button", name="Open on Ranks")).to_be_visible()
    at_rest(page)

    rows = page.get_by_test_id("stDataFrame").last

    def click_row() -> None:
        rows.hover(position={"x": 60, "y": 52})  # the first row below the titles
        page.evaluate(DRAWN)  # the table takes no click before it has drawn what it hovers
        page.mouse.down()
        page.mouse.up()

    until(lambda patience: expect(shown).to_have_value("Uniform: 50 % multiplies", timeout=patience), click_row)
    expect(plan).to_have_value(re.compile("the answer$"))


def test_an_impossible_budget_is_refused_in_one_line_and_a_size_of_flash_can_be_typed(url: str, page: Page) -> None:
    page.goto(f"{url}/Search")
    choose(page, "Uniform")
    page.get_by_role("slider", name="Multiplies budget").press("Home")
    expect(page.get_by_text("699 of 698.6 k")).to_be_visible()
    at_rest(page)
    page.get_by_role("button", name="Start search").last.click()
    alert = page.get_by_test_id("stAlert")
    expect(alert).to_contain_text("cannot be reached")
    expect(alert).to_have_count(1)

    device = page.get_by_role("combobox", name="Device")
    device.fill("96 kB")
    device.press("Enter")
    # not 19.4: what the network holds beside its parameters lies in flash, too
    expect(page.get_by_role("slider", name="Bytes budget")).to_have_value("19.2")
