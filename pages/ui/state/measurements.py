"""Measurements: the one of each session's plan, and what is learnt of a model in the background."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import streamlit as st

from lowrank_core.builtin import POINTS
from lowrank_core.measure.measurement import Figure, measurement
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.survey import Finding
from lowrank_core.predict.survey import survey as learn
from lowrank_core.running.jobs import Job
from lowrank_core.scoring.scores import Score
from lowrank_core.store.room import Recent
from lowrank_core.workspace import Workspace
from pages.ui.state import models, plans
from pages.ui.state.session import session_id

MOST_SESSIONS = 200
"""Of which the measurement that runs is known."""


@dataclass(frozen=True, slots=True)
class Measuring:
    """What is measured, and the job that does it; model: the key of what it is measured of."""

    model: str
    candidate: Candidate
    tolerance: float | None
    job: Job[Figure]


@st.cache_resource
def _measurements() -> Recent[str, Measuring]:
    return Recent(MOST_SESSIONS)


@st.cache_resource(max_entries=models.MOST_MODELS, on_release=lambda job: job.cancel())
def _survey(_workspace: Workspace, key: str, shipped: bool, corrected: bool) -> Job[tuple[Finding, ...]]:
    points, folder = POINTS if shipped else None, models.cache().points
    return Job(
        "the survey",
        lambda: learn(_workspace, corrected=corrected, folder=folder, shipped=points),
        patience_seconds=inf,  # nobody asked for it
    )


def survey(workspace: Workspace) -> Job[tuple[Finding, ...]]:
    """What is learnt of the model in the background, for all sessions that look at it."""
    shipped = workspace.address.startswith("builtin:")
    return _survey(workspace, models.key(workspace), shipped, plans.history(workspace).corrected)


def measure(workspace: Workspace) -> Job[Figure]:
    """The measurement of the plan as it stands: the running one, or a new one that cancels the older."""
    running, model = _measurements().get(session_id()), models.key(workspace)
    candidate, tolerance = plans.candidate(workspace), plans.history(workspace).tolerance
    if running is not None:
        same = (running.model, running.candidate, running.tolerance) == (model, candidate, tolerance)
        if same and running.job.snapshot.error is None:
            return running.job
        running.job.cancel()
    job = measurement(workspace, candidate, tolerance=tolerance)
    _measurements()[session_id()] = Measuring(model, candidate, tolerance, job)
    return job


def measured(workspace: Workspace, plan: RankPlan) -> Score | None:
    """The score of a plan if it has been measured on all samples, with the correction as it is set now."""
    return workspace.scores.get(plans.candidate(workspace, plan))
