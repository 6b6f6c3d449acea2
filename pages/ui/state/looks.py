"""Looks behind a figure: the panels of Ranks that a session has unfolded, and what they show of its plan.

Answers come from the measurement itself where it is made while they are looked at. All else is found when the figure
is there, one of each at a time, and a newer plan calls it off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import streamlit as st

from lowrank_core.measure.answers import Answers, answers_of
from lowrank_core.measure.depth import DepthErrors, depth_errors
from lowrank_core.measure.measurement import Figure, Told, is_settled
from lowrank_core.plans.candidate import Candidate
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.store.room import Recent
from lowrank_core.workspace import Workspace
from pages.ui.state import models, plans
from pages.ui.state.session import session_id

PANELS = ("answers", "depth")
"""What can be unfolded."""

MOST_KNOWN = 200
"""Plans of which this is remembered, of all sessions."""

MOST_SAMPLES = 1024
"""On which answers are found where the score was known before they were asked for."""


@dataclass(frozen=True, slots=True)
class Looks:
    """What is known for the panels that are unfolded; a text says why there is nothing. over: no more will come.

    how: the depth of the correction that it belongs to, as that of the figure.
    """

    answers: Answers | str | None = None
    depth: DepthErrors | str | None = None
    how: str = ""
    over: bool = True


@st.cache_resource
def _known() -> Recent[tuple[str, str, Candidate], Any]:
    return Recent(MOST_KNOWN)


@st.cache_resource
def _jobs() -> Recent[tuple[str, str], tuple[tuple[str, str, Candidate], Job[Any]]]:
    return Recent(MOST_KNOWN)


def unfolded() -> tuple[str, ...]:
    """The panels that this session has unfolded."""
    panels: tuple[str, ...] = st.session_state.get("unfolded", ())
    return panels


def unfold(panels: Iterable[object]) -> None:
    """These panels are unfolded, and no others."""
    asked = set(map(str, panels))
    st.session_state["unfolded"] = tuple(panel for panel in PANELS if panel in asked)


def listener(workspace: Workspace) -> Told | None:
    """Who hears a measurement's answers to single samples; nobody while that panel is folded."""
    if "answers" not in unfolded():
        return None
    key, known = models.key(workspace), _known()

    def keep(candidate: Candidate, answers: Answers) -> None:
        known["answers", key, candidate] = answers

    return keep


def find(workspace: Workspace, snapshot: Snapshot[Figure]) -> Looks:
    """What is known of the plan whose figure this is; what is not known yet is being found once the figure stands."""
    panels = unfolded()
    candidate, figure = plans.candidate(workspace).plain, snapshot.found[-1] if snapshot.found else None
    if figure is None:
        for panel in PANELS:
            _leave(panel)
        return Looks(over=snapshot.over or not panels)
    shown = workspace.quick(candidate) if figure.quick else candidate
    ready = is_settled(snapshot)
    answers: Answers | str | None = None
    depth: DepthErrors | str | None = None
    if "answers" not in panels:
        _leave("answers")
    elif workspace.opened.evaluate is not None:
        answers = "The model file scores itself with evaluate(model), so single answers are not known."
    else:
        samples = min(figure.score.samples, MOST_SAMPLES)
        answers = _found("answers", workspace, shown, ready, lambda: answers_of(workspace, shown, samples=samples))
        if isinstance(answers, Answers) and ready and answers.samples < samples:  # of a measurement that was called off
            del _known()["answers", models.key(workspace), shown]
            answers = None
    if "depth" not in panels:
        _leave("depth")
    else:
        depth = _found("depth", workspace, shown, ready, lambda: depth_errors(workspace, shown))
    waits = ("answers" in panels and answers is None) or ("depth" in panels and depth is None)
    return Looks(answers, depth, shown.correction.depth if shown.correction else "", over=not waits)


def _found(panel: str, workspace: Workspace, shown: Candidate, ready: bool, work: Callable[[], Any]) -> Any:
    """What is known; None while it is being found, or is not to be found yet."""
    key = panel, models.key(workspace), shown
    known = _known().get(key)
    running = _jobs().get((session_id(), panel))
    if running is not None and running[0] != key:
        _leave(panel)
        running = None
    if known is not None or not ready:
        return known

    def found() -> Iterator[Any]:
        yield work()

    if running is None or running[1].cancelled():
        running = key, Job("the look behind the figure", found, patience_seconds=inf)
        _jobs()[session_id(), panel] = running
    snapshot = running[1].snapshot
    if snapshot.over and not snapshot.cancelled:
        _known()[key] = known = snapshot.found[-1] if snapshot.found else snapshot.error or "There is no answer."
    return known


def _leave(panel: str) -> None:
    """What was being found for a panel is not wanted any more."""
    running = _jobs().pop((session_id(), panel), None)
    if running is not None:
        running[1].cancel()
