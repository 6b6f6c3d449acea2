"""Curves: what each layer may become and what that loses, measured layer by layer, and the plan that loses least by it.

A loss is the divergence of the network's outputs with one layer compressed, measured at a few ranks; between them it
follows the closed-form error, log against log. An exact knapsack chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from lowrank_core.algebra.knapsack import Array, cheapest_loss, cheapest_losses
from lowrank_core.errors import InvalidSearch
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.spec import Rank
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.prediction import Point, change, closed_form_errors
from lowrank_core.predict.sensitivity import Ask, profile, unknown
from lowrank_core.selection._problem import Problem, Quantity

USUAL = (
    "spatial_svd",
    "spatial_svd_aware",
    "svd",
    "svd_aware",
    "tucker2_aware",
    "cp3",
    "gate_tucker",
    "gate_cp",
)
"""Methods that are tried where none were asked for."""

SHARES = (0.03, 0.08, 0.3, 0.8)
"""Of the largest paying rank; the lower ones are where the curve is steepest, and no rank below them is ever chosen."""

ROUNDS = 2
"""Times that the curves are measured at the ranks of the plan they lead to; the second seldom finds much."""

AT_FIRST = SHARES[1:3]
"""Where there are more than MANY points, those that each method is looked at first."""

MANY = 400
"""Points of all layers and methods, about those of 20 convolutions."""

FAR_BEHIND, AS_CHEAP = 2.0, 1.1
"""A method that at every such rank loses so many times what another one does at so many times the cost is left."""

Option = tuple[Choice | None, float]
"""A choice for one layer and what it loses."""

Menus = list[list[Option]]
"""What each layer of a problem may become; dense, which loses nothing, comes first. One that is held has that alone."""

Held = Mapping[str, Choice | None]
"""Layers that are not chosen for, and what they stay; None is dense."""


def asks(problem: Problem, shares: Sequence[float] = SHARES) -> tuple[Ask, ...]:
    """The points that the curves begin with: every layer and method at shares of its ranks."""
    return tuple(
        (layer.name, Choice(method, rank))
        for layer in problem.layers
        for method in problem.methods_of(layer)
        for rank in _few(problem.ranks(layer, method), shares)
    )


def begun(problem: Problem, data: Dataset) -> tuple[Point, ...]:
    """The points that the curves begin with, measured; `followed` tells which curves are whole. Cancelled.

    Of more than MANY those at AT_FIRST, and the others of methods that are not far behind there.
    """
    if len(asks(problem)) <= MANY:
        return measured(problem, asks(problem), data)
    points = measured(problem, asks(problem, AT_FIRST), data)
    return with_points(problem, points, _promising(problem, points), data)


def with_points(problem: Problem, points: tuple[Point, ...], wanted: Iterable[Ask], data: Dataset) -> tuple[Point, ...]:
    """The points, and those that are asked for and not among them, which are measured. Cancelled."""
    known = set(map(_ask, points))
    return points + measured(problem, [ask for ask in wanted if ask not in known], data)


def expected(problem: Problem, data: Dataset) -> tuple[Ask, ...]:
    """What `begun` measures, at most, by what is kept in the problem's folder."""
    glance = asks(problem, AT_FIRST)
    if len(asks(problem)) <= MANY or unknown(problem.workspace, problem.correction, glance, data, problem.folder):
        return asks(problem)
    return tuple(dict.fromkeys((*glance, *_promising(problem, measured(problem, glance, data)))))


def followed(problem: Problem, points: Iterable[Point]) -> tuple[Ask, ...]:
    """Of `asks` those of methods whose points are all there."""
    known = set(map(_ask, points))
    left = {(name, choice.method) for name, choice in asks(problem) if (name, choice) not in known}
    return tuple((name, choice) for name, choice in asks(problem) if (name, choice.method) not in left)


def _ask(point: Point) -> Ask:
    return point.layer, Choice(point.method, point.rank)


def _promising(problem: Problem, points: Sequence[Point]) -> tuple[Ask, ...]:
    """Of `asks` those of methods that are not far behind another one of their layer at each of these points.

    A point that takes less than all that others offer tells nothing.
    """
    of_layer: dict[str, dict[str, list[Point]]] = {}
    for point in points:
        of_layer.setdefault(point.layer, {}).setdefault(point.method, []).append(point)
    behind = set()
    for layer in problem.layers:
        curves = of_layer.get(layer.name, {})
        options = {method: _options(problem, layer, curve) for method, curve in curves.items()}
        costs = {method: _costs(problem, layer, [choice for choice, _ in menu]) for method, menu in options.items()}
        for method, curve in curves.items():
            far = []
            for point, cost in zip(curve, _costs(problem, layer, [c for _, c in map(_ask, curve)]), strict=True):
                rivals = [
                    loss
                    for other in curves.keys() - {method}
                    for (_, loss), theirs in zip(options[other], costs[other], strict=True)
                    if (theirs <= AS_CHEAP * cost).all()
                ]
                if rivals:
                    far.append(point.loss > FAR_BEHIND * min(rivals))
            if far and all(far):
                behind.add((layer.name, method))
    return tuple((name, choice) for name, choice in asks(problem) if (name, choice.method) not in behind)


def _costs(problem: Problem, layer: Layer, choices: Sequence[Choice | None]) -> Array:
    """(choices, 2): multiplies and bytes."""
    return np.array([problem.layer_amounts(layer, choices, quantity) for quantity in ("multiplies", "bytes")]).T


def measured(problem: Problem, wanted: Iterable[Ask], data: Dataset) -> tuple[Point, ...]:
    """Points of single layers on unlabelled samples, with the problem's correction; kept in its folder. Cancelled."""
    return profile(
        problem.workspace,
        problem.correction,
        wanted,
        data,
        folder=problem.folder,
        workers=problem.workers,
        grounds=problem.grounds,
    )


def menus_of(problem: Problem, points: Iterable[Point], held: Held | None = None) -> Menus:
    """What each layer may become and what that loses, by its measured points; one that has none stays dense.

    held: layers that stay as they are; they lose what their own points tell, nothing where there are none.
    """
    held = held or {}
    measured_of: dict[str, dict[str, list[Point]]] = {}
    for point in points:
        measured_of.setdefault(point.layer, {}).setdefault(point.method, []).append(point)
    menus: Menus = []
    for layer in problem.layers:
        of_layer = measured_of.get(layer.name, {})
        if layer.name in held:
            menus.append([_held(problem, layer, held[layer.name], of_layer)])
        else:
            menus.append([(None, 0.0), *(o for curve in of_layer.values() for o in _options(problem, layer, curve))])
    return menus


def _held(problem: Problem, layer: Layer, choice: Choice | None, measured_of: dict[str, list[Point]]) -> Option:
    if choice is None or choice.method not in measured_of:
        return choice, 0.0
    return choice, _losses(problem, layer, measured_of[choice.method], [choice.rank])[0]


def _options(problem: Problem, layer: Layer, points: list[Point]) -> list[Option]:
    """The ranks of one layer and method that are not below the lowest measured one, and what they lose."""
    method = points[0].method
    least = min(point.rank for point in points)
    ranks = [
        rank
        for rank in sorted({*problem.ranks(layer, method), *(point.rank for point in points)})
        if all(r >= lowest for r, lowest in zip(rank, least, strict=True))
    ]
    return [(Choice(method, r), loss) for r, loss in zip(ranks, _losses(problem, layer, points, ranks), strict=True)]


def _losses(problem: Problem, layer: Layer, points: list[Point], ranks: list[Rank]) -> list[float]:
    """What a layer loses at these ranks, by the points of one method."""
    spectra = problem.workspace.factors(layer.name, points[0].method).spectra
    curve = tuple(sorted((log(p.error), log(p.loss)) for p in points if p.error > 0 and p.loss > 0))
    return [change(error, curve, 0.0) for error in closed_form_errors(spectra, ranks)]


def sharpened(problem: Problem, points: tuple[Point, ...], data: Dataset) -> tuple[Point, ...]:
    """The points and those at the ranks of the plan that they lead to, which are measured; then once more.

    Between measured ranks the curves are drawn by the errors of the weights, and a knapsack picks what was drawn too
    low. Raises InvalidSearch where no plan fits, Cancelled.
    """
    for _ in range(ROUNDS):
        plan = best_plan(problem, menus_of(problem, points), dict(problem.budgets)).plain
        before, points = points, with_points(problem, points, plan.choices, data)
        if points == before:
            break
    return points


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The menus of a problem in numbers.

    losses: (options,) per layer, what each option loses; costs: (options, quantities), what it takes;
    rest: what the network takes beside these layers, whatever is chosen.
    """

    problem: Problem
    menus: Menus
    quantities: tuple[Quantity, ...]
    losses: list[Array]
    costs: list[Array]
    rest: Array

    @classmethod
    def of(cls, problem: Problem, menus: Menus, quantities: Iterable[Quantity]) -> Table:
        """The table for budgets of these quantities."""
        quantities = tuple(quantities)
        costs = [
            np.array([problem.layer_amounts(layer, [c for c, _ in menu], q) for q in quantities]).T.reshape(
                len(menu), -1
            )
            for layer, menu in zip(problem.layers, menus, strict=True)
        ]
        rest = [problem.amount(q) - sum(problem.layer_amount(x, None, q) for x in problem.layers) for q in quantities]
        losses = [np.array([loss for _, loss in menu]) for menu in menus]
        return cls(problem, menus, quantities, losses, costs, np.array(rest))

    def left(self, limits: dict[Quantity, float]) -> Array:
        """What budgets for the whole network leave for these layers."""
        return np.array([limits[quantity] for quantity in self.quantities]) - self.rest

    def best(self, limits: dict[Quantity, float], weights: Sequence[float] | None = None) -> tuple[int, ...] | None:
        """The options that together lose least, each layer's losses times its weight; None where nothing fits."""
        factors = [1.0] * len(self.losses) if weights is None else weights
        losses = [weight * loss for weight, loss in zip(factors, self.losses, strict=True)]
        return cheapest_loss(losses, self.costs, self.left(limits))

    def best_of_each(
        self, quantity: Quantity, limits: Sequence[float], others: dict[Quantity, float], within: float
    ) -> Iterator[tuple[int, ...] | None]:
        """`best` for one limit of a quantity after another, and others' limits; within: see `cheapest_loss`."""
        if self.quantities != (quantity,):
            for limit in limits:
                yield cheapest_loss(self.losses, self.costs, self.left(others | {quantity: limit}), within)
            return
        left = [float(self.left({quantity: limit})[0]) for limit in limits]
        yield from cheapest_losses(self.losses, [cost[:, 0] for cost in self.costs], left, within)

    def loss(self, options: Sequence[int]) -> float:
        """What the layers lose by these options, each alone, added up."""
        return float(sum(loss[option] for loss, option in zip(self.losses, options, strict=True)))

    def plan(self, options: Sequence[int]) -> RankPlan:
        """The plan of these options."""
        picked = zip(self.problem.layers, self.menus, options, strict=True)
        return self.problem.plan({layer.name: menu[option][0] for layer, menu, option in picked})

    def holds(self, plan: RankPlan) -> bool:
        """Whether the menus hold every choice of a plan."""
        return all(number is not None for number in self._numbers(plan))

    def options(self, plan: RankPlan) -> tuple[int, ...]:
        """The options of a plan; raises InvalidSearch for a choice that the menus do not hold."""
        options = []
        for layer, number in zip(self.problem.layers, self._numbers(plan), strict=True):
            if number is None:
                choice = plan.get(layer.name)
                raise InvalidSearch(f"layer {layer.name!r} has no {choice} among what this search may choose.")
            options.append(number)
        return tuple(options)

    def _numbers(self, plan: RankPlan) -> Iterator[int | None]:
        """Of each layer the number of the plan's choice in its menu, in whatever form; None where it is not there."""
        plan = plan.plain
        for layer, menu in zip(self.problem.layers, self.menus, strict=True):
            choice = plan.get(layer.name)
            yield next((number for number, (offered, _) in enumerate(menu) if offered == choice), None)


def best_plan(problem: Problem, menus: Menus, limits: dict[Quantity, float]) -> RankPlan:
    """The plan that loses least within the limits of the whole network; raises InvalidSearch where none fits."""
    table = Table.of(problem, menus, limits)
    chosen = table.best(limits)
    if chosen is None:
        raise InvalidSearch(no_plan(problem, menus, limits))
    return table.plan(chosen)


def no_plan(problem: Problem, menus: Menus, limits: Iterable[Quantity]) -> str:
    """What to say where no plan of the menus keeps all budgets."""
    least = ", ".join(f"{least_amount(problem, menus, q):,.0f} {q}" for q in limits)
    return (
        f"no plan keeps all budgets together; the least there is, one at a time: {least}. Raise a budget, or unlock "
        "layers. Ranks below the lowest measured ones are never used."
    )


def least_amount(problem: Problem, menus: Menus, quantity: Quantity) -> float:
    """The amount of a quantity that the cheapest plan of the menus takes."""
    saved = 0.0
    for layer, menu in zip(problem.layers, menus, strict=True):
        amounts = [problem.layer_amount(layer, choice, quantity) for choice, _ in menu]
        saved += amounts[0] - min(amounts)
    return problem.amount(quantity) - saved


def _few(ranks: tuple[Rank, ...], shares: Sequence[float]) -> tuple[Rank, ...]:
    """Of ascending ranks those at shares of their number, each once."""
    return tuple(dict.fromkeys(ranks[max(0, round(share * len(ranks)) - 1)] for share in shares))
