"""Weights in safetensors: one file, or the shards of a large checkpoint. Only headers are read at first.

The format: 8 bytes with the length of a JSON header, the header (dtype, shape and place of each tensor), the tensors
without gaps (github.com/huggingface/safetensors). It is read here and not by the library, which maps whole files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_core.errors import InvalidFile, UnknownModel
from lowrank_core.sources import Source, register
from lowrank_core.sources._pretrained_folder import FILES, architecture_in, beyond_memory
from lowrank_core.sources._shards import LARGEST_HEADER, index_in, of_index, read_object
from lowrank_core.sources._stored import StoredTensor
from lowrank_core.sources._weights import Weights, weights_of
from lowrank_core.store.reference import file_and_part

SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def _accepts(ref: str) -> bool:
    path, _ = file_and_part(ref)
    return path.name.endswith((SUFFIX, INDEX)) or (path.is_dir() and any(path.glob(f"*{SUFFIX}")))


def _open(ref: str) -> Weights:
    """Weights of a file, of an index with its shards, or of a folder of shards; raises InvalidFile."""
    named, part = file_and_part(ref)
    path = named.resolve()
    if not path.exists():
        raise UnknownModel(f"there is no file {ref}.")
    if path.is_dir():
        index = index_in(path, INDEX)
        tensors = of_index(index, _of_file) if index else _of_shards(sorted(path.glob(f"*{SUFFIX}")))
        weights = weights_of(path, path.name, f"Weights in a folder of {SUFFIX}.", _in_order(tensors), part)
        too_large = beyond_memory(path) if architecture_in(path) else ""
        return replace(weights, notices=(*weights.notices, too_large)) if too_large else weights
    name = path.name.removesuffix(INDEX).removesuffix(SUFFIX)
    if path.name in FILES and architecture_in(path.parent):  # all such files have one name
        name = path.parent.name
    if path.name.endswith(INDEX):
        return weights_of(path, name, "Weights in several files.", _in_order(of_index(path, _of_file)), part)
    return weights_of(path, name, "Weights in a file.", _in_order(_of_file(path)), part)


def _in_order(tensors: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    """By their names, in order, numbers as numbers: writers sort 'layers.10' before 'layers.2'."""

    def key(tensor: StoredTensor) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", tensor.name)]

    return {tensor.name: tensor for tensor in sorted(tensors, key=key)}


def _of_shards(paths: list[Path]) -> list[StoredTensor]:
    by_name: dict[str, StoredTensor] = {}
    for path in paths:
        for tensor in _of_file(path):
            if tensor.name in by_name:
                raise InvalidFile(
                    f"{path.parent} holds {tensor.name!r} in several files; give the one that is meant, or the index."
                )
            by_name[tensor.name] = tensor
    return list(by_name.values())


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the rows of a tensor lie in a file."""

    path: Path
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self, rows: slice) -> Tensor:
        shape = (len(range(*rows.indices(self.shape[0]))), *self.shape[1:]) if self.shape else ()
        size = prod(shape) * self.dtype.itemsize
        if not size:
            return torch.empty(shape, dtype=self.dtype)
        first = rows.indices(self.shape[0])[0] if self.shape else 0
        buffer = bytearray(size)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.begin + first * prod(self.shape[1:]) * self.dtype.itemsize)
            read, view = 0, memoryview(buffer)
            while count := file.readinto(view[read:]):
                read += count
        if read < size:
            raise InvalidFile(f"{self.path} became shorter while it was read; open it again.")
        return torch.frombuffer(buffer, dtype=self.dtype).reshape(shape)


def _of_file(path: Path) -> list[StoredTensor]:
    """Every tensor of one file; raises InvalidFile unless they fill it exactly, one after the other."""
    file_size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file_size < 8 or length > file_size - 8 or length > LARGEST_HEADER:
            raise InvalidFile(
                f"{path} is no safetensors file, or cut short: its header claims {length:,} bytes of {file_size:,}, "
                f"at most {LARGEST_HEADER:,} are read."
            )
        header = read_object(file.read(length), path)
    header.pop("__metadata__", None)
    places = {name: _entry(name, entry, path) for name, entry in header.items()}
    at = 0
    for name, (kind, shape, begin, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        size = DTYPES[kind].itemsize * prod(shape) if kind in DTYPES else end - begin
        if prod(shape) > 8 * size:
            raise _lies(path, name, f"{prod(shape):,} numbers of {kind[:20]} cannot be held in {size:,} bytes")
        if begin != at or end - begin != size:
            raise _lies(path, name, f"{size:,} bytes from {at:,} on must hold it, but it claims {begin:,} to {end:,}")
        at = end
    if at != file_size - 8 - length:
        raise InvalidFile(
            f"{path} is damaged: its tensors take {at:,} bytes, but {file_size - 8 - length:,} are there."
        )
    tensors = []
    for name, (kind, shape, begin, end) in places.items():
        dtype = DTYPES.get(kind)
        read = _Place(path, 8 + length + begin, shape, dtype or torch.uint8)
        tensors.append(StoredTensor(name, shape, dtype, kind, end - begin, read))
    return tensors


def _entry(name: str, entry: Any, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    """(kind, shape, begin, end) of one tensor."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise _lies(path, name, "it has no dtype")
    shape, offsets = _numbers(entry.get("shape")), _numbers(entry.get("data_offsets"))
    if shape is None or offsets is None:
        raise _lies(path, name, "shape and data_offsets must be lists of numbers from 0 on")
    if len(offsets) != 2 or offsets[0] > offsets[1] or len(shape) > 64:
        raise _lies(path, name, "data_offsets must be where it begins and where it ends")
    return entry["dtype"], shape, offsets[0], offsets[1]


def _numbers(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        return None
    return tuple(value)


def _lies(path: Path, name: str, why: str) -> InvalidFile:
    return InvalidFile(f"{path} is damaged or was made to do harm: of tensor {name[:80]!r}, {why}.")


register(Source("safetensors", _accepts, _open, "weights alone (.safetensors, an index of shards, a folder of shards)"))
