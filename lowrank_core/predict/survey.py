"""Survey: what is learnt of a network while nobody waits for it, in a thread that gives way to measurements."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec

from lowrank_core.errors import LowRankError
from lowrank_core.measure.ledger import Ledger, score_key
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.predict.context import context_of, joints, repairs
from lowrank_core.predict.prediction import Context, Point, noise_table
from lowrank_core.predict.sensitivity import PointFile, measured
from lowrank_core.running.cancelling import until
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.store.files import write_whole
from lowrank_core.workspace import Workspace

SHARES = (0.15, 0.25, 0.35, 0.5, 0.65, 0.8)
SAMPLES = 512
MIXED = ("svd", "spatial_svd", "tucker2", "cp3")
EVERY = 8


@dataclass(frozen=True, slots=True)
class Uniform:
    """A plan that keeps the same share of every layer's break-even rank, and its score on SAMPLES samples."""

    bytes: int
    multiplies: int
    score: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known so far: points of single layers, what layers do to each other, the
    uniform reference.

    doing: what goes on, with the time left; over: no more will come.
    """

    points: tuple[Point, ...] = ()
    context: Context = field(default_factory=Context)
    uniform: tuple[Uniform, ...] = ()
    doing: str = ""
    over: bool = False


class Survey:
    """One survey of one workspace, with its correction or without. Read `findings` at any time.

    What it measures is kept in `folder` as it comes, where another survey of the same network, data and correction
    finds it; the points that ship with a built-in network are read from `shipped`.
    """

    def __init__(self, workspace: Workspace, *, corrected: bool, folder: Path, shipped: Path | None = None) -> None:
        self._stop = threading.Event()
        self._findings = Findings()
        self._corrected, self._folder, self._shipped = corrected, folder, shipped
        self._thread = threading.Thread(target=self._run, args=(workspace,), daemon=True)
        self._thread.start()

    @property
    def findings(self) -> Findings:
        """The latest."""
        return self._findings

    def stop(self) -> None:
        """End after the step at hand."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> Findings:
        """Block until over, or for so many seconds."""
        self._thread.join(seconds)
        return self._findings

    def _run(self, workspace: Workspace) -> None:
        with until(self._stop.is_set):
            self._learn(workspace)

    def _learn(self, workspace: Workspace) -> None:
        try:
            if workspace.opened.evaluate is None:
                file = self._points(workspace)
                pause, ledger = partial(self._pause, workspace), Ledger.of(workspace, self._folder)
                for found in uniform_reference(workspace, ledger, corrected=self._corrected, cancelled=pause):
                    self._findings = replace(self._findings, uniform=(*self._findings.uniform, found), doing="")
                self._context(workspace, file, ledger, pause)
        except LowRankError:
            pass  # the measurement of the plan itself says what is wrong
        finally:
            self._findings = replace(self._findings, doing="", over=True)

    def _points(self, workspace: Workspace) -> PointFile:
        correction = workspace.correction if self._corrected else None
        file = PointFile(self._folder, workspace, correction)
        known = file.load()
        if self._shipped is not None:
            known = (*PointFile(self._shipped, workspace, correction).load(), *known)
        self._findings = replace(self._findings, points=known)
        fresh: list[Point] = []
        for found in measured(workspace, correction, known=known, cancelled=partial(self._pause, workspace)):
            file.add(found.point)
            fresh.append(found.point)
            if found.done % EVERY == 0 or found.done == found.total:
                left = f"{found.done} of {found.total} points, {found.seconds_left:.0f} s left"
                self._findings = replace(self._findings, points=(*known, *fresh), doing=left)
        return file

    def _context(self, workspace: Workspace, file: PointFile, ledger: Ledger, pause: Callable[[], bool]) -> None:
        """What later layers make good, and what the sum is worth: only a correction makes layers act on each other."""
        if not self._corrected:
            return
        shipped = () if self._shipped is None else (PointFile(self._shipped, workspace, workspace.correction),)
        for place in (*shipped, file):
            found = read_context(place)
            if found is not None:
                self._findings = replace(self._findings, context=found)
                return
        context = learn_context(workspace, self._findings.points, ledger, cancelled=pause)
        self._findings = replace(self._findings, context=context)
        write_context(file, context)

    def _pause(self, workspace: Workspace) -> bool:
        """Give way to whoever waits for a figure; whether to stop for good."""
        while workspace.busy and not self._stop.is_set():
            time.sleep(0.02)
        return self._stop.is_set()


def learn_context(
    workspace: Workspace, points: tuple[Point, ...], ledger: Ledger, *, cancelled: Callable[[], bool] = lambda: False
) -> Context:
    """Measure what the ledger does not hold, with the workspace's correction; raises Cancelled."""
    found = tuple(repairs(workspace, workspace.correction, points, ledger, cancelled=cancelled))
    plans = tuple(joints(workspace, workspace.correction, MIXED, ledger, cancelled=cancelled))
    return context_of(workspace, points, noise_table(workspace.reference), found, plans)


def read_context(file: PointFile) -> Context | None:
    """The context stored beside the points, if there is one that can be read."""
    try:
        return msgspec.json.decode(file.beside("context").read_bytes(), type=Context)
    except (OSError, msgspec.DecodeError):
        return None


def write_context(file: PointFile, context: Context) -> None:
    """Store it beside the points, whole or not at all."""
    write_whole(file.beside("context"), msgspec.json.encode(context))


def uniform_reference(
    workspace: Workspace, ledger: Ledger, *, corrected: bool, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[Uniform]:
    """Uniform compression at a few shares of the multiplies; scores that the ledger holds are not measured again."""
    seen = set()
    for share in SHARES:
        plan = uniform_plan(workspace.profile, share)
        if not plan.choices or plan in seen:
            continue
        seen.add(plan)
        candidate = workspace.candidate(plan, corrected=corrected)

        def measure(candidate: Candidate = candidate) -> Score:
            if candidate.correction is not None:
                for _ in workspace.correcting(candidate.plan, candidate.correction, cancelled=cancelled):
                    pass
            model = workspace.compress(candidate.plan, candidate.correction)
            return final_score(workspace.measure(model, samples=SAMPLES, keep=False, cancelled=cancelled))

        score = ledger.remembered(score_key(candidate, SAMPLES), measure)
        cost = plan_cost(workspace.profile, plan)
        yield Uniform(cost.bytes, cost.multiplies, score.value)
