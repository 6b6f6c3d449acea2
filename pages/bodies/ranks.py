"""Ranks: drag a layer's rank and see bytes, multiplies and accuracy move; let go and see it measured."""

import streamlit as st

from lowrank_core.sources._inventory import Inventory
from lowrank_core.workspace import Workspace
from pages.ui import adapter_form, board, frame, open_file
from pages.ui.plotly_loader import load_plotly


def show_adapter(stock: Inventory) -> None:
    """The ranks of a LoRA adapter, which nothing here is measured of."""
    adapter_form.show(stock)
    frame.link("Spectra", says="See the spectra")


def show(workspace: Workspace) -> None:
    """The rank board, with the script of its charts loaded behind it."""
    place = st.container()
    board.show(workspace)
    load_plotly()
    with st.expander("Open a plan or a work from a file"):
        open_file.show(workspace)
    with place:
        board.live(workspace)
