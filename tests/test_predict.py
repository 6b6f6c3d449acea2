"""Prediction: the browser's arithmetic in Python, and the noise model on a network where it holds by construction."""

from math import exp, log

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.data import Dataset
from lowrank_core.evaluate import Reference
from lowrank_core.metrics import AGREEMENT, TOP1
from lowrank_core.plan import Choice, RankPlan
from lowrank_core.predict import (
    NoiseTable,
    Point,
    change,
    closed_form_error,
    curves,
    noise_table,
    predict,
    score_at,
)

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
    assert predict(plan, found, TABLE, lambda layer, method: spectra[layer]) == pytest.approx(expected)
    assert predict(RankPlan("f"), found, TABLE, lambda layer, method: spectra[layer]) == 0.9


class Logits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_the_noise_model_foretells_the_score_of_outputs_with_that_noise():
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(10, (4000,), generator=generator)
    outputs = 3.0 * nn.functional.one_hot(targets, 10) + torch.randn(4000, 10, generator=generator)
    reference = Reference(Logits(), Dataset(outputs, targets), TOP1)
    table = noise_table(reference, 2000)
    assert list(table.score) == sorted(table.score, reverse=True) or max(table.score) - table.score[0] < 0.003
    for variance in (0.1, 0.5, 2.0, 8.0):
        noisy = outputs + variance**0.5 * torch.randn(outputs.shape, generator=generator)
        actual = float((noisy.argmax(1) == targets).double().mean())
        assert score_at(table, variance) == pytest.approx(actual, abs=0.02)
    agreement = noise_table(Reference(Logits(), Dataset(outputs), AGREEMENT), 500)
    assert agreement.score[0] == 1.0
    assert agreement.score[-1] < 0.3
