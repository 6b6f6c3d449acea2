"""The board as values: what a browser must know of a network and its plan, and what it tells back.

Nothing here knows a session, a server or Streamlit: the pages and the notebook show the same board. The modules that it
needs of this package import each other relatively, so that they are found in a wheel, too, where `pages` lies deeper.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_core.algebra.linalg import tail_energy
from lowrank_core.algebra.spectra import bend
from lowrank_core.errors import LowRankError
from lowrank_core.measure.formats import AS_IT_IS, FORMATS, PLAIN, dense_flash_bytes, gone_bytes, order_bytes
from lowrank_core.measure.measurement import Figure, is_settled
from lowrank_core.methods import Method
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import amounts, break_even, check_plan, coefficients, dense_cost, has_free_ranks, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict import interval
from lowrank_core.predict.prediction import Context, Joint, NoiseTable, curves, kept_curves, noise_table
from lowrank_core.predict.survey import Finding, Learnt
from lowrank_core.running.jobs import Snapshot
from lowrank_core.workspace import Workspace

from . import history_panel, words
from .goals import Goals, in_own_format, own_format
from .history import History
from .merging import merge_plans

FOLDER = Path(__file__).with_name("board")
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


def style() -> str:
    """The style sheet of the board: all of STYLES."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in STYLES)


DENSE_SAMPLES = 1024
"""On which the dense network is scored where it has not been run on all."""


def dense_score(workspace: Workspace) -> tuple[float, int]:
    """(score, samples) of the dense network: on all samples once a measurement has run it on them, on some before."""
    complete = workspace.opened.evaluate is None and workspace.reference.complete
    return workspace.dense_score(None if complete else DENSE_SAMPLES)


def noise(workspace: Workspace) -> NoiseTable | None:
    """The prediction table; None where the model file scores itself."""
    return None if workspace.opened.evaluate is not None else noise_table(workspace.reference, DENSE_SAMPLES)


# ---- what it is told -------------------------------------------------------------------------------------------------


def constants(workspace: Workspace, value: float, table: NoiseTable | None) -> dict[str, Any]:
    """Everything constant: exact cost coefficients, spectra at some ranks, break-even marks, the prediction table.

    value: the dense network's score. Factorises every layer by its default method.
    """
    profile = workspace.profile
    dense = plan_cost(profile)
    return {
        "key": workspace.identity,
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
            "residuals": residuals(Context(), table),
        },
        "layers": [layer_fields(workspace, layer, index) for index, layer in enumerate(profile.layers)],
    }


def layer_fields(workspace: Workspace, layer: Layer, index: int) -> dict[str, Any]:
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
                "tails": tails_of(workspace, layer.name, m.name) if m is methods[0] else None,
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


def tails_of(workspace: Workspace, layer: str, method: str) -> list[dict[str, Any]]:
    """One curve per axis of the method; factorises the layer."""
    return [tail_fields(spectrum) for spectrum in workspace.factors(layer, method).spectra]


def more_tails(workspace: Workspace, plan: RankPlan) -> dict[str, dict[str, Any]]:
    """Curves of the methods in use that are not their layer's default: those travel with the model's constants."""
    tails: dict[str, dict[str, Any]] = {}
    for name, choice in plan.choices:
        if choice.method != workspace.profile.layer(name).methods[0].name:
            tails[name] = {choice.method: tails_of(workspace, name, choice.method)}
    return tails


def choices_of(plan: RankPlan) -> dict[str, Any]:
    return {name: choice.to_dict() for name, choice in plan.choices}


def goals_fields(workspace: Workspace, goals: Goals) -> dict[str, Any]:
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


def figures(snapshot: Snapshot[Figure], dense: float, correction: Correction | None) -> dict[str, Any]:
    """What was measured of a plan so far. dense: the dense network's score; correction: the one that the plan has."""
    latest = snapshot.found[-1] if snapshot.found and snapshot.error is None else None
    return {
        "dense": dense,
        "score": None if latest is None else words.score_fields(latest.score),
        "doing": snapshot.progress.words,
        "done": is_settled(snapshot),
        "depth": "" if latest is None else _depth(latest, correction),
        "remarks": [] if latest is None else list(latest.remarks),
        "plain": None if latest is None else words.score_fields(latest.plain),
        "error": snapshot.error,
    }


def _depth(figure: Figure, correction: Correction | None) -> str:
    """With which correction a figure was measured: "quick", "thorough", or "" for one that has no such name or none."""
    return "quick" if figure.quick else "" if correction is None else correction.depth


def survey_fields(
    snapshot: Snapshot[tuple[Finding, ...]], table: NoiseTable | None, more: tuple[Joint, ...] = ()
) -> dict[str, Any]:
    learnt, progress = Learnt.of(snapshot), snapshot.progress
    left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"
    points: dict[str, dict[str, Any]] = {}
    for (layer, method), curve in curves(learnt.points).items():
        points.setdefault(layer, {})[method] = curve
    return {
        "points": points,
        "context": {"kept": kept_curves(learnt.context.repairs), "residuals": residuals(learnt.context, table, more)},
        "learning": progress.words + left,
    }


def residuals(context: Context, table: NoiseTable | None, more: tuple[Joint, ...] = ()) -> dict[str, Any] | None:
    """What measured plans say of all others; None where the model file scores itself, and nothing is predicted."""
    if table is None:
        return None
    known = interval.residuals(context, table)
    return asdict(interval.with_measured(known, (*context.joints, *more), table) if more else known)


# ---- what it tells ---------------------------------------------------------------------------------------------------


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


def tail_fields(spectrum: Tensor, knots: int = 48) -> dict[str, Any]:
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
