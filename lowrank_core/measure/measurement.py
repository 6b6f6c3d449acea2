"""Measurement: the score of one plan, growing while somebody waits for it; a job that can be cancelled at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from lowrank_core.compression.correct import CorrectedLayer, remarks_text, reporting
from lowrank_core.measure.answers import Answers, Gathered
from lowrank_core.plans.candidate import Candidate
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import pause, report, somebody_waits
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.workspace import Workspace

PLAIN_SAMPLES = 1024
"""The score without correction is only shown beside the other: this many samples are enough."""


PAUSE_SECONDS = 2.0
"""Between the figure of the quick correction and the thorough one: who moves on meanwhile is not kept waiting."""


@dataclass(frozen=True, slots=True)
class Figure:
    """The score so far. final: it grows no more; plain: the score without the correction, on the leading samples.

    quick: it is that of the quick correction, and the candidate's own is still to come; settled: it grows no more until
    then. remarks: what a person should know of the correction.
    """

    score: Score
    final: bool = False
    plain: Score | None = None
    quick: bool = False
    settled: bool = False
    remarks: tuple[str, ...] = ()


Told = Callable[[Candidate, Answers], None]


def measurement(
    workspace: Workspace,
    candidate: Candidate,
    *,
    tolerance: float | None = None,
    quick_first: bool = False,
    told: Told | None = None,
) -> Job[Figure]:
    """The job that measures a candidate; what the workspace remembers is there at once, and the job is over.

    tolerance: end as soon as the drop is clearly at most that, or clearly more. quick_first: of a candidate with the
    thorough correction measure the quick one first, and PAUSE_SECONDS later go on. told: hears the answers to single
    samples of what is measured now, each time the number of samples has doubled, and before the score is final.

    >>> from lowrank_core.plans.plan import RankPlan
    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> job = measurement(workspace, workspace.candidate(RankPlan(workspace.profile.fingerprint)))
    >>> job.wait(until=is_final).found[-1].score.drop
    0.0
    """
    candidate = candidate.plain
    score = workspace.scores.get(candidate)
    plain = workspace.plain_scores.get(candidate.plan) if candidate.correction else None
    if score is not None and (plain is not None or candidate.correction is None):
        return Job("the measurement", lambda: [Figure(score, True, plain)], here=True)
    return Job(
        "the measurement",
        lambda: figures(workspace, candidate, tolerance=tolerance, quick_first=quick_first, told=told),
    )


def is_final(snapshot: Snapshot[Figure]) -> bool:
    """Whether the score grows no more; its figure without the correction may still come."""
    return snapshot.over or bool(snapshot.found and snapshot.found[-1].final)


def is_settled(snapshot: Snapshot[Figure]) -> bool:
    """Whether the score grows no more, be it for now: that of the quick correction, before the thorough one comes."""
    return is_final(snapshot) or bool(snapshot.found and snapshot.found[-1].settled)


def figures(
    workspace: Workspace,
    candidate: Candidate,
    *,
    tolerance: float | None = None,
    quick_first: bool = False,
    told: Told | None = None,
) -> Iterator[Figure]:
    """Compress, correct, evaluate on growing subsets, then without the correction; remembered by the workspace.

    quick_first: all that with the quick correction, then once more with the thorough one, of which only the whole score
    is told. told: as in `measurement`.
    """
    candidate = candidate.plain
    quick = workspace.quick(candidate)
    with somebody_waits():
        before: Figure | None = None
        if quick_first and quick != candidate and candidate not in workspace.scores:
            for figure in _grown(workspace, quick, tolerance, told):
                before = replace(figure, final=False, quick=True, settled=figure.final)
                yield before
            pause(PAUSE_SECONDS)
        for figure in _grown(workspace, candidate, tolerance, told):
            if before is None:
                yield figure
            elif figure.final:
                yield replace(figure, plain=before.plain)


def _grown(workspace: Workspace, candidate: Candidate, tolerance: float | None, told: Told | None) -> Iterator[Figure]:
    """One candidate's score as it grows, then with the one without its correction."""
    plan, correction = candidate.plan, candidate.correction
    score, remarks = workspace.scores.get(candidate), tuple[str, ...]()
    if score is None:
        reports = reporting()

        def each(layer: CorrectedLayer) -> None:
            nonlocal remarks
            remarks = remarks_text(layer.remarks)
            reports(layer)

        model = workspace.compress(plan, correction, each=each)
        report(Progress("measuring"))
        gathered = Gathered(workspace) if told is not None and workspace.opened.evaluate is None else None
        for score in workspace.measure(model, tolerance=tolerance, each=gathered):
            if gathered is not None and told is not None and gathered.is_due:
                told(candidate, gathered.answers(score))
            yield Figure(score, remarks=remarks)
        if score is None:
            return
        if gathered is not None and told is not None:
            told(candidate, gathered.answers(score))
        if score.within is None:
            workspace.scores[candidate] = score
    figure = Figure(score, final=True, remarks=remarks)
    yield figure
    if correction is None:
        return
    if plan not in workspace.plain_scores:
        uncorrected = workspace.measure(workspace.compress(plan), samples=PLAIN_SAMPLES, keep=False)
        workspace.plain_scores[plan] = final_score(uncorrected)
    yield replace(figure, plain=workspace.plain_scores[plan])
