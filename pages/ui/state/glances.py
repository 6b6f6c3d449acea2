"""Glances: plans that a visitor's thumb passes, measured for their board while it is held (`pages.ui.live`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import streamlit as st

from lowrank_core.errors import Cancelled
from lowrank_core.measure.glance import Glances, TooSlow
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.jobs import Job
from lowrank_core.running.scope import pause, somebody_waits
from lowrank_core.workspace import Workspace
from pages.ui.live import VISITORS, Choices, Visitor
from pages.ui.state import models, plans
from pages.ui.words import score_fields

LINGER_SECONDS = 0.6
"""After an answer other work goes on giving way: while a thumb is held the next question is not far."""


@st.cache_resource(max_entries=2)
def _glances(_workspace: Workspace, key: str) -> Glances:
    return Glances(_workspace)


def admit(workspace: Workspace) -> str:
    """Let this session's board ask about plans near the one that is measured; the secret that it asks with."""
    key = models.key(workspace)
    begin = partial(_begin, _glances(workspace, key), plans.candidate(workspace))
    secret = VISITORS.admit(st.session_state.get("secret"), Visitor(key, begin))
    st.session_state["secret"] = secret
    return secret


def _begin(glances: Glances, base: Candidate, choices: Choices) -> Job[dict[str, Any]]:
    return Job("the glance", lambda: _answers(glances, base, choices))


def _answers(glances: Glances, base: Candidate, choices: Choices) -> Iterator[dict[str, Any]]:
    """One answer; then the thread stays for a moment, so that others' work goes on giving way."""
    profile = glances.workspace.profile
    plan = RankPlan.of(profile.fingerprint, {n: Choice(method, rank) for n, (method, rank) in choices.items()})
    check_plan(profile, plan)
    with somebody_waits():
        began = time.monotonic()
        try:
            glance = glances(base, plan)
        except TooSlow as slow:
            yield {"slow": str(slow)}
            return
        milliseconds = round(1e3 * (time.monotonic() - began))
        yield {"score": score_fields(glance.score), "left_out": glance.left_out, "milliseconds": milliseconds}
        with suppress(Cancelled):
            pause(LINGER_SECONDS)
