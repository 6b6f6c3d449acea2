"""What the board shows of a history beside the plan itself: snapshots, steps, branches; and what is done with them."""

from __future__ import annotations

from typing import Any

from lowrank_core.plans.cost import Cost, plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.store.room import Recent
from lowrank_core.workspace import Workspace
from pages.ui import steps
from pages.ui.history import DEPTH, MOST_BRANCHED, History, PlanSnapshot, name_of
from pages.ui.state import measurements, models, session
from pages.ui.steps import Step

BOUND = (
    f"The last {DEPTH} steps are kept, and {MOST_BRANCHED} plans on branches; older ones are forgotten, not snapshots."
)

IS_OPEN = "history is open"
"""The small value of the session that says so: what nobody sees is not computed."""

_COSTS: Recent[tuple[str, RankPlan], Cost] = Recent(2_000)
"""What plans cost, for they are shown at every release."""


def fields(workspace: Workspace, history: History) -> dict[str, Any]:
    """What a browser is told of it."""
    return {
        "snapshots": [_snapshot(workspace, one, history.plan) for one in history.snapshots],
        "removed": [one.name for one in reversed(history.removed)],
        "read_only": bool(session.viewed()),
        "view": session.viewed() or session.view_of(session.session_id()),
        "steps": len(history.line),
        "history": _lines(workspace, history) if session.widget(IS_OPEN) else None,
    }


def _snapshot(workspace: Workspace, snapshot: PlanSnapshot, plan: RankPlan) -> dict[str, Any]:
    at = models.key(workspace), snapshot.plan
    cost = _COSTS.get(at)
    if cost is None:
        cost = _COSTS[at] = plan_cost(workspace.profile, snapshot.plan)
    return {
        "name": snapshot.name,
        "note": snapshot.note,
        "seconds": snapshot.seconds,
        "choices": {name: choice.to_dict() for name, choice in snapshot.plan.choices},
        "bytes": cost.bytes,
        "multiplies": cost.multiplies,
        "holds": snapshot.plan == plan,
        **_score(workspace, snapshot.plan),
    }


def _score(workspace: Workspace, plan: RankPlan) -> dict[str, Any]:
    known = measurements.known(workspace, plan)
    if known is None:
        return {"score": None, "not_finite": 0, "how": ""}
    score = known.score
    return {
        "score": None if score.not_finite else score.value,
        "not_finite": score.not_finite,
        "how": known.how if plan.choices else "",
    }


def _lines(workspace: Workspace, history: History) -> dict[str, Any]:
    def line(step: Step) -> dict[str, Any]:
        about = {"plan": name_of(step.plan), "what": step.what, "seconds": step.seconds}
        return about | _score(workspace, step.plan)

    return {
        "line": [line(step) for step in steps.steps(history)],
        "at": len(history.past),
        "branches": [
            {"parent": name_of(one.parent), "place": one.place, "steps": list(map(line, one.steps))}
            for one in steps.branches(history)
        ],
        "bound": BOUND,
    }


def act(history: History, message: dict[str, Any]) -> History:
    """The history after one of the buttons of snapshots and steps; itself where the message is none of them."""
    name = str(message.get("name", ""))
    match message.get("action"):
        case "snapshot" if not history.holding(history.plan):  # which says that it holds the plan
            return history.keep(name, str(message.get("note", "")))
        case "restore":
            return history.restore(name)
        case "remove":
            return history.remove(name)
        case "bring back":
            return history.bring_back(name)
        case "describe":
            return history.describe(name, str(message.get("new", "")), str(message.get("note", "")))
        case "go":
            at = message.get("at")
            at = at if isinstance(at, int) else -1
            return history.go(str(message.get("plan", "")), at, str(message.get("parent", "")))
        case "open":
            session.set_widget(IS_OPEN, bool(message.get("on")))
    return history
