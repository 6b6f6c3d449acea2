"""One suite for every decomposition: a method is tested by being registered."""

from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from math import prod

import pytest
import torch
from awkward_layers import AWKWARD, BY_CHAIN, BY_FORM, FORMS, PAIRS, Awkward, Pair, conv, filled, seeded
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.algebra import cp
from lowrank_core.errors import InvalidModel
from lowrank_core.layers.spec import LayerSpec, Rank, chain_multiplies, inputs_first
from lowrank_core.methods import METHODS, Factorization, Method, register
from lowrank_core.store.room import Room

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.usefixtures("one_thread"),
]

EXACT = 1e-9  # relative, exact algebra in float64
SWEEPS = cp.SWEEPS


@pytest.fixture(autouse=True)
def few_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CP takes a second to its end; that chain, weight, count and bound belong together holds from the start."""
    monkeypatch.setattr(cp, "SWEEPS", 10)


@pytest.fixture
def all_sweeps(few_sweeps: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "SWEEPS", SWEEPS)


NESTED = [(m, a) for m, a in BY_FORM if m.nested]
AWARE = [(m, a) for m, a in BY_FORM if m.data_aware]


def each(pairs: list[Pair]) -> pytest.MarkDecorator:
    """A test of each of these methods with its layer; a CP takes a second, so the quick tests see one of each kind."""
    iterates = {(m, a) for m, a in pairs if m.name.startswith("cp") and a.name != "3x5"}
    cases = [pytest.param(*pair, marks=[pytest.mark.slow] if pair in iterates else []) for pair in pairs]
    return pytest.mark.parametrize(("method", "awkward"), cases, ids=lambda v: v.name)


every_method = pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)


@cache
def dense_layer(awkward: Awkward) -> nn.Module:
    return filled(awkward.spec.build(dtype=torch.float64))


@cache
def data_rows(spec: LayerSpec) -> Tensor:
    """(groups, P, n) correlated rows of unfolded input, of unequal size, and more of them than unknowns."""
    n = spec.in_channels // spec.groups * prod(spec.kernel)
    mixing = seeded((spec.groups, n, n), 1) / n**0.5 + torch.diag(torch.linspace(0.5, 2, n, dtype=torch.float64))
    return seeded((spec.groups, 3 * n, n)) @ mixing


def fit(method: Method, spec: LayerSpec, weight: Tensor) -> Factorization:
    """Factors, with the second moment of `data_rows` where the method makes use of it."""
    rows = data_rows(spec)
    moment = rows.mT @ rows / rows.shape[1]
    return method.factorize(spec, weight, moment if method.data_aware else None)


@cache
def factorized(method: Method, awkward: Awkward) -> Factorization:
    return fit(method, awkward.spec, dense_layer(awkward).weight.detach())


def some_ranks(method: Method, spec: LayerSpec) -> list[Rank]:
    """The smallest, a middle and the largest rank of each axis, in every combination."""
    return list(product(*({1, (top + 1) // 2, top} for top in method.max_rank(spec))))


def chain(stages: tuple[LayerSpec, ...], weights: tuple[Tensor, ...], bias: Tensor | None) -> nn.Sequential:
    """The chain of modules with these weights; only its last stage may have a bias."""
    parts = [stage.build(dtype=weights[0].dtype) for stage in stages]
    assert [part.bias is not None for part in parts] == [False] * (len(parts) - 1) + [bias is not None]
    with torch.no_grad():
        for part, weight in zip(parts, weights, strict=True):
            assert part.weight.shape == weight.shape
            assert weight.is_contiguous()
            part.weight.copy_(weight)
        if bias is not None:
            parts[-1].bias.copy_(bias)
    return nn.Sequential(*parts).eval()


def weight_of(stages: tuple[LayerSpec, ...], weights: tuple[Tensor, ...], spec: LayerSpec) -> Tensor:
    """The weight that a chain amounts to, from its answers to unit impulses; stages of stride 1 without padding."""
    window = (spec.in_channels, *((1,) * len(spec.kernel) if spec.transposed else spec.kernel))
    impulses = torch.eye(torch.Size(window).numel(), dtype=torch.float64).reshape(-1, *window)
    with torch.no_grad():
        answers = chain(stages, weights, None)(impulses)
    if spec.transposed:
        full, size = answers, spec.out_channels // spec.groups
        blocks = (rows[:, g * size : (g + 1) * size] for g, rows in enumerate(full.chunk(spec.groups)))
        return torch.cat(list(blocks))
    full = answers.reshape(*window, spec.out_channels).movedim(-1, 0)
    rows = full.chunk(spec.groups)
    columns = spec.in_channels // spec.groups
    return torch.cat([row[:, g * columns : (g + 1) * columns] for g, row in enumerate(rows)])


def distance(weight: Tensor, other: Tensor) -> float:
    return float((weight - other).norm() / weight.norm())


def on_data(spec: LayerSpec, weight: Tensor) -> Tensor:
    """What a weight makes of `data_rows`, so that its norm is that of the outputs."""
    return data_rows(spec) @ matrices(spec, weight).mT


def matrices(spec: LayerSpec, weight: Tensor) -> Tensor:
    """(groups, out / groups, in / groups * window)"""
    taps = inputs_first(weight, spec.groups) if spec.transposed else weight
    return taps.reshape(spec.groups, spec.out_channels // spec.groups, -1)


def loss(method: Method, spec: LayerSpec, weight: Tensor, other: Tensor) -> float:
    """What `error` speaks of: the distance of the weights, or of their outputs on the data."""
    return distance(on_data(spec, weight), on_data(spec, other)) if method.data_aware else distance(weight, other)


@each([pair for pair in PAIRS if pair in BY_CHAIN or pair in BY_FORM])
def test_chain_is_the_reconstructed_weight(method, awkward):
    """At several ranks; at one where another layer with a weight of the same form is tried at several."""
    layer, factorization, x = dense_layer(awkward), factorized(method, awkward), awkward.inputs(2)
    middle = tuple((top + 1) // 2 for top in method.max_rank(awkward.spec))
    for rank in some_ranks(method, awkward.spec) if awkward.name in FORMS else [middle]:
        replaced = awkward.spec.build(dtype=torch.float64).eval()
        replaced.load_state_dict(layer.state_dict() | {"weight": factorization.reconstruct(rank)})
        with torch.no_grad():
            expected = replaced(x)
            got = chain(method.stages(awkward.spec, rank), factorization.weights(rank), layer.bias)(x)
        assert got.shape == expected.shape
        assert distance(expected, got) < EXACT, rank


@each(NESTED)
def test_full_rank_is_the_layer(method, awkward):
    layer, top, x = dense_layer(awkward), method.max_rank(awkward.spec), awkward.inputs(2)
    factorization = factorized(method, awkward)
    with torch.no_grad():
        got = chain(method.stages(awkward.spec, top), factorization.weights(top), layer.bias)(x)
        assert distance(layer(x), got) < EXACT
    assert factorization.error(top) < 1e-7  # the root of rounding, where an error is the root of an energy


@each(BY_FORM)
def test_error_is_the_measured_distance_or_bounds_it(method, awkward):
    weight, factorization = dense_layer(awkward).weight.detach(), factorized(method, awkward)
    for rank in some_ranks(method, awkward.spec):
        measured = loss(method, awkward.spec, weight, factorization.reconstruct(rank))
        error = factorization.error(rank)
        if len(method.axes) == 2:  # at most the root of two too large: each axis alone loses no more than both together
            slack = EXACT if method.data_aware else 1e-12  # of what is relative to the outputs, and they are solved for
            assert measured <= error * (1 + EXACT) + slack, rank
            assert error <= 2**0.5 * measured + 1e-7, rank
        elif not method.nested:  # that of the start in closed form, from which the fit goes on
            assert measured <= error * (1 + EXACT) + 1e-3, rank
        else:
            assert error == pytest.approx(measured, rel=EXACT, abs=1e-7 if method.data_aware else 1e-12), rank


@each(BY_CHAIN)
def test_counts_are_those_of_the_built_chain(method, awkward):
    for rank in some_ranks(method, awkward.spec):
        stages = method.stages(awkward.spec, rank)
        built = nn.Sequential(*(stage.build(device="meta") for stage in stages))
        with FlopCounterMode(display=False) as counter:
            built(awkward.inputs(1, device="meta", dtype=torch.float32))
        assert chain_multiplies(stages, awkward.size) == counter.get_total_flops() // 2, rank
        assert sum(stage.parameters for stage in stages) == sum(p.numel() for p in built.parameters()), rank
        assert sum(w.numel() for w in factorized(method, awkward).weights(rank)) == sum(s.weights for s in stages), rank


@each(BY_FORM)
@pytest.mark.usefixtures("all_sweeps")
def test_planted_rank_is_found(method, awkward):
    spec = replace(awkward.spec, bias=False, padding_mode="zeros")
    if spec.kernel:
        ones = (1,) * len(spec.kernel)
        spec = replace(spec, stride=ones, dilation=ones, padding=(0,) * len(ones))
        spec = replace(spec, output_padding=(0,) * len(ones)) if spec.transposed else spec
    planted = tuple(min(3, max(1, top - 1)) for top in method.max_rank(spec))
    stages = method.stages(spec, planted)
    found = 1e-6 if method.nested else 1e-3
    for first_seed in (0,) if method.nested else (0, 6, 12):  # what iterates rests in a local minimum now and then
        weights = tuple(seeded(stage.weight_shape, seed) for seed, stage in enumerate(stages, first_seed))
        weight = weight_of(stages, weights, spec)
        factorization = fit(method, spec, weight)

        def lost(rank, made=factorization, weight=weight):
            return made.error(rank) if method.nested else loss(method, spec, weight, made.reconstruct(rank))

        for axis, rank in enumerate(planted):
            if rank > 1:
                smaller = tuple(r - (i == axis) for i, r in enumerate(planted))
                assert lost(smaller) > 1e-2
        if (error := lost(planted)) < found:
            break
    assert error < found


@each(NESTED)
def test_error_never_grows_with_the_rank(method, awkward):
    factorization, top = factorized(method, awkward), method.max_rank(awkward.spec)
    for axis, largest in enumerate(top):
        errors = [factorization.error((*top[:axis], r, *top[axis + 1 :])) for r in range(1, largest + 1)]
        assert all(later <= earlier for earlier, later in pairwise(errors))
        assert all(0 <= error <= 1 for error in errors)


@each(NESTED)
def test_spectra_are_descending_and_hold_all_energy(method, awkward):
    weight, factorization = dense_layer(awkward).weight.detach(), factorized(method, awkward)
    assert tuple(map(len, factorization.spectra)) == method.max_rank(awkward.spec)
    for spectrum in factorization.spectra:
        assert spectrum.dtype == torch.float64
        assert (spectrum >= 0).all() if method.data_aware else (spectrum.diff() <= 0).all()
        energy = on_data(awkward.spec, weight).square().sum() / data_rows(awkward.spec).shape[1]
        total = energy.sqrt() if method.data_aware else weight.norm()
        assert float(spectrum.norm()) == pytest.approx(float(total), rel=1e-7 if method.data_aware else EXACT)


def one_stack(method: Method, spec: LayerSpec) -> bool:
    """Whether the channels between the stages are one stack, the most important first."""
    return len(method.axes) == 1 and method.stages(spec, (1,))[0].groups == 1


@each([(m, a) for m, a in NESTED if one_stack(m, a.spec)])
def test_a_smaller_rank_is_a_slice(method, awkward):
    factorization, (top,) = factorized(method, awkward), method.max_rank(awkward.spec)
    stages = method.stages(awkward.spec, (1,))

    def outputs_first(rank: int) -> list[Tensor]:
        weights = zip(stages, factorization.weights((rank,)), strict=True)
        return [inputs_first(w, stage.groups) if stage.transposed else w for stage, w in weights]

    first, last = outputs_first(top)
    for rank in {1, (top + 1) // 2, top}:
        small_first, small_last = outputs_first(rank)
        torch.testing.assert_close(small_first, first[:rank], rtol=0, atol=0)
        if not method.data_aware:  # there, each rank has the last factor that answers best on the data
            torch.testing.assert_close(small_last, last[:, :rank], rtol=0, atol=0)


@pytest.mark.parametrize("awkward", [a for a in AWKWARD if a.name in FORMS and a.spec.groups == 1], ids=str)
def test_svd_is_best_at_every_rank(awkward):
    """Eckart and Young (1936), with the singular values of torch.linalg."""
    matrix = dense_layer(awkward).weight.detach().flatten(1)
    tails = torch.linalg.svdvals(matrix).square().flip(0).cumsum(0).flip(0).sqrt()
    factorization = factorized(METHODS["svd"], awkward)
    torch.testing.assert_close(factorization.spectra[0], torch.linalg.svdvals(matrix), rtol=EXACT, atol=1e-12)
    for rank in range(1, len(tails)):
        left = matrix - factorization.reconstruct((rank,)).flatten(1)
        assert float(left.norm()) == pytest.approx(float(tails[rank]), rel=EXACT)


def plain_hosvd(weight: Tensor, rank: Rank) -> Tensor:
    """Both bases from the whole weight, independently (De Lathauwer et al., 2000)."""
    out, inner = (torch.linalg.svd(weight.movedim(axis, 0).flatten(1))[0][:, :r] for axis, r in enumerate(rank))
    return torch.einsum("oi...,op,iq->pq...", weight, out @ out.T, inner @ inner.T)


@pytest.mark.parametrize(
    "awkward", [a for m, a in BY_FORM if m.name == "tucker2" and a.spec.groups == 1 and not a.spec.transposed], ids=str
)
def test_tucker_variants_are_ordered(awkward):
    """Plain HOSVD, then sequential HOSVD, then HOOI: none is worse than the one before."""
    weight = dense_layer(awkward).weight.detach()
    for rank in some_ranks(METHODS["tucker2"], awkward.spec):
        plain = distance(weight, plain_hosvd(weight, rank))
        sequential = distance(weight, factorized(METHODS["tucker2"], awkward).reconstruct(rank))
        hooi = distance(weight, factorized(METHODS["tucker2_hooi"], awkward).reconstruct(rank))
        assert sequential <= plain * (1 + EXACT) + 1e-12, rank
        assert hooi <= sequential * (1 + EXACT) + 1e-12, rank


@pytest.mark.parametrize("name", ["tucker2", "tucker2_hooi"])
def test_bases_stand_in_the_room_of_their_memo(name):
    """Walking over all ranks of a large layer must not fill the memory."""
    weight, spec = seeded((6, 4, 3, 5)), conv(4, 6, (3, 5))
    walked, fresh = (METHODS[name].factorize(spec, weight) for _ in range(2))
    room = Room(limit_bytes=900)
    walked.memo.kept = room.part()
    for rank in [(r, 2) for r in range(1, 7)]:
        walked.reconstruct(rank)
    assert 0 < room.bytes <= 900
    assert torch.equal(walked.reconstruct((3, 2)), fresh.reconstruct((3, 2)))


def test_sequential_bases_are_better_than_plain_ones():
    """Not only as good: of a random kernel they lose clearly less, for one truncation follows from the other."""
    weight, spec = seeded((8, 12, 3, 5)), conv(12, 8, (3, 5))
    sequential = distance(weight, METHODS["tucker2"].factorize(spec, weight).reconstruct((2, 3)))
    assert sequential < 0.995 * distance(weight, plain_hosvd(weight, (2, 3)))


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_narrow_weights_give_float32_factors(method, dtype):
    awkward = next(a for a in AWKWARD if method.obstacle(a.spec) is None)
    weight = dense_layer(awkward).weight.detach().to(dtype)
    factorization = fit(method, awkward.spec, weight)
    top = method.max_rank(awkward.spec)
    assert {w.dtype for w in factorization.weights(top)} == {torch.float32}
    if method.nested:
        assert distance(weight.double(), factorization.reconstruct(top).double()) < 1e-6  # float32 rounding


@every_method
def test_a_weight_of_zeros_has_finite_factors(method):
    awkward = next(a for a in AWKWARD if method.obstacle(a.spec) is None)
    factorization = fit(method, awkward.spec, torch.zeros(awkward.spec.weight_shape))
    for rank in some_ranks(method, awkward.spec):
        assert all(torch.isfinite(w).all() for w in factorization.weights(rank))
        assert not factorization.reconstruct(rank).any()
        assert factorization.error(rank) == 0


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(method, bad):
    awkward = next(a for a in AWKWARD if method.obstacle(a.spec) is None)
    weight = torch.ones(awkward.spec.weight_shape)
    weight[0, 0] = bad
    with pytest.raises(InvalidModel, match="NaN or Inf"):
        fit(method, awkward.spec, weight)


def whole(spec: LayerSpec) -> bool:
    """Whether the first factor of an SVD sees the whole window; that of a transposed one sees one input at a time."""
    return not spec.transposed or prod(spec.kernel) == 1


@pytest.mark.parametrize("awkward", [a for m, a in BY_FORM if m.name == "svd_aware" and whole(a.spec)], ids=str)
def test_data_aware_svd_is_best_on_the_data_at_every_rank(awkward):
    """Eckart and Young (1936) for the outputs: no other weight of that rank comes closer."""
    outputs = on_data(awkward.spec, dense_layer(awkward).weight.detach())
    sigma = torch.linalg.svdvals(outputs).square().sum(0)
    factorization = factorized(METHODS["svd_aware"], awkward)
    for rank in range(1, METHODS["svd_aware"].max_rank(awkward.spec)[0]):
        best = float((sigma[rank:].sum() / sigma.sum()).sqrt())
        assert factorization.error((rank,)) == pytest.approx(best, rel=1e-6)


@each(AWARE)
def test_the_last_data_aware_factor_answers_best(method, awkward):
    """No change of the last stage brings the outputs on the data closer: what is left is orthogonal to its inputs."""
    spec, weight = awkward.spec, dense_layer(awkward).weight.detach()
    factorization = factorized(method, awkward)
    for rank in some_ranks(method, spec):
        got = on_data(spec, factorization.reconstruct(rank))
        left = on_data(spec, weight) - got
        assert abs(float((left * got).sum())) < 1e-7 * float(on_data(spec, weight).square().sum()), rank


@each(AWARE)
def test_inputs_that_are_always_zero(method, awkward):
    """Moments of less than full rank, down to none at all: factors are finite and exact where the data is."""
    spec, weight, rows = awkward.spec, dense_layer(awkward).weight.detach(), data_rows(awkward.spec).clone()
    rows[..., ::2] = 0
    exact = method.factorize(spec, weight, rows.mT @ rows).reconstruct(method.max_rank(spec)) - weight
    lost = rows @ matrices(spec, exact).mT
    assert float(lost.norm()) < 1e-5 * float(rows.norm() * weight.norm())
    nothing = method.factorize(spec, weight, torch.zeros_like(rows.mT @ rows))
    assert all(torch.isfinite(w).all() for rank in some_ranks(method, spec) for w in nothing.weights(rank))


@pytest.mark.parametrize(
    ("method", "spec", "reason"),
    [
        ("svd", conv(6, 6, (3, 3), groups=6), "depthwise 3x3"),
        ("spatial_svd", conv(6, 6, (3, 3), groups=6), "depthwise 3x3: rank 1"),
        ("spatial_svd", conv(6, 6, (1, 5)), "kernel 1x5: there is no window"),
        ("spatial_svd", conv(6, 6, (3,)), "Conv1d"),
        ("spatial_svd", LayerSpec(6, 6), "Linear"),
        ("svd_g2", conv(6, 6, (3, 3), groups=6), "depthwise 3x3"),
        ("svd_g4", conv(6, 6, (3, 3)), "6 input channels do not split into 4 equal groups"),
        ("svd_g8", LayerSpec(8, 8), "Linear: its inputs cannot be taken in groups"),
        ("tucker2", conv(6, 6, (5, 7), groups=6), "depthwise 5x7"),
        ("tucker2", conv(6, 6, (1, 1)), "a matrix has one rank"),
        ("tucker2", LayerSpec(6, 6), "Linear: a matrix has one rank"),
    ],
)
def test_obstacles_say_why(method, spec, reason):
    assert reason in METHODS[method].obstacle(spec)


def test_a_strided_1x1_strides_in_its_first_factor():
    first, second = METHODS["svd"].stages(conv(6, 9, (1, 1), stride=(2, 3)), (2,))
    assert (first.stride, second.stride) == ((2, 3), (1, 1))


def test_every_layer_of_this_suite_has_a_default_method():
    assert {m.name for m, _ in PAIRS} == set(METHODS)
    fitting = {a.name for _, a in PAIRS}
    assert {a.name for a in AWKWARD} - fitting == {"depthwise-3x3"}


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'svd' is registered twice"):
        register(METHODS["svd"])
