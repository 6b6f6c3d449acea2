"""From the `input` event of a slider to the last chart drawn, in real Chromium on the real page.

python -m benchmarks.drag_latency [--layers 8 50 150] [--drags 8]

For each size: milliseconds from the event to the end of drawing (three charts, all figures, detail, trade-off), median
and p95; the interval between animation frames; WebSocket messages while the thumb moves and after its release. Each
size with the panels below the figures folded, and with all of them open; the front is always on the board.
"""

import os
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.page import benchmark_parser, run_benchmark
from tests.conftest import CHROMIUM, CHROMIUM_ARGS, running_app

MODEL = Path(__file__).parent / "deep_network.py"
UNFOLD = """localStorage.setItem('rank-explorer-unfolded', '["answers", "depth"]')"""
"""What a page does before it begins, so that answers and the errors along the depth are shown."""
WATCH = """() => {
  window.latencies = []; window.frames = []; let asked = null, last = null;
  document.addEventListener('input', () => { asked ??= performance.now(); }, true);
  document.addEventListener('rank-drawn', () => {
    if (asked !== null) { window.latencies.push(performance.now() - asked); asked = null; }
  }, true);
  const tick = now => {
    if (last !== null && window.moving) window.frames.push(now - last);
    last = now; requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}"""


HEAD = """| layers | input -> drawn, ms: median / p95 | frame interval, ms: median / p95 | messages while moving \
| per release | n |
|---|---|---|---|---|---|"""


def row(label: str, found: dict[str, float]) -> str:
    """A line of the table."""
    return (
        f"| {label} | {found['median']:.1f} / {found['p95']:.1f} | {found['frame_median']:.1f} / "
        f"{found['frame_p95']:.1f} | {found['during']} | {found['per_release']:.2f} | {found['n']} |"
    )


def measure(page: Page, url: str, drags: int, hold: str = "") -> dict[str, float]:
    """hold: bytes or multiplies, to drag with that budget locked."""
    sent: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append("frame")))
    page.goto(f"{url}/Ranks")
    page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]", timeout=300_000)
    if hold:
        page.get_by_label("Budget lock").select_option(hold)
    page.wait_for_timeout(1000)
    page.evaluate(WATCH)
    sliders = page.locator("input[type=range][aria-label$=' rank']")
    during = released = 0
    for drag in range(drags):
        slider = sliders.nth(drag % min(8, sliders.count()))
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box is not None
        value, top = int(slider.input_value()), int(slider.get_attribute("max") or 1)
        x = box["x"] + 5 + (box["width"] - 10) * (value - 1) / (top - 1)
        y = box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.evaluate("window.moving = true")
        before = len(sent)
        for step in range(30):
            page.mouse.move(x + (4 * step if step < 15 else 4 * (30 - step)) + 1, y)
        during += len(sent) - before
        page.evaluate("window.moving = false")
        page.mouse.up()
        page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]", timeout=120_000)
        page.wait_for_timeout(300)
        released += len(sent) - before
    latencies, frames = page.evaluate("[window.latencies, window.frames]")
    return {
        "n": len(latencies),
        "median": statistics.median(latencies),
        "p95": statistics.quantiles(latencies, n=20)[-1],
        "frame_median": statistics.median(frames),
        "frame_p95": statistics.quantiles(frames, n=20)[-1],
        "during": during,
        "per_release": released / drags,
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--layers", type=int, nargs="*", default=[8, 50, 150])
    parser.add_argument("--drags", type=int, default=8)
    options = parser.parse_args()
    print(HEAD)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        for layers in options.layers:
            os.environ["LAYERS"] = str(layers)
            with running_app(Path(folder) / f"{layers}.log", MODEL) as url:
                for panels in ("folded", "open"):
                    page = browser.new_page(viewport={"width": 1440, "height": 1000})
                    if panels == "open":
                        page.add_init_script(UNFOLD)
                    print(row(f"{layers}, panels {panels}", measure(page, url, options.drags)), flush=True)
                    page.close()


if __name__ == "__main__":
    run_benchmark(main)
