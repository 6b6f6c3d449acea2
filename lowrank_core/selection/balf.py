"""BALF: the plan that keeps most energy of the layers' outputs within the budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank_core.algebra.knapsack import cheapest_loss
from lowrank_core.compression.calibration import MOMENT_BYTES, moment_bytes
from lowrank_core.errors import InvalidSearch, few
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import report
from lowrank_core.selection import register
from lowrank_core.selection._problem import Problem, Trial, Wish, in_closed_form


@register
@dataclass(frozen=True, slots=True)
class Balf:
    """Keeps the largest sum, over the layers, of the share of each layer's output energy on the calibration data.

    The factors are whitened by the second moment of the layer's inputs, and the knapsack over all ranks is solved
    exactly, under every budget at once. Of a layer whose moment would not fit in memory the weight's own energy counts,
    and its plain factors are used, unless methods were asked for.
    """

    name: ClassVar[str] = "balf"
    label: ClassVar[str] = "BALF"
    line: ClassVar[str] = "keeps most output energy of the data"
    source: ClassVar[str] = "Gonzalez-Martinez, BALF: budgeted activation-aware low-rank factorization, 2025"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget"})
    methods: ClassVar[tuple[str, ...]] = ("spatial_svd_aware", "svd_aware")

    measurements = in_closed_form

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One plan; nothing is measured on the way."""
        menus = []
        pace = Pace(len(problem.layers))
        plain = [layer for layer in problem.layers if moment_bytes(layer.spec) > MOMENT_BYTES]
        plain = plain if problem.methods == self.methods else []
        for number, layer in enumerate(problem.layers):
            report(Progress(f"whitened spectrum of {layer.name}", pace(number)))
            method = problem.method_of(layer)
            menus.append(problem.menu(layer, method.removesuffix("_aware") if layer in plain else method))
        costs = [
            np.array([[problem.layer_amount(layer, c, q) for q, _ in problem.budgets] for c in choices])
            for layer, (choices, _) in zip(problem.layers, menus, strict=True)
        ]
        rest = [problem.amount(q) - sum(float(c[-1, i]) for c in costs) for i, (q, _) in enumerate(problem.budgets)]
        limits = np.array([limit for _, limit in problem.budgets]) - rest
        report(Progress("solving the knapsack"))
        best = cheapest_loss([np.array(losses) for _, losses in menus], costs, limits)
        if best is None:
            raise InvalidSearch("no plan of BALF keeps every budget; raise one, or unlock layers.")
        names = [layer.name for layer in problem.layers]
        chosen = {name: choices[i] for name, (choices, _), i in zip(names, menus, best, strict=True)}
        note = f"without the second moment of {few([layer.name for layer in plain])}, which would not fit in memory"
        yield problem.trial(problem.plan(chosen), note if plain else "")
