"""Called off: work deep inside a computation asks whether anybody still waits for it.

Whoever begins work in a thread says around it how to tell (`until`). What takes long far below, a forward pass, a sweep
of a fit, a wait for other processes, asks (`go_on`); nothing is handed down through functions in between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lowrank_core.errors import Cancelled

_here = threading.local()


@contextmanager
def until(ended: Callable[[], bool]) -> Iterator[None]:
    """Inside, `go_on` of this thread raises Cancelled once `ended()` is true; it must answer at once.

    >>> with until(lambda: True):
    ...     go_on()
    Traceback (most recent call last):
    lowrank_core.errors.Cancelled: called off.
    """
    before = getattr(_here, "stopped", None)
    _here.stopped = ended
    try:
        yield
    finally:
        _here.stopped = before


def stopped() -> Callable[[], bool]:
    """Whether the work of this thread has been called off: for `until` in a thread that does a part of it."""
    found: Callable[[], bool] = getattr(_here, "stopped", None) or (lambda: False)
    return found


def go_on() -> None:
    """Raise Cancelled where the work of this thread has been called off."""
    if stopped()():
        raise Cancelled("called off.")
