"""Networks as plain C: compiled by the compiler of this machine, and equal to the network, or to its whole numbers."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core import Workspace
from lowrank_core.compression.precision import Storage
from lowrank_core.errors import InvalidModel, MissingExtra
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.graphs.c_compiled import COMPILERS, STRICT, CNetwork, compiler, size_of
from lowrank_core.graphs.c_source import about_in, header, memory_plan, prefix_of, with_own_outputs
from lowrank_core.graphs.integers import StepsNetwork, integers, ranges_of
from lowrank_core.graphs.steps import Steps, steps_of
from lowrank_core.layers.data import BatchAxes, call, first_axes
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.scoring.scores import final_score
from lowrank_core.store.kinds import EXPORTED
from pages.ui.compare import Column, Compiles, Findings, PlanCompiled, Target, rows, work
from tests.awkward_layers import filled

needs_cc = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="this machine has no C compiler")


class Residual(nn.Module):
    """Strided, grouped, depthwise and dilated convolutions, a shortcut with padding, concatenation, and pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=4, bias=False)
        self.norm, self.first = nn.BatchNorm2d(12), nn.BatchNorm2d(3)
        self.wide = nn.Conv2d(12, 4, 3, padding=2, dilation=2, padding_mode="reflect")
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu6(self.stem(self.first(x)))
        b = self.norm(self.grouped(F.hardswish(self.depthwise(a))))
        b = F.relu(b + F.pad(a, (0, 0, 0, 0, 2, 2)))
        c = torch.cat([F.max_pool2d(b, 3, 2, 1), F.avg_pool2d(b, 2)[:, :, :3, :3].flip(3)[..., :3]], 1)
        d = torch.sigmoid(self.wide(c[:, ::2])) * torch.tanh(c[:, :4])
        return self.head(
            torch.cat(
                [F.adaptive_avg_pool2d(d, 1), d[:, :, 1:2, 2:], d.amax((2, 3), True) - 0.5, -d[:, :, :1, :1]], 1
            ).flatten(1)
        )


class Sequence(nn.Module):
    """A convolution of one axis, a bidirectional GRU, attention, norms, and an answer of two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, padding="same")
        self.rnn = nn.GRU(6, 5, batch_first=True, bidirectional=True)
        self.layer = nn.TransformerEncoderLayer(10, 2, 12, batch_first=True, activation="gelu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(torch.float32)  # which the exporter guards by an assertion
        y = F.leaky_relu(F.avg_pool1d(self.conv(x), 2)).transpose(1, 2)
        y = self.layer(self.rnn(y)[0])
        return F.softmax(y[:, -1], -1), y.square().mean(1)


class Words(nn.Module):
    """Whole numbers that come in."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(24, 3)

    def forward(self, words: Tensor) -> Tensor:
        return F.log_softmax(self.head(F.elu(self.table(words)).flatten(1)), 1)


class Transposed(nn.Module):
    """Transposed convolutions of one and two axes: strided, grouped, dilated, cut, and with one place more."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2)
        self.long = nn.ConvTranspose1d(6, 3, 4, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.long(F.relu(self.wide(x)).flatten(2))


def numbers(*shape: int) -> Tensor:
    return torch.randn(7, *shape, generator=torch.Generator().manual_seed(0))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "residual": (Residual, numbers(3, 11, 11)),
    "sequence": (Sequence, numbers(4, 6)),
    "transposed": (Transposed, numbers(4, 5, 3)),
    "words": (Words, torch.arange(28).reshape(7, 4) % 11),
}


def made(name: str) -> tuple[nn.Module, Tensor, Steps]:
    build, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = filled(build()).float().eval()
    return model, inputs, steps_of(model, inputs, None, tuple(call(model, inputs)))


def run_in_c(steps: Steps, folder: Path, inputs: Tensor) -> list[Tensor]:
    ports = {
        side: [{"name": p.name, "shape": p.shape, "axis": p.axis, "integer": p.integer} for p in each]
        for side, each in (("inputs", steps.inputs), ("outputs", steps.outputs))
    }
    (folder / "made.h").write_text(header(steps, "made", {"prefix": "made", **ports}, ()).text)
    return list(call(CNetwork(folder / "made.h"), inputs).values())


@needs_cc
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_and_c_answer_as_the_network(name: str, tmp_path: Path) -> None:
    model, inputs, steps = made(name)
    expected = list(call(model, inputs).values())
    for found in (list(call(StepsNetwork(steps), inputs).values()), run_in_c(steps, tmp_path, inputs)):
        torch.testing.assert_close(found, [each.detach() for each in expected], rtol=1e-5, atol=1e-5)


@needs_cc
@pytest.mark.parametrize("name", ["residual", "transposed", "words"])
def test_whole_numbers_are_the_same_bits_in_c(name: str, tmp_path: Path) -> None:
    model, inputs, steps = made(name)
    whole = integers(steps, ranges_of(steps, inputs, first_axes(inputs)))
    ours = list(call(StepsNetwork(whole), inputs).values())
    theirs = run_in_c(whole, tmp_path, inputs)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6 if name == "words" else 0)
    (wide,) = (each.detach() for each in call(model, inputs).values())
    assert float((ours[0] - wide).abs().max()) < 0.1 * float(wide.abs().max())


def test_whole_numbers_are_refused_by_the_name_of_the_layer() -> None:
    _, inputs, steps = made("sequence")
    with pytest.raises(InvalidModel, match=r"layer 'layer\.self_attn' has no form in whole numbers"):
        integers(steps, ranges_of(steps, inputs, first_axes(inputs)))


def test_what_has_no_loop_is_refused_by_the_name_of_its_layer() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Conv3d(2, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x)

    x = torch.zeros(1, 2, 3, 3, 3)
    with pytest.raises(InvalidModel, match=r"layer 'up' calls \w+ over three axes, which plain C has no loop for"):
        steps_of(Odd().eval(), x, None, ("output",))
    with pytest.raises(InvalidModel, match=r"its forward.. calls cumsum"):
        steps_of(type("Sums", (nn.Module,), {"forward": lambda self, x: x.cumsum(1)})(), x, None, ("output",))
    with pytest.raises(InvalidModel, match="one sample at a time"):
        steps_of(nn.Identity(), x, BatchAxes((None,), (0,)), ("output",))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_two_values_that_live_together_share_memory(name: str) -> None:
    """Each value is what was written when it is read: nothing was put over it in between but by its last reader."""
    _, _, steps = made(name)
    steps = with_own_outputs(steps)
    plan = memory_plan(steps)
    assert plan.arena_bytes < sum(4 * steps.sizes[step.output] for step in steps.steps)
    written: dict[tuple[str, int], str] = {}
    cells: dict[str, list[str]] = {}
    for step in steps.steps:
        for name in step.inputs:
            if name in plan.places and name in cells:
                where, offset = plan.places[name]
                held = [written[where, offset // 4 + n] for n in range(steps.sizes[name])]
                assert held == cells[name], (step, name)
        where, offset = plan.places[step.output]
        places = [(where, offset // 4 + n) for n in range(steps.sizes[step.output])]
        source = plan.places.get(step.inputs[0])
        is_part = step.op == "copy" and source is not None and source[0] == where and step.inputs[0] in cells
        inside = is_part and source[1] <= offset < source[1] + 4 * steps.sizes[step.inputs[0]]
        if not inside or any(place not in written for place in places):
            written |= dict.fromkeys(places, step.output)
        cells[step.output] = [written[place] for place in places]
        assert where or offset + 4 * steps.sizes[step.output] <= plan.arena_bytes


@needs_cc
def test_export_writes_a_header_for_c_and_cplusplus(tmp_path: Path) -> None:
    """A real fresh process compiles it; strict C99, and C++ that only includes it."""
    workspace = Workspace.open("builtin:iris-mlp")
    plan = uniform_plan(workspace.profile, 0.5)
    given = Compressed(workspace.compress(plan), plan)
    file = tmp_path / "iris.h"
    found = EXPORTS["c"].write(workspace, given, file)
    assert found.max_abs_diff is not None
    assert found.max_abs_diff < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["iris.h"]
    assert EXPORTED["c"](file)
    text = file.read_text()
    assert about_in(text)["plan"]["model"]["fingerprint"] == workspace.profile.fingerprint
    assert RankPlan.from_json(json.dumps(about_in(text)["plan"])) == plan
    assert text.isascii()
    source = "".join(f'#define IRIS_MLP_IMPLEMENTATION\n#include "{file}"\n' for _ in range(2))
    command = [compiler(), *STRICT, "-Wconversion", "-fsyntax-only", "-x", "c", "-"]
    subprocess.run(command, input=source, text=True, check=True)
    if shutil.which("g++"):
        command = ["g++", "-std=c++11", *STRICT[1:], "-fsyntax-only", "-x", "c++", "-"]
        subprocess.run(command, input=source, text=True, check=True)
    size = size_of(file)
    assert size == found.compiled
    if size is not None:
        constants = 4 * sum(parameter.numel() for parameter in given.model.parameters())
        assert constants <= size.rodata < constants + 200
        assert size.ram_bytes <= 64
        assert size.stack_bytes is None or 0 < size.stack_bytes < 2_000  # by gcc and clang
        assert size.stack_bytes is None or f"stack at most {size.stack_bytes:,} B" in found.notes[0]
        assert f"flash {size.flash_bytes:,} B" in found.notes[0]


@needs_cc
def test_int8_is_scored_as_it_is_written(tmp_path: Path) -> None:
    workspace = Workspace.open("builtin:iris-mlp")
    given = Compressed(workspace.model, RankPlan(workspace.profile.fingerprint)).stored(workspace, Storage("int8"))
    found = EXPORTS["c"].write(workspace, given, tmp_path / "iris.h")
    assert found.max_abs_diff == 0
    network = CNetwork(tmp_path / "iris.h")
    data = workspace.reference.dataset
    (answers,) = call(network, data.inputs).values()
    assert found.score is not None
    assert found.score.value == pytest.approx(float((answers.argmax(1) == data.targets).double().mean()))


def test_steps_through_time_share_their_scales() -> None:
    lstm = Workspace.open("builtin:digits-lstm")
    inputs, samples = lstm.opened.example_inputs, lstm.calibration.inputs
    steps = steps_of(lstm.model, inputs, lstm.opened.axes, ("output",))
    whole = integers(steps, ranges_of(steps, samples, lstm.opened.axes or first_axes(samples)))
    taken = sum(value.nbytes for value in whole.constants.values())
    weights = sum(parameter.numel() for parameter in lstm.model.parameters())
    assert taken < 1.4 * weights  # 2.6 where each step has its own
    score = final_score(lstm.measure(StepsNetwork(whole), keep=False))
    assert score.value > score.dense - 0.01


def test_without_a_compiler_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.open("builtin:iris-mlp")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtra, match=r"no C compiler .* nothing was written; install one"):
        EXPORTS["c"].write(workspace, Compressed(workspace.model, RankPlan("")), tmp_path / "iris.h")
    assert list(tmp_path.iterdir()) == []


def test_a_name_cannot_leave_its_comment() -> None:
    _, _, steps = made("words")
    text = header(steps, "*/ int x; /* ??/\n", {"prefix": "x", "plan": "*/ ??/"}, ("*/",)).text
    assert text.count("*/") == text.count("/*")
    assert about_in(text)["plan"] == "*/ ??/"
    assert prefix_of("while") == "net_while"


@needs_cc
def test_compare_shows_the_compiled_object_beside_what_the_board_counts(tmp_path: Path) -> None:
    workspace = Workspace.open("builtin:iris-mlp")
    dense, plan = RankPlan(workspace.profile.fingerprint), uniform_plan(workspace.profile, 0.5)
    columns = {"Dense": Column(Candidate(dense)), "This plan": Column(Candidate(plan), "int8")}
    wish = Compiles(tuple(column.timed for column in columns.values()))
    compiled = {one.entry: one for one in work(workspace, wish, tmp_path) if isinstance(one, PlanCompiled)}
    assert list(compiled) == list(wish.entries)
    taken = [one.taken for one in compiled.values()]
    if None not in taken:
        found = rows(workspace, columns, Findings({}, {}, compiled=compiled), Target(), LatencyTable())
        cells = {row.label: row.cells for row in found}
        assert [cell.value for cell in cells["C, flash"].values()] == [one.flash_bytes for one in taken]
        assert cells["C, RAM"]["This plan"].note.startswith("cc -Os for")
        assert [cell.value for cell in cells["C, stack"].values()] == [one.stack_bytes for one in taken]
    refused = PlanCompiled(wish.entries[0], None, "no loop for it")
    found = rows(workspace, columns, Findings({}, {}, compiled={refused.entry: refused}), Target(), LatencyTable())
    assert next(row for row in found if row.label == "C, RAM").cells["Dense"].note == "no loop for it"
