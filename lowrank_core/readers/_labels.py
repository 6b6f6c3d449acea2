"""What is right, as files have it: numbers, numbers of classes, or their names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from lowrank_core.errors import InvalidData, cut
from lowrank_core.readers._folders import SEED, class_numbers, fair_order
from lowrank_core.samples.preparation import Preparation

MOST_CLASSES = 100_000
"""Names of classes, at most: more are texts of which each is its own."""

NAMED = ("label", "labels", "target", "targets", "class")
"""How a column of them is called, where nobody says."""


def fair(targets: Tensor | None, samples: int) -> list[int]:
    """Places of samples in a fixed order, of which any leading part is fair, by classes where there are some."""
    if targets is not None and targets.ndim == 1 and not targets.is_floating_point():
        return fair_order(targets.tolist())
    order = list(range(samples))
    random.Random(SEED).shuffle(order)
    return order


def targets_in(texts: Sequence[str], preparation: Preparation, where: object) -> tuple[Tensor, tuple[str, ...]]:
    """(targets, names of the classes): whole numbers as they are, other numbers as floats, names by their order.

    Raises InvalidData where a class has no name or there is one alone.
    """
    if any(not text.strip() for text in texts):
        raise InvalidData(f"{where}: a class or number must stand with every sample, but some have none.")
    whole = [_as(int, text) for text in texts]
    if None not in whole:
        return of_several(torch.tensor(whole), where), ()
    numbers = [_as(float, text) for text in texts]
    if None not in numbers:
        return torch.tensor(numbers), ()
    names = sorted({text.strip() for text in texts})
    if len(names) < 2:
        raise InvalidData(f"{where}: all samples are of one class, {cut(names[0])!r}, by which nothing can be judged.")
    if len(names) > MOST_CLASSES:
        raise InvalidData(
            f"{where}: {len(names):,} texts are no classes; --preprocess target=COLUMN names another one."
        )
    classes, by_name = class_numbers(names, preparation)
    return torch.tensor([by_name[text.strip()] for text in texts]), classes


def of_several(numbers: Tensor, where: object) -> Tensor:
    """Numbers of classes; raises InvalidData where all are the same."""
    if len(numbers) > 1 and bool((numbers == numbers[0]).all()):
        raise InvalidData(f"{where}: all samples are of one class, {int(numbers[0])}, by which nothing can be judged.")
    return numbers


def _as(kind: type[int] | type[float], text: str) -> int | float | None:
    try:
        value = kind(text)
    except ValueError:
        return None
    return value if isfinite(value) and abs(value) < 2**53 else None
