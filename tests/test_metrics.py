"""Metrics against values worked out by hand, and by scikit-learn."""

from functools import cache
from math import exp, isnan, log
from pathlib import Path

import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    jaccard_score,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)
from torch import Tensor, nn

from lowrank_core.errors import InvalidData, InvalidModel
from lowrank_core.layers.data import Dataset
from lowrank_core.predict.prediction import NoiseTable, fitted_scale, score_at
from lowrank_core.scoring.metrics import METRICS, Metric, are_probabilities, of_probabilities
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


def labels(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits with ties and labels 0 or 1 of five kinds: one that all have, one that nobody has and nobody is given."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(samples, 5, generator=generator).mul(2).round() / 2 + 0.25
    targets = (torch.rand(samples, 5, generator=generator) < torch.tensor([0.5, 0.1, 0.9, 1.0, 0.0])).long()
    outputs[:, 4] = -1.0
    return outputs, targets


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float32])
def test_several_labels_at_once_agree_with_scikit_learn(dtype):
    outputs, targets = labels(90)
    truth, answers, given = targets.numpy(), (outputs > 0).numpy(), targets.to(dtype)
    assert value("multilabel-micro-f1", outputs, given) == pytest.approx(f1_score(truth, answers, average="micro"))
    there = truth.any(0)  # a label that nobody has or is given does not count; scikit-learn makes it 0
    macro = f1_score(truth[:, there], answers[:, there], average="macro")
    assert value("multilabel-macro-f1", outputs, given) == pytest.approx(macro)
    scores = outputs.numpy()
    precision = [average_precision_score(truth[:, k], scores[:, k]) for k in range(5) if there[k]]
    assert value("average-precision", outputs, given) == pytest.approx(sum(precision) / len(precision))
    areas = [roc_auc_score(truth[:, k], scores[:, k]) for k in range(5) if 0 < truth[:, k].mean() < 1]
    assert value("auc", outputs, given) == pytest.approx(sum(areas) / len(areas))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["(N,)", "(N, 1)"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_one_logit_says_yes_above_nought(shape, dtype):
    outputs, targets = labels(60)[0][:, 0], labels(60)[1][:, 0]
    for given in (targets.to(dtype), targets.to(dtype).unsqueeze(1)):
        found = value("binary", outputs.reshape(shape), given)
        assert found == pytest.approx(accuracy_score(targets.numpy(), (outputs > 0).numpy()))
        area = value("auc", outputs.reshape(shape), given)
        assert area == pytest.approx(roc_auc_score(targets.numpy(), outputs.numpy()))
    with pytest.raises(ValueError, match="0 or 1"):
        value("binary", outputs, targets + 1)


def test_overlap_leaves_out_what_is_no_class_and_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(7, 4, 6, 5, generator=generator)
    outputs[:, 3] = -9.0  # a class that is never answered, and never there
    targets = torch.randint(3, (7, 6, 5), generator=generator).to(torch.uint8)
    targets[:, :2] = 255
    counted = targets.flatten() != 255
    truth, answers = targets.flatten()[counted].numpy(), outputs.argmax(1).flatten()[counted].numpy()
    assert value("iou", outputs, targets) == pytest.approx(jaccard_score(truth, answers, average="macro"))
    other = targets.long().where(targets != 255, torch.tensor(-100))
    assert value("iou", outputs, other) == value("iou", outputs, targets)
    assert isnan(value("iou", outputs, torch.full_like(targets, 255)))
    with pytest.raises(ValueError, match="same places"):
        value("iou", outputs, targets[:, :3])


def said(texts: list[str], length: int) -> Tensor:
    """Scores of 27 tokens whose largest say each text, then something else."""
    tokens = torch.tensor([[ord(c) - 97 for c in text.ljust(length, "{")] for text in texts])
    return torch.nn.functional.one_hot(tokens, 27).double()


def asked(texts: list[str], length: int) -> Tensor:
    return torch.tensor([[ord(c) - 97 for c in text] + [-100] * (length - len(text)) for text in texts])


def distance(a: str, b: str) -> int:
    """By its definition (Wagner & Fischer 1974)."""

    @cache
    def of(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return of(len(a), len(b))


def test_token_errors_are_edits():
    assert [distance("kitten", "sitting"), distance("intention", "execution")] == [3, 5]  # the examples of the books
    found = value("token-error", said(["kitten"], 6), asked(["sitting"], 7))
    assert found == pytest.approx(3 / 7)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (40,), generator=generator).tolist()
    given = ["".join(chr(97 + k) for k in torch.randint(3, (9,), generator=generator).tolist()) for _ in lengths]
    right = [text[:n] for text, n in zip(given[::-1], lengths, strict=True)]
    edits = sum(distance(text[:n], other) for text, other, n in zip(given, right, lengths, strict=True))
    assert value("token-error", said(given, 9), asked(right, 9)) == pytest.approx(edits / sum(lengths))  # as padded
    edits = sum(distance(text, other) for text, other in zip(given, right, strict=True))
    assert value("token-error", said(given, 9), asked(right, 10)) == pytest.approx(edits / sum(lengths))


def test_numbers_for_one_column_may_miss_it():
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(50, generator=generator), torch.randn(50, generator=generator)
    expected = {
        "mse": mean_squared_error(targets.numpy(), outputs.numpy()),
        "mae": mean_absolute_error(targets.numpy(), outputs.numpy()),
        "r2": r2_score(targets.numpy(), outputs.numpy()),
        "cosine": float((outputs * targets).sign().mean()),
    }
    for name, number in expected.items():
        for ours in (outputs, outputs[:, None]):
            for theirs in (targets, targets[:, None]):
                assert value(name, ours, theirs) == pytest.approx(number)
        with pytest.raises(ValueError, match="same shape"):
            value(name, torch.ones(4, 3), torch.ones(4))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", ["top-1", "top-5", "f1", "iou"])
def test_answers_that_are_not_finite_are_never_right(name):
    outputs = torch.eye(4)
    shape = (4, 4) if name != "iou" else (4, 4, 1)
    targets = torch.arange(4).reshape(shape[0], *shape[2:])
    assert value(name, outputs.reshape(shape), targets) == 1
    for bad in (torch.full((4, 4), NAN), torch.where(outputs > 0, INF, 0.0), torch.where(outputs > 0, 1.0, NAN)):
        assert value(name, bad.reshape(shape), targets) == 0
    assert value(name, outputs.log().reshape(shape), targets) == 1  # the logarithm of a chance of nought is a score


def test_answers_of_labels_that_are_not_finite_are_never_right():
    targets = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    for name in ("multilabel-micro-f1", "multilabel-macro-f1", "auc"):
        assert value(name, torch.full((4, 3), NAN), targets) == 0
    assert value("binary", torch.tensor([NAN, INF, NAN, -INF]), targets[:, 0]) == 0
    worst = value("average-precision", torch.where(targets > 0, -1.0, 1.0), targets)
    assert value("average-precision", torch.full((4, 3), NAN), targets) == worst
    assert value("agreement", torch.full((4, 3), NAN), torch.full((4, 3), NAN)) == 0
    tokens = torch.full((2, 3, 5), NAN)
    assert value("token-error", tokens, torch.zeros(2, 3).long()) == 1


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

    def __init__(self, factor: float | Tensor) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


LOGITS = {
    "binary": torch.randn(90, 1, generator=torch.Generator().manual_seed(2)),
    "multilabel-micro-f1": torch.randn(90, 4, generator=torch.Generator().manual_seed(3)),
    "multilabel-macro-f1": torch.randn(90, 4, generator=torch.Generator().manual_seed(4)),
    "perplexity": torch.randn(90, 5, 4, generator=torch.Generator().manual_seed(5)),
}


@pytest.mark.parametrize("name", LOGITS)
def test_probabilities_score_as_the_logits_that_they_are_of(name):
    logits = LOGITS[name]
    classes = name == "perplexity"
    targets = torch.randint(4, (90, 5)) if classes else torch.randint(2, logits.shape)
    shares = logits.softmax(-1) if classes else logits.sigmoid()
    twin = of_probabilities(METRICS[name])
    assert twin is METRICS[f"{name}-probability"]
    assert twin.score(shares, targets) == pytest.approx(METRICS[name].score(logits, targets), rel=1e-6)
    assert METRICS[name].score(shares, targets) != pytest.approx(twin.score(shares, targets), rel=1e-2)
    assert [are_probabilities(METRICS[name], each) for each in (shares, logits)] == [True, False]
    assert of_probabilities(twin) is None


WORSE = {
    "perplexity-probability": torch.linspace(0.1, 1, 8),
    "mse": 0.5,
    "mae": 0.5,
    "r2": 0.5,
    "cosine": torch.linspace(-1, 1, 8),
}
LOWER = ("perplexity", "perplexity-probability", "token-error", "mse", "mae")


def example(name: str) -> tuple[Tensor, Tensor | None]:
    """Outputs and the targets that they meet."""
    outputs = torch.eye(8).repeat(20, 1) * torch.linspace(1, 2, 160)[:, None]
    if name.startswith("binary"):
        return outputs[:, :1] - (0 if "prob" in name else 0.5), (outputs[:, 0] > 0).long()
    if name.startswith("multilabel") or name == "average-precision":
        return outputs - (0 if "prob" in name else 0.5), (outputs > 0.5).long()
    if name == "perplexity-probability":
        return torch.eye(8).repeat(20, 1) * 0.8 + 0.02, outputs.argmax(1)
    if name == "token-error":
        return outputs.unsqueeze(1), outputs.argmax(1, keepdim=True)
    classes = METRICS[name].class_axis is not None
    return outputs, None if METRICS[name].label_free else outputs.argmax(1) if classes else outputs


@pytest.mark.parametrize("name", METRICS)
def test_a_drop_is_positive_when_worse(name):
    reference = Reference(Times(1.0), Dataset(*example(name)), METRICS[name])
    score = final_score(evaluate(Times(WORSE.get(name, -1.0)), reference))
    assert score.drop > 0.05
    assert score.drop_low is not None
    assert score.drop_low > 0
    assert score.higher_is_better == (name not in LOWER)
    assert (score.value > score.dense) == (not score.higher_is_better)


@pytest.mark.parametrize("name", METRICS)
def test_few_samples_have_no_interval_but_by_counting(name):
    outputs, targets = example(name)
    fewest = METRICS[name].fewest
    assert fewest == (150 if name == "average-precision" else 30)
    for samples in (fewest - 1, fewest):
        data = Dataset(outputs[:samples], None if targets is None else targets[:samples])
        score = final_score(evaluate(Times(WORSE.get(name, -1.0)), Reference(Times(1.0), data, METRICS[name])))
        counted = METRICS[name].share
        enough = samples == fewest
        assert (score.drop_low is not None, score.too_few) == (counted or enough, not counted and not enough)


def test_weighted_average_precision_needs_twice_as_many():
    outputs, targets = example("average-precision")
    for samples, given in ((300, False), (500, True)):
        at = torch.arange(samples) % len(outputs)
        weights = 1.0 + (at % 5)
        data = Dataset(outputs[at] + 1e-3 * at.view(-1, *[1] * (outputs.ndim - 1)), targets[at], weights)
        worth = float(weights.sum().square() / weights.square().sum())
        assert worth > (300 if given else 150)
        reference = Reference(Times(1.0), data, METRICS["average-precision"])
        assert (final_score(evaluate(Times(-1.0), reference)).drop_low is not None) == given


def nothing(outputs: Tensor, targets: Tensor) -> float:
    return float("nan")


@pytest.mark.parametrize(
    ("metric", "targets", "words"),
    [
        (METRICS["auc"], torch.ones(70).long(), r"'macro AUC'.* 70 samples, whose labels are all alike \(1\)"),
        (METRICS["r2"], torch.full((70, 2), 3.0), r"'R2'.* 70 samples, whose labels are all alike \(3\)"),
        (METRICS["perplexity"], torch.full((70,), -100), "'perplexity' is not a number on 70 samples"),
        (METRICS["iou"], torch.full((70,), 255), "'mean IoU' is not a number on 70 samples"),
        (Metric("nothing", value=nothing), torch.arange(70), "'nothing' is not a number on 70 samples:"),
    ],
    ids=lambda given: getattr(given, "name", ""),
)
def test_what_is_no_number_is_no_score(metric, targets, words):
    data = Dataset(torch.randn(70, 2, generator=torch.Generator().manual_seed(0)), targets)
    reference = Reference(Times(1.0), data, metric)
    with pytest.raises(InvalidData, match=words):
        list(evaluate(Times(0.5), reference))
    with pytest.raises(InvalidData, match=words):
        reference.dense_score()


def test_outputs_that_are_no_numbers_have_no_mean():
    data = Dataset(torch.ones(3, 2), torch.zeros(3, 2))
    with pytest.raises(InvalidData, match="'mean squared error' is not a number on 3 samples, whose labels are all"):
        list(evaluate(Times(1.0), Reference(Times(float("nan")), data, METRICS["mse"])))


def test_a_class_that_comes_late_is_waited_for():
    """The first 64 samples are of one class; AUC has no value on them, and one on all."""
    labels = torch.zeros(128).long()
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    labels[order[64:]] = torch.arange(64) % 2
    data = Dataset(torch.randn(128, 2, generator=torch.Generator().manual_seed(0)), labels)
    assert [score.samples for score in evaluate(Times(0.5), Reference(Times(1.0), data, METRICS["auc"]))] == [128]


def test_labels_that_are_all_alike_are_scored_where_they_can_be():
    data = Dataset(torch.eye(2).repeat(20, 1), torch.ones(40).long())
    assert final_score(evaluate(Times(-1.0), Reference(Times(1.0), data, METRICS["top-1"]))).value == 0.5
    assert final_score(evaluate(Times(-1.0), Reference(Times(1.0), data, METRICS["f1"]))).dense == pytest.approx(1 / 3)


def test_a_metric_with_a_memory_is_named_when_it_is_first_used(tmp_path: Path):
    path = tmp_path / "remembers.py"
    path.write_text(
        MODEL.format(metric="r2")
        + """
seen = []
def metric(outputs, targets):
    seen.append(len(seen) + 0.25)
    return sum(seen)
"""
    )
    with pytest.raises(InvalidData, match=r"'metric' gave 0.25, then 1.5 for the same outputs and targets.*remembers"):
        final_score(Workspace.open(str(path)).measure(nn.Identity()))
    random = Metric("random", per_sample=lambda out, y: torch.rand(len(out)))
    workspace = Workspace.of(nn.Linear(2, 2), torch.ones(1, 2), (torch.ones(40, 2), torch.ones(40)), metric=random)
    with pytest.raises(InvalidData, match=r"'random' gave .* it is random"):
        final_score(workspace.measure(workspace.model))


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
