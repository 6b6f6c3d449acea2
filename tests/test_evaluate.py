"""evaluate: paired scores on the same samples, honest intervals, progress and cancelling."""

import random
from math import comb
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.errors import Cancelled, InvalidData
from lowrank_core.layers.data import Dataset, call
from lowrank_core.running.scope import scope
from lowrank_core.scoring.intervals import paired_interval, wilson_interval
from lowrank_core.scoring.metrics import AGREEMENT, METRICS, TOP1, Metric
from lowrank_core.scoring.scores import OUTPUT_BYTES, Reference, evaluate, final_score
from lowrank_core.store.room import Room


class Answers(nn.Module):
    """Classifies a sample by its column `column`; counts its calls."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column, self.calls = column, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.one_hot(x[:, self.column], 2).double()


def paired(both: int, only_dense: int, only_ours: int, neither: int, targets: bool = True) -> Dataset:
    """Column 0 is what the dense network says, column 1 what ours says; the true class is 1."""
    counts = ((1, 1), both), ((1, 0), only_dense), ((0, 1), only_ours), ((0, 0), neither)
    rows = torch.tensor([row for row, count in counts for _ in range(count)])
    return Dataset(rows, torch.ones(len(rows), dtype=torch.long) if targets else None)


def scores(dataset: Dataset, metric: Metric = TOP1, *, batch: int = 64, **options: object) -> list:
    return list(evaluate(Answers(1), Reference(Answers(0), dataset, metric, batch=batch), **options))


def mean_squared_error(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs[:, 1] - targets).square().mean())


MSE = Metric("mse", higher_is_better=False, value=mean_squared_error)
ABSOLUTE = Metric("distance", higher_is_better=False, per_sample=lambda out, y: 3 * (out[:, 1] - y).abs())
WRONG = Metric("wrong", higher_is_better=False, per_sample=lambda out, y: (out.argmax(1) != y).double())


def test_pairs_are_counted():
    score = scores(paired(36, 12, 2, 10))[-1]
    assert (score.metric, score.samples, score.higher_is_better) == ("top-1 accuracy", 60, True)
    assert (score.value, score.dense) == pytest.approx((38 / 60, 48 / 60))
    assert score.drop == pytest.approx(10 / 60)
    assert (score.drop_low, score.drop_high) == paired_interval(worse=12, better=2, same=46)
    assert (score.low, score.high) == wilson_interval(38 / 60, 60)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((26, 4, 18), (0.2548067, 0.6251933)),  # ci.prop.ps(.05, 12, 4, 26, 6) of statpsych, Bonett's own package for R
        ((1, 7, 13), (-0.5084, -0.0134)),  # Fagerland, Lydersen & Laake 2014, Statist. Med. 33:2850, table V
        ((0, 0, 54), (-0.0495, 0.0495)),  # no pair differs: plus and minus z sqrt(2) / 56
        ((54, 0, 0), (0.8949, 1.0)),  # by hand: 54 / 56 give or take z sqrt((1 - (54 / 56)^2) / 56), ended at 1
    ],
)
def test_paired_interval_of_worked_examples(counts, interval):
    assert paired_interval(*counts) == pytest.approx(interval, abs=6e-5)


@pytest.mark.parametrize(
    ("share", "n", "interval"),
    [(0.9, 100, (0.8256, 0.9448)), (81 / 263, 263, (0.2553, 0.3662)), (0.0, 10, (0, 0.2775)), (1.0, 10, (0.7225, 1))],
)
def test_wilson_interval_of_worked_examples(share, n, interval):
    """81 of 263 is the example of Newcombe 1998, Statist. Med. 17:857, method 3."""
    assert wilson_interval(share, n) == pytest.approx(interval, abs=6e-5)
    assert 0 <= wilson_interval(share, n)[0] <= wilson_interval(share, n)[1] <= 1


@pytest.mark.parametrize("counts", [(12, 2, 41), (0, 1, 3), (5, 5, 0), (7, 0, 103), (54, 0, 0)])
def test_paired_interval_is_antisymmetric_and_holds_the_difference(counts):
    worse, better, same = counts
    low, high = paired_interval(worse, better, same)
    assert paired_interval(better, worse, same) == pytest.approx((-high, -low))
    assert -1 <= low <= (worse - better) / sum(counts) <= high <= 1


@pytest.mark.parametrize(
    ("samples", "drop", "better"),
    [(30, 0.002, 0.0), (30, 0.05, 0.0), (30, 0.2, 0.0), (100, 0.01, 0.002), (100, 0.1, 0.0), (500, 0.002, 0.001),
     (500, 0.01, 0.0), (2000, 0.002, 0.0)],
)  # fmt: skip
def test_however_few_samples_change_the_interval_covers_the_drop_at_least_93_times_of_100(samples, drop, better):
    """Exactly: the chances of all counts of samples that got worse and better."""
    covered = 0.0
    for up in range(min(samples, 40) + 1):
        for down in range(min(samples - up, 15) + 1 if better else 1):
            same = samples - up - down
            chance = comb(samples, up) * comb(samples - up, down) * (drop + better) ** up * better**down
            low, high = paired_interval(up, down, same)
            covered += chance * (1 - drop - 2 * better) ** same if low <= drop <= high else 0.0
    assert 0.93 <= covered <= 1 + 1e-9


@pytest.mark.parametrize(
    ("n", "shares"),
    [
        (50, (0.85, 0.06, 0.03, 0.06)),
        (50, (0.6, 0.1, 0.1, 0.2)),
        (300, (0.85, 0.06, 0.03, 0.06)),
        (300, (0.6, 0.1, 0.1, 0.2)),
        (300, (0.9, 0.05, 0.0, 0.05)),
    ],
    ids=str,
)
def test_the_interval_covers_the_true_drop_in_about_95_of_100_samples(n, shares):
    rng, truth, covered, repeats = random.Random(0), shares[1] - shares[2], 0, 1000
    for _ in range(repeats):
        drawn = rng.choices(range(4), shares, k=n)
        counts = [drawn.count(i) for i in range(4)]
        low, high = paired_interval(counts[1], counts[2], counts[0] + counts[3])
        covered += low <= truth <= high
    assert 0.92 <= covered / repeats <= 0.985  # 95 % give or take 3 standard errors; the method errs on the safe side


def test_scores_grow_and_end_at_all_samples():
    dataset = paired(100, 20, 10, 20)
    assert [s.samples for s in scores(dataset, batch=64)] == [64, 128, 150]
    assert [s.samples for s in scores(dataset, batch=64, samples=100)] == [64, 100]
    assert [s.samples for s in scores(dataset, batch=64, samples=10_000)] == [64, 128, 150]
    assert scores(dataset, batch=64)[-1] == scores(dataset, batch=7)[-1]
    assert [s.samples for s in scores(dataset, MSE, batch=10)] == [10, 20, 40, 80, 150]


def test_a_leading_part_is_a_fair_subset_and_the_same_each_time():
    dataset = Dataset(torch.arange(1000)[:, None].repeat(1, 2) // 500, torch.arange(1000) // 500)  # sorted by class
    reference = Reference(Answers(0), dataset, TOP1)
    first, _ = next(reference.batches())
    assert 0.3 < first.targets.double().mean() < 0.7
    assert torch.equal(first.inputs, next(Reference(Answers(0), dataset, TOP1).batches())[0].inputs)
    assert torch.equal(first.inputs[:, 0], first.targets)


def test_dense_outputs_are_computed_once():
    dense = Answers(0)
    reference = Reference(dense, paired(100, 20, 10, 20), TOP1, outputs=["output"], batch=50)
    assert final_score(evaluate(Answers(1), reference, samples=60)).samples == 60
    assert dense.calls == 2
    for _ in range(3):
        final_score(evaluate(Answers(1), reference))
    assert dense.calls == 3


@pytest.mark.parametrize("metric", [TOP1, AGREEMENT, MSE, METRICS["f1"]], ids=lambda metric: metric.name)
def test_what_does_not_fit_is_computed_anew_and_says_the_same(metric):
    room, dense = Room(limit_bytes=4000), Answers(0)
    data = paired(100, 20, 10, 20)
    small = Reference(dense, data, metric, outputs=["output"], batch=50, room=room)
    large = Reference(Answers(0), data, metric, outputs=["output"], batch=50)
    for _ in range(2):
        assert final_score(evaluate(Answers(1), small)) == final_score(evaluate(Answers(1), large))
    assert small.dense_score() == large.dense_score()
    assert room.bytes <= 1000
    assert small.complete
    assert dense.calls > 3


def test_large_outputs_are_computed_few_samples_at_a_time():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.largest = 0

        def forward(self, x: Tensor) -> Tensor:
            self.largest = max(self.largest, len(x))
            return x.new_zeros(len(x), 1).expand(-1, OUTPUT_BYTES // 8 // 5).clone()

    dense = Words()
    reference = Reference(dense, Dataset(torch.zeros(12, 1, dtype=torch.float64)), AGREEMENT, outputs=["output"])
    assert reference.batch == 5
    assert reference.dense_score() == 1
    assert dense.largest == 5


def test_cancelling_stops_between_batches():
    ours = Answers(1)
    reference = Reference(Answers(0), paired(100, 20, 10, 20), TOP1, batch=10)
    seen: list[int] = []
    with scope(cancelled=lambda: len(seen) == 2), pytest.raises(Cancelled):
        seen.extend(score.samples for score in evaluate(ours, reference))
    assert seen == [10, 20]
    assert ours.calls == 2


def test_the_callback_of_older_versions_still_cancels_with_a_word():
    ours, answers = Answers(1), iter([False, False, True])
    reference = Reference(Answers(0), paired(100, 20, 10, 20), TOP1, batch=10)
    with pytest.warns(DeprecationWarning, match="scope"):
        scores = evaluate(ours, reference, cancelled=lambda: next(answers))
    with pytest.raises(Cancelled):
        list(scores)
    assert ours.calls == 2


def test_between_two_scores_the_caller_and_the_models_are_as_they_were():
    """A generator must not leave gradients off, or a network in eval mode, while it waits."""
    ours, dense = Answers(1).train(), Answers(0).train()
    for _ in evaluate(ours, Reference(dense, paired(100, 20, 10, 20), TOP1, batch=10)):
        assert torch.is_grad_enabled()
        assert ours.training
        assert dense.training


def test_networks_are_scored_in_eval_mode():
    drops_all = nn.Sequential(Answers(1), nn.Dropout(1.0)).train()
    reference = Reference(nn.Sequential(Answers(0), nn.Dropout(1.0)).train(), paired(10, 0, 0, 0), TOP1)
    score = final_score(evaluate(drops_all, reference))
    assert (score.value, score.dense) == (1, 1)


def test_without_labels_the_score_is_agreement_with_the_dense_network():
    score = scores(paired(36, 12, 2, 10, targets=False), AGREEMENT)[-1]
    assert (score.value, score.dense, score.drop) == pytest.approx((46 / 60, 1, 14 / 60))
    assert (score.drop_low, score.drop_high) == paired_interval(worse=14, better=0, same=46)


@pytest.mark.parametrize("metric", [WRONG, ABSOLUTE, MSE], ids=lambda m: m.name)
def test_a_drop_is_positive_when_worse_also_where_lower_is_better(metric):
    for counts, sign in (((60, 30, 5, 5), 1), ((60, 5, 30, 5), -1)):
        score = scores(paired(*counts), metric, batch=100)[-1]
        assert not score.higher_is_better
        assert score.drop == pytest.approx(score.value - score.dense)
        assert score.drop == pytest.approx(sign * (0.75 if metric is ABSOLUTE else 0.25))
        assert score.drop_low < score.drop < score.drop_high
        assert score.drop_low * score.drop_high > 0  # 30 against 5 of 100 is no chance
        assert score.low <= score.value <= score.high


def test_a_metric_of_all_samples_has_a_paired_interval():
    """Close to that of counts where both apply, the same each time, and none where nothing is known to differ."""
    accuracy = Metric("accuracy", value=lambda out, y: (out.argmax(1) == y).double().mean())
    dataset = paired(300, 60, 20, 20)
    score = scores(dataset, accuracy, batch=400)[-1]
    assert score == scores(dataset, accuracy, batch=400)[-1]
    assert (score.drop_low, score.drop_high) == pytest.approx(paired_interval(60, 20, 320), abs=0.012)
    same = scores(paired(300, 0, 0, 100), accuracy, batch=400)[-1]
    assert (same.drop, same.drop_low, same.drop_high) == (0, None, None)
    assert same.too_few


def test_errors_of_nought_are_no_counts():
    """A network that is exactly right has not as little to show as one that is right on every sample."""
    exact = Metric("mse", False, per_sample=lambda out, y: 0.0 * out[:, 1], unbounded=True)
    score = scores(paired(60, 0, 0, 0), exact)[-1]
    assert (score.value, score.low, score.high) == (0, None, None)


def test_one_sample_has_no_spread():
    for metric in (Metric("x", per_sample=lambda out, y: out[:, 0] + 0.5), MSE):
        (score,) = scores(paired(1, 0, 0, 0), metric)
        assert (score.low, score.high, score.drop_low, score.drop_high) == (None,) * 4


def broken(outputs: Tensor, targets: Tensor) -> float:
    raise KeyError("class 7")


@pytest.mark.parametrize(
    "metric", [Metric("f1", value=broken), Metric("f1", per_sample=broken)], ids=["value", "sample"]
)
def test_a_metric_that_fails_is_one_clear_error(metric):
    with pytest.raises(InvalidData, match=r"metric 'f1' failed with KeyError.*outputs \(3, 2\) and targets \(3,\)"):
        scores(paired(1, 1, 1, 0), metric)


def test_inputs_that_do_not_fit_are_one_clear_error():
    reference = Reference(nn.Linear(3, 2), Dataset(torch.ones(4, 5), torch.zeros(4, dtype=torch.long)), TOP1)
    with pytest.raises(InvalidData, match=r"failed on the evaluation inputs with RuntimeError.*same form") as caught:
        final_score(evaluate(nn.Linear(5, 2), reference))
    assert "\n" not in str(caught.value)


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(InvalidData, match="empty"):
        Reference(Answers(0), Dataset(torch.ones(0, 2)), TOP1)
    with pytest.raises(InvalidData, match="at least 1"):
        final_score(evaluate(Answers(1), Reference(Answers(0), paired(1, 1, 1, 1), TOP1), samples=0))


def test_a_model_that_writes_into_its_inputs_spoils_no_samples():
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    dataset = Dataset(torch.eye(4), torch.arange(4))
    reference = Reference(Doubles(), dataset, TOP1)
    for _ in range(2):
        final_score(evaluate(Doubles(), reference))
    assert float(dataset.inputs.sum()) == float(reference.dataset.inputs.sum()) == 4


class Logits:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda x: x, {"output": 1}),
        (lambda x: Logits(x), {"logits": 1}),
        (lambda x: (x, x + 1), {"0": 1, "1": 2}),
        (lambda x: {"aux": x, "out": x + 1}, {"aux": 1, "out": 2}),
        (lambda x: [None, [x]], {"1.0": 1}),
        (lambda x: Pair(x, None), {"first": 1}),
        (lambda x: {"heads": (x, {"a": x + 1}), "loss": 0.5}, {"heads.0": 1, "heads.1.a": 2}),
    ],
    ids=["tensor", "logits", "tuple", "dict", "nested", "fields", "nested dict"],
)
def test_outputs_have_names(wrap, expected):
    class Wraps(nn.Module):
        def forward(self, x: Tensor) -> object:
            return wrap(x)

    assert {name: float(value) for name, value in call(Wraps(), torch.ones(1)).items()} == expected


def test_a_model_without_a_tensor_in_its_output_is_refused():
    class Says(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "hello"

    with pytest.raises(InvalidData, match="must return a tensor"):
        call(Says(), torch.ones(1))
