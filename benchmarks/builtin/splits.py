"""Write the tables of the built-in networks anew, from scikit-learn's: `python -m benchmarks.builtin.splits`."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_iris
from sklearn.model_selection import train_test_split

from lowrank_core.builtin.samples import TABLES
from lowrank_core.store.files import write_whole

SEED = 0

Table = dict[str, Any]
"""inputs (N, values), targets (N,), and the row numbers of two disjoint sets, train and held_out."""


def tables() -> dict[str, Table]:
    """By name, as they ship: digits with grey values 0 to 16, iris with lengths in centimetres."""
    digits, iris = load_digits(), load_iris()
    return {
        "digits": table(digits.data.astype(np.uint8), digits.target, train_size=1000),
        "iris": table(iris.data, iris.target, train_size=75),
    }


def table(inputs: NDArray[Any], targets: NDArray[np.int64], train_size: int) -> Table:
    """All rows, and a seeded split of them with equal class shares; a row that occurs twice is used once."""
    once = np.sort(np.unique(inputs, axis=0, return_index=True)[1])
    train, held_out = train_test_split(once, train_size=train_size, stratify=targets[once], random_state=SEED)
    return {
        "inputs": inputs,
        "targets": targets.astype(np.uint8),
        "train": train.astype(np.uint16),
        "held_out": held_out.astype(np.uint16),
    }


def main() -> None:
    """Write one .npz for each table; the same rows give the same bytes."""
    for name, arrays in tables().items():
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        write_whole(TABLES / f"{name}.npz", file.getvalue())


if __name__ == "__main__":
    main()
