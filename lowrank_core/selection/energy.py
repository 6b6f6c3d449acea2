"""Energy: every layer keeps the same share of its squared singular values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from lowrank_core.algebra.spectra import rank_for_energy
from lowrank_core.plans.plan import RankPlan
from lowrank_core.selection import register
from lowrank_core.selection._problem import Problem, Trial, Wish, in_closed_form, largest
from lowrank_core.selection._settings import check_settings


@register
@dataclass(frozen=True, slots=True)
class Energy:
    """Smallest rank that keeps a share of each layer's squared singular values; under a budget the largest share.

    Of two axes each keeps the share. Where no rank that pays is enough, the layer stays dense.
    """

    name: ClassVar[str] = "energy"
    label: ClassVar[str] = "Energy"
    line: ClassVar[str] = "one share of energy for all layers"
    source: ClassVar[str] = "Zhang, Zou, He & Sun, TPAMI 2016, and many before"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "nothing"})
    methods: ClassVar[tuple[str, ...]] = ()

    keep: float = field(
        default=0.9,
        metadata={"min": 0.01, "max": 1.0, "label": "Energy kept", "help": "Share of the squared singular values."},
    )

    def __post_init__(self) -> None:
        check_settings(self)

    measurements = in_closed_form

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One plan; nothing is measured on the way."""

        def at(keep: float) -> RankPlan:
            choices = {}
            for layer in problem.layers:
                method = problem.method_of(layer)
                spectra = problem.workspace.factors(layer.name, method).spectra
                rank = tuple(rank_for_energy(spectrum, keep) for spectrum in spectra)
                choices[layer.name] = problem.choice(layer, method, problem.raised(rank))
            return problem.plan(choices)

        yield problem.trial(largest(problem, at, 1e-9, 1.0) if problem.budgets else at(self.keep))
