"""Metrics: how good outputs are. A metric that judges sample by sample is compared pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 1e-13
"""Share of the squares of numbers that their spread is, where they are the same but for rounding in float32."""


@dataclass(frozen=True, slots=True)
class Metric:
    """per_sample(outputs, targets) -> (N,) whose mean is the score, or value(outputs, targets) -> the score.

    Between the two, totals(outputs, targets) -> (N, k) numbers of each sample whose sums (k,) `of` turns into the
    score: outputs need not be kept for it.
    """

    name: str
    higher_is_better: bool = True
    per_sample: Callable[[Tensor, Tensor], Tensor] | None = None
    value: Callable[[Tensor, Tensor], float] | None = None
    totals: Callable[[Tensor, Tensor], Tensor] | None = None
    of: Callable[[Tensor], float] | None = None
    label_free: bool = False  # targets are the dense network's outputs
    class_axis: int | None = None  # the axis of the outputs that holds one unnormalised score per class
    unbounded: bool = False  # per_sample is a number of any size, not 0 for wrong to 1 for right

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The metric's value on some samples taken together."""
        if self.per_sample is not None:
            return float(self.per_sample(outputs, targets).mean())
        if self.totals is not None and self.of is not None:
            return self.of(self.totals(outputs, targets).sum(0))
        assert self.value is not None
        return float(self.value(outputs, targets))

    @property
    def judges(self) -> bool:
        """Whether there is a way to score outputs."""
        return self.per_sample is not None or self.totals is not None or self.value is not None

    def axis_of(self, outputs: Tensor) -> int | None:
        """The axis of these outputs that holds a score per class; None where they hold something else."""
        if self.class_axis is None or outputs.ndim <= self.class_axis:
            return None
        return class_axis_of(outputs) if self.label_free else self.class_axis

    @property
    def share(self) -> bool:
        """Whether the score is a share of the samples, which people read in percent."""
        return self.per_sample is not None and not self.unbounded


def _top1(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).double()


def _top5(outputs: Tensor, targets: Tensor) -> Tensor:
    best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
    return (best == targets.unsqueeze(1)).any(1).double()


def class_axis_of(outputs: Tensor) -> int | None:
    """The axis of class scores in outputs of no labels: (N, classes), (N, tokens, classes), (N, classes, H, W, ...).

    None where there is none.
    """
    return None if outputs.ndim < 2 else -1 if outputs.ndim == 3 else 1


def _agreement(outputs: Tensor, dense: Tensor) -> Tensor:
    """1 or 0 for each sample; of tokens or pixels the share of them."""
    axis = class_axis_of(outputs)
    if axis is None or outputs.shape[axis] < 2:
        raise ValueError("outputs must be class scores of two or more columns")
    return (outputs.argmax(axis) == dense.argmax(axis)).double().reshape(len(outputs), -1).mean(1)


def _cosine(outputs: Tensor, dense: Tensor) -> Tensor:
    return F.cosine_similarity(outputs.double().flatten(1), dense.double().flatten(1), dim=1)


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    _alike(outputs, targets)
    return (outputs.double() - targets.double()).square().flatten(1).mean(1)


def _r2(outputs: Tensor, targets: Tensor) -> float:
    _alike(outputs, targets)
    ours, theirs = outputs.double(), targets.double()
    spread = (theirs - theirs.mean(0)).square().sum()
    return float(1 - (ours - theirs).square().sum() / spread)


def _resemblance(outputs: Tensor, dense: Tensor) -> float:
    """R2; of dense outputs that are the same for all samples their squares stand for the spread, which is none."""
    _alike(outputs, dense)
    ours, theirs = outputs.double(), dense.double()
    squares, spread = float(theirs.square().sum()), float((theirs - theirs.mean(0)).square().sum())
    apart = float((ours - theirs).square().sum())
    scale = spread if spread > ROUNDING * squares else squares
    return 1 - apart / scale if scale else float(apart == 0)


def _f1(outputs: Tensor, targets: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) of each class that is asked for or answered, and their mean."""
    answers = outputs.argmax(1)
    right = torch.bincount(targets[answers == targets], minlength=outputs.shape[1]).double()
    both = torch.bincount(torch.cat([answers, targets]), minlength=outputs.shape[1])
    there = both > 0
    return float((2 * right[there] / both[there]).mean())


def _auc(outputs: Tensor, targets: Tensor) -> float:
    """Share of (sample of a class, sample of another) that the class's score puts in order, ties half; mean by class.

    Mann & Whitney (1947), one class against the rest. Classes of which there is no such pair are left out.
    """
    areas = []
    for label in sorted(set(targets.tolist())):
        scores, mine = outputs[:, label].double(), targets == label
        _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
        ranks = (counts.cumsum(0) - (counts - 1) / 2)[place]  # ties share their mean rank
        positives, negatives = int(mine.sum()), int((~mine).sum())
        if negatives:
            areas.append(float(ranks[mine].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return sum(areas) / len(areas) if areas else float("nan")


def _surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, 2): each sample's summed cross-entropy in nats, and of how many targets; negative targets do not count.

    outputs (N, ..., classes), targets (N, ...).
    """
    if outputs.shape[:-1] != targets.shape:
        raise ValueError("outputs must be the targets' shape with one more axis at the end, the classes")
    labels = targets.long().where(targets >= 0, -100).flatten()
    nats = F.cross_entropy(outputs.flatten(0, -2), labels, reduction="none").double()
    return torch.stack([nats.reshape(len(targets), -1).sum(1), (labels >= 0).reshape(len(targets), -1).sum(1)], dim=1)


def _perplexity(totals: Tensor) -> float:
    """exp of the mean cross-entropy, from the totals of the samples."""
    return float((totals[0] / totals[1]).exp())


def _alike(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise ValueError("outputs and targets must have the same shape")


TOP1 = Metric("top-1 accuracy", per_sample=_top1, class_axis=1)
"""Share of samples whose largest output is the target class."""

AGREEMENT = Metric("agreement with the dense network", per_sample=_agreement, label_free=True, class_axis=1)
"""Share of samples whose largest output is the dense network's; needs no labels."""

RESEMBLANCE = Metric("R2 against the dense network", value=_resemblance, label_free=True)
"""How much of the spread of the dense outputs is kept, their mean taken off; needs no labels."""

METRICS: dict[str, Metric] = {
    "top-1": TOP1,
    "top-5": Metric("top-5 accuracy", per_sample=_top5, class_axis=1),
    "f1": Metric("macro F1", value=_f1, class_axis=1),
    "auc": Metric("macro AUC", value=_auc, class_axis=1),
    "perplexity": Metric("perplexity", False, totals=_surprise, of=_perplexity, class_axis=-1),
    "mse": Metric("mean squared error", higher_is_better=False, per_sample=_squares, unbounded=True),
    "r2": Metric("R2", value=_r2),
    "agreement": AGREEMENT,
    "cosine": Metric("cosine similarity to the dense network", per_sample=_cosine, label_free=True, unbounded=True),
}
"""What a model file may name instead of defining metric(outputs, targets): metric = "perplexity"."""
