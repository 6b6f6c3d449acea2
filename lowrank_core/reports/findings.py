"""Findings: all that a report tells of plans of one network, measured where it is not known yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lowrank_core.errors import InvalidPlan
from lowrank_core.exports import Compressed
from lowrank_core.exports._provenance import plan_document
from lowrank_core.layers.data import Dataset, Outputs
from lowrank_core.plans.cost import Cost, plan_cost
from lowrank_core.plans.plan import PlanFile
from lowrank_core.predict.prediction import Point
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import report
from lowrank_core.scoring.scores import Score
from lowrank_core.selection import front as find_front
from lowrank_core.selection._curves import USUAL, begun
from lowrank_core.selection._front import FrontPoint
from lowrank_core.selection._problem import Problem
from lowrank_core.workspace import Workspace

CURVE_SAMPLES = 64
"""That the curves of single layers are measured on."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """Samples by class and answer: counts[at][answer] of the samples whose class is labels[at].

    names: of the classes in that order, where the network's classes have names.
    """

    labels: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    names: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """What the classes are called: their names, or their numbers."""
        return self.names or tuple(map(str, self.labels))

    @property
    def right(self) -> tuple[int, ...]:
        """Samples of each class that are answered right."""
        return tuple(row[at] for at, row in enumerate(self.counts))


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """One plan of a report. peak_bytes: RAM of activations by number format, None where it was not looked for.

    confusion: of a classifier whose one output is judged.
    """

    name: str
    compressed: Compressed
    cost: Cost
    score: Score
    document: str
    confusion: Confusion | None = None
    peak_bytes: dict[str, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """Plans of one network beside the dense one. front, curves: where single layers could be measured; else why not."""

    workspace: Workspace
    dense: Cost
    plans: tuple[Told, ...]
    dense_confusion: Confusion | None = None
    dense_peak_bytes: dict[str, int] | None = None
    front: tuple[FrontPoint, ...] = ()
    curves: tuple[Point, ...] = field(default=(), repr=False)
    no_front: str = ""


def check_one_network(plans: Sequence[tuple[str, PlanFile]]) -> None:
    """Raise InvalidPlan where plans are of several networks; each by the name that a person knows it by."""
    first_name, first = plans[0]
    for name, file in plans[1:]:
        if file.plan.fingerprint != first.plan.fingerprint:
            raise InvalidPlan(
                f"a report is of one network, but {first_name} is a plan of {first.model_name or 'one'} "
                f"({first.plan.fingerprint[:19]}...) and {name} of {file.model_name or 'another'} "
                f"({file.plan.fingerprint[:19]}...); write a report for each."
            )


def told(
    workspace: Workspace, name: str, compressed: Compressed, peak_bytes: dict[str, int] | None = None
) -> tuple[Told, Confusion | None]:
    """A plan measured on all evaluation samples, and how the dense network answers them. Raises Cancelled."""
    answers = _Answers(workspace)
    score, total = None, 0 if workspace.opened.evaluate is not None else len(workspace.reference)
    pace = Pace(total)
    for score in workspace.measure(compressed.model, keep=False, each=answers if answers.told else None):
        report(Progress(f"measuring {name}, {score.samples:,} of {total:,} samples", pace(score.samples)))
    assert score is not None
    whole = replace(compressed, score=score)
    cost = plan_cost(workspace.profile, compressed.plan)
    confusions = (None, None) if score.not_finite else answers.confusions()
    return (
        Told(name, whole, cost, score, plan_document(workspace, whole), confusions[1], peak_bytes),
        confusions[0],
    )


def with_front(found: Findings, problem: Problem, points: tuple[Point, ...] | None = None) -> Findings:
    """With the front of the network over multiplies and the curves of its layers; points: those that are known.

    A network that scores itself has neither. Raises Cancelled.
    """
    if found.workspace.opened.evaluate is not None:
        return replace(found, no_front="This network scores itself, so nothing tells what a single layer loses.")
    if not found.workspace.profile.layers:
        return replace(found, no_front="No layer of this network can be compressed.")
    if not problem.methods:
        problem = replace(problem, methods=USUAL)
    if points is None:
        samples = found.workspace.calibration.pick(slice(0, CURVE_SAMPLES))
        points = begun(problem.quick, samples)
    return replace(found, front=find_front(problem, quantity="multiplies", points=points), curves=points)


class _Answers:
    """Hears the batches of a measurement, and keeps the classes that both networks answer."""

    def __init__(self, workspace: Workspace) -> None:
        metric = workspace.metric
        own = workspace.opened.evaluate is not None
        self.told = not own and metric.class_axis == 1 and len(workspace.reference.outputs) == 1
        self._label_free = not own and metric.label_free
        self._names = workspace.opened.preparation.labels
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, data: Dataset, outputs: Outputs, dense: Outputs) -> None:
        (ours,), (theirs,) = outputs.values(), dense.values()
        if ours.ndim != 2 or (data.targets is None and not self._label_free):
            self.told = False
            return
        answers, dense_answers = ours.argmax(1), theirs.argmax(1)
        targets = dense_answers if self._label_free or data.targets is None else data.targets
        self._kept.append((targets, dense_answers, answers))

    def confusions(self) -> tuple[Confusion | None, Confusion | None]:
        """Of the dense network and of this one; None where they answer no classes."""
        if not self.told or not self._kept:
            return None, None
        targets, dense, ours = (torch.cat(list(part)) for part in zip(*self._kept, strict=True))
        if targets.shape != ours.shape:
            return None, None
        labels = torch.tensor(sorted({*targets.tolist(), *dense.tolist(), *ours.tolist()}))
        return _confusion(labels, self._names, targets, dense), _confusion(labels, self._names, targets, ours)


def _confusion(labels: Tensor, names: Sequence[str], targets: Tensor, answers: Tensor) -> Confusion:
    size = len(labels)
    places = torch.searchsorted(labels, targets) * size + torch.searchsorted(labels, answers)
    counts = torch.bincount(places, minlength=size * size).view(size, size)
    numbers = tuple(labels.tolist())
    named = tuple(names[number] for number in numbers) if numbers[0] >= 0 and numbers[-1] < len(names) else ()
    return Confusion(numbers, tuple(map(tuple, counts.tolist())), named)
