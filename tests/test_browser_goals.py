"""Goals on the board in real Chromium: figures that move with the thumb, marks of what is broken."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import Page, TimeoutError, expect

from benchmarks.accessibility import violations
from tests.conftest import AT_REST
from tests.hands import enter, hold, point

MEASURED = "[data-testid=live-accuracy][data-state=measured]"


def choose(page: Page, label: str, option: str) -> None:
    """Choose of a list, which closes where the page is drawn anew just then."""
    for patience_ms in (5_000, 20_000, None):
        page.wait_for_selector(AT_REST)
        page.get_by_role("combobox", name=label).click()
        try:
            page.get_by_role("option", name=option, exact=True).click(timeout=patience_ms)
            return
        except TimeoutError:
            if patience_ms is None:
                raise
            page.keyboard.press("Escape")


def test_cards_say_what_a_device_has_while_a_thumb_moves_and_export_says_the_same(
    serve: Callable[..., str], page: Page
) -> None:
    page.goto(f"{serve()}/Ranks")
    expect(page.locator(MEASURED)).to_be_visible()
    page.get_by_role("button", name="All dense").click()
    choose(page, "Device", "STM32F103C8 (Cortex-M3)")
    flash, ram, score = (page.get_by_test_id(f"goal-{kind}") for kind in ("flash", "ram", "accuracy"))
    expect(flash).to_contain_text(" of 64 KiB flash".replace(" KiB", "\u202fKiB"))
    choose(page, "Numbers", "int8")
    floor = page.get_by_role("spinbutton", name="Top-1 accuracy at least")
    enter(floor, "99.9", lambda: page.wait_for_selector(AT_REST))
    expect(score).to_contain_text("in float32; measure in int8 on Compare")
    expect(score).to_have_attribute("data-kept", "broken")
    expect(flash).to_have_attribute("data-kept", "broken")
    expect(page.locator(".rb-broken")).to_have_count(2)
    assert page.evaluate("document.querySelector('[data-testid=chart-bytes]')._fullLayout.shapes.length") == 2

    handle = page.get_by_role("slider", name="fc1 rank", exact=True)
    hold(handle)
    before, heights = flash.inner_text(), [one.bounding_box() for one in (flash, score)]
    page.mouse.move(*point(handle, 0.02), steps=4)
    expect(flash).to_have_attribute("data-kept", "kept")
    assert flash.inner_text() != before
    expect(ram).to_contain_text("known when you let go")
    now = [one.bounding_box() for one in (flash, score)]
    assert [box and box["y"] for box in now] == [box and box["y"] for box in heights]
    page.mouse.up()
    expect(page.locator(MEASURED)).to_be_visible()
    expect(ram).to_contain_text("RAM 4 of 20")
    assert not violations(page)

    figure = re.search(r"[\d.]+", flash.inner_text())
    assert figure is not None
    page.reload()
    expect(flash).to_contain_text(figure[0])
    page.get_by_test_id("stSidebar").locator("a[href^=Export]").dispatch_event("click")
    expect(page.get_by_text(f"{figure[0]} of 64 KiB flash in int8")).to_be_visible()
    expect(page.get_by_role("combobox", name="Weights stored in")).to_have_value("int8")
