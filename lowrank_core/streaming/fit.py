"""One block: what its Linear layers see, summed over the text, and the factors that answer best on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.algebra.aware import output_directions
from lowrank_core.compression.least_squares import NormalEquations
from lowrank_core.compression.variable_projection import WIDE, Moments, closed_form, last_alone, sums_kept_in
from lowrank_core.errors import InvalidData, InvalidPlan, few
from lowrank_core.layers.computed import sharing
from lowrank_core.layers.parts import Chain
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import is_conv1d, spec_of
from lowrank_core.plans.correction import Correction as Refit
from lowrank_core.running.heap import give_back
from lowrank_core.running.scope import give_way
from lowrank_core.streaming.flow import Enough, Flow, Hidden
from lowrank_core.streaming.request import Correction

METHOD = "svd"
"""Two thin Linear layers for one."""

RIDGE = Refit().ridge


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A block whose weights are there. layers: its Linear layers by their names in the network."""

    number: int
    name: str
    module: nn.Module
    layers: Mapping[str, nn.Module]


def matrix_of(module: nn.Module) -> Tensor:
    """(out, in) of a Linear layer, or of the Conv1D of GPT-2, which keeps it the other way round."""
    weight = module.get_parameter("weight")
    return weight.mT if is_conv1d(module) else weight


def readings(flow: Flow, block: Block, hidden: Tensor) -> list[tuple[str, ...]]:
    """The layers of a block in the order they run, those together that are given the same tensor; hidden: one batch."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    held: list[Tensor] = []  # so that no other tensor takes its place in memory

    def hear(name: str) -> Callable[..., None]:
        def heard(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            held.append(args[0])
            group = groups.setdefault((args[0].data_ptr(), args[0].shape, args[0].stride()), [])
            if not any(name in names for names in groups.values()):
                group.append(name)

        return heard

    hooks = [module.register_forward_pre_hook(hear(name)) for name, module in block.layers.items()]
    try:
        flow.run(block.number, block.module, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    return [tuple(names) for names in groups.values() if names]


@torch.no_grad()
def _inputs(flow: Flow, number: int, block: nn.Module, layer: str, hidden: Tensor) -> Tensor:
    """What a layer of a block is given, on the way to which nothing behind it runs; all its calls in a row."""
    seen: list[Tensor] = []

    def heard(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise Enough

    hook = block.get_submodule(layer).register_forward_pre_hook(heard)
    try:
        with suppress(Enough):
            flow.run(number, block, hidden)
    finally:
        hook.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What layers that share an input see, z in the network compressed so far and x in the dense one.

    E z z^T (1, n, n), E z (1, 1, n), E x z^T (1, n, n), E x (1, n, 1); products centred for layers with a bias.
    """

    second: Tensor
    mean: Tensor
    cross: Tensor
    dense_mean: Tensor
    rows: int


def seen_by(
    flow: Flow,
    block: Block,
    layers: tuple[str, ...],
    now: nn.Module | None,
    states: tuple[Hidden, Hidden],
    stop: int,
) -> dict[bool, Seen]:
    """Sums over the first `stop` windows of what layers see that share an input, for those with a bias and without.

    now: the block as it is compressed so far; None for the dense network's inputs alone. states: what goes into the
    dense block, and into the other.
    """
    inside = layers[0].removeprefix(f"{block.name}.")
    sums: NormalEquations | None = None
    for first, last in flow.batches(0, stop):
        x = _inputs(flow, block.number, block.module, inside, states[0].read(first, last, flow.device))
        z = x if now is None else _inputs(flow, block.number, now, inside, states[1].read(first, last, flow.device))
        if sums is None:
            spec = LayerSpec(z.shape[1], z.shape[1])
            sums = NormalEquations(spec, sums_kept_in(spec))
        sums.add(z, torch.arange(len(z)), x if now is not None else x[:, :1])  # whose relation nobody asks for
    assert sums is not None
    biased = {spec_of(block.layers[name]).bias for name in layers}
    found = {each: Seen(*sums.means(intercept=each), sums.rows) for each in sorted(biased)}
    sums.clear()
    give_back()
    return found


def energies(name: str, module: nn.Module, seen: dict[bool, Seen]) -> Tensor:
    """(k,) float64, on the CPU: what each direction of a layer's outputs carries on the text, the strongest first.

    Each output relative to its own spread: a few of a hidden state are a hundred times as large as the others, which
    the norm behind them undoes. Raises InvalidData where numbers are not finite.
    """
    matrix, second = matrix_of(module).double(), seen[spec_of(module).bias].second[0].double()
    _check_finite(name, matrix, second)
    spread = ((matrix @ second) * matrix).sum(1, keepdim=True).sqrt()
    matrix = matrix / spread.clamp_min(1e-6 * float(spread.amax()) + torch.finfo(torch.float64).tiny)
    return output_directions(matrix, second, vectors=False)[0].cpu()


def _check_finite(name: str, weight: Tensor, *seen: Tensor) -> None:
    """Raise InvalidData where the weight of a layer, or what it sees, is NaN or infinite."""
    for what, parts in (("its weight", (weight,)), ("what goes into it on this text", seen)):
        if not all(bool(part.isfinite().all()) for part in parts):
            raise InvalidData(
                f"layer {name!r}: {what} is NaN or infinite, so nothing can be fitted to it; look for weights that "
                "are, or too large."
            )


def fitted(
    name: str, module: nn.Module, rank: int, correction: Correction, seen: Seen | None, dtype: torch.dtype
) -> Chain:
    """The chain of two that stands for a layer, rounded to the type that it is stored in. Raises InvalidData."""
    spec = spec_of(module)
    stages = METHODS[METHOD].stages(spec, (rank,))
    weight = matrix_of(module)
    bias = module._parameters.get("bias")
    if correction == "svd" or seen is None:
        _check_finite(name, weight)
        factors = METHODS[METHOD].factorize(spec, weight).weights((rank,))
        return _chain(stages, factors, bias, dtype, weight)
    second = seen.second
    _check_finite(name, weight, second, seen.cross)
    dense = weight.to(second)
    if correction == "whitened":
        left = output_directions(dense, second[0])[1][:, :rank]
        return _chain(stages, (left.mT @ dense, left), bias, dtype, weight)
    moments = Moments(second, dense @ seen.cross, seen.rows)
    give_way()
    if correction == "quick":
        plain = [factor.to(second) for factor in METHODS[METHOD].factorize(spec, weight).weights((rank,))]
        factors = (plain[0], last_alone(spec, stages, plain, moments, RIDGE))
    else:
        moments = moments.towards(dense[None], RIDGE)
        wide = min(dense.shape) > WIDE  # else eigenvectors are found without a start
        start = output_directions(dense, moments.second[0])[1][:, :rank] if wide else dense[:, :rank]
        left, right = (factor[0] for factor in closed_form(moments, start[None]))
        factors = (right, left)
    offset: Tensor | None = bias
    if bias is not None:
        whole = factors[1] @ factors[0]
        offset = bias + (dense @ seen.dense_mean[0] - whole @ seen.mean[0].mT).reshape(-1).to(bias)
    return _chain(stages, factors, offset, dtype, weight)


def _chain(
    stages: tuple[LayerSpec, ...],
    factors: tuple[Tensor, ...],
    bias: Tensor | None,
    dtype: torch.dtype,
    like: Tensor,
) -> Chain:
    """Linear layers with these weights, as they come back from a file of that type."""
    parts = [stage.build(device="meta") for stage in stages]
    for part, factor in zip(parts, factors, strict=True):
        part.register_parameter("weight", nn.Parameter(factor.to(dtype).to(like).contiguous(), False))
    if bias is not None:
        parts[-1].register_parameter("bias", nn.Parameter(bias.to(dtype).to(like), False))
    return Chain(*parts)


def compressed_block(
    flow: Flow,
    block: Block,
    ranks: Mapping[str, int],
    correction: Correction,
    states: tuple[Hidden, Hidden],
    stop: int,
) -> nn.Module:
    """A copy of a block with chains in the place of the layers that have ranks, fitted one after the other.

    states: what goes into the dense block and into the compressed one; the first `stop` windows are fitted to. The
    copy shares all other weights with the block.
    """
    now = sharing(block.module)
    first = states[0].read(0, min(flow.batch, stop), flow.device)
    groups = readings(flow, block, first)
    if idle := sorted({name for name in block.layers if name in ranks} - {name for group in groups for name in group}):
        raise InvalidPlan(f"{few(idle, repr)} did not run on the text, so nothing can be fitted; leave them dense.")
    for group in groups:
        chosen = [name for name in group if name in ranks]
        if not chosen:
            continue
        inside = {name: name.removeprefix(f"{block.name}.") for name in chosen}
        seen: dict[bool, Seen] = {}
        if correction != "svd":
            beside = None if correction == "whitened" else now
            seen = seen_by(flow, block, tuple(chosen), beside, states, stop)
        chains = {}
        for name in chosen:
            give_way()
            dtype = flow.skeleton.stored[f"{name}.weight"].dtype
            assert dtype is not None
            module = block.layers[name]
            known = seen.get(spec_of(module).bias)
            chains[name] = fitted(name, module, ranks[name], correction, known, dtype)
        for name, chain in chains.items():
            owner, _, leaf = inside[name].rpartition(".")
            now.get_submodule(owner)._modules[leaf] = chain
        del seen
        give_back()
    return now
