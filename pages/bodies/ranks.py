"""Ranks: drag a layer's rank and see bytes, multiplies and accuracy move; let go and see it measured."""

import streamlit as st

from lowrank_core.workspace import Workspace
from pages.ui import board, open_file
from pages.ui.plotly_loader import load_plotly


def show(workspace: Workspace) -> None:
    """The rank board, with the script of its charts loaded behind it."""
    place = st.container()
    board.show(workspace)
    load_plotly()
    with st.expander("Open a plan or a work from a file"):
        open_file.show(workspace)
    with place:
        board.live(workspace)
