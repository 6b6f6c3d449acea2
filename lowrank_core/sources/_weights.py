"""Weights: the tensors of a file, known by name and shape, each read when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lowrank_core.algebra.gram import row_blocks
from lowrank_core.errors import InvalidFile, cut, few
from lowrank_core.layers.data import octets
from lowrank_core.networks.profile import name_fault
from lowrank_core.sources._adapter import CONFIG, Adapter, adapter_of
from lowrank_core.sources._stored import StoredTensor
from lowrank_core.store.trained import WeightSets, alone

MOST_TENSORS = 100_000
"""Tensors in the weights of a model, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a file of weights alone tells: no structure, so nothing can be run, compressed or exported.

    tensors: those of the usual key, by the names that a network would have. sets: all that a network is filled from.
    wanting: what a network would need to be run, where the file holds one. adapter: the pairs, where they are a LoRA's.
    Raises InvalidFile for more than MOST_TENSORS, and for names that cannot be shown or kept.
    """

    ref: str
    name: str
    description: str
    tensors: tuple[StoredTensor, ...]
    notices: tuple[str, ...] = ()
    sets: WeightSets[StoredTensor] | None = None
    wanting: str = ""
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        if len(self.tensors) > MOST_TENSORS:
            raise InvalidFile(
                f"{self.ref} holds {len(self.tensors):,} tensors, at most {MOST_TENSORS:,} are taken; give a part of "
                "them."
            )
        for tensor in self.tensors:
            if fault := name_fault(tensor.name):
                raise InvalidFile(f"{self.ref}: the name {cut(tensor.name)!r} of a tensor {fault}.")

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(tensor.bytes for tensor in self.tensors)


def weights_of(
    path: Path,
    name: str,
    description: str,
    sets: Mapping[str, StoredTensor] | WeightSets[StoredTensor],
    part: str,
) -> Weights:
    """The weights of a file as they are shown without a network. part: the key that a person chose; '' the usual one.

    sets: tensors by name, or several such sets. Raises InvalidFile.
    """
    held = sets if isinstance(sets, WeightSets) else WeightSets(path, {"": sets})
    state, notices = alone(held, part)
    first: dict[tuple[object, ...], str] = {}
    tensors, tied = [], []
    for title, tensor in state.items():
        if tensor.identity and tensor.identity in first:
            tied.append(f"{title} is {first[tensor.identity]}")
            continue
        first[tensor.identity] = title
        tensors.append(replace(tensor, name=title))
    if tied:
        notices += (f"Tied tensors are listed once: {few(tied)}.",)
    (named,) = held.part(part).values() if part else [next(iter(held.sets.values()))]
    adapter = adapter_of(path, named)
    if adapter is not None:
        description = "A LoRA adapter."
        if any(pair.scale is None for pair in adapter.pairs):
            notices += (f"There is no {CONFIG} beside it, so what its products are multiplied by is not known.",)
    ref = f"{path}#{part}" if part else str(path)
    return Weights(ref, name, description, tuple(tensors), notices, held, adapter=adapter)


def fingerprint(weights: Weights) -> str:
    """The fingerprint of a model with these weights as its state_dict; reads every byte, in little memory."""
    digest = hashlib.sha256()
    for tensor in sorted(weights.tensors, key=lambda one: one.name):
        digest.update(f"{tensor.name}|".encode())
        _add(digest, tensor)
    return f"sha256:{digest.hexdigest()}"


def content_hash(tensor: StoredTensor) -> str:
    """Of one tensor, whatever its name: half a second for a gigabyte."""
    digest = hashlib.sha256()
    _add(digest, tensor)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, tensor: StoredTensor) -> None:
    digest.update(f"{tensor.dtype}|{tensor.shape}|".encode())
    rows = tensor.shape[0] if tensor.shape else 1
    for part in row_blocks(rows, tensor.elements // max(1, rows)):
        digest.update(octets(tensor.read(part)))
