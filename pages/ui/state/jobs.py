"""Jobs of all kinds, for all sessions: what runs, what a session has asked, and what a stopped server left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from lowrank_core.selection._problem import Trial
from lowrank_core.store.files import keep_whole
from lowrank_core.workspace import Workspace
from pages.ui import compare, tuning
from pages.ui.asked import Wish, from_json, to_json
from pages.ui.question import Question
from pages.ui.shared_jobs import SharedJobs, Started
from pages.ui.state.session import saved_file, session_id
from pages.ui.tuning import Sweep, Training

MOST_ASKED = 50
"""Searches and trainings of a session that are remembered on disk."""

MOST_SEARCHES = 200
"""Kept in memory for all sessions; the oldest that are over are forgotten first."""

MOST_TRAININGS = 100
"""Kept in memory for all sessions, as curves and scores; the oldest that are over are forgotten first."""

MOST_COMPARISONS = 100
"""Kept in memory for all sessions, as figures; the oldest that are over are forgotten first."""


@st.cache_resource
def searches() -> SharedJobs[Question, Trial]:
    """The searches of all sessions, shared between them."""
    return SharedJobs("Search", MOST_SEARCHES)


@st.cache_resource
def trainings() -> SharedJobs[Training | Sweep, tuning.Result]:
    """The trainings and sweeps of all sessions, shared between them."""
    return SharedJobs("Fine-tune", MOST_TRAININGS)


@st.cache_resource
def comparisons() -> SharedJobs[compare.Wish, compare.Result]:
    """The measurements that all sessions asked for on Compare, shared between them."""
    return SharedJobs("Compare", MOST_COMPARISONS)


@st.cache_resource
def spectra() -> SharedJobs[str, str]:
    """The computations of spectra of weights without a model, shared between all sessions."""
    return SharedJobs("Spectra", 20)


def elsewhere(page: str) -> list[Started]:
    """Jobs of this session, of any model, that other pages show: running, or over since it last looked there."""
    looked: set[str] = st.session_state.setdefault("looked", set())
    kinds: tuple[SharedJobs[Any, Any], ...] = (searches(), trainings(), comparisons(), spectra())
    all_started = [started for jobs in kinds for started in jobs.of_session(session_id())]
    looked |= {started.key for started in all_started if started.page == page and started.job.snapshot.over}
    looked &= {started.key for started in all_started}
    return [started for started in all_started if started.page != page and started.key not in looked]


def note_asked(workspace: Workspace, wish: Wish) -> None:
    """Remember on disk what was asked, for a server that is started anew."""
    others = [other for other in noted(workspace) if other != wish]
    keep_whole(_asked_file(workspace), to_json([*others, wish][-MOST_ASKED:]))


def noted(workspace: Workspace) -> tuple[Wish, ...]:
    """What this session has asked about this model, the latest last, also of a server that was stopped since."""
    try:
        return from_json(_asked_file(workspace).read_bytes())
    except OSError:
        return ()


def _asked_file(workspace: Workspace) -> Path:
    return saved_file(workspace.profile.fingerprint, "-asked.json")
