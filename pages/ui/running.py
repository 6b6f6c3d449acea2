"""Jobs on the pages: the one that a page watches, and a badge on every page for the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import streamlit as st

from lowrank_core.running.jobs import Job, Snapshot
from pages.ui import words
from pages.ui.button import button
from pages.ui.state import jobs, runs

A = TypeVar("A")
T = TypeVar("T")

DRAW_SECONDS = 0.5  # a chart is drawn anew at most this often
BADGE_SECONDS = 2.0


def follow(job: Job[T], say: Callable[[Snapshot[T]], str], draw: Callable[[Snapshot[T], int], None]) -> None:
    """Show what a job finds until it is over or a newer run waits; the run itself streams.

    say: the line of progress; draw: a picture of what was found, with a number that differs from picture to picture.
    """
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Cancel", icon=":material/stop_circle:", on_click=jobs.cancel, args=(job,))
        line = st.empty()
    picture = st.empty()
    drawn, snapshot, serial = None, job.snapshot, 0
    while True:
        line.markdown(f":material/hourglass_top: {say(snapshot)}{time_left(job)}")
        if drawn is None or len(snapshot.found) > drawn:
            with picture:
                draw(snapshot, serial)
            drawn, serial = len(snapshot.found), serial + 1
        if snapshot.over:
            st.rerun()
        later = look_again(job, snapshot, DRAW_SECONDS)
        if later is None:
            return
        snapshot = later


def look_again(job: Job[T], snapshot: Snapshot[T], seconds: float) -> Snapshot[T] | None:
    """What a job has come to after so long, or sooner where it is over; None where a newer run of the page waits."""
    jobs.still_here()
    again = time.monotonic() + seconds
    while time.monotonic() < again and not snapshot.over:
        snapshot = job.changed(snapshot, seconds=0.1)
        if runs.newer_run_waits():
            return None
    return snapshot


def time_left(job: Job[Any]) -> str:
    """How long what goes on still takes, after what is said of it; nothing where that cannot be told."""
    left = job.seconds_left
    return "" if left is None else f" · about {words.duration(max(1.0, left))} left"


def earlier(wishes: Sequence[A], titles: Sequence[str], start: Callable[[A], None]) -> None:
    """What was asked before the server was started anew, to be asked again: what it had found is on disk."""
    if not wishes:
        return
    with st.expander("Asked before the server was started anew", icon=":material/history:"):
        at = st.selectbox("Asked", range(len(wishes)), format_func=titles.__getitem__, key=f"earlier {titles}")
        st.caption("What was measured and trained then is kept: only what is missing is done.")
        if button("Go on", icon=":material/play_arrow:"):
            start(wishes[at])
            st.rerun()


def badge(page: str) -> None:
    """The jobs of this session that another page shows: running, or over since this session looked there."""
    if jobs.elsewhere(page):
        st.fragment(_badge, run_every=BADGE_SECONDS)(page)


def _badge(page: str) -> None:
    runs.let_wait()
    for started in jobs.elsewhere(page):
        snapshot, job = started.job.snapshot, started.job
        since = datetime.now().astimezone() - timedelta(seconds=job.seconds)
        icon, says = "hourglass_top", f"since {since:%H:%M}{time_left(job)}"
        if snapshot.error is not None:
            icon, says = "error", "failed"
        elif snapshot.over:
            icon, says = "check_circle", "cancelled" if snapshot.cancelled else "done"
        with st.container(horizontal=True, gap="xsmall", vertical_alignment="center", key=f"job {started.key}"):
            st.markdown(f":material/{icon}: {words.plain(started.label)} · {says}", width="content")
            if not snapshot.over:
                st.button("Cancel", on_click=jobs.cancel, args=(job,), key=f"cancel {started.key}", type="tertiary")
