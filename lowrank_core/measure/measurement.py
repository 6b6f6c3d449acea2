"""Measurement: the score of one plan, growing while somebody waits for it; a job that can be cancelled at any batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lowrank_core.compression.correct import reporting
from lowrank_core.plans.candidate import Candidate
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report, somebody_waits
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.workspace import Workspace

PLAIN_SAMPLES = 1024
"""The score without correction is only shown beside the other: this many samples are enough."""


@dataclass(frozen=True, slots=True)
class Figure:
    """The score so far. final: it grows no more; plain: the score without the correction, on the leading samples."""

    score: Score
    final: bool = False
    plain: Score | None = None


def measurement(workspace: Workspace, candidate: Candidate, *, tolerance: float | None = None) -> Job[Figure]:
    """The job that measures a candidate; what the workspace remembers is there at once, and the job is over.

    tolerance: end as soon as the drop is clearly at most that, or clearly more.

    >>> from lowrank_core.plans.plan import RankPlan
    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> job = measurement(workspace, workspace.candidate(RankPlan(workspace.profile.fingerprint)))
    >>> job.wait(until=is_final).found[-1].score.drop
    0.0
    """
    score = workspace.scores.get(candidate)
    plain = workspace.plain_scores.get(candidate.plan) if candidate.correction else None
    if score is not None and (plain is not None or candidate.correction is None):
        return Job("the measurement", lambda: [Figure(score, True, plain)], here=True)
    return Job("the measurement", lambda: figures(workspace, candidate, tolerance=tolerance))


def is_final(snapshot: Snapshot[Figure]) -> bool:
    """Whether the score grows no more; its figure without the correction may still come."""
    return snapshot.over or bool(snapshot.found and snapshot.found[-1].final)


def figures(workspace: Workspace, candidate: Candidate, *, tolerance: float | None = None) -> Iterator[Figure]:
    """Compress, correct, evaluate on growing subsets, then without the correction; remembered by the workspace."""
    plan, correction = candidate.plan, candidate.correction
    with somebody_waits():
        score = workspace.scores.get(candidate)
        if score is None:
            model = workspace.compress(plan, correction, each=reporting())
            report(Progress("measuring"))
            for score in workspace.measure(model, tolerance=tolerance):
                yield Figure(score)
            if score is None:
                return
            if score.within is None:
                workspace.scores[candidate] = score
        figure = Figure(score, final=True)
        yield figure
        if correction is None:
            return
        if plan not in workspace.plain_scores:
            uncorrected = workspace.measure(workspace.compress(plan), samples=PLAIN_SAMPLES, keep=False)
            workspace.plain_scores[plan] = final_score(uncorrected)
        yield replace(figure, plain=workspace.plain_scores[plan])
