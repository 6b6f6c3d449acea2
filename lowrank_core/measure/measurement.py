"""Measurement: the score of one plan, growing in a thread of its own, that can be called off between two batches."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from lowrank_core.errors import Cancelled, LowRankError
from lowrank_core.plans.candidate import Candidate
from lowrank_core.running.cancelling import until
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.workspace import Workspace

PLAIN_SAMPLES = 1024
"""The score without correction is only shown beside the other: this many samples are enough."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known so far.

    doing: what goes on before the first figure; done: the score is final; plain: the score without the correction, on
    the leading samples; over: no more will come.
    """

    score: Score | None = None
    doing: str = ""
    done: bool = False
    plain: Score | None = None
    error: str | None = None
    over: bool = False


class Measurement:
    """Compress, correct, evaluate on growing subsets, stop when told to. Results are remembered by the workspace.

    tolerance: end as soon as the drop is clearly at most that, or clearly more.

    >>> from lowrank_core.plans.plan import RankPlan
    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> measurement = Measurement(workspace, workspace.candidate(RankPlan(workspace.profile.fingerprint)))
    >>> measurement.wait().score.drop
    0.0
    """

    def __init__(self, workspace: Workspace, candidate: Candidate, *, tolerance: float | None = None) -> None:
        self.candidate = candidate
        self.tolerance = tolerance
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._progress = Progress()
        known = workspace.scores.get(candidate)
        if known is not None:
            plain = workspace.plain_scores.get(candidate.plan) if candidate.correction else None
            self._progress = Progress(known, done=True, plain=plain, over=True)
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
        """Block until the score is final, or for so many seconds."""
        with self._news:
            self._news.wait_for(lambda: self._progress.done, seconds)
        return self._progress

    def _tell(self, progress: Progress) -> None:
        with self._news:
            self._progress = progress
            self._news.notify_all()

    def _run(self, workspace: Workspace) -> None:
        try:
            with workspace.somebody_waits(), until(self._stop.is_set):
                self._measure(workspace)
        except Cancelled:
            self._tell(replace(self._progress, done=True, over=True))
        except LowRankError as error:
            self._tell(Progress(done=True, error=str(error), over=True))
        except Exception as error:  # a person's own model may raise anything; the page must say so, not hang
            self._tell(Progress(done=True, error=f"the measurement failed: {type(error).__name__}: {error}", over=True))

    def _measure(self, workspace: Workspace) -> None:
        plan, correction = self.candidate.plan, self.candidate.correction
        stopped = self._stop.is_set
        if correction is not None:
            for step in workspace.correcting(plan, correction, cancelled=stopped):
                self._tell(Progress(doing=f"correcting layer {min(step.done + 1, step.total)} of {step.total}"))
        model = workspace.compress(plan, correction)
        for score in workspace.measure(model, tolerance=self.tolerance, cancelled=stopped):
            self._tell(Progress(score))
        if self._progress.score is not None and self._progress.score.within is None:
            workspace.scores[self.candidate] = self._progress.score
        if correction is None:
            self._tell(replace(self._progress, done=True, over=True))
            return
        self._tell(replace(self._progress, done=True))
        if plan not in workspace.plain_scores:
            uncorrected = workspace.measure(
                workspace.compress(plan), samples=PLAIN_SAMPLES, keep=False, cancelled=stopped
            )
            workspace.plain_scores[plan] = final_score(uncorrected)
        self._tell(replace(self._progress, plain=workspace.plain_scores[plan], over=True))
