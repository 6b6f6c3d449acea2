"""Verdict: is the drop within a tolerance? A test that may be looked at after every batch without losing its level."""

from __future__ import annotations

from math import exp, log, log1p

ERROR = 0.05
"""Chance of a false verdict, however often one looks."""

_STAKES = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def is_within(worse: int, better: int, same: int, tolerance: float, *, error: float = ERROR) -> bool | None:
    """Whether the mean drop is at most `tolerance`; None while that is open.

    Counts of samples that got worse, got better, stayed. Two gamblers bet on each sample's change d in {1, 0, -1}, one
    on more than the tolerance, one on less: a fair game multiplies a capital by 1 + stake * (d - tolerance), so a
    capital of 1 / error shows that the game is not fair (Waudby-Smith & Ramdas, JRSS B 2024; here a mixture of stakes).

    >>> is_within(worse=0, better=0, same=700, tolerance=0.01), is_within(0, 0, 50, 0.01), is_within(40, 2, 458, 0.01)
    (True, None, False)
    """
    if not -1 < tolerance < 1:
        return tolerance >= 1
    if _log_capital(worse, better, same, tolerance) >= -log(error):
        return False
    if _log_capital(better, worse, same, -tolerance) >= -log(error):
        return True
    return None


def _log_capital(up: int, down: int, same: int, mean: float) -> float:
    """Logarithm of the mean capital after betting on more than `mean`, over the stakes."""
    logs = []
    for stake in _STAKES:
        bet = stake / (1 + mean)
        logs.append(up * log1p(bet * (1 - mean)) + same * log1p(-bet * mean) + down * log1p(-bet * (1 + mean)))
    top = max(logs)
    return top + log(sum(exp(value - top) for value in logs) / len(logs))
