"""The frame of every page, drawn with Streamlit alone: title, navigation and a skeleton are there before PyTorch is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from pages.ui import waiting
from pages.ui.state import runs, session

PAGES = (
    ("app.py", "Home", ":material/home:"),
    ("pages/1_Model.py", "Model", ":material/account_tree:"),
    ("pages/2_Spectra.py", "Spectra", ":material/show_chart:"),
    ("pages/3_Ranks.py", "Ranks", ":material/tune:"),
    ("pages/4_Search.py", "Search", ":material/search:"),
    ("pages/5_Fine_tune.py", "Fine-tune", ":material/model_training:"),
    ("pages/6_Compare.py", "Compare", ":material/compare_arrows:"),
    ("pages/7_Export.py", "Export", ":material/file_save:"),
)

BRAND = (
    '<p class="brand">Rank Explorer</p><div class="finding">'
    '<button type="button" data-opens="find">Find… Ctrl K</button>'
    '<button type="button" data-opens="keys" aria-label="Keys">?</button></div>'
)


def _beside(file: str) -> str:
    return (Path(__file__).parent / file).read_text(encoding="utf-8")


STYLE = f"<style>{_beside('frame.css')}{_beside('finding.css')}</style>"
SCRIPT = f"<script>{_beside('finding.js')}{_beside('frame.js')}</script>"


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a page puts what it knows only later."""

    title: str
    looked_at: DeltaGenerator
    jobs: DeltaGenerator
    header: DeltaGenerator
    notices: DeltaGenerator
    advice: DeltaGenerator


def page(title: str, advice: str, *, body: str) -> None:
    """Show a page: first its frame, then what `body` makes of the session's model.

    body: a module with `show(workspace)` and, for weights without a model, perhaps `show_weights(stock)`, of an
        adapter `show_adapter(stock)`. It and all
    that is heavy are imported only when the frame is on the screen.
    """
    st.set_page_config(
        page_title=title if title == "Rank Explorer" else f"{title} · Rank Explorer", page_icon="🎚️", layout="wide"
    )
    st.html(STYLE)
    st.html(waiting.STYLE)
    if runs.turned_back():
        session.turn_back()
    session.put_own_in_address()  # before anything is drawn: whoever reloads at once loses nothing
    session.turn_to(title)
    with st.sidebar:
        st.html(BRAND + SCRIPT, unsafe_allow_javascript=True)
        for _, label, _ in PAGES:
            link(label)
        looked_at, jobs = st.empty(), st.container()
    header = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    header.title(title, anchor=False, width="content")
    frame = Frame(title, looked_at, jobs, header, st.container(), st.empty())
    frame.advice.markdown(advice)
    say = waiting.Steps()
    if not hasattr(sys.modules.get(body), "show"):
        say("Loading the page" if hasattr(sys.modules.get("torch"), "__version__") else "Loading PyTorch")
    import_module("pages.ui.opening").show(frame, import_module(body), say)


def link(label: str, *, says: str = "", icon: str = "") -> None:
    """A link to the page of that name, with its icon or another one."""
    path, _, usual = next(page for page in PAGES if page[1] == label)
    st.page_link(path, label=says or label, icon=icon or usual, query_params=session.address())
