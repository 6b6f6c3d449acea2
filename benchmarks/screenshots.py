"""Take the README's pictures of the Ranks page: light, dark and narrow, with a drag half way.

python -m benchmarks.screenshots [--model MODEL] [--out docs]
"""

import argparse
import os
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.conftest import CHROMIUM, CHROMIUM_ARGS, running_app

VIEWS = (("light", 1440, "light"), ("dark", 1440, "dark"), ("narrow", 420, "light"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:digits-cnn")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_STATE_HOME"] = temporary
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        with running_app(Path(temporary) / "log", options.model) as url:
            for name, width, scheme in VIEWS:
                page = browser.new_context(viewport={"width": width, "height": 1060}, color_scheme=scheme).new_page()
                page.goto(f"{url}/Ranks")
                page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]", timeout=120_000)
                page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=120_000)
                page.get_by_label("Snapshot name").fill("start")
                page.get_by_role("button", name="Snapshot", exact=True).click()
                page.wait_for_selector(".rb-snapshots li")
                page.get_by_label("Preset").select_option("share:0.5")
                page.wait_for_selector("[data-testid=live-accuracy]:not([data-state=measured])")
                page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]", timeout=120_000)
                page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=120_000)
                page.evaluate("window.scrollTo(0, 0)")
                page.mouse.move(5, 5)
                page.wait_for_timeout(600)
                path = options.out / f"ranks-{name}.png"
                page.screenshot(path=path)
                print(path)


if __name__ == "__main__":
    main()
