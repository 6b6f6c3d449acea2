"""evaluate: the score of a compressed network, progressively and paired with the dense one on the same samples."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import inf, nan
from warnings import warn

import torch
from torch import Tensor, nn

from lowrank_core.errors import Cancelled, InvalidData
from lowrank_core.layers.data import Dataset, data_hash, run
from lowrank_core.running.scope import give_way
from lowrank_core.scoring.intervals import Moments, newcombe_interval, wilson_interval
from lowrank_core.scoring.metrics import Metric
from lowrank_core.scoring.verdict import is_within


@dataclass(frozen=True, slots=True)
class Score:
    """A figure with its uncertainty. Intervals are 95 %; `drop` is positive when the network got worse.

    low and high bound the value, drop_low and drop_high the paired drop; None where the metric allows no interval.
    within: whether the drop is at most the tolerance that was asked for; None while that is open.
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
    not_finite: int = 0


class Reference:
    """The evaluation samples in a seeded order, and the dense network's outputs on them, computed when first needed.

    Every leading part of the order is a fair subset, so scores can grow sample by sample. Threads may share it.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, metric: Metric, *, seed: int = 0, batch: int = 64) -> None:
        if len(dataset) == 0:
            raise InvalidData("the evaluation set is empty; eval_data() must return at least one sample.")
        self.model = model
        self.metric = metric
        self.batch = batch
        self.seed = seed
        self.dataset = dataset.shuffled(seed)
        self._lock = threading.Lock()
        self._outputs: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, samples: int | None = None) -> Iterator[tuple[Dataset, Tensor]]:
        """(samples, dense outputs) batch by batch, up to `samples`."""
        total = len(self) if samples is None else min(samples, len(self))
        for index, start in enumerate(range(0, total, self.batch)):
            part = self.dataset.pick(slice(start, min(start + self.batch, total)))
            yield part, self._dense(index)[: len(part)]

    @cached_property
    def hash(self) -> str:
        """'sha256:' over the samples in the order in which they are used."""
        return data_hash((self.dataset.inputs, self.dataset.targets))

    @property
    def complete(self) -> bool:
        """Whether the dense outputs of all samples are there."""
        return len(self._outputs) * self.batch >= len(self)

    def dense_score(self, samples: int | None = None) -> float:
        """The dense network's score on the leading samples."""
        outputs, targets = [], []
        for part, dense in self.batches(samples):
            outputs.append(dense)
            targets.append(dense if self.metric.label_free or part.targets is None else part.targets)
        return self.metric.score(torch.cat(outputs), torch.cat(targets))

    def dense_not_finite(self, samples: int | None = None) -> int:
        """On how many of the leading samples the dense network itself answers with NaN or infinity."""
        return sum(int(not_finite(dense, torch.zeros(())).sum()) for _, dense in self.batches(samples))

    def _dense(self, index: int) -> Tensor:
        with self._lock:
            while len(self._outputs) <= index:
                start = len(self._outputs) * self.batch
                self._outputs.append(run(self.model, self.dataset.pick(slice(start, start + self.batch))))
            return self._outputs[index]


def evaluate(
    model: nn.Module,
    reference: Reference,
    *,
    samples: int | None = None,
    cancelled: Callable[[], bool] | None = None,
    tolerance: float | None = None,
    forward: Callable[[Dataset, int], Tensor] | None = None,
) -> Iterator[Score]:
    """Yield the score on a growing number of samples; the last one is on all of `samples`.

    tolerance ends it as soon as the drop is clearly at most that, or clearly more: the last score's `within` says so
    (only for metrics that judge a sample right or wrong).
    forward(batch, number of its first sample) gives the outputs where not all of the model is to be run.

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
    return _scores(model, reference, samples, cancelled, tolerance, forward)


def _scores(
    model: nn.Module,
    reference: Reference,
    samples: int | None,
    cancelled: Callable[[], bool] | None,
    tolerance: float | None,
    forward: Callable[[Dataset, int], Tensor] | None,
) -> Iterator[Score]:
    metric = reference.metric
    ours: list[Tensor] = []
    dense: list[Tensor] = []
    targets: list[Tensor] = []
    total = len(reference) if samples is None else min(samples, len(reference))
    seen = due = 0
    pairs = _Pairs(metric)
    for part, dense_outputs in reference.batches(samples):
        give_way()
        if cancelled is not None and cancelled():
            raise Cancelled("the work was cancelled.")
        if model is reference.model:
            outputs = dense_outputs
        else:
            outputs = run(model, part) if forward is None else forward(part, seen)
        target = dense_outputs if metric.label_free or part.targets is None else part.targets
        seen += len(part)
        if broken := int(not_finite(outputs, dense_outputs).sum()):
            dense_value = reference.dense_score(seen)
            sides = (None, None, inf, None, None, None if tolerance is None else False)
            yield Score(metric.name, nan, dense_value, seen, metric.higher_is_better, *sides, broken)
            return
        if metric.per_sample is not None:
            with _judging(metric, outputs, target):
                pairs.add(metric.per_sample(outputs, target), metric.per_sample(dense_outputs, target))
            score = pairs.score(tolerance)
            yield score
            if score.within is not None:
                return
            continue
        with _judging(metric, outputs, target):
            ours.append(outputs if metric.totals is None else metric.totals(outputs, target))
            dense.append(dense_outputs if metric.totals is None else metric.totals(dense_outputs, target))
        targets.append(target)
        if seen >= due or seen == total:
            due = 2 * seen
            with _judging(metric, outputs, target):
                score = _whole(metric, torch.cat(ours), torch.cat(dense), torch.cat(targets))
            yield score


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


class _Pairs:
    """What is known of the samples so far, each judged for both networks."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.sign = metric, 1 if metric.higher_is_better else -1
        self.binary = True
        self.counts = [0, 0, 0, 0]  # neither is right, only ours, only dense, both
        self.ours, self.dense, self.drops = Moments(), Moments(), Moments()

    def add(self, ours: Tensor, dense: Tensor) -> None:
        """Take in (N,) more judgements of each network."""
        self.binary &= bool(((ours == 0) | (ours == 1)).all() and ((dense == 0) | (dense == 1)).all())
        if self.binary:
            counts = torch.bincount((ours + 2 * dense).long(), minlength=4).tolist()
            self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.ours.add(ours)
        self.dense.add(dense)
        self.drops.add(self.sign * (dense - ours))

    def score(self, tolerance: float | None) -> Score:
        """The score of the samples judged so far."""
        metric, n = self.metric, self.ours.n
        if not self.binary:
            value, base, intervals, within = self.ours.mean, self.dense.mean, self.ours.interval(), None
            drops = self.drops.interval()
        else:
            neither, only_ours, only_dense, both = self.counts
            value, base = (both + only_ours) / n, (both + only_dense) / n
            intervals = wilson_interval(value, n)
            worse, better = (only_dense, only_ours) if self.sign > 0 else (only_ours, only_dense)
            drops = newcombe_interval(both, worse, better, neither)
            within = None if tolerance is None else is_within(worse, better, both + neither, tolerance)
        drop = self.sign * (base - value)
        return Score(metric.name, value, base, n, metric.higher_is_better, *intervals, drop, *drops, within)


def _whole(metric: Metric, ours: Tensor, dense: Tensor, targets: Tensor, replicates: int = 200) -> Score:
    """A metric of all samples at once: its interval is a paired bootstrap (Efron 1979), seeded.

    ours and dense are outputs, or the totals of each sample where the metric has those.
    """

    def judge(given: Tensor, targets: Tensor) -> float:
        if metric.of is not None:
            return metric.of(given.sum(0))
        assert metric.value is not None
        return float(metric.value(given, targets))

    sign = 1 if metric.higher_is_better else -1
    n = len(ours)
    value, base = judge(ours, targets), judge(dense, targets)
    generator = torch.Generator().manual_seed(0)
    values, drops = [], []
    for _ in range(replicates if n > 1 else 0):
        index = torch.randint(n, (n,), generator=generator)
        resampled = judge(ours[index], targets[index])
        values.append(resampled)
        drops.append(sign * (judge(dense[index], targets[index]) - resampled))
    low, high = _middle(values)
    drop_low, drop_high = _middle(drops)
    drop = sign * (base - value)
    return Score(metric.name, value, base, n, metric.higher_is_better, low, high, drop, drop_low, drop_high)


def _middle(values: list[float]) -> tuple[float | None, float | None]:
    if not values or any(v != v for v in values):  # a resample without one of the classes may have no value
        return None, None
    low, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)
