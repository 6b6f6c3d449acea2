"""Arrays of NumPy by their names, in a `.npz` or a folder of `.npy`, read without pickle or surprises."""

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

GROWTH = 100
"""Times a compressed `.npz` may be as large in memory as it is as a file, at most: more is a bomb."""

KEYS = (
    "inputs (or one array per input, by its name), targets, weights, the three with train_ before, metric, outputs "
    "and held"
)


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """The arrays of an archive by name. inputs: of the evaluation samples, train_inputs: of those for training.

    labels, train_labels: targets and weights, where there are any. held: inputs that are the same for all samples.
    """

    inputs: dict[str, Tensor]
    train_inputs: dict[str, Tensor]
    labels: tuple[Tensor | None, Tensor | None]
    train_labels: tuple[Tensor | None, Tensor | None]
    held: dict[str, Tensor]
    metric: str | None
    outputs: tuple[str, ...]


def read_named(path: Path, names: Sequence[str] = ()) -> Named:
    """Inputs, targets and weights, array by array, and inputs that are the same for all samples: a single number each,
    or those that an array `held` names.

    An array `inputs` stands for the first input there is no other array of. Raises InvalidData where the file
    is damaged, holds objects, other keys, or claims more than it holds.
    """
    arrays = _arrays(path)
    metric = arrays.pop("metric", None)
    outputs = () if "outputs" in names else _texts(arrays.pop("outputs", None), path, "outputs")
    said = () if "held" in names else _texts(arrays.pop("held", None), path, "held")
    if strange := [name for name in said if name not in names]:
        raise InvalidData(f"{path}: held names {few(strange)}, but the network takes {', '.join(names)}.")
    held = {
        name: _tensor(arrays.pop(name), name, path, alone=True)
        for name in names
        if name in arrays and (name in said or arrays[name].ndim == 0)
    }
    sets = []
    for prefix in ("", "train_"):
        inputs = _inputs(arrays, [name for name in names if name not in held], prefix, path)
        beside = [f"{prefix}{name}" for name in ("targets", "weights") if f"{prefix}{name}" not in names]
        labels = {name: _tensor(arrays.pop(name), name, path) for name in beside if name in arrays}
        if labels and not inputs:
            raise InvalidData(f"{path} holds {' and '.join(labels)}, but no {prefix}inputs; save both.")
        sets.append((inputs, (labels.get(f"{prefix}targets"), labels.get(f"{prefix}weights"))))
    if arrays or not sets[0][0]:
        if held and not arrays:
            raise InvalidData(no_samples(path, *next(iter(held.items()))))
        strange_ones = f"it has {few(sorted(arrays))} besides" if arrays else "it has no inputs"
        raise InvalidData(f"{path} must hold {KEYS}, but {strange_ones}.")
    (inputs, labels_given), (train, train_given) = sets
    text = None if metric is None else str(metric)
    return Named(inputs, train, labels_given, train_given, held, text, outputs)


def _inputs(arrays: dict[str, np.ndarray], names: Sequence[str], prefix: str, path: Path) -> dict[str, Tensor]:
    """The inputs of one set, in the order of the names."""
    left = [name for name in names if f"{prefix}{name}" not in arrays]
    alone = f"{prefix}inputs"
    if alone in arrays and alone not in [f"{prefix}{name}" for name in names]:
        arrays[f"{prefix}{left[0] if left else 'inputs'}"] = arrays.pop(alone)
    given = names or ["inputs"]
    return {n: _tensor(arrays.pop(f"{prefix}{n}"), f"{prefix}{n}", path) for n in given if f"{prefix}{n}" in arrays}


def _texts(array: np.ndarray | None, path: Path, name: str) -> tuple[str, ...]:
    """Names, or places as texts."""
    if array is None:
        return ()
    if array.dtype.kind not in "Uiu":
        raise InvalidData(f"{path}: {name} must be an array of names or places, but is {array.dtype}.")
    return tuple(str(text) for text in array.reshape(-1))


def _tensor(array: np.ndarray, name: str, path: Path, *, alone: bool = False) -> Tensor:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or (array.ndim == 0 and not alone):
        raise InvalidData(no_samples(path, name, array))
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    whole = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(whole).reshape(array.shape)


def no_samples(path: Path, name: str, array: np.ndarray | Tensor) -> str:
    """What is wrong with an array that cannot be samples, in one line."""
    return (
        f"{path}: {name} must be an array of whole numbers or of floats of at most 64 bits, (N, ...), but is "
        f"{str(array.dtype).removeprefix('torch.')} {tuple(array.shape)}."
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array, after each header has been held against the bytes that are there."""
    if path.suffix.lower() != ".npz":
        files = {"inputs": path} if path.is_file() else {file.stem: file for file in sorted(path.glob("*.npy"))}
        return {name: _array_in(file) for name, file in files.items()}
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


def _array_in(path: Path) -> np.ndarray:
    """The array of a `.npy`."""
    try:
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size, str(path))
            file.seek(0)
            return np.asarray(np.load(file, allow_pickle=False))
    except (InvalidData, OSError):
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise InvalidData(f"{path} cannot be read ({cause}); write it with numpy.save.") from error


def _check_header(file: IO[bytes], size: int, where: str) -> None:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise InvalidData(f"{where} holds Python objects, which could run code; save plain arrays.")
    if any(n < 0 for n in shape) or prod(shape) * dtype.itemsize != size - file.tell():
        raise InvalidData(f"{where} claims the shape {shape} of {dtype}, but holds {size - file.tell():,} bytes.")
