"""The file of a history: read as far as it fits, merged with what others have saved since, never overwritten unread."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lowrank_core.networks.profile import ModelProfile
from lowrank_core.store.documents import Fault, Kind, Unfit, sealed, set_aside, unsealed
from lowrank_core.store.files import write_whole
from lowrank_core.store.lock import locked
from pages.ui.history import History, ReadHistory, and_so_on, read_history
from pages.ui.merging import Merged, merge

KIND = Kind("history", version=2, bare=True)
"""Version 2 has branches, times, notes and removed snapshots; one of version 1 is read as it is."""

LARGEST_BYTES = 64 * 10**6
"""Bytes of the file of a history, at most; one that is larger was written by nobody's clicks; it is not read."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A history as it lies on disk. revision: what tells the file from any other content; "" where there is none."""

    history: History
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file holds, None where there is none or nothing of it fits; said: what became of the rest, in one line."""

    kept: Kept | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class Saved:
    """What lies on disk now: mine, with what others have written since."""

    kept: Kept
    merged: Merged
    said: str = ""


def load(path: Path, profile: ModelProfile) -> Loaded:
    """Read a history; a file that does not fit as it is gets another name, and what fits of it is written anew.

    Raises OSError where that cannot be done.
    """
    content = _content(path)
    if content is None:
        return Loaded()
    read, _, _ = _read(content, profile)
    if read.history is not None and not read.left_out:
        return Loaded(Kept(read.history, revision(content)))
    with locked(path.parent):
        return _load_or_set_aside(path, profile)


def look(path: Path, profile: ModelProfile) -> Loaded:
    """What a file holds that somebody else writes: nothing of it is changed, whatever it is. Never raises."""
    try:
        content = _content(path)
    except OSError:
        content = None
    if content is None:
        return Loaded()
    read, _, why = _read(content, profile)
    kept = None if read.history is None else Kept(read.history, revision(content))
    if kept is None:
        return Loaded(None, f"The saved plans that this address shows are {why}.")
    if read.left_out:
        return Loaded(kept, f"Of the saved plans that this address shows {and_so_on(read.left_out)} cannot be shown.")
    return Loaded(kept)


def save(path: Path, base: Kept, mine: History, profile: ModelProfile) -> Saved:
    """Write my history; where the file is no more what it was at `base`, merged with what it holds. Raises OSError."""
    with locked(path.parent):
        content = _content(path)
        if content is None or revision(content) == base.revision:
            return Saved(_write(path, mine), Merged(mine))
        found = _load_or_set_aside(path, profile)
        merged = Merged(mine) if found.kept is None else merge(base.history, mine, found.kept.history)
        return Saved(_write(path, merged.history), merged, found.said)


def changed(path: Path, base: Kept) -> bool:
    """Whether another one has written the file since; raises OSError."""
    content = _content(path)
    return content is not None and revision(content) != base.revision


def revision(content: bytes) -> str:
    """A word that no other content has."""
    return hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        return None


def _read(content: bytes, profile: ModelProfile) -> tuple[ReadHistory, Fault, str]:
    """As far as it can be read; if not wholly, what is wrong with it."""
    if len(content) > LARGEST_BYTES:
        return ReadHistory(), "damaged", f"larger than {LARGEST_BYTES // 10**6} MB"
    try:
        read = read_history(unsealed(KIND, content), profile)
    except Unfit as unfit:
        return ReadHistory(), unfit.fault, str(unfit)
    return read, "damaged", "damaged, or another network's"


def _load_or_set_aside(path: Path, profile: ModelProfile) -> Loaded:
    content = _content(path)
    if content is None:
        return Loaded()
    read, fault, why = _read(content, profile)
    if read.history is not None and not read.left_out:
        return Loaded(Kept(read.history, revision(content)))
    aside = set_aside(path, fault)
    if read.history is None:
        return Loaded(None, f"The saved plans of this address are {why}: they are kept as {aside}, and new ones begin.")
    return Loaded(
        _write(path, read.history),
        f"Of the saved plans of this address {and_so_on(read.left_out)} cannot be taken over: not as written, more "
        f"than are kept, or no longer fit for this network. All of it is kept as {aside}.",
    )


def _write(path: Path, history: History) -> Kept:
    document = sealed(KIND, history.to_json().encode())
    write_whole(path, document)
    return Kept(history, revision(document))
