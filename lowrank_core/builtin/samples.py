"""Labelled rows that ship with the built-in networks, shuffled and parted into what is learnt from and what is not.

tables/SOURCES.md says where they come from; `python -m benchmarks.builtin.splits` writes them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TABLES = Path(__file__).with_name("tables")


@dataclass(frozen=True, slots=True)
class Split:
    """Two disjoint sets of (inputs, targets): inputs float32 (N, ...), targets int64 (N,)."""

    train: tuple[Tensor, Tensor]
    eval: tuple[Tensor, Tensor]


def digits(*shape: int) -> Split:
    """1,000 and 797 images of handwritten digits, (N, *shape) grey values in [0, 1], and the digits (N,).

    shape: any of 64 numbers, row by row.

    >>> digits(1, 8, 8).train[0].shape
    torch.Size([1000, 1, 8, 8])
    """
    return _split("digits", 16, shape)


def iris() -> Split:
    """Four lengths of 75 and 74 flowers, (N, 4) in centimetres, and their species (N,)."""
    return _split("iris", 1, (4,))


def _split(name: str, unit: int, shape: tuple[int, ...]) -> Split:
    with np.load(TABLES / f"{name}.npz") as table:
        inputs = torch.from_numpy((table["inputs"] / unit).astype(np.float32)).reshape(-1, *shape)
        targets = torch.from_numpy(table["targets"].astype(np.int64))
        train, held_out = (torch.from_numpy(table[part].astype(np.int64)) for part in ("train", "held_out"))
    return Split((inputs[train], targets[train]), (inputs[held_out], targets[held_out]))
