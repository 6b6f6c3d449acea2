"""Naive sensitivity: all ranks start low and rise until the score is good enough, faster where it hurts more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar

from lowrank_core.measure.effort import Measurements
from lowrank_core.plans.cost import rank_at
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.selection import register
from lowrank_core.selection._ladders import SLACK, Tally, lost_text, saved_text
from lowrank_core.selection._problem import Problem, Trial, Wish, largest
from lowrank_core.selection._settings import check_settings

SLOWEST = 0.2
"""The least sensitive layers rise at this share of the pace of the most sensitive one."""


@register
@dataclass(frozen=True, slots=True)
class NaiveSensitivity:
    """All ranks start low and are raised until the drop is allowed, more for layers that lose more when they alone are
    at a low rank; under a budget they rise as far as it reaches.
    """

    name: ClassVar[str] = "naive_sensitivity"
    label: ClassVar[str] = "Naive sensitivity"
    line: ClassVar[str] = "sensitive layers get more rank"
    source: ClassVar[str] = "after Han et al., Learning both Weights and Connections, NeurIPS 2015 (section 3)"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "max_drop"})
    methods: ClassVar[tuple[str, ...]] = ()

    start: float = field(
        default=0.1,
        metadata={"min": 0.01, "max": 0.9, "label": "Start", "help": "Share of the largest paying rank to begin with."},
    )
    step: float = field(
        default=0.05,
        metadata={"min": 0.005, "max": 0.5, "label": "Step", "help": "What is added to the most sensitive layer's."},
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def measurements(self, problem: Problem) -> Iterator[Measurements]:
        """Each layer alone; under a largest drop at most every step of the way up, too."""
        for layer in problem.layers:
            yield Measurements(1, problem.samples, layer.name, problem.method_of(layer))
        if problem.max_drop is not None:
            yield Measurements(ceil(((1 - self.start) / SLOWEST + self.step) / self.step), problem.samples)

    def search(self, problem: Problem) -> Iterator[Trial]:
        """Under a largest drop every plan on the way up; under a budget one plan."""
        methods = {layer: problem.method_of(layer) for layer in problem.layers}
        top = (1 - self.start) / SLOWEST + self.step
        steps = ceil(top / self.step)
        count = Tally(len(methods) + (0 if problem.max_drop is None else steps))

        def choice(number: int, share: float) -> Choice | None:
            layer, method = list(methods.items())[number]
            top = problem.useful_rank(layer, method)
            return None if share > 1 else problem.choice(layer, method, rank_at(top, share))

        drops = []
        for number, layer in enumerate(methods):
            count(f"{layer.name} alone at a low rank")
            lowest = problem.plan({layer.name: choice(number, self.start)})
            drops.append(max(0.0, problem.drop(lowest, keep=layer.name)))
        paces = [max(SLOWEST, drop / max(drops)) if max(drops) else 1.0 for drop in drops]

        def at(raised: float) -> RankPlan:
            shares = [self.start * min(1.0, 1 + raised) + max(0.0, raised) * pace for pace in paces]
            return problem.plan({x.name: choice(i, shares[i]) for i, x in enumerate(methods)})

        if problem.max_drop is None:
            plan = largest(problem, at, -1.0, top)  # below 0 the start itself is too much
            yield problem.trial(plan, saved_text(problem, plan))
            return
        last = None
        for number in range(steps + 1):
            plan = at(number * self.step)
            if plan == last:
                continue
            last = plan
            count(f"raised {number} times")
            score = problem.measure(plan)
            yield problem.trial(
                plan, f"{saved_text(problem, plan)}; {lost_text(problem, score, problem.max_drop)}", score
            )
            if score.drop <= problem.max_drop + SLACK:
                return
