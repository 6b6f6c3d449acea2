"""Costs: closed forms against the chains themselves, worked examples, break-even, presets, and what a plan may say."""

from dataclasses import replace
from itertools import product
from math import prod

import pytest
import torch
from awkward_layers import AWKWARD, BY_CHAIN, conv
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plan_cost import WIDTHS, vgg16
from lowrank_core.errors import InvalidPlan
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.profile import Layer, ModelProfile, Rest, Skipped
from lowrank_core.plans.cost import (
    FITTED,
    Cost,
    amounts,
    break_even,
    chain_cost,
    check_plan,
    coefficients,
    dense_cost,
    layer_cost,
    plan_cost,
    rank_at,
    tried_rank,
    useful_rank,
)
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.plans.uniform import uniform_plan

QUANTITIES = ("parameters", "bytes", "multiplies")
every_chain = pytest.mark.parametrize(("method", "awkward"), BY_CHAIN, ids=lambda v: v.name)


def layer(spec: LayerSpec, size=(), name="layer", itemsize=4) -> Layer:
    return Layer(name, spec.op, spec, (size,), itemsize)


def all_ranks(method, spec):
    return product(*(range(1, top + 1) for top in method.max_rank(spec)))


SEED_CONV = conv(256, 256, (3, 3), padding=(1, 1), bias=False)


@pytest.mark.parametrize(
    ("spec", "choice", "parameters"),
    [
        (LayerSpec(1000, 1000, bias=False), None, 1_000_000),
        (LayerSpec(1000, 1000, bias=False), Choice("svd", (100,)), 200_000),
        (LayerSpec(8192, 128, bias=False), Choice("svd", (64,)), 532_480),
        (SEED_CONV, None, 589_824),
        (SEED_CONV, Choice("tucker2", (16, 16)), 10_496),  # 12,288 counts factors of the window that are not there
        (SEED_CONV, Choice("svd", (10,)), 10 * (256 * 9 + 256)),
        (SEED_CONV, Choice("spatial_svd", (10,)), 10 * (256 * 3 + 256 * 3)),
        (conv(64, 96, (3, 5)), Choice("tucker2", (16, 8)), 64 * 8 + 8 * 16 * 15 + 16 * 96 + 96),
    ],
)
def test_worked_parameters(spec, choice, parameters):
    cost = layer_cost(layer(spec, (8, 8) if spec.kernel else ()), choice)
    assert (cost.parameters, cost.bytes) == (parameters, 4 * parameters)


def test_worked_costs_of_the_8192_by_128_layer():
    fc = layer(LayerSpec(8192, 128, bias=False))
    assert break_even(fc, "svd", "bytes") == break_even(fc, "svd", "multiplies") == (126,)
    assert round(100 * layer_cost(fc, Choice("svd", (64,))).bytes / dense_cost(fc).bytes, 1) == 50.8
    assert layer_cost(fc, Choice("svd", (63,))).bytes / dense_cost(fc).bytes < 0.5


@pytest.mark.parametrize(
    ("spec", "rank"),
    [
        (LayerSpec(1000, 1000), 499),  # 500 costs as much as dense
        (LayerSpec(8192, 128), 126),
        (LayerSpec(10, 4, bias=False), 2),
        (LayerSpec(2, 2), 0),
        (LayerSpec(9, 1), 0),
    ],
)
def test_worked_break_even(spec, rank):
    assert break_even(layer(spec), "svd", "bytes") == (rank,)


def test_a_strided_1x1_is_cheapest_with_the_stride_in_its_first_factor():
    spec = conv(64, 128, (1, 1), stride=(2, 2), bias=False)
    assert layer_cost(layer(spec, (14, 10)), Choice("svd", (16,))).multiplies == 16 * (64 + 128) * 7 * 5


def test_vgg16_is_counted_by_the_products_own_numbers():
    total = plan_cost(vgg16())
    assert total.parameters == 138_357_544
    assert total.bytes == 4 * 138_357_544
    assert total.multiplies == 15_470_264_320  # 15.47 G at 224x224


def test_vgg16_is_counted_as_pytorch_counts_it():
    modules: list[nn.Module] = []
    parts = iter(vgg16().layers)
    for width in WIDTHS:
        modules += [next(parts).spec.build(device="meta"), nn.ReLU()] if width else [nn.MaxPool2d(2)]
    modules += [nn.Flatten(), *(part.spec.build(device="meta") for part in parts)]
    with FlopCounterMode(display=False) as counter:
        assert nn.Sequential(*modules)(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)
    assert plan_cost(vgg16()).multiplies == counter.get_total_flops() // 2


@every_chain
def test_coefficients_give_the_exact_cost_of_every_rank(method, awkward):
    """The browser computes with these alone."""
    called_twice = replace(awkward.layer, in_sizes=(awkward.size, tuple(n + 3 for n in awkward.size)))
    menu = [Choice(method.name, rank) for rank in all_ranks(method, awkward.spec)]
    costs = {choice: layer_cost(called_twice, choice) for choice in (None, *menu)}
    for quantity in QUANTITIES:
        c = coefficients(called_twice, method, quantity)
        for choice in menu:
            rank = choice.rank
            closed = c[0] + c[1] * rank[0]
            if len(rank) == 2:
                closed += c[2] * rank[1] + c[3] * rank[0] * rank[1]
            assert closed == getattr(costs[choice], quantity), (quantity, rank)
        assert amounts(called_twice, list(costs), quantity) == [getattr(cost, quantity) for cost in costs.values()]


@every_chain
def test_break_even_is_that_of_brute_force(method, awkward):
    top, dense = method.max_rank(awkward.spec), dense_cost(awkward.layer)
    costs = {
        rank: chain_cost(method.stages(awkward.spec, rank), awkward.layer) for rank in all_ranks(method, awkward.spec)
    }
    path = [rank_at(top, step / max(top)) for step in range(1, max(top) + 1)]
    for quantity in ("bytes", "multiplies"):
        cheaper = {rank for rank, cost in costs.items() if getattr(cost, quantity) < getattr(dense, quantity)}
        found = break_even(awkward.layer, method.name, quantity)
        assert found == max(cheaper.intersection(path), key=sum, default=(0,) * len(top))
        if len(top) == 1:
            assert found == max(cheaper, default=(0,))
        assert prod(useful_rank(awkward.layer, method.name)) >= prod(found)


@pytest.mark.parametrize(
    ("top", "share", "rank"),
    [
        ((64, 32), 0.5, (32, 16)),
        ((64, 32), 0.0, (1, 1)),
        ((64, 32), 1.0, (64, 32)),
        ((7,), 0.01, (1,)),
        ((3,), 2.0, (3,)),
    ],
)
def test_rank_at(top, share, rank):
    assert rank_at(top, share) == rank


def test_a_rank_that_is_a_fit_of_its_own_is_tried_as_far_as_fits_take_seconds():
    """A convolution of torchcrepe's full network: CP pays up to a rank whose fits take half an hour each."""
    wide = layer(conv(1024, 128, (64, 1), bias=False), (512, 1))
    assert useful_rank(wide, "cp3") > (6000,)
    assert tried_rank(wide, "cp3") == (FITTED,)
    assert tried_rank(wide, "svd") == useful_rank(wide, "svd")
    assert tried_rank(wide, "tucker2") == useful_rank(wide, "tucker2")
    few = layer(conv(128, 128, (3, 3), bias=False), (8, 8))
    assert tried_rank(few, "cp3") == useful_rank(few, "cp3")


def test_costs_add_up():
    one, two = Cost(1, 2, 3, 4), Cost(10, 20, 30, 40)
    assert one + two == sum([one, two]) == Cost(11, 22, 33, 44)
    assert sum([], Cost()) == Cost()


def test_a_layer_called_twice_is_stored_once():
    once = layer(conv(4, 8, (3, 3)), (8, 8))
    twice = replace(once, in_sizes=((8, 8), (5, 4)))
    assert dense_cost(twice).parameters == dense_cost(once).parameters
    assert dense_cost(twice).multiplies == 4 * 8 * 9 * (36 + 6)


@pytest.fixture(scope="module")
def profile() -> ModelProfile:
    """All awkward layers in one network, with a rest; 'dead' is skipped."""
    layers = tuple(awkward.layer for awkward in AWKWARD if awkward.layer.methods)
    return ModelProfile("sha256:awkward", layers, (Skipped("dead", "Linear", "it never ran"),), Rest(100, 400, 5, 0))


def test_a_plan_costs_its_layers_and_the_rest(profile):
    plan = RankPlan.of(profile.fingerprint, {"3x5": Choice("tucker2", (3, 2)), "linear": Choice("svd", (2,))})
    by_hand = Cost(100, 400, 5) + sum(layer_cost(each, plan.get(each.name)) for each in profile.layers)
    assert plan_cost(profile, plan) == by_hand
    assert plan_cost(profile, RankPlan(profile.fingerprint)) == plan_cost(profile)


@pytest.mark.parametrize("quantity", ["bytes", "multiplies"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("make", ["awkward", "vgg16"])
def test_uniform_plan_keeps_its_share(make, share, quantity, request):
    network = vgg16() if make == "vgg16" else request.getfixturevalue("profile")
    plan = uniform_plan(network, share, quantity)
    check_plan(network, plan)
    dense, cost = (getattr(plan_cost(network, p), quantity) for p in (None, plan))
    smallest = uniform_plan(network, 0.0, quantity)
    assert all(set(choice.rank) == {1} for _, choice in smallest.choices)
    assert cost <= max(share * dense, getattr(plan_cost(network, smallest), quantity))
    if make == "vgg16" and 0.02 < share < 0.9:
        assert cost > (share - 0.01) * dense  # and it is about that share


def test_uniform_plan_leaves_dense_what_would_cost_more():
    """A stride of four across: the first factor works at full width, so no rank saves multiplies."""
    spec = conv(2, 2, (2, 2), stride=(1, 4), bias=False)
    network = ModelProfile("f", (layer(spec, (9, 16)),), (), Rest(0, 0, 0, 0))
    assert uniform_plan(network, 0.5, "multiplies").choices == ()
    assert uniform_plan(network, 0.5, "bytes").choices == (("layer", Choice("spatial_svd", (1,))),)


def test_uniform_plan_leaves_locked_and_incompressible_layers_dense(profile):
    plan = uniform_plan(profile, 0.5, locked=["linear"])
    assert plan.get("linear") is None
    assert plan.get("linear-one-out") is None
    assert plan.get("3x5") is not None


def test_check_plan_tells_five_faults_at_once_and_how_many_more(profile):
    plan = RankPlan.of(
        profile.fingerprint,
        {
            "3x5": Choice("svd", (999,)),
            "same": Choice("svd", (0,)),
            "linaer": Choice("svd", (1,)),
            "linear": Choice("tucker2", (1, 1)),
            "conv1d": Choice("magic", (1,)),
            "reflect": Choice("tucker2", (1,)),
            "dead": Choice("svd", (1,)),
            "wide": Choice("svd", (1,)),
        },
    )
    with pytest.raises(InvalidPlan) as caught:
        check_plan(profile, plan)
    faults = (
        "layer '3x5': rank [999] is outside 1..[8] of method 'svd'",
        "layer 'same': rank [0] is outside",
        "no layer 'linaer'; did you mean 'linear'?",
        "layer 'linear': tucker2 does not fit",
        "layer 'conv1d': unknown method 'magic'; choose one of",
        "layer 'reflect': method 'tucker2' takes 2 rank(s) (out, in), but got [1]",
        "layer 'dead' cannot be compressed (it never ran)",
    )
    assert sum(fault in str(caught.value) for fault in faults) == 5
    assert str(caught.value).endswith("; and 2 more faults.")
    assert "'wide'" not in str(caught.value)


def test_a_plan_for_another_model_is_refused(profile):
    with pytest.raises(InvalidPlan, match=r"made for the model sha256:other.*this model is sha256:awkward"):
        check_plan(profile, RankPlan("sha256:other"))


def test_a_rank_that_saves_nothing_is_a_warning(profile):
    plan = RankPlan.of(profile.fingerprint, {"linear": Choice("svd", (7,)), "wide": Choice("svd", (1,))})
    assert check_plan(profile, plan) == ("layer 'linear': rank [7] saves neither bytes nor multiplies",)
