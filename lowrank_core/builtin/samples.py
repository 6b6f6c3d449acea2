"""Seeded train and evaluation sets from labelled rows."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Split:
    """Two disjoint sets of (inputs, targets): inputs float32 (N, ...), targets int64 (N,)."""

    train: tuple[Tensor, Tensor]
    eval: tuple[Tensor, Tensor]


def stratified_split(inputs: NDArray[np.float32], targets: NDArray[np.int64], train_size: int, seed: int) -> Split:
    """Shuffle and split with equal class shares; a row that occurs twice is used once."""
    flat = inputs.reshape(len(inputs), -1)
    once = np.sort(np.unique(flat, axis=0, return_index=True)[1])
    train, held_out = train_test_split(once, train_size=train_size, stratify=targets[once], random_state=seed)
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    return Split((x[train], y[train]), (x[held_out], y[held_out]))
