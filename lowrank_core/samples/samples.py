"""What a network takes, and the samples that were read for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from lowrank_core.errors import InvalidData, cut, few


@dataclass(frozen=True, slots=True)
class Taken:
    """An input of a network. sizes: of one sample, None for what may be anything.

    exact: whether nothing else is taken, as by a file that fixes its shapes; else the sizes are those of an example.
    """

    name: str
    sizes: tuple[int | None, ...]
    dtype: torch.dtype
    exact: bool = False

    @property
    def numbers(self) -> int | None:
        """How many numbers one sample has; None where a size is free."""
        return None if None in self.sizes else self.numbers_known

    @property
    def numbers_known(self) -> int:
        """The product of the sizes that are known."""
        return prod(size for size in self.sizes if size is not None)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(['N', *('?' if n is None else str(n) for n in self.sizes)])})"


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Samples in memory. inputs: by name, samples first, unless `as_taken`, which has them as the network does.

    targets, weights: (N, ...) and (N,), None where there are none. metric: a name of METRICS, None where the outputs
    tell. outputs: names of those judged. held: inputs that are the same for all samples. classes: their names in the
    order of their numbers. more: whether there were more than are read. train: samples for training beside them.
    documents: (N,), of which document each is a part, and how they are told apart, in words.
    """

    inputs: dict[str, Tensor]
    targets: Tensor | None = None
    weights: Tensor | None = None
    metric: str | None = None
    outputs: tuple[str, ...] = ()
    held: dict[str, Tensor] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    more: bool = False
    train: Samples | None = None
    as_taken: bool = False
    documents: Tensor | None = None
    told_apart: str = ""


def classes_said(classes: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Which number each class has, as a notice, where files have names of them and no numbers; else nothing."""
    if not classes:
        return ()
    numbers = [f"{cut(name)} is {number}" for number, name in enumerate(classes)]
    return (
        f"Classes of {where}: {few(numbers)}; --preprocess labels=FILE names those of the network, one a line, "
        "where it has others.",
    )


def only_taker(takes: Sequence[Taken], fits: Callable[[Taken], bool], what: str, where: object) -> Taken:
    """The first input that takes such samples; raises InvalidData that names what the network takes instead."""
    for taken in takes:
        if fits(taken):
            return taken
    raise InvalidData(f"{where}: the network takes {', '.join(map(str, takes))}, which can be no {what}.")
