"""95 % intervals of proportions, of paired proportions, and of any figure that can be had without some samples."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

Z95 = 1.959964

FEWEST = 30
"""Samples from which on a figure that is no count of right and wrong ones has an interval (`benchmarks.coverage`)."""

GROUPS = 64
"""Into so many the samples are dealt out for `jackknife_interval`: more make it little narrower."""

FEWEST_CHANGED = 5
"""Of fewer samples that move a figure of unknown scale at all, the others are not known to stay where they are."""


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927).

    >>> tuple(round(x, 4) for x in wilson_interval(0.9, 100))
    (0.8256, 0.9448)
    """
    z2 = Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(worse: int, better: int, same: int) -> tuple[float, float]:
    """95 % interval of the mean drop where samples got worse by one, got better, stayed (Bonett & Price 2012).

    The usual interval after one imagined sample more that got worse and one that got better. It covers at least 93 %
    however few samples change; methods that judge by the shares of right answers or by a score test (Newcombe 1998,
    Tango 1998, Agresti & Min 2005) come down to 86 to 93 % where a few are expected to (`benchmarks.coverage`).

    >>> tuple(round(x, 4) for x in paired_interval(worse=26, better=4, same=18))    # 0.2548, 0.6252: statpsych of R
    (0.2548, 0.6252)
    """
    n = worse + better + same + 2
    up, down = (worse + 1) / n, (better + 1) / n
    half = Z95 * sqrt((up + down - (up - down) ** 2) / n)
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t for ten or more degrees of freedom (Abramowitz & Stegun 1964, 26.7.5).

    >>> round(t_quantile(29), 4), round(t_quantile(63), 4)
    (2.0452, 1.9983)
    """
    z = Z95
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def jackknife_interval(
    figure: Tensor, without: Tensor, sizes: Tensor, samples: Tensor | float, *, bounded: bool
) -> tuple[Tensor, Tensor]:
    """95 % interval of figures (...), given what they are without each of G groups of samples, (..., G).

    sizes (..., G): samples in each group, or the sum of their weights; samples: how many there are, of weighted ones
    the effective number. bounded: of n samples one moves the figure by about 1 / n at most.

    The standard error is that of the jackknife, from the pseudo-values of groups of unequal size (Busing, Meijer & van
    der Leeden 1999), with two imagined samples more, as in `paired_interval`, one on each side: a point away where
    bounded, else half as far as the furthest group. The interval is Student's, and reaches as far as the one that takes
    skewness into account where that reaches further (Hall 1992, the cubic transformation). NaN where a figure is not
    finite or, if not bounded, fewer than five groups move it.
    """
    figure = figure.unsqueeze(-1)
    share = sizes / sizes.sum(-1, keepdim=True)
    pseudo = (figure - (1 - share) * without) / share
    pull = share * (pseudo - (share * pseudo).sum(-1, keepdim=True))  # of each group on the figure
    variance = (pull.square() / (1 - share)).sum(-1)
    spread = pull.square().sum(-1)
    groups = without.shape[-1]
    skewness = pull.pow(3).sum(-1) / spread.pow(1.5) * sqrt(groups * (groups - 1)) / (groups - 2)
    error = variance.sqrt()
    t = t_quantile(groups - 1)
    if bounded:
        wider = (variance + 2 / torch.as_tensor(samples, dtype=torch.float64).square()).sqrt()
    else:
        wider = (variance + pull.abs().amax(-1).square() / 2).sqrt()
        moved = (pseudo - pseudo.median(-1, keepdim=True).values).abs()
        few = (moved > 0.05 * moved.amax(-1, keepdim=True)).sum(-1) < FEWEST_CHANGED
        wider = wider.masked_fill(few, float("nan"))
    figure, skewed = figure.squeeze(-1), [error * _skewed(side * t, skewness) for side in (1, -1)]
    low, high = torch.fmin(figure - t * wider, figure - skewed[0]), torch.fmax(figure + t * wider, figure - skewed[1])
    return low + 0 * wider, high + 0 * wider  # fmin and fmax pass over what is not a number


def _skewed(t: float, skewness: Tensor) -> Tensor:
    """Where the studentised mean of skewed numbers has the quantile that t is of symmetric ones (Hall 1992)."""
    a = skewness / 3
    cube = 1 + 3 * a * (t - skewness / 6)
    root = cube.sign() * cube.abs().pow(1 / 3)
    return torch.where(a.abs() < 1e-9, t, (root - 1) / a)
