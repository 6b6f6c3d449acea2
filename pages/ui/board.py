"""The rank board's Python side: what the browser must know of a model, and what it tells back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import streamlit as st
import torch
from streamlit.delta_generator import DeltaGenerator
from torch import Tensor

from lowrank_core.algebra.linalg import tail_energy
from lowrank_core.algebra.spectra import bend
from lowrank_core.errors import LowRankError
from lowrank_core.measure.formats import AS_IT_IS, FORMATS, PLAIN, dense_flash_bytes, gone_bytes, order_bytes
from lowrank_core.measure.latency import RUNTIMES
from lowrank_core.measure.measurement import Figure, is_settled
from lowrank_core.methods import Method
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import amounts, break_even, check_plan, coefficients, dense_cost, has_free_ranks, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict import interval
from lowrank_core.predict.prediction import Context, Joint, NoiseTable, curves, kept_curves
from lowrank_core.predict.survey import Finding, Learnt
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.running.scope import somebody_waits
from lowrank_core.workspace import Workspace
from pages.ui import answers, dense_line, editor, goals_bar, history_panel, selecting, viewing, words
from pages.ui.front import Drawn
from pages.ui.goals import Goals, in_own_format, own_format
from pages.ui.history import History
from pages.ui.merging import merge_plans
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

FOLDER = Path(__file__).with_suffix("")
SCRIPTS = (
    "closed_forms.js",  # what a plan costs and is predicted to score
    "words.js",  # figures as text
    "board.js",  # class Board: what it knows, hears and says
    "goals.js",  # device, number format and floor on the cards
    "tracks.js",  # where ranks stand on a track, and how pointers move thumbs
    "building.js",  # the elements it is made of
    "gestures.js",  # drags, keys, presets, locks
    "asking.js",  # what is measured while a thumb is held
    "rows.js",  # many layers: their order, several at once, what blocks sum up to
    "keys.js",  # what keys do
    "speaking.js",  # what is said of it
    "beside.js",  # the numbers of charts as tables
    "drawing.js",  # rows, cards and their charts
    "selected_layer.js",  # the panel of one layer
    "tradeoff.js",  # score against cost, what sets two snapshots apart
    "snapshots.js",  # plans with a name and a note
    "history.js",  # steps and branches, and work that is only looked at
    "front.js",  # the best plans on it, a slider along them, pins
    "panels.js",  # what is folded until a person wants it
    "answers.js",  # single samples and what is said to them
    "depth.js",  # the error of each layer
    "mounting.js",  # onto the page
)
"""The board's script, file by file; each uses those before it as if they were one."""


STYLES = ("board.css", "goals.css", "rows.css", "front.css", "history.css", "answers.css")


def script() -> str:
    """The JavaScript module that a browser gets: all of SCRIPTS, in their order."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)


# The library and the model's constants travel once; the board itself only carries ranks and scores.
_library = st.components.v2.component(
    "rank_explorer_board_library",
    css="\n".join((FOLDER / name).read_text(encoding="utf-8") for name in STYLES),
    js=script(),
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
        constants = models.constants()(models.key(workspace), lambda: _model(workspace, say))
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
            "choices": _choices(history.plan),
            "tails": _more_tails(workspace, history.plan),
            "latency": _latency(workspace),
            "can_undo": bool(history.past),
            "can_redo": bool(history.future),
            "locked": list(history.locked),
            "pinned": list(history.pinned),
            "corrected": history.corrected,
            "tolerance": history.tolerance,
            "goals": _goals(workspace, history.goals),
            "peak": peaks.known(workspace, history.plan),
            **history_panel.fields(workspace, history),
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
                shown = fronts.shown(workspace, history, surveyed, front, _tails)
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
            news |= _survey_fields(surveyed, table, fronts.measured_here(workspace, Learnt.of(surveyed), table))
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


def _survey_fields(
    snapshot: Snapshot[tuple[Finding, ...]], table: NoiseTable | None, more: tuple[Joint, ...] = ()
) -> dict[str, Any]:
    learnt, progress = Learnt.of(snapshot), snapshot.progress
    left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"
    points: dict[str, dict[str, Any]] = {}
    for (layer, method), curve in curves(learnt.points).items():
        points.setdefault(layer, {})[method] = curve
    return {
        "points": points,
        "context": {"kept": kept_curves(learnt.context.repairs), "residuals": _residuals(learnt.context, table, more)},
        "uniform": [asdict(uniform) for uniform in learnt.uniform],
        "learning": progress.words + left,
    }


def _residuals(context: Context, table: NoiseTable | None, more: tuple[Joint, ...] = ()) -> dict[str, Any] | None:
    """What measured plans say of all others; None where the model file scores itself, and nothing is predicted."""
    if table is None:
        return None
    known = interval.residuals(context, table)
    return asdict(interval.with_measured(known, (*context.joints, *more), table) if more else known)


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
                case _:
                    changed = act(changed, message)
    if changed is not history:
        plans.set_history(workspace, changed)


def commit(workspace: Workspace, history: History, message: dict[str, Any]) -> History:
    """The history after ranks from the browser; ranks that do not fit the model are ignored.

    Where the plan is no more the one that they were changed from, only what was changed counts.
    """
    try:
        sent = _sent_plan(workspace, message["choices"])
        before = _sent_plan(workspace, message["before"]) if message.get("before") is not None else history.plan
        rev, gesture = int(message["rev"]), int(message["gesture"])
    except (LowRankError, KeyError, TypeError, ValueError):
        return history
    plan, _ = merge_plans(before, sent, history.plan)
    rev = max(rev + (plan != sent), history.rev + 1)  # the browser has not yet seen an undo that came just before
    moved = [layer for layer in {*dict(before.choices), *dict(sent.choices)} if before.get(layer) != sent.get(layer)]
    committed = history.commit(plan, rev=rev, gesture=gesture)
    if committed is history:
        return history
    match message.get("by"):
        case "hand":
            gave = set(map(str, message.get("gave", ())))  # to the budget lock
            return committed.pin(sorted(layer for layer in moved if layer not in gave))
        case "front":
            return committed.unpin(moved)
    return committed


def _sent_plan(workspace: Workspace, choices: dict[str, Any]) -> RankPlan:
    plan = RankPlan.of(
        workspace.profile.fingerprint,
        {
            n: Choice(str(c["method"]), tuple(int(r) for r in c["rank"]), bool(c.get("free", False)))
            for n, c in choices.items()
        },
    )
    check_plan(workspace.profile, plan)
    return plan


def act(history: History, message: dict[str, Any]) -> History:
    """The history after one of the board's buttons."""
    match message.get("action"):
        case "undo":
            return history.undo()
        case "redo":
            return history.redo()
        case "correct":
            return history.correct(bool(message.get("on")), history.correction)
        case "tolerate":
            drop = message.get("drop")
            return history.tolerate(None if drop is None else float(drop))
        case "lock":
            return history.lock(str(n) for n in message.get("locked", ()))
        case "unpin":
            return history.unpin(str(n) for n in message.get("layers", ()))
    return history_panel.act(history, message)


def model_key(workspace: Workspace) -> str:
    """What tells the constants of one model from another's in the browser."""
    return models.key(workspace)


def _choices(plan: RankPlan) -> dict[str, Any]:
    return {name: choice.to_dict() for name, choice in plan.choices}


def _goals(workspace: Workspace, goals: Goals) -> dict[str, Any]:
    """What plans are judged by, as the browser takes it."""
    device = None if goals.device is None else asdict(goals.device)
    own = own_format(workspace)
    return {
        "device": device,
        "number": goals.format,
        "floor": goals.floor,
        "in": "" if goals.number is None else f" in {goals.number}",
        "how": in_own_format(goals.number, own),
        "own": "" if goals.number is None or own == AS_IT_IS else f" in {own}",
    }


def _figures(workspace: Workspace, snapshot: Snapshot[Figure]) -> dict[str, Any]:
    latest = snapshot.found[-1] if snapshot.found and snapshot.error is None else None
    return {
        "dense": models.dense_score(workspace)[0],
        "score": None if latest is None else words.score_fields(latest.score),
        "doing": snapshot.progress.words,
        "done": is_settled(snapshot),
        "depth": "" if latest is None else _depth(workspace, latest),
        "remarks": [] if latest is None else list(latest.remarks),
        "plain": None if latest is None else words.score_fields(latest.plain),
        "error": snapshot.error,
    }


def _depth(workspace: Workspace, figure: Figure) -> str:
    """With which correction a figure was measured: "quick", "thorough", or "" for one that has no such name or none."""
    correction = plans.candidate(workspace).correction
    return "quick" if figure.quick else "" if correction is None else correction.depth


def _model(workspace: Workspace, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything constant: exact cost coefficients, spectra at some ranks, break-even marks, the prediction table."""
    profile = workspace.profile
    models.factorise(workspace, say)
    say("Preparing the prediction")
    dense = plan_cost(profile)
    value, _ = models.dense_score(workspace)
    table = models.noise(workspace)
    return {
        "key": model_key(workspace),
        "name": workspace.name,
        "metric": {
            "label": words.axis(workspace),
            "share": words.shares(workspace),
            "higher": not words.rises(workspace),
            "dense": value,
        },
        "help": {
            "rank": words.RANK,
            "break_even": words.BREAK_EVEN,
            "bytes": words.BYTES,
            "multiplies": words.MULTIPLIES,
            "interval": words.INTERVAL,
            "correction": words.CORRECTION,
            "free_ranks": words.FREE_RANKS,
        },
        "rest": {"bytes": profile.rest.bytes, "multiplies": profile.rest.multiplies},
        "dense": {"bytes": dense.bytes, "multiplies": dense.multiplies},
        "formats": {
            name: {"size": size, "dense": dense_flash_bytes(workspace.model, name), "plain": name in PLAIN}
            for name, size in FORMATS.items()
        },
        "prediction": {
            "rough": table.rough if table else 0.0,
            "table": {"log_variance": table.log_variance, "score": table.score} if table else None,
            "constants": interval.CONSTANTS,
            "residuals": _residuals(Context(), table),
        },
        "layers": [_layer(workspace, layer, index) for index, layer in enumerate(profile.layers)],
    }


def _layer(workspace: Workspace, layer: Layer, index: int) -> dict[str, Any]:
    block = words.block(layer.name)
    cost = dense_cost(layer)
    methods = [m for m in layer.methods if not m.reference]
    return {
        "index": index,
        "name": layer.name,
        "block": block or workspace.name,
        "leaf": layer.name[len(block) + 1 :] if block else layer.name,
        "type": layer.type,
        "shape": "×".join(map(str, layer.spec.weight_shape)),
        "dense": {"bytes": cost.bytes, "multiplies": amounts(layer, [None], "multiplies")[0]},
        "itemsize": layer.itemsize,
        "parameters": cost.parameters,
        "gone": {number: gone for number in FORMATS if (gone := gone_bytes(workspace.model, layer, number))},
        "default": methods[0].name,
        "methods": {
            m.name: {
                "label": m.label,
                "axes": list(m.axes),
                "top": list(m.max_rank(layer.spec)),
                **_costs(layer, m),
                "free": _costs(layer, m, free=True) if has_free_ranks(m.name) else None,
                "tails": _tails(workspace, layer.name, m.name) if m is methods[0] else None,
                "points": [],
            }
            for m in methods
        },
    }


def _costs(layer: Layer, method: Method, *, free: bool = False) -> dict[str, Any]:
    """Coefficients and break-even of a method as its factors are stored."""
    multiplies = coefficients(layer, method, "multiplies", free)
    return {
        "orders": order_bytes(layer, Choice(method.name, (1,) * len(method.axes), free)),
        "even": {q: list(break_even(layer, method.name, q, free)) for q in ("bytes", "multiplies")},
        "bytes": list(coefficients(layer, method, "bytes", free)),
        "multiplies": [float(c) if layer.shares else c for c in multiplies],
    }


def _tails(workspace: Workspace, layer: str, method: str) -> list[dict[str, Any]]:
    """One curve per axis of the method; factorises the layer."""
    return [_tail(spectrum) for spectrum in workspace.factors(layer, method).spectra]


def _more_tails(workspace: Workspace, plan: RankPlan) -> dict[str, dict[str, Any]]:
    """Curves of the methods in use that are not their layer's default: those travel with the model's constants."""
    tails: dict[str, dict[str, Any]] = {}
    for name, choice in plan.choices:
        if choice.method != workspace.profile.layer(name).methods[0].name:
            tails[name] = {choice.method: _tails(workspace, name, choice.method)}
    return tails


def _latency(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """What was measured on Compare: break-even and dominated ranks; onnxruntime's where both runtimes were."""
    marks: dict[str, dict[str, Any]] = {}
    for runtime in reversed(RUNTIMES):
        for stairs in comparisons.stairs(workspace, runtime):
            even, dominated = stairs.break_even, [list(rank) for rank in stairs.dominated]
            measured = {"runtime": runtime, "even": even and list(even), "dominated": dominated}
            marks.setdefault(stairs.layer, {})[stairs.method] = measured
    return marks


def _tail(spectrum: Tensor, knots: int = 48) -> dict[str, Any]:
    """Energy lost and singular value at some ranks, dense where ranks are small: enough to draw and to interpolate.

    suggested: the rank where the spectrum bends.
    """
    top = len(spectrum)
    ranks = sorted({round(r) for r in torch.logspace(0, float(torch.tensor(top).log10()), knots).tolist()} | {1, top})
    tail = tail_energy(spectrum)
    lost = tail / tail[0] if tail[0] > 0 else tail
    return {
        "suggested": bend(spectrum),
        "ranks": [0, *ranks],
        "lost": [1.0, *(float(lost[r]) for r in ranks)],
        "sigma_ranks": ranks,
        "sigma": [max(float(spectrum[r - 1]), 1e-12 * float(spectrum[0]) + 1e-30) for r in ranks],
    }
