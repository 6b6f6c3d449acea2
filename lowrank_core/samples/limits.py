"""How many samples are read, and how it is said where that takes long."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import raise_if_cancelled, report

MOST_SAMPLES = 1_000_000
"""Samples of evaluation or training data that are read, at most; some give batches for ever."""

MOST_BYTES = 2 * 10**9
"""Bytes of such samples, at most; the batch that reaches either is the last."""

SAY_SECONDS = 0.2
"""A count of samples is said anew at most this often."""

Item = TypeVar("Item")


def most_of(bytes_each: int) -> int:
    """How many samples of that size are read at most.

    >>> most_of(3 * 224 * 224 * 4)
    3321
    """
    return max(1, min(MOST_SAMPLES, MOST_BYTES // max(1, bytes_each)))


def counted(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items one by one, with a word now and then of how many there were; raises Cancelled in between.

    >>> list(counted([1, 2], "images", 2))
    [1, 2]
    """
    last = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - last > SAY_SECONDS:
            last = time.monotonic()
            raise_if_cancelled()
            report(Progress(f"reading {what}: {number:,}" + ("" if total is None else f" of {total:,}")))
        yield item
