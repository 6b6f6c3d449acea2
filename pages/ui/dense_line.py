"""The dense network's score beside a page's title: one figure on one number of samples, as everywhere on the page."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lowrank_core.workspace import Workspace
from pages.ui import words
from pages.ui.state import models

KEY = "dense line"


def show(workspace: Workspace, place: DeltaGenerator | None = None) -> None:
    """Say it at a place; without one where it was said last, after the network may have been run on more samples."""
    if place is not None:
        st.session_state[KEY] = place
    if KEY in st.session_state:
        says = words.dense(workspace, *models.dense_score(workspace))
        st.session_state[KEY].markdown(says, width="content", help=words.DENSE)
