"""AIMET's greedy selection: every layer gives up the same score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from scipy.optimize import isotonic_regression

from lowrank_core.measure.effort import Measurements
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.selection import register
from lowrank_core.selection._ladders import Tally, lost_text, saved_text
from lowrank_core.selection._problem import Problem, Quantity, Trial, Wish, largest
from lowrank_core.selection._settings import check_settings

Curve = dict[Choice, float]
"""What each candidate of a layer scores, the cheapest first."""


@register
@dataclass(frozen=True, slots=True)
class AimetGreedy:
    """Each layer takes the cheapest of a few candidates that still reaches one common score, as high as the budget
    allows.

    Candidates are ranks at even shares of the layer's cost; each is measured with the other layers dense, and each
    layer's scores are made monotone.
    """

    name: ClassVar[str] = "aimet_greedy"
    label: ClassVar[str] = "AIMET greedy"
    line: ClassVar[str] = "each layer reaches one common score"
    source: ClassVar[str] = "Kuzmin et al., Taxonomy and Evaluation of Structured Compression, arXiv 2019; AIMET"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget"})
    methods: ClassVar[tuple[str, ...]] = ("spatial_svd", "svd")

    candidates: int = field(
        default=9,
        metadata={
            "min": 1,
            "max": 99,
            "label": "Candidates",
            "help": "Ranks tried for each layer; 9 are 10 % to 90 %.",
        },
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def measurements(self, problem: Problem) -> Iterator[Measurements]:
        """Every candidate of every layer, then the answer."""
        quantity = problem.budgets[0][0]
        for layer in problem.layers:
            count = len(self._candidates(problem, layer, quantity))
            yield Measurements(count, problem.samples, layer.name, problem.method_of(layer))
        yield Measurements(1, problem.samples)

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One plan; single layers are measured on the way."""
        quantity = problem.budgets[0][0]
        menus = {layer.name: self._candidates(problem, layer, quantity) for layer in problem.layers}
        count = Tally(sum(map(len, menus.values())))
        curves = {name: _monotone(problem, name, menu, count) for name, menu in menus.items()}

        def at(score: float) -> RankPlan:
            return problem.plan(
                {name: next((c for c, s in curve.items() if s >= score), None) for name, curve in curves.items()}
            )

        scores = sorted({score for curve in curves.values() for score in curve.values()})
        if not scores:
            return
        plan = largest(problem, at, scores[0], scores[-1])
        answer = problem.measure(plan)
        yield problem.trial(plan, f"{saved_text(problem, plan)}; {lost_text(problem, answer)}", answer)

    def _candidates(self, problem: Problem, layer: Layer, quantity: Quantity) -> list[Choice]:
        """For each share of the dense cost the largest rank within it, if there is one."""
        method, dense = problem.method_of(layer), problem.layer_amount(layer, None, quantity)
        choices = [Choice(method, rank) for rank in problem.ranks(layer, method)]
        costs = {choice: problem.layer_amount(layer, choice, quantity) for choice in choices}
        candidates = []
        for number in range(1, self.candidates + 1):
            limit = number / (self.candidates + 1) * dense
            candidates += [choice for choice in choices if costs[choice] <= limit][-1:]
        return list(dict.fromkeys(candidates))


def _monotone(problem: Problem, name: str, menu: list[Choice], count: Tally) -> Curve:
    """The measured scores, dense = 0 and worse below, as the nearest that never fall with the cost.

    Isotonic regression, pool adjacent violators (Barlow et al. 1972).
    """
    scores = []
    for choice in menu:
        count(f"{name} rank {' x '.join(map(str, choice.rank))}")
        scores.append(-problem.drop(problem.plan({name: choice}), keep=name))
    return dict(zip(menu, isotonic_regression(scores).x.tolist(), strict=True)) if menu else {}
