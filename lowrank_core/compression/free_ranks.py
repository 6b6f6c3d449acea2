"""Free ranks: the factors of a compressed copy in the identity gauge, in which they are stored."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lowrank_core.algebra.gauge import identity_rows
from lowrank_core.layers.parts import IdentityColumns, IdentityRows
from lowrank_core.layers.spec import LayerSpec, build_part, inputs_first


def take_gauge(chain: nn.Sequential, stages: tuple[LayerSpec, ...]) -> None:
    """Give the factors of a chain, in place, the form of these stages: the map that they stand for stays the same.

    stages: `layers.spec.free_form` of those that the chain has now. Type and place of its weights stay, too.
    """
    if stages[-1].identity:
        last = chain[-1]
        basis, weight, order = _gauge(last.get_parameter("weight").flatten(1), stages[-1].groups)
        _mix_outputs(chain[-2], basis, stages[-2])
        chain[-1] = _like(last, stages[-1], weight, order.argsort())
    if stages[0].identity:
        first, groups = chain[0], stages[0].groups
        basis, weight, order = _gauge(_turned(first.get_parameter("weight").flatten(1), groups), groups)
        _mix_inputs(chain[1], basis, stages[1])
        chain[0] = _like(first, stages[0], _turned(weight, groups), order)


def tie(chain: nn.Sequential, to: nn.Sequential, stages: tuple[LayerSpec, ...]) -> None:
    """Give the chain of a layer that shares another's weight the form of these stages, with the factors of that."""
    turned = stages[0].transposed
    for place, (stage, part) in enumerate(zip(stages, reversed(to) if turned else to, strict=True)):
        if isinstance(part, IdentityRows):
            order = part.order.argsort() if turned else part.order
            chain[place] = _like(chain[place], stage, part.weight, order)
        elif isinstance(part, IdentityColumns):
            chain[place] = _like(chain[place], stage, part.weight, part.order)
        chain[place].register_parameter("weight", part.get_parameter("weight"))


@torch.no_grad()
def take_gauge_off(network: nn.Module) -> nn.Module:
    """A network in place, rows and columns of the identity among those that its layers store again."""
    weights: dict[int, nn.Parameter] = {}  # of layers that share one it stays one
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, IdentityRows | IdentityColumns):
                spec = replace(LayerSpec.of(part), identity="")
                plain = build_part(spec.op, spec.arguments, device="meta").train(part.training)
                full = part.full().mT.contiguous() if spec.transposed else part.full()
                weight = weights.setdefault(id(part.weight), nn.Parameter(full, part.weight.requires_grad))
                plain.register_parameter("weight", weight)
                if spec.bias:
                    plain.register_parameter("bias", part.get_parameter("bias"))
                setattr(module, name, plain)
    return network


def _gauge(factor: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of B (m, r) of each group: B[kept] (groups, r, r), X one below the other, and the rows, first those kept."""
    bases, products, kept_rows, other_rows = [], [], [], []
    for number, part in enumerate(factor.detach().double().cpu().chunk(groups)):
        kept, x = identity_rows(part)
        others = torch.ones(len(part), dtype=torch.bool)
        others[kept] = False
        bases.append(part[kept])
        products.append(x)
        kept_rows.append(kept + number * len(part))
        other_rows.append(others.nonzero()[:, 0] + number * len(part))
    return torch.stack(bases), torch.cat(products), torch.cat([*kept_rows, *other_rows])


def _turned(weight: Tensor, groups: int) -> Tensor:
    """(groups * a, b) -> (groups * b, a)"""
    return weight.reshape(groups, -1, weight.shape[1]).mT.flatten(0, 1)


def _grouped(taps: Tensor, groups: int) -> Tensor:
    """(groups * a, ...) -> (groups, a, ...)"""
    return taps.reshape(groups, -1, *taps.shape[1:])


def _mix_outputs(part: nn.Module, basis: Tensor, spec: LayerSpec) -> None:
    """Put a basis (groups, r, r) behind the outputs of a layer."""
    weight = part.get_parameter("weight")
    taps = _outputs_first(weight.double().cpu(), spec)
    mixed = torch.einsum("gij,gj...->gi...", basis, _grouped(taps, len(basis))).flatten(0, 1)
    weight.copy_(_outputs_first(mixed, spec))


def _mix_inputs(part: nn.Module, basis: Tensor, spec: LayerSpec) -> None:
    """Put the transpose of a basis (groups, r, r) in front of the inputs of a layer."""
    weight = part.get_parameter("weight")
    taps = _outputs_first(weight.double().cpu(), spec)
    mixed = torch.einsum("gon...,gjn->goj...", _grouped(taps, len(basis)), basis).flatten(0, 1)
    weight.copy_(_outputs_first(mixed, spec))


def _outputs_first(weight: Tensor, spec: LayerSpec) -> Tensor:
    """A weight as it is stored with its outputs as the first axis, and back."""
    if spec.table:
        return weight.mT
    return inputs_first(weight, spec.groups) if spec.transposed else weight


def _like(old: nn.Module, spec: LayerSpec, weight: Tensor, order: Tensor) -> nn.Module:
    """The part of a spec with these values, of the type and in the place of the one that was there; its bias stays."""
    own = old.get_parameter("weight")
    part = build_part(spec.op, spec.arguments, device=own.device, dtype=own.dtype).train(old.training)
    part.get_parameter("weight").copy_(weight.reshape(spec.weight_shape)).requires_grad_(own.requires_grad)
    part.get_buffer("order").copy_(order)
    if spec.bias:
        part.register_parameter("bias", old.get_parameter("bias"))
    return part
