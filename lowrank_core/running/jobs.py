"""Jobs: long work in a thread of its own, that many may watch, and that can be called off.

What a job has found is kept by the work itself (points, scores and training states on disk), so a job that was stopped
or killed and is started again goes on where it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from lowrank_core.errors import Cancelled, LowRankError
from lowrank_core.running.cancelling import until

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[T]):
    """What is known of a job: everything it has found so far, what it does, how long it has run, and how it ended."""

    found: tuple[T, ...] = ()
    doing: str = ""
    seconds: float = 0.0
    error: str | None = None
    cancelled: bool = False
    over: bool = False


class Job(Generic[T]):
    """work(job) yields what it finds, in a daemon thread; it calls `job.tell` and looks at `job.stopped`.

    >>> job = Job("count", lambda job: iter(range(3)))
    >>> job.wait(5).found
    (0, 1, 2)
    """

    def __init__(self, label: str, work: Callable[[Job[T]], Iterator[T]]) -> None:
        self.label = label
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._started = self._told = time.monotonic()
        self._snapshot: Snapshot[T] = Snapshot()
        self._thread = threading.Thread(target=self._run, args=(work,), name=label, daemon=True)
        self._thread.start()

    @property
    def snapshot(self) -> Snapshot[T]:
        """The latest."""
        return self._snapshot

    @property
    def seconds(self) -> float:
        """How long it has run until now, or until it was over."""
        latest = self._snapshot
        return latest.seconds if latest.over else time.monotonic() - self._started

    def stopped(self) -> bool:
        """Whether the job has been called off."""
        return self._stop.is_set()

    @property
    def seconds_left(self) -> float | None:
        """What is left of what goes on, by what was told last; None where nothing can be said, or it is called off."""
        latest = self._snapshot
        left = getattr(latest.doing, "seconds_left", None)
        if left is None or latest.over or self.stopped():
            return None
        return max(0.0, float(left) - (time.monotonic() - self._told))

    def tell(self, doing: str) -> None:
        """Say what goes on; a `Doing` also says how long it still takes."""
        self._told = time.monotonic()
        self._change(doing=doing)

    def cancel(self) -> None:
        """Call it off; what it has found stays."""
        self._stop.set()

    def changed(self, since: Snapshot[T], *, seconds: float) -> Snapshot[T]:
        """The latest snapshot, waiting so many seconds for one that is newer than `since`."""
        with self._news:
            self._news.wait_for(lambda: self._snapshot is not since, seconds)
        return self._snapshot

    def wait(self, seconds: float | None = None) -> Snapshot[T]:
        """Block until the job is over, or for so many seconds."""
        with self._news:
            self._news.wait_for(lambda: self._snapshot.over, seconds)
        return self._snapshot

    def _change(
        self,
        found: tuple[T, ...] = (),
        doing: str | None = None,
        error: str | None = None,
        cancelled: bool = False,
        over: bool = False,
    ) -> None:
        with self._news:
            before = self._snapshot
            told = before.doing if doing is None else doing
            seconds = time.monotonic() - self._started
            self._snapshot = Snapshot((*before.found, *found), told, seconds, error, cancelled, over)
            self._news.notify_all()

    def _run(self, work: Callable[[Job[T]], Iterator[T]]) -> None:
        try:
            with until(self.stopped):
                for item in work(self):
                    self._change(found=(item,))
                    if self.stopped():
                        raise Cancelled("called off.")
            self._change(doing="", over=True)
        except Cancelled:
            self._change(doing="", cancelled=True, over=True)
        except Exception as error:  # a person's own model may raise anything; the page must say so, not hang
            if self.stopped():  # PyTorch's exporters wrap whatever ends them
                self._change(doing="", cancelled=True, over=True)
                return
            ours = isinstance(error, LowRankError)
            said = str(error) if ours else f"{self.label} failed: {type(error).__name__}: {error}"
            self._change(doing="", error=said, over=True)
