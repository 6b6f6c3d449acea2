"""Compare in real Chromium: the table first, its choices below, and what it leaves on the tracks of Ranks."""

import csv
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from benchmarks.accessibility import violations
from lowrank_core.measure.staircases import Rung, Staircase, StairFile, setting_of
from lowrank_core.workspace import Workspace
from tests.conftest import AT_REST, watched_page
from tests.test_browser_goals import choose


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is measured at once, with a layer whose name is markup; it loses when it is compressed."""
    path = tmp_path_factory.mktemp("compare") / "small_net.py"
    path.write_text(SMALL)
    return path


SMALL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("<b>in", nn.Linear(12, 24))
        self.add_module("out", nn.Linear(24, 4))

    def forward(self, x):
        return self.out(torch.tanh(getattr(self, "<b>in")(x)))

def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()

def example_inputs():
    return (torch.ones(1, 12),)

def data(samples, seed):
    inputs = torch.randn(samples, 12, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return inputs, build_model()(inputs).argmax(1)

def train_data():
    return data(300, 1)

def eval_data():
    return data(400, 2)
"""


@pytest.fixture(scope="module")
def visit(serve: Callable[..., str], model: Path, browser: Browser):
    """One person who has trained a plan, kept a snapshot, changed the plan, and now looks at Compare."""
    with watched_page(browser) as page:
        page.goto(f"{serve(model)}/Ranks")
        measured(page)
        page.get_by_label("Snapshot name").fill("=first <i>")
        page.get_by_role("button", name="Snapshot", exact=True).click()
        expect(page.locator(".rb-snapshots li")).to_have_count(1)
        before = page.get_by_test_id("live-bytes").inner_text()
        page.get_by_label("Preset").select_option("share:0.5")
        expect(page.get_by_test_id("live-bytes")).not_to_have_text(before)
        measured(page)
        go(page, "Fine_tune", "Fine-tune")
        rest(page)
        page.get_by_role("button", name="Start training").click()
        expect(page.get_by_role("button", name="Send to Export")).to_be_visible()
        go(page, "Compare", "Compare")
        whole(page)
        yield page


def measured(page: Page) -> None:
    expect(page.locator("[data-testid=live-accuracy][data-state=measured]")).to_be_visible()


def rest(page: Page) -> None:
    page.wait_for_selector(AT_REST)


def go(page: Page, address: str, title: str) -> None:
    page.get_by_test_id("stSidebar").locator(f"a[href^={address}]").dispatch_event("click")
    expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()


def table(page: Page) -> Locator:
    return page.get_by_role("region", name="Comparison")


def whole(page: Page) -> None:
    """Every column of the table is measured."""
    expect(table(page).locator("caption")).to_contain_text("Every figure of a column")
    expect(table(page).get_by_text("measuring…")).to_have_count(0)
    rest(page)


def row(page: Page, figure: str) -> Locator:
    head = page.get_by_role("rowheader", name=figure)
    return table(page).get_by_role("row").filter(has=head)


def downloaded(page: Page, label: str, at: int = 0) -> list[list[str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name=label, exact=True).nth(at).click()
    return list(csv.reader(download.value.path().read_text(encoding="utf-8").splitlines()))


def columns(page: Page) -> list[str]:
    return [head.partition("\n")[0] for head in table(page).get_by_role("columnheader").all_inner_texts()]


def test_the_table_says_what_is_measured_while_it_is(url: str, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto(f"{url}/Compare")
    expect(table(page)).to_be_visible()
    expect(row(page, "Flash").locator(".change").first).to_be_visible()  # known before anything is measured
    whole(page)
    inside, outside = "table => table.scrollWidth - table.clientWidth", "() => document.body.scrollWidth - innerWidth"
    assert table(page).evaluate(inside) > 0
    assert page.evaluate(outside) <= 0
    head, region = row(page, "Flash").get_by_role("rowheader"), table(page)
    region.focus()
    region.evaluate("region => region.scrollLeft = region.scrollWidth")
    expect(row(page, "Flash").locator("td").last).to_be_in_viewport()
    expect(head).to_be_in_viewport()  # the names of the figures stay


def test_trained_weights_snapshots_and_int8_stand_beside_the_plan(visit: Page) -> None:
    assert columns(visit) == ["Dense", "This plan", "Tuned", "=first <i>", "Dense int8"]
    top = table(visit).bounding_box()
    assert top is not None
    for later in (visit.get_by_role("combobox", name="Device"), visit.get_by_text("Columns beside dense")):
        box = later.bounding_box()
        assert box is not None
        assert box["y"] > top["y"] + top["height"]
    right = "cell => getComputedStyle(cell).textAlign === 'right'"
    assert all(cell.evaluate(right) for cell in row(visit, "Flash").locator("td").all())
    files = row(visit, "File").locator("td").all_inner_texts()
    assert ["ONNX" in cell for cell in files] == [False, False, False, False, True]
    assert not violations(visit)


def test_every_table_can_be_taken_along(visit: Page) -> None:
    lines = downloaded(visit, "Table as CSV")
    assert [name for name in lines[0] if name.endswith(", against Dense")] == [
        f"{name}, against Dense" for name in ("This plan", "Tuned", "'=first <i>", "Dense int8")
    ]
    flash = {line[0]: line for line in lines}["Flash"]
    assert float(flash[lines[0].index("Dense int8")]) < float(flash[lines[0].index("Dense")])
    assert downloaded(visit, "CSV", 0)[0] == ["Class", "Samples", "Dense", "Plan", "Change"]
    assert downloaded(visit, "Samples as CSV")[0] == ["Sample", "Target", "Dense", "Plan", "What"]
    assert {line[0] for line in downloaded(visit, "CSV", 1)[1:]} == {"<b>in", "out"}


def test_a_file_stands_beside_the_plan_while_it_is_picked(visit: Page) -> None:
    pytest.importorskip("openvino")
    before = columns(visit)
    visit.get_by_role("button", name="OpenVINO", exact=True).click()
    expect(table(visit).get_by_role("columnheader")).to_have_count(len(before) + 1)
    whole(visit)
    assert columns(visit) == [*before, "This plan, OpenVINO"]
    assert "OpenVINO" in row(visit, "File").locator("td").last.inner_text()
    expect(visit.get_by_text("Files of", exact=True)).to_be_visible()
    assert not violations(visit)
    visit.get_by_role("button", name="OpenVINO", exact=True).click()
    expect(table(visit).get_by_role("columnheader")).to_have_count(len(before))
    rest(visit)


def test_a_bar_of_two_plans_selects_its_layer(visit: Page) -> None:
    expect(visit.get_by_role("combobox", name="From")).to_have_value("=first <i>")
    expect(visit.get_by_role("combobox", name="To")).to_have_value("This plan")
    bars = visit.locator(".js-plotly-plot .barlayer .point")
    expect(bars).to_have_count(2)
    bars.last.scroll_into_view_if_needed()
    place = bars.last.bounding_box()
    assert place is not None
    visit.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    visit.wait_for_function("new URLSearchParams(location.search).get('layer') === 'out'")
    rest(visit)


def test_each_runtime_is_timed_and_may_be_timed_again(visit: Page) -> None:
    visit.get_by_role("button", name="Time with onnxruntime").click()
    again = visit.get_by_role("button", name="Time again with onnxruntime")
    expect(again).to_be_enabled()
    dense, *others = row(visit, "Latency, onnxruntime").locator("td").all_inner_texts()
    assert "µs" in dense
    assert " to " in dense
    for cell in others:  # on a busy machine any of them may be unstable, and says why
        assert "× dense" in cell or "ratios to dense spread over" in cell
    rest(visit)
    again.click()
    expect(again).to_be_disabled()
    expect(again).to_be_enabled()
    rest(visit)


def test_in_int8_no_figure_is_of_other_numbers(visit: Page) -> None:
    choose(visit, "Numbers", "int8")
    expect(table(visit).get_by_role("columnheader")).to_have_count(4)  # dense is the one in int8
    whole(visit)
    assert columns(visit) == ["Dense", "This plan", "Tuned", "=first <i>"]
    assert all("ONNX" in cell for cell in row(visit, "File").locator("td").all_inner_texts())
    assert all("95 %:" in cell for cell in row(visit, "Top-1 accuracy").locator("td").all_inner_texts())
    assert not violations(visit)


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
