"""Lists that a session keeps in files: what it has asked for, which weights it has trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from lowrank_core.store.documents import Fault, Kind, Unfit, sealed, set_aside, unsealed
from lowrank_core.store.files import write_whole
from lowrank_core.store.lock import locked

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Notes(Generic[T]):
    """What a list is of, and how one entry is read: None where it cannot be. words: what it is, for people."""

    kind: Kind
    words: str
    read: Callable[[Any], T | None]


@dataclass(frozen=True, slots=True)
class Noted(Generic[T]):
    """The entries that can be read; said: what became of the others, in one line."""

    entries: tuple[T, ...] = ()
    said: str = ""


def read_notes(path: Path, notes: Notes[T]) -> Noted[T]:
    """The entries of a file; one that is not whole gets another name, what can be read is written anew.

    Raises OSError.
    """
    entries, lost, _ = _read(path, notes)
    if not lost:
        return Noted(entries)
    with locked(path.parent):
        return _read_or_set_aside(path, notes)


def change_notes(
    path: Path,
    notes: Notes[T],
    change: Callable[[tuple[T, ...]], tuple[T, ...]],
    encode: Callable[[tuple[T, ...]], bytes],
) -> Noted[T]:
    """Write what `change` makes of the entries, those that another one has written meanwhile among them.

    Raises OSError.
    """
    with locked(path.parent):
        noted = _read_or_set_aside(path, notes)
        entries = change(noted.entries)
        write_whole(path, sealed(notes.kind, encode(entries)))
        return Noted(entries, noted.said)


def _read(path: Path, notes: Notes[T]) -> tuple[tuple[T, ...], str, Fault]:
    """(entries, what is lost in words, the fault)."""
    try:
        content = unsealed(notes.kind, path.read_bytes())
        listed = msgspec.json.decode(content, type=list[Any])
    except FileNotFoundError:
        return (), "", "damaged"
    except Unfit as unfit:
        return (), f"{notes.words} are {unfit}", unfit.fault
    except (msgspec.DecodeError, RecursionError):
        return (), f"{notes.words} are damaged", "damaged"
    entries = tuple(entry for one in listed if (entry := notes.read(one)) is not None)
    lost = len(listed) - len(entries)
    return entries, f"of {notes.words} {lost} of {len(listed)} cannot be taken over" if lost else "", "damaged"


def _read_or_set_aside(path: Path, notes: Notes[T]) -> Noted[T]:
    entries, lost, fault = _read(path, notes)
    if not lost:
        return Noted(entries)
    aside = set_aside(path, fault)
    return Noted(entries, f"{lost[0].upper()}{lost[1:]}; all of it is kept as {aside}.")
