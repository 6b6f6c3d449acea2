"""A state_dict or a training checkpoint written by `torch.save`: weights alone, read without running any code."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from lowrank_core.errors import UnknownModel, few
from lowrank_core.sources import Source, register
from lowrank_core.sources._weights import StoredTensor, Weights
from lowrank_core.store.torch_file import read_checkpoint


def _open(ref: str) -> Weights:
    """The weights under the usual key; the notices say what was taken and what was left. Raises InvalidFile."""
    path = Path(ref).expanduser().resolve()
    if not path.is_file():
        raise UnknownModel(f"there is no file {ref}.")
    state, notices = read_checkpoint(path)
    first: dict[tuple[object, ...], str] = {}
    tensors = []
    tied = []
    for name, value in state.items():
        identity = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and identity in first:
            tied.append(f"{name} is {first[identity]}")
            continue
        first[identity] = name
        tensors.append(_stored(name, value))
    if tied:
        notices += (f"Tied tensors are listed once: {few(tied)}.",)
    return Weights(str(path), path.stem, "Weights in a file of torch.save.", tuple(tensors), notices)


def _stored(name: str, value: Tensor) -> StoredTensor:
    kind = str(value.dtype).removeprefix("torch.")
    return StoredTensor(
        name, tuple(value.shape), value.dtype, kind, value.numel() * value.element_size(), partial(_rows, value)
    )


def _rows(value: Tensor, rows: slice) -> Tensor:
    return value.detach()[rows] if value.ndim else value.detach()


register(
    Source(
        "state_dict",
        lambda ref: ref.endswith((".pt", ".pth", ".ckpt", ".bin", ".tar")),
        _open,
        "a state_dict or training checkpoint (.pt, .pth, .ckpt, .bin, .tar)",
    )
)
