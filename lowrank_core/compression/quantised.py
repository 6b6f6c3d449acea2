"""Quantise, then refit: factors that answer as before once int8 has rounded them and what flows between them.

Between the factors of a chain nothing is nonlinear, so their norms may be moved from one to the other channel by
channel: that is done first, and changes nothing but what a scale of int8 has to span. Then, layer by layer in the order
of execution, each factor is refitted by least squares on what the rounded factors before it put out, and the offset
takes up what rounding the last one shifts. What it is fitted to is the network as it was given.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.compression.apply import chain_at, replacement_stages
from lowrank_core.compression.calibration import POSITIONS
from lowrank_core.compression.correct import Overlay, load_overlay, offset_overlay
from lowrank_core.compression.dense_pass import DensePass
from lowrank_core.compression.least_squares import NormalEquations
from lowrank_core.compression.precision import Int8
from lowrank_core.compression.unfold import as_matrices, as_weight, draw_positions, output_rows, rows_of
from lowrank_core.layers.computed import copied
from lowrank_core.layers.data import call, evaluating
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.profile import Layer, ModelProfile, module_at, place_of
from lowrank_core.plans.plan import RankPlan

LEVELS = 255
"""Steps of an int8 scale for what flows between layers; a weight has one less, as many below zero as above."""

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Dense layers whose offset takes up what rounding them shifts."""

ROUNDS = 4
"""Times that norms are balanced along a chain: each pair of factors changes what its neighbours span."""


def refitted(
    network: nn.Module,
    model: nn.Module,
    profile: ModelProfile,
    plan: RankPlan,
    seen: DensePass,
    *,
    int8: Int8 = "per-channel",
    ridge: float = 1e-3,
) -> nn.Module:
    """A copy of a compressed network whose factors are fitted to each other as int8 rounds them, in its own dtype.

    network: with plain factors, `model` compressed by `plan`. seen: of the dense network, for its samples and
    positions. Layers that are tied, parts of others or called more than once stay as they are.
    """
    chosen = dict(plan.choices)
    layers = [layer for layer in profile.layers if _fits(layer, seen)]
    targets: dict[str, Tensor] = {}

    def chains(of: nn.Module) -> dict[str, list[Any]]:
        """The factors of each layer in a copy; a dense layer is one factor."""
        found = {e.name: list(chain_at(model, of, e.name)) for e in layers if e.name in chosen}
        dense = {e.name: [module_at(of, e.name)] for e in layers if e.name not in chosen}
        return found | {name: chain for name, chain in dense.items() if type(chain[0]) in PLAIN}

    def teach(layer: Layer, _: nn.Module, args: Any, output: Tensor) -> None:
        targets[layer.name] = output_rows(layer.spec, output, seen.index[layer.name][0])

    with ExitStack() as hooks, evaluating(network):
        for name, chain in chains(network).items():
            hooks.callback(chain[-1].register_forward_hook(partial(teach, profile.layer(name))).remove)
        call(network, seen.inputs)
    rounded, overlay = copied(network), Overlay()
    open_still = set(targets)

    def learn(name: str, chain: list[Any], x: Tensor) -> None:
        """Before a layer answers: fit it to what it is given, so that it answers as int8 does."""
        layer, followers = profile.layer(name), seen.followers.get(name, ())
        open_still.discard(name)
        weights, simulated, offset = _fitted(
            chain,
            x,
            seen.index[name][0],
            targets[name],
            _gain(network, followers),
            shifts=chain[-1].bias is not None or bool(followers),
            int8=int8,
            ridge=ridge,
        )
        place = f"{place_of(model, layer)}."
        names = [f"{place}{at}." for at in range(len(chain))] if name in chosen else [place]
        names = [each.removeprefix(".") for each in names]
        bias = f"{names[-1]}bias" if chain[-1].bias is not None else ""
        shift = offset_overlay(network, bias, offset.to(x), followers)
        fitted = {f"{at}weight": new for at, new in zip(names, weights, strict=True)} | shift
        if not all(bool(value.isfinite().all()) for value in fitted.values()):
            return  # nor are its inputs: what is not known is left as it is
        overlay.update(fitted)
        load_overlay(rounded, {f"{at}weight": new for at, new in zip(names, simulated, strict=True)} | shift)

    def hear(name: str, chain: list[Any], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = (*args, *kwargs.values())
        x = _as_int8(values[0])
        if name in open_still and rows_of(profile.layer(name).spec, x) == seen.rows[name][0]:
            learn(name, chain, x)
        return (x, *values[1:]), {}

    with ExitStack() as hooks, evaluating(rounded):
        for name, chain in chains(rounded).items():
            first, *others = chain
            hooks.callback(first.register_forward_pre_hook(partial(hear, name, chain), with_kwargs=True).remove)
            for part in others:
                hooks.callback(part.register_forward_pre_hook(lambda _, args: _as_int8(args[0])).remove)
        call(rounded, seen.inputs)
    return load_overlay(copied(network), overlay)


def depthwise_layers(profile: ModelProfile, plan: RankPlan) -> tuple[str, ...]:
    """The layers of a plan one of whose factors takes each channel alone."""
    layers = [profile.layer(name) for name, _ in plan.choices]
    return tuple(e.name for e in layers if any(1 < s.groups == s.in_channels for s in replacement_stages(e, plan)))


def _fits(layer: Layer, seen: DensePass) -> bool:
    """Whether a layer is one map of its own that runs once."""
    apart = layer.tied or layer.partial or layer.read or layer.expert is not None or layer.name in seen.states
    known = not layer.spec.table and layer.spec.copies == 1 and not layer.transposed_weight
    return known and not apart and seen.calls.count(layer.name) == 1


def _fitted(
    chain: list[Any],
    x: Tensor,
    index: Tensor,
    targets: Tensor,
    gain: Tensor | None,
    *,
    shifts: bool,
    int8: Int8,
    ridge: float,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The weights of a chain, the same as int8 holds them, and the offset of its outputs.

    x: what goes into it, rounded. gain: what a BatchNorm behind multiplies the outputs by, which runtimes fold in.
    """
    specs = [LayerSpec.of(part) for part in chain]
    weights = _balanced(specs, [part.weight.detach() for part in chain], int8)
    exact, z, simulated = x, x, []
    for number, (spec, part) in enumerate(zip(specs, chain, strict=True)):
        is_last = number == len(chain) - 1
        equations = NormalEquations(spec)
        if is_last:
            equations.add(z, index, targets)
            if len(chain) > 1:
                weights[number] = equations.solve(weights[number], ridge, intercept=shifts)[0].to(x)
        else:
            exact = _answer(part, weights[number], exact)
            if number:
                drawn = draw_positions(rows_of(spec, z), POSITIONS, 0)
                equations.add(z, drawn, output_rows(spec, exact, drawn))
                weights[number] = equations.solve(weights[number], ridge, intercept=False)[0].to(x)
        simulated.append(weight_as_int8(spec, weights[number], int8, gain if is_last else None))
        if not is_last:
            z = _as_int8(_answer(part, simulated[number], z))
    _, offset = equations.solve(simulated[-1], None, intercept=shifts)
    return weights, simulated, offset


def _answer(part: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    answer: Tensor = torch.func.functional_call(part, {"weight": weight}, (x,))
    return answer


def _balanced(specs: list[LayerSpec], weights: list[Tensor], int8: Int8) -> list[Tensor]:
    """The same product from factors that span alike what the next one takes: exact, channel by channel.

    Between two factors every channel has as large a largest weight on its way out as on its way in.
    """
    weights = list(weights)
    for _ in range(ROUNDS):
        for number, (here, there) in enumerate(pairwise(specs)):
            out, into = as_matrices(here, weights[number]), _by_input(there, weights[number + 1])
            given, taken = out.abs().amax(-1).flatten(), into.abs().amax((1, 3)).flatten()
            scale = torch.where((given > 0) & (taken > 0), (given / taken).sqrt(), 1.0)
            scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
            weights[number] = as_weight(here, out / scale.view(len(out), -1, 1))
            weights[number + 1] = as_weight(there, (into * scale.view(len(into), 1, -1, 1)).flatten(2))
    return weights


def _by_input(spec: LayerSpec, weight: Tensor) -> Tensor:
    """(groups, out / groups, in / groups, window) of a weight."""
    matrices = as_matrices(spec, weight)
    return matrices.reshape(*matrices.shape[:2], spec.in_channels // spec.groups, -1)


def weight_as_int8(spec: LayerSpec, weight: Tensor, int8: Int8, gain: Tensor | None = None) -> Tensor:
    """A weight as int8 holds it, with one scale or one for each output channel; see `_fitted` for gain."""
    matrices = as_matrices(spec, weight)
    factor = torch.ones(spec.out_channels) if gain is None else gain
    factor = torch.where(factor == 0, 1.0, factor).to(weight).view(len(matrices), -1, 1)
    spanned = (matrices * factor).abs()
    largest = spanned.amax() if int8 == "per-tensor" else spanned.amax(-1, keepdim=True)
    step = (2 * largest / (LEVELS - 1)).clamp_min(torch.finfo(weight.dtype).tiny)
    return as_weight(spec, torch.round(matrices * factor / step) * step / factor)


def _as_int8(x: Tensor) -> Tensor:
    """What flows between layers as int8 holds it: one scale and one zero for all of it."""
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    step = ((high - low) / LEVELS).clamp_min(torch.finfo(x.dtype).tiny)
    zero = torch.round(-low / step)
    return (torch.round(x / step + zero).clamp(0, LEVELS) - zero) * step


def _gain(network: nn.Module, followers: tuple[str, ...]) -> Tensor | None:
    """What the one BatchNorm behind a layer multiplies its channels by; None where there is none, or several."""
    if len(followers) != 1:
        return None
    norm: Any = network.get_submodule(followers[0])
    inverse: Tensor = (norm.running_var + norm.eps).rsqrt()
    return inverse if norm.weight is None else inverse * norm.weight.detach()
