"""Operations: how many additions and multiplications the linear algebra of a thread comes to, by formulas.

Whoever wants to know says so around the work (`counting`); what computes far below says what it has done (`count`).
What was found on disk or in memory has not been computed, and is not counted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Operations:
    """So many so far."""

    count: float = 0.0


_here = threading.local()


@contextmanager
def counting() -> Iterator[Operations]:
    """Inside, what this thread computes is counted, for whoever counts around it too.

    >>> with counting() as done:
    ...     count(2e9)
    >>> done.count
    2000000000.0
    """
    outer: Operations | None = getattr(_here, "operations", None)
    inner = _here.operations = Operations()
    try:
        yield inner
    finally:
        _here.operations = outer
        if outer is not None:
            outer.count += inner.count


def count(operations: float) -> None:
    """Say that this thread has done so many more."""
    counted: Operations | None = getattr(_here, "operations", None)
    if counted is not None:
        counted.count += operations
