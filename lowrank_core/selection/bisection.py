"""Bisection: the smallest rank within a drop in a handful of measurements."""

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
class Bisection:
    """The smallest rank of each layer within a largest drop, found by halving the ranks that are left.

    At most ceil(log2(n + 1)) measurements for a layer with n ranks. Where the score is not monotone in the rank the
    note says so, and a rank counts as good only if every rank measured above it is. Under a budget the drop is halved,
    too, down to the least that meets it.
    """

    name: ClassVar[str] = "bisection"
    label: ClassVar[str] = "Bisection"
    line: ClassVar[str] = "lowest ranks within a drop, by halving"
    source: ClassVar[str] = "binary search; Knuth, The Art of Computer Programming 3, 6.2.1, 1973"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "max_drop"})
    methods: ClassVar[tuple[str, ...]] = ()

    order: str = field(default="largest first", metadata=ORDER_FORM)

    def __post_init__(self) -> None:
        check_settings(self)

    def measurements(self, problem: Problem) -> Iterator[Measurements]:
        """At most so many ranks of each layer, then the answer."""
        return most_measurements(problem, self.order, int.bit_length)

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One trial for each layer, then the whole."""
        yield from lowest(problem, self.order, Ladder.halved, int.bit_length)
