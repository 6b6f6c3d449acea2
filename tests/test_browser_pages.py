"""The pages around the board, in real Chromium."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lowrank_core.compression.start import suggested_plan
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import read_plan
from lowrank_core.workspace import Workspace
from tests.conftest import AT_REST


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve()


def test_home_leads_to_ranks(url: str, page: Page) -> None:
    page.goto(url)
    expect(page.get_by_text("dense top-1 accuracy")).to_be_visible()
    page.get_by_role("button", name="Tune the ranks").click()
    expect(page).to_have_url(re.compile("/Ranks"))
    expect(page.get_by_role("heading", name="Ranks", exact=True)).to_be_visible()


def test_every_page_has_its_address_and_fits_a_narrow_screen(url: str, page: Page) -> None:
    """Reached by its link, which the folded side bar holds; each address is opened by itself in another file."""
    page.set_viewport_size({"width": 420, "height": 900})
    page.goto(url)
    for path in ("Model", "Spectra", "Ranks", "Search", "Fine_tune", "Compare", "Export"):
        name = path.replace("_", "-")
        page.get_by_test_id("stSidebar").locator(f"a[href^={path}]").dispatch_event("click")
        expect(page).to_have_url(re.compile(rf"/{path}\b"))
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(page.get_by_text("dense top-1 accuracy")).to_be_visible()
        page.wait_for_selector(AT_REST)
        width = page.get_by_test_id("stMain").evaluate("main => main.scrollWidth - main.clientWidth")
        assert width <= 0, name


def test_a_plan_is_downloaded_as_it_is_shown_and_a_bad_one_is_refused_in_one_line(
    url: str, page: Page, tmp_path: Path
) -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    page.goto(f"{url}/Export")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the plan").click()
    assert download.value.suggested_filename == "digits-cnn-plan.json"
    file = tmp_path / "plan.json"
    download.value.save_as(file)
    found = read_plan(file.read_bytes())
    assert found.plan == suggested_plan(workspace.profile, workspace.factors)
    assert check_plan(workspace.profile, found.plan) == ()
    assert json.loads(file.read_text())["model"]["name"] == "digits-cnn"

    chooser = page.locator("input[type=file]")
    chooser.set_input_files({"name": "bad_plan.json", "mimeType": "application/json", "buffer": b'{"format": 1}'})
    alert = page.get_by_test_id("stAlert")
    expect(alert).to_have_count(1)
    expect(alert).to_contain_text("bad_plan.json is not used: not a valid plan file")
    expect(page.get_by_role("link", name="Ranks")).to_be_visible()


def test_the_map_of_costs_selects_by_mouse_and_keyboard(page: Page, serve: Callable[..., str]) -> None:
    page.goto(f"{serve()}/Model?model=builtin:digits-cnn")
    area = page.locator(".cost-map button[data-pick-layer=fc1]")
    area.wait_for()
    page.wait_for_function("window.rankPicker")  # from then on a click is heard
    area.click()
    expect(page.locator(".cost-map .cm-selected")).to_have_attribute("data-pick-layer", "fc1")
    expect(page).to_have_url(re.compile("layer=fc1"))
    expect(area).to_have_attribute("tabindex", "0")
    first = page.locator(".cost-map button").first
    name = first.get_attribute("data-pick-layer")
    first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".cost-map button:focus")).not_to_have_attribute("data-pick-layer", name or "")
    page.keyboard.press("Enter")
    picked = page.locator(".cost-map button").nth(1).get_attribute("data-pick-layer") or ""
    expect(page.locator(".cost-map .cm-selected")).to_have_attribute("data-pick-layer", picked)
