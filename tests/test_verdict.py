"""The verdict: looked at after every batch, wrong at most once in twenty; and it does come."""

import numpy as np
import pytest
import torch

from lowrank_core.layers.data import Dataset
from lowrank_core.scoring.metrics import TOP1, Metric
from lowrank_core.scoring.scores import Reference, evaluate
from lowrank_core.scoring.verdict import is_within
from tests.test_evaluate import Answers, paired


def verdicts(shares: tuple[float, float], tolerance: float, *, runs: int, cap: int = 5000, batch: int = 64) -> tuple:
    """(share of True, of False, median samples when decided), looking after each batch, for P(worse), P(better)."""
    rng = np.random.default_rng(0)
    outcomes, samples = [], []
    for _ in range(runs):
        drawn = rng.multinomial(batch, (*shares, 1 - sum(shares)), size=cap // batch).cumsum(0)
        for worse, better, same in drawn.tolist():
            found = is_within(worse, better, same, tolerance)
            if found is not None:
                samples.append(worse + better + same)
                break
        outcomes.append(found)
    return outcomes.count(True) / runs, outcomes.count(False) / runs, np.median(samples) if samples else cap


@pytest.mark.parametrize("shares", [(0.01, 0.0), (0.03, 0.02), (0.11, 0.1)], ids=str)
def test_at_the_limit_itself_a_false_verdict_comes_at_most_once_in_twenty(shares):
    """The hardest case: the drop is 1 point, so "more than 1 point" is false, and just above it "within" would be."""
    within, beyond, _ = verdicts(shares, 0.01, runs=400)
    assert within <= 0.05
    assert beyond <= 0.05


@pytest.mark.parametrize(
    ("shares", "expected", "most_samples"),
    [((0.01, 0.01), True, 2500), ((0.0, 0.0), True, 800), ((0.1, 0.02), False, 400), ((0.05, 0.01), False, 1500)],
)
def test_a_clear_case_is_decided_early(shares, expected, most_samples):
    within, beyond, samples = verdicts(shares, 0.01, runs=60)
    assert (within if expected else beyond) >= 0.9
    assert (beyond if expected else within) <= 0.02
    assert samples <= most_samples


def test_the_two_sides_mirror_each_other():
    for counts in ((40, 2, 458), (3, 9, 88), (0, 0, 30)):
        a, b = is_within(*counts, 0.02), is_within(counts[1], counts[0], counts[2], -0.02)
        assert (a, b) in {(None, None), (True, False), (False, True)}


def test_tolerances_beyond_any_drop_need_no_samples():
    assert is_within(0, 0, 0, 1.0) is True
    assert is_within(0, 0, 0, -1.0) is False
    assert is_within(0, 0, 0, 0.01) is None


@pytest.mark.parametrize(("tolerance", "within", "samples"), [(0.1, False, 120), (0.5, True, 100), (0.3, None, 200)])
def test_an_evaluation_ends_with_its_verdict(tolerance, within, samples):
    """A true drop of 0.3 on 200 samples."""
    reference = Reference(Answers(0), paired(120, 65, 5, 10), TOP1, batch=20)
    scores = list(evaluate(Answers(1), reference, tolerance=tolerance))
    assert scores[-1].within is within
    assert all(score.within is None for score in scores[:-1])
    assert scores[-1].samples <= samples
    assert (scores[-1].samples == 200) == (within is None)


def test_a_drop_is_worse_also_where_lower_is_better():
    wrong = Metric("wrong", higher_is_better=False, per_sample=lambda out, y: (out.argmax(1) != y).double())
    reference = Reference(Answers(0), paired(120, 65, 5, 10), wrong, batch=20)
    assert list(evaluate(Answers(1), reference, tolerance=0.1))[-1].within is False


def test_other_metrics_are_measured_to_the_end():
    distance = Metric("distance", per_sample=lambda out, y: 0.3 + out[:, 1])
    reference = Reference(Answers(0), Dataset(torch.zeros(100, 2, dtype=torch.long), torch.zeros(100)), distance)
    assert [s.within for s in evaluate(Answers(1), reference, tolerance=0.9)] == [None, None]
