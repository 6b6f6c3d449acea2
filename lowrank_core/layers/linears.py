"""Two linear layers that torch.nn has not: one whose inputs and outputs come in groups, one whose weight serves parts.

Both need torch alone, so that checkpoints can carry their source.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupedLinear(nn.Module):
    """(..., in) -> (..., out), each of `groups` equal parts of the inputs into its own part of the outputs.

    What a convolution's groups are. weight: (out, in / groups).
    """

    def __init__(self, in_features: int, out_features: int, groups: int, bias: bool = True, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups, **factory))
        self.bias = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None
        nn.init.uniform_(self.weight, -((groups / in_features) ** 0.5), (groups / in_features) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """One product for all groups."""
        parts = x.reshape(-1, self.groups, self.in_features // self.groups).transpose(0, 1)
        y = torch.bmm(parts, self.weight.view(self.groups, -1, parts.shape[-1]).mT).transpose(0, 1)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """As a Linear shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, groups={self.groups}"


class SharedLinear(nn.Module):
    """(..., in) -> (..., out), where one weight (out / copies, in / copies) turns part after part into outputs.

    A part is every `copies`-th input, and a stretch of the outputs: input c * copies + k is number c of part k. The
    bias differs from part to part.
    """

    def __init__(self, in_features: int, out_features: int, copies: int, bias: bool = True, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features, self.copies = in_features, out_features, copies
        self.weight = nn.Parameter(torch.empty(out_features // copies, in_features // copies, **factory))
        self.bias = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None
        nn.init.uniform_(self.weight, -((copies / in_features) ** 0.5), (copies / in_features) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """One product for all parts."""
        parts = x.reshape(*x.shape[:-1], -1, self.copies).mT
        y = F.linear(parts, self.weight).flatten(-2)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """As a Linear shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, copies={self.copies}"
