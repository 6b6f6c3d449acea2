"""Compare in real Chromium, and what it leaves on the tracks of Ranks."""

from collections.abc import Callable

import platformdirs
import pytest
from playwright.sync_api import Page, expect

from lowrank_core.measure.staircases import Rung, Staircase, StairFile, setting_of
from lowrank_core.workspace import Workspace


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve()


def test_the_table_is_whole_on_a_narrow_screen_and_a_snapshot_becomes_a_column(url: str, page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 900})
    page.goto(f"{url}/Compare")
    table = page.get_by_test_id("stTable")
    expect(table).to_be_visible()
    expect(table.get_by_role("columnheader", name="This plan")).to_be_visible()
    assert table.evaluate("table => table.scrollWidth - table.clientWidth") <= 0

    page.set_viewport_size({"width": 1440, "height": 1000})
    sidebar = page.get_by_test_id("stSidebar")
    sidebar.locator("a[href^=Ranks]").dispatch_event("click")
    expect(page.locator("[data-testid=live-accuracy][data-state=measured]")).to_be_visible()
    page.get_by_label("Snapshot name").fill("first")
    page.get_by_role("button", name="Snapshot", exact=True).click()
    expect(page.locator(".rb-snapshots li")).to_have_count(1)
    bytes_now = page.get_by_test_id("live-bytes")
    before = bytes_now.inner_text()
    page.get_by_label("Preset").select_option("share:0.25")
    expect(bytes_now).not_to_have_text(before)
    expect(page.locator("[data-testid=live-accuracy][data-state=measured]")).to_be_visible()
    sidebar.locator("a[href^=Compare]").dispatch_event("click")
    for name in ("Dense", "This plan", "first"):
        expect(table.get_by_role("columnheader", name=name)).to_be_visible()


def test_measured_latency_marks_the_tracks_of_ranks(url: str, page: Page) -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    layer = workspace.profile.layer("fc1")
    steps = (((16,), 0.5), ((30,), 0.9), ((48,), 0.6), ((64,), 1.4))
    found = Staircase("fc1", "svd", 50.0, tuple(Rung(rank, ratio, 0.01) for rank, ratio in steps))
    StairFile(platformdirs.user_cache_path("rank-explorer") / "points", layer, setting_of(workspace)).save(found)
    page.goto(f"{url}/Ranks")
    row = page.locator(".rb-row[data-layer=fc1]")
    expect(row.locator(".rb-even-latency")).to_have_attribute("title", "break-even for latency (onnxruntime): rank 55")
    expect(row.locator(".rb-dominated")).to_have_count(1)
    expect(page.get_by_text("A solid line marks break-even in measured time")).to_be_visible()
    expect(page.locator(".rb-row[data-layer=fc2] .rb-even-latency")).to_have_count(0)
