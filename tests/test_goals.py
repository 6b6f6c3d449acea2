"""Goals: one list of devices, one number format, one floor; what becomes of them is the same figure on every page."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from torch import nn
from torch.nn.utils import prune

from lowrank_core.compression.apply import restructure
from lowrank_core.errors import InvalidSettings
from lowrank_core.figures import kib, of_device
from lowrank_core.graphs.memory import flash_bytes, memory
from lowrank_core.measure.formats import FORMATS, PLAIN, plan_flash_bytes
from lowrank_core.networks.discover import discover
from lowrank_core.plans.cost import has_free_ranks, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace
from pages.ui import compare, devices, goals
from pages.ui.devices import Device
from pages.ui.goals import Goals
from pages.ui.history import History, read_history
from pages.ui.merging import merge
from pages.ui.state import own_devices, peaks
from tests.conftest import PATIENCE_SECONDS
from tests.test_compare_page import table

ROOT = Path(__file__).resolve().parents[1]
SMALL = Device("STM32F103C8 (Cortex-M3)", 64 << 10, 20 << 10)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:iris-mlp")


@pytest.fixture(autouse=True)
def no_own_devices() -> None:
    own_devices.file().unlink(missing_ok=True)


def plans(profile, number: int, seed: int = 0):
    draw = random.Random(seed)
    for _ in range(number):
        choices = {}
        for layer in profile.layers:
            method = draw.choice([m for m in layer.methods if not m.reference])
            free = has_free_ranks(method.name) and draw.random() < 0.5
            rank = tuple(draw.randint(1, top) for top in method.max_rank(layer.spec))
            choices[layer.name] = Choice(method.name, rank, free)
        yield RankPlan.of(profile.fingerprint, choices)


@pytest.mark.parametrize("model", ["digits-cnn", "digits-attention", "text-lm", "pruned"])
def test_flash_in_closed_form_is_that_of_the_network_which_the_plan_becomes(model: str) -> None:
    if model == "pruned":
        network = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)).eval()
        prune.l1_unstructured(network[0], "weight", 0.5)
        profile = discover(network, (next(network.parameters()).new_zeros(3, 8),))
    else:
        opened = Workspace.open(f"builtin:{model}")
        network, profile = opened.model, opened.profile
    for plan in plans(profile, 4):
        for number, size in FORMATS.items():
            written = plan.plain if number in PLAIN else plan
            real = flash_bytes(restructure(network, profile, written), itemsize=size)
            assert plan_flash_bytes(network, profile, plan, number) == real


def test_a_plan_within_the_budget_of_a_device_fits_it_and_one_step_above_does_not(workspace: Workspace) -> None:
    dense = plan_cost(workspace.profile).bytes
    whole = goals.flash_bytes(workspace, RankPlan(workspace.profile.fingerprint), "int8")
    chosen = Goals(Device("x", whole - 20), "int8")
    within = goals.bytes_within(workspace, chosen)
    assert within == dense - 80
    for plan in plans(workspace.profile, 60):
        fits = goals.flash_bytes(workspace, plan.plain, "int8") <= whole - 20
        assert fits == (plan_cost(workspace.profile, plan.plain).bytes <= within)
    assert goals.bytes_within(workspace, Goals(Device("x", 1 << 20))) == dense
    assert goals.bytes_within(workspace, Goals(Device("x", 1))) is not None
    assert goals.bytes_within(workspace, Goals()) is None


def test_devices_are_read_as_they_are_typed_and_a_bad_line_leaves_the_others() -> None:
    table = devices.table_in("# mine\nA, b, 1.5 MB, 20 KiB\nC, much\n\n96 KiB\n96 KiB\nD, 64 KiB flash, 8 KiB RAM\n")
    assert table.devices == (
        Device("A, b", 1_500_000, 20 << 10),
        Device("96 KiB", 96 << 10),
        Device("D", 64 << 10, 8 << 10),
    )
    assert len(table.faults) == 2
    assert table.faults[0].startswith("line 3: a device is NAME, FLASH, RAM")
    assert "got 'C, much'" in table.faults[0]
    assert table.faults[1].startswith("line 6: ")
    for typed in ("", "x", "x, 0 KiB", "12", "x" * 61 + ", 1 KiB", "a\0b, 1 KiB", "x, 1e9 KiB", "x, -3 kB"):
        with pytest.raises(InvalidSettings):
            devices.device_in(typed)


def test_one_list_with_the_own_devices_first_that_keeps_what_it_cannot_read() -> None:
    own_devices.file().parent.mkdir(parents=True, exist_ok=True)
    own_devices.file().write_bytes(b"Broken, \xff\nBoard, 32 KiB, 4 KiB\n")
    assert own_devices.known()[0] == Device("Board", 32 << 10, 4 << 10)
    assert len({device.name for device in own_devices.known()}) == len(devices.DEVICES) + 1
    assert own_devices.add("Board, 48 KiB, 8 KiB") == Device("Board", 48 << 10, 8 << 10)
    assert own_devices.file().read_bytes() == b"Broken, \xff\nBoard, 48 KiB, 8 KiB\n"
    with pytest.raises(InvalidSettings, match="remove some"):
        own_devices.write("x" * (devices.LARGEST_TABLE + 1))
    assert own_devices.file().read_bytes().startswith(b"Broken")


def test_goals_are_kept_with_the_plans_and_damaged_ones_cost_nothing_else() -> None:
    chosen = Goals(SMALL, "int8", 0.98)
    history = History(RankPlan("sha256:0")).lock(["a"]).aim(chosen)
    assert History.from_json(history.to_json()) == history
    assert History.from_json(History(RankPlan("sha256:0")).to_json()).goals == Goals()
    document = json.loads(history.to_json())
    for damaged in (
        *("x", [1], {"number": "int4"}, {"number": "as it is"}, {"floor": True}, {"floor": "1"}, {"more": 1}),
        *({"device": {"name": "x", "flash_bytes": size}} for size in (0, -1, 1.5, True, None, 2**60)),
    ):
        read = read_history(json.dumps(document | {"goals": damaged}))
        assert read.left_out == ("the goals",), damaged
        assert read.history is not None
        assert (read.history.goals, read.history.locked) == (Goals(), ("a",))
    theirs = merge(History(RankPlan("sha256:0")), History(RankPlan("sha256:0")), history)
    assert theirs.history.goals == chosen


def test_goals_say_what_they_are_and_what_is_broken(workspace: Workspace) -> None:
    plan = RankPlan(workspace.profile.fingerprint)
    need = goals.flash_bytes(workspace, plan, "int8")
    score = Score("top-1 accuracy", 0.97, 0.97, 100, True, None, None, 0.0, None, None)
    found = goals.judged(workspace, Goals(Device("x", need - 1, 4096), "int8", 0.98), plan, score, 4096)
    assert [one.line for one in found] == [
        f"⚠ {of_device(need, need - 1)} flash in int8",
        "✓ RAM 4 of 4 KiB",
        "⚠ 97.00 of at least 98 % in float32; measure in int8 on Compare",
        "as many multiplies as dense",
    ]
    assert goals.judged(workspace, Goals(), plan, score) == ()


def test_the_peak_of_ram_is_that_of_a_trace(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "apart", lambda work, workspace, *given: work(workspace, *given))
    plan = next(plans(workspace.profile, 1))
    (found,) = peaks._peaks(workspace, plan)
    compressed = restructure(workspace.model, workspace.profile, plan)
    for number, size in FORMATS.items():
        assert found["bytes"][number] == memory(compressed, workspace.opened.example_inputs, itemsize=size).peak.bytes


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    def opener(page: str, **address: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["app.py", "builtin:iris-mlp"])
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS).switch_page(f"pages/{page}.py")
        for name, value in address.items():
            app.query_params[name] = value
        return app.run()

    return opener


def typed(page: AppTest, text: str) -> AppTest:
    """What is not on the list is typed; AppTest takes only what is."""
    box = page.selectbox(key="goal device")
    box.options.append(text)
    return box.set_value(text).run()


def labelled(page: AppTest, kind: str, label: str):
    return next(element for element in page.get(kind) if element.label == label)


def test_search_compare_and_export_read_and_change_the_same_goals(
    opened: Callable[..., AppTest], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "apart", lambda work, workspace, *given: work(workspace, *given))  # as fast as it goes
    page = opened("4_Search")
    typed(page, "Tag, 200 B, 1 KiB")
    page.selectbox(key="goal number").set_value("int8").run()
    floor = labelled(page, "number_input", "Top-1 accuracy at least, %")
    page = floor.set_value(90.0).run()
    assert not page.error
    dense, own = plan_cost(workspace.profile).bytes, Goals(Device("Tag", 200, 1024), "int8", 0.9)
    share = labelled(page, "slider", "Bytes budget").value
    within = goals.bytes_within(workspace, own)
    assert share == min(100.0, int(1000 * within / dense) / 10)
    page = page.get("button_group")[0].set_value("max_drop").run()
    drop = labelled(page, "number_input", "Largest drop of the top-1 accuracy, points").value
    assert drop == pytest.approx(100 * (workspace.dense_score(None)[0] - 0.9), abs=1e-3)

    page = page.switch_page("pages/6_Compare.py").run()
    assert not page.exception
    assert page.selectbox(key="goal device").value == "Tag"
    rows, history = table(page), next(iter(page.session_state["histories"].values()))
    assert history.goals == own
    need = goals.flash_bytes(workspace, history.plan, "int8")
    assert rows["Flash"]["This plan"].startswith(f"{kib(need)} |")
    real = restructure(workspace.model, workspace.profile, history.plan.plain)
    assert need == flash_bytes(real, itemsize=1)
    assert "of at least 90 % in int8" in rows["Goal"]["This plan"]
    labelled(page, "number_input", "RAM, KiB").set_value(0.5).run()

    page = page.switch_page("pages/7_Export.py").run()
    text = "\n".join(markdown.value for markdown in page.markdown)
    assert of_device(need, 200) in text.replace("\\", "")
    stored = labelled(page, "selectbox", "Weights stored in")
    assert stored.value == "int8"
    page = stored.set_value("float16").run()

    again = opened("4_Search", w=page.session_state["session"])
    assert again.selectbox(key="goal device").value == "Tag"
    assert again.selectbox(key="goal number").value == "float16"
    assert next(iter(again.session_state["histories"].values())).goals.device == Device("Tag", 200, 512)


def test_what_is_typed_wrong_is_one_line_and_the_goals_stay(opened: Callable[..., AppTest]) -> None:
    own_devices.write("Board, 32 KiB\nC, much\n")
    page = opened("4_Search")
    page.selectbox(key="goal device").set_value("Board").run()
    page = typed(page, "nonsense")
    assert not page.exception
    assert [error.value for error in page.error] == [
        "A device is NAME, FLASH, RAM, as in My board, 64 KiB, 20 KiB; the name or the RAM may be left out, but got "
        "'nonsense'."
    ]
    assert page.selectbox(key="goal device").value == "Board"
    (warning,) = [warning.value.replace("\\", "") for warning in page.warning]
    assert "devices.txt, line 2: a device is" in warning
    assert "got 'C, much'" in warning
    page = page.selectbox(key="goal device").set_value(devices.DEVICES[0].name).run()
    assert not page.error
    assert next(iter(page.session_state["histories"].values())).goals.device == devices.DEVICES[0]
    area = labelled(page, "text_area", "Own devices, one a line")
    assert area.value == own_devices.text()
    page = area.set_value("Board, 32 KiB\nC, 1 MiB\n").run()
    assert own_devices.text() == "Board, 32 KiB\nC, 1 MiB\n"
    assert not page.warning
