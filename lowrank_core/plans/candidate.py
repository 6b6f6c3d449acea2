"""Candidate: what a score belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import RankPlan


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and how its factors are corrected; None leaves them as the decomposition made them."""

    plan: RankPlan
    correction: Correction | None = None
