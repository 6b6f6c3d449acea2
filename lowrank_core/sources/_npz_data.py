"""Data beside a model that is no Python file: arrays in a `.npz` of NumPy, read without pickle or surprises."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from lowrank_core.errors import InvalidData, few
from lowrank_core.layers.data import Dataset, Inputs
from lowrank_core.sources._opened import as_dataset

GROWTH = 100
"""Times a compressed `.npz` may be as large in memory as it is as a file, at most: more is a bomb."""

KEYS = (
    "inputs (or one array per input, by its name), targets, weights, the three with train_ before, metric and outputs"
)


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

    >>> np.savez("m.npz", inputs=images, targets=labels)  # doctest: +SKIP

    Raises InvalidData where the file is damaged, holds objects, other keys, or claims more than it holds.
    """
    arrays = _arrays(path)
    metric = arrays.pop("metric", None)
    outputs = () if "outputs" in names else _texts(arrays.pop("outputs", None), path)
    sets: dict[str, Dataset] = {}
    for prefix in ("", "train_"):
        inputs = _inputs(arrays, names, prefix, path)
        beside = [f"{prefix}{name}" for name in ("targets", "weights") if f"{prefix}{name}" not in names]
        given = {name: _tensor(arrays.pop(name), name, path) for name in beside if name in arrays}
        if inputs is not None:
            labels, weights = (given.get(f"{prefix}{name}") for name in ("targets", "weights"))
            sets[prefix] = as_dataset(Dataset(inputs, labels, weights), f"{path}, {prefix}inputs")
        elif given:
            raise InvalidData(f"{path} holds {' and '.join(given)}, but no {prefix}inputs; save both.")
    if arrays or "" not in sets:
        strange = f"it has {few(sorted(arrays))} besides" if arrays else "it has no inputs"
        raise InvalidData(f"{path} must hold {KEYS}, but {strange}.")
    return NpzData(sets[""], sets.get("train_"), None if metric is None else str(metric), outputs)


def _inputs(arrays: dict[str, np.ndarray], names: Sequence[str], prefix: str, path: Path) -> Inputs | None:
    given = [f"{prefix}{name}" for name in names if f"{prefix}{name}" in arrays]
    if not given and len(names) < 2:
        given = [f"{prefix}inputs"] if f"{prefix}inputs" in arrays else []
    if not given:
        return None
    if len(given) < len(names):
        missing = [f"{prefix}{name}" for name in names if f"{prefix}{name}" not in given]
        raise InvalidData(f"{path} lacks {', '.join(missing)}; the network takes {', '.join(names)}.")
    inputs = tuple(_tensor(arrays.pop(name), name, path) for name in given)
    return inputs if len(inputs) > 1 else inputs[0]


def _texts(array: np.ndarray | None, path: Path) -> tuple[str, ...]:
    """Names, or places as texts."""
    if array is None:
        return ()
    if array.dtype.kind not in "Uiu":
        raise InvalidData(f"{path}: outputs must be an array of names or places, but is {array.dtype}.")
    return tuple(str(text) for text in array.reshape(-1))


def _tensor(array: np.ndarray, name: str, path: Path) -> Tensor:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or array.ndim == 0:
        raise InvalidData(
            f"{path}: {name} must be an array of whole numbers or of floats of at most 64 bits, (N, ...), but is "
            f"{array.dtype} {array.shape}."
        )
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array, after each header has been held against the bytes that are there."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size, claimed = path.stat().st_size, sum(member.file_size for member in members)
            if claimed > GROWTH * size:
                raise InvalidData(
                    f"{path} would be {claimed:,} bytes in memory from {size:,} in the file; save it with numpy.savez."
                )
            for member in members:
                with archive.open(member) as file:
                    _check_header(file, member.file_size, f"{path}: {member.filename}")
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except InvalidData:
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise InvalidData(f"{path} cannot be read ({cause}); write it with numpy.savez.") from error


def _check_header(file: IO[bytes], size: int, where: str) -> None:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise InvalidData(f"{where} holds Python objects, which could run code; save plain arrays.")
    if any(n < 0 for n in shape) or prod(shape) * dtype.itemsize != size - file.tell():
        raise InvalidData(f"{where} claims the shape {shape} of {dtype}, but holds {size - file.tell():,} bytes.")
