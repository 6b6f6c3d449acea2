"""The dense network's score beside a page's title: one figure on one number of samples, as everywhere on the page."""

from __future__ import annotations

from streamlit.delta_generator import DeltaGenerator

from lowrank_core.workspace import Workspace
from pages.ui import words
from pages.ui.state import models, session

KEY = "dense line"


def show(workspace: Workspace, place: DeltaGenerator | None = None) -> None:
    """Say it at a place; without one where it was said last, after the network may have been run on more samples."""
    if place is not None:
        session.set_widget(KEY, place)
    if (line := session.widget(KEY)) is not None:
        says = words.dense(workspace, *models.dense_score(workspace))
        line.markdown(says, width="content", help=words.DENSE)
