"""Numbers that describe a singular value spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_core.algebra.linalg import tail_energy

STEP, FLAT = 1.5, 3.0
"""A spectrum bends where the next singular value is so many times smaller, and at most so many times the median of
those from there on: what is left is noise."""

BENT_BY, BENT_ENERGY, ENERGY = 0.8, 1 / 3, 0.9
"""The bend lies within this share of the ranks and keeps so much energy; a spectrum without one keeps the last."""


def cumulative_energy(singular_values: Tensor) -> Tensor:
    """(k,) share of the squared sum held by the leading 1, 2, ..., k singular values.

    >>> cumulative_energy(torch.tensor([2.0, 1.0, 0.0])).tolist()
    [0.8, 1.0, 1.0]
    """
    tail = tail_energy(singular_values)
    if tail[0] == 0:
        return torch.ones_like(tail[1:])
    return 1 - tail[1:] / tail[0]


def rank_for_energy(singular_values: Tensor, keep: float) -> int:
    """Smallest rank whose leading singular values hold `keep` of the squared sum; at least 1.

    singular_values: (k,), descending.

    >>> rank_for_energy(torch.tensor([3.0, 2.0, 1.0]), keep=0.9)   # 9 + 4 of 14
    2
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], but got keep={keep}.")
    enough = cumulative_energy(singular_values) >= keep - 1e-12
    return int(enough.to(torch.int8).argmax()) + 1


def bend(singular_values: Tensor) -> int:
    """The rank that a spectrum suggests: where it falls to the noise, or what keeps 90 % of a smooth one's energy.

    It falls to the noise in one step, not among the last ranks, behind which the rest is flat (`STEP`, `FLAT`): one
    large singular value before a smooth slope is no such place. singular_values: (k,), descending.

    >>> bend(torch.tensor([3.0, 2.5, 2.2, 0.7, 0.6, 0.6, 0.5, 0.5]))
    3
    >>> bend(torch.arange(20.0, 0.0, -1.0))   # 400 + ... + 100 of 2870
    11
    """
    sigma = singular_values.to(torch.float64)
    kept = cumulative_energy(sigma)
    steps = sigma[:-1] / sigma[1:].clamp_min(1e-12 * float(sigma[0]) + 1e-300)
    steps = steps.masked_fill(kept[:-1] < BENT_ENERGY, 0.0)[: int(BENT_BY * len(sigma))]
    place = int(steps.argmax()) + 1 if len(steps) else 0
    if place and steps[place - 1] >= STEP and sigma[place] <= FLAT * sigma[place:].median():
        return place
    return rank_for_energy(sigma, ENERGY)


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of sigma / sum(sigma) (Roy & Vetterli, EUSIPCO 2007): k for a flat spectrum, 1 for rank one.

    >>> round(effective_rank(torch.ones(8)), 6)
    8.0
    """
    sigma = singular_values.to(torch.float64)
    total = sigma.sum()
    if total == 0:
        return 0.0
    share = sigma[sigma > 0] / total
    return float(torch.exp(-(share * share.log()).sum()))


def stable_rank(singular_values: Tensor) -> float:
    """Squared Frobenius norm over squared spectral norm: never above the rank, and steady under small noise.

    >>> stable_rank(torch.tensor([2.0, 2.0, 0.0]))
    2.0
    """
    sigma = singular_values.to(torch.float64)
    if len(sigma) == 0 or sigma[0] == 0:
        return 0.0
    return float(sigma.square().sum() / sigma[0].square())
