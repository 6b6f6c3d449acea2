"""Figures as people read them, in the terminal and on the pages: one form each. 1 kB is 1000 bytes."""

from __future__ import annotations

from math import ceil, floor


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


def how_many(number: int, singular: str, plural: str = "") -> str:
    """A number and what is counted.

    >>> how_many(1, "sample"), how_many(5_000, "sample"), how_many(0, "branch", "branches")
    ('1 sample', '5,000 samples', '0 branches')
    """
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
"""In bytes, as the makers of devices count."""


def _binary(value: float, unit: int, way: int) -> str:
    """So many units, with two digits behind the point, fewer where it is large; rounded down (-1) or up (1)."""
    scaled = value / unit
    ten = 100 if scaled < 100 else 10 if scaled < 1000 else 1
    whole = ceil(scaled * ten) if way > 0 else floor(scaled * ten)
    text = f"{whole / ten:,.2f}"
    return text.rstrip("0").rstrip(".")


def _unit(most: float) -> tuple[int, str]:
    return (KIB, "KiB") if most < 16 * MIB else (MIB, "MiB") if most < 16 * GIB else (GIB, "GiB")


def kib(value: float) -> str:
    """Bytes beside those of a device: KiB of 1024 bytes, MiB and GiB from 16 of them; rounded up, never down.

    >>> kib(53_500), kib(65_537), kib(16 << 20)
    ('52.25 KiB', '64.01 KiB', '16 MiB')
    """
    unit, name = _unit(value)
    return f"{_binary(value, unit, 1)} {name}"


def of_device(need: float, most: float) -> str:
    """What is needed of what a device has: what is over is seen to be over.

    >>> of_device(53_500, 64 << 10), of_device(65_537, 64 << 10), of_device(4096, 20 << 10)
    ('52.25 of 64 KiB', '64.01 of 64 KiB', '4 of 20 KiB')
    """
    unit, name = _unit(most)
    return f"{_binary(need, unit, 1)} of {_binary(most, unit, -1)} {name}"


def times_fewer(now: float, dense: float, things: str) -> str:
    """How many times fewer (or more) than the dense network's.

    >>> times_fewer(50, 100, "multiplies"), times_fewer(3, 100, "multiplies"), times_fewer(110, 100, "multiplies")
    ('2.0x fewer multiplies', '33x fewer multiplies', '1.1x more multiplies')
    """
    if now == dense:
        return f"as many {things} as dense"
    if not now or not dense:
        return f"{'more' if now else 'no'} {things}"
    ratio = dense / now if now < dense else now / dense
    text = f"{ratio:.{0 if ratio >= 9.95 else 1 if ratio >= 1.05 else 2}f}"
    if text == "1.00":
        return f"about as many {things} as dense"
    return f"{text}x {'fewer' if now < dense else 'more'} {things}"


def of_floor(value: float, worst: float, *, percent: bool, rises: bool) -> str:
    """A score beside the worst that is allowed, with as many digits as show which is better.

    rises: whether a larger score is worse.

    >>> of_floor(0.9862, 0.98, percent=True, rises=False), of_floor(0.97996, 0.98, percent=True, rises=False)
    ('98.62 of at least 98 %', '97.996 of at least 98 %')
    >>> of_floor(21.0449, 22.5, percent=False, rises=True)
    '21.04 of at most 22.5'
    """
    scale, unit = (100, " %") if percent else (1, "")
    value, limit = scale * value, scale * worst
    form = "f" if percent else "g"
    side = (value > limit) - (value < limit)
    texts = (f"{value:.{digits}{form}}" for digits in range(2 if percent else 4, 10))
    text = next((text for text in texts if (float(text) > limit) - (float(text) < limit) == side), "")
    return f"{text or value} of at {'most' if rises else 'least'} {limit:.6g}{unit}"


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

    >>> drop_text(0.00753, percent=True), drop_text(0.01, percent=True), drop_text(-0.00753, percent=False)
    ('0.753 points', '1 point', '-0.00753')
    """
    figure = f"{100 * value if percent else value:.3g}"
    return f"{figure} point{'' if figure == '1' else 's'}" if percent else figure
