"""Peaks of RAM: what the activations of a session's plan take at most, from one inference that is traced elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import streamlit as st

from lowrank_core.errors import OtherModel
from lowrank_core.exports._in_format import plan_in
from lowrank_core.graphs.memory import peak
from lowrank_core.measure.apart import apart
from lowrank_core.measure.comparison import traces
from lowrank_core.measure.formats import FORMATS
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.jobs import PATIENCE_SECONDS, Job
from lowrank_core.store.room import Recent
from lowrank_core.workspace import Workspace
from pages.ui.state import comparisons, models
from pages.ui.state.session import session_id

MOST = 500
"""Plans whose peak is remembered, of all sessions."""

Peak = dict[str, Any]
"""{"bytes": {number format: bytes}}, or {"error": why there is none}; as a browser is told it."""


@st.cache_resource
def _known() -> Recent[tuple[str, RankPlan], Peak]:
    return Recent(MOST)


@st.cache_resource
def _jobs() -> Recent[str, tuple[tuple[str, RankPlan], Job[Peak]]]:
    return Recent(MOST)


def known(workspace: Workspace, plan: RankPlan) -> Peak | None:
    """The peak of a plan if it was found, here or by Compare; None if not."""
    key = models.key(workspace), plan
    found = _known().get(key)
    if found is None:
        for column, measured in comparisons.measured(workspace).items():
            if plan_in(column.plan, column.number) == plan and measured.memory:
                found = {"bytes": {name: memory.peak.bytes for name, memory in measured.memory.items()}}
                _known()[key] = found
    return found


def bytes_in(workspace: Workspace, plan: RankPlan, number: str) -> int | None:
    """The peak of a plan in a number format, if it was found."""
    found = known(workspace, plan)
    return None if found is None or "error" in found else int(found["bytes"][number])


def find(workspace: Workspace, plan: RankPlan) -> Peak | None:
    """The peak of a plan; while it is not known it is being found, and what this session had asked before is not."""
    key = models.key(workspace), plan
    if found := known(workspace, plan):
        return found
    running = _jobs().get(session_id())
    if running is None or running[0] != key or running[1].cancelled():
        if running is not None:
            running[1].cancel()
        job = Job("RAM", lambda: _peaks(workspace, plan), patience_seconds=PATIENCE_SECONDS)
        running = key, job
        _jobs()[session_id()] = running
    snapshot = running[1].snapshot
    if snapshot.over and not snapshot.cancelled:
        _known()[key] = snapshot.found[-1] if snapshot.found else {"error": snapshot.error or "no answer"}
    return _known().get(key)


def _peaks(workspace: Workspace, plan: RankPlan) -> Iterator[Peak]:
    candidates = (Candidate(plan),)
    try:
        if workspace.opened.ref is None:
            raise OtherModel("no other process can open it.")
        (traced,) = apart(traces, workspace, candidates)
    except OtherModel:
        (traced,) = traces(workspace, candidates)
    yield {"bytes": {name: peak(traced, itemsize=size).bytes for name, size in FORMATS.items()}}
