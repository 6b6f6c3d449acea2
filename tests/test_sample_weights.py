"""Samples that count differently: every metric by name takes weights, training learns by them, nothing ignores them."""

from contextlib import suppress
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.errors import InvalidData
from lowrank_core.layers.data import Dataset
from lowrank_core.plans.candidate import Candidate
from lowrank_core.scoring.metrics import METRICS, Metric
from lowrank_core.scoring.scores import Reference, evaluate, final_score
from lowrank_core.sources._npz_data import read_npz
from lowrank_core.training.finetune import finetune
from lowrank_core.training.recipe import Objective, Settings

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = 360


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(most: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed))


def answers(name: str) -> tuple[Tensor, Tensor]:
    """Outputs with ties and what a metric judges them against."""
    scores = random(SAMPLES, 4).mul(2).round() / 2
    if name.endswith("-probability"):
        logits, targets = answers(name.removesuffix("-probability"))
        return logits.softmax(-1) if name.startswith("perplexity") else logits.sigmoid(), targets
    if name in ("multilabel-micro-f1", "multilabel-macro-f1", "average-precision"):
        return scores, integers(2, SAMPLES, 4)
    if name == "binary":
        return scores[:, 0], integers(2, SAMPLES)
    if name in ("perplexity", "token-error"):
        return random(SAMPLES, 5, 4), integers(4, SAMPLES, 5)
    if name == "iou":
        return random(SAMPLES, 4, 3, 3), integers(4, SAMPLES, 3, 3)
    if name in ("mse", "mae", "r2", "cosine"):
        return scores, scores + random(SAMPLES, 4, seed=2)
    if name == "top-5":
        return random(SAMPLES, 9), integers(9, SAMPLES)
    return scores, random(SAMPLES, 4, seed=3) if name == "agreement" else integers(4, SAMPLES)


@pytest.mark.parametrize("name", METRICS)
def test_a_sample_that_counts_thrice_is_there_three_times(name: str) -> None:
    metric, (outputs, targets) = METRICS[name], answers(name)
    times = integers(4, SAMPLES, seed=5)
    often = torch.arange(SAMPLES).repeat_interleave(times)
    assert metric.takes_weights
    expected = metric.score(outputs[often], targets[often])
    assert metric.score(outputs, targets, times.double()) == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(metric.score(outputs, targets), rel=1e-3), "the weights matter here"


def test_scikit_learn_says_the_same() -> None:
    weights = random(SAMPLES, seed=6).exp().double()
    scores, kinds = answers("auc")
    areas = [roc_auc_score((kinds == k).numpy(), scores[:, k].numpy(), sample_weight=weights.numpy()) for k in range(4)]
    assert METRICS["auc"].score(scores, kinds, weights) == pytest.approx(sum(areas) / 4, rel=1e-12)
    scores, labels = answers("average-precision")
    found = average_precision_score(labels.numpy(), scores.numpy(), sample_weight=weights.numpy())
    assert METRICS["average-precision"].score(scores, labels, weights) == pytest.approx(found, rel=1e-12)
    outputs, targets = answers("r2")
    found = r2_score(targets.numpy(), outputs.numpy(), sample_weight=weights.numpy(), multioutput="variance_weighted")
    assert METRICS["r2"].score(outputs, targets, weights) == pytest.approx(found, rel=1e-12)


class Passing(nn.Module):
    """Answers with its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Shrunk(nn.Module):
    """Answers with its input less a tenth of its distance from a million."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e6 + 0.9 * (x - 1e6)


@pytest.mark.parametrize("weighted", [False, True])
def test_r2_of_numbers_far_from_nought_is_added_up_without_loss(weighted: bool) -> None:
    """Sums of squares of such numbers hold nothing of their spread; batches of 16 hold all of it."""
    inputs = 1e6 + 1e-3 * random(SAMPLES, 3).double()
    targets = inputs + 2e-4 * random(SAMPLES, 3, seed=1).double()
    weights = random(SAMPLES, seed=2).exp().double() if weighted else None
    reference = Reference(Passing(), Dataset(inputs, targets, weights), METRICS["r2"], batch=16)
    score = final_score(evaluate(Shrunk(), reference))

    def expected(outputs: Tensor) -> float:
        counts = None if weights is None else weights.numpy()
        return float(r2_score(targets.numpy(), outputs.numpy(), sample_weight=counts, multioutput="variance_weighted"))

    assert score.value == pytest.approx(expected(Shrunk()(inputs)), rel=1e-6)
    assert score.dense == reference.dense_score() == pytest.approx(expected(inputs), rel=1e-6)
    assert (score.drop_low or inf) < score.drop < (score.drop_high or -inf)


@pytest.mark.parametrize("name", ["r2", "auc", "average-precision"])
def test_batches_add_up_and_too_few_that_count_have_no_interval(name: str) -> None:
    outputs, targets = answers(name)
    weights = 1.0 + integers(3, SAMPLES, seed=7).double()
    reference = Reference(Passing(), Dataset(outputs, targets, weights), METRICS[name], batch=16)
    score = final_score(evaluate(nn.Hardtanh(-1, 1), reference))
    assert score.value == pytest.approx(METRICS[name].score(outputs.clamp(-1, 1), targets, weights), rel=1e-12)
    assert (score.drop_low or inf) <= score.drop <= (score.drop_high or -inf)
    reference = Reference(
        Passing(), Dataset(outputs, targets, (torch.arange(SAMPLES) == 3).double()), METRICS[name], batch=4
    )
    with suppress(InvalidData):  # of one sample some have no value
        for each in evaluate(nn.Hardtanh(-1, 1), reference):
            assert each.too_few, "while nothing counts there is nothing to see"
    weights[20:] *= 1e-9
    few = Reference(Passing(), Dataset(outputs, targets, weights), METRICS[name], batch=16)
    assert final_score(evaluate(nn.Hardtanh(-1, 1), few)).too_few, "as many samples as 20 count"


def test_a_metric_of_ones_own_that_knows_of_none_is_refused() -> None:
    own = Metric("mine", value=lambda outputs, targets: 0.0)
    with pytest.raises(InvalidData, match="the samples have weights, but mine judges all of them at once"):
        Reference(Passing(), Dataset(random(8, 3), integers(3, 8), torch.arange(8.0)), own)


def test_an_archive_holds_weights(tmp_path: Path) -> None:
    arrays = {"inputs": np.ones((3, 2)), "targets": np.arange(3), "weights": np.array([1, 2, 0.5])}
    path = tmp_path / "m.npz"
    np.savez(path, **arrays, **{f"train_{name}": array for name, array in arrays.items()})  # type: ignore[arg-type]
    found = read_npz(path)
    assert found.train is not None
    for data in (found.eval, found.train):
        assert data.weights is not None
        assert data.weights.tolist() == [1, 2, 0.5]
    np.savez(path, inputs=arrays["inputs"], weights=np.ones(2))
    with pytest.raises(InvalidData, match="weights must be one number for each of the 3 samples"):
        read_npz(path)
    np.savez(path, inputs=arrays["inputs"], train_weights=arrays["weights"])
    with pytest.raises(InvalidData, match="holds train_weights, but no train_inputs"):
        read_npz(path)


@pytest.mark.parametrize("loss", ["distill", "labels", "both"])
@pytest.mark.parametrize("kind", ["classes", "tokens", "numbers"])
def test_a_loss_is_the_weighted_mean_of_what_each_sample_has(loss: str, kind: str) -> None:
    shape = (6, 5, 4) if kind == "tokens" else (6, 4)
    outputs, dense = random(*shape), random(*shape, seed=1)
    targets = random(*shape, seed=2) if kind == "numbers" else integers(4, *shape[:-1])
    objective = Objective.of(loss, dense, targets)  # type: ignore[arg-type]
    weights = torch.tensor([0.0, 1.0, 3.0, 0.5, 0.5, 1.0])
    rows = [slice(n, n + 1) for n in range(6)]
    alone = torch.stack([objective(outputs[row], dense[row], targets[row]) for row in rows])
    assert float(objective(outputs, dense, targets, weights)) == pytest.approx(float((weights * alone).mean()))
    even = objective(outputs, dense, targets, torch.ones(6))
    assert float(even) == pytest.approx(float(objective(outputs, dense, targets)))


def test_samples_that_count_for_nothing_teach_nothing() -> None:
    """Half of the labels are wrong and count for nothing: the losses are those of the other half."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x, right = random(80, 8), integers(3, 80)
    weights = (torch.arange(80) % 2).double()
    settings = Settings(epochs=2, loss="labels", batch=16)

    def epochs(labels: Tensor, weights: Tensor | None) -> list[tuple[float | None, float]]:
        data = (x, labels) if weights is None else (x, labels, weights)
        workspace = Workspace.of(network, x[:1], (x, right), data)
        plan = RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (2,))})
        done = list(finetune(workspace, Candidate(plan), settings))
        return [(epoch.train_loss, epoch.validation_loss) for epoch in done]

    wrong = torch.where(weights > 0, right, (right + 1) % 3)
    counted = epochs(right, weights)
    assert epochs(wrong, weights) == counted
    assert epochs(wrong, None) != epochs(right, None)
    with pytest.raises(InvalidData, match="all weights are 0 of the samples of train_data"):
        epochs(right, (torch.arange(80) == 1).double())


def test_the_loss_by_which_epochs_are_compared_is_weighted() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 3))
    x, labels = random(40, 8), integers(3, 40)
    weights = random(40, seed=4).exp().double()
    workspace = Workspace.of(network, x[:1], (x, labels), (x, labels, weights))
    plan = RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (3,))})
    start = next(finetune(workspace, Candidate(plan), Settings(epochs=1, loss="labels")))
    held = Dataset(x, labels, weights).shuffled(0).pick(slice(0, 4))
    with torch.no_grad():
        losses = F.cross_entropy(network(held.inputs), held.targets, reduction="none")  # type: ignore[arg-type]
    assert held.weights is not None
    expected = float((held.weights * losses).sum() / held.weights.sum())
    assert start.validation_loss == pytest.approx(expected, rel=1e-4)
