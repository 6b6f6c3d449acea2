"""ALDS: one bound on the relative error of all layers, each as cheap as the bound lets it be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from lowrank_core.algebra.linalg import MatrixFactorization
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import report
from lowrank_core.selection import register
from lowrank_core.selection._problem import Problem, Trial, Wish, in_closed_form, largest
from lowrank_core.selection._settings import check_settings


@register
@dataclass(frozen=True, slots=True)
class Alds:
    """Makes the largest relative error of any layer, in the operator norm, as small as the budget lets it be.

    Each layer takes the cheapest number of groups and rank within the bound, or stays dense where that is cheaper.
    """

    name: ClassVar[str] = "alds"
    label: ClassVar[str] = "ALDS"
    line: ClassVar[str] = "smallest worst error, in the operator norm"
    source: ClassVar[str] = "Liebenwein, Maalouf, Feldman & Rus, NeurIPS 2021"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "nothing"})
    methods: ClassVar[tuple[str, ...]] = ("svd", "svd_g2", "svd_g4", "svd_g8", "svd_g16", "svd_g32")

    epsilon: float = field(
        default=0.3,
        metadata={"min": 1e-6, "max": 10.0, "label": "Largest error", "help": "Of each layer, in the operator norm."},
    )

    def __post_init__(self) -> None:
        check_settings(self)

    measurements = in_closed_form

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One plan; nothing is measured on the way."""
        menus = []
        pace = Pace(len(problem.layers))
        for number, layer in enumerate(problem.layers):
            report(Progress(f"spectra of {layer.name}", pace(number)))
            dense = problem.share(layer, None)
            priced = [(problem.share(layer, choice), choice, error) for choice, error in _options(problem, layer)]
            paying = sorted((option for option in priced if option[0] < dense), key=lambda option: option[0])
            menus.append((layer.name, [choice for _, choice, _ in paying], np.array([error for *_, error in paying])))

        def at(exactness: float) -> RankPlan:
            chosen: dict[str, Choice | None] = {}
            for name, choices, errors in menus:
                within = np.flatnonzero(errors <= -exactness)
                chosen[name] = choices[within[0]] if len(within) else None
            return problem.plan(chosen)

        worst = max(float(errors.max(initial=0.0)) for *_, errors in menus)
        yield problem.trial(largest(problem, at, -worst, 0.0) if problem.budgets else at(-self.epsilon))


def _options(problem: Problem, layer: Layer) -> Iterator[tuple[Choice, float]]:
    """Every paying choice and its relative error: the largest singular value left out of any group, over the norm.

    That is what the authors' program compares. The norm of all that k groups leave out together lies between it and
    sqrt(k) times it (theorem 1 of the paper); with that factor, ranks are chosen that keep less accuracy.
    """
    norm = None
    for method in problem.methods_of(layer):
        factorization = problem.workspace.factors(layer.name, method)
        values, parts = factorization.spectra[0], 1
        if isinstance(factorization, MatrixFactorization):
            stack = factorization.nested.singular_values
            values, parts = stack.amax(0), len(stack) // layer.spec.groups
        if parts == 1:
            norm = float(values[0])
        elif norm is None:
            norm = float(problem.workspace.factors(layer.name, "svd").spectra[0][0])
        for rank in problem.ranks(layer, method):
            left = float(values[rank[0]]) if rank[0] < len(values) else 0.0
            yield Choice(method, rank), left / (norm or 1.0)
