"""From the frame of a page to its content: the session's model is opened, or what is wrong said without a traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.sources import weights_alone
from lowrank_core.sources._inventory import Inventory
from lowrank_core.sources._pretrained_folder import folder_of
from lowrank_core.store.files import not_kept
from lowrank_core.store.reference import address_of
from lowrank_core.workspace import Workspace
from pages.ui import dense_line, dropped, looked_at, running, selecting, viewing, words
from pages.ui.at_start import STARTED_IN
from pages.ui.commands import as_here
from pages.ui.frame import Frame, link
from pages.ui.state import models, openings, plans, runs, selected, server, session
from pages.ui.waiting import Steps


def show(frame: Frame, body: ModuleType, say: Steps) -> None:
    """Fill a page; say: where the steps until then are named."""
    server.start()
    for line in not_kept():
        frame.notices.warning(words.plain(line), icon=":material/save:")
    with frame.jobs:
        running.badge(frame.title)
    opened = False
    if runs.turned_back():
        models.turn_back()
    openings.take_over(frame.title)
    try:
        with say:
            workspace = models.opened(say)
        if isinstance(workspace, Inventory):
            what = "weights without a model" if workspace.weights.adapter is None else "a LoRA adapter"
            frame.header.markdown(f"{words.plain(workspace.weights.name)} · {what}", width="content")
            frame.advice.empty()
            selected.layer(workspace)
            for notice in session.notices():
                frame.notices.warning(words.plain(notice), icon=":material/history:")
            _listen(frame, workspace)
            shown = getattr(body, "show_weights", needs_a_model)
            if workspace.weights.adapter is not None:
                shown = getattr(body, "show_adapter", shown)
            shown(workspace)
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
        viewing.show(frame.notices)
        selected.layer(workspace.profile)
        for notice in session.notices():
            frame.notices.warning(words.plain(notice), icon=":material/history:")
        looked_at.show(workspace, frame.title, frame.looked_at)
        _listen(frame, workspace)
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
    st.error(words.plain(as_here(dropped.without_folders(text))), icon=":material/error:")
    if not opened:
        getattr(body, "show_nothing", _choose_another)()


def _listen(frame: Frame, model: Workspace | Inventory) -> None:
    """Hear which layer is selected, before the page streams what goes on."""
    if frame.title not in selecting.LISTEN_THEMSELVES:
        with frame.jobs:
            selecting.listen(model)


def needs_a_model(stock: Inventory) -> None:
    """What a page can do with weights alone: nothing, and why."""
    st.info(words.plain(as_here(weights_alone(stock.weights))), icon=":material/info:")
    link_to_compress(stock)
    link("Model", says="See what is in the file")
    link("Spectra", says="See the spectra")


def link_to_compress(stock: Inventory) -> None:
    """Where a folder is compressed whose network is not built here; nothing for other weights."""
    if folder_of(stock.weights) is not None:
        link("Export", says="Compress it block by block")


def _choose_another() -> None:
    st.markdown("Choose another model to go on:")
    pick_model(models.choose, another=True)


def pick_model(begin: Callable[[str], None] = openings.begin, *, another: bool = False) -> None:
    """Choose which model to look at: one given at the start, a built-in one, or one that this session has opened.

    begin: what is done for one of those that has to be opened anew. another: the one that was chosen cannot be looked
    at, so none is marked.
    """
    addresses, current = (*models.offered(), *models.also_opened()), models.chosen()
    session.set_widget("model choice", current if current in addresses and not another else None)
    st.radio(
        "Model",
        addresses,
        format_func=words.model_name,
        captions=[model_description(address) for address in addresses],
        key="model choice",
        on_change=_picked,
        args=(begin,),
    )


def _picked(begin: Callable[[str], None]) -> None:
    choice = session.widget("model choice")
    if choice is None or choice == models.chosen():
        return
    if choice in models.offered() or models.is_open(choice):
        openings.call_off()
        openings.forget()
        models.choose(choice)
    else:
        begin(choice)


def model_description(address: str) -> str:
    """What a built-in model does, or where another one came from."""
    if address in models.offered():
        return words.model_description(address)
    return "Dropped here." if dropped.is_dropped(address) else f"Lies in {words.plain(place_of(address))}."


def place_of(address: str) -> str:
    """The folder of a network, from the start folder on where it lies there."""
    folder = Path(address_of(address).model).parent
    inside = folder.is_relative_to(STARTED_IN)
    return "this folder" if folder == STARTED_IN else f"{folder.relative_to(STARTED_IN) if inside else folder}"
