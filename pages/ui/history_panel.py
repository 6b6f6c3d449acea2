"""What the board shows of a history beside the plan itself: snapshots, steps, branches; and what is done with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import Cost, plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.scoring.scores import Score
from lowrank_core.store.room import Recent
from lowrank_core.workspace import Workspace

from . import steps
from .history import DEPTH, MOST_BRANCHED, History, PlanSnapshot, name_of
from .steps import Step

BOUND = (
    f"The last {DEPTH} steps are kept, and {MOST_BRANCHED} plans on branches; older ones are forgotten, not snapshots."
)

_COSTS: Recent[tuple[str, RankPlan], Cost] = Recent(2_000)
"""What plans cost, for they are shown at every release."""


@dataclass(frozen=True, slots=True)
class Known:
    """A score that was measured on all samples, now or before the server was started, and with which correction.

    opened: elsewhere, on these weights and data, and taken from a file of this session's.
    """

    score: Score
    correction: Correction | None
    opened: bool = False

    @property
    def how(self) -> str:
        """With which correction it was measured, in words.

        >>> from lowrank_core.scoring.scores import Score
        >>> Known(Score("top-1", 0.5, 0.9, 10, True, None, None, 0.4, None, None), None).how
        'without correction'
        """
        of = ", as the opened file says" if self.opened else ""
        if self.correction is None:
            return f"without correction{of}"
        return f"{self.correction.depth or f'{self.correction.kind} correction'}{of}"


Find = Callable[[RankPlan], Known | None]
"""What is known of a plan."""


def fields(workspace: Workspace, history: History, find: Find, *, with_steps: bool) -> dict[str, Any]:
    """What a browser is told of it."""
    return {
        "snapshots": [_snapshot(workspace, one, history.plan, find) for one in history.snapshots],
        "removed": [one.name for one in reversed(history.removed)],
        "steps": len(history.line),
        "history": _lines(history, find) if with_steps else None,
    }


def _snapshot(workspace: Workspace, snapshot: PlanSnapshot, plan: RankPlan, find: Find) -> dict[str, Any]:
    at = workspace.identity, snapshot.plan
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
        **_score(snapshot.plan, find),
    }


def _score(plan: RankPlan, find: Find) -> dict[str, Any]:
    known = find(plan)
    if known is None:
        return {"score": None, "not_finite": 0, "how": ""}
    score = known.score
    return {
        "score": None if score.not_finite else score.value,
        "not_finite": score.not_finite,
        "how": known.how if plan.choices else "",
    }


def _lines(history: History, find: Find) -> dict[str, Any]:
    def line(step: Step) -> dict[str, Any]:
        about = {"plan": name_of(step.plan), "what": step.what, "seconds": step.seconds}
        return about | _score(step.plan, find)

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
    return history
