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


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve()


def at_rest(page: Page) -> None:
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    expect(page.get_by_role("button", name="Start search").last).to_be_enabled()  # for a moment there are two


def choose(page: Page, rule: str) -> None:
    at_rest(page)
    box = page.get_by_role("combobox", name="Rule")
    box.click()
    box.fill(rule)
    page.get_by_role("option", name=rule, exact=True).click()
    expect(page.get_by_text("The same share of the largest paying rank")).to_be_visible()
    at_rest(page)


def test_a_newcomer_asks_a_rule_and_drags_its_plan_further(url: str, page: Page, tmp_path: Path) -> None:
    page.goto(f"{url}/Search")
    choose(page, "Uniform")
    expect(page.get_by_role("slider", name="Multiplies budget")).to_have_value("50")
    page.get_by_role("button", name="Start search").last.click()
    expect(page.get_by_role("button", name="Adopt this plan")).to_be_visible()
    at_rest(page)
    expect(page.locator(".scatterlayer .trace .point")).to_have_count(3)  # the trial, the answer on it, dense
    expect(page.get_by_text("points against dense (95 %")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as CSV").click()
    assert download.value.suggested_filename == "digits-cnn-searches.csv"
    download.value.save_as(tmp_path / "searches.csv")
    header, row = (tmp_path / "searches.csv").read_text().splitlines()
    assert header.startswith("rule,asked,multiplies,")
    assert row.startswith("uniform,50 % multiplies,")
    page.get_by_role("button", name="Adopt this plan").click()
    page.get_by_role("link", name="Drag it further").click()
    expect(page).to_have_url(re.compile("/Ranks"))
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")

    workspace = Workspace.open("builtin:digits-cnn")
    *_, answer = search(make("uniform", {}), problem_of(workspace, multiplies=0.5))
    for name, choice in answer.candidate.plan.choices:
        expect(page.get_by_role("slider", name=f"{name} rank", exact=True)).to_have_value(str(choice.rank[0]))
    page.get_by_role("button", name="Undo").click()
    rank = str(answer.candidate.plan.get("fc1").rank[0])
    expect(page.get_by_role("slider", name="fc1 rank", exact=True)).not_to_have_value(rank)


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
