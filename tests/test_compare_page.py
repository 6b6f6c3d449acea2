"""The page Compare without a browser: plans side by side, what changed, whether they fit, and latency as it is told."""

import csv
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from streamlit.testing.v1 import AppTest
from torch import nn

from lowrank_core.compression.precision import Storage
from lowrank_core.compression.start import suggested_plan
from lowrank_core.errors import InvalidModel, MissingExtra
from lowrank_core.exports import EXPORTS, Compressed, _in_format
from lowrank_core.exports._in_format import Measured, measured
from lowrank_core.graphs.exporting import OnnxNetwork
from lowrank_core.measure import latency
from lowrank_core.measure.comparison import ClassChange, Comparison
from lowrank_core.measure.comparison import compare as measure
from lowrank_core.measure.formats import plan_flash_bytes
from lowrank_core.measure.latency import LatencyTable, Timing
from lowrank_core.measure.staircases import Rung, Staircase
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.scoring.scores import Score
from lowrank_core.store.cache import Cache
from lowrank_core.workspace import Workspace
from pages.ui import charts, compare, compare_table, devices, words
from pages.ui.compare import Cell, Column, ColumnMeasured, Findings, PlanTiming, Scores, Target
from pages.ui.goals import Goals
from pages.ui.state import jobs
from tests.conftest import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[1]
Open = Callable[..., AppTest]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Open:
    def opener(*model: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["app.py", *model])
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
        return app.switch_page("pages/6_Compare.py").run()

    return opener


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:digits-cnn")


def button(page: AppTest, label: str):
    return next(found for found in page.button if found.label == label)


def labelled(page: AppTest, kind: str, label: str):
    return next(element for element in page.get(kind) if element.label == label)


def table(page: AppTest) -> dict[str, dict[str, str]]:
    """The comparison as it is drawn: {figure: {column: all that stands in the cell}}."""
    html = next(body for body in (found.proto.body for found in page.get("html")) if 'class="comparison"' in body)
    root = ElementTree.fromstring(html[html.index("<div") :])
    assert root.get("tabindex") == "0"
    names = [head.text or "" for head in root.iter("th") if head.get("scope") == "col"]
    rows = {}
    for line in root.findall("./table/tbody/tr"):
        head, *cells = line
        assert (head.tag, head.get("scope")) == ("th", "row")
        said = [" | ".join(text.strip() for text in cell.itertext()) for cell in cells]
        rows[head.text or ""] = dict(zip(names, said, strict=True))
    return rows


def test_the_columns_stand_side_by_side_each_in_its_format(opened: Open, workspace: Workspace) -> None:
    page = opened()
    assert not page.exception
    assert not page.error
    rows = table(page)
    assert list(rows["Multiplies"]) == ["Dense", "This plan", "Dense int8"]
    plan = suggested_plan(workspace.profile, workspace.factors)
    assert rows["Multiplies"]["This plan"].startswith(words.count(plan_cost(workspace.profile, plan).multiplies))
    assert rows["Top-1 accuracy"]["Dense"] == "99.37 % | 797 samples"
    assert "points | 95 %:" in rows["Top-1 accuracy"]["This plan"]
    assert rows["Peak RAM"]["Dense"].startswith("16.38 kB")
    assert rows["Peak RAM"]["This plan"].startswith("16.38 kB | as dense")
    assert rows["Peak RAM"]["Dense int8"].startswith("4.096 kB | −75 %")
    assert rows["File"]["Dense int8"].endswith("| ONNX")
    assert rows["File"]["Dense"].endswith("| safetensors")
    assert {"csv comparison", "csv classes", "csv samples", "csv ranks"} <= {
        element.key for element in page.get("download_button")
    }

    labelled(page, "text_input", "Classes").set_value("3, 8").run()
    assert sorted(page.dataframe[0].value["Class"]) == [3, 8]
    labelled(page, "text_input", "Classes").set_value("")
    labelled(page, "toggle", "Only changed").set_value(True).run()
    assert (page.dataframe[0].value["Change"] != 0).all()


def test_in_int8_all_columns_are_measured_in_int8(opened: Open) -> None:
    page = opened()
    labelled(page, "selectbox", "Numbers").set_value("int8").run()
    assert not page.error
    rows = table(page)
    assert list(rows["File"]) == ["Dense", "This plan"]
    assert all(cell.endswith("| ONNX") for cell in rows["File"].values())
    assert "95 %:" in rows["Top-1 accuracy"]["Dense"]  # beside the dense network in float32
    columns = comparisons_of(page)
    assert {column.number for column in columns if not column.plan.choices} == {"as it is", "int8"}


def test_a_file_has_a_column_of_its_own_where_its_runtime_is_here(
    monkeypatch: pytest.MonkeyPatch, opened: Open
) -> None:
    pytest.importorskip("openvino")

    def missing(workspace: Workspace) -> None:
        raise MissingExtra("ExecuTorch needs more packages")

    monkeypatch.setitem(EXPORTS, "executorch", replace(EXPORTS["executorch"], ready=missing))
    page = opened("builtin:iris-mlp")
    files = labelled(page, "button_group", "As files")
    assert files.options == ["int8 ONNX", "int8 ONNX without refit", "OpenVINO"]
    said = words.plain("No ExecuTorch program (.pte): ExecuTorch needs more packages")
    assert said in {found.value for found in page.caption}
    files.set_value(["OpenVINO"]).run()
    assert not page.exception
    assert not page.error
    rows = table(page)
    assert rows["File"]["This plan, OpenVINO"].endswith("| OpenVINO")
    assert rows["Flash"]["This plan, OpenVINO"] == rows["Flash"]["This plan"]
    assert rows["Top-1 accuracy"]["This plan, OpenVINO"] == rows["Top-1 accuracy"]["This plan"]
    heads = next(found.proto.body for found in page.get("html") if 'class="comparison"' in found.proto.body)
    assert f"This plan, OpenVINO<small>float32, run by openvino {version('openvino')}, thorough" in heads


def comparisons_of(page: AppTest) -> set[Column]:
    """Every column that was measured of whatever model, by whichever session."""
    kept = jobs.comparisons()
    return {
        one.column
        for job in kept.of_model(next(iter(kept._jobs))[0])
        for one in job.snapshot.found
        if isinstance(one, ColumnMeasured)
    }


def test_a_device_says_by_how_much_a_plan_does_not_fit(opened: Open) -> None:
    page = opened()
    page.selectbox(key="goal device").set_value("STM32F103C8 (Cortex-M3)").run()
    cells = table(page)["On the device"]
    assert cells["This plan"].startswith("✗ does not fit | flash")
    labelled(page, "number_input", "Flash, KiB").set_value(2000.0).run()
    assert set(table(page)["On the device"].values()) == {"✓ fits"}


def test_latency_is_measured_by_a_button(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**9))
    monkeypatch.setattr(latency.time, "thread_time", lambda: next(ticks) / 100)
    monkeypatch.setattr(compare, "apart", lambda work, workspace, *given: work(workspace, *given))  # where ticks count
    page = opened()
    page = button(page, "Time with torch").click().run()
    assert not page.error
    row = table(page)["Latency, torch"]
    assert row["Dense"] == "10,000 µs | 10,000 to 10,000 µs"
    assert row["This plan"] == "10,000 µs | 1.00 × dense | 10,000 to 10,000 µs"
    assert row["Dense int8"] == "– | int8 is run by onnxruntime and openvino"
    assert not button(page, "Time again with torch").disabled
    page.segmented_control(key="stairs runtime").set_value("torch").run()
    page = button(page, "Measure the layers").click().run()
    assert not page.exception
    assert "conv2" in set(page.dataframe[-1].value["Layer"])
    assert {"csv layers", "csv latency"} <= {element.key for element in page.get("download_button")}


def test_a_table_of_the_device_gives_its_own_row(opened: Open) -> None:
    page = opened()
    given = "layer,method,rank,microseconds\nfc1,dense,,90\nfc1,svd,127,30\n"
    page.file_uploader[0].upload("device.csv", given.encode(), "text/csv").run()
    row = table(page)["Your table"]
    assert (row["Dense"], row["This plan"], row["Dense int8"]) == ("90 µs", "30 µs | −66.7 %", "–")
    page.file_uploader[0].upload("device.csv", b"layer\n", "text/csv").run()
    assert "device.csv is not used" in page.error[0].value


# ---- rows -----------------------------------------------------------------------------------------------------------


def network(workspace: Workspace, plan: RankPlan) -> Compressed:
    return Compressed(workspace.compress(plan) if plan.choices else workspace.model, plan)


@pytest.fixture(scope="module")
def columns(workspace: Workspace) -> dict[str, Column]:
    fingerprint = workspace.profile.fingerprint
    small = RankPlan.of(fingerprint, {"fc1": Choice("svd", (3,))})
    return {"Dense": Column(Candidate(RankPlan(fingerprint))), "Small": Column(Candidate(small))}


@pytest.fixture(scope="module")
def known(workspace: Workspace, columns: dict[str, Column]) -> dict[Column, Measured]:
    return {column: measured(workspace, network(workspace, column.plan), column.number) for column in columns.values()}


def rows_of(
    workspace: Workspace, columns: dict[str, Column], found: Findings, target: Target | None = None
) -> dict[str, dict[str, Cell]]:
    return {
        row.label: dict(row.cells)
        for row in compare.rows(workspace, columns, found, target or Target(), LatencyTable())
    }


def test_a_column_that_waits_says_so_beside_what_is_known_at_once(
    workspace: Workspace, columns: dict[str, Column]
) -> None:
    rows = rows_of(workspace, columns, Findings({}, {}, frozenset([columns["Dense"]])))
    assert rows["Top-1 accuracy"] == {"Dense": Cell("measuring…"), "Small": Cell("not measured")}
    assert rows["Flash"]["Small"].change.startswith("−")
    assert rows["File"]["Small"] == compare.NOTHING


def test_an_unstable_time_says_why_and_may_be_measured_again(
    workspace: Workspace, columns: dict[str, Column], known: dict[Column, Measured]
) -> None:
    timing = Timing(10.0, 5.0, 0.5, 0.2, 9, (9.0, 11.0), (4.0, 7.0))
    entry = columns["Small"].timed
    found = Findings(known, {(entry, "torch"): PlanTiming(entry, "torch", timing)})
    told = rows_of(workspace, columns, found)["Latency, torch"]
    assert (told["Dense"].text, told["Dense"].note) == ("10 µs", "9 to 11 µs")
    assert told["Small"].text == "unstable"
    assert told["Small"].note == "about 5 µs, 4 to 7 µs; ratios to dense spread over 0.20, and at most 0.1 counts"
    assert compare.unstable(columns, found) == ("torch",)
    steady = Findings(known, {(entry, "torch"): PlanTiming(entry, "torch", replace(timing, iqr=0.01))})
    assert rows_of(workspace, columns, steady)["Latency, torch"]["Small"].change == "0.50 × dense"
    assert compare.unstable(columns, steady) == ()
    refused = Findings(known, {(entry, "torch"): PlanTiming(entry, "torch", None, "there is no such operator")})
    told = rows_of(workspace, columns, refused)["Latency, torch"]
    assert told["Small"] == Cell("–", note="not measurable: there is no such operator")


def test_int8_is_measured_as_export_writes_it(workspace: Workspace, tmp_path: Path) -> None:
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (20,))})
    column = Column(workspace.candidate(plan, corrected=False), "int8")
    (found,) = compare.work(workspace, Scores((column,)), tmp_path)
    assert isinstance(found, ColumnMeasured)
    written = EXPORTS["onnx"].write(
        workspace, network(workspace, plan).stored(workspace, Storage("int8")), tmp_path / "network.onnx"
    )
    comparison = found.measured.comparison
    assert comparison is not None
    assert (comparison.score, found.measured.file_bytes, found.measured.kind) == (written.score, written.bytes, "ONNX")
    lost = round(comparison.score.drop * comparison.score.samples)
    assert sum(c.dense_right - c.right for c in comparison.classes) == comparison.lost - comparison.won == lost
    dense = Column(Candidate(RankPlan(plan.fingerprint)), "int8")
    wanted = Target(Goals(number="int8", floor=0.5))
    findings = Findings({column: found.measured}, {})
    rows = rows_of(workspace, {"Dense": dense, "Small": column}, findings, wanted)
    said = words.score(workspace, comparison.score.value)
    assert rows["Top-1 accuracy"]["Small"].text == said
    assert rows["Goal"]["Small"].text == f"✓ {said.removesuffix(' %')} of at least 50 % in int8"
    assert rows["Goal"]["Dense"].note == "not measured in int8"
    assert rows["File"]["Small"].value == written.bytes
    assert rows["Peak RAM"]["Small"].text == "4.096 kB"


def test_a_file_is_run_once_and_kept_with_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    iris = Workspace.open("builtin:iris-mlp", cache=Cache(tmp_path))
    plan = RankPlan.of(iris.profile.fingerprint, {"fc2": Choice("svd", (3,))})
    given = network(iris, plan)
    found = measured(iris, given, "as it is", file="OpenVINO")
    assert found.comparison is not None
    assert found.comparison.classes == measure(iris, given.model).classes  # OpenVINO rounds otherwise, and no class
    beside = EXPORTS["openvino"].write(iris, given, tmp_path / "network.xml").beside
    sizes = [path.stat().st_size for path in (tmp_path / "network.xml", *map(Path, beside))]
    assert (found.kind, found.file_bytes) == ("OpenVINO", pytest.approx(sum(sizes), rel=0.02))  # the time is in it

    def again(*args: object, **kwargs: object) -> None:
        raise InvalidModel("it was written again")

    monkeypatch.setattr(_in_format, "write_anywhere", again)
    assert measured(iris, given, "as it is", file="OpenVINO") == found
    for other in (replace(given, correction={"kind": "quick"}), network(iris, RankPlan(plan.fingerprint))):
        assert measured(iris, other, "as it is", file="OpenVINO").refused == "it was written again"
    monkeypatch.setattr(_in_format, "version", lambda package: "0.0")
    assert measured(iris, given, "as it is", file="OpenVINO").refused == "it was written again"


def test_int8_runs_over_the_samples_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    forward = OnnxNetwork.forward

    def counted(self: OnnxNetwork, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ran.append(len(args[0]))
        return forward(self, *args)

    monkeypatch.setattr(OnnxNetwork, "forward", counted)
    torch.manual_seed(0)
    data = torch.randn(100, 8), torch.randint(3, (100,))
    live = Workspace.of(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), data[0][:1], data)
    found = measured(live, network(live, RankPlan(live.profile.fingerprint)), "int8")
    assert not found.refused
    assert sum(ran) == 100 + 64 + 1 + 2 + 7  # scored once, then compared with what a fresh process answers


def test_a_network_that_int8_leaves_wide_is_not_measured_in_int8() -> None:
    """Its file keeps an LSTM in float32: that score would stand beside bytes that no file has."""
    lstm = Workspace.open("builtin:digits-lstm")
    dense = Column(Candidate(RankPlan(lstm.profile.fingerprint)), "int8")
    found = measured(lstm, network(lstm, dense.plan), "int8")
    assert (found.comparison, found.file_bytes) == (None, None)
    assert "quantises no LSTM here: 97 % of the weights stay in float32" in found.refused
    score = rows_of(lstm, {"Dense": dense}, Findings({dense: found}, {}))["Top-1 accuracy"]["Dense"]
    assert (score.text, score.value, score.note) == ("not measurable in int8", None, found.refused)


def test_half_precision_beyond_its_range_is_a_reason() -> None:
    large = nn.Linear(4, 3).eval()
    with torch.no_grad():
        large.weight[0, 0] = 1e6
    data = torch.eye(4), torch.tensor([0, 1, 2, 0])
    workspace = Workspace.of(large, torch.eye(4), data)
    found = measured(workspace, network(workspace, RankPlan(workspace.profile.fingerprint)), "float16")
    assert found.comparison is None
    assert "beyond the range of torch.float16" in found.refused


def test_energy_is_multiplies_and_bytes_at_their_prices(
    workspace: Workspace, columns: dict[str, Column], known: dict[Column, Measured]
) -> None:
    found = Findings(known, {})
    cells = rows_of(workspace, columns, found, Target(multiply_pj=1.0, byte_pj=0.0))["Energy"]
    assert cells["Dense"].text == f"{plan_cost(workspace.profile).multiplies / 1e6:.3g} µJ"
    assert "Energy" not in rows_of(workspace, columns, found)


def test_names_with_markup_are_text_and_the_csv_holds_numbers(
    workspace: Workspace, columns: dict[str, Column], known: dict[Column, Measured]
) -> None:
    named = {"Dense": columns["Dense"], "=<img src=x>": columns["Small"]}
    rows = compare.rows(workspace, named, Findings(known, {}), Target(), LatencyTable())
    headings = dict.fromkeys(named, "float32")
    html = compare_table.table(rows, headings, "<b>")
    assert "<img" not in html
    assert "<caption><span>&lt;b&gt;" in html
    lines = list(csv.reader(io.StringIO(compare_table.comparison_csv(rows, headings))))
    assert lines[0][4] == "'=<img src=x>"
    (flash,) = (line for line in lines if line[0] == "Flash")
    assert float(flash[4]) == plan_flash_bytes(workspace.model, workspace.profile, columns["Small"].plan)
    assert {len(line) for line in lines} == {len(lines[0])}


def test_ranks_of_two_plans_are_said_layer_by_layer(workspace: Workspace) -> None:
    fingerprint, layers = workspace.profile.fingerprint, workspace.profile.layers
    one = RankPlan.of(fingerprint, {"fc1": Choice("svd", (20,)), "fc2": Choice("svd", (8,))})
    other = RankPlan.of(fingerprint, {"fc1": Choice("svd", (10,)), "fc2": Choice("svd", (8,))})
    (change,) = compare.rank_changes(layers, one, other)
    assert (change.layer, change.one, change.other) == ("fc1", "SVD 20", "SVD 10")
    assert change.one_share == 2 * change.other_share
    assert change.other_bytes < change.one_bytes
    from_dense = {change.layer: change for change in compare.rank_changes(layers, RankPlan(fingerprint), one)}
    assert (from_dense["fc2"].one, from_dense["fc2"].one_share) == ("dense", 1.0)
    (bar,) = charts.rank_changes([change]).data
    assert list(bar.y) == ["fc1"]
    assert bar.x[0] == pytest.approx(100 * (change.other_share - change.one_share), abs=0.01)


def test_classes_are_found_by_number_or_name() -> None:
    score = Score("top-1", 0.5, 0.9, 30, True, None, None, 0.4, None, None)
    classes = tuple(ClassChange(label, 10, 9, right) for label, right in ((1, 9), (2, 5), (11, 8)))
    found = Comparison(score, classes)
    names = ["none", "cat", "dog", *["other"] * 8, "wild cat"]

    def kept(**how: Any) -> list[object]:
        return [row["Class"] for row in compare.class_rows(found, **how)]

    assert kept() == [2, 11, 1]
    assert kept(like="1") == [1]
    assert kept(like="1, 2") == [2, 1]
    assert kept(like="cat", names=names) == [11, 1]
    assert kept(only_changed=True) == [2, 11]
    assert kept(like="bird", names=names) == []


def test_flips_are_the_samples_on_which_the_answers_differ(workspace: Workspace) -> None:
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (4,))})
    found = measure(workspace, workspace.compress(plan))
    lost = round(found.score.drop * found.score.samples) + found.won
    assert found.lost == lost > 0
    assert found.won + found.lost + found.changed == len(found.flips)
    assert sum(c.samples for c in found.classes) == found.score.samples
    assert sum(c.dense_right - c.right for c in found.classes) == found.lost - found.won
    targets = workspace.reference.dataset.targets
    assert [row["What"] for row in compare.flip_rows(found.flips)].count("lost") == found.lost
    assert all(flip.target == targets[flip.sample] and flip.dense != flip.compressed for flip in found.flips)
    html = charts.flips([(workspace.reference.dataset.inputs[flip.sample], flip) for flip in found.flips[:3]])
    assert html.count("data:image/bmp;base64,") == 3


def test_a_staircase_in_a_row() -> None:
    rungs = (Rung((4,), 0.9, 0.0), Rung((8,), 0.5, 0.0), Rung((16,), 1.5, 0.0))
    never = Staircase("fc2", "svd", 1.0, (Rung((4,), 1.2, 0.0), Rung((8,), 1.5, 0.0)))
    unsure = Staircase("fc3", "svd", 1.0, (Rung((4,), 1.2, 0.5),))
    found = compare.stair_rows([Staircase("fc", "svd", 12.34, rungs), never, unsure])
    assert [row["Break-even"] for row in found] == ["11", "never", "unstable"]
    assert [row["Dominated"] for row in found] == ["4", "–", "–"]
    assert [row["Fastest"] for row in found] == ["8 at 0.50", "4 at 1.20", "–"]


def test_devices_are_sensible() -> None:
    assert len({device.name for device in devices.DEVICES}) == len(devices.DEVICES)
    assert all(device.flash_bytes > (device.ram_bytes or 0) >= 0 for device in devices.DEVICES)
    assert devices.verdict(10, 20, 10, 20) == (True, [])
    assert devices.verdict(11, 22, 10, 20) == (False, [("flash", 1), ("RAM", 2)])
