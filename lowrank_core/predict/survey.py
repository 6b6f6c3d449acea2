"""Survey: what is learnt of a network while nobody waits for it; work for a job that always gives way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import msgspec

from lowrank_core.measure.ledger import Ledger, score_key
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.predict import context as learning
from lowrank_core.predict.context import JOINT_SAMPLES, context_of, joints, repairs
from lowrank_core.predict.interval import much
from lowrank_core.predict.prediction import Context, Point, Repair, noise_table
from lowrank_core.predict.sensitivity import PointFile, measured
from lowrank_core.running.jobs import Snapshot
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.store.documents import Kind, Unfit, sealed, unsealed
from lowrank_core.store.files import keep_whole
from lowrank_core.workspace import Workspace

SHARES = (0.15, 0.25, 0.35, 0.5, 0.65, 0.8)
SAMPLES = 512
MIXED = ("svd", "spatial_svd", "tucker2", "cp3")
EVERY = 8


@dataclass(frozen=True, slots=True)
class Uniform:
    """A plan that keeps the same share of every layer's break-even rank, and its score on SAMPLES samples."""

    candidate: Candidate
    bytes: int
    multiplies: int
    score: Score


Finding = Point | Uniform | Context


@dataclass(frozen=True, slots=True)
class Learnt:
    """All that a survey has found so far: points of single layers, what layers do to each other, uniform plans."""

    points: tuple[Point, ...] = ()
    context: Context = field(default_factory=Context)
    uniform: tuple[Uniform, ...] = ()

    @classmethod
    def of(cls, snapshot: Snapshot[tuple[Finding, ...]]) -> Learnt:
        """The findings in the snapshot of a survey's job, sorted by kind."""
        every = [one for findings in snapshot.found for one in findings]
        points = tuple(one for one in every if isinstance(one, Point))
        uniform = tuple(one for one in every if isinstance(one, Uniform))
        context = next((one for one in reversed(every) if isinstance(one, Context)), Context())
        return cls(points, context, uniform)


def survey(
    workspace: Workspace, *, corrected: bool, folder: Path, shipped: Path | None = None
) -> Iterator[tuple[Finding, ...]]:
    """Learn all there is to know of a network, with its correction or without, and yield it a few findings at a time.

    What it measures is kept in `folder` as it comes, where another survey of the same network, data and correction
    finds it; the points that ship with a built-in network are read from `shipped`. It finds nothing where the model
    scores itself. Gives way and raises Cancelled between two steps.
    """
    if workspace.opened.evaluate is not None:
        return
    correction = workspace.correction if corrected else None
    files = [] if shipped is None else [PointFile.shipped(shipped, workspace, correction)]
    files.append(PointFile(folder, workspace, correction))
    points = tuple(point for file in files for point in file.load())
    if points:
        yield points
    fresh: list[Point] = []
    for point in measured(workspace, correction, points=points):
        files[-1].add(point)
        fresh.append(point)
        if len(fresh) == EVERY:
            yield tuple(fresh)
            points, fresh = (*points, *fresh), []
    if fresh:
        yield tuple(fresh)
        points = (*points, *fresh)
    report(Progress())
    ledger = Ledger.of(workspace, folder)
    for one in uniform_reference(workspace, ledger, corrected=corrected):
        yield (one,)
    known = max((each for file in files for each in stored_contexts(file)), key=itemgetter(1), default=None)
    if known is not None:
        yield (known[0],)
        if known[1] == learning.VERSION:
            return
    context = Context()
    for context in learnt_contexts(workspace, correction, points, ledger, known and known[0].repairs):
        yield (context,)
    write_context(files[-1], context)


def learnt_contexts(
    workspace: Workspace,
    correction: Correction | None,
    points: tuple[Point, ...],
    ledger: Ledger,
    made_good: tuple[Repair, ...] | None = None,
    *,
    samples: int = JOINT_SAMPLES,
) -> Iterator[Context]:
    """The context as it is known after every few plans; what the ledger holds is not measured. Raises Cancelled.

    correction: of the points; whole plans are measured with the thorough one, which new plans carry, so that what it
    brings is learnt with all else. made_good: the repairs where they are known. Without a correction there are none:
    nothing refits later layers.
    """
    carried = None if correction is None else workspace.thorough
    if correction is None:
        made_good = ()
    elif made_good is None:
        made_good = tuple(repairs(workspace, correction, points, ledger))
    table, plans = noise_table(workspace.reference), []
    for plan in joints(workspace, carried, MIXED, much(table), ledger, samples=samples):
        plans.append(plan)
        if len(plans) % EVERY == 0:
            yield context_of(workspace, points, table, made_good, plans)
    report(Progress())
    yield context_of(workspace, points, table, made_good, plans)


CONTEXT = Kind("context")


def read_context(file: PointFile, version: int = learning.VERSION) -> Context | None:
    """The context stored beside the points, to the last bit; one that is not as it was written counts as missing.

    So does another network's that was given this one's name. version: of the way it was learnt.
    """
    path = file.beside("context", version)
    return context_at(path, path.name)


def context_at(path: Path, name: str) -> Context | None:
    """The context in a file that was written under this name."""
    try:
        return msgspec.json.decode(unsealed(CONTEXT, path.read_bytes(), name), type=Context)
    except (OSError, Unfit, msgspec.DecodeError):
        return None


def stored_contexts(file: PointFile) -> Iterator[tuple[Context, int]]:
    """What contexts are stored beside the points, of the newest version first, each with its version."""
    for version in range(learning.VERSION, 0, -1):
        if (context := read_context(file, version)) is not None:
            yield context, version


def write_context(file: PointFile, context: Context) -> None:
    """Store a context beside the points, whole or not at all."""
    path = file.beside("context", learning.VERSION)
    keep_whole(path, sealed(CONTEXT, msgspec.json.encode(context), path.name))


def uniform_reference(workspace: Workspace, ledger: Ledger, *, corrected: bool) -> Iterator[Uniform]:
    """Uniform compression at a few shares of the multiplies; scores that the ledger holds are not measured again."""
    seen = set()
    for share in SHARES:
        plan = uniform_plan(workspace.profile, share)
        if not plan.choices or plan in seen:
            continue
        seen.add(plan)
        candidate = workspace.candidate(plan, corrected=corrected)

        def measure(candidate: Candidate = candidate) -> Score:
            model = workspace.compress(candidate.plan, candidate.correction)
            return final_score(workspace.measure(model, samples=SAMPLES, keep=False))

        score = ledger.remembered(score_key(candidate, SAMPLES), measure)
        cost = plan_cost(workspace.profile, plan)
        yield Uniform(candidate, cost.bytes, cost.multiplies, score)
