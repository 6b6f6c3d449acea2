"""The pictures of the documents, taken of the real app in Chromium: the Ranks page, and a drag as a moving picture.

    python -m benchmarks.screenshots [--out docs]

ranks-light, ranks-dark and ranks-narrow show a plan of half the multiplies, found by the rule `budget`; before it a
snapshot of the plan that the page began with. drag.webp is one drag and its release: a frame after each step of the
mouse, played at the same pace. Every wait is for something to be there, never for a time to pass.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from lowrank_core.store.files import whole_or_nothing, write_whole
from tests.conftest import AT_REST, CHROMIUM, CHROMIUM_ARGS, running_app

MODEL = "builtin:digits-cnn"
VIEWS = (("light", 1440, "light"), ("dark", 1440, "dark"), ("narrow", 420, "light"))
MEASURED = "[data-testid=live-accuracy][data-state=measured]"
PATIENCE_MS = 3_600_000
"""Far more than any machine takes: a wait that ends is a fault of the page."""

LAYER, PATH = "conv3", (32, 8, 24)
"""What is dragged, and over which ranks."""

STEPS = 22
"""Of the mouse, from one of these ranks to the next."""

WIDTH = 840
"""Of the moving picture, in pixels."""

FRAME_MS, FIRST_MS, LAST_MS = 50, 900, 2600
LARGEST_BYTES = 2_000_000

POINTER = """() => {
    const pointer = document.createElement("div");
    pointer.style.cssText = "position:fixed;z-index:9999;pointer-events:none;width:18px;height:18px;"
        + "margin:-9px 0 0 -9px;border-radius:50%;background:#e69f0080;border:2px solid #e69f00;display:none";
    document.body.append(pointer);
    addEventListener("pointermove", event => {
        pointer.style.display = "block";
        pointer.style.left = `${event.clientX}px`;
        pointer.style.top = `${event.clientY}px`;
    }, true);
}"""
"""A headless browser draws no pointer, so a ring follows the mouse."""

DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"


def opened(browser: Browser, address: str, width: int, height: int, scheme: str = "light") -> Page:
    """The Ranks page at rest, its plan measured."""
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    rest(page)
    return page


def rest(page: Page) -> None:
    """Until the plan is measured and nothing runs."""
    page.wait_for_selector(MEASURED)
    page.wait_for_selector(AT_REST)


def picture(page: Page, **options: object) -> bytes:
    """A screenshot once two in a row are the same: fonts are there, charts are drawn."""
    page.evaluate("document.fonts.ready.then(() => true)")
    before = b""
    while (now := page.screenshot(animations="disabled", **options)) != before:  # type: ignore[arg-type]
        before = now
        page.evaluate(DRAWN)
    return now


def go(page: Page, name: str) -> None:
    """To another page by the app's own menu."""
    page.get_by_test_id("stSidebar").get_by_role("link", name=name, exact=True).click()
    page.get_by_role("heading", name=name, exact=True).wait_for()


def show_plan(page: Page, plan: Path) -> str:
    """Keep the plan at hand as a snapshot, then open another from its file; gives the address of both."""
    page.get_by_label("Snapshot name").fill("start")
    page.get_by_role("button", name="Snapshot", exact=True).click()
    page.wait_for_selector(".rb-snapshots li")
    page.wait_for_selector(AT_REST)
    go(page, "Export")
    page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(plan)
    page.get_by_text("is the plan now").wait_for()
    page.wait_for_selector(AT_REST)
    go(page, "Ranks")
    rest(page)
    return page.url


def frames(page: Page) -> Iterator[tuple[bytes, int]]:
    """A drag over all of PATH and its release, as pictures of the board and the milliseconds each is shown."""
    page.evaluate(POINTER)
    board, first = (page.locator(one).first.bounding_box() for one in (".rb-root", ".rb-card"))
    handle = page.get_by_role("slider", name=f"{LAYER} rank", exact=True)
    box = handle.bounding_box()
    assert board is not None
    assert first is not None
    assert box is not None
    top = first["y"] - 8
    clip = {**board, "y": top, "height": min(board["y"] + board["height"], page.viewport_size["height"]) - top}  # type: ignore[index]
    assert box["y"] + box["height"] < top + clip["height"], "what is dragged lies in the picture"
    most, middle = int(handle.get_attribute("max") or 1), box["y"] + box["height"] / 2

    def at(rank: float) -> float:
        return box["x"] + 5 + (box["width"] - 10) * (rank - 1) / (most - 1)

    def taken() -> bytes:
        page.evaluate(DRAWN)
        return page.screenshot(clip=clip)

    page.mouse.move(at(int(handle.input_value())), middle)
    yield picture(page, clip=clip), FIRST_MS
    page.mouse.down()
    ranks = (int(handle.input_value()), *PATH[1:])
    for start, end in pairwise(ranks):
        for step in range(1, STEPS + 1):
            eased = (step / STEPS) ** 2 * (3 - 2 * step / STEPS)
            page.mouse.move(at(start + (end - start) * eased), middle)
            yield taken(), FRAME_MS
    page.mouse.up()
    while not page.locator(MEASURED).count():
        yield taken(), FRAME_MS
    rest(page)
    yield picture(page, clip=clip), LAST_MS


def moving(page: Page, path: Path) -> None:
    """Write the drag as an animated WebP; raises SystemExit where it is too large."""
    images: list[Image.Image] = []
    shown: list[int] = []
    last = b""
    for data, milliseconds in frames(page):
        if data == last:
            shown[-1] += milliseconds
            continue
        last = data
        image = Image.open(io.BytesIO(data)).convert("RGB")
        images.append(image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS))
        shown.append(milliseconds)
    with whole_or_nothing(path) as temporary:
        images[0].save(
            temporary, "WEBP", save_all=True, append_images=images[1:], duration=shown, loop=0, quality=70, method=2
        )
    size = path.stat().st_size
    print(f"{path}: {len(images)} frames, {sum(shown) / 1000:.1f} s, {size / 1000:.0f} kB")
    if size >= LARGEST_BYTES:
        sys.exit(f"{path} is larger than {LARGEST_BYTES / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        for name in ("CACHE", "STATE"):
            os.environ[f"XDG_{name}_HOME"] = f"{temporary}/{name}"
        plan = Path(temporary) / "half.json"
        command = [sys.executable, "-m", "lowrank_core", "search", MODEL, "--multiplies", "0.5", "--out", str(plan)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        with running_app(Path(temporary) / "log", MODEL) as url:
            page = opened(browser, f"{url}/Ranks", 1440, 1060)
            address = show_plan(page, plan)
            page.close()
            for name, width, scheme in VIEWS:
                page = opened(browser, address, width, 1060, scheme)
                page.mouse.move(5, 5)
                path = options.out / f"ranks-{name}.png"
                write_whole(path, picture(page))
                print(path)
                page.close()
            page = opened(browser, f"{url}/Ranks", 1200, 1400)
            moving(page, options.out / "drag.webp")


if __name__ == "__main__":
    main()
