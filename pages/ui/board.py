"""The rank board's Python side: what the browser must know of a model, and what it tells back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import streamlit as st
import torch
from torch import Tensor

from lowrank_core.algebra.linalg import tail_energy
from lowrank_core.errors import LowRankError
from lowrank_core.measure.latency import RUNTIMES
from lowrank_core.measure.measurement import Figure, is_final
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import amounts, break_even, check_plan, coefficients, dense_cost, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.prediction import curves, kept_curves
from lowrank_core.predict.survey import Finding, Learnt
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.running.scope import somebody_waits
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace
from pages.ui import dense_line, editor, words
from pages.ui.history import History
from pages.ui.merging import merge_plans
from pages.ui.state import comparisons, measurements, models, plans, runs, session
from pages.ui.waiting import Steps

FOLDER = Path(__file__).with_suffix("")
SCRIPTS = (
    "closed_forms.js",  # what a plan costs and is predicted to score
    "words.js",  # figures as text
    "board.js",  # class Board: what it knows, hears and says
    "building.js",  # the elements it is made of
    "gestures.js",  # drags, keys, presets, locks
    "drawing.js",  # rows, cards and their charts
    "selected_layer.js",  # the panel of one layer
    "tradeoff.js",  # score against cost, snapshots
    "mounting.js",  # onto the page
)
"""The board's script, file by file; each uses those before it as if they were one."""


def script() -> str:
    """The JavaScript module that a browser gets: all of SCRIPTS, in their order."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)


# The library and the model's constants travel once; the board itself only carries ranks and scores.
_library = st.components.v2.component(
    "rank_explorer_board_library",
    css=(FOLDER / "board.css").read_text(encoding="utf-8"),
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
  window.__rankFeed = data;
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
    measurement = measurements.measure(workspace)
    snapshot = measurement.snapshot
    _board(
        key="board",
        data={
            "model": model_key(workspace),
            "rev": history.rev,
            "heard": session.heard(),
            "choices": _choices(history.plan),
            "tails": _more_tails(workspace, history.plan),
            "latency": _latency(workspace),
            "can_undo": bool(history.past),
            "can_redo": bool(history.future),
            "locked": list(history.locked),
            "snapshots": [_plan_snapshot(workspace, s.name, s.plan) for s in history.snapshots],
            "corrected": history.corrected,
            "tolerance": history.tolerance,
            **_figures(workspace, snapshot),
        },
        on_messages_change=lambda: _receive(workspace),
    )
    dense_line.show(workspace)
    editor.show(workspace)
    _stream(workspace, history, measurement, snapshot)


def _stream(workspace: Workspace, history: History, measurement: Job[Figure], pushed: Snapshot[Figure]) -> None:
    """Push figures of the plan, then what the survey finds, until no more will come or a newer run waits."""
    spot = st.empty()
    survey = measurements.survey(workspace)
    pushed_survey: Snapshot[tuple[Finding, ...]] = Snapshot()
    serial = 0  # two elements of one run must differ
    while not (pushed.over and pushed_survey.over):
        measured, surveyed = measurement.changed(pushed, seconds=0.1), survey.snapshot
        if runs.newer_run_waits():
            return
        more = len(surveyed.found) > len(pushed_survey.found) or surveyed.over > pushed_survey.over
        if measured is pushed and not more:
            continue
        news = {"serial": serial, "model": model_key(workspace), "rev": history.rev, **_figures(workspace, measured)}
        if more:
            news |= _survey_fields(surveyed)
            pushed_survey = surveyed
        if measured.over and not pushed.over:
            dense_line.show(workspace)
        pushed, serial = measured, serial + 1
        with spot:
            _feed(data=news, height=1)


def _survey_fields(snapshot: Snapshot[tuple[Finding, ...]]) -> dict[str, Any]:
    learnt, progress = Learnt.of(snapshot), snapshot.progress
    left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"
    points: dict[str, dict[str, Any]] = {}
    for (layer, method), curve in curves(learnt.points).items():
        points.setdefault(layer, {})[method] = curve
    return {
        "points": points,
        "context": {"kept": kept_curves(learnt.context.repairs), "scale": learnt.context.scale},
        "uniform": [asdict(uniform) for uniform in learnt.uniform],
        "learning": progress.words + left,
    }


def _receive(workspace: Workspace) -> None:
    received = session.widget("board").messages
    if received is None or received["model"] != model_key(workspace):
        return
    history = plans.history(workspace)
    changed = history
    for message in received["messages"]:
        if session.hear(received["board"], int(message["id"])):
            changed = commit(workspace, changed, message) if message["action"] == "commit" else act(changed, message)
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
    return history.commit(plan, rev=rev, gesture=gesture)


def _sent_plan(workspace: Workspace, choices: dict[str, Any]) -> RankPlan:
    plan = RankPlan.of(
        workspace.profile.fingerprint,
        {n: Choice(str(c["method"]), tuple(int(r) for r in c["rank"])) for n, c in choices.items()},
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
        case "snapshot":
            return history.keep(str(message.get("name", "")))
        case "restore":
            return history.restore(str(message.get("name", "")))
        case "remove":
            return history.remove(str(message.get("name", "")))
        case "correct":
            return history.correct(bool(message.get("on")), history.correction)
        case "tolerate":
            drop = message.get("drop")
            return history.tolerate(None if drop is None else float(drop))
        case "lock":
            return history.lock(str(n) for n in message.get("locked", ()))
    return history


def model_key(workspace: Workspace) -> str:
    """What tells the constants of one model from another's in the browser."""
    return models.key(workspace)


def _choices(plan: RankPlan) -> dict[str, Any]:
    return {name: {"method": choice.method, "rank": list(choice.rank)} for name, choice in plan.choices}


def _figures(workspace: Workspace, snapshot: Snapshot[Figure]) -> dict[str, Any]:
    latest = snapshot.found[-1] if snapshot.found and snapshot.error is None else None
    return {
        "dense": models.dense_score(workspace)[0],
        "score": None if latest is None else _score(latest.score),
        "doing": snapshot.progress.words,
        "done": is_final(snapshot),
        "plain": None if latest is None else _score(latest.plain),
        "error": snapshot.error,
    }


def _score(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return {
        "value": None if score.not_finite else score.value,
        "dense": score.dense,
        "samples": score.samples,
        "not_finite": score.not_finite,
        "drop": None if score.not_finite else score.drop,
        "drop_low": score.drop_low,
        "drop_high": score.drop_high,
        "within": score.within,
    }


def _plan_snapshot(workspace: Workspace, name: str, plan: RankPlan) -> dict[str, Any]:
    cost = plan_cost(workspace.profile, plan)
    score = measurements.measured(workspace, plan)
    return {
        "name": name,
        "choices": _choices(plan),
        "bytes": cost.bytes,
        "multiplies": cost.multiplies,
        "score": None if score is None or score.not_finite else score.value,
        "not_finite": 0 if score is None else score.not_finite,
    }


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
        },
        "rest": {"bytes": profile.rest.bytes, "multiplies": profile.rest.multiplies},
        "dense": {"bytes": dense.bytes, "multiplies": dense.multiplies},
        "prediction": {
            "rough": table.rough if table else 0.0,
            "table": {"log_variance": table.log_variance, "score": table.score} if table else None,
        },
        "layers": [_layer(workspace, layer, index) for index, layer in enumerate(profile.layers)],
    }


def _layer(workspace: Workspace, layer: Layer, index: int) -> dict[str, Any]:
    block, _, leaf = layer.name.rpartition(".")
    cost = dense_cost(layer)
    methods = [m for m in layer.methods if not m.reference]
    return {
        "index": index,
        "name": layer.name,
        "block": block or workspace.name,
        "leaf": leaf,
        "type": layer.type,
        "shape": "×".join(map(str, layer.spec.weight_shape)),
        "dense": {"bytes": cost.bytes, "multiplies": amounts(layer, [None], "multiplies")[0]},
        "default": methods[0].name,
        "methods": {
            m.name: {
                "label": m.label,
                "axes": list(m.axes),
                "top": list(m.max_rank(layer.spec)),
                "even": {q: list(break_even(layer, m.name, q)) for q in ("bytes", "multiplies")},
                "bytes": list(coefficients(layer, m, "bytes")),
                "multiplies": [float(c) if layer.shares else c for c in coefficients(layer, m, "multiplies")],
                "tails": _tails(workspace, layer.name, m.name) if m is methods[0] else None,
                "points": [],
            }
            for m in methods
        },
    }


def _tails(workspace: Workspace, layer: str, method: str) -> list[dict[str, list[float]]]:
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


def _tail(spectrum: Tensor, knots: int = 48) -> dict[str, list[float]]:
    """Energy lost and singular value at some ranks, dense where ranks are small: enough to draw and to interpolate."""
    top = len(spectrum)
    ranks = sorted({round(r) for r in torch.logspace(0, float(torch.tensor(top).log10()), knots).tolist()} | {1, top})
    tail = tail_energy(spectrum)
    lost = tail / tail[0] if tail[0] > 0 else tail
    return {
        "ranks": [0, *ranks],
        "lost": [1.0, *(float(lost[r]) for r in ranks)],
        "sigma_ranks": ranks,
        "sigma": [max(float(spectrum[r - 1]), 1e-12 * float(spectrum[0]) + 1e-30) for r in ranks],
    }
