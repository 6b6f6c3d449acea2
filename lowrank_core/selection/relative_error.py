"""Relative error: the weight of every layer may be off by the same share of its norm."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import rank_at
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.selection import register
from lowrank_core.selection._problem import Problem, Trial, Wish, in_closed_form, largest
from lowrank_core.selection._settings import check_settings


@register
@dataclass(frozen=True, slots=True)
class RelativeError:
    """Smallest rank whose relative error is within a bound, the same for all layers; under a budget the least bound.

    The Frobenius distance over the norm of the weight, of data-aware factors that of the layer's outputs. Two axes
    keep the same share of their maximum. Where no rank that pays is close enough, the layer stays dense.
    """

    name: ClassVar[str] = "relative_error"
    label: ClassVar[str] = "Relative error"
    line: ClassVar[str] = "one relative error for all layers"
    source: ClassVar[str] = "Eckart & Young, Psychometrika 1936: truncation to a prescribed accuracy"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "nothing"})
    methods: ClassVar[tuple[str, ...]] = ()

    epsilon: float = field(
        default=0.3,
        metadata={"min": 1e-6, "max": 1.0, "label": "Largest error", "help": "Share of the norm of each weight."},
    )

    def __post_init__(self) -> None:
        check_settings(self)

    measurements = in_closed_form

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One plan; nothing is measured on the way."""

        def at(exactness: float) -> RankPlan:
            return problem.plan({layer.name: _smallest(problem, layer, 1 - exactness) for layer in problem.layers})

        yield problem.trial(largest(problem, at, 0.0, 1.0) if problem.budgets else at(1 - self.epsilon))


def _smallest(problem: Problem, layer: Layer, epsilon: float) -> Choice | None:
    """The smallest paying rank within the error, by bisection along the path of equal shares."""
    method = problem.method_of(layer)
    factorization, top = problem.workspace.factors(layer.name, method), problem.useful_rank(layer, method)
    path = [problem.raised(rank_at(top, step / max(top))) for step in range(1, max(top) + 1)]
    path = [rank for rank in path if problem.choice(layer, method, rank)]
    enough = bisect_left(path, True, key=lambda rank: factorization.error(rank) <= epsilon)
    return problem.choice(layer, method, path[enough]) if enough < len(path) else None
