"""Node data for Model Explorer, beside the exported program whose nodes it names."""

from __future__ import annotations

import io
import zipfile

import streamlit as st

from lowrank_core.errors import Cancelled, LowRankError, OtherModel
from lowrank_core.exports._node_data import node_data_of
from lowrank_core.measure.apart import apart
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.scope import scope
from lowrank_core.workspace import Workspace
from pages.ui import words
from pages.ui.button import button
from pages.ui.state import downloads, models, runs


def show(workspace: Workspace, plan: RankPlan, file: str) -> None:
    """A button that makes it, then the download. file: name of the exported program."""
    about = (models.key(workspace), plan)
    made = downloads.made("node data", about)
    if made is None and button("Make node data for Model Explorer", icon=":material/account_tree:", help=HELP):
        try:
            with st.spinner("Following one inference through the network"), scope(cancelled=runs.newer_run_waits):
                made = packed(*_found(workspace, plan), stem=file.removesuffix(".pt2"))
        except Cancelled:  # by whoever clicked on something else meanwhile
            st.rerun()
        except LowRankError as error:
            st.error(words.plain(str(error)), icon=":material/error:")
            return
        downloads.keep_made("node data", about, made)
        st.rerun()
    if made is not None:
        st.download_button(
            "Download the node data (zip)",
            made,
            f"{file.removesuffix('.pt2')}-nodes.zip",
            "application/zip",
            icon=":material/account_tree:",
            on_click="ignore",
            help=HELP,
        )


HELP = (
    "The graph of this `.pt2`, and what its nodes take in bytes, multiplies, rank and weight error. In Model Explorer "
    "open the graph, then add the others as per-node data."
)


def _found(workspace: Workspace, plan: RankPlan) -> tuple[dict[str, str], ...]:
    if workspace.opened.ref is None:
        return tuple(node_data_of(workspace, plan))
    try:
        return tuple(apart(node_data_of, workspace, plan))
    except OtherModel:
        return tuple(node_data_of(workspace, plan))


def packed(texts: dict[str, str], *, stem: str) -> bytes:
    """A zip of the files, the same for the same files.

    >>> zipfile.ZipFile(io.BytesIO(packed({"rank": "{}"}, stem="net"))).namelist()
    ['net-rank.json']
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for quantity, text in texts.items():
            archive.writestr(zipfile.ZipInfo(f"{stem}-{quantity}.json", (1980, 1, 1, 0, 0, 0)), text)
    return content.getvalue()
