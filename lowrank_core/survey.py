"""Survey: what is learnt of a network while nobody waits for it, in a thread that gives way to measurements."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lowrank_core.cost import plan_cost, uniform_plan
from lowrank_core.errors import Cancelled, LowRankError
from lowrank_core.evaluate import final_score
from lowrank_core.workspace import Workspace

SHARES = (0.15, 0.25, 0.35, 0.5, 0.65, 0.8)
SAMPLES = 512


@dataclass(frozen=True, slots=True)
class Uniform:
    """A plan that keeps the same share of every layer's break-even rank, and its score on SAMPLES samples."""

    bytes: int
    multiplies: int
    score: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known so far; over means no more will come."""

    uniform: tuple[Uniform, ...] = ()
    over: bool = False


class Survey:
    """One survey of one workspace. Read `findings` at any time."""

    def __init__(self, workspace: Workspace) -> None:
        self._stop = threading.Event()
        self._findings = Findings()
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
        try:
            for found in uniform_reference(workspace):
                self._findings = replace(self._findings, uniform=(*self._findings.uniform, found))
                self._give_way(workspace)
        except LowRankError:
            pass  # the measurement of the plan itself says what is wrong
        self._findings = replace(self._findings, over=True)

    def _give_way(self, workspace: Workspace) -> None:
        while workspace.busy and not self._stop.is_set():
            time.sleep(0.02)
        if self._stop.is_set():
            raise Cancelled("the survey was called off.")


def uniform_reference(workspace: Workspace) -> Iterator[Uniform]:
    """Uniform compression at a few shares of the multiplies, corrected as the product does by default."""
    seen = set()
    for share in SHARES:
        plan = uniform_plan(workspace.profile, share)
        if not plan.choices or plan in seen:
            continue
        seen.add(plan)
        candidate = workspace.candidate(plan)
        model = workspace.compress(plan, candidate.correction)
        score = final_score(workspace.measure(model, samples=SAMPLES))
        cost = plan_cost(workspace.profile, plan)
        yield Uniform(cost.bytes, cost.multiplies, score.value)
