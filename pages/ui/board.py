"""The rank board's Python side: what the browser must know of a model, and what it tells back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lowrank_core.measure.latency import runtimes_here
from lowrank_core.measure.measurement import Figure
from lowrank_core.predict.survey import Finding, Learnt
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.running.scope import somebody_waits
from lowrank_core.workspace import Workspace
from pages.ui import answers, dense_line, editor, goals_bar, history_panel, selecting, viewing, words
from pages.ui.board_values import (
    act,
    choices_of,
    commit,
    constants,
    figures,
    goals_fields,
    more_tails,
    script,
    style,
    survey_fields,
    tails_of,
)
from pages.ui.front import Drawn
from pages.ui.history import History
from pages.ui.state import (
    comparisons,
    fronts,
    glances,
    looks,
    measurements,
    models,
    peaks,
    plans,
    runs,
    selected,
    session,
)
from pages.ui.state.looks import Looks
from pages.ui.waiting import Steps

# The library and the model's constants travel once; the board itself only carries ranks and scores.
_library = st.components.v2.component(
    "rank_explorer_board_library",
    css=style(),
    js=f"{script()}\nexport default function ({{ data }}) {{ setModel(data); }}\n",
    isolate_styles=False,
)
_board = st.components.v2.component(
    "rank_explorer_board",
    html='<div class="rb-root"></div>',
    js="""
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".rb-root");
  const mount = () => window.RankBoard.mount(root, data, (name, value) => setTriggerValue(name, value));
  if (window.RankBoard) mount(); else window.addEventListener("rank-model", mount, { once: true });
}
""",
    isolate_styles=False,
)
_feed = st.components.v2.component(
    "rank_explorer_feed",
    js="""
export default function ({ data }) {
  window[data.looks ? "__rankLooks" : data.front ? "__rankFront" : "__rankFeed"] = data;
  window.dispatchEvent(new CustomEvent("rank-feed", { detail: data }));
}
""",
    isolate_styles=False,
)


def show(workspace: Workspace) -> None:
    """Mount the board's library and the model's constants; both are constant, so later runs send only a hash."""
    with somebody_waits(), Steps() as say:
        constants = models.constants()(models.key(workspace), lambda: _constants(workspace, say))
    _library(key="board_library", data=constants, height=1)


@st.fragment
def live(workspace: Workspace) -> None:
    """The board; measures the plan and pushes figures as they arrive. Call it last: it ends when the measurement does.

    The run itself streams, so the browser never polls; it ends as soon as a newer one waits.
    """
    history = plans.history(workspace)
    for notice in session.later_notices():
        st.warning(words.plain(notice), icon=":material/history:")
    viewing.choose_of_collisions(workspace)
    goals_bar.show(workspace)
    measurement = measurements.measure(workspace)
    snapshot = measurement.snapshot
    _board(
        key="board",
        data={
            "model": model_key(workspace),
            "rev": history.rev,
            "heard": session.heard(),
            "secret": glances.admit(workspace),
            "choices": choices_of(history.plan),
            "tails": more_tails(workspace, history.plan),
            "latency": _latency(workspace),
            "can_undo": bool(history.past),
            "can_redo": bool(history.future),
            "locked": list(history.locked),
            "pinned": list(history.pinned),
            "corrected": history.corrected,
            "tolerance": history.tolerance,
            "goals": goals_fields(workspace, history.goals),
            "peak": peaks.known(workspace, history.plan),
            **_history(workspace, history),
            "unfolded": list(looks.unfolded()),
            "layer": selected.layer(workspace.profile),
            **_figures(workspace, snapshot),
        },
        on_messages_change=lambda: _receive(workspace),
    )
    dense_line.show(workspace)
    editor.show(workspace)
    selecting.listen(workspace)
    _stream(workspace, history, measurement, snapshot)


def _stream(workspace: Workspace, history: History, measurement: Job[Figure], pushed: Snapshot[Figure]) -> None:
    """Push figures of the plan, then what the survey finds and the front, until no more comes or a newer run waits."""
    # of news that come close together in one place the browser sees the last
    spot, looks_spot, front_spot = st.empty(), st.empty(), st.empty()
    survey = measurements.survey(workspace)
    pushed_survey: Snapshot[tuple[Finding, ...]] = Snapshot()
    device, peak = history.goals.device, peaks.known(workspace, history.plan)
    wanted = device is not None and device.ram_bytes is not None
    looked = Looks(over=not looks.unfolded())
    numbers = count()  # two elements of one run must differ
    front = fronts.front(workspace, history, survey.snapshot)
    pushed_front: Snapshot[Drawn] | None = None
    while not (
        pushed.over
        and pushed_survey.over
        and (peak or not wanted)
        and looked.over
        and fronts.is_settled(front, pushed_survey)
        and (front is None or pushed_front is front.snapshot)
    ):
        measured, surveyed = measurement.changed(pushed, seconds=0.1), survey.snapshot
        if runs.newer_run_waits():
            return
        more = len(surveyed.found) > len(pushed_survey.found) or surveyed.over > pushed_survey.over
        found = peaks.find(workspace, history.plan) if wanted and measured.over and not peak else None
        looked = _push_looks(workspace, looks_spot, history, looked, looks.find(workspace, measured), next(numbers))
        if more:
            front = fronts.front(workspace, history, surveyed)
        drawn: Snapshot[Drawn] = Snapshot() if front is None else front.snapshot
        if pushed_front is None or (drawn.over and drawn is not pushed_front) or (measured.over and not pushed.over):
            with front_spot:
                shown = fronts.shown(workspace, history, surveyed, front, tails_of)
                _feed(data={"serial": next(numbers), **shown}, height=1)
            pushed_front = drawn
        if measured is pushed and not more and not found:
            continue
        news = {
            "serial": next(numbers),
            "model": model_key(workspace),
            "rev": history.rev,
            **_figures(workspace, measured),
        }
        if found:
            news["peak"] = peak = found
        if more or (measured.over and not pushed.over):
            table = models.noise(workspace)
            news |= survey_fields(surveyed, table, fronts.measured_here(workspace, Learnt.of(surveyed), table))
            news["uniform"] = fronts.uniform_fields(workspace, history, surveyed)
            pushed_survey = surveyed
        if measured.over and not pushed.over:
            dense_line.show(workspace)
        pushed = measured
        with spot:
            _feed(data=news, height=1)


def _push_looks(
    workspace: Workspace, spot: DeltaGenerator, history: History, before: Looks, now: Looks, serial: int
) -> Looks:
    """Push what the unfolded panels show, all that is known of it, where some of it is new."""
    if (now.answers, now.depth) == (before.answers, before.depth):
        return now
    shown: dict[str, Any] = {}
    if now.answers is not None:
        known = now.answers
        shown["answers"] = {"error": known} if isinstance(known, str) else answers.fields(workspace, known)
    if now.depth is not None:
        shown["errors"] = {"error": now.depth} if isinstance(now.depth, str) else answers.depth_fields(now.depth)
    with spot:
        _feed(
            data={
                "serial": serial,
                "model": model_key(workspace),
                "rev": history.rev,
                "looks": shown | {"depth": now.how},
            },
            height=1,
        )
    return now


def _receive(workspace: Workspace) -> None:
    received = session.widget("board").messages
    if received is None or received["model"] != model_key(workspace):
        return
    selected.choose(workspace.profile, received.get("layer"))
    history = plans.history(workspace)
    changed = history
    for message in received["messages"]:
        if session.hear(received["board"], int(message["id"])):
            match message["action"]:
                case "unfold":
                    looks.unfold(message.get("panels", ()))
                case "commit":
                    changed = commit(workspace, changed, message)
                case "adopt":
                    changed = fronts.adopted(workspace, changed, str(message.get("name", "")))
                case "open":
                    session.set_widget(HISTORY_IS_OPEN, bool(message.get("on")))
                case _:
                    changed = act(changed, message)
    if changed is not history:
        plans.set_history(workspace, changed)


HISTORY_IS_OPEN = "history is open"
"""The small value of the session that says so: what nobody sees is not computed."""


def _history(workspace: Workspace, history: History) -> dict[str, Any]:
    """Its snapshots and steps, and whether it is another session's that is only looked at."""
    viewed = session.viewed()
    return {
        **history_panel.fields(
            workspace,
            history,
            partial(measurements.known, workspace),
            with_steps=bool(session.widget(HISTORY_IS_OPEN)),
        ),
        "read_only": bool(viewed),
        "view": viewed or session.view_of(session.session_id()),
    }


def model_key(workspace: Workspace) -> str:
    """What tells the constants of one model from another's in the browser."""
    return models.key(workspace)


def _constants(workspace: Workspace, say: Callable[[str], None]) -> dict[str, Any]:
    models.factorise(workspace, say)
    say("Preparing the prediction")
    return constants(workspace, models.dense_score(workspace)[0], models.noise(workspace))


def _figures(workspace: Workspace, snapshot: Snapshot[Figure]) -> dict[str, Any]:
    return figures(snapshot, models.dense_score(workspace)[0], plans.candidate(workspace).correction)


def _latency(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """What was measured on Compare: break-even and dominated ranks; onnxruntime's where several runtimes were."""
    marks: dict[str, dict[str, Any]] = {}
    for runtime in reversed(runtimes_here()):
        for stairs in comparisons.stairs(workspace, runtime):
            even, dominated = stairs.break_even, [list(rank) for rank in stairs.dominated]
            measured = {"runtime": runtime, "even": even and list(even), "dominated": dominated}
            marks.setdefault(stairs.layer, {})[stairs.method] = measured
    return marks
