"""Metrics against values worked out by hand, and by scikit-learn."""

from math import exp, isnan, log
from pathlib import Path

import pytest
import torch
from sklearn.metrics import f1_score, r2_score, roc_auc_score
from torch import Tensor, nn

from lowrank_core.errors import InvalidData, InvalidModel
from lowrank_core.layers.data import Dataset
from lowrank_core.predict.prediction import NoiseTable, fitted_scale, score_at
from lowrank_core.scoring.metrics import METRICS
from lowrank_core.scoring.scores import Reference, evaluate, final_score
from lowrank_core.workspace import Workspace

SCORES = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0], [2.0, 3.0, 1.0]])  # answers 0, 1, 0, 1
LABELS = torch.tensor([0, 1, 1, 2])


def value(name: str, outputs: Tensor, targets: Tensor) -> float:
    metric = METRICS[name]
    if metric.per_sample is not None:
        judged = metric.per_sample(outputs, targets)
        assert judged.shape == (len(outputs),)
        return float(judged.mean())
    if metric.totals is not None:
        assert metric.totals(outputs, targets).shape[0] == len(outputs)
    return metric.score(outputs, targets)


def test_top_5_is_among_the_first_five():
    outputs = torch.arange(7.0).expand(3, 7)  # the best five are 2..6
    assert value("top-5", outputs, torch.tensor([1, 2, 6])) == pytest.approx(2 / 3)
    assert value("top-5", SCORES, LABELS) == 1  # of three classes all are among five
    assert value("top-1", SCORES, LABELS) == 0.5


def test_macro_f1_is_the_mean_over_classes():
    assert value("f1", SCORES, LABELS) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert value("f1", SCORES[:, :2], torch.tensor([0, 1, 0, 1])) == 1
    assert value("f1", SCORES, torch.tensor([0, 1, 0, 1])) == 1  # a class that nobody named does not count


def test_macro_auc_counts_pairs_in_order():
    outputs = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.5, 0.2], [0.9, 0.1]])
    # class 0 (samples 2, 3) against 0.1 and 0.5: 3 pairs in order and a tie; class 1 (0, 1) against 0.2 and 0.1: all 4
    assert value("auc", outputs, torch.tensor([1, 1, 0, 0])) == pytest.approx((3.5 / 4 + 1) / 2)
    assert isnan(value("auc", outputs, torch.zeros(4).long()))


def test_classes_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(200, 4, generator=generator).mul(2).round() / 2  # with ties
    targets = torch.randint(4, (200,), generator=generator)
    expected = f1_score(targets.numpy(), outputs.argmax(1).numpy(), average="macro")
    assert value("f1", outputs, targets) == pytest.approx(expected)
    by_class = [roc_auc_score((targets == k).numpy(), outputs[:, k].numpy()) for k in range(4)]
    assert value("auc", outputs, targets) == pytest.approx(sum(by_class) / 4)
    assert value("r2", outputs[:, 0], targets) == pytest.approx(r2_score(targets.numpy(), outputs[:, 0].numpy()))


def test_perplexity_of_even_odds_is_their_number():
    assert value("perplexity", torch.zeros(2, 3, 7), torch.zeros(2, 3).long()) == pytest.approx(7)
    outputs = torch.tensor([[log(0.5), log(0.5)], [log(0.25), log(0.75)]])
    assert value("perplexity", outputs, torch.tensor([0, 1])) == pytest.approx(exp(-(log(0.5) + log(0.75)) / 2))
    assert value("perplexity", outputs, torch.tensor([0, -100])) == pytest.approx(2)


def test_perplexity_of_parts_is_that_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    outputs, words = torch.randn(150, 4, 9, generator=generator), torch.randint(-1, 9, (150, 4), generator=generator)
    worse = outputs + torch.randn(outputs.shape, generator=generator)

    class Table(nn.Module):
        def __init__(self, answers: Tensor) -> None:
            super().__init__()
            self.answers = answers

        def forward(self, numbers: Tensor) -> Tensor:
            return self.answers[numbers]

    reference = Reference(Table(outputs), Dataset(torch.arange(150), words), METRICS["perplexity"])
    scores = list(evaluate(Table(worse), reference))
    assert [score.samples for score in scores] == [64, 128, 150]
    last = scores[-1]
    rows = words.flatten() >= 0
    whole = [float(nn.functional.cross_entropy(x.flatten(0, 1)[rows], words.flatten()[rows])) for x in (worse, outputs)]
    assert (last.value, last.dense) == pytest.approx([exp(nats) for nats in whole], rel=1e-5)
    assert last.drop == pytest.approx(last.value - last.dense)
    assert last.drop_low is not None
    assert 0 < last.drop_low < last.drop < last.drop_high
    assert last.low < last.value < last.high


def test_squares_and_cosine():
    outputs, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert value("mse", outputs, targets) == 1
    assert value("r2", outputs, targets) == pytest.approx(1 - 4 / 10)
    assert value(
        "cosine", torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    ) == pytest.approx(0.5)


class Times(nn.Module):
    """Answers `factor` times what it is given."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


WORSE = {"top-1": -1.0, "top-5": -1.0, "f1": -1.0, "auc": -1.0, "perplexity": -1.0, "mse": 0.5, "r2": 0.5,
         "agreement": -1.0, "cosine": -1.0}  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_a_drop_is_positive_when_worse(name):
    outputs = torch.eye(8).repeat(9, 1) * torch.linspace(1, 2, 72)[:, None]
    classes = METRICS[name].class_axis is not None
    targets = None if METRICS[name].label_free else outputs.argmax(1) if classes else outputs
    reference = Reference(Times(1.0), Dataset(outputs, targets), METRICS[name])
    score = final_score(evaluate(Times(WORSE[name]), reference))
    assert score.drop > 0.05
    assert score.drop_low is not None
    assert score.drop_low > 0
    assert score.higher_is_better == (name not in ("perplexity", "mse"))
    assert (score.value > score.dense) == (not score.higher_is_better)


def test_forms_that_do_not_fit_are_refused():
    for name in ("mse", "r2", "perplexity"):
        reference = Reference(Times(1.0), Dataset(torch.ones(4, 3), torch.ones(4, 2)), METRICS[name])
        with pytest.raises(InvalidData, match=r"must (have|be) the"):
            list(evaluate(Times(2.0), reference))


def test_a_scale_is_fitted_where_lower_is_better():
    table = NoiseTable((log(0.01), log(1.0), log(100.0)), (3.0, 5.0, 65.0), 40.0)
    pairs = [(v, score_at(table, 1.7 * v)) for v in (0.05, 0.2, 0.8)]
    assert fitted_scale(table, [*pairs, (9.0, 900.0)]) == pytest.approx(1.7, rel=0.02)


MODEL = """
import torch
from torch import nn
metric = {metric!r}
def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(6, 4).eval()
def example_inputs(): return (torch.ones(1, 6),)
def eval_data(): return torch.linspace(-1, 1, 60).reshape(10, 6), torch.arange(10) % 4
"""


def test_a_model_file_may_name_its_metric(tmp_path: Path):
    path = tmp_path / "named.py"
    path.write_text(MODEL.format(metric="perplexity"))
    workspace = Workspace.open(str(path))
    assert workspace.metric is METRICS["perplexity"]
    score = final_score(workspace.measure(workspace.model))
    assert (score.metric, score.higher_is_better) == ("perplexity", False)
    path.write_text(MODEL.format(metric="cosine").replace("eval_data", "train_data"))
    workspace = Workspace.open(str(path))
    assert workspace.metric is METRICS["cosine"]
    assert "There is no eval_data(): the score is cosine similarity to the dense network." in workspace.notices
    path.write_text(MODEL.format(metric="accuracy"))
    with pytest.raises(InvalidModel, match="no metric 'accuracy'; name one of top-1, top-5"):
        Workspace.open(str(path))
