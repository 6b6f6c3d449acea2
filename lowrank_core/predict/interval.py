"""Interval: the predicted score of any plan, and how far it may be off, from plans of this network that were measured.

The noise model gives a plan's log variance. How far that is from what was measured is a Gaussian process over plans:
the same for all of them, more or less by the layers that take part and by how much, and each plan's own with those next
to it (Rasmussen and Williams 2006, chapter 2). The constants were chosen on the built-in networks and ResNet-20; how
wide the interval is comes from this network's own plans, each left out in turn (5.4.2 there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from math import exp

import torch
from torch import Tensor

from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.prediction import DOUBT, UNKNOWN, Changes, Context, Curve, Joint, NoiseTable, plan_changes

COVERED = 0.9
"""Share of plans whose scores lie in their intervals."""

COMMON, SLOPE, SHARES, SIMILAR = 0.7, 0.3, 1.0, 2.0
"""What residuals have in common, as standard deviations of a log variance: all of them; in proportion to the log
variance; by the layers' shares in it; plans of similar severities."""

FAR, NEAR = 5.0, 0.3
"""Distances between severities at which plans are no more similar, and no more nearly one and the same."""

OWNS = (0.1, 0.2, 0.35, 0.6)
"""What a plan may have of its own, as standard deviation; which of them is chosen by the plans left out."""

SLIGHT = 0.05
"""Share of the variance at which much is lost, from which on the change of a layer counts in a distance."""

GRAIN, GRAIN_OF_LOSS = 0.03, 0.05
"""How uncertain a score is whatever its variance: a share of what counts as much, and a share of what is lost."""

USUAL_REACH, USUAL_PLANS, ENOUGH = 2.0, 6, 48
"""Standard deviations that cover, before plans are measured; how many measured ones that weighs as much as at first;
and after how many it weighs nothing."""

USUAL_SHARES = (0.1, 0.25, 0.4, 0.55, 0.8, 1.2)
"""Of these standard deviations, what a few plans need."""

BEYOND = 3.0
"""How far beyond the table a log variance counts."""

CONSTANTS = {
    "common": COMMON,
    "slope": SLOPE,
    "shares": SHARES,
    "similar": SIMILAR,
    "far": FAR,
    "near": NEAR,
    "slight": SLIGHT,
    "beyond": BEYOND,
    "grain_of_loss": GRAIN_OF_LOSS,
    "doubt": DOUBT,
    "unknown": UNKNOWN,
}
"""What the board's script computes with, too."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The score that a plan is predicted to have; of COVERED of all plans it lies between low and high."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Residuals:
    """What measured plans say of all others, in numbers that the board's script takes as they are.

    scale: of the summed variance. centre: the log variance at which `much` is lost. most: what is lost BEYOND the
    table, where measured plans may lose more than noise does. own: what a plan has of its own. reach: standard
    deviations that cover. offset: what is lost where nothing changes; grain: and by how much it varies.
    logs, noise (N,), severities, shares (N, layers): of the measured plans. weights (N,), inverse (N, N): the process.
    """

    scale: float
    centre: float
    much: float
    most: float
    own: float = OWNS[2]
    reach: float = USUAL_REACH
    offset: float = 0.0
    grain: float = 0.0
    logs: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    severities: tuple[tuple[float, ...], ...] = ()
    shares: tuple[tuple[float, ...], ...] = ()
    weights: tuple[float, ...] = ()
    inverse: tuple[tuple[float, ...], ...] = ()


def predict(
    plan: RankPlan,
    measured_curves: Mapping[tuple[str, str], Curve],
    table: NoiseTable,
    spectra: Callable[[str, str], tuple[Tensor, ...]],
    context: Context | None = None,
) -> Prediction:
    """The score that a plan will have, without running it, with its interval.

    measured_curves: `curves(points)`; spectra(layer, method): the singular values of a factorisation.
    """
    context = context or Context()
    changes = plan_changes(plan, measured_curves, table.rough, spectra, context)
    return predicted(changes, table, residuals(context, table))


def predicted(changes: Changes, table: NoiseTable, known: Residuals) -> Prediction:
    """The score of a plan with these changes of its layers; the dense one's where nothing changes."""
    if changes.sum <= 0:
        return Prediction(table.score[0], table.score[0], table.score[0])
    plan = _plans([Joint(changes.each, changes.doubt, 0.0)], table, known)
    mean, variance = plan.log, _kernel(plan, plan, known).diagonal() + plan.doubt.square()
    if known.weights:
        kernel = _kernel(plan, _measured(known), known)
        mean = mean + kernel @ _numbers(known.weights)
        variance = variance - (kernel @ _numbers(known.inverse) * kernel).sum(1)
    middle, low, high = _lost(mean, variance.clamp_min(0).sqrt(), table, known)
    ends = sorted(table.score[0] - _sign(table) * float(end) for end in (low, high))
    return Prediction(table.score[0] - _sign(table) * float(middle), *ends)


@lru_cache(maxsize=64)
def residuals(context: Context, table: NoiseTable) -> Residuals:
    """What the plans of a context say of all others; without any, what is usual."""
    limit, most = much(table), _most(table)
    known = Residuals(context.scale, 0.0, limit, most, grain=GRAIN * limit)
    known = replace(known, centre=float(_inverted(_numbers([limit]), table, known)[0]))
    joints = [joint for joint in context.joints if sum(joint.changes) > 0]
    if not joints:
        return known
    lost, plans = _losses(joints), _plans(joints, table, known)
    known = replace(known, most=max(most, *lost.tolist()))
    known = _with_offset(known, _left_out(_fitted(known, plans, lost, table), plans)[0], lost, table)
    fits = [_fitted(replace(known, own=own), plans, lost, table) for own in OWNS]
    judged = min((_judged(fit, plans, lost, table) for fit in fits), key=lambda judged: judged[0])[1]
    return _with_grain(judged, plans, lost, table)


def with_measured(known: Residuals, joints: Sequence[Joint], table: NoiseTable) -> Residuals:
    """What these plans say of all others, with what else is known as it is.

    For plans that a person has measured, beside those of the context: they lie close together, so that how well they
    tell of each other says little of how wide an interval must be.
    """
    joints = [joint for joint in joints if sum(joint.changes) > 0]
    if not joints:
        return known
    lost = _losses(joints)
    known = replace(known, most=max(known.most, *lost.tolist()))
    return _fitted(known, _plans(joints, table, known), lost, table)


def _losses(joints: Sequence[Joint]) -> Tensor:
    return _numbers([joint.lost for joint in joints])


def _with_offset(known: Residuals, logs: Tensor, lost: Tensor, table: NoiseTable) -> Residuals:
    """With the mean loss of plans that are predicted to lose next to nothing, and how much it varies."""
    light = lost[(_at(logs, table, known) < SLIGHT * known.much) & (lost.abs() < known.much / 2)]
    offset = float(light.sum()) / (len(light) + 2)
    squares = float((light - offset).square().sum()) + USUAL_PLANS * known.grain**2
    return replace(known, offset=offset, grain=(squares / (len(light) + USUAL_PLANS)) ** 0.5)


def _fitted(known: Residuals, plans: _Plans, lost: Tensor, table: NoiseTable) -> Residuals:
    """The process through these plans.

    A measured loss is a log variance give or take what the loss itself is uncertain by: much, where the table is flat.
    """
    grain = _grain(lost.clamp_min(0), known)
    bare = lost - known.offset * _fade(lost, known)
    at, below, above = (_inverted(bare + step * grain, table, known) for step in (0, -1, 1))
    noise = ((above - below) / 2).square() + plans.doubt.square() + 1e-4
    inverse = torch.linalg.inv(_kernel(plans, plans, known) + noise.diag())
    return replace(
        known,
        logs=tuple(plans.log.tolist()),
        severities=tuple(map(tuple, plans.severity.tolist())),
        shares=tuple(map(tuple, plans.share.tolist())),
        noise=tuple(noise.tolist()),
        weights=tuple((inverse @ (at - plans.log)).tolist()),
        inverse=tuple(map(tuple, inverse.tolist())),
    )


def _left_out(known: Residuals, plans: _Plans) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of the log variance of each measured plan, by all the others."""
    weights, precision, noise = _numbers(known.weights), _numbers(known.inverse).diagonal(), _numbers(known.noise)
    kernel = _kernel(plans, plans, known)
    at = plans.log + kernel @ weights + noise * weights  # what was measured: (kernel + noise) @ weights is the residual
    return at - weights / precision, (1 / precision - noise + plans.doubt.square()).clamp_min(1e-6).sqrt()


def _judged(known: Residuals, plans: _Plans, lost: Tensor, table: NoiseTable) -> tuple[float, Residuals]:
    """The mean interval score (Gneiting and Raftery 2007, 6.2) of plans left out, by its root; and with the reach."""
    mean, deviation = _left_out(known, plans)
    known = replace(known, reach=_covering(_needed(mean, deviation, lost, table, known)))
    _, low, high = _lost(mean, deviation, table, known)
    missed = (low - lost).clamp_min(0) + (lost - high).clamp_min(0)
    return (high - low + 2 / (1 - COVERED) * missed).sqrt().mean().item(), known


def _with_grain(known: Residuals, plans: _Plans, lost: Tensor, table: NoiseTable) -> Residuals:
    """With a grain by which as many are covered of the plans that are predicted to lose next to nothing as of all.

    And as many of all as should be, where none of REACHES covers them, as of losses that no variance tells apart.
    """
    mean, deviation = _left_out(known, plans)
    needed = _needed(mean, deviation, lost, table, known)[_at(mean, table, known) < SLIGHT * known.much]
    reach = _covering(needed, known.reach / USUAL_SHARES[-1])
    known = replace(known, grain=known.grain * max(1.0, reach / known.reach))
    if known.reach < REACHES[-1]:
        return known
    middle, low, high = _lost(mean, deviation, table, replace(known, grain=0.0))
    beyond = (lost - middle).square() - torch.where(lost > middle, high - middle, middle - low).square()
    needed = beyond.clamp_min(0).sqrt() / known.reach
    return replace(known, grain=max(known.grain, _covering(needed, known.grain)))


def _needed(mean: Tensor, deviation: Tensor, lost: Tensor, table: NoiseTable, known: Residuals) -> Tensor:
    """Of each plan left out the standard deviations that reach what it loses."""
    needed = torch.full_like(lost, REACHES[-1])
    for reach in reversed(REACHES):
        _, low, high = _lost(mean, deviation, table, replace(known, reach=reach))
        needed[(low <= lost) & (lost <= high)] = reach
    return needed


def _covering(needed: Tensor, usual: float = USUAL_REACH) -> float:
    """Standard deviations that cover, by what plans left out need and, while they are few, by what is usual."""
    weight = max(0.0, 1 - len(needed) / ENOUGH)
    ranked = sorted([(need, 1.0) for need in needed.tolist()] + [(usual * share, weight) for share in USUAL_SHARES])
    enough = COVERED * (len(needed) + weight * len(USUAL_SHARES) + 1) - 1e-9
    counted = accumulate(weight for _, weight in ranked)
    return float(next((r for (r, _), count in zip(ranked, counted, strict=True) if count >= enough), ranked[-1][0]))


REACHES = tuple(0.05 * step for step in range(1, 121))
"""Standard deviations that are tried."""


def _lost(mean: Tensor, deviation: Tensor, table: NoiseTable, known: Residuals) -> tuple[Tensor, Tensor, Tensor]:
    """(middle, low, high) of what is lost at these log variances: through the table, and by its own grain."""
    middle = _at(mean, table, known)
    low, high = (_at(mean + step * known.reach * deviation, table, known) for step in (-1, 1))
    grain, shift = known.reach * _grain(middle, known), known.offset * _fade(middle, known)
    below, above = ((middle - end).square().add(grain.square()).sqrt() for end in (low, high))
    return middle + shift, middle - below + shift, middle + above + shift


def _grain(lost: Tensor, known: Residuals) -> Tensor:
    return known.grain + GRAIN_OF_LOSS * lost


def _fade(lost: Tensor, known: Residuals) -> Tensor:
    """How much of the offset is left: all where nothing is lost, none where all is."""
    return (1 - lost / known.most).clamp(0, 1) if known.most > 0 else torch.ones_like(lost)


# ---- plans as the process sees them ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plans:
    """log (N,): of the scaled variances; severity, share (N, layers); doubt (N,)."""

    log: Tensor
    severity: Tensor
    share: Tensor
    doubt: Tensor


def _plans(joints: Sequence[Joint], table: NoiseTable, known: Residuals) -> _Plans:
    changes = known.scale * _numbers([joint.changes for joint in joints])
    total = changes.sum(1)
    logs = total.log().clamp(table.log_variance[0], table.log_variance[-1] + BEYOND)
    severity = (changes / (SLIGHT * exp(known.centre))).log1p()
    return _Plans(logs, severity, changes / total[:, None], _numbers([joint.doubt for joint in joints]))


def _measured(known: Residuals) -> _Plans:
    severity, share = _numbers(known.severities), _numbers(known.shares)
    return _Plans(_numbers(known.logs), severity, share, torch.zeros(len(known.logs)))


def _kernel(one: _Plans, other: _Plans, known: Residuals) -> Tensor:
    """What the residuals of each two plans have in common."""
    apart = torch.cdist(one.severity, other.severity, compute_mode="donot_use_mm_for_euclid_dist")
    slopes = torch.outer(one.log - known.centre, other.log - known.centre)
    common = COMMON**2 + SLOPE**2 * slopes + SHARES**2 * (one.share @ other.share.T)
    return common + SIMILAR**2 * _matern(apart / FAR) + known.own**2 * _matern(apart / NEAR)


def _matern(distance: Tensor) -> Tensor:
    """Of smoothness 3/2 (Rasmussen and Williams 2006, 4.17)."""
    return (1 + 3**0.5 * distance) * (-(3**0.5) * distance).exp()


# ---- the table ------------------------------------------------------------------------------------------------------


def _sign(table: NoiseTable) -> int:
    return 1 if table.score[-1] <= table.score[0] else -1


def much(table: NoiseTable) -> float:
    """What counts as much lost: 10 points of a share, else a tenth of the dense score."""
    dense, most = table.score[0], _most(table)
    return 0.1 if _sign(table) == 1 and 0 < dense <= 1 else abs(dense) / 10 or most / 12 or 1.0


def _at(logs: Tensor, table: NoiseTable, known: Residuals) -> Tensor:
    """What is lost at these log variances."""
    knots, drops = _knots(table, known)
    return _between(knots, drops, logs)


def _inverted(lost: Tensor, table: NoiseTable, known: Residuals) -> Tensor:
    """The log variances at which so much is lost; the ends beyond it."""
    knots, drops = _knots(table, known)
    rising = drops + torch.arange(len(drops)) * (1e-9 * known.much)
    return _between(rising, knots, lost)


def _knots(table: NoiseTable, known: Residuals) -> tuple[Tensor, Tensor]:
    drops = _sign(table) * (table.score[0] - _numbers(table.score))
    logs = _numbers([*table.log_variance, table.log_variance[-1] + BEYOND])
    return logs, torch.cat([drops, _numbers([known.most])])


def _most(table: NoiseTable) -> float:
    return abs(table.score[0] - table.score[-1])


def _between(knots: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """Linear interpolation, constant beyond the ends."""
    x = x.clamp(float(knots[0]), float(knots[-1]))
    right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    left = right - 1
    apart = (knots[right] - knots[left]).clamp_min(1e-300)
    return values[left] + (values[right] - values[left]) * ((x - knots[left]) / apart)


def _numbers(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
