"""What the server does once, before it draws its first page."""

from __future__ import annotations

import os

import streamlit as st
import torch

from lowrank_core.running.own_process import hush_libraries
from lowrank_core.store.files import own_folder, try_to_keep
from pages.ui import heap


@st.cache_resource(show_spinner=False)
def start() -> None:
    """Leave one core to the server, give freed memory back, hush libraries, try our folders; later calls do nothing."""
    # Threads that outnumber free cores wait for each other many times longer.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    heap.keep_small()
    hush_libraries()
    for folder in (own_folder("cache"), own_folder("state")):
        try_to_keep(folder)
