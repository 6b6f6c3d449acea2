"""Labelled rows that come with scikit-learn, and seeded train and evaluation sets of them.

Importing scikit-learn takes longer than all else that opening a built-in network needs. So its tables are read without
it, and the splits of the built-in networks are stored in splits.json (`python -m benchmarks.builtin.splits`).
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPLITS = Path(__file__).with_name("splits.json")
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """Two disjoint sets of (inputs, targets): inputs float32 (N, ...), targets int64 (N,)."""

    train: tuple[Tensor, Tensor]
    eval: tuple[Tensor, Tensor]


def digits() -> tuple[NDArray[np.float64], Index]:
    """1,797 images (N, 8, 8) of handwritten digits, grey values 0 to 16, and the digits (N,)."""
    table = np.loadtxt(_shipped("digits.csv.gz"), delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def iris() -> tuple[NDArray[np.float64], Index]:
    """Four lengths of 150 flowers, (N, 4) in centimetres, and their species (N,)."""
    table = np.loadtxt(_shipped("iris.csv"), delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1].astype(np.int64)


def _shipped(name: str) -> Path:
    found = find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "datasets" / "data" / name


def stratified_split(inputs: NDArray[np.float32], targets: Index, train_size: int, seed: int) -> Split:
    """Shuffle and split with equal class shares; a row that occurs twice is used once."""
    stored = json.loads(SPLITS.read_text(encoding="utf-8")) if SPLITS.exists() else {}
    known = stored.get(split_key(inputs, targets, train_size, seed))
    train, held_out = map(np.array, known) if known else computed_split(inputs, targets, train_size, seed)
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    return Split((x[train], y[train]), (x[held_out], y[held_out]))


def computed_split(inputs: NDArray[np.float32], targets: Index, train_size: int, seed: int) -> tuple[Index, Index]:
    """(train, held out): row numbers."""
    from sklearn.model_selection import train_test_split

    once = np.sort(np.unique(inputs.reshape(len(inputs), -1), axis=0, return_index=True)[1])
    train, held_out = train_test_split(once, train_size=train_size, stratify=targets[once], random_state=seed)
    return train, held_out


def split_key(inputs: NDArray[np.float32], targets: Index, train_size: int, seed: int) -> str:
    """Digest of all that a split depends on."""
    digest = hashlib.sha256(f"{len(inputs)}|{train_size}|{seed}|".encode())
    digest.update(np.ascontiguousarray(inputs).data)
    digest.update(np.ascontiguousarray(targets).data)
    return digest.hexdigest()
