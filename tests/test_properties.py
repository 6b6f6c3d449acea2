"""What holds for every layer, rank, plan and table, tried on drawn ones; the contract suites go through a list."""

from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.layers.spec import LayerSpec, build_part
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.methods import METHODS, Method
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import break_even, chain_cost, dense_cost, rank_at, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan, read_plan

KINDS = {
    "svd": ("linear", "table", "conv", "up"),
    "spatial_svd": ("conv", "up"),
    "tucker2": ("conv", "up"),
    "cp3": ("conv",),
    "cp4": ("conv",),
    "gate_tucker": ("gates",),
    "gate_cp": ("gates",),
}
"""The layers that are drawn for a method: most of them have no obstacle."""

FACTORISES = [method for method in METHODS.values() if method.name in KINDS]
by_method = pytest.mark.parametrize("method", FACTORISES, ids=[method.name for method in FACTORISES])
unfit = [HealthCheck.filter_too_much, HealthCheck.too_slow]  # few drawn layers fit some methods
quick = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=unfit)

names = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
small = st.integers(1, 4)


@st.composite
def layers(draw: st.DrawFn, method: Method) -> Layer:
    """A Linear, a table, a recurrent weight or a convolution, of any stride, groups and direction."""
    inputs, outputs, biased = draw(st.integers(1, 24)), draw(st.integers(1, 24)), draw(st.booleans())
    kind = draw(st.sampled_from(KINDS[method.name]))
    if kind == "table":
        return Layer("x", "", LayerSpec(inputs, outputs, bias=False, table=True), ((5,),), 4)
    if kind in ("linear", "gates"):
        gates = draw(st.sampled_from([3, 4])) if kind == "gates" else 0
        spec = LayerSpec(inputs, outputs * (gates or 1), bias=biased, gates=gates)
        return Layer("x", "", spec, (tuple(draw(st.lists(small, max_size=2))),), 4)
    axes = draw(st.integers(1, 3)) if method.name in ("svd", "tucker2") else 2

    def each(values: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(st.lists(values, min_size=axes, max_size=axes)))

    kernel, stride, dilation = each(st.integers(1, 5)), each(st.integers(1, 3)), each(st.integers(1, 2))
    groups = draw(small)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    spec = LayerSpec(
        in_channels=groups * draw(st.integers(1, 8)),
        out_channels=groups * draw(st.integers(1, 8)),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=biased,
        transposed=kind == "up",
        output_padding=(0,) * axes if kind == "up" else (),
    )
    size = tuple(d * (k - 1) + draw(st.integers(1, 4)) for k, d in zip(kernel, dilation, strict=True))
    assume(all(n > 0 for n in spec.out_size(size)))
    return Layer("x", "", spec, (size,), 4)


def inputs_of(layer: Layer) -> torch.Tensor:
    spec, (size,) = layer.spec, layer.in_sizes
    if spec.table:
        return torch.zeros(1, *size, dtype=torch.long, device="meta")
    shape = (spec.in_channels, *size) if spec.kernel else (*size, spec.in_channels)
    return torch.zeros(1, *shape, device="meta")


@by_method
def test_a_chain_costs_what_its_modules_hold_and_compute(method: Method) -> None:
    @quick
    @given(layer=layers(method), share=st.floats(0, 1))
    def attempt(layer: Layer, share: float) -> None:
        assume(method.obstacle(layer.spec) is None)
        rank = rank_at(method.max_rank(layer.spec), share)
        stages = method.stages(layer.spec, rank)
        built = nn.Sequential(*(build_part(stage.op, stage.arguments, device="meta") for stage in stages))
        dense = layer.spec.build(device="meta")
        with FlopCounterMode(display=False) as counter:
            outputs = built(inputs_of(layer))
        cost = chain_cost(stages, layer)
        assert cost.parameters == sum(p.numel() for p in built.parameters())
        assert cost.multiplies == counter.get_total_flops() // 2
        assert outputs.shape == dense(inputs_of(layer)).shape
        assert dense_cost(layer).parameters == sum(p.numel() for p in dense.parameters())

    attempt()


@by_method
def test_break_even_is_where_it_stops_to_pay(method: Method) -> None:
    @quick
    @given(layer=layers(method), quantity=st.sampled_from(["bytes", "multiplies"]))
    def attempt(layer: Layer, quantity: str) -> None:
        assume(method.obstacle(layer.spec) is None)
        top = method.max_rank(layer.spec)
        path = list(dict.fromkeys(rank_at(top, step / max(top)) for step in range(1, max(top) + 1)))
        dense = getattr(dense_cost(layer), quantity)
        cheaper = [getattr(chain_cost(method.stages(layer.spec, rank), layer), quantity) < dense for rank in path]
        assert cheaper == sorted(cheaper, reverse=True), "a larger rank is cheaper than a smaller one"
        found = break_even(layer, method.name, quantity)
        assert found == (path[sum(cheaper) - 1] if any(cheaper) else (0,) * len(top))
        assert prod(useful_rank(layer, method.name)) >= prod(found)

    attempt()


@by_method
def test_a_larger_rank_never_errs_more_and_the_largest_not_at_all(method: Method) -> None:
    @settings(quick, max_examples=10 if "cp" in method.name else 30)
    @given(layer=layers(method), seed=st.integers(0, 1000))
    def attempt(layer: Layer, seed: int) -> None:
        spec = layer.spec
        assume(method.obstacle(spec) is None and spec.weights <= 2000)
        weight = torch.randn(spec.weight_shape, generator=torch.Generator().manual_seed(seed))
        made, top = method.factorize(spec, weight), method.max_rank(spec)
        errors = [made.error(rank_at(top, step / 6)) for step in range(7)]
        assert all(a >= b - 1e-6 for a, b in pairwise(errors)), errors
        assert min(errors) >= 0
        assert max(errors) <= 1 + 1e-6
        if method.nested:
            assert errors[-1] < 1e-6

    attempt()


@quick
@given(top=st.lists(st.integers(1, 5000), min_size=1, max_size=3), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_larger_share_is_no_smaller_rank(top: list[int], low: float, high: float) -> None:
    low, high = sorted((low, high))
    smaller, larger = rank_at(tuple(top), low), rank_at(tuple(top), high)
    assert all(1 <= a <= b <= most for a, b, most in zip(smaller, larger, top, strict=True))
    assert rank_at(tuple(top), 1.0) == tuple(top)


choices = st.builds(Choice, names, st.lists(st.integers(1, 2**62), min_size=1, max_size=8).map(tuple))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(names, inside, max_size=3),
    max_leaves=8,
)


@quick
@given(
    fingerprint=names,
    chosen=st.dictionaries(names, choices, max_size=5),
    name=names,
    samples=st.none() | st.integers(1, 10**6),
    about=st.dictionaries(names, plain, max_size=3),
)
def test_a_plan_comes_back_from_its_file(
    fingerprint: str, chosen: dict[str, Choice], name: str, samples: int | None, about: dict[str, object]
) -> None:
    plan = RankPlan.of(fingerprint, chosen)
    correction = None if samples is None else Correction(samples=samples, data="d").to_dict()
    text = plan.to_json(model_name=name, correction=correction, provenance=about)
    found = read_plan(text.encode())
    assert (found.plan, found.model_name, found.correction, found.provenance) == (plan, name, correction, about)
    assert found.plan.to_json(model_name=name, correction=correction, provenance=about) == text


ranks = st.lists(st.integers(1, 10**6), min_size=1, max_size=2).map(tuple)
times = st.floats(0, 1e12).map(lambda taken: float(f"{taken:.6g}"))


@quick
@given(
    dense=st.dictionaries(names, times, max_size=4),
    steps=st.dictionaries(st.tuples(names, names), st.dictionaries(ranks, times, min_size=1, max_size=3), max_size=4),
)
def test_a_table_of_microseconds_comes_back_from_its_file(
    dense: dict[str, float], steps: dict[tuple[str, str], dict[tuple[int, ...], float]]
) -> None:
    held = {key: tuple(sorted(found.items())) for key, found in steps.items() if key[1] != "dense"}
    table = LatencyTable(held | {(layer, "dense"): (((), taken),) for layer, taken in dense.items()})
    assert LatencyTable.from_csv(table.to_csv().encode()).steps == table.steps
