"""Samples that count differently, and the forms in which people hand over data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, mean_squared_error
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowrank_core.errors import InvalidData, InvalidModel
from lowrank_core.layers.data import Dataset, data_hash
from lowrank_core.measure.check import check
from lowrank_core.scoring.metrics import METRICS, Metric
from lowrank_core.scoring.scores import Reference, evaluate, final_score
from lowrank_core.selection import make, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.sources._opened import as_dataset, sorted_by_class
from lowrank_core.workspace import Workspace
from tests.test_metrics import Times

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(70, 4, generator=GENERATOR)
Y = torch.randint(4, (70,), generator=GENERATOR)
W = torch.rand(70, generator=GENERATOR) + 0.1


def test_weighted_scores_agree_with_scikit_learn():
    answers, weights = X.argmax(1).numpy(), W.numpy()
    expected = {
        "top-1": accuracy_score(Y.numpy(), answers, sample_weight=weights),
        "f1": f1_score(Y.numpy(), answers, sample_weight=weights, average="macro"),
    }
    for name, number in expected.items():
        reference = Reference(Times(1.0), Dataset(X, Y, W), METRICS[name])
        assert final_score(evaluate(Times(1.0), reference)).value == pytest.approx(number)
        assert reference.dense_score() == pytest.approx(number)
    number = mean_squared_error(X.numpy(), 0.5 * X.numpy(), sample_weight=weights)
    score = final_score(evaluate(Times(0.5), Reference(Times(1.0), Dataset(X, X, W), METRICS["mse"], batch=16)))
    assert (score.value, score.dense, score.drop) == pytest.approx((number, 0, number))
    assert score.drop_low < score.drop < score.drop_high
    pixels = X[:, :3, None].expand(-1, -1, 5).contiguous()
    labels = (Y.clamp(max=2)[:, None] + torch.zeros(70, 5)).long()
    number = jaccard_score(
        labels.flatten().numpy(), pixels.argmax(1).flatten().numpy(), average="macro", sample_weight=weights.repeat(5)
    )
    found = final_score(evaluate(Times(1.0), Reference(Times(1.0), Dataset(pixels, labels, W), METRICS["iou"])))
    assert found.value == pytest.approx(number)


def test_a_sample_that_counts_for_much_leaves_less_to_know():
    """Weights that are all alike are the same as none; one in seven that counts for nearly all widens the interval."""
    outputs, targets = torch.eye(2).repeat(300, 1), torch.tensor([0, 1, 1]).repeat(200)

    def width(weights: Tensor | None) -> tuple[float, float]:
        data = Dataset(outputs, targets, weights)
        score = final_score(evaluate(Times(torch.tensor([1.0, -0.1])), Reference(Times(1.0), data, METRICS["top-1"])))
        assert score.drop_low is not None
        assert score.drop_high is not None
        return score.drop, score.drop_high - score.drop_low

    plain, alike = width(None), width(torch.full((600,), 3.0))
    assert alike[0] == pytest.approx(plain[0])
    assert alike[1] == pytest.approx(plain[1], rel=0.1)
    assert width(torch.where(torch.arange(600) % 7 == 0, 100.0, 0.1))[1] > 2 * plain[1]


def test_a_metric_of_all_samples_takes_no_weights():
    for metric in (METRICS["auc"], METRICS["r2"], Metric("own", value=lambda out, y: 1.0)):
        with pytest.raises(
            InvalidData, match=f"weights, but {metric.name} judges all of them at once.*leave the weights"
        ):
            Reference(Times(1.0), Dataset(X, Y, W), metric)
        with pytest.raises(InvalidData, match="leave the weights out"):
            metric.score(X, Y, W)


def test_weighted_samples_stay_together():
    data = Dataset(X, Y, W)
    shuffled = data.shuffled(0)
    place = int((data.inputs[:, 0] == shuffled.inputs[0, 0]).nonzero())
    assert (shuffled.targets[0], shuffled.weights[0]) == (Y[place], W[place])
    assert torch.equal(data.pick(slice(3, 5)).alone().weights, W[3:5])
    one, other = (Reference(Times(1.0), Dataset(X, Y, w), METRICS["top-1"]).hash for w in (W, W.flip(0)))
    assert one != other
    assert data_hash((X, Y, None)) == data_hash((X, Y))  # stores of data without weights keep their names


GIVEN = {
    "a tuple": lambda: (X, Y, W),
    "arrays": lambda: (X.numpy(), Y.numpy(), W.double().numpy()),
    "a loader, whose batches are lists": lambda: DataLoader(TensorDataset(X, Y, W), batch_size=16),
    "samples": lambda: TensorDataset(X, Y, W),
    "batches with a column of weights": lambda: [(X[:30], Y[:30], W[:30, None]), (X[30:], Y[30:], W[30:, None])],
    "batches of which one is even": lambda: [(X, Y, W), (X[:2], Y[:2], torch.full((2,), 3.0))],
}


@pytest.mark.parametrize("form", GIVEN)
def test_the_third_of_a_tuple_is_weights(form):
    data = as_dataset(GIVEN[form](), "eval_data()")
    assert torch.equal(data.inputs[:70], X)
    assert torch.equal(data.targets[:70], Y)
    assert torch.allclose(data.weights[:70], W.double())
    if "even" in form:
        assert data.weights[70:].tolist() == [3, 3]


def test_weights_that_are_all_alike_are_none():
    assert as_dataset((X, Y, torch.ones(70)), "eval_data()").weights is None
    assert as_dataset((X, Y, torch.full((70,), 0.2)), "eval_data()").weights is None


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (torch.full((70,), float("nan")), "finite"),
        (-W, "finite, 0 or more"),
        (torch.zeros(70), "not all 0"),
        (torch.rand(70, 2), r"one number for each of the 70 samples, \(N,\), but are \(70, 2\)"),
    ],
)
def test_what_can_be_no_weights_is_refused(weights, words):
    with pytest.raises(InvalidData, match=rf"eval_data\(\): weights must be.*{words}"):
        as_dataset((X, Y, weights), "eval_data()")


def test_a_flat_tuple_begins_with_what_the_network_takes():
    ids, mask = torch.randint(9, (40, 6)), torch.ones(40, 6).long()
    data = as_dataset((ids, mask, ids), "eval_data()", lambda: 2)
    assert torch.equal(data.inputs[1], mask)
    assert torch.equal(data.targets, ids)
    assert data.weights is None
    assert as_dataset((ids, mask, ids, W[:40]), "eval_data()", lambda: 2).weights is not None
    with pytest.raises(InvalidData, match="a batch of 3 tensors must be the network's 3 inputs and targets"):
        as_dataset((ids, mask, ids), "eval_data()", lambda: 3)
    assert len(as_dataset([ids.float(), ids.float(), ids.float()], "eval_data()")) == 120  # batches without labels


FILE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(9, 4), nn.Linear(4, 9)
    def forward(self, ids, mask): return self.out(self.words(ids) * mask.unsqueeze(-1))
def build_model():
    torch.manual_seed(0)
    return Net().eval()
def example_inputs(): return torch.zeros(1, 6).long(), torch.ones(1, 6).long()
metric = "perplexity"
def eval_data():
    ids = torch.randint(9, (40, 6), generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(ids, torch.ones(40, 6).long(), ids.roll(-1, 1)), batch_size=16)
"""


def test_a_loader_of_ids_mask_and_labels_is_read_by_the_networks_inputs(tmp_path: Path):
    path = tmp_path / "words.py"
    path.write_text(FILE)
    workspace = Workspace.open(str(path))
    assert workspace.dense_score()[1] == 40
    assert len(workspace.reference.dataset.inputs) == 2


def tokens(length: int, samples: int = 3) -> dict[str, Tensor]:
    ids = torch.arange(1, samples * length + 1).reshape(samples, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_batches_of_tokens_with_a_mask_are_padded():
    batches = [(tokens(5), tokens(5)["input_ids"]), (tokens(8), tokens(8)["input_ids"])]
    data = as_dataset(batches, "eval_data()")
    assert data.inputs["input_ids"].shape == data.inputs["attention_mask"].shape == data.targets.shape == (6, 8)
    assert data.inputs["input_ids"][0].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert data.inputs["attention_mask"][0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert data.targets[0].tolist() == [1, 2, 3, 4, 5, -100, -100, -100]
    by_class = as_dataset([(tokens(5), torch.arange(3)), (tokens(8), torch.arange(3))], "eval_data()")
    assert by_class.targets.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([tokens(5), tokens(8)], r"input_ids: batches must have the same shape.*\(3, 5\) and \(3, 8\); pad them"),
        ([(X, Y), (X[:, :3], Y)], r"inputs: batches must.*\(70, 4\) and \(70, 3\)"),
        ([((X, X), Y), ((X, X[:, :3]), Y)], r"input 1: batches must.*\(70, 4\) and \(70, 3\)"),
        ([(X, X), (X, X[:, :2])], r"targets: batches must.*\(70, 4\) and \(70, 2\)"),
    ],
    ids=["without labels", "a tensor", "a tuple", "targets"],
)
def test_batches_of_other_lengths_are_refused_with_their_shapes(batches, words):
    with pytest.raises(InvalidData, match=rf"^eval_data\(\), {words}"):
        as_dataset(batches, "eval_data()")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_sorted_labels_are_noticed_in_every_type(dtype):
    labels = torch.tensor([0, 0, 1, 1, 1]).to(dtype)
    assert sorted_by_class(Dataset(torch.zeros(5, 1), labels))
    assert not sorted_by_class(Dataset(torch.zeros(5, 1), labels.flip(0)))
    assert not sorted_by_class(Dataset(torch.zeros(5, 1), torch.tensor([0, 1, 0, 1, 1]).to(dtype)))


def test_weights_reach_the_score_of_a_model_with_its_commands_text():
    network = nn.Linear(4, 4)
    plain, heavy = (
        Workspace.of(network, X[:1], given, metric="top-1") for given in ((X, Y), (X.numpy(), Y.numpy(), np.float64(W)))
    )
    right = (network(X).argmax(1) == Y).double()
    assert plain.dense_score()[0] == pytest.approx(float(right.mean()))
    assert heavy.dense_score()[0] == pytest.approx(float((right * W).sum() / W.sum()))
    assert final_score(heavy.measure(heavy.model)).value == pytest.approx(heavy.dense_score()[0])


def test_labels_that_are_all_alike_are_noticed_and_nan_is_no_score_of_a_network():
    network = nn.Linear(4, 4)
    alike = Workspace.of(network, X[:1], (X, torch.full((70,), 2).to(torch.uint8)))
    assert "All evaluation labels are alike: a network that always answers the same is always right." in alike.notices
    assert "The labels are all alike: a network that always answers the same is always right." in check(alike).notices
    assert not any("alike" in notice for notice in Workspace.of(network, X[:1], (X, Y)).notices)
    own = Workspace.of(network, X[:1], evaluate=lambda model: float("nan"))
    with pytest.raises(InvalidModel, match="gave NaN, which is no score"):
        own.dense_score()


def test_a_search_decides_by_the_interval_where_samples_have_weights():
    """The sequential test counts samples, which weighted ones are not; a search that waits for it ends with no plan."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
        network[0].weight.data = torch.randn(24, 2) @ torch.randn(2, 12)  # of rank 2
        inputs = torch.randn(900, 12)
        data = inputs, network(inputs).argmax(1), torch.rand(900) + 0.5
    workspace = Workspace.of(network, inputs[:1], data)
    *_, last = search(make("budget", {}), problem_of(workspace, max_drop=0.05, methods=("svd",)))
    assert last.candidate.plan.choices
    assert last.score.within is None
    assert last.score.drop_high <= 0.05


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_one_logit_with_labels_0_and_1_is_scored_by_its_sign(dtype):
    network = nn.Linear(4, 1)
    labels = (network(X)[:, 0] > 0).to(dtype)
    for targets in (labels, labels[:, None]):
        workspace = Workspace.of(network, X[:1], (X, targets))
        assert workspace.metric is METRICS["binary"]
        assert workspace.judged.right_or_wrong
        assert workspace.dense_score()[0] == 1
