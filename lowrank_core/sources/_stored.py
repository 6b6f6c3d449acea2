"""StoredTensor: a tensor in a file, known by name and shape, and read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor in a file. read(rows) gives those of its first axis, in its own dtype; of a scalar itself.

    dtype: None for a kind of number that is not read, such as 8-bit floats, whose name `kind` is. identity: the same
    for tensors that share their memory; () where that is not known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    kind: str
    bytes: int
    read: Callable[[slice], Tensor]
    identity: tuple[object, ...] = ()

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds."""
        return prod(self.shape)

    @property
    def whole(self) -> Tensor:
        """All of it."""
        return self.read(slice(0, self.shape[0] if self.shape else 1))
