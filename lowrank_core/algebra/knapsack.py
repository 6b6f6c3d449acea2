"""The multiple-choice knapsack: one option of each group, the least loss, no budget exceeded."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_matrix

Array = NDArray[np.float64]

SLACK = 1e-6
"""Room for the linear program's rounding when options are ruled out; of the largest loss."""

ROUNDING = 1e-6
"""The solver's own tolerance."""

SMALL = 100
GAP = 1e-4
"""Above SMALL possible options the answer is within this share of the least loss: proving the rest can take minutes."""


def cheapest_loss(losses: Sequence[Array], costs: Sequence[Array], limits: Array) -> tuple[int, ...] | None:
    """The option of each group that together lose least within the limits; None where nothing fits.

    losses: one (options,) per group; costs: one (options, budgets) per group, 0 or more; limits: (budgets,).
    A linear program rules out options that cannot be part of the best choice; a mixed-integer program decides among
    the others (HiGHS: Huangfu & Hall, Mathematical Programming Computation 2018), exactly, or within GAP of the least
    loss where there are many.

    >>> cheapest_loss([np.array([0.0, 2.0]), np.array([0.0, 1.0])], [np.array([[4.0], [1]])] * 2, np.array([5.0]))
    (0, 1)
    """
    if not losses:
        return ()
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
        chosen = _solved(loss, cost, owner, room * limits / scale)
        if chosen is None or (cost[chosen].sum(0) <= limits / scale).all():
            break
    return None if chosen is None else tuple(int(option) for option in options[chosen])


def _solved(loss: Array, cost: Array, owner: NDArray[np.intp], limits: Array) -> NDArray[np.intp] | None:
    """The options of the best choice; the solver may go over a limit by ROUNDING of it."""
    constraints = [LinearConstraint(_one_of_each(owner), 1, 1)]
    if len(limits):
        constraints.append(LinearConstraint(csr_matrix(cost.T), -np.inf, limits))
    solution = milp(
        loss,
        constraints=constraints,
        integrality=np.ones(len(loss)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0 if len(loss) <= SMALL else GAP},
    )
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
    undominated: list[int] = []
    for option in np.lexsort((*cost.T[::-1], loss)):
        if not (cost[undominated] <= cost[option]).all(1).any():
            undominated.append(int(option))
    return np.array(sorted(undominated), dtype=np.intp)
