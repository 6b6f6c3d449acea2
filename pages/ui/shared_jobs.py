"""Jobs of one page for all sessions: who asked for what, one job for the same wish of many, a limit on what is kept."""

from __future__ import annotations

import threading
import time
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


GONE_SECONDS = 300.0
"""Seconds after which a session whose pages have asked for nothing is gone: it keeps up nothing that another calls off.

An open page asks every few seconds, or every minute where its tab is in the background.
"""


@dataclass(frozen=True, slots=True)
class Started:
    """A job of a session and the page that shows it; away: the session has seen that it is over."""

    page: str
    label: str
    job: Job[Any]
    away: bool = False

    @property
    def key(self) -> str:
        """A name that no other job of this server has, for the widgets that show it."""
        return f"{id(self.job):x}"


class SharedJobs(Generic[W, T]):
    """Safe to share between threads; a session sees what it has asked, the same wish for the same model is one job.

    A job ends when every session that asked for it has called it off, but for those that are gone; it goes on when all
    are gone and nobody has called it off, since what it finds is kept.

    most: jobs kept; those that are over and were begun first are forgotten first.
    """

    def __init__(self, page: str, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.page, self.most, self._clock = page, most, clock
        self._lock = threading.Lock()
        self._jobs: dict[tuple[str, W], Job[T]] = {}
        self._asked: dict[tuple[str, str], tuple[W, ...]] = {}
        self._left: dict[tuple[str, str, W], Job[T]] = {}  # by who called a job off that went on for others
        self._seen: dict[str, float] = {}
        self._away: set[tuple[str, str, W]] = set()  # by who has seen that a job is over

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, model: str, wish: W) -> Job[T] | None:
        """The job that fulfils a wish for a model, whichever session asked for it; None where there is none."""
        return self._jobs.get((model, wish))

    def asked_by(self, session: str, model: str) -> dict[W, Job[T]]:
        """What a session asked about one model with the job of each wish as the session sees it, the latest last."""
        with self._lock:
            self._seen[session] = self._clock()
            wishes = self._asked.get((session, model), ())
            return {wish: self._view(session, model, wish) for wish in wishes if (model, wish) in self._jobs}

    def _view(self, session: str, model: str, wish: W) -> Job[T]:
        return self._left.get((session, model, wish)) or self._jobs[model, wish]

    def of_model(self, model: str) -> list[Job[T]]:
        """The jobs of all sessions for one model."""
        with self._lock:
            return [job for (key, _), job in self._jobs.items() if key == model]

    def of_session(self, session: str) -> list[Started]:
        """The jobs of one session for all models, as it sees them."""
        with self._lock:
            self._seen[session] = self._clock()
            keys = [(model, wish) for (who, model), wishes in self._asked.items() if who == session for wish in wishes]
            views = [(key, self._view(session, *key)) for key in keys if key in self._jobs]
            return [Started(self.page, job.label, job, (session, *key) in self._away) for key, job in views]

    def put_away(self, session: str, job: Job[Any]) -> None:
        """The session has seen that a job is over, until it asks for the same again."""
        with self._lock:
            for model, wish in self._jobs:
                if job.snapshot.over and self._view(session, model, wish) is job:
                    self._away.add((session, model, wish))

    def cancel(self, session: str, job: Job[Any]) -> None:
        """The session calls a job off: for the session it is over, and it ends where nobody else waits for it."""
        with self._lock:
            for (model, wish), running in self._jobs.items():
                if running is job and not job.snapshot.over and not job.cancelled():
                    others = [who for who in self._waiting(model, wish) if who != session]
                    if others:
                        self._left[session, model, wish] = job.left()
                    else:
                        job.cancel()

    def _waiting(self, model: str, wish: W) -> list[str]:
        """The sessions that asked for a job and have not called it off, but for those that are gone."""
        since = self._clock() - GONE_SECONDS
        return [
            who
            for (who, of), wishes in self._asked.items()
            if of == model
            and wish in wishes
            and (who, model, wish) not in self._left
            and self._seen.get(who, since) > since
        ]

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
        self._seen[session] = self._clock()
        self._left.pop((session, model, wish), None)
        self._away.discard((session, model, wish))
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
        self._left = {key: job for key, job in self._left.items() if key[2] in self._asked.get(key[:2], ())}
        self._away = {key for key in self._away if key[2] in self._asked.get(key[:2], ())}
        known = {session for session, _ in self._asked}
        self._seen = {session: seen for session, seen in self._seen.items() if session in known}
