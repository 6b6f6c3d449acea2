"""LC: every layer weighs its squared error against its cost, at one exchange rate for the whole network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import exp, log
from typing import ClassVar

import numpy as np

from lowrank_core.plans.plan import RankPlan
from lowrank_core.selection import register
from lowrank_core.selection._problem import Problem, Trial, Wish, in_closed_form, largest
from lowrank_core.selection._settings import check_settings

RANGE = 30.0
"""Exchange rates that are searched, in natural logarithms either side of all the error for all the cost."""


@register
@dataclass(frozen=True, slots=True)
class LearningCompression:
    """Each layer takes the rank of least `lambda * cost + squared error of the weight`; lambda follows from the budget.

    The C step of the learning-compression algorithm, once, on the trained weights: no learning step follows. The cost
    is a share of the dense network's, added up over the budgets. The paper takes the error as it is; relative to the
    layer's own norm it does not depend on scales that a following BatchNorm takes away.
    """

    name: ClassVar[str] = "lc"
    label: ClassVar[str] = "LC"
    line: ClassVar[str] = "least cost plus error of the weight"
    source: ClassVar[str] = "Idelbayev & Carreira-Perpinan, CVPR 2020"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget"})
    methods: ClassVar[tuple[str, ...]] = ("spatial_svd", "svd")

    relative: bool = field(
        default=True, metadata={"label": "Relative", "help": "Errors relative to each layer's own norm."}
    )

    def __post_init__(self) -> None:
        check_settings(self)

    measurements = in_closed_form

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One plan; nothing is measured on the way."""
        menus = []
        for layer in problem.layers:
            choices, losses = problem.menu(layer, problem.method_of(layer))
            spectrum = problem.workspace.factors(layer.name, problem.method_of(layer)).spectra[0]
            energy = 1.0 if self.relative else float(spectrum.square().sum())
            costs = np.array([problem.share(layer, choice) for choice in choices])
            menus.append((layer.name, choices, costs, energy * np.array(losses)))

        def at(patience: float) -> RankPlan:
            rate = exp(-patience)
            return problem.plan({name: choices[int(np.argmin(rate * c + e))] for name, choices, c, e in menus})

        scale = log(sum(float(losses.max()) for *_, losses in menus) or 1.0)
        yield problem.trial(largest(problem, at, -scale - RANGE, RANGE - scale, steps=60))
