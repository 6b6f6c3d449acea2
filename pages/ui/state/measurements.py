"""Measurements: the one of each session's plan, and what is learnt of a model in the background."""

from __future__ import annotations

import streamlit as st

from lowrank_core.builtin import POINTS
from lowrank_core.measure.measurement import Measurement
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.survey import Survey
from lowrank_core.scoring.scores import Score
from lowrank_core.store.room import Recent
from lowrank_core.workspace import Workspace
from pages.ui.state import models
from pages.ui.state.plans import candidate, history
from pages.ui.state.session import session_id

MOST_SESSIONS = 200
"""Of which the measurement that runs is known."""


@st.cache_resource
def _measurements() -> Recent[str, Measurement]:
    return Recent(MOST_SESSIONS)


@st.cache_resource(max_entries=models.MOST_MODELS, on_release=lambda survey: survey.stop())
def _survey(_workspace: Workspace, fingerprint: str, ref: str, corrected: bool) -> Survey:
    shipped = POINTS if ref.startswith("builtin:") else None
    return Survey(_workspace, corrected=corrected, folder=models.cache().points, shipped=shipped)


def survey(shown: Workspace) -> Survey:
    """What is learnt of the model in the background, for all sessions that look at it."""
    return _survey(shown, shown.profile.fingerprint, shown.address, history(shown).corrected)


def measure(shown: Workspace) -> Measurement:
    """The measurement of the plan as it stands: the running one, or a new one that calls the older off."""
    running = _measurements().get(session_id())
    wanted = candidate(shown)
    tolerance = history(shown).tolerance
    same = running is not None and (running.candidate, running.tolerance) == (wanted, tolerance)
    if running is not None and same and running.progress.error is None:
        return running
    if running is not None:
        running.cancel()
    started = Measurement(shown, wanted, tolerance=tolerance)
    _measurements()[session_id()] = started
    return started


def measured(shown: Workspace, wanted: RankPlan) -> Score | None:
    """The score of a plan if it has been measured on all samples, with the correction as it is set now."""
    return shown.scores.get(candidate(shown, wanted))
