"""CP fits: planted ranks, tensorly as the oracle, the same factors in every process, refusals."""

import pytest
import torch
from tensorly import backend_context
from tensorly.decomposition import parafac
from torch import Tensor, nn

from lowrank_core.algebra import cp
from lowrank_core.algebra.cp import Start, balanced, compose, cp_max_rank, growth, sweep
from lowrank_core.errors import InvalidModel
from lowrank_core.layers.spec import LayerSpec, chain_multiplies
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import break_even, coefficients, layer_cost, useful_rank
from lowrank_core.plans.plan import Choice

CONV = LayerSpec(8, 12, (3, 3), (1, 1), (1, 1), (1, 1), bias=False)
METHOD_NAMES = ["cp3", "cp4"]


pytestmark = pytest.mark.usefixtures("one_thread")


def planted(rank: int, *extents: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return compose([torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in extents])


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_planted_rank_is_found_and_a_smaller_one_is_not_enough(method: str) -> None:
    extents = (12, 8, 9) if method == "cp3" else (12, 8, 3, 3)
    weight = planted(3, *extents).reshape(CONV.weight_shape)
    fitted = METHODS[method].factorize(CONV, weight)
    for rank, low, high in ((3, 0, 1e-2), (4, 0, 1e-2), (2, 5e-2, 1)):
        distance = float((weight - fitted.reconstruct((rank,))).norm() / weight.norm())
        assert low <= distance < high
        assert distance <= fitted.error((rank,))


@pytest.mark.parametrize(("seed", "rank"), [(0, 5), (1, 12), (2, 5)])
def test_the_fit_is_as_good_as_tensorlys(seed: int, rank: int) -> None:
    kernel = torch.randn(12, 8, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = cp.als(Start.of(kernel))(kernel, rank)
    with backend_context("pytorch", local_threadsafe=True):
        found = parafac(kernel, rank=rank, n_iter_max=300, tol=1e-9, init="random", random_state=seed)
    scale, (first, *rest) = found
    theirs = (kernel - compose([first * scale, *rest])).norm()
    assert (kernel - compose(ours)).norm() < 1.03 * theirs


@pytest.mark.parametrize(
    ("extents", "rank", "error", "cancelling"),
    [
        ((16, 16, 9), 10, 0.4364, 0.8),
        ((16, 16, 9), 25, 0.2260, 1.7),
        ((24, 12, 3, 3), 18, 0.3825, 0.9),
        ((12, 10, 4), 8, 0.4070, 2.5),
    ],
)
def test_no_fit_is_worse_than_by_300_plain_sweeps(
    extents: tuple[int, ...], rank: int, error: float, cancelling: float
) -> None:
    """What those came to, which had neither momentum nor a ridge, written down from them."""
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(n, 60, generator=generator, dtype=torch.float64) for n in extents]
    kernel = compose([factors[0] * torch.arange(1, 61, dtype=torch.float64) ** -0.5, *factors[1:]])
    fitted = cp.als(Start.of(kernel))(kernel, rank)
    assert float((kernel - compose(fitted)).norm() / kernel.norm()) < 1.001 * error
    assert growth(kernel, fitted) ** 2 < cancelling + 0.1


def test_components_do_not_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """By 300 plain sweeps the components of this fit summed to 11.7 times the kernel, at an error of 0.4739."""
    kernel = torch.randn(16, 16, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    bounded = cp.als(Start.of(kernel))(kernel, 28)
    assert growth(kernel, bounded) ** 2 < 4
    assert float((kernel - compose(bounded)).norm() / kernel.norm()) < 0.4739
    assert all(torch.equal(*pair) for pair in zip(bounded, cp.als(Start.of(kernel))(kernel, 28), strict=True))
    monkeypatch.setattr(cp, "RIDGE", 0.0)
    assert growth(kernel, cp.als(Start.of(kernel))(kernel, 28)) ** 2 > 20


def test_the_ridge_goes_where_nothing_is_left() -> None:
    kernel = planted(3, 12, 8, 9)
    fitted = cp.als(Start.of(kernel))(kernel, 3)
    assert float((kernel - compose(fitted)).norm() / kernel.norm()) < 1e-4


def test_the_reference_is_tensorlys_own() -> None:
    weight = planted(2, 12, 8, 9).reshape(CONV.weight_shape)
    method = METHODS["cp3_parafac"]
    assert method.reference
    reconstructed = method.factorize(CONV, weight).reconstruct((2,))
    assert float((weight - reconstructed).norm() / weight.norm()) < 1e-3


@pytest.mark.parametrize("joint", [True, False])
def test_the_start_is_an_exact_sum_of_orthogonal_components(joint: bool) -> None:
    kernel = torch.randn(7, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = kernel.flatten(2) if joint else kernel
    start = Start.of(kernel)
    assert len(start.singular_values) == 12 * 5
    assert torch.allclose(compose(list(start.factors)), kernel, atol=1e-12)
    assert growth(kernel, list(start.factors)) == pytest.approx(1)
    for rank in (1, 10, 40):
        cut = compose([f[:, :rank] for f in start.factors])
        assert start.errors[rank] == pytest.approx(float((kernel - cut).norm() / kernel.norm()))


def test_sweeps_never_make_it_worse() -> None:
    kernel = torch.randn(10, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = [f[:, :8] for f in Start.of(kernel).factors]
    errors = [float((kernel - compose(sweep(kernel, start, sweeps=n))).norm()) for n in (1, 3, 10, 30)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < float((kernel - compose(start)).norm())


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_chain_is_the_reconstructed_weight(method: str) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(6, 9, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="reflect").double()
    spec = LayerSpec.of(dense)
    fitted = METHODS[method].factorize(spec, dense.weight)
    stages = METHODS[method].stages(spec, (7,))
    chain = nn.Sequential(*(stage.build(dtype=torch.float64) for stage in stages))
    with torch.no_grad():
        for part, weight in zip(chain, fitted.weights((7,)), strict=True):
            part.weight.copy_(weight)
        chain[-1].bias.copy_(dense.bias)
        dense.weight.copy_(fitted.reconstruct((7,)))
        x = torch.randn(2, 6, 11, 12, dtype=torch.float64)
        assert torch.allclose(chain(x), dense(x), atol=1e-12)
    assert sum(p.numel() for p in chain.parameters()) == sum(stage.parameters for stage in stages)


def test_costs_are_those_of_the_formulas_and_linear_in_the_rank() -> None:
    spec = LayerSpec(8, 12, (3, 3), (2, 1), (1, 1), (1, 1), bias=False)
    size, rank = (10, 9), 5
    assert spec.out_size(size) == (5, 9)
    cp3 = rank * 8 * 90 + rank * 9 * 45 + rank * 12 * 45
    cp4 = rank * 8 * 90 + rank * 3 * 45 + rank * 3 * 45 + rank * 12 * 45
    assert chain_multiplies(METHODS["cp3"].stages(spec, (rank,)), size) == cp3
    assert chain_multiplies(METHODS["cp4"].stages(spec, (rank,)), size) == cp4
    layer = Layer("conv", "Conv2d", spec, (size,), 4)
    for method in METHOD_NAMES:
        constant, slope = coefficients(layer, METHODS[method], "multiplies")
        assert constant + slope * 17 == layer_cost(layer, Choice(method, (17,))).multiplies


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 2)])
def test_the_largest_rank_is_the_larger_break_even(method: str, stride: tuple[int, int]) -> None:
    layer = Layer("conv", "Conv2d", LayerSpec(16, 24, (3, 3), stride, (1, 1), (1, 1)), ((8, 8),), 4)
    top = METHODS[method].max_rank(layer.spec)
    assert top == break_even(layer, method, "bytes") == useful_rank(layer, method)
    assert break_even(layer, method, "multiplies") <= top
    dense = layer_cost(layer, None).parameters
    window = 9 if method == "cp3" else 6
    assert layer_cost(layer, Choice(method, top)).parameters < dense
    assert layer_cost(layer, Choice(method, top)).parameters + 24 + 16 + window >= dense


def test_error_fits_nothing_and_does_not_depend_on_what_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(CONV.weight_shape, generator=torch.Generator().manual_seed(0))
    fitted = METHODS["cp3"].factorize(CONV, weight)
    (top,) = METHODS["cp3"].max_rank(CONV)
    fits: list[int] = []
    monkeypatch.setattr(cp, "sweep", lambda *args, **_: fits.append(1))
    before = [fitted.error((r,)) for r in range(1, top + 1)]
    assert not fits
    assert before == sorted(before, reverse=True)
    monkeypatch.undo()
    for rank in (20, 10):
        fitted.weights((rank,))
    assert [fitted.error((r,)) for r in range(1, top + 1)] == before


def test_a_rank_means_the_same_factors_whatever_was_fitted_before() -> None:
    weight = torch.randn(CONV.weight_shape, generator=torch.Generator().manual_seed(0))
    one, other = (METHODS["cp3"].factorize(CONV, weight) for _ in range(2))
    for rank in (3, 20, 11):
        other.weights((rank,))
    assert all(torch.equal(a, b) for a, b in zip(one.weights((12,)), other.weights((12,)), strict=True))


def test_wide_layers_are_swept_in_float32_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(CONV.weight_shape, generator=torch.Generator().manual_seed(0))
    exact = (weight - METHODS["cp3"].factorize(CONV, weight).reconstruct((10,))).norm()
    monkeypatch.setattr(cp, "WIDE", 1)
    quick = METHODS["cp3"].factorize(CONV, weight)
    assert float((weight - quick.reconstruct((10,))).norm()) == pytest.approx(float(exact), rel=0.05)
    assert quick.weights((10,))[0].dtype == torch.float32


def test_a_degenerate_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.eye(12, 2, dtype=torch.float64).unbind(1)
    c, d = torch.eye(8, 2, dtype=torch.float64).unbind(1)
    e, f = torch.eye(9, 2, dtype=torch.float64).unbind(1)
    border = sum(torch.einsum("i,j,k->ijk", *t) for t in ((a, c, f), (a, d, e), (b, c, e)))
    assert isinstance(border, Tensor)
    n = 1000  # the larger, the closer to the border, and the more the two components cancel
    large = [torch.stack(pair, 1) for pair in ((n * a + b, -n * a), (c + d / n, c), (e + f / n, e))]
    assert torch.allclose(compose(large), border, atol=3 / n)
    with pytest.raises(InvalidModel, match=r"rank 2 degenerates.*choose another rank"):
        cp.check_growth(border, large)
    fitted = METHODS["cp3"].factorize(CONV, border.reshape(CONV.weight_shape))
    fitted.weights((3,))
    monkeypatch.setattr(cp, "GROWTH_LIMIT", 2.0)
    with pytest.raises(InvalidModel, match="degenerates"):
        METHODS["cp3"].factorize(CONV, border.reshape(CONV.weight_shape)).weights((2,))


def test_balancing_keeps_the_components_and_zeros_stay_finite() -> None:
    factors = [
        torch.randn(n, 4, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * n for n in (5, 6, 7)
    ]
    even = balanced(factors)
    assert torch.allclose(compose(even), compose(factors))
    assert torch.allclose(even[0].norm(dim=0), even[2].norm(dim=0))
    fitted = METHODS["cp4"].factorize(CONV, torch.zeros(CONV.weight_shape))
    assert all((w == 0).all() for w in fitted.weights((3,)))
    assert fitted.error((3,)) == 0


@pytest.mark.parametrize("method", ["cp3", "cp4"])
def test_what_does_not_fit_is_told(method: str) -> None:
    obstacles = {
        "a matrix": (LayerSpec(8, 8), LayerSpec(8, 8, (1, 1), (1, 1), (0, 0), (1, 1))),
        "groups": (LayerSpec(8, 8, (3, 3), (1, 1), (0, 0), (1, 1), groups=2),),
        "rank 1": (LayerSpec(1, 1, (2, 2), (1, 1), (0, 0), (1, 1)),),
    }
    for words, specs in obstacles.items():
        for spec in specs:
            why = METHODS[method].obstacle(spec)
            assert why is not None
            assert words in why or (method == "cp4" and not spec.kernel)
    assert METHODS[method].obstacle(CONV) is None
    assert cp_max_rank(LayerSpec(1, 1, (2, 2), (1, 1), (0, 0), (1, 1)), 4) == 0
    with pytest.raises(InvalidModel, match="NaN"):
        METHODS[method].factorize(CONV, torch.full(CONV.weight_shape, float("nan")))
    one_dimensional = LayerSpec(8, 8, (3,), (1,), (1,), (1,))
    assert METHODS["cp3"].obstacle(one_dimensional) is None
    assert METHODS["cp4"].obstacle(one_dimensional) is not None


def test_new_methods_leave_the_defaults_alone() -> None:
    for spec, default in ((CONV, "spatial_svd"), (LayerSpec(8, 4), "svd")):
        assert Layer("x", "", spec, ((4, 4) if spec.kernel else (),), 4).methods[0].name == default
