"""Comparison: a network beside the dense one, sample by sample, class by class, and in bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_core.compression.apply import restructure
from lowrank_core.graphs.memory import Trace, trace
from lowrank_core.layers.data import Dataset, Outputs
from lowrank_core.plans.candidate import Candidate
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import report
from lowrank_core.scoring.scores import Score, evaluate, final_score
from lowrank_core.workspace import Workspace

MOST_FLIPS = 500


@dataclass(frozen=True, slots=True)
class ClassChange:
    """Samples of one class and how many of them each network gets right."""

    label: int
    samples: int
    dense_right: int
    right: int


@dataclass(frozen=True, slots=True)
class Flip:
    """A sample on which the two networks disagree; sample: its place in the workspace's reference."""

    sample: int
    target: int
    dense: int
    compressed: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a network answers beside the dense one. classes and flips: of classifiers whose one output is judged.

    lost: samples that only the dense network gets right; won: only this one; changed: wrong in another way. At most 500
    flips are kept, lost samples first.
    """

    score: Score
    classes: tuple[ClassChange, ...] = ()
    flips: tuple[Flip, ...] = ()
    lost: int = 0
    won: int = 0
    changed: int = 0


def traces(workspace: Workspace, candidates: Sequence[Candidate]) -> Iterator[Trace]:
    """One inference of each candidate's network, which needs no factors for that."""
    for candidate in candidates:
        report(Progress("tracing one inference"))
        model = workspace.model
        if candidate.plan.choices:
            model = restructure(model, workspace.profile, candidate.plan)
        yield trace(model, workspace.opened.example_inputs)


def compare(workspace: Workspace, network: nn.Module) -> Comparison:
    """How a network answers on all evaluation samples, beside the dense one; it may be a file that onnxruntime runs.

    Raises Cancelled, and InvalidModel where the model file's own evaluate(model) fails on it.
    """
    if workspace.opened.evaluate is not None:
        report(Progress("evaluating"))
        return Comparison(final_score(workspace.measure(network)))
    answers: list[Tensor] = []
    score = final_score(_scores(workspace, network, answers))
    told = answers and not score.not_finite  # the largest of NaN is none
    classes, flips = _disagreements(workspace, torch.cat(answers)) if told else ((), ())
    lost = sum(flip.dense == flip.target for flip in flips)
    won = sum(flip.compressed == flip.target for flip in flips)
    return Comparison(score, classes, flips[:MOST_FLIPS], lost, won, len(flips) - lost - won)


def _scores(workspace: Workspace, model: nn.Module, answers: list[Tensor]) -> Iterator[Score]:
    """The scores of a measurement; of a classifier its answers go to `answers` on the way."""
    total = len(workspace.reference)
    run = workspace.prefixes.runner(model, total, record=())

    def forward(part: Dataset, at: int) -> Outputs:
        outputs = run(part, at)
        if workspace.metric.class_axis == 1 and len(outputs) == 1:
            (scores,) = outputs.values()
            if scores.ndim == 2:
                answers.append(scores.argmax(1))
        return outputs

    pace = Pace(total)
    for score in evaluate(model, workspace.reference, forward=forward):
        report(Progress(f"{score.samples:,} of {total:,} samples", pace(score.samples)))
        yield score


def _disagreements(workspace: Workspace, answers: Tensor) -> tuple[tuple[ClassChange, ...], tuple[Flip, ...]]:
    (name,) = workspace.reference.outputs
    dense = torch.cat([outputs[name].argmax(1) for _, outputs in workspace.reference.batches()])
    targets = workspace.reference.dataset.targets
    if targets is None or workspace.metric.label_free:
        targets = dense
    if targets.shape != answers.shape:
        return (), ()
    classes = tuple(
        ClassChange(
            label,
            int((targets == label).sum()),
            int(((targets == label) & (dense == label)).sum()),
            int(((targets == label) & (answers == label)).sum()),
        )
        for label in sorted(set(targets.tolist()))
    )
    flips = [
        Flip(i, int(targets[i]), int(dense[i]), int(answers[i]))
        for i in (answers != dense).nonzero().flatten().tolist()
    ]
    return classes, tuple(sorted(flips, key=lambda flip: flip.dense != flip.target))


def checkpoint_bytes(model: nn.Module, itemsize: float | None = None) -> int:
    """Size of the network's parameters and buffers in a safetensors file: 8 bytes, a header, the numbers.

    itemsize: bytes of a floating-point number of a parameter where they are written in another type; buffers keep
    theirs.

    >>> checkpoint_bytes(nn.Linear(64, 64)) - checkpoint_bytes(nn.Linear(64, 64), 2)
    8320
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    empty = {name: {"dtype": "F32", "shape": list(t.shape), "data_offsets": [0, 10**8]} for name, t in tensors.items()}
    header = len(json.dumps(empty, separators=(",", ":")))

    def size(tensor: Tensor) -> float:
        narrowed = itemsize and isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        return itemsize if itemsize and narrowed else tensor.element_size()

    return 8 + header + round(sum(t.numel() * size(t) for t in tensors.values()))
