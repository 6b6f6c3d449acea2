"""Jobs: long work in a thread of its own, that many may watch, and that can be cancelled.

What a job has found is kept by the work itself (points, scores and training states on disk), so a job that was
cancelled or killed and is started again goes on where it was.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from lowrank_core.errors import Cancelled, LowRankError
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import raise_if_cancelled, scope

T = TypeVar("T")

PATIENCE_SECONDS = 0.5
"""How long a job that somebody asked for gives way at a time: its asker waits, too."""


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[T]):
    """What is known of a job: everything it has found so far, what it does, how long it has run, and how it ended."""

    found: tuple[T, ...] = ()
    progress: Progress = Progress()  # noqa: RUF009 - frozen
    seconds: float = 0.0
    error: str | None = None
    cancelled: bool = False
    over: bool = False


def is_over(snapshot: Snapshot[Any]) -> bool:
    """Whether a job has ended, so that nothing more will come of it."""
    return snapshot.over


class Job(Generic[T]):
    """work() yields what it finds, in a daemon thread; it reports, asks whether it is cancelled and gives way there.

    patience_seconds: how it gives way to people who wait for a figure (`scope.Scope`).

    >>> job = Job("count", lambda: range(3))
    >>> job.wait(5).found
    (0, 1, 2)
    """

    def __init__(
        self,
        label: str,
        work: Callable[[], Iterable[T]],
        *,
        patience_seconds: float = 0.0,
        here: bool = False,
    ) -> None:
        """here: the work is done at once and in this thread, for what is known already."""
        self.label = label
        self._patience_seconds = patience_seconds
        self._asked_to_end = threading.Event()
        self._news = threading.Condition()
        self._started = self._reported = time.monotonic()
        self._snapshot: Snapshot[T] = Snapshot()
        if here:
            self._run(work)
            return
        self._thread = threading.Thread(target=self._run, args=(work,), name=label, daemon=True)
        _at_work.add(self)
        self._thread.start()

    @property
    def snapshot(self) -> Snapshot[T]:
        """The latest snapshot of the job; it never changes, a newer one takes its place."""
        return self._snapshot

    @property
    def seconds(self) -> float:
        """How long the job has run until now, or until it was over."""
        latest = self._snapshot
        return latest.seconds if latest.over else time.monotonic() - self._started

    @property
    def seconds_left(self) -> float | None:
        """Seconds left of what goes on, by the last report; None where nothing can be said, or it is cancelled."""
        latest = self._snapshot
        left = latest.progress.seconds_left
        if left is None or latest.over or self.cancelled():
            return None
        return max(0.0, left - (time.monotonic() - self._reported))

    def cancel(self) -> None:
        """Ask the job to end soon; what it has found stays."""
        self._asked_to_end.set()

    def cancelled(self) -> bool:
        """Whether the job has been asked to end; its snapshot says whether that was how it ended."""
        return self._asked_to_end.is_set()

    def left(self) -> Job[T]:
        """What somebody sees of it who has called it off while it goes on for others: over, with what it had found."""
        seen = copy(self)
        seen._asked_to_end, seen._news = threading.Event(), threading.Condition()
        seen._asked_to_end.set()
        seen._snapshot = replace(self._snapshot, progress=Progress(), seconds=self.seconds, cancelled=True, over=True)
        return seen

    def changed(self, since: Snapshot[T], *, seconds: float) -> Snapshot[T]:
        """Wait so many seconds for a snapshot newer than `since`, and give the latest there is."""
        return self.wait(seconds, until=lambda latest: latest is not since)

    def wait(self, seconds: float | None = None, *, until: Callable[[Snapshot[T]], bool] = is_over) -> Snapshot[T]:
        """Block until the job is over, or as far as is asked, or for so many seconds; the latest snapshot."""
        with self._news:
            self._news.wait_for(lambda: until(self._snapshot), seconds)
        return self._snapshot

    def _report(self, progress: Progress) -> None:
        self._reported = time.monotonic()
        self._change(progress=progress)

    def _change(self, *more: T, **changes: Any) -> None:
        with self._news:
            before = self._snapshot
            seconds = time.monotonic() - self._started
            self._snapshot = replace(before, found=before.found + more, seconds=seconds, **changes)
            self._news.notify_all()

    def _run(self, work: Callable[[], Iterable[T]]) -> None:
        end: dict[str, Any] = {}
        try:
            with scope(cancelled=self.cancelled, report=self._report, patience_seconds=self._patience_seconds):
                for item in work():
                    self._change(item)
                    raise_if_cancelled()
        except Cancelled:
            end["cancelled"] = True
        except Exception as error:  # a person's own model may raise anything; the page must say so, not hang
            if self.cancelled():  # PyTorch's exporters wrap whatever ends them
                end["cancelled"] = True
            else:
                ours = isinstance(error, LowRankError)
                end["error"] = str(error) if ours else f"{self.label} failed: {type(error).__name__}: {error}"
        self._change(progress=Progress(), over=True, **end)


END_SECONDS = 3.0
"""How long the end of the process waits for jobs at most, in all."""

_at_work: weakref.WeakSet[Job[Any]] = weakref.WeakSet()


@atexit.register
def _call_off() -> None:
    """A thread that is inside PyTorch when Python ends takes the process down with an error: jobs end before that."""
    until = time.monotonic() + END_SECONDS
    left = [job for job in _at_work if not job.snapshot.over]
    for job in left:
        job.cancel()
    for job in left:
        job._thread.join(max(0.0, until - time.monotonic()))
