"""Brute force: try every rank from 1 upwards until the score is good enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from lowrank_core.measure.effort import Measurements
from lowrank_core.selection import register
from lowrank_core.selection._ladders import ORDER_FORM, Ladder, lowest, most_measurements
from lowrank_core.selection._problem import Problem, Trial, Wish
from lowrank_core.selection._settings import check_settings


@register
@dataclass(frozen=True, slots=True)
class BruteForce:
    """The smallest rank of each layer within a largest drop, found by trying 1, 2, 3, ... in turn. Slow and thorough.

    Under a budget the least drop for each layer that meets it.
    """

    name: ClassVar[str] = "brute_force"
    label: ClassVar[str] = "Brute force"
    line: ClassVar[str] = "lowest ranks within a drop, by trying all"
    source: ClassVar[str] = "exhaustive search, the usual baseline"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "max_drop"})
    methods: ClassVar[tuple[str, ...]] = ()

    order: str = field(default="alone", metadata=ORDER_FORM)

    def __post_init__(self) -> None:
        check_settings(self)

    def measurements(self, problem: Problem) -> Iterator[Measurements]:
        """At most so many ranks of each layer, then the answer."""
        return most_measurements(problem, self.order, lambda count: count)

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One trial for each layer, then the whole."""
        yield from lowest(problem, self.order, Ladder.climbed, lambda count: count)
