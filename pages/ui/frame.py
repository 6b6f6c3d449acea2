"""The frame of every page: navigation, model and dense score, what to do next, and errors without tracebacks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.sources import weights_alone
from lowrank_core.sources._inventory import Inventory
from lowrank_core.workspace import Workspace
from pages.ui import running, words
from pages.ui.state import models, runs, server, session

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

STYLE = """
<style>
[data-testid="stMainBlockContainer"] { padding-top: 2.6rem; padding-bottom: 2rem; max-width: 1500px; }
[data-testid="stMainBlockContainer"] h1 { font-size: 1.7rem; padding: 0 0 .1rem; }
[data-testid="stMainBlockContainer"] h2 { font-size: 1.2rem; padding: .8rem 0 .4rem; }
@media (max-width: 768px) { [data-testid="stMainBlockContainer"] { padding-top: 4rem; } }
[data-testid="stMetricValue"] { font-size: 1.5rem; }
[data-testid="stBaseButton-primary"]:enabled { &, & p { color: light-dark(#fff, #0b1620); } }
</style>
"""


@contextmanager
def page(title: str, advice: str, weights: Callable[[Inventory], None] | None = None) -> Iterator[Workspace]:
    """Open the session's model and show the page around it; whatever goes wrong is shown as one clear text.

    weights: what the page shows of weights without a model; without it the page says what is needed.
    """
    st.set_page_config(page_title=f"{title} · Rank Explorer", page_icon="🎚️", layout="wide")
    st.html(STYLE)
    server.start()
    session.turn_to(title)
    with st.sidebar:
        for _, label, _ in PAGES:
            link(label)
        running.badge(title)
    header = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
    header.title(title, anchor=False, width="content")
    opened = False
    try:
        workspace = models.opened()
        if isinstance(workspace, Inventory):
            header.markdown(f"{words.plain(workspace.weights.name)} · weights without a model", width="content")
            (weights or _needs_a_model)(workspace)
            st.stop()
        header.markdown(words.dense(workspace, *models.dense_score(workspace)), width="content", help=words.DENSE)
        for notice in workspace.notices:
            st.caption(f":material/info: {words.plain(notice)}")
        opened = True
        st.markdown(advice)
        yield workspace
        runs.end_if_replaced()
        return
    except LowRankError as error:
        text = str(error)
    except Exception as error:
        logging.getLogger(__name__).exception("page %s failed", title)
        text = f"This page failed with {type(error).__name__}; the terminal that runs the app shows where."
    st.error(words.plain(text), icon=":material/error:")
    if not opened:
        st.markdown("Choose another model to go on:")
        pick_model()
    st.stop()


def _needs_a_model(stock: Inventory) -> None:
    """What a page can do with weights alone: nothing, and why."""
    st.info(words.plain(weights_alone(stock.weights)), icon=":material/info:")
    link("Model", says="See what is in the file")
    link("Spectra", says="See the spectra")


def pick_model() -> None:
    """Choose which model to look at: the one given when the app was started, or a built-in one."""
    refs, current = models.offered(), models.chosen()
    chosen = st.radio(
        "Model",
        refs,
        index=refs.index(current) if current in refs else None,
        format_func=words.model_name,
        captions=[words.model_description(ref) for ref in refs],
    )
    if chosen is not None and chosen != current:
        models.choose(chosen)
        st.rerun()


def link(label: str, *, says: str = "") -> None:
    """A link to the page of that name, with its icon."""
    path, _, icon = next(page for page in PAGES if page[1] == label)
    st.page_link(path, label=says or label, icon=icon)
