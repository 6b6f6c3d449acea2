"""Data beside a model that is no Python file: arrays in a `.npz` of NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_core.errors import InvalidData
from lowrank_core.layers.data import Dataset
from lowrank_core.readers._npz import no_samples, read_named
from lowrank_core.sources._opened import as_dataset


@dataclass(frozen=True, slots=True, eq=False)
class NpzData:
    """What an archive holds. metric: a name of METRICS, None where it names none; outputs: names of those judged."""

    eval: Dataset
    train: Dataset | None = None
    metric: str | None = None
    outputs: tuple[str, ...] = ()


def read_npz(path: Path, names: Sequence[str] = ()) -> NpzData:
    """Arrays `inputs` (N, ...), or one per name in `names`; optionally `targets` and `weights` (N,), how much each
    sample counts, all as `train_...`, `metric`, and `outputs`, the names of those that are judged.

    Inputs are a Tensor where the network has one, a tuple in the order of `names` where it has several.

    >>> numpy.savez("m.npz", inputs=images, targets=labels)  # doctest: +SKIP

    Raises InvalidData where the file is damaged, holds objects, other keys, or claims more than it holds.
    """
    named = read_named(path, names)
    for name, array in named.held.items():
        raise InvalidData(no_samples(path, name, array))
    sets: dict[str, Dataset] = {}
    given = (("", named.inputs, named.labels), ("train_", named.train_inputs, named.train_labels))
    for prefix, inputs, (targets, weights) in given:
        if not inputs:
            continue
        missing = [f"{prefix}{name}" for name in names if name not in inputs]
        if names and missing:
            raise InvalidData(f"{path} lacks {', '.join(missing)}; the network takes {', '.join(names)}.")
        listed = tuple(inputs.values())
        value = listed if len(listed) > 1 else listed[0]
        sets[prefix] = as_dataset(Dataset(value, targets, weights), f"{path}, {prefix}inputs")
    return NpzData(sets[""], sets.get("train_"), named.metric, named.outputs)
