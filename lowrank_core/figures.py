"""Figures as people read them, in the terminal and on the pages: one form each. 1 kB is 1000 bytes."""

from __future__ import annotations


def count(value: float, unit: str = "") -> str:
    """Four digits and a prefix: 40.55 M, 1.079 MB.

    >>> count(40_551_040), count(1_078_888, "B"), count(999_999), count(12)
    ('40.55 M', '1.079 MB', '1.000 M', '12')
    """
    four = float(f"{value:.4g}")
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        scaled = four / size
        if abs(scaled) >= 1:
            digits = 3 - (abs(scaled) >= 10) - (abs(scaled) >= 100)
            return f"{scaled:.{digits}f} {prefix}{unit}"
    return f"{value:g} {unit}".strip()


def share(value: float) -> str:
    """A share as a percentage of three digits.

    >>> share(0.12345), share(1)
    ('12.3 %', '100 %')
    """
    return f"{100 * value:.3g} %"


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(4.2), duration(200), duration(8000)
    ('4 s', '3 min 20 s', '2 h 13 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def score_text(value: float, *, percent: bool) -> str:
    """A score in its own unit: as a percentage where it is a share of samples.

    >>> score_text(0.97119, percent=True), score_text(21.0449, percent=False)
    ('97.12 %', '21.04')
    """
    return f"{100 * value:.2f} %" if percent else f"{value:.4g}"


def drop_text(value: float, *, percent: bool) -> str:
    """What a score has lost, in percentage points where it is a percentage.

    >>> drop_text(0.00753, percent=True), drop_text(-0.00753, percent=False)
    ('0.753 points', '-0.00753')
    """
    return f"{100 * value:.3g} points" if percent else f"{value:.3g}"
