"""Data as people have it: each file of this package reads one kind of file or folder as samples of a network.

A reader is a function `read(path, takes, preparation) -> Samples`, registered with a predicate that says whether a path
is its kind. It says what it is doing by `report`, and stops at the limits of `samples.limits`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lowrank_core.errors import InvalidData, cut
from lowrank_core.readers._folders import is_empty, split_of
from lowrank_core.registry import enter, register_all
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.samples import Samples, Taken


@dataclass(frozen=True, slots=True)
class Reader:
    """One kind of data: which paths are of it, and how they are read. example: how it is called in a message."""

    name: str
    accepts: Callable[[Path], bool]
    read: Callable[[Path, Sequence[Taken], Preparation], Samples]
    example: str


READERS: dict[str, Reader] = {}


def register(reader: Reader) -> Reader:
    """Make a kind of data known."""
    return enter(READERS, reader, "reader")


def read(path: Path, takes: Sequence[Taken], preparation: Preparation) -> Samples:
    """The samples of a file or folder for a network that takes these inputs, with those for training where it has both.

    A folder with parts (train beside val or test) is read part by part. Raises InvalidData in one line for what is
    missing, of no known kind, or does not fit.
    """
    try:
        parts = split_of(path)
        if parts is None:
            return _read(path, takes, preparation)
        evaluated, trained = parts
        samples = _read(evaluated, takes, preparation)
        return samples if trained is None else replace(samples, train=_read(trained, takes, preparation))
    except (OSError, RuntimeError) as error:  # pathlib says RuntimeError of links that lead to themselves
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InvalidData(f"{getattr(error, 'filename', None) or path} cannot be read: {cut(reason, 200)}.") from error


def _read(path: Path, takes: Sequence[Taken], preparation: Preparation) -> Samples:
    there = path.is_file() or path.is_dir()
    for reader in READERS.values():
        if there and reader.accepts(path):
            return reader.read(path, takes, preparation)
    if there and path.is_dir() and is_empty(path):
        raise InvalidData(f"{path} is empty; it must hold samples.")
    kinds = "; ".join(reader.example for reader in READERS.values())
    if there:
        raise InvalidData(f"{path} is no data of a known kind; give one of: {kinds}.")
    raise InvalidData(f"there is no file or folder {path} to read samples from.")


register_all(__name__, __path__)
