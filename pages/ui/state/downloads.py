"""Downloads: files that were written for this session; they are gone when the server ends."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from pathlib import Path

import streamlit as st

from lowrank_core.exports import Exported
from lowrank_core.plans.candidate import Candidate
from lowrank_core.store.files import scratch
from lowrank_core.store.room import Recent
from lowrank_core.workspace import Workspace
from pages.ui import words
from pages.ui.at_start import place_for
from pages.ui.state import models
from pages.ui.state.session import session_id
from pages.ui.tuning import Tuned

MOST_EXPORTED_BYTES = 4 * 10**9
"""Files that wait for their download take at most this, for all sessions; the oldest go first."""


MOST_TIMED = 500
"""Kinds of files, counted once for each network, of which it is known how long the last one took."""


@st.cache_resource
def _exports() -> Path:
    until_the_end = ExitStack()
    atexit.register(until_the_end.close)
    return until_the_end.enter_context(scratch())


def folder() -> Path:
    """Where this session's files are written before they are downloaded; gone when the server ends."""
    own = _exports() / session_id()
    own.mkdir(parents=True, exist_ok=True)
    return own


def place(folder_name: str, file: str) -> Path:
    """Where a file goes: into the folder that a person has named, or this session's own; raises InvalidFile."""
    return place_for(file, folder_name, never=_exports()) if folder_name else folder() / file


@st.cache_resource
def _seconds() -> Recent[tuple[str, str], float]:
    return Recent(MOST_TIMED)


def note_took(workspace: Workspace, kind: str, seconds: float) -> None:
    """Remember how long a file of a kind took, for whoever writes the next one of that network."""
    _seconds()[models.key(workspace), kind] = seconds


def took(workspace: Workspace, kind: str) -> str | None:
    """How long the last file of a kind took of this network, in words; None before the first."""
    key = models.key(workspace), kind
    return words.duration(max(1.0, _seconds()[key])) if key in _seconds() else None


def ask_to_replace(path: Path) -> None:
    """Remember for this session that it is asked whether that file, which is there, may be replaced."""
    st.session_state["replace"] = (path, False)


def agree_to_replace(path: Path) -> None:
    """Remember that it may, until it is written."""
    st.session_state["replace"] = (path, True)


def asked_to_replace(path: Path) -> bool | None:
    """Whether this session has agreed to replace that file; None where it has not been asked."""
    latest: tuple[Path, bool] | None = st.session_state.get("replace")
    return latest[1] if latest and latest[0] == path else None


def forget_to_replace() -> None:
    """Ask again the next time."""
    st.session_state.pop("replace", None)


def written(workspace: Workspace, kind: str, source: Candidate | Tuned) -> Exported | None:
    """The file of that kind, if the latest one was written of this network for this candidate, or these weights."""
    latest: tuple[str, Candidate | Tuned, Exported] | None = st.session_state.get(f"written {kind}")
    return latest[2] if latest and latest[:2] == (models.key(workspace), source) else None


def keep_written(workspace: Workspace, kind: str, source: Candidate | Tuned, exported: Exported) -> None:
    """Remember for this session the latest file of a kind, and make room by removing old ones."""
    st.session_state[f"written {kind}"] = (models.key(workspace), source, exported)
    st.session_state.pop(f"refused {kind}", None)
    forget_to_replace()
    keep_newest(_exports(), MOST_EXPORTED_BYTES)


def made(kind: str, about: object) -> bytes | None:
    """What was made last of that kind for this session, if it is about the same."""
    latest: tuple[object, bytes] | None = st.session_state.get(f"made {kind}")
    return latest[1] if latest and latest[0] == about else None


def keep_made(kind: str, about: object, content: bytes) -> None:
    """Remember it, in place of what was made before."""
    st.session_state[f"made {kind}"] = (about, content)


def refused(kind: str, source: Candidate | Tuned) -> str | None:
    """Why the latest file of that kind was not saved, if it was of this candidate and answered otherwise than it."""
    latest: tuple[Candidate | Tuned, str] | None = st.session_state.get(f"refused {kind}")
    return latest[1] if latest and latest[0] == source else None


def keep_refused(kind: str, source: Candidate | Tuned, why: str) -> None:
    """Remember for this session that a file of that kind answered otherwise, so that it can be accepted."""
    st.session_state[f"refused {kind}"] = (source, why)
    st.session_state.pop(f"written {kind}", None)


def keep_newest(folder: Path, most_bytes: int) -> None:
    """Remove the oldest files below a folder until the rest take at most so many bytes; the newest always stays."""
    files = sorted((p.stat().st_mtime_ns, p.stat().st_size, p) for p in folder.rglob("*") if p.is_file())
    total = sum(size for _, size, _ in files)
    for _, size, path in files[:-1]:
        if total <= most_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
