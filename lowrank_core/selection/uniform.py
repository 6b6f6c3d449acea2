"""Uniform: every layer keeps the same share of its largest paying rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from lowrank_core.plans.cost import rank_at
from lowrank_core.plans.plan import RankPlan
from lowrank_core.selection import register
from lowrank_core.selection._problem import Problem, Trial, Wish, in_closed_form, largest
from lowrank_core.selection._settings import check_settings


@register
@dataclass(frozen=True, slots=True)
class Uniform:
    """The same share of the largest paying rank for every layer; under a budget the largest share that keeps it."""

    name: ClassVar[str] = "uniform"
    label: ClassVar[str] = "Uniform"
    line: ClassVar[str] = "one share of the rank for all layers"
    source: ClassVar[str] = "the usual baseline"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "nothing"})
    methods: ClassVar[tuple[str, ...]] = ()

    keep: float = field(
        default=0.5, metadata={"min": 0.01, "max": 1.0, "label": "Share", "help": "Share of the largest paying rank."}
    )

    def __post_init__(self) -> None:
        check_settings(self)

    measurements = in_closed_form

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One plan; nothing is measured on the way."""

        def at(share: float) -> RankPlan:
            choices = {}
            for layer in problem.layers:
                method = problem.method_of(layer)
                choices[layer.name] = problem.choice(layer, method, rank_at(problem.useful_rank(layer, method), share))
            return problem.plan(choices)

        yield problem.trial(largest(problem, at, 0.0, 1.0) if problem.budgets else at(self.keep))
