"""Whether people who see, hear or move in other ways can use the pages: what axe-core finds on each of them.

    python -m benchmarks.accessibility [--model builtin:digits-cnn]

Every page in Chromium at 1440 px in the light, 1440 px in the dark and 390 px in the light, when it is at rest; all
rules of axe-core, on all that is on the page, Streamlit's own parts included. Then all that is behind something: folds,
explanations, lists, popovers, the keys and the box that finds, the form of a snapshot, a layer's sheet on a phone, each
looked through while it is open. Rules see what a program can: that a contrast is too low, a control has no name, an
order is broken.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from benchmarks.page import benchmark_parser, run_benchmark, table_of
from pages.ui.frame import PAGES
from tests.conftest import AT_REST, CHROMIUM, CHROMIUM_ARGS, running_app

IN_SCHEME = "scheme => getComputedStyle(document.querySelector('[data-testid=stApp]')).colorScheme === scheme"
PATIENCE_MS = 600_000
STYLED = "[data-testid=stHtml] > style"
"""The page's own style; the browser loads the part of Streamlit that brings it when the first text may be there."""

UNFADED = "* {transition: none !important} [data-stale=true] {opacity: 1 !important}"
"""Streamlit fades what it builds anew; half faded, nothing has the contrast that it is read with."""


@dataclass(frozen=True, slots=True)
class View:
    """A window and the colours that it asks for."""

    width_px: int
    scheme: Literal["light", "dark"]


VIEWS = (View(1440, "light"), View(1440, "dark"), View(390, "light"))


def addresses() -> tuple[str, ...]:
    """What stands behind the host for each page: "" is Home."""
    return tuple(path.partition("_")[2].removesuffix(".py") if "_" in path else "" for path, _, _ in PAGES)


def violations(page: Page) -> tuple[str, ...]:
    """What axe-core finds on the page as it stands, nothing of it fading: rule, what is wrong, and the element."""
    page.wait_for_selector(STYLED, state="attached", timeout=PATIENCE_MS)
    style = page.add_style_tag(content=UNFADED)
    results: dict[str, Any] = Axe().run(page, options={"resultTypes": ["violations"]}).response
    style.evaluate("style => style.remove()")
    return tuple(
        f"{violation['id']}: {(node['any'] or node['all'] or node['none'])[0]['message']}: {node['html'][:120]}"
        for violation in results["violations"]
        for node in violation["nodes"]
    )


def looked_through(page: Page, url: str) -> Iterator[tuple[View, tuple[str, ...]]]:
    """A page opened once and then seen in each view."""
    page.set_viewport_size({"width": VIEWS[0].width_px, "height": 1000})
    page.emulate_media(color_scheme=VIEWS[0].scheme)
    page.goto(url, timeout=PATIENCE_MS)
    page.get_by_text("dense top-1 accuracy").first.wait_for(timeout=PATIENCE_MS)
    yield from in_each_view(page)


def in_each_view(page: Page) -> Iterator[tuple[View, tuple[str, ...]]]:
    """A page that is open, seen in each view."""
    for view in VIEWS:
        page.set_viewport_size({"width": view.width_px, "height": 1000})
        page.emulate_media(color_scheme=view.scheme)
        page.wait_for_function(
            f"() => getComputedStyle(document.querySelector('[data-testid=stApp]')).colorScheme === '{view.scheme}'"
        )
        if page.locator(".rb-root").count():  # the board looks now and then which colours are asked for
            state: Literal["attached", "detached"] = "attached" if view.scheme == "dark" else "detached"
            page.locator(".rb-dark").first.wait_for(state=state, timeout=PATIENCE_MS)
        page.wait_for_selector(AT_REST, timeout=PATIENCE_MS)
        yield view, violations(page)


def opened(page: Page) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is behind the folds and buttons of a page at rest, in the light: by name, each while it is open."""

    def seen(what: str) -> tuple[str, tuple[str, ...]]:
        page.wait_for_selector(AT_REST, timeout=PATIENCE_MS)
        return what, violations(page)

    page.set_viewport_size({"width": VIEWS[0].width_px, "height": 1000})
    page.emulate_media(color_scheme="light")
    page.evaluate("document.querySelectorAll('details:not([open]) > summary').forEach(fold => fold.click())")
    if page.locator(".rb-root").count():
        page.locator("[data-testid=answers-summary]", has_text="of").wait_for(timeout=PATIENCE_MS)
    yield seen("folds")
    for kind, name in (("rb-help", "help"), ("rb-term", "a term")):
        for explanation in page.locator(f"button.{kind}[popovertarget]:visible").all()[:1]:
            explanation.click()
            yield seen(name)
            page.keyboard.press("Escape")
    for place, name in (("stPopoverButton", "a popover"), ("stSelectbox", "a list")):
        for button in page.get_by_test_id(place).all()[:1]:
            (button if place == "stPopoverButton" else button.get_by_role("button", name="Open", exact=True)).click()
            page.locator("[role=listbox], [data-testid=stPopoverBody]").last.wait_for(timeout=PATIENCE_MS)
            yield seen(name)
            page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")  # no key acts while somebody types
    for key, name in (("?", "the keys"), ("Control+k", "the box that finds")):
        page.keyboard.press(key)
        page.locator("dialog[open]").wait_for(timeout=PATIENCE_MS)
        yield seen(name)
        page.keyboard.press("Escape")
    if not page.locator(".rb-root").count():
        return
    page.get_by_role("button", name="Snapshot", exact=True).click()
    page.get_by_role("button", name=re.compile("^Rename snapshot")).click(timeout=PATIENCE_MS)
    yield seen("the form of a snapshot")
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": VIEWS[-1].width_px, "height": 1000})
    page.locator(".rb-name").first.click()
    page.locator(".rb-detail:popover-open").wait_for(timeout=PATIENCE_MS)
    yield seen("a layer's sheet")


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="builtin:digits-cnn", help="as `streamlit run app.py` takes it")
    options = parser.parse_args()
    rows, lines = [], []
    with sync_playwright() as playwright, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ.update({"XDG_CACHE_HOME": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")})
        url = stack.enter_context(running_app(folder / "log", options.model))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        for address in addresses():
            page = browser.new_page()
            found = [faults for _, faults in looked_through(page, f"{url}/{address}")]
            behind = dict(opened(page))
            found.append(sum(behind.values(), ()))
            page.close()
            rows.append([address or "Home", *(str(len(faults)) for faults in found), str(len(behind))])
            lines += [f"{address or 'Home'}: {fault}" for fault in dict.fromkeys(sum(found, ()))]
        browser.close()
    print(
        table_of(
            "| page | "
            + " | ".join(f"{view.width_px} px, {view.scheme}" for view in VIEWS)
            + " | opened | things that were |\n|---|---|---|---|---|---|",
            rows,
        )
    )
    print(f"\n{len(lines)} violations." + "".join(f"\n    {line}" for line in lines))


if __name__ == "__main__":
    run_benchmark(main)
