"""Store the splits of the built-in networks that use scikit-learn's tables: `python -m benchmarks.builtin.splits`."""

import json

import numpy as np

from lowrank_core.builtin import digits_cnn, iris_mlp
from lowrank_core.builtin.samples import SPLITS, computed_split, digits, iris, split_key
from lowrank_core.store.files import write_whole


def main() -> None:
    """Write splits.json; the digits of all networks are split alike."""
    images, lengths = digits(), iris()
    asked = (
        ((images[0] / 16).astype(np.float32), images[1], digits_cnn.TRAIN_SIZE, digits_cnn.SEED),
        (lengths[0].astype(np.float32), lengths[1], iris_mlp.TRAIN_SIZE, iris_mlp.SEED),
    )
    found = {split_key(*one): [index.tolist() for index in computed_split(*one)] for one in asked}
    write_whole(SPLITS, (json.dumps(found, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    main()
