"""Jobs on the pages: the one that a page watches, and a badge on every page for the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from typing import Any, TypeVar

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lowrank_core.errors import LowRankError
from lowrank_core.running.jobs import Job, Snapshot
from pages.ui import frame, words
from pages.ui.button import button
from pages.ui.shared_jobs import Started
from pages.ui.state import jobs, runs

A = TypeVar("A")
T = TypeVar("T")

DRAW_SECONDS = 0.5  # a chart is drawn anew at most this often
BADGE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Bar:
    """The button that starts a job, and beside it the place for what it will take, or what goes on."""

    pressed: bool
    line: DeltaGenerator


def bar(label: str, icon: str, *, ready: bool, job: Job[Any] | None) -> Bar:
    """Draw the button with its place, and Cancel where the job is under way; they stay in sight with what comes of it.

    ready: whether there is something to start.
    """
    at_work = job is not None and not job.snapshot.over
    with st.container(key=START_BAR, horizontal=True, vertical_alignment="center", gap="small", wrap=True):
        pressed = button(label, type="primary", icon=icon, disabled=at_work or not ready)
        if at_work:
            st.button("Cancel", icon=":material/stop_circle:", on_click=jobs.cancel, args=(job,))
        line = st.empty()
    return Bar(pressed, line)


START_BAR = "start_bar"
"""The key of the bar; frame.css keeps it in sight, and frame.js brings what it starts on the screen."""


def outcome() -> DeltaGenerator:
    """The place for what comes of a job, below its bar: tall enough to be scrolled to before anything is there."""
    return st.container(key="outcome")


def costs(place: DeltaGenerator, say: Callable[[], Iterable[str]]) -> None:
    """Say what a job takes before it starts, in lines; where nothing was measured that tells it, say that.

    say: raises a LowRankError where the job cannot be done, which starting it explains.
    """
    try:
        lines = [line for line in say() if line]
    except LowRankError:
        lines = ["What it takes is not known: it cannot be started as it is asked."]
    place.caption("  \n".join(map(words.plain, lines)))


def follow(
    job: Job[T],
    say: Callable[[Snapshot[T]], str],
    draw: Callable[[Snapshot[T], int], None],
    line: DeltaGenerator | None = None,
) -> None:
    """Show what a job finds until it is over or a newer run waits; the run itself streams.

    say: the line of progress; draw: a picture of what was found, with a number that differs from picture to picture.
    line: the place of a bar, which has a Cancel already.
    """
    if line is None:
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


def earlier(
    wishes: Sequence[A], titles: Sequence[str], start: Callable[[A], None], takes: Callable[[A], Iterable[str]]
) -> None:
    """What was asked before the server was started anew, to be asked again: what it had found is on disk.

    takes: what it will take, in lines; see `costs`.
    """
    if not wishes:
        return
    with st.expander("Asked before the server was started anew", icon=":material/history:"):
        at = st.selectbox("Asked", range(len(wishes)), format_func=titles.__getitem__, key=f"earlier {titles}")
        st.caption("What was measured and trained then is kept: only what is missing is done.")
        costs(st.empty(), lambda: takes(wishes[at]))
        if button("Go on", icon=":material/play_arrow:"):
            start(wishes[at])
            st.rerun()


def badge(page: str) -> None:
    """The jobs of this session that another page shows: running, or over since this session looked there.

    frame.js reads from it what the title of the page says.
    """
    st.html(_marks(page))
    if jobs.elsewhere(page):
        st.fragment(_badge, run_every=BADGE_SECONDS)(page)


def _marks(page: str) -> str:
    """What frame.js is to know of the jobs of this session that this page shows."""
    here = [started for started in jobs.of_session() if started.page == page]
    return "".join(_mark(started, is_here=True) for started in here) or "<i hidden></i>"


def _mark(started: Started, *, is_here: bool) -> str:
    snapshot = started.job.snapshot
    state = "running" if not snapshot.over else "failed" if snapshot.error else "over"
    state = "cancelled" if snapshot.cancelled else state
    return (
        f'<i hidden data-job="{started.key}" data-job-state="{state}" data-job-page="{escape(started.page)}" '
        f'data-job-here="{int(is_here)}"></i>'
    )


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
        with st.container(
            horizontal=True,
            gap="xsmall",
            vertical_alignment="center",
            horizontal_alignment="distribute",
            key=f"job {started.key}",
        ):
            label = f"{words.plain(started.label)} · {says}"
            frame.link(jobs.page_of(started), says=label, icon=f":material/{icon}:")
            if not snapshot.over:
                st.button("Cancel", on_click=jobs.cancel, args=(job,), key=f"cancel {started.key}", type="tertiary")
            else:
                st.button(
                    "Put away",
                    icon=":material/close:",
                    help=f"Put away {words.plain(started.label)}",
                    on_click=jobs.put_away,
                    args=(started,),
                    key=f"away {started.key}",
                    type="tertiary",
                )
            st.html(_mark(started, is_here=False))
