"""Interval: it holds planted truths, comes from the plans that were measured, and is narrow next to them."""

from dataclasses import replace
from math import exp, log
from random import Random

import pytest
import torch

from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict import interval
from lowrank_core.predict.interval import Prediction, predicted, residuals, with_measured
from lowrank_core.predict.prediction import (
    UNKNOWN,
    Changes,
    Context,
    Joint,
    NoiseTable,
    curves,
    plan_changes,
    score_at,
)
from tests.test_predict import point

LOGS = tuple(log(0.001) + 0.3 * step for step in range(40))
TABLE = NoiseTable(LOGS, tuple(0.1 + 0.8 / (1 + exp(z)) for z in LOGS), 1.0)
RISING = replace(TABLE, score=tuple(5 - 4 * score for score in TABLE.score))
"""Of a score that is better when lower."""

LAYERS, TRUE = 5, (0.3, 1.0, 3.0, 1.0, 0.5)
"""What each layer's change is really worth, which the noise model does not know."""


def drawn(draw: Random, noise: float = 0.2) -> tuple[Changes, float]:
    """The changes of a plan, and its true log variance."""
    level = draw.uniform(-5, 3)
    each = tuple(exp(level + draw.gauss(0, 1)) if draw.random() < 0.7 else 0.0 for _ in range(LAYERS))
    true = sum(c * w for c, w in zip(each, TRUE, strict=True))
    return Changes(each, 0.0), (log(true) if true else -99.0) + draw.gauss(0, noise)


def lost(z: float, table: NoiseTable = TABLE) -> float:
    return abs(table.score[0] - score_at(table, exp(z)))


def context(plans: int, noise: float = 0.2, table: NoiseTable = TABLE) -> Context:
    draw = Random(0)
    found = [drawn(draw, noise) for _ in range(plans)]
    return Context(tuple("abcde"), (), 1.0, tuple(Joint(c.each, c.doubt, lost(z, table)) for c, z in found if c.sum))


def width(found: Prediction) -> float:
    return found.high - found.low


@pytest.mark.parametrize("table", [TABLE, RISING], ids=["falling", "rising"])
def test_nine_of_ten_planted_truths_lie_inside_and_it_is_narrower_than_before_anything_was_measured(table):
    draw, known, before = Random(1), residuals(context(48, table=table), table), residuals(Context(), table)
    plans = [(c, z) for c, z in (drawn(draw) for _ in range(300)) if c.sum]
    found = [predicted(c, table, known) for c, _ in plans]
    truths = [score_at(table, exp(z)) for _, z in plans]
    inside = [f.low <= truth <= f.high for f, truth in zip(found, truths, strict=True)]
    assert 0.85 <= sum(inside) / len(inside) <= 0.985
    assert all(f.low <= f.value <= f.high for f in found)
    unknown = [width(predicted(c, table, before)) for c, _ in plans]
    assert sum(map(width, found)) < 0.5 * sum(unknown)


def test_it_learns_which_layers_matter_more_than_the_noise_model_says():
    known = residuals(context(48), TABLE)
    light, heavy = (
        predicted(Changes(tuple(2.0 * (i == at) for i in range(LAYERS)), 0.0), TABLE, known) for at in (0, 2)
    )
    assert heavy.value < score_at(TABLE, 2.0) < light.value


def test_its_width_comes_from_the_residuals():
    plan = Changes((0.5,) * LAYERS, 0.0)
    widths = [width(predicted(plan, TABLE, residuals(context(48, noise), TABLE))) for noise in (0.05, 0.4, 1.2)]
    assert widths == sorted(widths)
    assert widths[0] < widths[2] / 2


@pytest.mark.parametrize("plans", [12, 48])
def test_what_is_usual_counts_until_enough_plans_are_measured(plans, monkeypatch):
    """Of 48 plans that the process tells exactly, the tenth that it needs most is one of theirs."""
    found = context(plans, noise=0.01)
    assert len(found.joints) == plans
    reached = []
    for usual in (2.0, 20.0):
        monkeypatch.setattr(interval, "USUAL_SHARES", tuple(usual * share for share in interval.USUAL_SHARES))
        residuals.cache_clear()
        reached.append(residuals(found, TABLE).reach)
    residuals.cache_clear()
    assert (reached[0] == reached[1]) == (plans == interval.ENOUGH)


def test_it_is_wider_away_from_measured_plans_than_at_them():
    some = context(24)
    known, at = residuals(some, TABLE), some.joints[3]
    here = predicted(Changes(at.changes, 0.0), TABLE, known)
    changed = tuple(30 * c + 1 for c in at.changes[::-1])
    level = sum(at.changes) / sum(changed)
    assert width(here) < width(predicted(Changes(tuple(level * c for c in changed), 0.0), TABLE, known))
    doubtful = [width(predicted(Changes(at.changes, doubt), TABLE, known)) for doubt in (0.0, 0.5, 1.0, 2.0)]
    assert doubtful == sorted(doubtful)
    assert doubtful[0] < doubtful[-1]


def test_next_to_a_plan_that_a_person_measured_it_starts_from_what_was_measured():
    some, plan, far = context(24), Changes((3.0, 0.0, 0.0, 0.2, 0.0), 0.0), Changes((0.0, 0.0, 0.1, 0.0, 2.0), 0.0)
    known = residuals(some, TABLE)
    more = with_measured(known, (*some.joints, Joint(plan.each, 0.0, 0.35)), TABLE)
    before, after = (predicted(plan, TABLE, each) for each in (known, more))
    truth = TABLE.score[0] - 0.35
    assert abs(after.value - truth) < 0.3 * abs(before.value - truth)
    assert after.low < truth < after.high
    assert width(after) < 0.7 * width(before)
    assert width(predicted(far, TABLE, more)) > 0.9 * width(predicted(far, TABLE, known))
    assert (more.reach, more.own, more.grain) == (known.reach, known.own, known.grain)


def test_a_dense_plan_is_certain_and_scores_that_differ_where_nothing_changes_are_heard_of():
    """As on a set of few samples, where every compressed plan happens to win one."""
    assert predicted(Changes((0.0,) * LAYERS, 0.0), TABLE, residuals(context(48), TABLE)) == Prediction(
        *[TABLE.score[0]] * 3
    )
    joints = tuple(Joint((exp(-6 + 0.1 * i), 0.0), 0.0, -0.01) for i in range(20))
    found = predicted(Changes((exp(-5.0), 0.0), 0.0), TABLE, residuals(Context(("a", "b"), (), 1.0, joints), TABLE))
    assert found.low <= TABLE.score[0] + 0.01 <= found.high
    assert found.value == pytest.approx(TABLE.score[0] + 0.01, abs=0.003)
    assert width(found) < 0.03


@pytest.mark.parametrize("table", [TABLE, RISING], ids=["falling", "rising"])
def test_plans_may_lose_more_than_noise_ever_does(table):
    """As where a network answers one class for all, which noise of any size does not come to."""
    most = 1.15 * abs(table.score[0] - table.score[-1])

    def truth(z: float) -> float:
        return lost(z, table) if z < 1.0 else most

    draw = Random(2)
    joints = tuple(Joint(c.each, 0.0, truth(z)) for c, z in (drawn(draw) for _ in range(48)) if c.sum)
    known = residuals(Context(tuple("abcde"), (), 1.0, joints), table)
    heavy = [c for c, z in (drawn(draw) for _ in range(300)) if z > 3]
    found = [predicted(c, table, known) for c in heavy]
    ends = [sorted(abs(table.score[0] - end) for end in (f.low, f.high)) for f in found]
    assert sum(low <= most <= high for low, high in ends) >= 0.85 * len(heavy)
    assert max(abs(table.score[0] - f.value) for f in found) > abs(table.score[0] - table.score[-1])


@pytest.mark.parametrize(
    ("unit", "amounts"),
    [(0.01, [0] * 6 + [1]), (0.03, [0] * 11 + [1, 2]), (0.03, [0] * 10 + [1, 2, 3]), (0.04, [0] * 5 + [1])],
    ids=str,
)
def test_small_losses_that_no_variance_tells_apart_are_covered(unit, amounts):
    """Where noise as small as this says nothing, and a few of the plans lose a little all the same."""
    draw = Random(3)

    def slight() -> tuple[Changes, float]:
        return Changes((exp(draw.uniform(-16, -12)),) * LAYERS, 0.0), unit * draw.choice(amounts)

    light = [Joint(c.each, 0.0, some) for c, some in (slight() for _ in range(24))]
    heavy = [Joint(c.each, 0.0, lost(z)) for c, z in (drawn(draw, 0.05) for _ in range(36)) if c.sum]
    known = residuals(Context(tuple("abcde"), (), 1.0, (*light, *heavy)), TABLE)
    tested = [slight() for _ in range(200)]
    found = [predicted(changes, TABLE, known) for changes, _ in tested]
    inside = sum(f.low <= TABLE.score[0] - some <= f.high for f, (_, some) in zip(found, tested, strict=True))
    assert inside >= 0.88 * len(tested)
    assert max(map(width, found)) < 0.15


def test_doubt_grows_with_the_distance_from_the_nearest_measured_rank_and_is_largest_without_any():
    found = curves([point(0.01, 0.1), point(0.25, 9.0)])

    def doubt(error: float, layer: str = "a") -> float:
        spectra = (torch.tensor([(1 - error) ** 0.5, error**0.5]),)
        plan = RankPlan.of("f", {layer: Choice("svd", (1,))})
        return plan_changes(plan, found, 1.0, lambda *_: spectra, Context((layer,))).doubt

    assert doubt(0.01) < 1e-3
    assert doubt(0.01) < doubt(0.02) < doubt(0.05) > doubt(0.2)
    assert doubt(0.0001) > doubt(0.001)
    assert doubt(0.1, "b") == UNKNOWN
