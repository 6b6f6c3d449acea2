"""From the frame of a page to its content: the session's model is opened, or what is wrong said without a traceback."""

from __future__ import annotations

import logging
from types import ModuleType

import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.sources import weights_alone
from lowrank_core.sources._inventory import Inventory
from lowrank_core.store.files import not_kept
from pages.ui import dense_line, running, words
from pages.ui.commands import as_here
from pages.ui.frame import Frame, link
from pages.ui.state import models, plans, runs, server, session
from pages.ui.waiting import Steps


def show(frame: Frame, body: ModuleType, say: Steps) -> None:
    """Fill a page; say: where the steps until then are named."""
    server.start()
    for line in not_kept():
        frame.notices.warning(words.plain(line), icon=":material/save:")
    with frame.jobs:
        running.badge(frame.title)
    opened = False
    try:
        with say:
            workspace = models.opened(say)
        if isinstance(workspace, Inventory):
            frame.header.markdown(f"{words.plain(workspace.weights.name)} · weights without a model", width="content")
            frame.advice.empty()
            getattr(body, "show_weights", _needs_a_model)(workspace)
            return
        if workspace.self_check.refusal and hasattr(body, "show_weights"):  # it goes without figures
            frame.header.markdown(words.plain(workspace.name), width="content")
            refusal = f"{workspace.name}: {workspace.self_check.refusal}"
            frame.notices.error(words.plain(refusal), icon=":material/error:")
        else:
            dense_line.show(workspace, frame.header.empty())
        for notice in workspace.notices:
            frame.notices.caption(f":material/info: {words.plain(notice)}")
        opened = True
        plans.look_again(workspace)
        for notice in session.notices():
            frame.notices.warning(words.plain(notice), icon=":material/history:")
        body.show(workspace)
        runs.end_if_replaced()
        runs.went_well()
        return
    except LowRankError as error:
        text = str(error)
    except Exception as error:
        runs.again_if_raced(error)
        logging.getLogger(__name__).exception("page %s failed", frame.title)
        text = f"This page failed with {type(error).__name__}; the terminal that runs the app shows where."
    if not opened:
        frame.advice.empty()
    st.error(words.plain(as_here(text)), icon=":material/error:")
    if not opened:
        st.markdown("Choose another model to go on:")
        pick_model()


def _needs_a_model(stock: Inventory) -> None:
    """What a page can do with weights alone: nothing, and why."""
    st.info(words.plain(as_here(weights_alone(stock.weights))), icon=":material/info:")
    link("Model", says="See what is in the file")
    link("Spectra", says="See the spectra")


def pick_model() -> None:
    """Choose which model to look at: the one given when the app was started, or a built-in one."""
    addresses, current = models.offered(), models.chosen()
    choice = st.radio(
        "Model",
        addresses,
        index=addresses.index(current) if current in addresses else None,
        format_func=words.model_name,
        captions=[words.model_description(address) for address in addresses],
    )
    if choice is not None and choice != current:
        models.choose(choice)
        st.rerun()
