"""95 % intervals of means, proportions and paired proportions."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

Z95 = 1.959964


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations of numbers that come in parts (Chan, Golub & LeVeque 1983)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Tensor) -> None:
        """Take (N,) more numbers in."""
        variance, mean = torch.var_mean(values.double(), correction=0)
        n, delta = self.n + len(values), float(mean) - self.mean
        self.squares += float(variance) * len(values) + delta * delta * self.n * len(values) / n
        self.mean += delta * len(values) / n
        self.n = n

    def interval(self) -> tuple[float | None, float | None]:
        """95 % interval of the mean; None for a single value, which says nothing about its spread."""
        if self.n < 2:
            return None, None
        half = Z95 * sqrt(self.squares / (self.n - 1) / self.n)
        return self.mean - half, self.mean + half


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927).

    >>> tuple(round(x, 4) for x in wilson_interval(0.9, 100))
    (0.8256, 0.9448)
    """
    z2 = Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """95 % interval of first minus second, two proportions on the same samples (Newcombe 1998, method 10).

    Counts of samples: both right, only the first, only the second, neither.

    >>> tuple(round(x, 4) for x in newcombe_interval(36, 12, 2, 0))    # example of the paper: 20/1998, 0.2000
    (0.0569, 0.3404)
    """
    n = both + only_first + only_second + neither
    p1, p2 = (both + only_first) / n, (both + only_second) / n
    (l1, u1), (l2, u2) = wilson_interval(p1, n), wilson_interval(p2, n)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    product: float = both * neither - only_first * only_second
    if product > 0:
        product = max(product - n / 2, 0)
    phi = product / sqrt(margins) if margins else 0.0
    difference = p1 - p2

    def distance(a: float, b: float) -> float:
        return sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return difference - distance(p1 - l1, u2 - p2), difference + distance(u1 - p1, p2 - l2)
