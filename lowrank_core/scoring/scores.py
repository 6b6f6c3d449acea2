"""evaluate: the score of a compressed network, progressively and paired with the dense one on the same samples."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isfinite, isnan, nan
from typing import TypeVar
from warnings import warn

import torch
from torch import Tensor, nn

from lowrank_core.errors import Cancelled, InvalidData, LowRankError
from lowrank_core.figures import how_many
from lowrank_core.layers.data import Dataset, Outputs, run
from lowrank_core.networks.footprint import with_pass_bytes
from lowrank_core.networks.twin import twin
from lowrank_core.running.scope import give_way
from lowrank_core.scoring.intervals import FEWEST, GROUPS, jackknife_interval, paired_interval, wilson_interval
from lowrank_core.scoring.judging import Names, judge
from lowrank_core.scoring.metrics import Metric, weighted
from lowrank_core.scoring.verdict import is_within
from lowrank_core.store.room import Room


@dataclass(frozen=True, slots=True)
class OutputScore:
    """The figure of one output of the network, and how much worse it is than the dense network's."""

    name: str
    value: float
    drop: float


@dataclass(frozen=True, slots=True)
class Score:
    """A figure with its uncertainty. Intervals are 95 %; `drop` is positive when the network got worse.

    low and high bound the value, drop_low and drop_high the paired drop; None where the samples are too few for that.
    within: whether the drop is at most the tolerance that was asked for; None while that is open.
    outputs: the figure of each output that is judged; of several all the others are those of the one that drops most.
    documents: that the samples are parts of, over which the intervals are; 0 where samples stand alone.
    not_finite: samples whose answers hold NaN or infinity where the dense network's do not. Then there is no value, the
    drop is infinite, and no rule accepts the network.
    """

    metric: str
    value: float
    dense: float
    samples: int
    higher_is_better: bool
    low: float | None
    high: float | None
    drop: float
    drop_low: float | None
    drop_high: float | None
    within: bool | None = None
    outputs: tuple[OutputScore, ...] = ()
    not_finite: int = 0
    documents: int = 0

    @property
    def why_none(self) -> str:
        """Why there is no interval where there is none, in words."""
        if 0 < self.documents < FEWEST:
            return f"{how_many(self.documents, 'document')}: too few for an interval, which takes {FEWEST}"
        return "too few samples that differ for an interval"

    @property
    def too_few(self) -> bool:
        """Whether there are samples, but too few of them for an interval of the drop."""
        return self.samples > 0 and self.drop_low is None and not self.not_finite


BATCH = 64
"""Samples that are run at once, at most."""

OUTPUT_BYTES = 2**26
"""What the outputs of samples that are run at once may take: a language model gives 26 MB for 128 tokens."""

PASS_BYTES = 2**28
"""What a forward pass of samples that are run at once may take, beside the network and what they are scored by."""


class Reference:
    """The evaluation samples in a seeded order, and the dense network's outputs on them, computed when first needed.

    Every leading part of the order is a fair subset, so scores can grow sample by sample. Threads may share it.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        metric: Metric,
        *,
        outputs: Sequence[str] = (),
        seed: int = 0,
        batch: int | None = None,
        room: Room | None = None,
    ) -> None:
        """outputs: names of those that are judged; without any the only one, or those that `judge` finds.

        batch: samples that are run at once; without it at most BATCH, and so few that their outputs fit OUTPUT_BYTES,
        and a pass PASS_BYTES.
        room: where dense outputs are kept, in a quarter of it; those of later samples that do not fit are computed anew
        whenever they are needed.
        """
        if len(dataset) == 0:
            raise InvalidData("the evaluation set is empty; eval_data() must return at least one sample.")
        if dataset.weights is not None and metric.judges and not metric.takes_weights:
            raise InvalidData(metric.without_weights)
        self.model = model
        self.metric = metric
        self.seed = seed
        self.dataset = dataset.shuffled(seed)
        self._named = tuple(outputs)
        self._lock = threading.Lock()
        room = room or Room()
        self._kept = room.part(room.limit_bytes // 4)
        self._run: set[int] = set()
        if batch is not None:
            self.batch = batch

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def outputs(self) -> Names:
        """Names of the outputs that are judged."""
        if not self._named:
            with self._lock:
                first = self._first
                self._named = tuple(first) if len(first) == 1 else judge(self.model, self.dataset, self.metric).names
        return self._named

    @property
    def _first(self) -> Outputs:
        return self._looked[0]

    @cached_property
    def _looked(self) -> tuple[Outputs, int]:
        """(outputs, bytes of the pass) of two samples: some networks squeeze the batch away where there is one."""
        copied = twin(self.model)
        return with_pass_bytes(copied, lambda: run(copied, self.dataset.pick(slice(0, 2))))

    @cached_property
    def output_bytes(self) -> int:
        """What the outputs of one sample take, of all that the network answers."""
        return sum(values.nbytes for values in self._first.values()) // min(2, len(self))

    @cached_property
    def batch(self) -> int:
        """Samples that are run at once."""
        each = max(1, self._looked[1] // min(2, len(self)))
        return max(1, min(BATCH, OUTPUT_BYTES // max(1, self.output_bytes), PASS_BYTES // each))

    def batches(self, samples: int | None = None) -> Iterator[tuple[Dataset, Outputs]]:
        """(samples, dense outputs that are judged) batch by batch, up to `samples`."""
        total = len(self) if samples is None else min(samples, len(self))
        for index, start in enumerate(range(0, total, self.batch)):
            part = self.dataset.pick(slice(start, min(start + self.batch, total)))
            yield part, {name: values[: len(part)] for name, values in self._dense(index).items()}

    @cached_property
    def hash(self) -> str:
        """'sha256:' over the samples in the order in which they are used."""
        return self.dataset.hash

    @property
    def complete(self) -> bool:
        """Whether the dense network has been run on all samples."""
        return len(self._run) * self.batch >= len(self)

    def dense_score(self, samples: int | None = None) -> float:
        """The dense network's score on the leading samples; of several outputs that of the first."""
        return next(iter(self.dense_scores(samples).values()))

    def dense_scores(self, samples: int | None = None) -> dict[str, float]:
        """The dense network's score of each output on the leading samples, batch by batch."""
        tallies = {name: _Tally(self.metric) for name in self.outputs}
        seen = 0
        for part, dense in self.batches(samples):
            seen += len(part)
            for name, tally in tallies.items():
                target = self.metric.targets_of(dense[name], part.targets)
                tally.add(dense[name], dense[name], target, part.weights, part.documents)
        scores = {name: tally.dense() for name, tally in tallies.items()}
        for value in scores.values():
            if not isfinite(value):
                raise InvalidData(no_number(self.metric, value, self.dataset.pick(slice(0, seen))))
        return scores

    def dense_not_finite(self, samples: int | None = None) -> int:
        """On how many of the leading samples the dense network itself answers with NaN or infinity."""
        nothing = torch.zeros(())
        return sum(
            int(torch.stack([not_finite(values, nothing) for values in dense.values()]).any(0).sum())
            for _, dense in self.batches(samples)
        )

    def _dense(self, index: int) -> Outputs:
        names = self.outputs
        with self._lock:
            outputs: Outputs | None = self._kept.get(index)
            if outputs is None:
                start = index * self.batch
                outputs = run(self.model, self.dataset.pick(slice(start, start + self.batch)), names)
                outputs = {name: _of_its_own(values) for name, values in outputs.items()}
                size = sum(values.nbytes for values in outputs.values())
                if self._kept.bytes + size <= self._kept.limit_bytes:  # of batches in turn the oldest is needed next
                    self._kept.put(index, outputs, size)
                self._run.add(index)
            return outputs


def _of_its_own(values: Tensor) -> Tensor:
    """The values in memory that holds nothing else: the last token's answers hold those of all tokens alive."""
    return values if values.untyped_storage().nbytes() == values.nbytes else values.clone()


def output_scores(
    metric: Metric, outputs: Outputs, dense: Outputs, targets: Tensor | None, weights: Tensor | None = None
) -> tuple[OutputScore, ...]:
    """The figure of each output on some samples taken together; weights (N,): how much each of them counts."""
    scores = []
    for name, values in outputs.items():
        judged = metric.targets_of(dense[name], targets)
        with _judging(metric, values, judged):
            value, base = (metric.score(each, judged, weights) for each in (values, dense[name]))
        scores.append(OutputScore(name, value, base - value if metric.higher_is_better else value - base))
    return tuple(scores)


AnyScore = TypeVar("AnyScore", Score, OutputScore)


def worst(scores: Iterable[AnyScore]) -> AnyScore:
    """The one that drops most, the first of equals; what is no number is worse than any."""
    return max(scores, key=lambda score: (isnan(score.drop), score.drop))


def evaluate(
    model: nn.Module,
    reference: Reference,
    *,
    samples: int | None = None,
    cancelled: Callable[[], bool] | None = None,
    tolerance: float | None = None,
    forward: Callable[[Dataset, int], Outputs] | None = None,
    each: Callable[[Dataset, Outputs, Outputs], None] | None = None,
) -> Iterator[Score]:
    """Yield the score on a growing number of samples; the last one is on all of `samples`.

    tolerance ends it as soon as the drop is clearly at most that, or clearly more: the last score's `within` says so
    (only for metrics that judge a sample right or wrong).
    forward(batch, number of its first sample) gives the outputs where not all of the model is to be run.
    each(batch, outputs, dense outputs) sees what is judged, batch by batch, before it is.

    A metric by sample is given after every batch, another each time the number of samples has doubled. Where answers
    are not finite it ends at once, with a score that says so.
    Between two batches it gives way and raises Cancelled (`running.scope`). Raises InvalidData where the metric
    fails. cancelled: deprecated, `with scope(cancelled=...)` around the work does it.
    """
    if cancelled is not None:
        warn(
            "evaluate(cancelled=...) goes with the next version; put `with lowrank_core.running.scope.scope("
            "cancelled=...)` around the work.",
            DeprecationWarning,
            stacklevel=2,
        )
    return _scores(model, reference, samples, cancelled, tolerance, forward, each)


def _scores(
    model: nn.Module,
    reference: Reference,
    samples: int | None,
    cancelled: Callable[[], bool] | None,
    tolerance: float | None,
    forward: Callable[[Dataset, int], Outputs] | None,
    each: Callable[[Dataset, Outputs, Outputs], None] | None,
) -> Iterator[Score]:
    metric = reference.metric
    tallies = {name: _Tally(metric) for name in reference.outputs}
    total = len(reference) if samples is None else min(samples, len(reference))
    seen = due = 0
    for part, dense in reference.batches(samples):
        give_way()
        if cancelled is not None and cancelled():
            raise Cancelled("the work was cancelled.")
        if model is reference.model:
            outputs = dense
        else:
            outputs = run(model, part, reference.outputs) if forward is None else forward(part, seen)
        seen += len(part)
        if each is not None:
            each(part, outputs, dense)
        broken = torch.stack([not_finite(outputs[name], dense[name]) for name in tallies]).any(0)
        if broken.any():
            dense_value = reference.dense_score(seen)
            sides = (None, None, inf, None, None, None if tolerance is None else False)
            figures = tuple(
                OutputScore(name, nan, inf) for name in tallies if not_finite(outputs[name], dense[name]).any()
            )
            count = int(broken.sum())
            yield Score(metric.name, nan, dense_value, seen, metric.higher_is_better, *sides, figures, count)
            return
        for name, tally in tallies.items():
            target = metric.targets_of(dense[name], part.targets)
            tally.add(outputs[name], dense[name], target, part.weights, part.documents)
        if metric.per_sample is not None or seen >= due or seen == total:
            due = 2 * seen
            score = _of_all({name: tally.score(tolerance) for name, tally in tallies.items()})
            if isfinite(score.value) and isfinite(score.drop):
                yield score
            elif seen == total:
                worse = score.dense if isfinite(score.value) else score.value
                raise InvalidData(no_number(metric, worse, reference.dataset.pick(slice(0, total))))
            if score.within is not None:
                return


def no_number(metric: Metric, value: float, data: Dataset) -> str:
    """What to say where a metric is NaN or infinite on some samples: with what, and why that may be."""
    targets, labels = data.targets, ""
    if targets is not None and not metric.label_free and len(data) > 1 and bool((targets == targets[:1]).all()):
        labels = f", whose labels are all alike ({targets.reshape(-1)[0].item():g})"
    samples = "one sample" if len(data) == 1 else how_many(len(data), "sample")
    if bad := data.not_finite():
        labels += f", of which {len(bad):,} hold NaN or infinity"
    what = "not a number" if isnan(value) else "infinite"
    return (
        f"the metric {metric.name!r} is {what} on {samples}{labels}: it has no value there, or the network's "
        "outputs are not finite. Give samples on which it has one, or name another metric."
    )


def _of_all(scores: dict[str, Score]) -> Score:
    """The score of the output that drops most, with the figures of all; within the drop where all of them are."""
    verdicts = {score.within for score in scores.values()}
    within = False if False in verdicts else None if None in verdicts else True
    figures = tuple(OutputScore(name, score.value, score.drop) for name, score in scores.items())
    return replace(worst(scores.values()), within=within, outputs=figures)


class _Tally:
    """What is known of one output so far, for both networks on the same samples."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._pairs = _Pairs(metric)
        self._judge: Callable[[Tensor, Tensor], Tensor] | None = None
        self._kept: list[tuple[Tensor, ...]] = []  # ours, dense, targets, weights, where all are judged at once
        self._within: bool | None = None

    def add(
        self, ours: Tensor, dense: Tensor, target: Tensor, weights: Tensor | None, documents: Tensor | None
    ) -> None:
        """Take in a batch more, how much each sample counts, and of which document it is a part."""
        with _judging(self.metric, ours, target):
            self._judge = self._judge or self.metric.by_sample(target[:1])
            if self._judge is not None:
                self._pairs.add(self._judge(ours, target), self._judge(dense, target), weights, documents)
                return
        self._kept.append((ours, dense, target) if weights is None else (ours, dense, target, weights))

    def dense(self) -> float:
        """The dense network's figure so far."""
        if not self._kept:
            return self._pairs.dense()
        _, dense, *rest = map(torch.cat, zip(*self._kept, strict=True))
        with _judging(self.metric, dense, rest[0]):
            return self.metric.score(dense, *rest)

    def score(self, tolerance: float | None) -> Score:
        """The score so far; a verdict that has fallen stands."""
        if self._kept:
            with _judging(self.metric, self._kept[-1][0], self._kept[-1][2]):
                return _whole(self.metric, *map(torch.cat, zip(*self._kept, strict=True)))
        score = self._pairs.score(tolerance)
        self._within = score.within if self._within is None else self._within
        return replace(score, within=self._within)


def not_finite(outputs: Tensor, dense: Tensor) -> Tensor:
    """(N,) whether an answer holds NaN or infinity where the dense network's has something else.

    >>> not_finite(torch.tensor([[1.0], [torch.nan]]), torch.tensor([[1.0], [2.0]])).tolist()
    [False, True]
    """
    if outputs.shape != dense.shape:
        return ~outputs.isfinite().reshape(len(outputs), -1).all(1)
    return (~outputs.isfinite() & dense.isfinite()).reshape(len(outputs), -1).any(1)


@contextmanager
def _judging(metric: Metric, outputs: Tensor, targets: Tensor) -> Iterator[None]:
    try:
        yield
    except LowRankError:
        raise
    except Exception as error:
        raise InvalidData(
            f"the metric {metric.name!r} failed with {type(error).__name__}: {' '.join(str(error).split())}; "
            f"it was given outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}."
        ) from error


def final_score(scores: Iterator[Score]) -> Score:
    """The last score of a progressive evaluation; raises InvalidData where there was none."""
    last = None
    for last in scores:  # noqa: B007 - the last one is the answer
        pass
    if last is None:
        raise InvalidData("there was nothing to evaluate; samples must be at least 1.")
    return last


def paired_score(metric: Metric, ours: Tensor, dense: Tensor, documents: Tensor) -> Score:
    """The score of samples judged elsewhere: what the metric tells of each, (N,) or (N, k), for each network.

    documents: (N,), the number of the document that each is a part of.
    """
    pairs = _Pairs(metric)
    pairs.add(ours, dense, documents=documents)
    return pairs.score(None)


class _Pairs:
    """What is known of the samples so far, each judged for both networks: by a number, or by several that add up."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.sign = metric, 1 if metric.higher_is_better else -1
        self.binary = metric.share
        self.bounded = metric.bounded or metric.share
        self.samples = self.counted = 0  # all, and those with a weight: a group of others could not be left out
        self.counts = [0, 0, 0, 0]  # neither is right, only ours, only dense, both
        self.sums: Tensor | None = None  # (groups, 2, k): what ours and dense add up to in each group
        self.sizes, self.squares = torch.zeros(GROUPS, dtype=torch.float64), 0.0  # weights, and squares of all
        self.documents: dict[int, int] = {}  # the place of each in the order in which they are met

    def add(self, ours: Tensor, dense: Tensor, weights: Tensor | None = None, documents: Tensor | None = None) -> None:
        """Take in (N,) more judgements of each network, or (N, k), and how much each sample counts.

        documents: (N,), samples of one of which go into one group: they are alike, and so no samples of their own.
        """
        both = torch.stack([ours, dense], dim=1).double()
        self.binary &= weights is None and documents is None and bool(((both == 0) | (both == 1)).all())
        self.bounded &= self.metric.bounded or bool(((both >= 0) & (both <= 1)).all())
        if self.binary:
            counts = torch.bincount((ours + 2 * dense).long(), minlength=4).tolist()
            self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.samples += len(ours)
        weights = torch.ones(len(ours), dtype=torch.float64) if weights is None else weights.double()
        some = weights > 0
        both, weights = both[some], weights[some]
        group = (self.counted + torch.arange(len(both))) % GROUPS
        if documents is not None:
            met = self.documents
            group = torch.tensor([met.setdefault(int(n), len(met)) for n in documents[some]]).long() % GROUPS
        self.counted += len(both)
        numbers = weighted(both.flatten(2) if both.ndim > 2 else both.unsqueeze(2), weights)
        if self.sums is None:
            self.sums = numbers.new_zeros(GROUPS, *numbers.shape[1:])
        self.sums.index_add_(0, group, numbers)
        self.sizes.index_add_(0, group, weights)
        self.squares += float(weights.square().sum())

    def dense(self) -> float:
        """The dense network's figure alone."""
        if self.binary:
            return sum(self.counts[2:]) / self.samples
        if not self.counted:
            return nan
        assert self.sums is not None
        return float(self._figures(self.sums.sum(0, keepdim=True), self.sizes.sum(0, keepdim=True))[1])

    def score(self, tolerance: float | None) -> Score:
        """The score of the samples judged so far."""
        metric, n = self.metric, self.samples
        if not self.binary:
            return self._of_groups() if self.counted else _of_nothing(metric, n)
        neither, only_ours, only_dense, both = self.counts
        value, base = (both + only_ours) / n, (both + only_dense) / n
        worse, better = (only_dense, only_ours) if self.sign > 0 else (only_ours, only_dense)
        drops = paired_interval(worse, better, both + neither)
        within = None if tolerance is None else is_within(worse, better, both + neither, tolerance)
        drop = self.sign * (base - value)
        return Score(
            metric.name, value, base, n, metric.higher_is_better, *wilson_interval(value, n), drop, *drops, within
        )

    def _of_groups(self) -> Score:
        assert self.sums is not None
        groups = min(len(self.documents) or self.counted, GROUPS)
        sums, sizes = self.sums[:groups], self.sizes[:groups]
        sums, sizes = torch.cat([sums.sum(0, keepdim=True), sums]), torch.cat([sizes.sum(0, keepdim=True), sizes])
        sums[1:], sizes[1:] = sums[0] - sums[1:], sizes[0] - sizes[1:]  # of all samples, then without each group
        ours, dense = self._figures(sums, sizes)
        if self.documents:
            count = len(self.documents)
            each = torch.bincount(torch.arange(count) % GROUPS).double()
            return replace(
                _jackknifed(self.metric, count, ours, dense, each, count, bounded=self.bounded),
                samples=self.samples,
                documents=count,
            )
        effective = float(sizes[0].square()) / self.squares
        sizes = sizes[0] - sizes[1:]
        return _jackknifed(self.metric, self.samples, ours, dense, sizes, effective, bounded=self.bounded)

    def _figures(self, sums: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """What sums (m, 2, k) over samples that count for sizes (m,) in all come to, (m,) of each network."""
        if self.metric.of is None:
            ours, dense = (sums[:, :, 0] / sizes.unsqueeze(1)).unbind(1)
        else:
            figures = [[self.metric.of(row) for row in each] for each in sums.unbind(1)]
            ours, dense = torch.tensor(figures, dtype=torch.float64)
        return ours, dense


def _of_nothing(metric: Metric, samples: int) -> Score:
    """Where no sample counts yet there is no figure."""
    return Score(metric.name, nan, nan, samples, metric.higher_is_better, None, None, nan, None, None)


def _whole(metric: Metric, ours: Tensor, dense: Tensor, targets: Tensor, weights: Tensor | None = None) -> Score:
    """A metric that judges the outputs of all samples at once: once for all of them, and without each group."""
    n = len(ours)
    if weights is not None and not (weights > 0).all():
        some = weights > 0
        if not some.any():
            return _of_nothing(metric, n)
        return replace(_whole(metric, ours[some], dense[some], targets[some], weights[some]), samples=n)
    group = torch.arange(n) % GROUPS
    groups = min(n, GROUPS) if n >= metric.fewest else 0
    parts = [torch.ones(n, dtype=torch.bool), *(group != number for number in range(groups))]

    def judge(outputs: Tensor) -> Tensor:
        figures = [
            metric.at_once(outputs[part], targets[part], None if weights is None else weights[part]) for part in parts
        ]
        return torch.tensor(figures, dtype=torch.float64)

    counts = torch.ones(n, dtype=torch.float64) if weights is None else weights.double()
    sizes = torch.bincount(group, counts, minlength=groups)[:groups]
    effective = float(counts.sum().square() / counts.square().sum())
    return _jackknifed(metric, n, judge(ours), judge(dense), sizes, effective, bounded=metric.bounded)


def _jackknifed(
    metric: Metric, samples: int, ours: Tensor, dense: Tensor, sizes: Tensor, effective: float, *, bounded: bool
) -> Score:
    """A score from figures of each network: of all samples first, then without each of the groups."""
    drops = (dense - ours) * (1 if metric.higher_is_better else -1)

    def interval(figures: Tensor, least: float) -> tuple[float | None, float | None]:
        if effective < (metric.fewest if effective == samples else metric.fewest_weighted):
            return None, None
        ends = jackknife_interval(figures[0], figures[1:], sizes, effective, bounded=bounded)
        if any(map(isnan, ends)):
            return None, None
        low, high = map(float, ends)
        return (max(low, least), min(high, max(1.0, float(figures[0])))) if bounded else (low, high)

    value, base, drop = float(ours[0]), float(dense[0]), float(drops[0])
    ends = interval(ours, 0.0), interval(drops, -1.0)
    return Score(metric.name, value, base, samples, metric.higher_is_better, *ends[0], drop, *ends[1])
