"""Models: which can be opened here, which one the session looks at, and what all sessions share of it."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import streamlit as st

from lowrank_core.builtin import BUILTIN
from lowrank_core.errors import InvalidData, InvalidSettings
from lowrank_core.predict.prediction import NoiseTable
from lowrank_core.running.scope import somebody_waits
from lowrank_core.sources._inventory import Inventory
from lowrank_core.store.cache import Cache
from lowrank_core.store.files import own_folder
from lowrank_core.store.reference import address_of
from lowrank_core.store.room import Recent, Room
from lowrank_core.workspace import Workspace, open_to_look
from pages.ui import board_values, dropped
from pages.ui.at_start import at_start, shown
from pages.ui.files_read import FilesRead, listening
from pages.ui.once import Once
from pages.ui.state import recent, session

MOST_MODELS = 2 * (len(BUILTIN) + 1)
"""Of which small things are kept: every built-in one and the given one, with the correction and without."""

MOST_REMEMBERED = 6
"""Models beside those that are offered which a session goes back to with one click."""

SAY_SECONDS = 0.1
"""A count of layers is shown anew at most this often."""

MEMORY = "RANK_EXPLORER_MEMORY_MB"
"""The environment variable that says how much memory results that can be computed again may take."""


def named_at_start() -> str | None:
    """The model named when the app was started: `streamlit run app.py -- MODEL`."""
    return at_start().model


def offered() -> tuple[str, ...]:
    """What everybody may look at here: the model given at the start, then the built-in ones."""
    at_start = named_at_start()
    builtin = tuple(f"builtin:{name}" for name in BUILTIN)
    return (at_start, *builtin) if at_start and at_start not in builtin else builtin


def chosen() -> str:
    """The model this session looks at; the address may name one (?model=...) that this server has opened before."""
    if "model" not in st.session_state:
        named = dropped.whole(st.query_params.get("model", ""))
        known = named in offered() or named in _opened_before()
        st.session_state["model"] = named if known else named_at_start() or offered()[0]
        if known and named not in offered():
            _remember(named)
        elif named and not known:
            said = dropped.without_folders(shown(named))
            session.say(f"The address names {said!r}, which this server has not opened so far; open it on Home.")
    return str(st.session_state["model"])


def turn_back() -> None:
    """Back or Forward was pressed: the model of that address is looked at again; without one the first of all."""
    named = dropped.whole(st.query_params.get("model", "")) or offered()[0]
    if named != chosen() and (named in offered() or named in _opened_before()):
        st.session_state["model"] = named
        session.put_in_address("model", dropped.short(named))


def choose(address: str) -> None:
    """Look at another model; the plans of the others are kept."""
    st.session_state["model"] = address
    session.put_in_address("model", dropped.short(address))
    if address not in offered():
        _remember(address)


def also_opened() -> tuple[str, ...]:
    """The models beside those that are offered which this session has looked at, the latest last."""
    remembered: tuple[str, ...] = st.session_state.get("also opened", ())
    return remembered


def _remember(address: str) -> None:
    others = tuple(other for other in also_opened() if other != address)
    st.session_state["also opened"] = (*others, address)[-MOST_REMEMBERED:]


def opened(say: Callable[[str], None]) -> Workspace | Inventory:
    """The opened model, or weights without one, shared by all sessions; raises a LowRankError.

    say: called with each step where the model is not open yet.
    """
    address = chosen()
    if address != offered()[0] or "model" in st.query_params:
        session.put_in_address("model", dropped.short(address))
    model = open_model(address, stamp(address), say)
    names = outputs_chosen()
    if not names or not isinstance(model, Workspace):
        return model
    try:
        return _judging()((address, stamp(address), names), lambda: model.judging(names))
    except InvalidData:  # the file was edited, and has other outputs now
        choose_outputs(())
        return model


def outputs_chosen() -> tuple[str, ...]:
    """The outputs of the session's model that a person has chosen to be judged; () where those that fit are."""
    chosen_of: dict[str, tuple[str, ...]] = st.session_state.get("outputs", {})
    return chosen_of.get(chosen(), ())


def choose_outputs(names: tuple[str, ...]) -> None:
    """Judge these outputs of the session's model, on all pages; () those that fit."""
    st.session_state["outputs"] = {**st.session_state.get("outputs", {}), chosen(): names}


def is_open(address: str) -> bool:
    """Whether a model can be looked at without opening it anew."""
    return (address, stamp(address)) in _given()


def open_model(address: str, stamp: str, say: Callable[[str], None] = lambda step: None) -> Workspace | Inventory:
    """Built-in models are few and small, so all of them stay open; of the given one also what it was before an edit."""
    models, key = _builtin() if address.startswith("builtin:") else _given(), (address, stamp)
    if key not in models:
        say("Opening the model")
    return models(key, lambda: _look(address, stamp, say))


def _look(address: str, stamp: str, say: Callable[[str], None]) -> Workspace | Inventory:
    files = FilesRead()
    for path in address_of(address).files.values():
        files.add_named(path.absolute())
    try:
        with listening(files):
            model = open_to_look(address, cache(), room(), say)
            if isinstance(model, Workspace):
                say("Checking the network")
                if not model.self_check.refusal:
                    say("Scoring the dense network")
                    dense_score(model)
                key(model)
                for source in model.opened.code:
                    files.add(source)
    finally:
        _files_read().settle(address, stamp, files)
    if not address.startswith("builtin:"):
        _opened_before().add(address)
        recent.note(address)
    return model


class _Stamps:
    """A number for each address, one more whenever a file changes that opening it has read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: Recent[str, tuple[int, FilesRead]] = Recent(MOST_MODELS)

    def __call__(self, address: str) -> str:
        with self._lock:
            number, files = self._known.get(address, (0, FilesRead()))
            if files.changed:
                number += 1
                self._known[address] = number, FilesRead()
            return str(number)

    def settle(self, address: str, stamp: str, files: FilesRead) -> None:
        """Note what was read when the model was opened under that stamp."""
        with self._lock:
            number, _ = self._known.get(address, (0, FilesRead()))
            if stamp == str(number):
                self._known[address] = number, files


@st.cache_resource
def _files_read() -> _Stamps:
    return _Stamps()


@st.cache_resource
def _builtin() -> Once[tuple[str, str], Workspace | Inventory]:
    return Once(len(BUILTIN))


@st.cache_resource
def _given() -> Once[tuple[str, str], Workspace | Inventory]:
    return Once(3)


@st.cache_resource
def _opened_before() -> set[str]:
    """What this server has opened since it was started, beside the built-in ones: an address may name it."""
    return set()


def make_ready() -> None:
    """Make what opening a model shares, in a run of a page: threads of their own only find it."""
    _given(), _opened_before(), _files_read(), room()


@st.cache_resource
def _judging() -> Once[tuple[str, str, tuple[str, ...]], Workspace]:
    """Models with outputs chosen by a person; they share what does not depend on that."""
    return Once(4)


@st.cache_resource
def room() -> Room:
    """What is kept in memory of all models together is bounded by this; raises InvalidSettings."""
    megabytes = os.environ.get(MEMORY, "")
    if not megabytes:
        return Room()
    if not re.fullmatch(r"[1-9]\d{0,8}", megabytes):
        raise InvalidSettings(
            f"{MEMORY} must be a whole number of MB from 1, such as 512; got {megabytes!r}. Correct it."
        )
    return Room(int(megabytes) * 10**6)


def cache() -> Cache:
    """What is kept on disk for all sessions, and for the command line."""
    return Cache(own_folder("cache"))


def stamp(address: str) -> str:
    """Changes when a file does that was read when the model was opened: an edited model is opened again.

    The model file, the neighbours it imports, weights and data; what only lies beside them does not count.
    """
    return _files_read()(address)


def dense_score(workspace: Workspace) -> tuple[float, int]:
    """(score, samples) of the dense network: on all samples once a measurement has run it on them, on some before."""
    return board_values.dense_score(workspace)


def noise(workspace: Workspace) -> NoiseTable | None:
    """The prediction table; None where the model file scores itself."""
    return _noise(workspace, key(workspace))


@st.cache_resource(max_entries=MOST_MODELS, show_spinner=False)
def _noise(_workspace: Workspace, key: str) -> NoiseTable | None:
    return board_values.noise(_workspace)


def factorise(workspace: Workspace, say: Callable[[str], None]) -> None:
    """Factorise every layer once by its default method, and say which one it is at."""
    layers, last_said = workspace.profile.layers, 0.0
    with somebody_waits():
        for number, layer in enumerate(layers, 1):
            if time.monotonic() - last_said > SAY_SECONDS:
                say(f"Factorising {number} of {len(layers)} layers")
                last_said = time.monotonic()
            _ = workspace.factors(layer.name, layer.methods[0].name).spectra


@st.cache_resource
def constants() -> Once[str, dict[str, Any]]:
    """What the board must know of each model."""
    return Once(4)


def key(workspace: Workspace) -> str:
    """What tells this network on its data from all others; a file that changes none of it gives the same."""
    return workspace.identity
