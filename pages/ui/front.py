"""The front on the board, as values: the best plans within many budgets, from what the survey has measured.

Nothing here knows a session or a screen. The figures of its plans are the board's own: the browser adds up their bytes
and multiplies and predicts their scores as it does for the plan under a thumb, so that both are one figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lowrank_core.errors import InvalidSearch
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import Cost, plan_cost, with_free_ranks
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict import interval
from lowrank_core.predict.interval import Prediction
from lowrank_core.predict.prediction import Joint, NoiseTable, Point, curves, plan_changes
from lowrank_core.predict.survey import Learnt
from lowrank_core.scoring.scores import Score
from lowrank_core.selection import FrontPoint, front
from lowrank_core.selection._problem import Problem, Quantity
from lowrank_core.workspace import Workspace

QUANTITIES: tuple[Quantity, ...] = ("multiplies", "bytes")
"""What the chart's axis may be, the usual one first."""

WITHIN = 0.01
"""Share of the least loss that a plan of the front may lose more: predictions are off by more than that."""

Tails = Callable[[Workspace, str, str], list[dict[str, Any]]]
"""The curves of a layer's method, as the board takes them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a front is of: curves of so many points, held layers as they are, plain factors or such with free ranks."""

    model: str
    corrected: bool
    points: int
    held: tuple[tuple[str, Choice | None], ...] = ()
    free: bool = False


@dataclass(frozen=True, slots=True)
class Drawn:
    """A front of one quantity, as a browser takes it."""

    asked: Asked
    quantity: Quantity
    layers: tuple[tuple[str, tuple[Choice | None, ...]], ...]
    plans: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """{"layers": [[name, [choice or null]]], "plans": [[number of a choice, for each layer]]}."""
        return {
            "layers": [[name, [_choice(choice) for choice in choices]] for name, choices in self.layers],
            "plans": [list(plan) for plan in self.plans],
        }


def draw(workspace: Workspace, points: tuple[Point, ...], asked: Asked) -> Iterator[Drawn]:
    """The front of each quantity, from these points alone. Gives way and raises Cancelled; nothing where none fits."""
    methods = tuple(dict.fromkeys(point.method for point in points))
    problem = Problem(workspace, methods=methods, corrected=False, free=asked.free)
    for quantity in QUANTITIES:
        try:
            found = front(problem, quantity=quantity, measure=0, points=points, held=dict(asked.held), within=WITHIN)
        except InvalidSearch:  # what is held takes more than the dense network
            continue
        yield drawn(problem, quantity, found, asked)


def drawn(problem: Problem, quantity: Quantity, found: tuple[FrontPoint, ...], asked: Asked) -> Drawn:
    """The points of a front, each plan once; held layers are left out: they are what the board has."""
    held = dict(asked.held)
    names = [layer.name for layer in problem.layers if layer.name not in held]
    chosen = list(dict.fromkeys(tuple(point.candidate.plan.get(name) for name in names) for point in found))
    menus = [tuple(dict.fromkeys(options)) for options in zip(*chosen, strict=True)]
    numbers = [{choice: number for number, choice in enumerate(menu)} for menu in menus]
    plans = tuple(tuple(of[c] for of, c in zip(numbers, plan, strict=True)) for plan in chosen)
    return Drawn(asked, quantity, tuple(zip(names, menus, strict=True)), plans)


def more_tails(workspace: Workspace, fronts: tuple[Drawn, ...], tails: Tails) -> dict[str, dict[str, Any]]:
    """Curves of methods on a front that are not their layer's default, whose curves the board has."""
    found: dict[str, dict[str, Any]] = {}
    for one in fronts:
        for name, choices in one.layers:
            usual = workspace.profile.layer(name).methods[0].name
            for method in {choice.method for choice in choices if choice is not None and choice.method != usual}:
                if method not in found.setdefault(name, {}):
                    found[name][method] = tails(workspace, name, method)
    return {name: methods for name, methods in found.items() if methods}


def fields(
    workspace: Workspace, drawn: tuple[Drawn, ...], points: tuple[Point, ...], error: str | None, tails: Tails
) -> dict[str, Any]:
    """What a browser is told: fronts by quantity with what was held for them, and a line about them."""
    held = dict(drawn[0].asked.held) if drawn else {}
    return {
        "of": {one.quantity: one.to_dict() for one in drawn},
        "held": {name: choice and choice.to_dict() for name, choice in held.items()},
        "free": bool(drawn and drawn[0].asked.free),
        "tails": more_tails(workspace, drawn, tails),
        "says": says(workspace, points, drawn, error),
    }


def says(workspace: Workspace, points: tuple[Point, ...], fronts: tuple[Drawn, ...], error: str | None) -> str:
    """One line about what there is of a front, or why there is none; "" where it is whole."""
    if not workspace.profile.layers:
        return "No front: no layer of this network can be compressed."
    if workspace.opened.evaluate is not None:
        return "No front: this network scores itself, so nothing tells what a single layer loses."
    if error:
        return f"No front: {error}"
    if not points:
        return "The front comes once layers are measured."
    known, layers = {point.layer for point in points}, workspace.profile.layers
    missing = sum(layer.name not in known for layer in layers)
    if fronts and missing:
        return f"{missing} of {len(layers)} layers are not measured yet: the front leaves them dense."
    return "" if fronts else "The front is being computed."


# ---- what its plans are predicted to score --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PredictedPlan:
    """A plan of a front, what it costs, and the score that it is predicted to have; of 9 plans in 10 between the ends.

    dense: what the dense network has in the same prediction.
    """

    plan: RankPlan
    cost: Cost
    score: Prediction
    dense: float


def predict(
    workspace: Workspace, front: Drawn, learnt: Learnt, near: Sequence[Joint], table: NoiseTable
) -> tuple[PredictedPlan, ...]:
    """The plans of a front, the cheapest first, as the board's script predicts them.

    near: plans that people have measured, beside those of the survey.
    """
    known = interval.residuals(learnt.context, table)
    if near:
        known = interval.with_measured(known, (*learnt.context.joints, *near), table)
    measured_curves = curves(learnt.points)

    def spectra(layer: str, method: str) -> tuple[Tensor, ...]:
        return workspace.factors(layer, method).spectra

    found = []
    for plan in plans_of(workspace, front):
        changes = plan_changes(plan.plain, measured_curves, table.rough, spectra, learnt.context)
        score = interval.predicted(changes, table, known)
        found.append(PredictedPlan(plan, plan_cost(workspace.profile, plan), score, table.score[0]))
    return tuple(sorted(found, key=lambda one: getattr(one.cost, front.quantity)))


def plans_of(workspace: Workspace, front: Drawn) -> list[RankPlan]:
    """The plans of a front, held layers as they were held for it, in the form in which the board's factors are."""
    held = dict(front.asked.held)
    plans = []
    for numbers in front.plans:
        chosen = {name: choices[number] for (name, choices), number in zip(front.layers, numbers, strict=True)}
        choices = {name: choice for name, choice in (held | chosen).items() if choice is not None}
        plan = RankPlan.of(workspace.profile.fingerprint, choices)
        plans.append(with_free_ranks(plan) if front.asked.free else plan)
    return plans


# ---- plans that were measured ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """A plan that was measured, and why: "measured" on the board, by a "search", or a "uniform" one to compare with."""

    name: str
    kind: str
    candidate: Candidate
    score: Score

    def to_dict(self, workspace: Workspace, *, free: bool) -> dict[str, Any]:
        """As a browser takes it, its bytes as the board's factors are stored; the ends are those of the paired drop."""
        cost, score = plan_cost(workspace.profile, self.plan(free=free)), self.score
        ends = (
            (score.low, score.high)
            if score.drop_low is None or score.drop_high is None
            else sorted(
                score.dense - end if score.higher_is_better else score.dense + end
                for end in (score.drop_low, score.drop_high)
            )
        )
        correction = self.candidate.correction
        return {
            "name": self.name,
            "kind": self.kind,
            "bytes": cost.bytes,
            "multiplies": cost.multiplies,
            "value": score.value,
            "low": ends[0],
            "high": ends[1],
            "samples": score.samples,
            "depth": "no" if correction is None else correction.depth,
        }

    def plan(self, *, free: bool) -> RankPlan:
        """The plan in the form in which the board's factors are stored."""
        return with_free_ranks(self.candidate.plan) if free else self.candidate.plan.plain


def _choice(choice: Choice | None) -> list[Any] | None:
    return None if choice is None else [choice.method, list(choice.rank)]
