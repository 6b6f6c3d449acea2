"""Rules of accessibility hold on every page, in real Chromium."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from benchmarks.accessibility import addresses, looked_through, opened, violations
from tests.conftest import AT_REST


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve()


@pytest.mark.parametrize("address", addresses())
def test_no_rule_is_broken_light_dark_narrow_and_unfolded(url: str, page: Page, address: str) -> None:
    for view, found in looked_through(page, f"{url}/{address}"):
        assert not found, view
    for what, found in opened(page):
        assert not found, what


def test_a_broken_rule_is_seen(url: str, page: Page) -> None:
    page.goto(f"{url}/Model")
    expect(page.get_by_text("dense top-1 accuracy")).to_be_visible()
    page.evaluate("document.querySelector('h1').insertAdjacentHTML('afterend', '<button></button>')")
    assert [fault.partition(":")[0] for fault in violations(page)] == ["button-name"]


def test_what_fades_while_it_is_built_anew_is_judged_as_it_is_read(url: str, page: Page) -> None:
    page.goto(f"{url}/Model")
    expect(page.get_by_text("dense top-1 accuracy")).to_be_visible()
    page.wait_for_selector(AT_REST)
    page.evaluate(
        "document.querySelectorAll('[data-testid=stElementContainer]').forEach("
        "part => { part.dataset.stale = 'true'; part.style.opacity = 0.4; })"
    )
    assert violations(page) == ()
    faded = page.get_by_test_id("stElementContainer").filter(has=page.get_by_role("heading")).first
    assert faded.evaluate("part => getComputedStyle(part).opacity") == "0.4"  # as it was


def test_a_tap_on_a_link_closes_the_side_bar_of_a_phone(url: str, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(url)
    expect(page.get_by_text("dense top-1 accuracy")).to_be_visible()
    page.get_by_test_id("stExpandSidebarButton").click()
    expect(page.get_by_test_id("stSidebar")).to_have_attribute("data-collapsed", "false")
    page.get_by_test_id("stSidebar").get_by_role("link", name="Spectra").click()
    expect(page.get_by_role("heading", name="Spectra", exact=True)).to_be_visible()
    expect(page.get_by_test_id("stSidebar")).to_have_attribute("data-collapsed", "true")
