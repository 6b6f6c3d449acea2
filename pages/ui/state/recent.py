"""Networks that are opened with one click: those in the start folder, and those that were opened last.

The latter are kept in a file of the user's: paths, which no visitor's drops are.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.store.documents import Kind
from lowrank_core.store.files import own_folder
from lowrank_core.store.reference import model_and_weights, with_weights
from pages.ui import dropped, nearby
from pages.ui.at_start import STARTED_IN
from pages.ui.note_file import Notes, change_notes, read_notes

MOST = 20
"""Networks that are remembered."""

RECENT: Notes[str] = Notes(
    Kind("opened last"), "the networks that were opened last", lambda one: one if isinstance(one, str) else None
)

LOOK_AGAIN_SECONDS = 5
"""What lies in the start folder is looked at again after so long."""


@st.cache_data(ttl=LOOK_AGAIN_SECONDS, show_spinner=False, max_entries=1)
def lying_here() -> nearby.Found:
    """The networks in the folder where the server was started."""
    return nearby.networks_in(STARTED_IN)


def note(address: str) -> None:
    """Remember that a network of files was opened; where that cannot be written nothing is remembered."""
    if dropped.is_dropped(address):
        dropped.use(address)
        return
    model, weights = model_and_weights(address)
    path = STARTED_IN / Path(model).expanduser()
    if not path.exists():  # the name of a module
        return
    whole = with_weights(os.path.abspath(path), weights)
    try:
        if whole != next(iter(addresses()), None):
            change_notes(_file(), RECENT, lambda others: _first(whole, others), msgspec.json.encode)
    except (OSError, LowRankError):
        pass


def _first(address: str, others: tuple[str, ...]) -> tuple[str, ...]:
    return (address, *(other for other in others if other != address))[:MOST]


def addresses() -> tuple[str, ...]:
    """The references, the latest first; those whose files are gone are left out."""
    try:
        return tuple(address for address in read_notes(_file(), RECENT).entries if _is_there(address))
    except (OSError, LowRankError):
        return ()


def _is_there(address: str) -> bool:
    model, weights = model_and_weights(address)
    return os.path.exists(model) and (weights is None or os.path.exists(weights.partition("#")[0]))


def _file() -> Path:
    return own_folder("state") / "opened-last.json"
