"""Several runs of the fine-tuning: over seeds, because the problem is not convex, and over plans, to choose one."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import nn

from lowrank_core.measure.ledger import Ledger, score_key
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import Cost, plan_cost
from lowrank_core.running.parallel import Workers, map_elsewhere
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.store.cache import Cache
from lowrank_core.store.files import drop, remove_left
from lowrank_core.store.key import NetworkKey
from lowrank_core.training.finetune import Epoch, finetune, run_key
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace, opened_once

MOST_BYTES = 2 * 2**30
"""Of the states of trainings in a folder; the oldest go first."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One seed, trained to its end: its epochs, the tuned network, and its score on all evaluation samples."""

    seed: int
    epochs: tuple[Epoch, ...]
    model: nn.Module
    score: Score

    @property
    def validation_loss(self) -> float:
        """Loss on the held-back samples of the weights that were kept; what runs are compared by."""
        return self.epochs[self.epochs[-1].best].validation_loss


@dataclass(frozen=True, slots=True, eq=False)
class RunEpoch:
    """One more epoch of the run with this seed; the runs finished so far, the last of them just now or earlier."""

    seed: int
    epoch: Epoch
    finished: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """Runs side by side: mean and standard deviation (None of one run) of their scores, the highest and the lowest.

    chosen: the run with the lowest validation loss, number in order; its score may not be the best one, for the
    evaluation samples choose nothing.
    """

    scores: tuple[float, ...]
    mean: float
    spread: float | None
    best: float
    worst: float
    chosen: int


def runs(
    workspace: Workspace,
    candidate: Candidate,
    settings: Settings,
    seeds: Iterable[int],
    *,
    state: Path | None = None,
    folder: Path | None = None,
    watch: int = 0,
) -> Iterator[RunEpoch]:
    """Fine-tune once for each seed and measure; the last one's `finished` are all runs.

    Each has its own state file, `state` with the seed at its end, or in `folder` under a name of all it depends on.
    """
    finished: tuple[Run, ...] = ()
    for seed in seeds:
        own, run = None, replace(settings, seed=seed)
        if state is not None:
            own = state.with_name(f"{state.name}.{seed}")
        elif folder is not None:
            own = state_path(workspace, candidate, run, folder, watch=watch)
        seen: list[Epoch] = []
        for epoch in finetune(workspace, candidate, run, state=own, watch=watch):
            seen.append(epoch)
            if epoch.model is not None:
                score = tuned_score(workspace, candidate, run, epoch.model, watch=watch)
                finished += (Run(seed, tuple(seen), epoch.model, score),)
            yield RunEpoch(seed, epoch, finished)


def tuned_score(
    workspace: Workspace,
    candidate: Candidate,
    settings: Settings,
    model: nn.Module,
    *,
    watch: int = 0,
) -> Score:
    """The score of a training's network on all evaluation samples; kept in the workspace's cache, if it has one."""
    return Ledger.of(workspace).remembered(
        f"tuned {run_key(workspace, candidate, settings, watch=watch)}",
        lambda: final_score(workspace.measure(model, keep=False)),
    )


def compressed_score(
    workspace: Workspace,
    candidate: Candidate,
    *,
    samples: int | None = None,
) -> Score:
    """The score of a candidate as it is compressed, not tuned, on all or some evaluation samples."""

    def measure() -> Score:
        model = workspace.compress(candidate.plan, candidate.correction)
        return final_score(workspace.measure(model, samples=samples, keep=False))

    return Ledger.of(workspace).remembered(score_key(candidate, samples), measure)


class Scored(Protocol):
    """A training as runs are compared: `Run` is one."""

    @property
    def validation_loss(self) -> float: ...

    @property
    def score(self) -> Score: ...


def summary(finished: Sequence[Scored]) -> Summary:
    """Mean, standard deviation and best of the scores of finished runs, of which there must be one."""
    scores = [run.score.value for run in finished]
    ordered = sorted(scores, reverse=finished[0].score.higher_is_better)
    return Summary(
        tuple(scores),
        statistics.fmean(scores),
        statistics.stdev(scores) if len(scores) > 1 else None,
        ordered[0],
        ordered[-1],
        min(range(len(finished)), key=lambda i: finished[i].validation_loss),
    )


@dataclass(frozen=True, slots=True)
class Swept:
    """One plan of a sweep: its number in the order given, its cost, its score as the plan makes it and as tuned.

    indirect: with the plan's correction; from scratch this is still the same plan's. epochs: passes that were made.
    """

    number: int
    candidate: Candidate
    cost: Cost
    indirect: Score
    direct: Score
    epochs: int


def sweep(
    workspace: Workspace,
    candidates: Sequence[Candidate],
    settings: Settings,
    *,
    workers: int = 1,
    folder: Path | None = None,
) -> Iterator[Swept]:
    """Train every plan, in that many processes, and yield each as it is done, in any order.

    With one worker all of it happens here; others open the model anew by its reference. folder: where each training
    keeps its state, so that a cancelled sweep goes on, and `finetune` with `state_path(...)` has a plan's weights at
    once. Raises Cancelled.
    """
    if workers == 1:
        for number, candidate in enumerate(candidates):
            yield _swept(workspace, number, candidate, settings, folder)
        return
    model = workspace.address, workspace.key, workspace.cache, workspace.opened.outputs
    pieces = [_Piece(model, at, candidate, settings, folder) for at, candidate in enumerate(candidates)]
    for _, swept in map_elsewhere(_swept_elsewhere, pieces, Workers(workers)):
        yield swept


def state_path(workspace: Workspace, candidate: Candidate, settings: Settings, folder: Path, *, watch: int = 0) -> Path:
    """The state file of a training in a folder, named by all that it depends on."""
    return folder / f"tune-{run_key(workspace, candidate, settings, watch=watch)}.pt"


def tidy(folder: Path) -> None:
    """Keep the newest states, and nothing that killed processes left."""
    remove_left(folder)
    states = sorted(folder.glob("tune-*.pt"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in states:
        total += path.stat().st_size
        if total > MOST_BYTES:
            drop(path)


def _swept(
    workspace: Workspace,
    number: int,
    candidate: Candidate,
    settings: Settings,
    folder: Path | None,
) -> Swept:
    state = None if folder is None else state_path(workspace, candidate, settings, folder)
    indirect = compressed_score(workspace, candidate)
    for last in finetune(workspace, candidate, settings, state=state):
        if last.notice:
            report(Progress(last.notice))
    assert last.model is not None
    direct = tuned_score(workspace, candidate, settings, last.model)
    cost = plan_cost(workspace.profile, candidate.plan)
    return Swept(number, candidate, cost, indirect, direct, last.number)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """What another process trains: one plan of a model, which is told as `opened_once` takes it."""

    model: tuple[str, NetworkKey, Cache | None, tuple[str | int, ...]]
    number: int
    candidate: Candidate
    settings: Settings
    folder: Path | None


def _swept_elsewhere(piece: _Piece) -> Swept:
    workspace = opened_once(*piece.model)
    return _swept(workspace, piece.number, piece.candidate, piece.settings, piece.folder)
