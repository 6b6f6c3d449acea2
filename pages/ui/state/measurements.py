"""Measurements: the one of each session's plan, and what is learnt of a model in the background."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf

import streamlit as st

from lowrank_core.builtin import POINTS
from lowrank_core.measure.ledger import VERSION, Ledger, score_key
from lowrank_core.measure.measurement import Figure, measurement
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.survey import Finding
from lowrank_core.predict.survey import survey as learn
from lowrank_core.running.jobs import Job
from lowrank_core.scoring.scores import Score
from lowrank_core.store.room import Recent
from lowrank_core.workspace import Workspace
from pages.ui.history_panel import Known
from pages.ui.state import looks, models, on_disk, plans
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
    """The measurement of the plan as it stands: the running one, or a new one that cancels the older.

    With the quick correction first, which is there sooner, and then with that of the plan.
    """
    running, model = _measurements().get(session_id()), models.key(workspace)
    candidate, tolerance = plans.candidate(workspace), plans.history(workspace).tolerance
    if running is not None:
        same = (running.model, running.candidate, running.tolerance) == (model, candidate, tolerance)
        if same and running.job.snapshot.error is None:
            return running.job
        running.job.cancel()
    told = looks.listener(workspace)
    job = measurement(workspace, candidate, tolerance=tolerance, quick_first=True, told=told)
    _measurements()[session_id()] = Measuring(model, candidate, tolerance, job)
    return job


def measured(workspace: Workspace, plan: RankPlan) -> Score | None:
    """The score of a plan if it has been measured on all samples, with the correction as it is set now."""
    return _known(workspace, plans.candidate(workspace, plan))


def known(workspace: Workspace, plan: RankPlan) -> Known | None:
    """The score of a plan with the correction as it is set now, or else with another one that it was measured with.

    Every score is of this network on these data, judged as now: others are kept under other names.
    """
    asked = plans.candidate(workspace, plan)
    others = (workspace.thorough, workspace.correction, None) if plan.choices else ()
    candidates = tuple(dict.fromkeys((asked, *(Candidate(plan, correction) for correction in others))))
    for candidate in candidates:
        score = _known(workspace, candidate)
        if score is not None:
            return Known(score, candidate.correction)
    opened = _opened(workspace)
    for candidate in candidates:
        told = opened.get(_score_key(candidate))
        if isinstance(told, Score):
            return Known(told, candidate.correction, opened=True)
    return None


def keep_opened(workspace: Workspace, scores: Iterable[tuple[str, Score]]) -> None:
    """Take scores from a file of this session's, which says that they are of these weights and data.

    Only this session is shown them, and no file that is exported holds them: nobody here has measured them.
    """
    ledger = _opened(workspace)
    for key, score in scores:
        ledger.remembered(key, partial(_itself, score))


def _itself(score: Score) -> Score:
    return score


def _opened(workspace: Workspace) -> Ledger:
    """The scores that this session has taken from files, kept beside its plans under the name of what they are of."""
    ledgers: dict[str, Ledger] = st.session_state.setdefault("scores from files", {})
    under = workspace.name_for("scores", VERSION)
    if under not in ledgers:
        owner = plans.owner()
        ledgers[under] = Ledger(on_disk.file_of(workspace.profile.fingerprint, f"-{under}.scores.jsonl", owner))
    return ledgers[under]


def _known(workspace: Workspace, candidate: Candidate) -> Score | None:
    """As measured since the server was started, which is then kept on disk, or before."""
    score = workspace.scores.get(candidate.plain)
    ledger, key = _ledger(workspace, models.key(workspace)), _score_key(candidate)
    if score is not None:
        ledger.remembered(key, lambda: score)
        return score
    kept = ledger.get(key)
    return kept if isinstance(kept, Score) else None


@lru_cache(5_000)
def _score_key(candidate: Candidate) -> str:
    return score_key(candidate, None)


@st.cache_resource(max_entries=models.MOST_MODELS, show_spinner=False)
def _ledger(_workspace: Workspace, key: str) -> Ledger:
    """Scores of plans that were measured on all samples, kept under the name of all that they depend on."""
    return Ledger.of(_workspace, models.cache().points)
