"""Mixtures of experts that keep all matrices in one parameter: from that to one layer for each expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.layers.computed import with_memory
from lowrank_core.layers.parts import Experts

KIND = "Experts"


def expert_arguments(experts: Experts) -> dict[str, Any]:
    """Keyword arguments of `Experts` without ranks, plain enough for JSON."""
    return {name: getattr(experts, name) for name in ("experts", "in_features", "out_features", "turned")}


def build_experts(given: Mapping[str, Any], **factory: Any) -> Experts:
    """The module from its arguments; raises ValueError where they are not those of one."""
    if unknown := set(given.get("ranks", {})) - set(map(str, range(given["experts"]))):
        raise ValueError(f"{KIND} has no {', '.join(map(str, unknown))}")
    return Experts(**given, **factory)


def factored_experts(parameter: Tensor, turned: bool, ranks: Mapping[str, Any]) -> Experts:
    """Experts with chains as `Recurrent` takes them, their weights not yet set; the others are the parameter's."""
    built = with_memory(_empty(parameter, turned, dict(ranks), dtype=parameter.dtype), parameter.device)
    assert isinstance(built, Experts)
    with torch.no_grad():
        for number, expert in built.named_children():
            if isinstance(expert, nn.Linear):
                expert.weight.copy_(matrix(parameter, int(number), turned))
    return built.requires_grad_(parameter.requires_grad)


def watched_experts(parameter: Tensor, turned: bool) -> Experts:
    """Experts with the same numbers in the same memory, each a Linear that hooks can see."""
    built = _empty(parameter, turned, None)
    for number, expert in built.named_children():
        values = matrix(parameter.detach(), int(number), turned)
        expert.register_parameter("weight", nn.Parameter(values, requires_grad=False))
    return built


def matrix(parameter: Tensor, number: int, turned: bool) -> Tensor:
    """(out, in) of one expert."""
    return parameter[number].mT if turned else parameter[number]


def _empty(parameter: Tensor, turned: bool, ranks: dict[str, Any] | None, **factory: Any) -> Experts:
    count, *ends = parameter.shape
    rows, columns = ends[:: -1 if turned else 1]
    return Experts(count, columns, rows, turned, ranks, device="meta", **factory)
