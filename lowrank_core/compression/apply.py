"""apply: a compressed copy of a network. The network itself is never touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lowrank_core.compression.free_ranks import take_gauge, tie
from lowrank_core.errors import InvalidModel
from lowrank_core.layers.attention import factored_attention, without_fused_paths
from lowrank_core.layers.computed import copied, with_memory, with_stand_ins
from lowrank_core.layers.experts import factored_experts
from lowrank_core.layers.parts import Chain, Product
from lowrank_core.layers.recurrent import factored
from lowrank_core.layers.spec import LayerSpec, Rank, build_part, sharing
from lowrank_core.networks.profile import (
    Layer,
    ModelProfile,
    bias_at,
    is_whole,
    matrices,
    module_at,
    place_of,
    weight_at,
)
from lowrank_core.plans.cost import check_plan, stages_of
from lowrank_core.plans.plan import RankPlan


def replacement_stages(layer: Layer, plan: RankPlan) -> tuple[LayerSpec, ...]:
    """The chain that stands for a layer under a plan: one stage, the layer itself, where it stays dense."""
    return stages_of(layer.spec, plan.get(layer.name))


def partial_ranks(profile: ModelProfile, plan: RankPlan) -> dict[str, dict[str, Any]]:
    """{recurrent module or attention: {its weight: chain}} of the weights that a plan factorises.

    Of a mixture of experts {parameter that holds their matrices: {number: chain}}.
    A chain is the rank of two Linear layers, or a list of parts {"op", "args"} where it is another.
    """
    chains: dict[str, dict[str, Any]] = {}
    for name, _ in plan.choices:
        layer = profile.layer(name)
        if layer.partial:
            stages = replacement_stages(layer, plan)
            plain = [stage.op for stage in stages] == ["Linear"] * 2
            chain = stages[0].out_channels if plain else [{"op": s.op, "args": s.arguments} for s in stages]
            part = str(layer.expert) if layer.expert is not None else layer.part or layer.parameter
            chains.setdefault(layer.place, {})[part] = chain
    return chains


def restructure(model: nn.Module, profile: ModelProfile, plan: RankPlan) -> nn.Module:
    """A copy of the network with the plan's chains in place, their weights not yet set.

    Raises InvalidPlan where the plan does not fit.
    """
    check_plan(profile, plan)
    memo: dict[int, Any] = {}
    experts = {layer.place: layer for layer in profile.layers if layer.expert is not None}
    stand_ins: dict[str, nn.Module] = {}
    for name, ranks in partial_ranks(profile, plan).items():
        if name in experts:
            layer = experts[name]
            parameter = module_at(model, layer.module).get_parameter(layer.parameter)
            stand_ins[name] = factored_experts(matrices(parameter, layer), layer.transposed_weight, ranks)
            memo[id(parameter)] = parameter  # not copied: it is left out
            continue
        module = module_at(model, name)
        if isinstance(module, nn.MultiheadAttention):
            memo[id(module)] = factored_attention(module, ranks)
            continue
        assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
        memo[id(module)] = factored(module, ranks)

    def built(layer: Layer, stages: tuple[LayerSpec, ...], like: Tensor) -> Chain:
        """The modules of a chain, of the type and in the place of a weight, their own not yet set."""
        old = module_at(model, layer.module)
        parts = [build_part(stage.op, stage.arguments, device="meta", dtype=like.dtype) for stage in stages]
        chain: Chain
        if layer.read:
            stand_ins[place_of(model, layer)] = chain = Product(*parts, turned=layer.transposed_weight)
        else:
            memo[id(old)] = chain = Chain(*parts)
        with_memory(chain.train(old.training), like.device)
        return chain

    for name, _ in plan.choices:
        layer = profile.layer(name)
        if layer.partial:
            continue
        stages, weight = replacement_stages(layer, plan), weight_at(model, layer)
        chain = built(layer, stages, weight)
        for other in layer.tied:
            turned = sharing(stages, other.spec)
            tied = built(other, turned, weight)
            for part, shared in zip(tied, reversed(chain) if turned[0].transposed else chain, strict=True):
                part.register_parameter("weight", shared.get_parameter("weight"))
    if id(model) in memo:
        whole: nn.Module = memo[id(model)]
        return whole
    return without_fused_paths(with_stand_ins(copied(model, memo), stand_ins))


class Weighted(Protocol):
    """What gives the weights of a chain."""

    def weights(self, rank: Rank) -> tuple[Tensor, ...]:
        """One weight per stage of the chain at that rank."""


def apply(
    model: nn.Module, profile: ModelProfile, plan: RankPlan, factors: Callable[[str, str], Weighted]
) -> nn.Module:
    """A copy of the network with every layer of the plan replaced by factors(layer, method), such as a FactorStore."""
    compressed = restructure(model, profile, plan.plain)
    with torch.no_grad():
        for name, choice in plan.choices:
            try:
                weights = factors(name, choice.method).weights(choice.rank)
            except InvalidModel as error:
                raise InvalidModel(f"layer {name!r}: {error}") from error
            for part, weight in zip(chain_at(model, compressed, name), weights, strict=True):
                part.get_parameter("weight").copy_(weight)
            layer = profile.layer(name)
            for each in (layer, *layer.tied):
                bias = bias_at(model, each)
                if bias is not None:
                    chain_at(model, compressed, each.name)[-1].get_parameter("bias").copy_(bias)
    return in_stored_form(compressed, model, profile, plan)


@torch.no_grad()
def in_stored_form(compressed: nn.Module, model: nn.Module, profile: ModelProfile, plan: RankPlan) -> nn.Module:
    """A compressed copy of the model, in place, with its factors as the plan has them stored: with free ranks or not.

    It computes the same before and after, but for rounding; what corrects and trains factors works on them before.
    """
    check_plan(profile, plan)
    for name, choice in plan.choices:
        layer = profile.layer(name)
        chain, stages = chain_at(model, compressed, name), replacement_stages(layer, plan)
        if not choice.free or LayerSpec.of(chain[-1]).identity or LayerSpec.of(chain[0]).identity:
            continue
        take_gauge(chain, stages)
        for other in layer.tied:
            tie(chain_at(model, compressed, other.name), chain, sharing(stages, other.spec))
    return compressed


def chain_at(model: nn.Module, compressed: nn.Module, name: str) -> nn.Sequential:
    """The chain that replaces a layer in a compressed copy of the model."""
    chain = compressed if is_whole(model, name) else compressed.get_submodule(name)
    stands = chain if isinstance(chain, nn.Sequential) else chain._modules["weight"]
    assert isinstance(stands, nn.Sequential)
    return stands
