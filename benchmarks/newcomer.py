"""A newcomer's first minutes in real Chromium: cold start, first board, and Home -> tune -> drag -> export -> file.

python -m benchmarks.newcomer [--cold] [--screenshots FOLDER]

Prints seconds of a fresh server and browser until the board can be used, then each step of the whole job, from Home to
the exported file, with clicks and seconds. The first start finds no cache, the later ones what it left. With
--screenshots, a picture after every step; with --cold, the starts alone.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.page import benchmark_parser, run_benchmark
from tests.conftest import CHROMIUM, CHROMIUM_ARGS, running_app

USABLE = "[data-testid=live-accuracy][data-state]"
MEASURED = "[data-testid=live-accuracy][data-state=measured]"


def first_open(browser: Browser, log: Path) -> float:
    """Seconds from opening /Ranks on a fresh server until figures are shown and the sliders can be dragged."""
    with running_app(log) as url:
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        started = time.perf_counter()
        page.goto(f"{url}/Ranks")
        page.wait_for_selector(USABLE, timeout=60_000)
        seconds = time.perf_counter() - started
        page.close()
    return seconds


def whole_job(page: Page, url: str, picture: Callable[[str], None]) -> None:
    """Print each step with the clicks and seconds so far."""
    started, clicks = time.perf_counter(), 0

    def say(step: str) -> None:
        print(f"| {step} | {clicks} | {time.perf_counter() - started:.1f} |", flush=True)
        picture(step)

    page.goto(url)
    page.get_by_text("Tune the ranks").first.wait_for(timeout=60_000)
    say("Home is open")
    page.get_by_text("Tune the ranks").first.click()
    clicks += 1
    page.wait_for_selector(USABLE, timeout=60_000)
    say("the board can be used")
    handle = page.locator("input[type=range][aria-label$=' rank']").nth(3)
    box = handle.bounding_box()
    assert box is not None
    value, top = int(handle.input_value()), int(handle.get_attribute("max") or 1)
    x = box["x"] + 5 + (box["width"] - 10) * (value - 1) / (top - 1)
    page.mouse.move(x, box["y"] + 12)
    page.mouse.down()
    page.mouse.move(x + 60, box["y"] + 12, steps=12)
    say("dragging")
    page.mouse.up()
    clicks += 1
    page.wait_for_selector(MEASURED, timeout=60_000)
    say("measured: " + page.inner_text("[data-testid=live-accuracy]"))
    page.get_by_role("link", name="Export").click()
    clicks += 1
    page.get_by_text("plan", exact=False).first.wait_for(timeout=60_000)
    button = page.get_by_test_id("stDownloadButton").first
    button.wait_for(timeout=60_000)
    say("Export is open")
    with page.expect_download() as download:
        button.click()
        clicks += 1
    path = download.value.path()
    say(f"{download.value.suggested_filename}: {len(json.loads(path.read_text())['layers'])} layers")


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--cold", action="store_true", help="only the first opens of /Ranks")
    options = parser.parse_args()
    folder = options.screenshots
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_STATE_HOME"] = os.environ["XDG_CACHE_HOME"] = temporary
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        times = [first_open(browser, Path(temporary) / f"{i}.log") for i in range(3)]
        print(f"first open of /Ranks on a fresh server, seconds until usable: {', '.join(f'{t:.1f}' for t in times)}\n")
        if options.cold:
            return
        print("| step | clicks | seconds |\n|---|---|---|")
        with running_app(Path(temporary) / "job.log") as url:
            page = browser.new_page(viewport={"width": 1440, "height": 1000})

            def picture(step: str) -> None:
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    name = "".join(c if c.isalnum() else "-" for c in step.split(":")[0]).lower()
                    page.screenshot(path=folder / f"{len(list(folder.iterdir()))}-{name}.png")

            whole_job(page, url, picture)


if __name__ == "__main__":
    run_benchmark(main)
