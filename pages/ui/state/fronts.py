"""Fronts: what each session's board draws of the best plans, computed in the background from what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.context import MeasuredPlan, joints_of
from lowrank_core.predict.prediction import Joint, NoiseTable
from lowrank_core.predict.survey import Finding, Learnt
from lowrank_core.running.jobs import PATIENCE_SECONDS, Job, Snapshot
from lowrank_core.scoring.scores import Score
from lowrank_core.selection._problem import Quantity
from lowrank_core.store.key import named
from lowrank_core.store.room import Recent
from lowrank_core.workspace import Workspace
from pages.ui.front import Asked, Drawn, Measured, PredictedPlan, Tails, draw, fields, predict, says
from pages.ui.history import History
from pages.ui.state import measurements, models, plans, searches
from pages.ui.state.session import session_id

MOST_SESSIONS = 200
"""Of which the front that was asked for last is known."""

MOST_MEASURED = 150
"""Measured plans on a chart, the latest."""

GROWN = 1.5
"""While the survey goes on a front is computed anew when it has so many times the points of the last one."""


@st.cache_resource
def _jobs() -> Recent[str, tuple[Asked, Job[Drawn]]]:
    return Recent(MOST_SESSIONS)


def asked(workspace: Workspace, history: History, points: int) -> Asked:
    """The front of this history: its held layers as they are, and whatever form its factors have."""
    free = any(choice.free for _, choice in history.plan.choices)
    return Asked(models.key(workspace), history.corrected, points, tuple(history.held.items()), free)


def front(workspace: Workspace, history: History, surveyed: Snapshot[tuple[Finding, ...]]) -> Job[Drawn] | None:
    """The front for what is held and known now, which is being computed or is there; None before layers are measured.

    One that was asked for something else is called off.
    """
    points = Learnt.of(surveyed).points
    if not points:
        return None
    wish, last = asked(workspace, history, len(points)), _jobs().get(session_id())
    if last is not None and not last[1].cancelled():
        before, job = last
        same = (before.model, before.corrected, before.held, before.free) == (
            *(wish.model, wish.corrected, wish.held, wish.free),
        )
        grown = wish.points >= GROWN * before.points or (surveyed.over and wish.points > before.points)
        if same and not (grown and job.snapshot.over):
            return job
        job.cancel()
    job = Job("the front", lambda: draw(workspace, points, wish), patience_seconds=PATIENCE_SECONDS)
    _jobs()[session_id()] = wish, job
    return job


def is_settled(job: Job[Drawn] | None, surveyed: Snapshot[tuple[Finding, ...]]) -> bool:
    """Whether nothing more will come of a front until something else is asked."""
    return surveyed.over and (job is None or job.snapshot.over)


def shown(
    workspace: Workspace,
    history: History,
    surveyed: Snapshot[tuple[Finding, ...]],
    job: Job[Drawn] | None,
    tails: Tails,
) -> dict[str, Any]:
    """What a board draws: fronts by quantity with what was held for them, a line about them, and measured plans."""
    snapshot: Snapshot[Drawn] = Snapshot() if job is None else job.snapshot
    points, error = Learnt.of(surveyed).points, snapshot.error or surveyed.error
    return {
        "model": models.key(workspace),
        "front": fields(workspace, snapshot.found, points, error, tails),
        "measured": measured_fields(workspace, history),
    }


# ---- what its plans are predicted to score --------------------------------------------------------------------------

MOST_NEAR = 16
"""Plans measured by people that predictions start from: the browser computes with all of them while a thumb moves."""


def measured_here(workspace: Workspace, learnt: Learnt, table: NoiseTable | None) -> tuple[Joint, ...]:
    """The plans that people have measured last, near which the next one is likely to be; none before layers are."""
    if table is None or not learnt.context.order:
        return ()
    corrected = plans.history(workspace).corrected
    last = [
        MeasuredPlan(candidate.plan, score.drop)
        for candidate, score in list(workspace.scores.items())[-MOST_NEAR:]
        if candidate.plan.choices and (candidate.correction is not None) == corrected and not score.not_finite
    ]
    return joints_of(workspace, learnt.points, table, learnt.context, last)


@dataclass(frozen=True, slots=True)
class State:
    """How far a front is: points of layers that are known, quantities that are drawn, whether anything more comes."""

    points: int
    drawn: int
    settled: bool


def state(workspace: Workspace) -> State:
    """How far the front of this session is, which is begun where it was not."""
    surveyed = measurements.survey(workspace).snapshot
    job = front(workspace, plans.history(workspace), surveyed)
    found = () if job is None else job.snapshot.found
    return State(found[0].asked.points if found else 0, len(found), is_settled(job, surveyed))


def known(workspace: Workspace, quantity: Quantity) -> tuple[tuple[PredictedPlan, ...], str]:
    """The plans of the front that are known now, the cheapest first, as the board predicts them, and a line about them.

    The line is empty where the front is whole.
    """
    surveyed = measurements.survey(workspace).snapshot
    job = front(workspace, plans.history(workspace), surveyed)
    snapshot: Snapshot[Drawn] = Snapshot() if job is None else job.snapshot
    learnt = Learnt.of(surveyed)
    line = says(workspace, learnt.points, snapshot.found, snapshot.error or surveyed.error)
    one = next((each for each in snapshot.found if each.quantity == quantity), None)
    table = None if one is None else models.noise(workspace)
    if one is None or table is None:
        return (), line
    near = measured_here(workspace, learnt, table)
    key = one, len(learnt.context.joints), near
    if key not in _predicted():
        _predicted()[key] = predict(workspace, one, learnt, near, table)
    return _predicted()[key], line


@st.cache_resource
def _predicted() -> Recent[tuple[Drawn, int, tuple[Joint, ...]], tuple[PredictedPlan, ...]]:
    return Recent(MOST_SESSIONS)


# ---- plans that were measured ---------------------------------------------------------------------------------------


@st.cache_resource
def _names() -> Recent[RankPlan, str]:
    return Recent(10 * MOST_MEASURED)


def _name(plan: RankPlan) -> str:
    """Of the plan alone: a dot is still the same one when a thorough figure takes the place of its quick one."""
    if plan not in _names():
        _names()[plan] = named(plan.to_json(provenance={}))
    return _names()[plan]


def measured(workspace: Workspace, history: History) -> list[Measured]:
    """The plans measured last, with a correction or without as it is set now, each once: here, and by searches."""
    scored: dict[RankPlan, tuple[str, Candidate, Score]] = {}
    found = [("search", t.candidate, t.score) for job in searches.begun(workspace).values() for t in job.snapshot.found]
    for kind, candidate, score in (*found, *(("measured", c, s) for c, s in list(workspace.scores.items()))):
        fits = candidate.plan.choices and (candidate.correction is not None) == history.corrected
        if score is not None and fits and not score.not_finite:
            scored[candidate.plan.plain] = kind, candidate, score
    latest = list(scored.values())[-MOST_MEASURED:]
    return [Measured(_name(candidate.plan.plain), kind, candidate, score) for kind, candidate, score in latest]


def measured_fields(workspace: Workspace, history: History) -> list[dict[str, Any]]:
    """The same as a browser takes them."""
    free = any(choice.free for _, choice in history.plan.choices)
    return [one.to_dict(workspace, free=free) for one in measured(workspace, history)]


def uniform(surveyed: Snapshot[tuple[Finding, ...]]) -> list[Measured]:
    """The plans of the survey that keep the same share of every rank."""
    found = Learnt.of(surveyed).uniform
    return [Measured(_name(one.candidate.plan.plain), "uniform", one.candidate, one.score) for one in found]


def uniform_fields(
    workspace: Workspace, history: History, surveyed: Snapshot[tuple[Finding, ...]]
) -> list[dict[str, Any]]:
    """The same as a browser takes them."""
    free = any(choice.free for _, choice in history.plan.choices)
    return [one.to_dict(workspace, free=free) for one in uniform(surveyed)]


def adopted(workspace: Workspace, history: History, name: str) -> History:
    """The history with a plan that a dot stands for as its newest step; itself where none is known by that name."""
    free = any(choice.free for _, choice in history.plan.choices)
    dots = (*measured(workspace, history), *uniform(measurements.survey(workspace).snapshot))
    plan = next((one.plan(free=free) for one in dots if one.name == name), None)
    return history if plan is None else history.commit(plan)
