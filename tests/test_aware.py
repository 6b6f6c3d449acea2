"""Data-aware factors: better where the data is, nested, exact at full rank, and honest about their error."""

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.algebra.aware import moment_roots
from lowrank_core.compression.calibration import input_moments
from lowrank_core.compression.factors import FactorStore
from lowrank_core.compression.unfold import output_rows
from lowrank_core.errors import InvalidModel
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.methods import METHODS, Factorization
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile

NAMES = {"svd_aware": "svd", "spatial_svd_aware": "spatial_svd", "tucker2_aware": "tucker2"}
GROUPS = [1, 2]


def layer_and_data(groups: int = 1) -> tuple[nn.Module, Tensor, ModelProfile]:
    """A convolution whose input channels differ a hundredfold in size and are correlated in space."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, padding=1, groups=groups, bias=False).double()
    x = torch.randn(20, 8, 10, 10, dtype=torch.float64)
    x = (x + x.roll(1, 2) + x.roll(1, 3)) * torch.logspace(0, -2, 8, dtype=torch.float64)[:, None, None]
    return conv.eval(), x[:, torch.randperm(8)], discover(conv, x[:1])


def factorized(name: str, groups: int) -> tuple[Factorization, nn.Module, Tensor, LayerSpec]:
    conv, x, profile = layer_and_data(groups)
    spec = profile.layers[0].spec
    moment = input_moments(conv, profile.layers, Dataset(x))["Conv2d"].second
    return METHODS[name].factorize(spec, conv.weight.detach(), moment), conv, x, spec


def output_error(conv: nn.Module, weight: Tensor, x: Tensor) -> float:
    """Relative error of the layer's outputs with another weight."""
    with torch.no_grad():
        expected = conv(x)
        found = nn.functional.conv2d(x, weight.to(x), padding=1, groups=conv.groups)
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_closer_than_with_plain_factors(name: str, groups: int) -> None:
    aware, conv, x, spec = factorized(name, groups)
    plain = METHODS[NAMES[name]].factorize(spec, conv.weight.detach())
    top = METHODS[name].max_rank(spec)
    for share in (0.3, 0.6):
        rank = tuple(max(1, round(share * t)) for t in top)
        ours, theirs = (output_error(conv, f.reconstruct(rank), x) for f in (aware, plain))
        assert ours < 0.95 * theirs


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_error_is_that_of_the_outputs(name: str, groups: int) -> None:
    aware, conv, x, spec = factorized(name, groups)
    top = METHODS[name].max_rank(spec)
    previous = 1.0
    for share in (0.25, 0.5, 0.75):
        rank = tuple(round(share * t) for t in top)
        measured = output_error(conv, aware.reconstruct(rank), x)
        if len(rank) == 1:
            assert aware.error(rank) == pytest.approx(measured, rel=0.02, abs=1e-3)  # the moment takes 16,384 rows
        else:
            assert measured < 1.02 * aware.error(rank) + 1e-3
        assert measured < previous
        previous = measured
    assert output_error(conv, aware.reconstruct(top), x) < 1e-6
    assert aware.error(top) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_chain_is_the_reconstructed_weight(name: str) -> None:
    aware, conv, x, spec = factorized(name, 2)
    rank = tuple(max(1, t // 2) for t in METHODS[name].max_rank(spec))
    chain = nn.Sequential(*(stage.build(dtype=torch.float64) for stage in METHODS[name].stages(spec, rank)))
    with torch.no_grad():
        for part, weight in zip(chain, aware.weights(rank), strict=True):
            part.weight.copy_(weight)
        conv.weight.copy_(aware.reconstruct(rank))
        assert torch.allclose(output_rows(spec, chain(x)), output_rows(spec, conv(x)), atol=1e-9)


def test_svd_on_data_is_the_best_of_its_rank() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(6, 10, dtype=torch.float64), torch.randn(400, 10, dtype=torch.float64)
    x = x * torch.logspace(0, -2, 10, dtype=torch.float64)
    spec = LayerSpec(10, 6, bias=False)
    aware = METHODS["svd_aware"].factorize(spec, weight, (x.mT @ x / len(x))[None])
    outputs = x @ weight.mT
    singular_values = torch.linalg.svdvals(outputs)
    for rank in range(1, 7):
        best = float(singular_values[rank:].square().sum().sqrt() / outputs.norm())
        found = float((outputs - x @ aware.reconstruct((rank,)).mT).norm() / outputs.norm())
        assert found == pytest.approx(best, rel=1e-4, abs=1e-6)
        assert aware.error((rank,)) == pytest.approx(best, rel=1e-4, abs=1e-6)


def test_dead_inputs_and_few_samples_stay_finite() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 10, dtype=torch.float64) * (torch.arange(10) < 6)
    weight, spec = torch.randn(6, 10, dtype=torch.float64), LayerSpec(10, 6, bias=False)
    for moment in ((x.mT @ x / 3)[None], torch.zeros(1, 10, 10, dtype=torch.float64)):
        aware = METHODS["svd_aware"].factorize(spec, weight, moment)
        for rank in (1, 3, 6):
            assert all(torch.isfinite(w).all() for w in aware.weights((rank,)))
        assert torch.allclose(aware.reconstruct((6,)), weight, atol=1e-6)
    root, inverse = moment_roots((x.mT @ x / 3)[None])
    assert torch.allclose(root @ inverse, torch.eye(10, dtype=torch.float64)[None], atol=1e-6)


def test_without_data_they_are_refused_and_with_a_wrong_moment_too() -> None:
    conv, _, profile = layer_and_data()
    with pytest.raises(InvalidModel, match="calibration data"):
        FactorStore(conv, profile)("Conv2d", "svd_aware")
    with pytest.raises(ValueError, match="second_moment must be"):
        METHODS["svd_aware"].factorize(profile.layers[0].spec, conv.weight, torch.eye(8)[None])
