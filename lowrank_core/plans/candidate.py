"""Candidate: what a score belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import RankPlan


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and how its factors are corrected; None leaves them as the decomposition made them."""

    plan: RankPlan
    correction: Correction | None = None

    @property
    def quick(self) -> Candidate:
        """The same plan with the quick correction where it has the thorough one: what a person who waits sees first."""
        return self if self.correction is None else replace(self, correction=self.correction.quick)

    @property
    def plain(self) -> Candidate:
        """The same without free ranks, which change no answer: scores, corrections and trained weights are shared."""
        return replace(self, plan=self.plan.plain)
