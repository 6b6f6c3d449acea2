"""A hand on a page in real Chromium: it presses where a thing is in sight, at rest and on top, and looks again if not.

Pages move on while they are built (a figure comes, a line above gets longer, a window changes), and a busy machine
makes such moments long: a place that was read once may be another thing's when the mouse gets there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from playwright.sync_api import Locator, TimeoutError, expect

from tests.conftest import PATIENCE_SECONDS

SETTLED_MILLISECONDS = 500
"""After which a page that was about to be built anew has begun."""
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
THERE = """(element, [x, y]) => {
    const top = document.elementFromPoint(x, y);
    return element.contains(top) ? "" : top ? top.outerHTML.slice(0, 300) : "outside the window";
}"""
"""What lies at a point of the window in place of an element."""
HOLDS = "input => document.querySelector('.rb-root').__board.held?.input === input"
"""Whether the board holds this thumb."""


def point(element: Locator, right: float = 0.5, down: float = 0.5, margin: float = 0) -> tuple[float, float]:
    """A place of an element on the screen, as shares of its box without its margins, once a press gets there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        element.wait_for()
        element.element_handle().wait_for_element_state("stable")
        box, in_the_way = element.bounding_box(), "not there any more"
        if box is not None:
            x, y = box["x"] + margin + (box["width"] - 2 * margin) * right, box["y"] + box["height"] * down
            in_the_way = element.evaluate(THERE, [x, y])
            if not in_the_way:
                return x, y
        assert time.monotonic() < deadline, f"nobody can press there: {in_the_way}"
        element.evaluate("element => element.scrollIntoView({ block: 'center', behavior: 'instant' })")
        element.page.evaluate(DRAWN)


def at_rank(thumb: Locator, rank: int) -> tuple[float, float]:
    """Where a thumb of the board stands at a rank, on a track that is not logarithmic."""
    return point(thumb, (rank - 1) / (int(thumb.get_attribute("max") or 1) - 1), margin=5)


def until(seen: Callable[[float], object], act: Callable[[], object]) -> None:
    """Do something until it is seen to have worked: what comes while a busy page is built anew is lost.

    seen(milliseconds): raises TimeoutError or AssertionError where it is not seen by then.
    """
    for patience_milliseconds in (10_000, 30_000, 60_000):
        act()
        try:
            seen(patience_milliseconds)
            return
        except (TimeoutError, AssertionError):
            pass
    act()
    seen(1000 * PATIENCE_SECONDS)


def enter(field: Locator, value: str, at_rest: Callable[[], object]) -> None:
    """Type a value into a field of a page, until the page keeps it.

    at_rest(): waits until the page is built, and brings the field to sight.
    """

    def typed() -> None:
        at_rest()
        try:
            field.fill(value, timeout=10_000)
            field.press("Enter", timeout=10_000)
        except TimeoutError:  # built anew just then
            pass

    def stays(patience: float) -> None:
        at_rest()
        field.page.wait_for_timeout(SETTLED_MILLISECONDS)
        at_rest()
        expect(field).to_have_value(value, timeout=patience)

    until(stays, typed)


def tap(element: Locator, right: float, opens: Locator) -> None:
    """Tap on a place of an element, until what a tap opens is seen: a finger that a busy page holds long is no tap."""
    until(
        lambda patience: opens.wait_for(timeout=patience), lambda: element.page.touchscreen.tap(*point(element, right))
    )


def hold(thumb: Locator, right: float | None = None) -> None:
    """Press the mouse on a thumb of the board where it stands, or on a share of its track, until the board holds it."""
    deadline, mouse = time.monotonic() + PATIENCE_SECONDS, thumb.page.mouse
    while True:
        mouse.move(*(at_rank(thumb, int(thumb.input_value())) if right is None else point(thumb, right)))
        mouse.down()
        if thumb.evaluate(HOLDS):
            return
        mouse.up()
        assert time.monotonic() < deadline, "the board takes no hold of this thumb"


def drag(thumb: Locator, rank: int, *, release: bool = True) -> None:
    """Move a thumb of the board to a rank, and let it go there."""
    hold(thumb)
    thumb.page.mouse.move(*at_rank(thumb, rank), steps=8)
    thumb.page.evaluate(DRAWN)
    if release:
        thumb.page.mouse.up()
