"""Multi-head attention: from PyTorch's to one whose projections are layers, and the fused paths it must not take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.layers.computed import with_memory
from lowrank_core.layers.parts import Attention

KIND = "MultiheadAttention"
PROJECTIONS = ("in_proj.q", "in_proj.k", "in_proj.v", "out_proj")


def attention_arguments(attention: nn.MultiheadAttention | Attention) -> dict[str, Any]:
    """Keyword arguments of `Attention` without ranks, plain enough for JSON."""
    bias = attention.bias if isinstance(attention, Attention) else attention.in_proj_bias is not None
    names = ("embed_dim", "num_heads", "dropout", "batch_first")
    return {**{name: getattr(attention, name) for name in names}, "bias": bias}


def build_attention(given: Mapping[str, Any], **factory: Any) -> Attention:
    """The module from its arguments; raises ValueError where they are not those of one."""
    if unknown := set(given.get("ranks", {})) - set(PROJECTIONS):
        raise ValueError(f"{KIND} has no {', '.join(map(str, unknown))}")
    return Attention(**given, **factory)


def factored_attention(attention: nn.MultiheadAttention, ranks: Mapping[str, int]) -> Attention:
    """A copy with chains of these ranks, their weights not yet set; the other weights are the module's."""
    weight = attention.in_proj_weight
    built = Attention(**attention_arguments(attention), ranks=dict(ranks), device="meta", dtype=weight.dtype)
    with_memory(built.train(attention.training), weight.device)
    with torch.no_grad():
        for linear, parameters in _linears(built, attention):
            for name, value in parameters.items():
                linear.get_parameter(name).copy_(value).requires_grad_(weight.requires_grad)
    return built


def watched_attention(attention: nn.MultiheadAttention) -> Attention:
    """An attention with the same weights in the same memory, each projection a Linear that hooks can see."""
    built = Attention(**attention_arguments(attention), device="meta").train(attention.training)
    for linear, parameters in _linears(built, attention):
        for name, value in parameters.items():
            setattr(linear, name, nn.Parameter(value.detach(), requires_grad=False))
    return built


def _linears(built: Attention, attention: nn.MultiheadAttention) -> list[tuple[nn.Linear, dict[str, Tensor]]]:
    """The projections that are no chains, with their dense weights and biases."""
    weights: list[Tensor] = [*attention.in_proj_weight.chunk(3), attention.out_proj.weight]
    biases: list[Tensor | None] = [None] * 4
    if attention.in_proj_bias is not None:
        biases = [*attention.in_proj_bias.chunk(3), attention.out_proj.bias]
    linears = []
    for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=True):
        linear = built.get_submodule(name)
        if isinstance(linear, nn.Linear):
            linears.append((linear, {"weight": weight} if bias is None else {"weight": weight, "bias": bias}))
    return linears


def without_fused_paths(model: nn.Module) -> nn.Module:
    """The model, in place, with every encoder layer calling its parts: fused, it would read weights that are gone.

    Outputs at padded positions, which fused encoders fill with zeros, are then what the layers compute there.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return model
