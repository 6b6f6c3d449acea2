"""What is run how often: samples are counted as they go through a network, never seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowrank_core import compress
from lowrank_core.compression import least_squares
from lowrank_core.compression.least_squares import NormalEquations
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.scoring.metrics import RESEMBLANCE
from lowrank_core.scoring.scores import PASS_BYTES, Reference
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = 200


class Counted(nn.Module):
    """Counts the samples that go through any copy of it."""

    samples = 0

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(24, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        Counted.samples += len(x)
        return self.fc2(torch.relu(self.fc1(x)))


@pytest.fixture
def passes() -> Callable[[Callable[[], object]], float]:
    """How many passes over the samples something takes."""

    def taken(work: Callable[[], object]) -> float:
        Counted.samples = 0
        work()
        return Counted.samples / SAMPLES

    return taken


def data() -> Tensor:
    return torch.randn(SAMPLES, 24, generator=torch.Generator().manual_seed(0))


def test_an_answer_is_corrected_and_measured_in_four_passes(passes: Callable[[Callable[[], object]], float]) -> None:
    """The dense network on what it is corrected by and on what it is scored by, the compressed one on both."""
    torch.manual_seed(0)
    network = Counted()
    assert 4 <= passes(lambda: compress(network, data()[:1], data(), rule="uniform")) < 4.3


def test_a_copy_that_leaves_nothing_behind_is_run_and_nothing_else(
    passes: Callable[[Callable[[], object]], float],
) -> None:
    workspace = Workspace.of(Counted(), data()[:1], data())
    model = workspace.compress(RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (4,))}))
    list(workspace.reference.batches())
    assert passes(lambda: list(workspace.measure(model, keep=False))) == 1


def test_a_last_factor_answers_once_while_it_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.of(Counted(), data()[:1], data())
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (4,)), "fc2": Choice("svd", (4,))})
    _ = workspace.self_check
    workspace.corrector.dense_pass(workspace.correction)
    called: list[int] = []
    plain = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: called.append(len(x)) or plain(self, x))
    workspace.corrector(plan, workspace.correction)
    assert called == [SAMPLES] * 3  # nothing waits for what the last factor of the last layer answers


def test_an_export_takes_the_score_that_a_search_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lowrank_core.commands import _opening, cli
    from lowrank_core.commands import export as exporting

    monkeypatch.setattr(_opening, "CACHE", tmp_path / "cache")
    ref, plan = "builtin:iris-mlp", str(tmp_path / "plan.json")
    told = []
    for words in (
        ["search", ref, "--rule", "uniform", "--out", plan],
        ["export", ref, "--plan", plan, "--format", "safetensors", "--out", str(tmp_path / "small.safetensors")],
    ):
        cli.main(words, standalone_mode=False)
        told.append(capsys.readouterr().out.splitlines()[-1])
        monkeypatch.setattr(exporting, "measured", lambda *_: pytest.fail("it is measured again"))
    assert told[0] == told[1]


class Wide(nn.Module):
    """Takes so much for a sample that a pass of five takes all that there is; its numbers are one and the same."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True).expand(len(x), PASS_BYTES // 2 // 4 // 5 - x.shape[1])


def test_of_a_network_that_takes_much_memory_fewer_samples_are_run_at_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3), Wide(), nn.AdaptiveAvgPool1d(2))
    reference = Reference(network, Dataset(torch.ones(12, 3)), RESEMBLANCE, outputs=["output"])
    assert [len(part) for part, _ in reference.batches()] == [5, 5, 2]


def fitted(rows: Tensor, targets: Tensor) -> Tensor:
    equations = NormalEquations(LayerSpec(rows.shape[1], 1))
    equations.add(rows, torch.arange(len(rows)), targets)
    return equations.solve(torch.zeros(1, rows.shape[1]), 1e-3, intercept=True)[0]


def test_features_far_from_zero_are_fitted_as_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9000, 6, generator=generator) + torch.linspace(-3000, 3000, 6)
    targets = rows.double().sub(rows.double().mean(0)).float() @ torch.randn(6, 1, generator=generator) + 500
    torch.testing.assert_close(fitted(rows, targets), fitted(rows.double(), targets.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dead", [False, True])
def test_cholesky_gives_what_eigenvectors_give(dead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 6, generator=generator, dtype=torch.float64) * torch.tensor([1, 9, 1, 0.1, 5, 1 - dead])
    targets = rows @ torch.randn(6, 1, generator=generator, dtype=torch.float64)
    monkeypatch.setattr(torch.linalg, "eigh", lambda _: pytest.fail("nothing is cut off here"))
    quick = fitted(rows, targets)
    monkeypatch.undo()
    monkeypatch.setattr(least_squares, "_all_strong", lambda moment, alive: False)
    torch.testing.assert_close(quick, fitted(rows, targets), rtol=1e-9, atol=1e-12)
