"""Empirical variational Bayes matrix factorisation: how many singular values stand out of white noise.

The global analytic solution (Nakajima, Sugiyama, Babacan & Tomioka, JMLR 14, 2013): a singular value is kept where it
exceeds a threshold set by the noise variance, and the variance is the one of least free energy. Only singular values
are needed, so nothing is ever decomposed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log10

import torch
from torch import Tensor

from lowrank_core.algebra.linalg import factorize_matrices

GRID = 200
"""Noise variances that are tried at once: the free energy may have a local minimum for every rank."""

ZOOMS = 3
"""Times the neighbourhood of the best is tried again; each gives two more digits."""

ROUNDING = 1e-14
"""Squared singular values below this share of the largest are rounding errors; an exact rank has no other noise."""


@dataclass(frozen=True, slots=True)
class Evbmf:
    """What a matrix is made of: a part of `rank`, and white noise of `noise_variance` per entry."""

    rank: int
    noise_variance: float


def evbmf(matrix: Tensor) -> Evbmf:
    """The rank of a (rows, columns) matrix under noise of unknown variance; 0 where it is nothing but noise.

    >>> evbmf(torch.zeros(3, 5)).rank
    0
    """
    rows, columns = matrix.shape
    return evbmf_of(factorize_matrices(matrix[None]).singular_values[0], rows, columns)


def evbmf_of(singular_values: Tensor, rows: int, columns: int) -> Evbmf:
    """The rank by EVBMF from all min(rows, columns) singular values, descending, of a matrix of that shape."""
    short, long = min(rows, columns), max(rows, columns)
    energy = singular_values[:short].to(torch.float64).square()
    largest = float(energy[0])
    if largest == 0:
        return Evbmf(0, 0.0)
    energy = (energy / largest).clamp_min(ROUNDING)
    alpha = short / long
    edge = _edge(alpha)
    least = min(short, -int(-short // (1 + alpha))) - 1  # of the values that no estimate can take for signal
    low = max(float(energy[least]) / (long * edge), float(energy[least:].mean()) / long)
    high = max(low, float(energy.mean()) / long)
    variance = high
    for _ in range(ZOOMS):
        grid = torch.logspace(log10(low), log10(high), GRID, dtype=torch.float64)
        best = int(_free_energy(grid, energy, alpha, long, edge).argmin())
        variance = float(grid[best])
        low, high = float(grid[max(0, best - 1)]), float(grid[min(GRID - 1, best + 1)])
    return Evbmf(int((energy > long * variance * edge).sum()), variance * largest)


def _edge(alpha: float) -> float:
    """The threshold on a squared singular value over (long side * noise variance); alpha: short over long side.

    tau = 2.5129 sqrt(alpha) is the paper's close approximation of a root that has no closed form.
    """
    tau: float = 2.5129 * alpha**0.5
    return (1 + tau) * (1 + alpha / tau)


def _free_energy(variances: Tensor, energy: Tensor, alpha: float, long: int, edge: float) -> Tensor:
    """(v,) the free energy at each noise variance, but for constants."""
    x = energy / (long * variances[:, None])
    beyond = x - (1 + alpha)
    tau = 0.5 * (beyond + (beyond.square() - 4 * alpha).clamp_min(0).sqrt())
    signal = (tau.clamp_min(0) + 1).log() + alpha * (tau.clamp_min(0) / alpha + 1).log() - tau
    return (x - x.log() + torch.where(x > edge, signal, 0.0)).sum(1)
