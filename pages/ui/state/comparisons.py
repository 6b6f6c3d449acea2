"""Comparisons: plans, their latency and that of single layers, as they were measured for Compare."""

from __future__ import annotations

import streamlit as st

from lowrank_core.exports._in_format import Measured
from lowrank_core.measure.latency import Runtime
from lowrank_core.measure.staircases import Setting, Staircase, known_staircases, setting_of, stairs_as_stored
from lowrank_core.running.jobs import PATIENCE_SECONDS, Job
from lowrank_core.workspace import Workspace
from pages.ui import compare
from pages.ui.compare import Column, ColumnMeasured, Findings, PlanCompiled, PlanTiming, Races, Result, Scores
from pages.ui.state import jobs, models, trainings
from pages.ui.state.session import session_id


def begun(workspace: Workspace) -> dict[compare.Wish, Job[Result]]:
    """What this session has had measured on Compare with the job of each wish, the latest last."""
    return jobs.comparisons().asked_by(session_id(), models.key(workspace))


def start(workspace: Workspace, wish: compare.Wish) -> None:
    """Measure plans, their latency, or that of the layers; what is over is measured again."""
    folder, trained = models.cache().points, trainings.trained(workspace)
    jobs.comparisons().begin(
        session_id(),
        models.key(workspace),
        wish,
        lambda: Job(
            compare.label(wish),
            lambda: compare.work(workspace, wish, folder, trained),
            patience_seconds=PATIENCE_SECONDS,
        ),
        again=True,
    )


def measured(workspace: Workspace) -> dict[Column, Measured]:
    """Every column of this model that was measured, by whichever session."""
    return {one.column: one.measured for one in _results(workspace) if isinstance(one, ColumnMeasured)}


def findings(workspace: Workspace) -> Findings:
    """All that was measured of this model, and what is being measured for this session."""
    known = measured(workspace)
    timings = {(one.entry, one.runtime): one for one in _results(workspace) if isinstance(one, PlanTiming)}
    wishes = [wish for wish, job in begun(workspace).items() if not job.snapshot.over]
    columns = {column for wish in wishes if isinstance(wish, Scores) for column in wish.columns}
    racing = {(entry, wish.runtime) for wish in wishes if isinstance(wish, Races) for entry in wish.entries}
    compiled = {one.entry: one for one in _results(workspace) if isinstance(one, PlanCompiled)}
    return Findings(known, timings, frozenset(columns - known.keys()), frozenset(racing - timings.keys()), compiled)


def _results(workspace: Workspace) -> list[Result]:
    return [one for job in jobs.comparisons().of_model(models.key(workspace)) for one in job.snapshot.found]


def stairs(workspace: Workspace, runtime: Runtime) -> tuple[Staircase, ...]:
    """The latency staircases of this model's layers that were measured on this machine."""
    stored = stairs_as_stored(models.cache().points)
    return _stairs(workspace, models.key(workspace), setting_of(workspace, runtime), stored) if any(stored) else ()


@st.cache_resource(max_entries=8, show_spinner=False)
def _stairs(_workspace: Workspace, key: str, setting: Setting, stored: tuple[int, int]) -> tuple[Staircase, ...]:
    return known_staircases(_workspace.profile.layers, setting, models.cache().points)
