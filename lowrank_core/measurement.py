"""Measurement: the score of one plan, growing in a thread of its own, that can be called off between two batches."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from lowrank_core.errors import Cancelled, LowRankError
from lowrank_core.evaluate import Score
from lowrank_core.plan import RankPlan
from lowrank_core.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known so far; done means no more will come."""

    score: Score | None = None
    done: bool = False
    error: str | None = None


class Measurement:
    """Compress, evaluate on growing subsets, stop when told to. Results are remembered by the workspace.

    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> measurement = Measurement(workspace, RankPlan(workspace.profile.fingerprint))
    >>> measurement.wait().score.drop
    0.0
    """

    def __init__(self, workspace: Workspace, plan: RankPlan) -> None:
        self.plan = plan
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._progress = Progress()
        known = workspace.scores.get(plan)
        if known is not None:
            self._progress = Progress(known, done=True)
            return
        self._thread = threading.Thread(target=self._run, args=(workspace,), daemon=True)
        self._thread.start()

    @property
    def progress(self) -> Progress:
        """The latest figure."""
        return self._progress

    def changed(self, since: Progress, *, seconds: float) -> Progress:
        """The latest figure, waiting so many seconds for one that is newer than `since`."""
        with self._news:
            self._news.wait_for(lambda: self._progress is not since, seconds)
        return self._progress

    def cancel(self) -> None:
        """Stop before the next batch."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> Progress:
        """Block until done, or for so many seconds."""
        if not self._progress.done:
            self._thread.join(seconds)
        return self._progress

    def _tell(self, progress: Progress) -> None:
        with self._news:
            self._progress = progress
            self._news.notify_all()

    def _run(self, workspace: Workspace) -> None:
        try:
            model = workspace.compress(self.plan)
            for score in workspace.measure(model, cancelled=self._stop.is_set):
                self._tell(Progress(score))
            if self._progress.score is not None:
                workspace.scores[self.plan] = self._progress.score
            self._tell(Progress(self._progress.score, done=True))
        except Cancelled:
            self._tell(Progress(self._progress.score, done=True))
        except LowRankError as error:
            self._tell(Progress(done=True, error=str(error)))
        except Exception as error:  # a person's own model may raise anything; the page must say so, not hang
            self._tell(Progress(done=True, error=f"the measurement failed: {type(error).__name__}: {error}"))
