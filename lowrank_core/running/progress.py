"""What long work says of itself while it goes on: words, and how long it still takes where that can be said."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """What goes on, in words, and the seconds left of what they speak of; None where nothing can be said yet."""

    words: str = ""
    seconds_left: float | None = None


class Pace:
    """Seconds left of work in so many parts that are about alike, by how long those took that are done.

    >>> now = iter((0.0, 3.0, 3.0))
    >>> pace = Pace(4, clock=lambda: next(now))
    >>> pace(0), pace(1), pace(2)
    (None, 9.0, 3.0)
    """

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock, self._began = total, clock, clock()

    def __call__(self, done: float) -> float | None:
        """Seconds left after so many parts are done; None before the first is."""
        if done <= 0:
            return None
        return (self._clock() - self._began) / done * max(0.0, self._total - done)
