"""The page Compare without a browser: plans side by side, what changed, whether they fit, and latency as it is told."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from lowrank_core.compression.precision import Storage
from lowrank_core.compression.start import suggested_plan
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.measure import latency
from lowrank_core.measure.comparison import compare as measure
from lowrank_core.measure.latency import LatencyTable, Timing
from lowrank_core.measure.staircases import Rung, Staircase
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace
from pages.ui import charts, compare, devices, words
from pages.ui.compare import Narrow, Target
from pages.ui.goals import Goals
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


def test_dense_and_the_plan_stand_side_by_side(opened: Open, workspace: Workspace) -> None:
    page = opened()
    assert not page.exception
    assert not page.error
    rows = page.table[0].value
    assert list(rows.columns) == ["Dense", "This plan"]
    plan = suggested_plan(workspace.profile, workspace.factors)
    assert rows.loc["Multiplies", "This plan"] == words.count(plan_cost(workspace.profile, plan).multiplies)
    assert rows.loc["Top-1 accuracy", "Dense"] == "99.37 %"
    assert "points" in rows.loc["Against dense", "This plan"]
    assert "95 %" in rows.loc["Against dense", "This plan"]
    assert rows.loc["Peak RAM", "Dense"] == rows.loc["Peak RAM", "This plan"] == "16.38 kB"


def test_a_device_says_by_how_much_a_plan_does_not_fit(opened: Open) -> None:
    page = opened()
    page.selectbox(key="goal device").set_value("STM32F103C8 (Cortex-M3)").run()
    cells = page.table[0].value.loc["On the device"]
    assert all(cell.startswith("✗ does not fit: flash") for cell in cells)
    next(found for found in page.number_input if found.label == "Flash, KiB").set_value(2000.0).run()
    assert set(page.table[0].value.loc["On the device"]) == {"✓ fits"}


def test_latency_is_measured_by_a_button(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**9))
    monkeypatch.setattr(latency.time, "thread_time", lambda: next(ticks) / 100)
    monkeypatch.setattr(compare, "apart", lambda work, workspace, *given: work(workspace, *given))  # where ticks count
    page = opened()
    page = button(page, "Time with torch").click().run()
    assert not page.error
    assert page.table[0].value.loc["Latency, torch", "This plan"].startswith("1.00 × dense")
    page.segmented_control(key="stairs runtime").set_value("torch").run()
    page = button(page, "Measure the layers").click().run()
    assert not page.exception
    assert "conv2" in set(page.dataframe[-1].value["Layer"])


def test_a_table_of_the_device_gives_its_own_row(opened: Open) -> None:
    page = opened()
    table = "layer,method,rank,microseconds\nfc1,dense,,90\nfc1,svd,127,30\n"
    page.file_uploader[0].upload("device.csv", table.encode(), "text/csv").run()
    assert list(page.table[0].value.loc["Your table"]) == ["90 µs", "30 µs"]
    page.file_uploader[0].upload("device.csv", b"layer\n", "text/csv").run()
    assert "device.csv is not used" in page.error[0].value


def rows_of(workspace: Workspace, target: Target, timing: Timing | None = None) -> dict[str, dict[str, str]]:
    profile = workspace.profile
    candidates = {
        "Dense": workspace.candidate(RankPlan(profile.fingerprint)),
        "Small": workspace.candidate(RankPlan.of(profile.fingerprint, {"fc1": Choice("svd", (3,))}), corrected=False),
    }
    found = {name: measure(workspace, candidate) for name, candidate in candidates.items()}
    raced = {} if timing is None else {(candidates["Small"], "torch"): timing}
    return compare.rows(workspace, found, raced, target, LatencyTable())


def test_an_unstable_ratio_is_a_word(workspace: Workspace) -> None:
    told = rows_of(workspace, Target(), Timing(10.0, 5.0, 0.5, 0.2, 9))["Latency, torch"]
    assert told == {"Dense": "1", "Small": "unstable"}


def test_number_formats_scale_flash_and_memory(workspace: Workspace) -> None:
    whole, eighth = rows_of(workspace, Target()), rows_of(workspace, Target(Goals(number="int8")))
    assert whole["Peak RAM"]["Small"] == "16.38 kB"
    assert eighth["Peak RAM"]["Small"] == "4.096 kB"


def test_int8_is_measured_as_export_writes_it(workspace: Workspace, tmp_path: Path) -> None:
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (20,))})
    candidate = workspace.candidate(plan, corrected=False)
    (found,) = compare.work(workspace, Narrow((candidate,), "int8"), tmp_path)
    network = Compressed(workspace.compress(plan, None), plan).stored(workspace, Storage("int8"))
    written = EXPORTS["onnx"].write(workspace, network, tmp_path / "network.onnx")
    assert (found.score, found.file_bytes) == (written.score, written.bytes)
    wanted = Target(Goals(number="int8", floor=0.5))
    rows = compare.rows(
        workspace,
        {"Small": measure(workspace, candidate)},
        {},
        wanted,
        LatencyTable(),
        {(candidate, "int8"): found},
    )
    said = words.score(workspace, found.score.value)
    assert rows["Top-1 accuracy in int8"]["Small"] == said
    assert rows["Goal"]["Small"] == f"✓ {said.removesuffix(' %')} of at least 50 % in int8"
    assert rows["ONNX file in int8"]["Small"] == words.count(written.bytes, "B")


def test_energy_is_multiplies_and_bytes_at_their_prices(workspace: Workspace) -> None:
    found = rows_of(workspace, Target(multiply_pj=1.0, byte_pj=0.0))["Energy, a rough guess"]
    assert found["Dense"] == f"{plan_cost(workspace.profile).multiplies / 1e6:.3g} µJ"
    assert "Energy, a rough guess" not in rows_of(workspace, Target())


def test_flips_are_the_samples_on_which_the_answers_differ(workspace: Workspace) -> None:
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (4,))})
    found = measure(workspace, workspace.candidate(plan, corrected=False))
    lost = round(found.score.drop * found.score.samples) + found.won
    assert found.lost == lost > 0
    assert found.won + found.lost + found.changed == len(found.flips)
    assert sum(c.samples for c in found.classes) == found.score.samples
    assert sum(c.dense_right - c.right for c in found.classes) == found.lost - found.won
    targets = workspace.reference.dataset.targets
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
