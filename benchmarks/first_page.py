"""How long a page stays white on a fresh server, and until it is finished.

python -m benchmarks.first_page [--page Ranks] [--starts 3] [--beside CHECKOUT]

Seconds from the server's first answer that it is healthy until the page's title is on the screen, and until nothing is
computed any more. --beside: another checkout of this repository, whose starts alternate with these, so that both see
the same machine. Every start is a fresh process and a fresh profile of the browser; files and caches on disk are warm
after the first, which is not counted.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from playwright.sync_api import Browser, sync_playwright

from benchmarks.page import benchmark_parser, run_benchmark
from tests import conftest
from tests.conftest import AT_REST, CHROMIUM, CHROMIUM_ARGS, ROOT, running_app


def start(browser: Browser, checkout: Path, page_name: str) -> tuple[float, float]:
    """Seconds to the title and to the finished page."""
    with ExitStack() as stack:
        conftest.ROOT = checkout  # where running_app starts the server
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        page = stack.enter_context(browser.new_context(viewport={"width": 1440, "height": 1000})).new_page()
        url = stack.enter_context(running_app(folder / "log"))
        began = time.perf_counter()
        page.goto(f"{url}/{page_name}")
        page.locator("h1").first.wait_for(timeout=300_000)
        title = time.perf_counter() - began
        page.get_by_text("dense top-1 accuracy").first.wait_for(timeout=300_000)
        page.wait_for_selector(AT_REST, timeout=300_000)
        return title, time.perf_counter() - began


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--page", default="Ranks", help="as in its address; '' is Home")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--beside", type=Path, help="another checkout")
    options = parser.parse_args()
    checkouts = {"here": ROOT} | ({"beside": options.beside.resolve()} if options.beside else {})
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as kept:
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
            os.environ[name] = kept
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        for number in range(options.starts + 1):
            for name, checkout in checkouts.items():
                took = start(browser, checkout, options.page)
                if number:
                    seconds[name].append(took)
                    print(f"{name:<6}  title {took[0]:6.2f} s  finished {took[1]:6.2f} s", flush=True)
        browser.close()
    print(f"\nMedian of {options.starts} starts of /{options.page}:")
    middle = {name: [median(one) for one in zip(*took, strict=True)] for name, took in seconds.items()}
    for name, (title, finished) in middle.items():
        print(f"| {name} | title {title:.2f} s | finished {finished:.2f} s |")
    if options.beside:
        ratios = [here / beside for here, beside in zip(middle["here"], middle["beside"], strict=True)]
        print(f"| here / beside | title {ratios[0]:.3f} | finished {ratios[1]:.3f} |")


if __name__ == "__main__":
    run_benchmark(main)
