"""Metrics: how good outputs are. A metric that judges sample by sample is compared pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_core.errors import InvalidData
from lowrank_core.scoring.intervals import FEWEST

ROUNDING = 1e-13
"""Share of the squares of numbers that their spread is, where they are the same but for rounding in float32."""


@dataclass(frozen=True, slots=True)
class Metric:
    """per_sample(outputs, targets) -> (N,) whose mean is the score, or value(outputs, targets) -> the score.

    Between the two, totals(outputs, targets) -> (N, k) numbers of each sample whose sums (k,) `of` turns into the
    score: outputs need not be kept for it. about(targets of any one sample) -> totals, where they are distances to it.
    """

    name: str
    higher_is_better: bool = True
    per_sample: Callable[[Tensor, Tensor], Tensor] | None = None
    value: Callable[..., float] | None = None
    totals: Callable[[Tensor, Tensor], Tensor] | None = None
    about: Callable[[Tensor], Callable[[Tensor, Tensor], Tensor]] | None = None
    of: Callable[[Tensor], float] | None = None
    label_free: bool = False  # targets are the dense network's outputs
    class_axis: int | None = None  # the axis of the outputs that holds one unnormalised score per class
    yes_above: float | None = None  # outputs are one number for each sample that says yes above it, no below
    unbounded: bool = False  # per_sample is a number of any size, not 0 for wrong to 1 for right
    bounded: bool = False  # value or totals: a share, from 0 to 1, of which n samples hold about 1 / n each
    weighs: bool = False  # value takes a third argument, the weight of each sample (N,)
    fewest: int = FEWEST  # samples from which on it has an interval
    fewest_weighted: int = FEWEST  # the same where samples count differently, as many as they are worth together

    def score(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> float:
        """The metric's value on some samples taken together; weights (N,): how much each of them counts.

        Raises InvalidData for weights where the metric takes none.
        """
        if self.per_sample is not None:
            judged = self.per_sample(outputs, targets)
            return float(judged.mean() if weights is None else (weights * judged).sum() / weights.sum())
        if (judge := self.by_sample(targets[:1])) is not None:
            assert self.of is not None
            return self.of(weighted(judge(outputs, targets), weights).sum(0))
        return self.at_once(outputs, targets, weights)

    def by_sample(self, target: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What each sample adds to the score, (N,) or (N, k); None where all are judged at once.

        target: of any one sample (1, ...), always the same one where what is known of several batches is added up.
        """
        return self.per_sample or self.totals or (None if self.about is None else self.about(target))

    def at_once(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> float:
        """The value of all samples judged at once; raises InvalidData for weights where it knows of none."""
        assert self.value is not None
        if self.weighs:
            return float(self.value(outputs, targets, torch.ones(len(targets)) if weights is None else weights))
        if weights is not None:
            raise InvalidData(self.without_weights)
        return float(self.value(outputs, targets))

    def targets_of(self, dense: Tensor, targets: Tensor | None) -> Tensor:
        """What outputs are judged against: the targets, or the dense outputs where there are none or none are asked."""
        return dense if self.label_free or targets is None else targets

    @property
    def judges(self) -> bool:
        """Whether there is a way to score outputs."""
        return any(way is not None for way in (self.per_sample, self.totals, self.about, self.value))

    def axis_of(self, outputs: Tensor) -> int | None:
        """The axis of these outputs that holds a score per class; None where they hold something else."""
        if self.class_axis is None or outputs.ndim <= self.class_axis:
            return None
        return class_axis_of(outputs) if self.label_free else self.class_axis

    @property
    def share(self) -> bool:
        """Whether the score is a share of the samples, which people read in percent."""
        return self.per_sample is not None and not self.unbounded

    @property
    def takes_weights(self) -> bool:
        """Whether samples may count differently: not where a function of a person's own judges all of them at once."""
        return self.value is None or self.weighs

    @property
    def without_weights(self) -> str:
        """What is wrong where the samples of such a metric have weights."""
        return (
            f"the samples have weights, but {self.name} judges all of them at once and knows of none; leave the "
            "weights out, or name one of the metrics that take them."
        )


def weighted(totals: Tensor, weights: Tensor | None) -> Tensor:
    """The numbers of each sample, (N,) or (N, k), times how much it counts."""
    return totals if weights is None else totals * weights.reshape(-1, *[1] * (totals.ndim - 1))


def answers_twice(metric: Metric) -> Metric:
    """A metric of a person's own, held to its word when it is first used: the same value for the same outputs.

    Raises InvalidData then where it says something else the second time, as one does that adds up what it has seen.
    """
    held: list[bool] = []

    def checked(judge: Callable[..., Any] | None) -> Callable[..., Any] | None:
        def judged(*given: Tensor) -> Any:
            assert judge is not None
            found = judge(*given)
            if not held:
                held.append(True)
                _check_same(metric.name, found, judge(*given))
            return found

        return None if judge is None else judged

    ways = checked(metric.per_sample), checked(metric.value), checked(metric.totals)
    return replace(metric, per_sample=ways[0], value=ways[1], totals=ways[2])


def _check_same(name: str, first: Any, second: Any) -> None:
    before, after = (torch.as_tensor(each).detach().double().cpu().nan_to_num() for each in (first, second))
    if not torch.equal(before, after):
        raise InvalidData(
            f"the metric {name!r} gave {float(before.mean()):.6g}, then {float(after.mean()):.6g} for the same outputs "
            "and targets: it is random, or remembers what it was given; it must depend on these alone."
        )


# ---- right or wrong -------------------------------------------------------------------------------------------------


def _sound(outputs: Tensor, axis: int = 1) -> Tensor:
    """Whether scores of classes say anything: none of them is NaN, and the largest is finite."""
    return outputs.amax(axis).isfinite()  # a NaN among them is the largest


def _top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest output is the target class; outputs (N, classes), targets (N,)."""
    return ((outputs.argmax(1) == targets) & _sound(outputs)).double()


def _top5(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the target class is among the five largest outputs; outputs (N, classes), targets (N,)."""
    best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
    return ((best == targets.unsqueeze(1)).any(1) & _sound(outputs)).double()


def class_axis_of(outputs: Tensor) -> int | None:
    """The axis of class scores in outputs of no labels: (N, classes), (N, tokens, classes), (N, classes, H, W, ...).

    None where there is none.
    """
    return None if outputs.ndim < 2 else -1 if outputs.ndim == 3 else 1


def are_shares(values: Tensor, axis: int) -> bool:
    """Whether numbers along the axis are probabilities: none below 0, and each row adds up to one.

    >>> are_shares(torch.tensor([[0.2, 0.8]]), 1), are_shares(torch.tensor([[2.0, -1.0]]), 1)
    (True, False)
    """
    return bool((values >= 0).all()) and bool((values.double().sum(axis) - 1).abs().max() < 1e-3)


def divergence_of_scores(scores: Tensor, dense: Tensor, axis: int) -> float:
    """The mean Kullback-Leibler divergence, in nats, of the distributions that unnormalised logarithms stand for.

    scores, dense: of one shape, with the classes along the axis; how far the first are from the second. Never below 0.
    """
    log_p, log_q = (values.log_softmax(axis) for values in (dense, scores))
    return max(0.0, float((log_p.exp() * (log_p - log_q)).sum(axis).mean()))


def _agreement(outputs: Tensor, dense: Tensor) -> Tensor:
    """Whether the largest output is that of the dense network; of tokens or pixels the share of them; no targets."""
    axis = class_axis_of(outputs)
    if axis is None or outputs.shape[axis] < 2:
        raise ValueError("outputs must be class scores of two or more columns")
    alike = (outputs.argmax(axis) == dense.argmax(axis)) & _sound(outputs, axis) & _sound(dense, axis)
    return alike.double().reshape(len(outputs), -1).mean(1)


def _binary(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the sign of a single logit tells the label, 1 above 0; outputs and targets (N,) or (N, 1)."""
    return _binary_above(0.0, outputs, targets)


def _binary_probability(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether a single probability tells the label, 1 above 0.5; outputs and targets (N,) or (N, 1)."""
    return _binary_above(0.5, outputs, targets)


def _binary_above(least: float, outputs: Tensor, targets: Tensor) -> Tensor:
    outputs, targets = _one_number(outputs), _one_number(targets)
    return _said(outputs, _labels(targets), least).eq(targets).double()


def _labels(targets: Tensor) -> Tensor:
    if not bool(((targets == 0) | (targets == 1)).all()):
        raise ValueError("labels must be 0 or 1")
    return targets.bool()


def _said(outputs: Tensor, labels: Tensor, least: float) -> Tensor:
    """Which outputs say yes, those above the least; one that is not finite says what is wrong."""
    return torch.where(outputs.isfinite(), outputs > least, ~labels)


def _one_number(values: Tensor) -> Tensor:
    """(N,) or (N, 1) as (N,)."""
    if values.numel() != len(values):
        raise ValueError("there must be one number for each sample, (N,) or (N, 1)")
    return values.reshape(-1)


# ---- numbers --------------------------------------------------------------------------------------------------------


def _numbers(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets as (N, numbers of a sample); (N,) goes with (N, 1)."""
    single = len(outputs) == len(targets) == outputs.numel() == targets.numel()
    if outputs.shape != targets.shape and not (single and max(outputs.ndim, targets.ndim) == 2):
        raise ValueError("outputs and targets must have the same shape")
    return outputs.double().reshape(len(outputs), -1), targets.double().reshape(len(targets), -1)


def _cosine(outputs: Tensor, dense: Tensor) -> Tensor:
    """Cosine of the angle between a sample's outputs and the dense network's; no targets."""
    return F.cosine_similarity(*_numbers(outputs, dense), dim=1)


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of each sample; outputs and targets of one shape, or (N,) and (N, 1)."""
    ours, theirs = _numbers(outputs, targets)
    return (ours - theirs).square().mean(1)


def _distances(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference of each sample; outputs and targets of one shape, or (N,) and (N, 1)."""
    ours, theirs = _numbers(outputs, targets)
    return (ours - theirs).abs().mean(1)


def _spreads(target: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What R2 is made of, for each sample: squares of the differences, of the targets, and of the targets less
    `target`, one, and the targets less `target`, (N, 4 + numbers of a sample). Targets may be far from 0: taken from
    one of them, their sums hold the spread to rounding (Chan, Golub & LeVeque 1983).

    Outputs and targets of one shape, or (N,) and (N, 1).
    """

    def totals(outputs: Tensor, targets: Tensor) -> Tensor:
        ours, theirs = _numbers(outputs, targets)
        away = theirs - target.double().reshape(1, -1)
        sums = [each.square().sum(1) for each in (ours - theirs, theirs, away)]
        return torch.cat([torch.stack([*sums, torch.ones(len(theirs)).to(away)], dim=1), away], dim=1)

    return totals


def _parts(totals: Tensor) -> tuple[float, float, float]:
    """(squares of the differences, of the targets, of the targets less their mean) of all samples."""
    apart, squares, away, count = totals[:4]
    return float(apart), float(squares), float((away - totals[4:].square().sum() / count).clamp_min(0))


def _r2(totals: Tensor) -> float:
    """1 - squares of the differences over squares of the targets less their mean."""
    apart, _, spread = _parts(totals)
    return 1 - apart / spread if spread else float("nan")


def _resemblance(totals: Tensor) -> float:
    """R2; of dense outputs that are the same for all samples their squares stand for the spread, which is none."""
    apart, squares, spread = _parts(totals)
    scale = spread if spread > ROUNDING * squares else squares
    return 1 - apart / scale if scale else float(apart == 0)


# ---- one of several classes -----------------------------------------------------------------------------------------


def _hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, 2 classes): of each class whether it was answered rightly, then how often it was asked for and answered.

    outputs (N, classes), targets (N,).
    """
    classes = outputs.shape[1]
    answers, asked = (F.one_hot(each.long(), classes).double() for each in (outputs.argmax(1), targets))
    right = answers * asked * _sound(outputs).unsqueeze(1)
    return torch.cat([right, answers + asked], dim=1)


def _class_f1(totals: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) of each class that is asked for or answered, and their mean."""
    right, both = totals.chunk(2)
    there = both > 0
    return float((2 * right[there] / both[there]).mean())


def _auc(outputs: Tensor, targets: Tensor, weights: Tensor) -> float:
    """Share of (sample of a class, sample of another) that the class's score puts in order, ties half; mean by class.

    Mann & Whitney (1947), one class against the rest; a pair counts for the product of its weights. Targets (N,), or of
    the outputs' shape and 1 where a sample has the label; outputs (N, classes), or one for labels 0 and 1. Classes of
    which there is no such pair are left out.
    """
    areas = []
    for mine, others in _places(outputs, targets, weights):
        pairs = float(mine.sum() * others.sum())
        if pairs:
            below = others.sum() - others.cumsum(0) + others / 2  # ties count half
            areas.append(float((mine * below).sum()) / pairs)
    return sum(areas) / len(areas) if areas else float("nan")


def _places(outputs: Tensor, targets: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each label the weight at every score, the highest first, of samples that have it, and of those that have not.

    A sample that counts for nothing is at no place.
    """
    counted, amounts = weights > 0, weights.double()
    if not counted.any():
        return
    for scores, mine in _rankings(outputs, targets):
        _, place = torch.unique(-scores[counted], return_inverse=True)
        both = torch.stack([mine, ~mine])[:, counted] * amounts[counted]
        sums = torch.zeros(2, int(place.max()) + 1, dtype=torch.float64).index_add_(1, place, both)
        yield sums[0], sums[1]


def _rankings(outputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(scores, which samples have the label) of each label; a score that is NaN puts its sample where it is wrong."""
    if targets.shape == outputs.shape and outputs.ndim == 2 and outputs.shape[1] > 1:
        columns, labels = outputs.double(), _labels(targets)
    elif outputs.numel() == len(outputs):
        columns, labels = outputs.double().reshape(-1, 1), _labels(_one_number(targets)).unsqueeze(1)
    else:
        present = sorted(set(targets.tolist()))
        if not 0 <= present[0] <= present[-1] < outputs.shape[1]:
            raise ValueError(f"labels must be 0..{outputs.shape[1] - 1}, one for each column of the outputs")
        columns, labels = outputs[:, present].double(), targets.unsqueeze(1) == torch.tensor(present)
    wrong = torch.where(labels, -torch.inf, torch.inf).double()
    return list(zip(torch.where(columns.isnan(), wrong, columns).T, labels.T, strict=True))


def _surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, 2): each sample's summed cross-entropy in nats, and of how many targets; negative targets do not count.

    outputs (N, ..., classes), targets (N, ...).
    """
    return _surprise_of(lambda scores: scores.log_softmax(-1), outputs, targets)


def _surprise_probability(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, 2): each sample's summed cross-entropy in nats, and of how many targets; negative targets do not count.

    outputs (N, ..., classes) probabilities, targets (N, ...).
    """
    return _surprise_of(lambda shares: shares.clamp_min(torch.finfo(shares.dtype).tiny).log(), outputs, targets)


def _surprise_of(logarithms: Callable[[Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape[:-1] != targets.shape:
        raise ValueError("outputs must be the targets' shape with one more axis at the end, the classes")
    labels = targets.long().where(targets >= 0, -100).flatten()
    nats = F.nll_loss(logarithms(outputs.flatten(0, -2)), labels, reduction="none").double()
    return torch.stack([nats.reshape(len(targets), -1).sum(1), (labels >= 0).reshape(len(targets), -1).sum(1)], dim=1)


def _perplexity(totals: Tensor) -> float:
    """exp of the mean cross-entropy, from the totals of the samples."""
    return float((totals[0] / totals[1]).exp())


def _overlap(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, 2 classes): of each class how many places have it in both, then how many in either.

    outputs (N, classes, ...), targets (N, ...); places whose label is none of the classes, 255 or -100 say, are left
    out.
    """
    classes, answers = outputs.shape[1], outputs.argmax(1)
    if answers.shape != targets.shape:
        raise ValueError("outputs must be (N, classes, ...) and targets (N, ...) of the same places")
    labels = targets.long()
    counted = (labels >= 0) & (labels < classes)
    sample = torch.arange(len(labels)).reshape(-1, *[1] * (labels.ndim - 1)).expand_as(labels)

    def areas(values: Tensor, where: Tensor) -> Tensor:
        cells = (sample * classes + values)[where]
        return torch.bincount(cells, minlength=len(labels) * classes).double().reshape(len(labels), classes)

    both = areas(labels, counted & (answers == labels) & _sound(outputs))
    return torch.cat([both, areas(labels, counted) + areas(answers, counted) - both], dim=1)


def _iou(totals: Tensor) -> float:
    """Intersection over union of each class that is there or answered, and their mean (Jaccard 1901)."""
    both, either = totals.chunk(2)
    there = either > 0
    return float((both[there] / either[there]).mean())


def _edits(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, 2): insertions, deletions and substitutions from the answered tokens to the targets, and how many these are.

    outputs (N, T, tokens), answered by their largest; targets (N, S), of which negative ones are padding. Where T is S
    the answers at padding are left out, too.
    """
    if outputs.ndim != 3 or targets.ndim != 2 or len(outputs) != len(targets):
        raise ValueError("outputs must be (N, T, tokens) and targets (N, S)")
    answers = outputs.argmax(2).masked_fill(~_sound(outputs, 2), -2)  # a token that is no target
    asked = targets >= 0
    given = asked if answers.shape == targets.shape else torch.ones_like(answers, dtype=torch.bool)
    answers, targets = _packed(answers, given), _packed(targets.long(), asked)
    places = torch.arange(targets.shape[1] + 1)
    distance = places.expand(len(targets), -1)  # from no answer at all
    rows = [distance]
    for answer in answers.T:
        change = distance[:, :-1] + (answer.unsqueeze(1) != targets).long()
        best = torch.cat([distance[:, :1] + 1, torch.minimum(change, distance[:, 1:] + 1)], dim=1)
        distance = (best - places).cummin(1).values + places  # or one insertion more than further left
        rows.append(distance)
    number = torch.arange(len(targets))
    edits = torch.stack(rows)[given.sum(1), number, asked.sum(1)]
    return torch.stack([edits, asked.sum(1)], dim=1).double()


def _packed(tokens: Tensor, there: Tensor) -> Tensor:
    """Each row's tokens that are there, moved to its front in their order."""
    return tokens.gather(1, (~there).long().argsort(dim=1, stable=True))


def _error_rate(totals: Tensor) -> float:
    """Edits over targets (Levenshtein 1966)."""
    return float(totals[0] / totals[1])


# ---- several labels at once -----------------------------------------------------------------------------------------


def _label_hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, 2 labels): whether each label was answered rightly, then how often it was asked for and answered.

    outputs (N, labels) logits, answered above 0; targets of the same shape, 1 where a sample has the label, else 0.
    """
    return _label_hits_above(0.0, outputs, targets)


def _label_hits_probability(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, 2 labels): whether each label was answered rightly, then how often it was asked for and answered.

    outputs (N, labels) probabilities, answered above 0.5; targets of the same shape, 1 where a sample has the label,
    else 0.
    """
    return _label_hits_above(0.5, outputs, targets)


def _label_hits_above(least: float, outputs: Tensor, targets: Tensor) -> Tensor:
    _numbers(outputs, targets)
    asked = _labels(targets).reshape(len(targets), -1)
    answers = _said(outputs.reshape(len(outputs), -1), asked, least)
    return torch.cat([(asked & answers).double(), asked.double() + answers.double()], dim=1)


def _micro_f1(totals: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) of all labels together."""
    right, both = totals.chunk(2)
    return float(2 * right.sum() / both.sum())


def _average_precision(outputs: Tensor, targets: Tensor, weights: Tensor) -> float:
    """Of each label the precision at every sample that has it, samples in the order of their scores, and their mean.

    Equal scores count as one place, and labels that no sample has are left out. Outputs and targets as for AUC.
    """
    found = []
    for mine, others in _places(outputs, targets, weights):
        if bool(mine.any()):
            precision = mine.cumsum(0) / (mine + others).cumsum(0)
            found.append(float((mine * precision).sum() / mine.sum()))
    return sum(found) / len(found) if found else float("nan")


TOP1 = Metric("top-1 accuracy", per_sample=_top1, class_axis=1)
"""Share of samples whose largest output is the target class."""

AGREEMENT = Metric("agreement with the dense network", per_sample=_agreement, label_free=True, class_axis=1)
"""Share of samples whose largest output is the dense network's; needs no labels."""

RESEMBLANCE = Metric("R2 against the dense network", about=_spreads, of=_resemblance, label_free=True)
"""How much of the spread of the dense outputs is kept, their mean taken off; needs no labels."""

METRICS: dict[str, Metric] = {
    "top-1": TOP1,
    "top-5": Metric("top-5 accuracy", per_sample=_top5, class_axis=1),
    "binary": Metric("binary accuracy", per_sample=_binary, yes_above=0.0),
    "f1": Metric("macro F1", totals=_hits, of=_class_f1, class_axis=1, bounded=True),
    "auc": Metric("macro AUC", value=_auc, class_axis=1, bounded=True, weighs=True),
    "multilabel-micro-f1": Metric("multi-label micro F1", totals=_label_hits, of=_micro_f1, bounded=True),
    "multilabel-macro-f1": Metric("multi-label macro F1", totals=_label_hits, of=_class_f1, bounded=True),
    "average-precision": Metric(
        "mean average precision",
        value=_average_precision,
        bounded=True,
        weighs=True,
        fewest=5 * FEWEST,
        fewest_weighted=10 * FEWEST,
    ),
    "perplexity": Metric("perplexity", False, totals=_surprise, of=_perplexity, class_axis=-1),
    "token-error": Metric("token error rate", False, totals=_edits, of=_error_rate, class_axis=-1, bounded=True),
    "iou": Metric("mean IoU", totals=_overlap, of=_iou, class_axis=1, bounded=True),
    "mse": Metric("mean squared error", higher_is_better=False, per_sample=_squares, unbounded=True),
    "mae": Metric("mean absolute error", higher_is_better=False, per_sample=_distances, unbounded=True),
    "r2": Metric("R2", about=_spreads, of=_r2),
    "agreement": AGREEMENT,
    "cosine": Metric("cosine similarity to the dense network", per_sample=_cosine, label_free=True, unbounded=True),
    "binary-probability": Metric("binary accuracy of probabilities", per_sample=_binary_probability, yes_above=0.5),
    "multilabel-micro-f1-probability": Metric(
        "multi-label micro F1 of probabilities", totals=_label_hits_probability, of=_micro_f1, bounded=True
    ),
    "multilabel-macro-f1-probability": Metric(
        "multi-label macro F1 of probabilities", totals=_label_hits_probability, of=_class_f1, bounded=True
    ),
    "perplexity-probability": Metric(
        "perplexity of probabilities", False, totals=_surprise_probability, of=_perplexity, class_axis=-1
    ),
}
"""What a model file may name instead of defining metric(outputs, targets): metric = "perplexity"."""


OF_PROBABILITIES = "-probability"
"""What the names of metrics end in that take probabilities where another takes logits."""


def of_probabilities(metric: Metric) -> Metric | None:
    """The metric that takes probabilities where this one takes logits; None where it takes either, or neither.

    >>> of_probabilities(METRICS["binary"]).name, of_probabilities(METRICS["top-1"])
    ('binary accuracy of probabilities', None)
    """
    name = next((name for name, known in METRICS.items() if known is metric), "")
    return METRICS.get(f"{name}{OF_PROBABILITIES}")


def are_probabilities(metric: Metric, outputs: Tensor) -> bool:
    """Whether what a metric takes for logits are probabilities: within 0 and 1, or of classes that add up to one."""
    if metric.class_axis is not None:
        return are_shares(outputs, metric.class_axis)
    return bool(((outputs >= 0) & (outputs <= 1)).all())
