"""The front on the board in real Chromium: one figure for a point and its plan, one step for a walk, pins that stay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace
from tests.conftest import watched_page
from tests.hands import point

BOARD = "document.querySelector('.rb-root').__board"
MEASURED = "[data-testid=live-accuracy][data-state=measured]"
RECKONED = f"() => {{ const b = {BOARD}; return b.front.points.length > 1 && !b.reckoned && b.isForThese() }}"
FIGURES = f"""(() => {{
    const b = {BOARD}, choices = b.choices();
    return {{ ...RankBoard.totals(b.model, choices), ...RankBoard.predict(b.model, choices) }};
}})()"""
PIXEL = f"""index => {{
    const b = {BOARD}, point = b.front.points[index], full = b.tradeoffChart._fullLayout;
    const box = b.tradeoffChart.getBoundingClientRect(), share = 100 * point[b.axis] / b.model.dense[b.axis];
    const up = full.yaxis.l2p(100 * point.value);
    return [box.x + full.xaxis._offset + full.xaxis.l2p(share), box.y + full.yaxis._offset + up];
}}"""
CLEAR = f"""(() => {{
    const b = {BOARD}, {{ xaxis, yaxis }} = b.tradeoffChart._fullLayout, [low, high] = yaxis.range;
    const marks = b.tradeoffChart.data.filter(trace => trace.hoverinfo !== "skip").flatMap(({{ name, x, y }}) =>
        x.map((share, i) => ({{ name, i, x: xaxis.l2p(share), y: yaxis.l2p(y[i]), value: y[i] }})));
    const room = one => Math.min(Infinity, ...marks.filter(other => other !== one)
        .map(other => Math.hypot(other.x - one.x, other.y - one.y)));
    const seen = marks.filter(one => one.name === "front" && low < one.value && one.value < high);
    return seen.sort((one, other) => room(other) - room(one))[0].i;
}})()"""
"""The point of the front within the chart that stands farthest from every other mark: a hover there means it alone."""
SETTLED = f"() => {{ const b = {BOARD}; return !b.outbox.length && b.data.rev === b.rev && !b.dragging }}"


@pytest.fixture(scope="module")
def board(browser: Browser, serve: Callable[..., str]) -> Iterator[Page]:
    """The page with the default network, its front drawn; each test leaves the plan as it likes."""
    with watched_page(browser) as page:
        page.goto(f"{serve()}/Ranks")
        page.wait_for_selector(MEASURED)
        page.wait_for_function(f"() => {BOARD}.learning === ''")  # what is learnt meanwhile makes another front
        page.wait_for_function(RECKONED)
        yield page


def settled(page: Page) -> None:
    page.wait_for_function(SETTLED)
    page.wait_for_function(RECKONED)


def at_rest(page: Page) -> None:
    """The plan is measured with its last correction: what is measured makes another front."""
    settled(page)
    page.wait_for_function(f"() => {BOARD}.depth === 'thorough'")
    page.wait_for_function(RECKONED)


def undone(page: Page, plan: dict[str, Any]) -> None:
    """One step back leads to this plan."""
    page.get_by_role("button", name="Undo", exact=True).click()
    page.wait_for_function(f"plan => JSON.stringify({BOARD}.choices()) === JSON.stringify(plan)", arg=plan)
    settled(page)


def as_text(page: Page, choices: dict[str, Any]) -> str:
    text: str = page.evaluate("JSON.stringify", choices)
    return text


def walk_slider(page: Page) -> Locator:
    return page.get_by_role("slider", name="Smaller or more accurate")


def place(page: Page, share: float) -> tuple[float, float]:
    """Where the slider's thumb stands at a share of its way."""
    return point(walk_slider(page), share)


def plan_of(page: Page) -> dict[str, Any]:
    choices: dict[str, Any] = page.evaluate(f"{BOARD}.choices()")
    return choices


def test_a_point_and_the_plan_that_it_adopts_have_one_figure(board: Page) -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    points = board.evaluate(f"{BOARD}.front.points")
    for each in points:
        choices = {name: Choice(c["method"], tuple(c["rank"])) for name, c in each["choices"].items()}
        cost = plan_cost(workspace.profile, RankPlan.of(workspace.profile.fingerprint, choices))
        assert (each["bytes"], each["multiplies"]) == (cost.bytes, cost.multiplies)
    before = plan_of(board)
    middle, plan, shown = board.evaluate(f"""(() => {{
        const b = {BOARD}, middle = b.front.points.length >> 1, point = b.front.points[middle];
        b.adoptPoint(middle);
        return [point, b.choices(), {FIGURES}];
    }})()""")
    assert plan == middle["choices"]
    for figure in ("bytes", "multiplies", "value", "low", "high"):
        assert shown[figure] == middle[figure]
    board.wait_for_function(SETTLED)
    undone(board, before)


def test_one_drag_along_the_front_moves_all_thumbs_and_is_one_step(board: Page) -> None:
    at_rest(board)
    before, points = plan_of(board), board.evaluate(f"{BOARD}.front.points")
    board.mouse.move(*place(board, 0.5))
    board.mouse.down()
    with board.expect_request("**/live"):
        board.mouse.move(*place(board, 0.7), steps=4)
        board.mouse.move(*place(board, 0.02), steps=6)
    board.wait_for_function(
        f"plan => JSON.stringify({BOARD}.choices()) === plan", arg=as_text(board, points[0]["choices"])
    )
    assert board.evaluate(f"{BOARD}.rev === {BOARD}.data.rev"), "nothing is committed while the thumb is held"
    for name in points[0]["choices"]:
        rank = points[0]["choices"][name]["rank"]
        expect(board.get_by_role("textbox", name=f"{name} exact rank")).to_have_value(", ".join(map(str, rank)))
    board.mouse.up()
    settled(board)
    assert plan_of(board) == points[0]["choices"]
    assert board.evaluate(f"{BOARD}.data.pinned") == []
    undone(board, before)


def test_keys_walk_along_the_front(board: Page) -> None:
    board.evaluate(f"{BOARD}.adoptPoint(2)")
    at_rest(board)
    before, slider = plan_of(board), walk_slider(board)
    at, points = board.evaluate(f"[{BOARD}.walkAt, {BOARD}.front.points]")
    words = re.compile(rf"^(beside the front, next to )?plan {at + 1} of {len(points)}: predicted ")
    expect(slider).to_have_attribute("aria-valuetext", words)
    slider.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        board.keyboard.press(key)
    settled(board)
    assert plan_of(board) == points[at + 1]["choices"]
    board.keyboard.press("Control+z")
    board.wait_for_function(f"plan => JSON.stringify({BOARD}.choices()) === plan", arg=as_text(board, before))
    settled(board)


def test_a_hover_shows_the_card_and_a_click_adopts(board: Page) -> None:
    at_rest(board)
    before, points = plan_of(board), board.evaluate(f"{BOARD}.front.points")
    chart = board.get_by_test_id("chart-tradeoff")
    chart.scroll_into_view_if_needed()
    chart.element_handle().wait_for_element_state("stable")
    index = board.evaluate(CLEAR)
    x, y = board.evaluate(PIXEL, index)
    board.mouse.move(x - 4, y - 4)
    board.mouse.move(x, y)
    card = board.get_by_test_id("front-card")
    expect(card).to_contain_text("On the front")
    expect(card).to_contain_text(re.compile(r"predicted [\d.]+( to [\d.]+)?\u202f%"))
    expect(card).to_contain_text(board.evaluate(f"{BOARD}.figuresOf({BOARD}.front.points[{index}])[1]"))
    board.mouse.down()
    board.mouse.up()
    settled(board)
    assert plan_of(board) == points[index]["choices"]
    undone(board, before)


def test_a_plan_that_was_measured_is_adopted_as_it_was(board: Page) -> None:
    chosen = board.evaluate(f"{BOARD}.adoptPoint(1); {BOARD}.choices()")  # what is measured may make another front
    settled(board)
    board.wait_for_selector(MEASURED)
    size = board.evaluate(f"RankBoard.totals({BOARD}.model, {BOARD}.choices()).bytes")
    found = f"{BOARD}.measuredPlans.find(one => one.bytes === {size})"
    board.wait_for_function(f"() => {found}")
    name = board.evaluate(f"{found}.name")
    card = board.evaluate(f"{BOARD}.cardOf({BOARD}.measuredPlans.find(one => one.name === '{name}'))")
    assert card[0].startswith("Measured here · ")
    assert re.match(r"[\d.]+\u202f% \(95 %: ", card[1])
    board.get_by_role("button", name="All dense").click()
    settled(board)
    board.evaluate(f"{BOARD}.act('adopt', {{ name: '{name}' }})")
    board.wait_for_function(f"plan => JSON.stringify({BOARD}.choices()) === plan", arg=as_text(board, chosen))
    settled(board)
    undone(board, {})


def test_a_uniform_plan_is_adopted_by_a_click_and_by_the_table_of_the_chart(board: Page) -> None:
    """The dots of all kinds do the same, and whoever has no mouse finds them in the table."""
    before = plan_of(board)
    board.wait_for_function(f"() => {BOARD}.uniformPlans.length > 3")
    card = board.evaluate(f"{BOARD}.cardOf({BOARD}.uniformPlans[1])")
    assert card[0].startswith("The same share of every rank · ")
    assert card[-1] == "Click to adopt this plan"
    board.get_by_text("The chart as a table", exact=True).click()
    rows = board.get_by_role("region", name="The chart as a table").get_by_role(
        "button", name=re.compile(r"^uniform at")
    )
    for number, press in ((1, rows.nth(1).click), (2, lambda: rows.nth(2).press("Enter"))):
        wanted = board.evaluate(f"{BOARD}.uniformPlans[{number}]")
        press()
        board.wait_for_function(
            f"n => RankBoard.totals({BOARD}.model, {BOARD}.choices()).bytes === n", arg=wanted["bytes"]
        )
        settled(board)
        assert board.evaluate(FIGURES)["multiplies"] == wanted["multiplies"]
    board.get_by_role("button", name="Undo", exact=True).click()
    settled(board)
    undone(board, before)
    board.get_by_text("The chart as a table", exact=True).click()
    dot = '{ points: [{ data: { name: "uniform" }, pointNumber: 0 }] }'
    size = board.evaluate(f"{BOARD}.clicked({dot}); {BOARD}.uniformPlans[0].bytes")
    board.wait_for_function(f"n => RankBoard.totals({BOARD}.model, {BOARD}.choices()).bytes === n", arg=size)
    settled(board)
    undone(board, before)


def test_plans_of_the_front_keep_to_multiples(board: Page) -> None:
    snap = board.get_by_role("combobox", name="Snap ranks to multiples")
    snap.select_option("8")
    settled(board)
    points = board.evaluate(f"{BOARD}.front.points")
    tops = {
        layer["name"]: {name: method["top"] for name, method in layer["methods"].items()}
        for layer in board.evaluate(f"{BOARD}.model.layers")
    }
    chosen = [(name, choice) for point in points for name, choice in point["choices"].items()]
    assert len(points) > 3
    assert all(
        rank % 8 == 0 or rank == tops[name][choice["method"]][axis]
        for name, choice in chosen
        for axis, rank in enumerate(choice["rank"])
    )
    before = plan_of(board)
    board.evaluate(f"{BOARD}.adoptPoint(1)")
    settled(board)
    assert plan_of(board) == points[1]["choices"]
    assert board.evaluate(FIGURES)["bytes"] == points[1]["bytes"]
    snap.select_option("1")
    undone(board, before)


def test_a_layer_set_by_hand_keeps_a_pin_and_the_front_leaves_it_alone(board: Page) -> None:
    board.evaluate(f"{BOARD}.adoptPoint({BOARD}.front.points.length - 2)")
    settled(board)
    entry, pin = (
        board.get_by_role("textbox", name="fc1 exact rank"),
        board.get_by_role("button", name="Take the pin off fc1"),
    )
    expect(pin).to_be_hidden()
    entry.fill("17")
    entry.press("Enter")
    expect(pin).to_be_visible()
    settled(board)
    assert board.evaluate(f"{BOARD}.data.pinned") == ["fc1"]
    points = board.evaluate(f"{BOARD}.front.points")
    assert {tuple(point["choices"]["fc1"]["rank"]) for point in points} == {(17,)}
    board.evaluate(f"{BOARD}.adoptPoint(0)")
    assert plan_of(board)["fc1"]["rank"] == [17]
    assert board.evaluate(FIGURES)["bytes"] == points[0]["bytes"]
    settled(board)
    board.get_by_role("button", name="Undo", exact=True).click()
    board.get_by_role("button", name="Undo", exact=True).click()
    expect(pin).to_be_hidden()
    board.get_by_role("button", name="Redo", exact=True).click()
    expect(pin).to_be_visible()
    pin.click()
    expect(pin).to_be_hidden()
    settled(board)
    assert board.evaluate(f"{BOARD}.data.pinned") == []


def test_goals_mark_what_keeps_them_and_all_locked_is_one_line(board: Page) -> None:
    says = board.get_by_test_id("front-says")
    judged = board.evaluate(
        f"""(() => {{
            const b = {BOARD}, goals = b.goals, middle = b.front.points[2];
            b.goals = {{ ...goals, device: {{ flash_bytes: flashBytesOf(middle), name: "one" }} }};
            const kept = b.front.points.map(point => b.keeps(point)), need = b.front.points.map(flashBytesOf);
            b.sayFront();
            const line = b.frontLine.textContent;
            b.goals = goals;
            b.sayFront();
            return [kept, need, line];
            function flashBytesOf(point) {{ return RankBoard.flashBytes(b.model, point.choices, goals.number); }}
        }})()"""
    )
    kept, need, line = judged
    assert kept == ["kept" if bytes_ <= need[2] else "broken" for bytes_ in need]
    assert {"kept", "broken"} <= set(kept)
    assert line.startswith("The goals are kept at ")
    names = board.evaluate(f"[...{BOARD}.rows.keys()]")
    board.evaluate(
        f"names => {{ names.forEach(n => {BOARD}.locked.add(n)); {BOARD}.act('lock', {{ locked: names }}); }}", names
    )
    expect(says).to_have_text(
        "Every layer is locked or pinned, so there is one plan: unlock a layer, or take a pin off."
    )
    expect(walk_slider(board)).to_be_disabled()
    board.evaluate(f"(() => {{ {BOARD}.locked.clear(); {BOARD}.act('lock', {{ locked: [] }}); }})()")
    settled(board)
    expect(walk_slider(board)).to_be_enabled()


ALONE = """
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32)).eval()

def example_inputs():
    return torch.zeros(1, 32)

def eval_data():
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
"""


def test_one_layer_without_labels_has_a_front(serve: Callable[..., str], page: Page, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(ALONE)
    page.goto(f"{serve(tmp_path / 'net.py')}/Ranks")
    page.wait_for_selector(MEASURED)
    settled(page)
    page.evaluate(f"{BOARD}.adoptPoint(0)")
    settled(page)
    assert list(plan_of(page)) == ["0"]
    assert page.evaluate(FIGURES)["bytes"] == page.evaluate(f"{BOARD}.front.points[0].bytes")
