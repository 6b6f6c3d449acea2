"""Home's part that opens a person's own network: those that lie here, a path, or files that are dropped."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lowrank_core.errors import LowRankError
from lowrank_core.sources._inventory import Inventory
from lowrank_core.store.reference import address_of
from lowrank_core.workspace import Workspace
from pages.ui import dropped, may_open, nearby, open_file, running, words
from pages.ui.at_start import STARTED_IN
from pages.ui.commands import app_command, as_here, core_command
from pages.ui.state import models, openings, recent, runs, session

HEARD_SECONDS = 0.5
"""A step is drawn at least this often."""

NO_CODE = "This server answers other machines, too, so Python files and other code are opened only when it is started."


def show(place: DeltaGenerator) -> None:
    """Three ways to a network, what may be opened in each, and what becomes of it: the run streams while one opens."""
    with place:
        st.markdown("**Open your own network**")
        _drop()
        status = st.empty()
        _last_said(status)
        _here()
        _by_path()
    _follow(status)


# ---- what lies here -------------------------------------------------------------------------------------------------


def _here() -> None:
    """Networks in the start folder and those opened last, each with one click."""
    found = recent.lying_here()
    kinds = {str(STARTED_IN / one.path): f"{one.path} · {one.kind}" for one in found.networks}
    last = [*dropped.networks_of(session.session_id()), *recent.addresses()]
    labels = {address: f"{_shown(address)} · opened last" for address in last} | {
        address: label for address, label in kinds.items() if address not in last
    }
    offered = [a for a in labels if a != models.chosen() and (dropped.is_dropped(a) or may_open.may_open(a))]
    session.set_widget("network here", None)
    st.selectbox(
        "Networks in this folder, and those opened last",
        offered,
        index=None,
        format_func=labels.__getitem__,
        placeholder="Choose one to open it" if offered else "None so far",
        disabled=not offered,
        help=f"Looked for in {STARTED_IN}, where the server was started, and {nearby.LEVELS} levels below.",
        key="network here",
        on_change=_chosen,
    )
    if not found.whole:
        st.caption("There is more in this folder than is looked through; what is missing here opens by its path.")


def _shown(address: str) -> str:
    """A reference with its files from the start folder on; of what was dropped the name alone."""
    parts = address_of(address)
    if dropped.is_dropped(address):
        return f"{Path(parts.model).name} · dropped here"
    return address.replace(f"{STARTED_IN}{os.sep}", "")


def _chosen() -> None:
    address = session.widget("network here")
    if address is not None:
        openings.begin(address)


# ---- by its path ----------------------------------------------------------------------------------------------------


FIELDS = (
    ("open path", "Path of a network", "net.onnx or model.py", "A file or folder in {folder} or below."),
    (
        "open weights",
        "Weights that it gets",
        "run.safetensors",
        "A file of weights for the network; run.ckpt#ema: those under this key.",
    ),
    (
        "open data",
        "Data that it is judged on",
        "images, samples.csv or samples.npz",
        "A folder of images or recordings by class, a table, arrays, lines of text; as --data of every command.",
    ),
    (
        "open preprocess",
        "How the data are prepared",
        "imagenet",
        "As --preprocess of every command, such as imagenet, 0.5/0.5/224 or target=label.",
    ),
)
"""Key, label, example and help of what a network is opened by."""


def _by_path() -> None:
    with st.form("open by path", border=False):
        _field(*FIELDS[0])
        with st.expander("With weights or data of other files"):
            for field in FIELDS[1:]:
                _field(*field)
        st.form_submit_button("Open the network", icon=":material/folder_open:", on_click=_named, key="open named")
    if not may_open.at_home():
        st.caption(NO_CODE)
    with st.expander("From the command line"):
        st.markdown("This writes a commented Python file to fill in,")
        st.code(core_command("new", "my_model.py"), language="bash", wrap_lines=True)
        st.markdown("and this opens any network, wherever it lies:")
        st.code(app_command("path/to/model.py"), language="bash", wrap_lines=True)


def _field(key: str, label: str, example: str, tip: str) -> None:
    about = tip.format(folder=f"{STARTED_IN}, where the server was started,")
    st.text_input(label, key=key, placeholder=example, help=about)


def _named() -> None:
    openings.begin_named(*(session.widget(key) or "" for key, *_ in FIELDS))


# ---- dropped --------------------------------------------------------------------------------------------------------


def _drop() -> None:
    number = session.widget("drop number") or 0
    st.file_uploader(
        "Drop a network, or a plan or work for the one you look at",
        accept_multiple_files=True,
        max_upload_size=dropped.LARGEST_MB,
        help="`.onnx` with its data in a `.npz` and weights beside it in a `.onnx.data`; `.safetensors` for sizes and "
        "spectra, of a LoRA adapter with its `adapter_config.json` for its ranks; a plan in a `.json`; the work of a "
        "session in a `.jsonl`. They are read as data, and kept for a week where only you can name them. Code is never "
        "uploaded: `.py`, `.pt2` and `.pt` open by their path.",
        key=f"drop {number}",
        on_change=_dropped,
        args=(number,),
    )
    st.caption(
        "`.onnx` with its `.npz`, `.safetensors`, an adapter (also as `.zip`), a plan (`.json`) or a work (`.jsonl`); "
        "never code."
    )


def _dropped(number: int) -> None:
    files = session.widget(f"drop {number}") or []
    if not files:
        return
    openings.begin_dropped([(file.name, file.getvalue()) for file in files])
    runs.forget_uploads(files)
    session.set_widget("drop number", number + 1)


def take_plan(workspace: Workspace | Inventory) -> None:
    """Make a plan that was dropped this session's own, or say why it is not."""
    file = openings.plan_dropped()
    if file is None:
        return
    try:
        if isinstance(workspace, Inventory):
            raise LowRankError("these are weights without a model, which no plan is for")
        content = file.read_bytes()
    except (LowRankError, OSError) as error:
        openings.say(f"{file.name} is not used: {error}")
        return
    lines = open_file.take(workspace, file.name, content)
    first = next(line for how, line in lines if how in ("success", "error"))
    more = " ".join(line for _, line in lines if line != first)
    openings.say(f"{first} {more}".strip(), "error" if lines[0][0] == "error" else "success")


# ---- under way ------------------------------------------------------------------------------------------------------


def _last_said(place: DeltaGenerator) -> None:
    """What became of the last attempt."""
    line, how = openings.said()
    text = words.plain(as_here(dropped.without_folders(line)))
    if line and how == "error":
        place.error(text, icon=":material/error:")
    elif line:
        (place.success if how == "success" else place.info)(text, icon=":material/check:")


def _follow(place: DeltaGenerator) -> None:
    """Show the steps of what is being opened until it is over or a newer run waits."""
    job = openings.awaited()
    if job is None:
        return
    if job.snapshot.over:
        st.rerun()
    with place.container(horizontal=True, vertical_alignment="center", key="opening"):
        st.button("Call off", icon=":material/stop_circle:", on_click=openings.call_off, key="call off")
        line = st.empty()
    snapshot = job.snapshot
    while True:
        step = snapshot.progress.words or "Opening the model"
        says = f"{job.label}: {step[:1].lower()}{step[1:]}"
        line.html(f'<p class="waiting" role="status" data-testid="opening-step">{escape(says)}…</p>')
        if snapshot.over:
            st.rerun()
        later = running.look_again(job, snapshot, HEARD_SECONDS)
        if later is None:
            return
        snapshot = later
