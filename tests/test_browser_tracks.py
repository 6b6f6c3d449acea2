"""Tracks in real Chromium: every width of window, fingers that scroll, keys with multiples, scales, the sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, CDPSession, Page

from tests.conftest import PATIENCE_SECONDS
from tests.hands import DRAWN, hold, point, tap

BOARD = "document.querySelector('.rb-root').__board"

WIDE = """
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 700), nn.ReLU(), nn.Linear(700, 600), nn.ReLU(), nn.Linear(600, 24)).eval()

def example_inputs():
    return (torch.zeros(1, 16),)

def eval_data():
    return torch.randn(80, 16, generator=torch.Generator().manual_seed(1)), torch.arange(80) % 24
"""


@pytest.fixture(scope="module")
def board(browser: Browser, serve: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One page for all tests; each takes a layer of its own. Layers of 16, 600 and 24 ranks."""
    model = Path(tmp_path_factory.mktemp("wide")) / "wide.py"
    model.write_text(WIDE)
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    context.set_default_timeout(1000 * PATIENCE_SECONDS)
    page = context.new_page()
    page.goto(f"{serve(model)}/Ranks")
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
    yield page
    context.close()


def value(page: Page, layer: str) -> int:
    return int(page.get_by_role("slider", name=f"{layer} rank", exact=True).input_value())


def middle(page: Page, layer: str, share: float = 0.5) -> tuple[float, float]:
    return point(page.get_by_role("slider", name=f"{layer} rank", exact=True), share)


def swipe(session: CDPSession, page: Page, start: tuple[float, float], by: tuple[float, float]) -> None:
    def send(kind: str, share: float) -> None:
        points: list[dict[str, Any]] = []
        if kind != "touchEnd":
            points = [{"x": start[0] + share * by[0], "y": start[1] + share * by[1], "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", 0)
    for step in range(1, 9):
        send("touchMove", step / 8)
    send("touchEnd", 1)
    page.evaluate(DRAWN)
    page.wait_for_timeout(500)


def test_a_finger_that_scrolls_sets_nothing_and_one_that_moves_sideways_does(board: Page) -> None:
    session = board.context.new_cdp_session(board)
    before = board.evaluate(f"JSON.stringify({BOARD}.choices())")
    for layer, share in (("0", 0.3), ("2", 0.7), ("4", 0.2)):
        swipe(session, board, middle(board, layer, share), (4, -120))
        swipe(session, board, middle(board, layer, share), (6, 90))
    assert board.evaluate(f"JSON.stringify({BOARD}.choices())") == before
    start = value(board, "4")
    swipe(session, board, middle(board, "4"), (-60, 3))
    assert value(board, "4") < start
    assert board.evaluate(f"!{BOARD}.pressed")


def test_keys_step_by_every_multiple(board: Page) -> None:
    handle = board.get_by_role("slider", name="2 rank", exact=True)
    for multiple in (1, 4, 8, 16):
        board.get_by_label("Snap ranks to multiples").select_option(str(multiple))
        board.get_by_label("2 exact rank").fill("41")
        board.get_by_label("2 exact rank").press("Enter")
        handle.focus()
        board.keyboard.press("ArrowRight")
        up = value(board, "2")
        assert up == {1: 42, 4: 44, 8: 48, 16: 48}[multiple]
        board.keyboard.press("ArrowLeft")
        assert value(board, "2") == up - multiple
    board.get_by_label("Snap ranks to multiples").select_option("1")
    board.wait_for_timeout(400)


def test_long_tracks_are_logarithmic_and_can_be_switched(board: Page) -> None:
    kinds = f"[...{BOARD}.rows.values()].map(r => r.tracks[0].log)"
    assert board.evaluate(kinds) == [False, True, False]
    track = board.get_by_role("slider", name="2 rank", exact=True)
    hold(track, 0.75)
    board.mouse.up()
    begun = value(board, "2")
    assert 110 < begun < 170  # 600 ** 0.75 = 121, and a little more where the thumb's own width counts
    assert "rb-log" in (board.locator("[data-layer='2'] .rb-track").get_attribute("class") or "")
    x, y = point(track, 0.75)
    hold(track, 0.75)
    board.keyboard.down("Shift")
    board.mouse.move(x + 24, y, steps=4)
    fine = value(board, "2")
    assert begun < fine < 1.4 * begun
    assert f"rank {fine}" in board.inner_text(".rb-readout")
    board.keyboard.up("Shift")
    board.mouse.up()
    board.get_by_label("Scale of the tracks").select_option("linear")
    assert board.evaluate(kinds) == [False, False, False]
    hold(track, 0.5)
    board.mouse.up()
    assert abs(value(board, "2") - 300) <= 8
    board.get_by_label("Scale of the tracks").select_option("")
    assert board.evaluate(kinds) == [False, True, False]


def test_a_window_that_changes_size_ends_a_drag_where_it_was(board: Page) -> None:
    hold(board.get_by_role("slider", name="4 rank", exact=True), 0.5)
    kept = value(board, "4")
    board.set_viewport_size({"width": 700, "height": 844})
    board.wait_for_function(f"!{BOARD}.pressed")
    x, y = middle(board, "4", 0.05)
    board.mouse.move(x, y, steps=3)
    board.mouse.up()
    board.evaluate(DRAWN)
    assert value(board, "4") == kept
    board.set_viewport_size({"width": 390, "height": 844})


def test_a_refused_rank_says_so_at_its_field(board: Page) -> None:
    entry = board.get_by_label("4 exact rank")
    entry.fill("9999")
    entry.press("Enter")
    assert entry.get_attribute("aria-invalid") == "true"
    refusal = board.locator(f"#{entry.get_attribute('aria-describedby')}")
    assert "from 1 to 24" in refusal.inner_text()
    entry.fill("7")
    entry.press("Enter")
    assert entry.get_attribute("aria-invalid") is None
    assert refusal.is_hidden()


def test_group_sliders_follow_and_no_filter_hit_is_said(board: Page) -> None:
    group = board.get_by_role("slider", name="wide group")
    board.get_by_label("Preset").select_option("share:0.25")
    board.evaluate(DRAWN)
    assert 20 <= int(group.input_value()) <= 30
    board.get_by_label("Filter layers").fill("zzz")
    assert "No layer matches “zzz”" in board.inner_text(".rb-layers")
    board.get_by_role("button", name="Clear").click()
    assert board.locator(".rb-row:visible").count() == 3


WIDTHS = (1920, 1440, 1280, 1100, 1024, 960, 821, 820, 600, 390)
FITS = f"""() => {{
    const board = {BOARD};
    const fits = chart => !chart.offsetWidth || Math.abs(chart._fullLayout?.width - chart.offsetWidth) < 2;
    return [board.detailChart, board.tradeoffChart].every(fits);
}}"""
MARKS = f"""() => {{
    const board = {BOARD}, middle = e => {{ const box = e.getBoundingClientRect(); return box.left + box.width / 2; }};
    const axis = chart => {{  // from its own ticks, as they are drawn
        const ticks = [...chart.querySelectorAll(".xtick text")].map(text => [text.__data__.x, middle(text)]);
        const [a, b] = [ticks[0], ticks[ticks.length - 1]];
        return value => a[1] + (value - a[0]) * (b[1] - a[1]) / (b[0] - a[0]);
    }};
    const row = board.rows.get(board.selected), even = row.layer.methods[row.method].even.bytes[0];
    const share = 100 * RankBoard.totals(board.model, board.choices()).multiplies / board.model.dense.multiplies;
    const [spectrum, cost] = [axis(board.detailChart), axis(board.tradeoffChart)];
    const line = kind => board.detailChart.querySelector(`.rb-mark-${{kind}}`).getBoundingClientRect().left;
    const marks = [line("chosen") - spectrum(row.rank[0]), line("bytes") - spectrum(even)];
    return [...marks, middle(board.nowMark) - cost(share)];
}}"""


def test_every_width_has_tracks_to_drag_and_marks_where_they_belong(board: Page) -> None:
    board.get_by_label("4 exact rank").fill("7")
    board.get_by_label("4 exact rank").press("Enter")
    for width in WIDTHS:
        board.set_viewport_size({"width": width, "height": 844})
        if width <= 600:
            board.get_by_role("button", name="4", exact=True).click()
        board.wait_for_function(FITS)
        board.evaluate(DRAWN)
        rails = board.eval_on_selector_all(".rb-row .rb-rail", "all => all.map(e => e.offsetWidth + 10)")
        assert len(rails) == 3
        assert min(rails) >= 120, f"{width} px: {rails}"
        off = board.evaluate(MARKS)
        assert max(map(abs, off)) <= 1, f"{width} px: {off}"
        board.keyboard.press("Escape")
        board.locator(".rb-row").last.scroll_into_view_if_needed()
        board.mouse.wheel(0, 400)
        board.wait_for_timeout(50)
        figures = board.evaluate("""() => {
            const seen = ({ top, bottom, height }) => height > 0 && bottom > 60 && top < innerHeight;
            const box = name => document.querySelector(name).getBoundingClientRect();
            return !seen(box(".rb-row:last-child")) || seen(box(".rb-cards")) || seen(box(".rb-line"));
        }""")
        assert figures, f"{width} px: no figure is in sight beside the rows"


def test_on_a_phone_the_selected_layer_is_a_sheet(board: Page) -> None:
    sheet = board.get_by_role("dialog", name="Selected layer")
    assert board.locator(".rb-detail").is_hidden()
    tap(board.get_by_role("slider", name="2 rank", exact=True), 0.5, opens=sheet)
    assert "2 · 600" in sheet.inner_text()
    large = sheet.get_by_role("slider", name="Rank of the selected layer", exact=True)
    assert large.evaluate("e => e === document.activeElement")
    board.get_by_label("2 exact rank").evaluate("(e) => { e.value = 40; e.dispatchEvent(new Event('change')); }")
    for name, rank in (("Higher rank", 41), ("Higher rank", 42), ("Lower rank", 41)):
        sheet.get_by_role("button", name=name).click()
        board.evaluate(DRAWN)
        assert value(board, "2") == int(large.input_value()) == rank
    sheet.get_by_label("Method").select_option("dense")
    board.evaluate(DRAWN)
    assert value(board, "2") == 600
    board.keyboard.press("Escape")
    sheet.wait_for(state="hidden")
    board.get_by_role("button", name="4", exact=True).focus()
    board.keyboard.press("Enter")
    sheet.get_by_role("button", name="Close").click()
    sheet.wait_for(state="hidden")
    assert board.get_by_role("button", name="4", exact=True).evaluate("e => e === document.activeElement")
    board.set_viewport_size({"width": 700, "height": 844})
    board.get_by_role("region", name="Selected layer").wait_for()
    board.set_viewport_size({"width": 390, "height": 844})


def test_a_track_may_end_at_break_even_where_its_last_place_is_dense(board: Page) -> None:
    board.get_by_label("Scale of the tracks").select_option("zoom")
    tops = f"[...{BOARD}.rows.values()].map(r => [r.tracks[0].top, r.layer.methods[r.method].even.bytes[0] + 1])"
    assert all(top == even for top, even in board.evaluate(tops))
    handle = board.get_by_role("slider", name="2 rank", exact=True)
    handle.focus()
    board.keyboard.press("End")
    board.evaluate(DRAWN)
    assert board.get_by_label("2 exact rank").input_value() == "dense"
    board.keyboard.press("ArrowLeft")
    board.evaluate(DRAWN)
    assert board.get_by_label("2 exact rank").input_value() == str(board.evaluate(tops)[1][1] - 1)
    board.get_by_label("Scale of the tracks").select_option("")
    assert handle.get_attribute("max") == "600"


def test_a_board_that_was_replaced_hears_and_says_nothing(board: Page) -> None:
    """The model under an open board may change: its root then gets another board."""
    sent = board.evaluate("""() => {
        const root = document.querySelector(".rb-root"), old = root.__board, sent = [];
        old.send = (name, value) => sent.push(["old", value]);
        const model = { ...old.model, key: "another" };
        RankBoard.models.another = model;
        RankBoard.mount(root, { ...old.data, model: "another" }, (name, value) => sent.push(["new", value]));
        const key = new KeyboardEvent("keydown", { key: "z", ctrlKey: true, bubbles: true });
        root.querySelector(".rb").dispatchEvent(key);
        old.say("undo", {});
        return sent.map(([who, value]) => [who, value.messages.map(m => m.action)]);
    }""")
    assert sent == [["new", ["undo"]]]
