"""Jobs of one page for all sessions: who asked for what, one job for the same wish of many, a limit on what is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lowrank_core.running.jobs import Job

W = TypeVar("W", bound=Hashable)
T = TypeVar("T")

MOST_FOUND = 20_000
"""Things found (trials, epochs, timings) that jobs which are over are kept with, in all."""

MOST_ASKERS = 1_000
"""Sessions, counted once for each model, of which it is known what they asked."""


@dataclass(frozen=True, slots=True)
class Started:
    """A job of a session and the page that shows it."""

    page: str
    label: str
    job: Job[Any]

    @property
    def key(self) -> str:
        """A name that no other job of this server has, for the widgets that show it."""
        return f"{id(self.job):x}"


class SharedJobs(Generic[W, T]):
    """Safe to share between threads; a session sees what it has asked, the same wish for the same model is one job.

    most: jobs kept; those that are over and were begun first are forgotten first.
    """

    def __init__(self, page: str, most: int) -> None:
        self.page, self.most = page, most
        self._lock = threading.Lock()
        self._jobs: dict[tuple[str, W], Job[T]] = {}
        self._asked: dict[tuple[str, str], tuple[W, ...]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, model: str, wish: W) -> Job[T] | None:
        """The job that fulfils a wish for a model, whichever session asked for it; None where there is none."""
        return self._jobs.get((model, wish))

    def asked_by(self, session: str, model: str) -> dict[W, Job[T]]:
        """What a session asked about one model with the job of each wish, the latest last."""
        with self._lock:
            wishes = self._asked.get((session, model), ())
            return {wish: self._jobs[model, wish] for wish in wishes if (model, wish) in self._jobs}

    def of_model(self, model: str) -> list[Job[T]]:
        """The jobs of all sessions for one model."""
        with self._lock:
            return [job for (key, _), job in self._jobs.items() if key == model]

    def of_session(self, session: str) -> list[Started]:
        """The jobs of one session for all models."""
        with self._lock:
            keys = [(model, wish) for (who, model), wishes in self._asked.items() if who == session for wish in wishes]
            return [Started(self.page, job.label, job) for key in keys if (job := self._jobs.get(key)) is not None]

    def begin(self, session: str, model: str, wish: W, start: Callable[[], Job[T]], *, again: bool = False) -> Job[T]:
        """Start the job, unless it is done or under way, and note who asked; again: even if it is done."""
        with self._lock:
            job = self._jobs.get((model, wish))
            over = job is not None and job.snapshot.over and again
            if job is None or over or job.cancelled() or job.snapshot.cancelled or job.snapshot.error is not None:
                self._jobs.pop((model, wish), None)
                job = self._jobs[model, wish] = start()
            self._note(session, model, wish)
            self._forget()
            return job

    def join(self, session: str, model: str, wish: W) -> None:
        """Note that a session, too, waits for a job that is there."""
        with self._lock:
            if (model, wish) in self._jobs and wish not in self._asked.get((session, model), ()):
                self._note(session, model, wish)

    def _note(self, session: str, model: str, wish: W) -> None:
        others = (other for other in self._asked.pop((session, model), ()) if other != wish)
        self._asked[session, model] = (*others, wish)

    def _forget(self) -> None:
        over = [key for key, job in self._jobs.items() if job.snapshot.over]
        results = sum(len(self._jobs[key].snapshot.found) for key in over)
        gone = set()
        for key in over:
            if len(self._jobs) <= self.most and results <= MOST_FOUND:
                break
            results -= len(self._jobs.pop(key).snapshot.found)
            gone.add(key)
        if gone:
            left = {who: tuple(w for w in wishes if (who[1], w) not in gone) for who, wishes in self._asked.items()}
            self._asked = {who: wishes for who, wishes in left.items() if wishes}
        for who in list(self._asked)[:-MOST_ASKERS]:
            del self._asked[who]
