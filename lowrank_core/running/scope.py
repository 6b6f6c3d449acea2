"""Cancelling, giving way and reporting: between work far below and whoever began it nothing is handed down.

Whoever begins work in a thread says around it (`scope`) how it is cancelled, who hears its reports and how patient it
is. What takes long far below asks `raise_if_cancelled` anywhere and `give_way` where nothing is held, and says what it
does by `report`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from lowrank_core.errors import Cancelled
from lowrank_core.running.progress import Progress

LOOK_SECONDS = 0.02
"""Between two looks whether somebody still waits."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What the one who began the work of a thread wants of it.

    cancelled() says whether it has been cancelled, and must answer at once; report(progress) hears what it does.
    patience_seconds: it gives way to people who wait for a figure for at most so long, and then works for as long,
    whoever waits, so that it gets at least half of the time; 0 for work that never gives way, infinity for work that
    nobody asked for.
    """

    cancelled: Callable[[], bool] = lambda: False
    report: Callable[[Progress], None] = lambda progress: None
    patience_seconds: float = 0.0


_here = threading.local()
_waiting: list[object] = []


def current() -> Scope:
    """The scope of this thread; of a thread in which nobody gave one, it can neither be cancelled nor heard."""
    terms: Scope = getattr(_here, "scope", Scope())
    return terms


@contextmanager
def scope(
    *,
    cancelled: Callable[[], bool] | None = None,
    report: Callable[[Progress], None] | None = None,
    patience_seconds: float | None = None,
) -> Iterator[None]:
    """Inside, in this thread, the work is done under these terms; what is not given stays as it is around it.

    Never yield from inside it to a caller who may run in another scope: a scope belongs to a thread, not a generator.

    >>> with scope(cancelled=lambda: True):
    ...     raise_if_cancelled()
    Traceback (most recent call last):
    lowrank_core.errors.Cancelled: the work was cancelled.
    """
    before, turn = current(), _own_turn_until()
    if patience_seconds is not None:
        _here.own_turn_until = 0.0
    _here.scope = Scope(
        before.cancelled if cancelled is None else cancelled,
        before.report if report is None else report,
        before.patience_seconds if patience_seconds is None else patience_seconds,
    )
    try:
        yield
    finally:
        _here.scope, _here.own_turn_until = before, turn


def _own_turn_until() -> float:
    """The moment until which this thread need not give way, since it has just done so."""
    return float(getattr(_here, "own_turn_until", 0.0))


def cancelled() -> bool:
    """Whether the work of this thread has been cancelled."""
    return current().cancelled()


def raise_if_cancelled() -> None:
    """Raise Cancelled where the work of this thread has been cancelled; never waits, so a lock may be held."""
    if cancelled():
        raise Cancelled("the work was cancelled.")


def give_way() -> None:
    """Let people who wait for a figure go first, as far as the scope's patience goes; raises Cancelled.

    Only for places where nothing is held that somebody may wait for, a lock above all.
    """
    patience = current().patience_seconds
    now = time.monotonic()
    if patience and now >= _own_turn_until():
        until = now + patience
        while _waiting and not cancelled() and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        if time.monotonic() >= until:
            _here.own_turn_until = time.monotonic() + patience
    raise_if_cancelled()


def pause(seconds: float) -> None:
    """Do nothing for so long; raises Cancelled as soon as it is called off."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        raise_if_cancelled()
        time.sleep(min(LOOK_SECONDS, left))


@contextmanager
def somebody_waits() -> Iterator[None]:
    """While a person waits for what this thread does: other threads' work gives way, and this one's does not."""
    person = object()
    _waiting.append(person)
    try:
        with scope(patience_seconds=0.0):
            yield
    finally:
        _waiting.remove(person)


# ---- reports --------------------------------------------------------------------------------------------------------


def report(progress: Progress) -> None:
    """Say what the work of this thread does, to whoever began it (`scope`).

    >>> with scope(report=print):
    ...     report(Progress("measuring layers: 3 of 4 points", 2.0))
    Progress(words='measuring layers: 3 of 4 points', seconds_left=2.0)
    """
    current().report(progress)


def nobody(progress: Progress) -> None:
    """Hear nothing: `scope(report=nobody)` is for parts of work that is reported as a whole."""


def under(heading: str) -> Callable[[Progress], None]:
    """A listener for `scope(report=...)` around a part of work: whoever hears the whole hears it under a heading."""
    hears = current().report
    return lambda progress: hears(replace(progress, words=f"{heading}: {progress.words}"))
