"""Jobs of every kind in real Chromium: they outlive a page switch and a refresh, and are one for all who look."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.conftest import AT_REST, slow_network, visitor
from tests.hands import enter
from tests.test_browser_search import choose

LAYERS, SIDE = 600, 3072
SAMPLES = 256_000  # a fifth of a second for each batch of them


@dataclass(frozen=True)
class Kind:
    """A kind of job: its page, how it is started, its name in the badge, the lines while it runs and after."""

    page: str
    start: Callable[[Page], None]
    badge: str
    says: str
    ended: str = ""


def press(name: str) -> Callable[[Page], None]:
    def start(page: Page) -> None:
        button = page.get_by_role("button", name=re.compile(name)).last  # the old one is there for a moment, too
        expect(button).to_be_enabled()
        rest(page)
        button.click()

    return start


def search_all_samples(page: Page, count: int = SAMPLES) -> None:
    choose(page, "Uniform")
    page.get_by_text("Layers, methods, measurement").click()
    samples = page.get_by_role("spinbutton", name="Evaluation samples per trial").last
    enter(samples, str(count), lambda: rest(page))
    press("Start search")(page)


MORE_IS_OPEN = """() => {
    const more = [...document.querySelectorAll("details")].filter(d => d.textContent.includes("More settings")).pop();
    if (more && !more.open) more.querySelector("summary").click();
    return Boolean(more && more.open);
}"""


def train_for_long(page: Page) -> None:
    def in_sight() -> None:
        expect(page.get_by_role("button", name="Start training").last).to_be_enabled()
        rest(page)
        page.wait_for_function(MORE_IS_OPEN, polling=500)

    for name in ("Epochs", "Patience"):
        enter(page.get_by_role("spinbutton", name=name).last, "200", in_sight)
    press("Start training")(page)


KINDS = {
    "search": Kind(
        *("Search", search_all_samples, "Search: Uniform", "measuring the answer · 1 plan"),
        "Cancelled after 1 plan; what was measured is kept",
    ),
    "comparison": Kind("Compare", lambda page: None, "Comparing plans", "samples|correcting| s$"),
    "training": Kind("Fine-tune", train_for_long, "Fine-tuning", "epoch|measuring the plan"),
    "spectra": Kind("Spectra", press("Compute them all"), "Spectra of large", f"of {LAYERS} layers"),
}


def rest(page: Page) -> None:
    page.wait_for_selector(AT_REST)


def line(page: Page, kind: Kind) -> Locator:
    """What goes on, beside the button that calls it off."""
    return page.get_by_test_id("stMain").get_by_text(re.compile(kind.says)).last


def under_way(page: Page, kind: Kind) -> None:
    expect(page.get_by_test_id("stMain").get_by_role("button", name="Cancel")).to_be_visible()
    expect(line(page, kind)).to_be_visible()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the slow model lies; it is quick while there is a file "go"."""
    return tmp_path_factory.mktemp("slow")


@pytest.fixture(scope="module")
def slow(serve: Callable[..., str], folder: Path) -> str:
    """A model of which everything takes long."""
    return serve(slow_network(folder, 0.2, SAMPLES))


@pytest.fixture(scope="module")
def large(serve: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights whose spectra take many minutes on any machine: a file of holes."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    size = 2 * SIDE**2
    header = {
        f"layers.{n}.weight": {"dtype": "BF16", "shape": [SIDE, SIDE], "data_offsets": [n * size, (n + 1) * size]}
        for n in range(LAYERS)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + LAYERS * size)
    return serve(path)


def look_elsewhere(page: Page) -> None:
    page.get_by_test_id("stSidebar").get_by_role("link", name="Model", exact=True).click()
    expect(page.get_by_role("heading", name="Model", exact=True)).to_be_visible()


def badge(page: Page, kind: Kind, end: str) -> Locator:
    return page.get_by_test_id("stSidebar").get_by_text(re.compile(f"{kind.badge}.* {end}"))


def call_off(page: Page, kind: Kind) -> None:
    cancel = page.get_by_test_id("stMain").get_by_role("button", name="Cancel")
    cancel.click()
    expect(cancel).to_have_count(0)
    if kind.ended:
        expect(page.get_by_text(kind.ended)).to_be_visible()


@pytest.mark.parametrize("name", KINDS)
def test_a_job_outlives_a_page_switch_and_a_refresh_and_is_one_for_all(
    name: str, page: Page, browser: Browser, request: pytest.FixtureRequest
) -> None:
    kind = KINDS[name]
    url = request.getfixturevalue("large" if name == "spectra" else "slow")
    page.goto(f"{url}/{kind.page.replace('-', '_')}")
    kind.start(page)
    under_way(page, kind)
    if name == "search":
        expect(page.get_by_role("button", name="Start search")).to_be_disabled()

    look_elsewhere(page)
    expect(badge(page, kind, "since")).to_be_visible()
    page.reload()  # a session of its own, as another tab has
    expect(badge(page, kind, "since")).to_be_visible()
    page.get_by_test_id("stSidebar").get_by_role("link", name=kind.page, exact=True).click()
    under_way(page, kind)
    expect(badge(page, kind, "since")).to_have_count(0)

    if name != "search":  # of which test_search_page.py knows that two ask for one
        somebody = visitor(browser).new_page()
        somebody.goto(f"{url}/{kind.page.replace('-', '_')}")
        if name != "spectra":  # those are the same for all who look
            kind.start(somebody)
        under_way(somebody, kind)
        look_elsewhere(somebody)
        expect(badge(somebody, kind, "since")).to_be_visible()
        somebody.get_by_test_id("stSidebar").get_by_role("button", name="Cancel").click()
        expect(badge(somebody, kind, "cancelled")).to_be_visible()
        somebody.context.close()
        under_way(page, kind)  # it ends when both have called it off
    call_off(page, kind)


@pytest.mark.parametrize("name", ["search", "training"])
def test_button_progress_cancel_and_outcome_are_on_one_screen(name: str, slow: str, page: Page) -> None:
    kind = KINDS[name]
    for width, height in ((1440, 900), (1024, 768), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.goto(f"{slow}/{kind.page.replace('-', '_')}")
        kind.start(page)
        under_way(page, kind)
        main = page.get_by_test_id("stMain")
        for part in (
            main.get_by_role("button", name="Start").last,
            main.get_by_role("button", name="Cancel"),
            line(page, kind),
            page.locator(".st-key-outcome .js-plotly-plot" if name == "search" else ".st-key-outcome"),
        ):
            expect(part).to_be_in_viewport(ratio=0.5)
        call_off(page, kind)


def test_a_job_that_is_over_is_in_the_title_until_it_is_looked_at_and_can_be_put_away(
    slow: str, folder: Path, page: Page
) -> None:
    def search(count: int) -> None:
        (folder / "go").unlink(missing_ok=True)
        search_all_samples(page, count)
        under_way(page, KINDS["search"])

    page.goto(f"{slow}/Search")
    search(SAMPLES - 1)
    look_elsewhere(page)
    expect(badge(page, KINDS["search"], "since")).to_be_visible()
    (folder / "go").touch()
    expect(badge(page, KINDS["search"], "done")).to_be_visible()
    expect(page).to_have_title("✓ Search done · Rank Explorer")
    side = page.get_by_test_id("stSidebar")
    size = "link => getComputedStyle(link.querySelector('p')).fontSize"
    assert badge(page, KINDS["search"], "done").evaluate("p => getComputedStyle(p).fontSize") == side.get_by_role(
        "link", name="Spectra"
    ).evaluate(size)
    side.get_by_role("button", name="Put away").click()
    expect(badge(page, KINDS["search"], "done")).to_have_count(0)
    expect(page).to_have_title("Model · Rank Explorer")
    page.reload()
    expect(page.get_by_role("heading", name="Where the cost is")).to_be_visible()
    expect(badge(page, KINDS["search"], "done")).to_have_count(0)

    page.get_by_test_id("stSidebar").get_by_role("link", name="Search", exact=True).click()
    expect(page.get_by_role("button", name="Start search").last).to_be_enabled()
    page.evaluate("document.hasFocus = () => false")  # the person is in another tab
    search(SAMPLES - 2)
    (folder / "go").touch()
    expect(page).to_have_title("✓ Search done · Rank Explorer")
    page.evaluate("document.hasFocus = () => true; dispatchEvent(new Event('focus'))")
    expect(page).to_have_title("Search · Rank Explorer")
