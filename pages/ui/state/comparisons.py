"""Comparisons: plans, their latency and that of single layers, as they were measured for Compare."""

from __future__ import annotations

import streamlit as st

from lowrank_core.measure.comparison import Comparison
from lowrank_core.measure.latency import Runtime, Timing
from lowrank_core.measure.staircases import Setting, Staircase, known_staircases, setting_of, stairs_as_stored
from lowrank_core.plans.candidate import Candidate
from lowrank_core.running.jobs import PATIENCE_SECONDS, Job
from lowrank_core.workspace import Workspace
from pages.ui import compare
from pages.ui.compare import NarrowScore, PlanTiming, Result
from pages.ui.state import jobs, models
from pages.ui.state.session import session_id


def begun(workspace: Workspace) -> dict[compare.Wish, Job[Result]]:
    """What this session has had measured on Compare with the job of each wish, the latest last."""
    return jobs.comparisons().asked_by(session_id(), models.key(workspace))


def start(workspace: Workspace, wish: compare.Wish) -> None:
    """Measure plans, their latency, or that of the layers; what is over is measured again."""
    folder = models.cache().points
    jobs.comparisons().begin(
        session_id(),
        models.key(workspace),
        wish,
        lambda: Job(
            compare.label(wish),
            lambda: compare.work(workspace, wish, folder),
            patience_seconds=PATIENCE_SECONDS,
        ),
        again=True,
    )


def compared(workspace: Workspace) -> dict[Candidate, Comparison]:
    """Every candidate of this model that was measured, by whichever session."""
    return {one.candidate: one for one in _results(workspace) if isinstance(one, Comparison)}


def timings(workspace: Workspace) -> dict[tuple[Candidate, Runtime], Timing]:
    """The latency of every candidate that was timed."""
    return {(one.candidate, one.runtime): one.timing for one in _results(workspace) if isinstance(one, PlanTiming)}


def narrow(workspace: Workspace) -> dict[tuple[Candidate, str], NarrowScore]:
    """The score of every candidate as it is stored in a number format, where it was measured."""
    return {(one.candidate, one.number): one for one in _results(workspace) if isinstance(one, NarrowScore)}


def _results(workspace: Workspace) -> list[Result]:
    return [one for job in jobs.comparisons().of_model(models.key(workspace)) for one in job.snapshot.found]


def stairs(workspace: Workspace, runtime: Runtime) -> tuple[Staircase, ...]:
    """The latency staircases of this model's layers that were measured on this machine."""
    stored = stairs_as_stored(models.cache().points)
    return _stairs(workspace, models.key(workspace), setting_of(workspace, runtime), stored) if any(stored) else ()


@st.cache_resource(max_entries=8, show_spinner=False)
def _stairs(_workspace: Workspace, key: str, setting: Setting, stored: tuple[int, int]) -> tuple[Staircase, ...]:
    return known_staircases(_workspace.profile.layers, setting, models.cache().points)
