"""Jobs of all kinds, for all sessions: what runs, what a session has asked, and what a stopped server left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.running.jobs import Job
from lowrank_core.selection._problem import Trial
from lowrank_core.streaming.request import Step
from lowrank_core.workspace import Workspace
from pages.ui import compare, tuning
from pages.ui.asked import ASKED, Wish, to_json
from pages.ui.note_file import change_notes, read_notes
from pages.ui.question import Question
from pages.ui.shared_jobs import SharedJobs, Started
from pages.ui.state import on_disk, session
from pages.ui.state.session import session_id
from pages.ui.streaming import Stream
from pages.ui.tuning import Sweep, Training

MOST_ASKED = 50
"""Searches and trainings of a session that are remembered on disk."""

MOST_SEARCHES = 200
"""Kept in memory for all sessions; the oldest that are over are forgotten first."""

MOST_TRAININGS = 100
"""Kept in memory for all sessions, as curves and scores; the oldest that are over are forgotten first."""

MOST_COMPARISONS = 100
"""Kept in memory for all sessions, as figures; the oldest that are over are forgotten first."""


HOME = "Rank Explorer"
"""The title of Home, where networks are opened."""

MOST_OPENINGS = 50
"""Kept in memory for all sessions, as names; the oldest that are over are forgotten first."""


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


@st.cache_resource
def openings() -> SharedJobs[str, str]:
    """The networks that are being opened for all sessions, by their references, shared between them."""
    return SharedJobs(HOME, MOST_OPENINGS)


@st.cache_resource
def streams() -> SharedJobs[Stream, Step]:
    """The folders that are compressed block by block, shared between all sessions."""
    return SharedJobs("Export", 20)


def is_done(job: Job[Any] | None) -> bool:
    """Whether a job came to its end, so that asking for the same again brings what it has found."""
    return job is not None and job.snapshot.over and not (job.snapshot.error or job.snapshot.cancelled)


def of_session() -> list[Started]:
    """The jobs of this session, for all models and pages."""
    return [started for shared in _kinds() for started in shared.of_session(session_id())]


def elsewhere(page: str) -> list[Started]:
    """Jobs of this session, of any model, that other pages show: running, or over and not put away.

    One whose page was looked at since it was over is put away.
    """
    for started in of_session():
        if started.page == page and started.job.snapshot.over:
            put_away(started)
    return [started for started in of_session() if started.page != page and not started.away]


def put_away(started: Started) -> None:
    """This session has seen that a job is over; for all its tabs, until it is asked again."""
    for shared in _kinds():
        shared.put_away(session_id(), started.job)


def page_of(started: Started) -> str:
    """The name of the page that shows a job, as links have it."""
    return "Home" if started.page == HOME else started.page


def cancel(job: Job[Any]) -> None:
    """This session calls a job off: it ends unless another session waits for it, too."""
    for jobs in _kinds():
        jobs.cancel(session_id(), job)


def still_here() -> None:
    """A page of this session is open and watches a job."""
    for jobs in _kinds():
        jobs.of_session(session_id())


def _kinds() -> tuple[SharedJobs[Any, Any], ...]:
    return searches(), trainings(), comparisons(), spectra(), openings(), streams()


def note_asked(workspace: Workspace, wish: Wish) -> None:
    """Remember on disk what was asked, for a server that is started anew."""

    def with_it(others: tuple[Wish, ...]) -> tuple[Wish, ...]:
        return (*(other for other in others if other != wish), wish)[-MOST_ASKED:]

    file = _asked_file(workspace)
    try:
        noted = change_notes(file, ASKED, with_it, to_json)
    except (OSError, LowRankError) as error:
        on_disk.say_unwritable(file, error)
        return
    if noted.said:
        session.say(noted.said)


def noted(workspace: Workspace) -> tuple[Wish, ...]:
    """What this session has asked about this model, the latest last, also of a server that was stopped since."""
    file = _asked_file(workspace)
    try:
        noted = read_notes(file, ASKED)
    except (OSError, LowRankError) as error:
        on_disk.say_unwritable(file, error)
        return ()
    if noted.said:
        session.say(noted.said)
    return noted.entries


def _asked_file(workspace: Workspace) -> Path:
    return on_disk.file_of(workspace.profile.fingerprint, "-asked.json")
