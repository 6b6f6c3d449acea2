"""Glances: plans that a visitor's thumb passes, measured for their board while it is held (`pages.ui.live`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from lowrank_core.measure.glance import Glances
from lowrank_core.plans.candidate import Candidate
from lowrank_core.running.jobs import Job
from lowrank_core.workspace import Workspace
from pages.ui.glancing import answers
from pages.ui.live import VISITORS, Choices, Visitor
from pages.ui.state import models, plans


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
    return Job("the glance", lambda: answers(glances, base, choices))
