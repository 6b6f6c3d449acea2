"""Multi-head attention whose projections may be products of two thinner ones, and the fused paths it must not take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KIND = "MultiheadAttention"


class Attention(nn.Module):
    """An nn.MultiheadAttention with the same arguments and outputs; q, k, v and the output are layers of their own.

    A projection in `ranks` ("in_proj.q", "in_proj.k", "in_proj.v", "out_proj") is a chain of two Linear layers, the
    second with its bias; the others are Linear. Needs torch alone, so that checkpoints can carry its source.
    """

    in_proj_bias = None  # by this an encoder layer sees that it cannot read the weights itself

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        ranks: dict[str, int] | None = None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout, self.bias = embed_dim, num_heads, dropout, bias
        self.batch_first = batch_first

        def projection(name: str) -> nn.Module:
            if not ranks or name not in ranks:
                return nn.Linear(embed_dim, embed_dim, bias=bias, **factory)
            first = nn.Linear(embed_dim, ranks[name], bias=False, **factory)
            return nn.Sequential(first, nn.Linear(ranks[name], embed_dim, bias=bias, **factory))

        self.in_proj = nn.ModuleDict({part: projection(f"in_proj.{part}") for part in "qkv"})
        self.out_proj = projection("out_proj")

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(outputs, attention weights or None) in the shapes of PyTorch's; is_causal only says what attn_mask holds."""
        batched = query.dim() == 3
        heads = []
        for part, x in zip("qkv", (query, key, value), strict=True):
            rows = (x if self.batch_first else x.transpose(0, 1)) if batched else x.unsqueeze(0)
            heads.append(self.in_proj[part](rows).unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
        q, k, v = heads
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        weights = None
        if need_weights:
            scores = q * q.shape[-1] ** -0.5 @ k.mT
            weights = F.dropout(F.softmax(scores if mask is None else scores + mask, -1), self.dropout, self.training)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        outputs = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return outputs.squeeze(0), None if weights is None else weights.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1), weights

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """What is added to the scores (batch, heads, queries, keys); True in either mask keeps a key out."""

        def added(mask: Tensor) -> Tensor:
            return (
                torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
                if mask.dtype == torch.bool
                else mask
            )

        total = None
        if attn_mask is not None:
            total = added(attn_mask)
            total = total.view(q.shape[0], self.num_heads, q.shape[2], k.shape[2]) if attn_mask.dim() == 3 else total
        if key_padding_mask is not None:
            padding = added(key_padding_mask).view(q.shape[0], 1, 1, k.shape[2])
            total = padding if total is None else total + padding
        return total


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
    built = built.to_empty(device=weight.device).train(attention.training)
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
