"""What a prediction is made of: changes of single layers, which add up like noise, and what noise does to a score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import exp, log

import torch
from torch import Tensor

from lowrank_core.algebra.linalg import tail_energy
from lowrank_core.layers.data import joined
from lowrank_core.layers.spec import Rank
from lowrank_core.plans.plan import RankPlan
from lowrank_core.scoring.scores import OutputScore, Reference, output_scores, worst

Curve = tuple[tuple[float, float], ...]
"""(log squared error, log mean squared change of the outputs), ascending in the error."""


LEAST_KEPT = 0.02


@dataclass(frozen=True, slots=True)
class NoiseTable:
    """Score of the dense outputs with Gaussian noise of a given variance added; linear in between log variances.

    rough: mean squared output change per unit of squared relative weight error, before anything is measured.
    """

    log_variance: tuple[float, ...]
    score: tuple[float, ...]
    rough: float


DROWNED = 1e4
"""What stands for a change, in variances of the outputs, that is none because answers are NaN or infinite: noise so
large that nothing is left of them, beyond the last row of every table."""


@dataclass(frozen=True, slots=True)
class Point:
    """What compressing one layer alone does to the network's outputs.

    error: closed-form squared relative error of the weight; change: mean squared change of the outputs.
    loss: the divergence of the predicted classes from the dense network's in nats, of other outputs the squared change
    relative to their variance. drop: of the metric, where the samples have labels.
    not_finite: samples whose answers hold NaN or infinity where the dense network's do not. Then there is no drop, and
    change and loss are DROWNED, which no prediction takes for good.
    """

    layer: str
    method: str
    rank: Rank
    error: float
    change: float
    loss: float = 0.0
    drop: float | None = None
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class Repair:
    """What later layers make good: of the change by one layer alone, `kept` is left when all later layers are refitted
    too. The larger the change, the larger the share that is made good.
    """

    layer: str
    change: float
    kept: float


@dataclass(frozen=True, slots=True)
class Joint:
    """A plan that was measured as a whole, in the numbers that it is predicted by, and what of the score it loses.

    changes: those of the layers in the context's order, less what later ones make good. doubt: see `Changes`.
    """

    changes: tuple[float, ...]
    doubt: float
    lost: float


@dataclass(frozen=True, slots=True)
class Context:
    """What single layers cannot tell of a whole plan: order of execution, repairs, and how much the sum is worth.

    scale: what the summed variance is multiplied by; measured on a few plans, see `fitted_scale`.
    joints: plans that were measured as a whole, from which the interval of a prediction comes; see `Residuals`.
    """

    order: tuple[str, ...] = ()
    repairs: tuple[Repair, ...] = ()
    scale: float = 1.0
    joints: tuple[Joint, ...] = ()


def closed_form_error(spectra: tuple[Tensor, ...], rank: Rank) -> float:
    """Squared relative error of a factorised weight, by the energy beyond the rank; that of two axes adds up (HOSVD).

    >>> closed_form_error((torch.tensor([2.0, 1.0, 1.0]),), (2,))   # 1 of 6
    0.1666...
    """
    return closed_form_errors(spectra, [rank])[0]


def closed_form_errors(spectra: tuple[Tensor, ...], ranks: Iterable[Rank]) -> list[float]:
    """`closed_form_error` at many ranks: the energies of a spectrum are added up once."""
    lost = [(tail / tail[0]).tolist() if tail[0] > 0 else [0.0] for tail in map(tail_energy, spectra)]
    return [min(1.0, sum(share[min(r, len(share) - 1)] for share, r in zip(lost, rank, strict=True))) for rank in ranks]


def curves(points: Iterable[Point]) -> dict[tuple[str, str], Curve]:
    """Curves of output change over weight error by (layer, method), which `predict` and the board interpolate."""
    changes: dict[tuple[str, str], dict[float, float]] = {}
    for point in points:
        if point.error > 0 and point.change > 0:
            changes.setdefault((point.layer, point.method), {})[log(point.error)] = log(point.change)
    return {key: tuple(sorted(curve.items())) for key, curve in changes.items()}


def change(error: float, curve: Curve, rough: float) -> float:
    """Mean squared change of the outputs at a squared error: log against log, proportional beyond the ends.

    Without a curve `rough` times the error. The board's script computes the same.
    """
    if error <= 0:
        return 0.0
    if not curve:
        return rough * error
    x, (first, last) = log(error), (curve[0], curve[-1])
    if x <= first[0]:
        return exp(first[1] + x - first[0])
    if x >= last[0]:
        return exp(last[1] + x - last[0])
    (x0, y0), (x1, y1) = next(pair for pair in pairwise(curve) if x <= pair[1][0])
    return exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def score_at(table: NoiseTable, variance: float) -> float:
    """The score under noise of a variance, from the table."""
    knots = tuple(zip(table.log_variance, table.score, strict=True))
    return between(knots, log(variance)) if variance > 0 else knots[0][1]


def kept_curves(repairs: Iterable[Repair]) -> dict[str, Curve]:
    """Curves (log change alone, log share that is kept of it) by layer, ascending; constant beyond the ends."""
    shares: dict[str, list[tuple[float, float]]] = {}
    for repair in repairs:
        if repair.change > 0:
            shares.setdefault(repair.layer, []).append(
                (log(repair.change), log(min(1.0, max(LEAST_KEPT, repair.kept))))
            )
    return {layer: tuple(sorted(curve)) for layer, curve in shares.items()}


@dataclass(frozen=True, slots=True)
class Changes:
    """What the layers of a plan change of the outputs, each by itself, less what later layers of the plan make good.

    doubt: how far off the logarithm of their sum may be because nothing was measured near: for each layer its share of
    the sum times DOUBT for every factor of e between its weight error and the nearest measured one, at most UNKNOWN.
    """

    each: tuple[float, ...]
    doubt: float

    @property
    def sum(self) -> float:
        """The variance of the noise that stands for the plan."""
        return sum(self.each)


DOUBT = 0.2
UNKNOWN = 2.0


def plan_changes(
    plan: RankPlan,
    measured_curves: Mapping[tuple[str, str], Curve],
    rough: float,
    spectra: Callable[[str, str], tuple[Tensor, ...]],
    context: Context,
) -> Changes:
    """The changes of the plan's layers in the order of the context, or of the plan where that knows none.

    The share that is kept holds where all later layers are in the plan; it is taken to the power of the share that is.
    """
    chosen, shares = dict(plan.choices), kept_curves(context.repairs)
    order = context.order or tuple(chosen)
    changes, doubts = [0.0] * len(order), [0.0] * len(order)
    for name, choice in plan.choices:
        error = closed_form_error(spectra(name, choice.method), choice.rank)
        curve = measured_curves.get((name, choice.method), ())
        alone, place = change(error, curve, rough), order.index(name)
        if alone > 0:
            doubts[place] = min([UNKNOWN, *(DOUBT * abs(log(error) - x) for x, _ in curve)])
            if name in shares:
                later = order[place + 1 :]
                share = sum(other in chosen for other in later) / max(1, len(later))
                alone *= exp(share * between(shares[name], log(alone)))
        changes[place] = alone
    total = sum(changes) or 1.0
    return Changes(tuple(changes), sum((c / total * d) ** 2 for c, d in zip(changes, doubts, strict=True)) ** 0.5)


def between(knots: Curve, x: float) -> float:
    """Linear interpolation at x between knots (x, y), constant beyond them."""
    if x <= knots[0][0]:
        return knots[0][1]
    for (x0, y0), (x1, y1) in pairwise(knots):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1
    return knots[-1][1]


def fitted_scale(table: NoiseTable, measured: Iterable[tuple[float, float]]) -> float:
    """The scale under which (variance, measured score) of a few plans agree best with the table.

    Least absolute difference over the plans that lose less than a twelfth of the table's range: what is worse is not
    predicted. 1 where there is nothing to fit.
    """
    limit = (table.score[0] - table.score[-1]) / 12
    sign = 1 if limit >= 0 else -1  # of a score that is better when lower

    def drop(score: float) -> float:
        return sign * (table.score[0] - score)

    pairs = [(variance, score) for variance, score in measured if drop(score) < abs(limit)]

    def disagreement(step: int) -> tuple[float, int]:
        scale = exp(0.02 * step)
        return sum(abs(min(abs(limit), drop(score_at(table, scale * v))) - drop(s)) for v, s in pairs), abs(step)

    return exp(0.02 * min(range(-100, 101), key=disagreement)) if pairs else 1.0


NOISE_OUTPUTS = 2**19
"""Numbers at most that noise is added to: of large outputs only those of the leading samples."""


def noise_table(reference: Reference, samples: int = 1024, *, seed: int = 0, draws: int = 4) -> NoiseTable:
    """Tabulate score against output noise on the leading `samples` (the noise model: no calibration, one forward pass).

    The same noise, scaled, serves every row of the table, so that the score falls smoothly; what noise wins by chance
    is left out. Of several outputs each gets noise in proportion to its own variance, in units of the first one's, and
    the score is that of the output that drops most. Where outputs are large (a number for every word after every word)
    fewer samples take part, and the rows are shifted to the score of all.
    """
    metric, total = reference.metric, min(samples, len(reference))
    numbers = sum(values.numel() for _, dense in reference.batches(1) for values in dense.values())
    fewer = min(total, max(1, NOISE_OUTPUTS // max(1, numbers)))
    outputs = joined(dense for _, dense in reference.batches(fewer))
    taken = reference.dataset.pick(slice(0, fewer))
    labels, weights = taken.targets, taken.weights
    base = output_scores(metric, outputs, outputs, labels, weights)
    shifts = dict.fromkeys(outputs, 0.0)
    if fewer < total:
        of_all = reference.dense_scores(total)
        shifts = {score.name: of_all[score.name] - score.value for score in base}
    scales = {name: float(v.float().var()) if v.numel() > 1 else 1.0 for name, v in outputs.items()}
    unit = next(iter(scales.values()))
    generator = torch.Generator().manual_seed(seed)
    noise = {name: [torch.randn(v.shape, generator=generator) for _ in range(draws)] for name, v in outputs.items()}
    variances = [unit * 10 ** (-5 + 0.125 * step) for step in range(57)]
    rows = []
    for variance in variances:
        noisy = []
        for dense in base:
            values = outputs[dense.name]
            deviation = (variance * (scales[dense.name] / unit if unit else 1.0)) ** 0.5
            targets = metric.targets_of(values, labels)
            drawn = [metric.score(values + deviation * sample, targets, weights) for sample in noise[dense.name]]
            score = sum(drawn) / len(drawn)
            drop = dense.value - score if metric.higher_is_better else score - dense.value
            noisy.append(OutputScore(dense.name, score, drop))
        lowest = worst(noisy)
        rows.append(shifts[lowest.name] + lowest.value)
    logs = torch.tensor(variances, dtype=torch.float64).log().tolist()
    worse = min if metric.higher_is_better else max
    return NoiseTable(tuple(logs), tuple(accumulate(rows, worse)), unit)
