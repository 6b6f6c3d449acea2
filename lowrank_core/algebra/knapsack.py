"""The multiple-choice knapsack: one option of each group, the least loss, no budget exceeded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_matrix

from lowrank_core.running.own_process import stdout_left_alone

Array = NDArray[np.float64]

SLACK = 1e-6
"""Room for the linear program's rounding when options are ruled out; of the largest loss."""

ROUNDING = 1e-6
"""The solver's own tolerance."""

ROOM = 1e-12
"""For the rounding of sums, when beginnings of a choice are ruled out; of the largest loss."""

STATES = 2**13
"""Of one budget: that many beginnings of a choice are followed at once; few problems have more that could end best."""

SMALL = 100
GAP = 1e-4
"""Above SMALL possible options the answer is within this share of the least loss: proving the rest can take minutes."""

NODES = 1000
"""That the solver looks at above SMALL possible options: of many groups alike even that share can take it minutes."""


def cheapest_loss(
    losses: Sequence[Array], costs: Sequence[Array], limits: Array, within: float = 0.0
) -> tuple[int, ...] | None:
    """The option of each group that together lose least within the limits; None where nothing fits.

    losses: one (options,) per group; costs: one (options, budgets) per group, 0 or more; limits: (budgets,).
    within: a share of the least loss that the answer may lose more, for less time.
    One budget: `cheapest_losses`. Of several a linear program rules out options that cannot be part of the best choice;
    a mixed-integer program decides among the others (HiGHS: Huangfu & Hall, Mathematical Programming Computation 2018),
    exactly, or within GAP of the least loss where there are many; of groups alike it is the best of NODES.

    >>> cheapest_loss([np.array([0.0, 2.0]), np.array([0.0, 1.0])], [np.array([[4.0], [1]])] * 2, np.array([5.0]))
    (0, 1)
    """
    if not losses:
        return ()
    if len(limits) == 1:
        return next(cheapest_losses(losses, [cost[:, 0] for cost in costs], [float(limits[0])], within))
    undominated = [_undominated(loss, cost) for loss, cost in zip(losses, costs, strict=True)]
    loss = np.concatenate([group[index] for group, index in zip(losses, undominated, strict=True)])
    loss = loss / (np.abs(loss).max() or 1.0)
    scale = np.where(limits > 0, limits, 1.0)
    cost = np.concatenate([group[index] for group, index in zip(costs, undominated, strict=True)]) / scale
    options = np.concatenate(undominated)
    owner = np.repeat(np.arange(len(undominated)), [len(index) for index in undominated])
    possible = _possible(loss, cost, owner, limits / scale)
    if possible is None:
        return None
    loss, cost, owner, options = loss[possible], cost[possible], owner[possible], options[possible]
    for room in (1.0, 1.0 - 4 * ROUNDING):
        chosen = _solved(loss, cost, owner, room * limits / scale, within)
        if chosen is None or (cost[chosen].sum(0) <= limits / scale).all():
            break
    return None if chosen is None else tuple(int(option) for option in options[chosen])


def cheapest_losses(
    losses: Sequence[Array], costs: Sequence[Array], limits: Sequence[float], within: float
) -> Iterator[tuple[int, ...] | None]:
    """`cheapest_loss` for one budget after another of one quantity: the groups are looked through once for all.

    losses, costs: one (options,) per group; limits: one for each answer. within: as there; where a descent comes as
    near the least loss, its choice is the answer. Else group by group every beginning of a choice is followed that no
    other beats and that may end better than the descent by the linear program's bound, so that the answer is exact
    (Dudzinski & Walukiewicz, European Journal of Operational Research 28, 1987); of more than STATES at once the
    nearest to the bound go on, and the answer is near it.

    >>> list(cheapest_losses([np.array([0.0, 2.0])], [np.array([4.0, 1.0])], [0.5, 1.0, 5.0], 0.0))
    [None, (1,), (0,)]
    """
    if not losses:
        yield from (() for _ in limits)
        return
    undominated = [_undominated(loss, cost[:, None]) for loss, cost in zip(losses, costs, strict=True)]
    loss, cost = (
        np.concatenate([group[index] for group, index in zip(groups, undominated, strict=True)])
        for groups in (losses, costs)
    )
    owner = np.repeat(np.arange(len(undominated)), [len(index) for index in undominated])
    options, descent = np.concatenate(undominated), Descent.of(loss, cost, owner)
    for limit in limits:
        found = descent.to(limit)
        if float(cost[descent.firsts].sum()) > limit:
            yield None
            continue
        above, bound = descent.bound(found, limit)
        near = found.loss - bound <= within * found.loss
        chosen = found.options if near else _followed(descent, found, above, bound, limit)
        yield tuple(int(option) for option in options[chosen])


def _followed(descent: Descent, found: Descended, above: Array, bound: float, limit: float) -> NDArray[np.intp]:
    """The options of the best choice under one budget, group by group; what a descent found where nothing is better.

    A beginning of a choice is known by what it costs, loses, and is above the bound; above, bound: `Descent.bound`.
    """
    loss, cost = descent.loss, descent.cost
    room = found.loss - bound + ROOM * float(np.abs(loss).max())
    starts = np.searchsorted(descent.owner, np.arange(len(descent.firsts) + 1))
    least = np.cumsum(cost[descent.firsts][::-1])[::-1]
    paid, lost, over = np.zeros(1), np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for (first, end), rest in zip(pairwise(starts), np.append(least[1:], 0.0), strict=True):
        possible = first + np.flatnonzero(above[first:end] <= room)
        pay, lose, rise = (
            (begun[:, None] + group[possible]).ravel() for begun, group in ((paid, cost), (lost, loss), (over, above))
        )
        fits = np.flatnonzero((pay + rest <= limit) & (rise <= room))
        order = fits[np.lexsort((lose[fits], pay[fits]))]
        best_before = np.minimum.accumulate(np.concatenate([[inf], lose[order][:-1]]))
        order = _spread(order[lose[order] < best_before], pay, rise)
        if not len(order):
            return found.options
        steps.append((order // len(possible), possible[order % len(possible)]))
        paid, lost, over = pay[order], lose[order], rise[order]
    at = int(lost.argmin())
    if lost[at] >= found.loss:
        return found.options
    chosen = []
    for begun, option in reversed(steps):
        chosen.append(option[at])
        at = begun[at]
    return np.array(chosen[::-1])


def _spread(order: NDArray[np.intp], pay: Array, rise: Array) -> NDArray[np.intp]:
    """Of more than STATES, ordered by what they cost, those that are least above the bound in equal steps of cost."""
    if len(order) <= STATES:
        return order
    costs = pay[order]
    step = ((costs - costs[0]) / (costs[-1] - costs[0]) * (STATES - 1)).astype(int)
    by = np.lexsort((rise[order], step))
    firsts: NDArray[np.intp] = np.sort(by[np.append(True, np.diff(step[by]) > 0)])
    return order[firsts]


def _solved(loss: Array, cost: Array, owner: NDArray[np.intp], limits: Array, within: float) -> NDArray[np.intp] | None:
    """The options of the best choice; the solver may go over a limit by ROUNDING of it."""
    constraints = [LinearConstraint(_one_of_each(owner), 1, 1)]
    if len(limits):
        constraints.append(LinearConstraint(csr_matrix(cost.T), -np.inf, limits))
    many = len(loss) > SMALL
    options = {"mip_rel_gap": max(within, GAP if many else 0.0)}
    for limited in ({"node_limit": NODES}, {}) if many else ({},):
        with stdout_left_alone():  # HiGHS has lines that it prints whatever it is told
            solution = milp(
                loss,
                constraints=constraints,
                integrality=np.ones(len(loss)),
                bounds=Bounds(0, 1),
                options=options | limited,
            )
        if solution.x is not None or solution.status == 2:  # there is a choice, or none fits
            break
    return None if solution.x is None else np.flatnonzero(solution.x > 0.5)


def _possible(loss: Array, cost: Array, owner: NDArray[np.intp], limits: Array) -> NDArray[np.bool_] | None:
    """Options that an optimal choice may hold; None where nothing fits.

    An option whose reduced cost alone lifts the bound above a choice that is known cannot be in a better one.
    """
    every = np.ones(len(loss), dtype=bool)
    if not len(limits):
        return every
    relaxed = linprog(loss, A_ub=csr_matrix(cost.T), b_ub=limits, A_eq=_one_of_each(owner), b_eq=np.ones(owner[-1] + 1))
    if relaxed.x is None:
        return None
    reduced = loss - cost @ relaxed.ineqlin.marginals - relaxed.eqlin.marginals[owner]
    best = _rounded(relaxed.x, loss, cost, owner, limits)
    return every if best is None else relaxed.fun + reduced <= best + SLACK


@dataclass(frozen=True, slots=True)
class Descended:
    """Where a descent ends: the option of each group, what they lose, what they leave of the budget, and the price.

    price: the loss per cost of the first step that did not fit, 0 where all did.
    """

    options: NDArray[np.intp]
    loss: float
    left: float
    price: float


@dataclass(frozen=True, slots=True, eq=False)
class Descent:
    """Each group goes from its cheapest option down the lower hull of its losses, the steepest step of all first.

    Under one budget that solves the linear program (Sinha & Zoltners, Operations Research 27, 1979), and what it then
    loses is near the least loss where groups are many. loss, cost, owner: (options,) of all groups, one after another.
    firsts: (groups,) the cheapest options; steps: (steps, 2) an option and the one that follows it, the steepest first.
    """

    loss: Array
    cost: Array
    owner: NDArray[np.intp]
    firsts: NDArray[np.intp]
    steps: NDArray[np.intp]

    @classmethod
    def of(cls, loss: Array, cost: Array, owner: NDArray[np.intp]) -> Descent:
        """The steps of all groups in their order."""
        starts = np.searchsorted(owner, np.arange(owner[-1] + 2))
        hulls = [first + _hull(loss[first:end], cost[first:end]) for first, end in pairwise(starts)]
        steps = np.concatenate([np.stack([hull[:-1], hull[1:]], 1) for hull in hulls])
        gained, taken = loss[steps[:, 0]] - loss[steps[:, 1]], cost[steps[:, 1]] - cost[steps[:, 0]]
        steepest = np.argsort(-gained / np.where(taken > 0, taken, 1.0), kind="stable")
        return cls(loss, cost, owner, np.array([hull[0] for hull in hulls]), steps[steepest])

    def to(self, limit: float) -> Descended:
        """As far as a budget goes; left is below 0 where not even the cheapest options fit."""
        at, price = self.firsts.tolist(), 0.0
        loss, left = float(self.loss[at].sum()), limit - float(self.cost[at].sum())
        before, after = self.steps.T
        taken, gained = (self.cost[after] - self.cost[before]).tolist(), (self.loss[before] - self.loss[after]).tolist()
        for k, (here, there, group) in enumerate(zip(*self.steps.T.tolist(), self.owner[before].tolist(), strict=True)):
            if at[group] != here:
                continue  # a step of its group before it did not fit
            if taken[k] > left:
                price = price or gained[k] / taken[k]
                continue
            at[group] = there
            left -= taken[k]
            loss -= gained[k]
        return Descended(np.array(at), loss, left, price)

    def bound(self, found: Descended, limit: float) -> tuple[Array, float]:
        """What every option is worth at the price of a descent to a limit, more than the best of its group, and the
        least that any choice within the limit can lose."""
        worth = self.loss + found.price * self.cost
        floors = np.minimum.reduceat(worth, np.searchsorted(self.owner, np.arange(len(self.firsts))))
        return worth - floors[self.owner], float(floors.sum()) - found.price * limit


def _hull(loss: Array, cost: Array) -> NDArray[np.intp]:
    """Options on the lower convex hull, from the cheapest to the one that loses least; none beats another."""
    hull: list[int] = []
    for option in np.argsort(cost, kind="stable"):
        while len(hull) > 1 and (loss[hull[-2]] - loss[hull[-1]]) * (cost[option] - cost[hull[-1]]) <= (
            loss[hull[-1]] - loss[option]
        ) * (cost[hull[-1]] - cost[hull[-2]]):
            hull.pop()
        hull.append(int(option))
    return np.array(hull, dtype=np.intp)


def _rounded(x: Array, loss: Array, cost: Array, owner: NDArray[np.intp], limits: Array) -> float | None:
    """What a choice loses that rounds the relaxed one: groups give up what costs least to give up until all fits."""
    groups = [np.flatnonzero(owner == group) for group in range(owner[-1] + 1)]
    used = [group[x[group] > SLACK] for group in groups]
    chosen = np.array([index[loss[index].argmin()] for index in used])
    for _ in range(20 * len(groups)):
        over = cost[chosen].sum(0) - limits
        if over.max() <= 0:
            return float(loss[chosen].sum())
        tightest = int(over.argmax())
        best, step = inf, None
        for index, group in enumerate(groups):
            saved = cost[chosen[index], tightest] - cost[group, tightest]
            price = np.where(saved > 0, (loss[group] - loss[chosen[index]]) / np.where(saved > 0, saved, 1), inf)
            at = int(price.argmin())
            if price[at] < best:
                best, step = float(price[at]), (index, group[at])
        if step is None:
            return None
        chosen[step[0]] = step[1]
    return None


def _one_of_each(owner: NDArray[np.intp]) -> csr_matrix:
    return csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))


def _undominated(loss: Array, cost: Array) -> NDArray[np.intp]:
    """Options that no other beats: none loses no more and costs no more in every budget; of equal ones the first."""
    if cost.shape[1] == 1:
        order = np.lexsort((loss, cost[:, 0]))
        least = np.minimum.accumulate(np.concatenate([[inf], loss[order][:-1]]))
        return np.sort(order[loss[order] < least])
    undominated: list[int] = []
    for option in np.lexsort((*cost.T[::-1], loss)):
        if not (cost[undominated] <= cost[option]).all(1).any():
            undominated.append(int(option))
    return np.array(sorted(undominated), dtype=np.intp)
