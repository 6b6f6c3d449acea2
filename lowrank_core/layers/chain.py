"""Chain: the module that a replacement is, and the one factor in it that PyTorch has no layer for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Chain(nn.Sequential):
    """Layers in a row that stand for one. Needs torch alone, so that checkpoints can carry its source.

    Other modules may ask that layer for its sizes, its bias, or the type, place and shape of its weight; the weight has
    no values (NaN, and no memory): `discover` leaves layers as they are whose weight others compute with.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first, *others = self
        x: Any = first(*args, **kwargs)
        for part in others:
            x = part(x)
        return x

    def __getattr__(self, name: str) -> Any:
        if name in ("in_features", "in_channels", "num_embeddings", "padding_idx"):
            return getattr(self[0], name)
        if name in ("out_features", "out_channels", "bias"):
            return getattr(self[-1], name)
        if name == "embedding_dim":
            return self[-1].out_features
        if name in ("kernel_size", "stride"):
            return tuple(map(max, *(getattr(part, name) for part in self)))
        if name == "weight":
            parts: list[Any] = list(self)
            shape = [parts[-1].weight.shape[0], parts[0].weight.shape[1]]
            if hasattr(parts[0], "kernel_size"):
                groups, turned = min(part.groups for part in parts), any(part.transposed for part in parts)
                shape = [parts[-1].out_channels, parts[0].in_channels][:: -1 if turned else 1]
                shape = [shape[0], shape[1] // groups, *self.kernel_size]
            elif hasattr(parts[0], "num_embeddings"):
                shape = [parts[0].num_embeddings, parts[-1].out_features]
            return parts[-1].weight.new_full((), torch.nan).expand(shape)
        return super().__getattr__(name)


class TransposedLinear(nn.Module):
    """A Linear whose weight is (in, out): it shares it with a Linear the other way round. Needs torch alone."""

    def __init__(self, in_features: int, out_features: int, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features, **factory))
        nn.init.normal_(self.weight, std=in_features**-0.5)

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight
