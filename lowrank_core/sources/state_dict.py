"""Weights that `torch.save` or `torch.jit.save` has written: a state_dict, a training checkpoint, a whole network.

They are told by their content, whatever their suffix, and read without running any code of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from torch import Tensor

from lowrank_core.errors import InvalidFile, UnknownModel
from lowrank_core.sources import Source, register
from lowrank_core.sources._shards import index_in, of_index
from lowrank_core.sources._stored import StoredTensor
from lowrank_core.sources._weights import Weights, weights_of
from lowrank_core.store.reference import file_and_part
from lowrank_core.store.trained import WeightSets, read_sets

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".t7", ".pkl", ".pickle", ".jit", ".ptl")
INDEX = ".bin.index.json"
SHARDS = "*model*.bin"
"""Files of a folder that hold weights; optimizers and schedulers lie beside them."""

OTHERS = (".npz", ".npy", ".zip", ".whl", ".docx", ".xlsx", ".jar")
"""Endings of archives that are never those of torch.save."""

DISTRIBUTED = {
    ".metadata": "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt",
    "zero_to_fp32.py": "python zero_to_fp32.py . FILE.pt, in that folder",
    "*.distcp": "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt",
}
"""What lies in a folder to which each process of a run wrote its own part, and how it is put together."""


def _accepts(ref: str) -> bool:
    path, _ = file_and_part(ref)
    if path.is_dir():
        return any(any(path.glob(pattern)) for pattern in (SHARDS, f"*{INDEX}", *DISTRIBUTED))
    if path.name.endswith((*SUFFIXES, INDEX)):
        return True
    return path.is_file() and path.suffix.lower() not in OTHERS and _head(path) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _open(ref: str) -> Weights:
    """The weights under the usual key; the notices say what was taken and what was left. Raises InvalidFile."""
    named, part = file_and_part(ref)
    path = named.resolve()
    if not path.exists():
        raise UnknownModel(f"there is no file {ref}.")
    if path.is_dir():
        return _of_folder(path, part)
    if path.name.endswith(INDEX):
        return _of_index(path, path.name.removesuffix(INDEX), part)
    held = read_sets(path)
    sets = {key: {name: _stored(name, value) for name, value in names.items()} for key, names in held.sets.items()}
    return weights_of(
        path, path.stem, "Weights in a file of torch.save.", WeightSets(path, sets, held.keys, held.notices), part
    )


def _of_folder(path: Path, part: str) -> Weights:
    for pattern, remedy in DISTRIBUTED.items():
        if any(path.glob(pattern)):
            raise InvalidFile(
                f"{path} is a folder of a distributed run, in which each process wrote its own part of the tensors; "
                f"put them together first: {remedy}."
            )
    if index := index_in(path, INDEX):
        return _of_index(index, path.name, part)
    files = sorted(path.glob(SHARDS))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InvalidFile(f"{path} has several files of weights and no index; name one of {names}.")
    return _open(f"{files[0]}#{part}" if part else str(files[0]))


def _of_index(path: Path, name: str, part: str) -> Weights:
    tensors = {tensor.name: tensor for tensor in of_index(path, _of_shard)}
    return weights_of(path, name, "Weights in several files.", tensors, part)


def _of_shard(path: Path) -> Iterable[StoredTensor]:
    sets = read_sets(path).sets
    return [_stored(name, value) for name, value in next(iter(sets.values())).items()]


def _stored(name: str, value: Tensor) -> StoredTensor:
    kind = str(value.dtype).removeprefix("torch.")
    same = (value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else ()
    size = value.numel() * value.element_size()
    return StoredTensor(name, tuple(value.shape), value.dtype, kind, size, partial(_rows, value), same)


def _rows(value: Tensor, rows: slice) -> Tensor:
    return value.detach()[rows] if value.ndim else value.detach()


register(
    Source(
        "state_dict",
        _accepts,
        _open,
        "weights of torch.save or torch.jit.save (.pt, .pth, .ckpt, .bin, any other suffix)",
    )
)
