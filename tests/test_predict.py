"""Prediction: the browser's arithmetic in Python, and the noise model on a network where it holds by construction."""

from math import exp, log

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.layers.data import Dataset
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.interval import predict
from lowrank_core.predict.prediction import (
    NOISE_OUTPUTS,
    Context,
    NoiseTable,
    Point,
    Repair,
    between,
    change,
    closed_form_error,
    curves,
    fitted_scale,
    kept_curves,
    noise_table,
    plan_changes,
    score_at,
)
from lowrank_core.scoring.metrics import AGREEMENT, METRICS, TOP1
from lowrank_core.scoring.scores import Reference

TABLE = NoiseTable((log(0.01), log(1.0), log(100.0)), (0.9, 0.8, 0.2), 40.0)


def point(error: float, changed: float, layer: str = "a", method: str = "svd") -> Point:
    return Point(layer, method, (1,), error, changed)


def test_a_curve_passes_its_points_and_is_straight_in_logarithms():
    (curve,) = curves([point(0.25, 9.0), point(0.01, 0.1), point(0.04, 1.0)]).values()
    assert [round(exp(x), 6) for x, _ in curve] == [0.01, 0.04, 0.25]
    for error, expected in [(0.01, 0.1), (0.04, 1.0), (0.25, 9.0), (0.02, 0.1**0.5), (0.1, 3.0)]:
        assert change(error, curve, 1e9) == pytest.approx(expected)


def test_beyond_the_ends_the_change_is_proportional_to_the_error():
    (curve,) = curves([point(0.01, 0.1), point(0.25, 9.0)]).values()
    assert change(0.0001, curve, 1e9) == pytest.approx(0.001)
    assert change(0.5, curve, 1e9) == pytest.approx(18.0)
    assert change(0.0, curve, 1e9) == 0


def test_without_points_the_rough_proportion_stands_in():
    assert change(0.25, (), 40.0) == 10.0
    assert curves([point(0.0, 0.0), point(0.5, 0.0)]) == {}


@pytest.mark.parametrize(
    ("variance", "score"), [(0, 0.9), (1e-9, 0.9), (0.1, 0.85), (1, 0.8), (10, 0.5), (100, 0.2), (1e9, 0.2)]
)
def test_the_table_is_read_along_the_logarithm(variance, score):
    assert score_at(TABLE, variance) == pytest.approx(score)


def test_the_energy_beyond_the_ranks_is_the_error():
    one, two = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 1.0, 0.0])
    assert closed_form_error((one,), (1,)) == pytest.approx(5 / 14)
    assert closed_form_error((one, two), (2, 1)) == pytest.approx(1 / 14 + 1 / 5)
    assert closed_form_error((one, two), (3, 2)) == 0
    assert closed_form_error((one,), (7,)) == 0
    assert closed_form_error((torch.ones(9), torch.ones(9)), (1, 1)) == 1
    assert closed_form_error((torch.zeros(3),), (1,)) == 0


def test_changes_of_the_layers_add_up():
    """a: measured, 0.5; b: no points of its method, 40 * 5/14 * 0.0126 = 0.18...; the sum is looked up."""
    plan = RankPlan.of("f", {"a": Choice("svd", (1,)), "b": Choice("svd", (2,))})
    spectra = {"a": (torch.tensor([3.0, 2.0, 1.0]),), "b": (torch.tensor([8.0, 2.0, 2.0]),)}
    found = curves([point(5 / 14, 0.5), point(0.1, 0.1), point(0.5, 3.0, layer="b", method="cp3")])
    expected = score_at(TABLE, 0.5 + 40 * 4 / 72)
    assert predict(plan, found, TABLE, lambda layer, method: spectra[layer]).value == pytest.approx(expected)
    assert predict(RankPlan("f"), found, TABLE, lambda layer, method: spectra[layer]).value == 0.9


class Logits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_the_noise_model_foretells_the_score_of_outputs_with_that_noise():
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(10, (4000,), generator=generator)
    outputs = 3.0 * nn.functional.one_hot(targets, 10) + torch.randn(4000, 10, generator=generator)
    reference = Reference(Logits(), Dataset(outputs, targets), TOP1)
    table = noise_table(reference, 2000)
    assert list(table.score) == sorted(table.score, reverse=True)
    for variance in (0.1, 0.5, 2.0, 8.0):
        noisy = outputs + variance**0.5 * torch.randn(outputs.shape, generator=generator)
        actual = float((noisy.argmax(1) == targets).double().mean())
        assert score_at(table, variance) == pytest.approx(actual, abs=0.02)
    agreement = noise_table(Reference(Logits(), Dataset(outputs), AGREEMENT), 500)
    assert agreement.score[0] == 1.0
    assert agreement.score[-1] < 0.3


def test_of_large_outputs_few_samples_are_tabulated_and_the_score_is_that_of_all():
    generator = torch.Generator().manual_seed(6)
    words = torch.randint(500, (60, 40), generator=generator)
    outputs = 4.0 * nn.functional.one_hot(words, 500) + torch.randn(60, 40, 500, generator=generator)
    metric = METRICS["perplexity"]
    assert 2 * NOISE_OUTPUTS < 60 * 40 * 500
    table = noise_table(Reference(Logits(), Dataset(outputs, words), metric))
    assert table.score[0] == pytest.approx(metric.score(outputs, words), rel=1e-3)
    noisy = outputs + 0.5**0.5 * torch.randn(outputs.shape, generator=generator)
    assert score_at(table, 0.5) == pytest.approx(metric.score(noisy, words), rel=0.05)


def test_later_layers_of_the_plan_make_good_their_share():
    """Of a's change of 0.5 a quarter is kept when both later layers are in the plan, half when one is."""
    spectra = {name: (torch.tensor([3.0, 2.0, 1.0]),) for name in "abc"}
    found = curves([point(5 / 14, 0.5), point(5 / 14, 2.0, layer="b"), point(5 / 14, 3.0, layer="c")])
    context = Context(("a", "b", "c"), (Repair("a", 0.5, 0.25), Repair("a", 5.0, 0.1)))

    def total(*names: str) -> float:
        plan = RankPlan.of("f", {name: Choice("svd", (1,)) for name in names})
        return plan_changes(plan, found, 40.0, lambda layer, method: spectra[layer], context).sum

    assert total("a") == pytest.approx(0.5)
    assert total("a", "c") == pytest.approx(0.25 + 3.0)
    assert total("a", "b", "c") == pytest.approx(0.125 + 2.0 + 3.0)


def test_the_share_kept_is_straight_in_logarithms_constant_beyond_and_within_bounds():
    curve = kept_curves([Repair("a", 1.0, 0.5), Repair("a", 100.0, 0.05), Repair("a", 0.0, 3.0)])["a"]
    for changed, kept in [(0.01, 0.5), (1.0, 0.5), (10.0, 0.025**0.5), (100.0, 0.05), (1e6, 0.05)]:
        assert exp(between(curve, log(changed))) == pytest.approx(kept)
    (low,), (high,) = kept_curves([Repair("a", 1.0, 0.0), Repair("b", 1.0, 7.0)]).values()
    assert 0 < exp(low[1]) < 0.05
    assert high[1] == 0


def test_a_planted_scale_is_found_also_with_plans_that_are_beyond_prediction():
    pairs = [(v, score_at(TABLE, 1.7 * v)) for v in (0.05, 0.2, 0.4)]
    assert fitted_scale(TABLE, pairs) == pytest.approx(1.7, rel=0.02)
    assert fitted_scale(TABLE, [*pairs, (9.0, -5.0)]) == pytest.approx(1.7, rel=0.02)
    assert fitted_scale(TABLE, []) == 1
    plan, spectra = RankPlan.of("f", {"a": Choice("svd", (1,))}), (torch.tensor([3.0, 2.0, 1.0]),)
    found = curves([point(5 / 14, 0.5)])
    scaled = predict(plan, found, TABLE, lambda layer, method: spectra, Context(scale=1.7))
    assert scaled.value == pytest.approx(score_at(TABLE, 0.85))


def test_of_scales_that_agree_equally_well_the_one_nearest_to_1_is_taken():
    """Below the table's first variance, 0.01, nothing is lost whatever the scale is."""
    assert fitted_scale(TABLE, [(1e-6, 0.9), (1e-5, 0.9)]) == 1
    assert fitted_scale(TABLE, [(0.02, 0.9)]) == pytest.approx(0.5, rel=0.02)  # not less than it takes
