"""Jobs of one page for all sessions: who asked for what, one job for the same wish of many, a limit on what is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lowrank_core.running.jobs import Job

A = TypeVar("A", bound=Hashable)
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
        """A name no other job has."""
        return f"{id(self.job):x}"


class SharedJobs(Generic[A, T]):
    """Safe to share between threads; a session sees what it has asked, the same wish for the same model is one job.

    most: jobs kept; those that are over and were begun first are forgotten first.
    """

    def __init__(self, page: str, most: int) -> None:
        self.page, self.most = page, most
        self._lock = threading.Lock()
        self._jobs: dict[tuple[str, A], Job[T]] = {}
        self._asked: dict[tuple[str, str], tuple[A, ...]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, model: str, wanted: A) -> Job[T] | None:
        """The job, whoever asked for it."""
        return self._jobs.get((model, wanted))

    def asked_by(self, session: str, model: str) -> dict[A, Job[T]]:
        """What a session asked about a model, the latest last."""
        with self._lock:
            wishes = self._asked.get((session, model), ())
            return {one: self._jobs[model, one] for one in wishes if (model, one) in self._jobs}

    def of_model(self, model: str) -> list[Job[T]]:
        """What anybody asked about a model."""
        with self._lock:
            return [job for (key, _), job in self._jobs.items() if key == model]

    def of_session(self, session: str) -> list[Started]:
        """What a session asked, about whatever model."""
        with self._lock:
            keys = [(model, one) for (who, model), wishes in self._asked.items() if who == session for one in wishes]
            return [Started(self.page, job.label, job) for key in keys if (job := self._jobs.get(key)) is not None]

    def begin(self, session: str, model: str, wanted: A, start: Callable[[], Job[T]], *, again: bool = False) -> Job[T]:
        """Start the job, unless it is done or under way, and note who asked; again: even if it is done."""
        with self._lock:
            job = self._jobs.get((model, wanted))
            over = job is not None and job.snapshot.over and again
            if job is None or over or job.stopped() or job.snapshot.cancelled or job.snapshot.error is not None:
                self._jobs.pop((model, wanted), None)
                job = self._jobs[model, wanted] = start()
            self._note(session, model, wanted)
            self._forget()
            return job

    def join(self, session: str, model: str, wanted: A) -> None:
        """Note that a session, too, waits for a job that is there."""
        with self._lock:
            if (model, wanted) in self._jobs and wanted not in self._asked.get((session, model), ()):
                self._note(session, model, wanted)

    def _note(self, session: str, model: str, wanted: A) -> None:
        others = (one for one in self._asked.pop((session, model), ()) if one != wanted)
        self._asked[session, model] = (*others, wanted)

    def _forget(self) -> None:
        over = [key for key, job in self._jobs.items() if job.snapshot.over]
        found = sum(len(self._jobs[key].snapshot.found) for key in over)
        gone = set()
        for key in over:
            if len(self._jobs) <= self.most and found <= MOST_FOUND:
                break
            found -= len(self._jobs.pop(key).snapshot.found)
            gone.add(key)
        if gone:
            kept = {who: tuple(one for one in ones if (who[1], one) not in gone) for who, ones in self._asked.items()}
            self._asked = {who: ones for who, ones in kept.items() if ones}
        for who in list(self._asked)[:-MOST_ASKERS]:
            del self._asked[who]
