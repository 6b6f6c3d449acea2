"""Refine: a plan and others near it judged as a whole, which knows what layers do to each other; curves do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf

import numpy as np

from lowrank_core.algebra.knapsack import Array
from lowrank_core.errors import InvalidSearch
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import report
from lowrank_core.selection._curves import Table, begun, menus_of, with_points
from lowrank_core.selection._problem import Problem, Trial
from lowrank_core.selection._whole import Judge, both_fall, judge, mean

OWN = 0.3
"""How far a layer's weight is thought to be from 1 for reasons of its own, before a plan is judged as a whole."""

BY_DEPTH = 1.0
"""How far that of the first layer is by its depth; that of the last is not, those between as `depths` says."""

NOISE = 0.1
"""Of a plan's divergence that weights cannot explain: what layers do to each other in pairs."""

LEAST_WEIGHT = 0.15

SHIFTS = (0.05, 0.1, 0.2, 0.4)
"""Of one layer's cost that an exchange moves to another, each as often."""

MOST_DRAWN = 8
"""Plans that are drawn for each that is judged, at most: others are impossible, or known already."""


def refine(problem: Problem, plan: RankPlan, *, moves: int = 24, samples: int = 64, seed: int = 0) -> Iterator[Trial]:
    """Plans near any plan that diverge less, each less than those before, within the budgets; the first is the plan.

    Without budgets within what the plan itself takes. moves: plans that are judged at most; samples: for the curves of
    single layers, which are measured where no earlier search of the problem's folder did. No labels. Raises
    InvalidSearch for a plan that does not keep the budgets or compresses what is locked; Cancelled.
    """
    plan = plan.plain
    if not problem.budgets:
        own = tuple((q, problem.amount(q, plan)) for q in ("multiplies", "bytes"))
        problem = replace(problem, budgets=own)  # type: ignore[arg-type]
    if not problem.fits(plan):
        raise InvalidSearch("the plan does not keep the budgets, so there is nothing to refine; raise them, or search.")
    locked = sorted(set(dict(plan.choices)) - {layer.name for layer in problem.layers})
    if locked:
        raise InvalidSearch(f"the plan compresses {locked[0]!r}, which is locked or has no method that pays here.")
    quick = problem.quick
    data = problem.workspace.calibration.pick(slice(0, samples))
    points = with_points(quick, begun(quick, data), plan.choices, data)
    table = Table.of(quick, menus_of(quick, points), dict(problem.budgets))
    judged = judge(quick)
    yield problem.trial(plan, f"divergence {mean(judged(plan)):.4f}")
    for words, better, _ in refined(table, plan, judged, moves, seed):
        yield problem.trial(better, words)


def refined(
    table: Table, plan: RankPlan, judged: Judge, moves: int, seed: int = 0
) -> Iterator[tuple[str, RankPlan, float]]:
    """(words, plan, divergence) of each plan that diverges less than all before it, from this one of the table on.

    What a layer loses counts more or less in a whole plan than alone, by its depth (LEMS, ICML 2026) and for reasons of
    its own. Each divergence tells about these weights; every other plan is the best one by weights drawn from what is
    known of them, the others are exchanges: the best so far with one layer given more and another less. At most `moves`
    plans are judged, and one counts where it diverges less on both halves of the samples. Same seed, same plans.
    """
    limits, pace, generator = dict(table.problem.budgets), Pace(moves), np.random.default_rng(seed)
    best, least = table.options(plan), judged(plan)
    known = {best: mean(least)}
    for number in range(MOST_DRAWN * moves):
        if len(known) > moves:
            return
        options, name = None, "weights of layers"
        if number % 2:
            weights, covariance = weights_known(table, known)
            drawn = generator.multivariate_normal(weights, covariance) if number % 4 == 1 else weights
            options = table.best(limits, np.maximum(drawn, LEAST_WEIGHT).tolist())
        if options is None or options in known:
            options, name = exchanged(table, best, table.left(limits), generator), "an exchange"
        if options is None or options in known:
            continue
        report(Progress(f"refining, {len(known)} of {moves}: divergence {mean(least):.4f}", pace(len(known))))
        near = table.plan(options)
        halves = judged(near)
        known[options] = mean(halves)
        if both_fall(halves, least) and table.problem.fits(near):
            best, least = options, halves
            yield f"{name}: divergence {mean(least):.4f}", near, mean(least)


def weights_known(table: Table, known: dict[tuple[int, ...], float]) -> tuple[Array, Array]:
    """(mean, covariance) of the layers' weights by the divergences of plans, where weights are thought to be normal.

    The divergence of a plan is the sum of its layers' losses, each times its weight, times one scale, and noise.
    """
    count = len(table.losses)
    depth = depths(count)
    prior = OWN**2 * np.eye(count) + BY_DEPTH**2 * np.outer(depth, depth)
    pairs = [(o, d) for o, d in known.items() if 0 < d < inf and table.loss(o) > 0]
    if not pairs:
        return np.ones(count), prior
    losses = np.array([[loss[option] for loss, option in zip(table.losses, o, strict=True)] for o, _ in pairs])
    measured = np.array([d for _, d in pairs])
    scaled = losses * np.median(measured / losses.sum(1))
    gain = prior @ scaled.T @ np.linalg.inv(scaled @ prior @ scaled.T + np.diag((NOISE * measured) ** 2))
    return 1 + gain @ (measured - scaled.sum(1)), prior - gain @ scaled @ prior


def depths(layers: int) -> Array:
    """From 1 at the first layer to 0 at the last: the sum of 1 / (k + 1) for k from its number on, scaled (LEMS).

    >>> depths(3).round(2).tolist()
    [1.0, 0.4, 0.0]
    """
    tails = (1 / np.arange(2.0, layers + 2))[::-1].cumsum()[::-1]
    return np.asarray((tails - tails[-1]) / ((tails[0] - tails[-1]) or 1.0))


def exchanged(
    table: Table, options: tuple[int, ...], left: Array, generator: np.random.Generator
) -> tuple[int, ...] | None:
    """The options with one layer given more and another one less, both drawn; None where that cannot be.

    The one takes a share of its cost more, or its next better option; the other what loses least in what is left.
    """
    if len(options) < 2:
        return None
    up, down = (int(layer) for layer in generator.choice(len(options), 2, replace=False))
    share = float(generator.choice(SHIFTS))
    loss, cost, at = table.losses[up], table.costs[up], options[up]
    better = np.flatnonzero(loss < loss[at])
    if not len(better):
        return None
    near = better[(cost[better] <= (1 + share) * cost[at]).all(1)]
    size = (cost / np.maximum(left, 1e-12)).sum(1)
    raised = near[loss[near].argmin()] if len(near) else better[size[better].argmin()]
    others = sum(table.costs[layer][option] for layer, option in enumerate(options) if layer not in (up, down))
    fitting = np.flatnonzero((others + cost[raised] + table.costs[down] <= left).all(1))
    if not len(fitting):
        return None
    lowered = fitting[table.losses[down][fitting].argmin()]
    return tuple(int({up: raised, down: lowered}.get(layer, option)) for layer, option in enumerate(options))
