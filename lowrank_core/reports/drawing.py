"""Pictures of a report as SVG: the page's own style sheet colours them, in light, in dark and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from lowrank_core.reports.findings import Confusion


@dataclass(frozen=True, slots=True)
class Mark:
    """A point with what it is and, where there is one, its interval. kind: a class of the style sheet."""

    x: float
    y: float
    says: str
    kind: str = "measured"
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """What one layer loses at its ranks, as shares of its largest; chosen: the ranks of the plans."""

    name: str
    points: tuple[tuple[float, float], ...]
    chosen: tuple[float, ...] = ()


WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers between two others, at most so many.

    >>> ticks(0, 1.05, 6), ticks(-7.3, 0.4, 5)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [-6.0, -4.0, -2.0, 0.0])
    """
    span = high - low or 1.0
    power = 10.0 ** floor(log10(span / most))
    step = next(power * one for one in (1, 2, 5, 10) if span / (power * one) <= most)
    return [round(step * at, 10) + 0.0 for at in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def scatter(
    line: Sequence[tuple[float, float]],
    band: Sequence[tuple[float, float, float]],
    marks: Sequence[Mark],
    *,
    x_title: str,
    y_title: str,
    alt: str,
) -> str:
    """Marks with their intervals over a line and its band, x from 0 in percent. band: (x, low, high)."""
    ends = [y for _, y in line] + [m.y for m in marks] + [e for m in marks for e in (m.low, m.high) if e is not None]
    ends += [mark.y for mark in marks]
    low, high = min(ends), max(ends)
    margin = 0.08 * (high - low) or 1.0
    low, high, right = low - margin, high + margin, max(1.05, *(mark.x * 1.05 for mark in marks))

    def at(x: float, y: float) -> tuple[float, float]:
        inside = min(max(y, low), high)
        down = TOP + (HEIGHT - TOP - BOTTOM) * (high - inside) / (high - low)
        return LEFT + (WIDTH - LEFT - RIGHT) * x / right, down

    parts = []
    for value in ticks(0, right):
        x, _ = at(value, low)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:.0%}</text>'
        )
    for value in ticks(low, high, 6):
        _, y = at(0, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shown = f"{value:g}".replace("-", "−")
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>')
    if band:
        edge = [at(x, top) for x, _, top in band] + [at(x, bottom) for x, bottom, _ in reversed(band)]
        parts.append(f'<polygon class="band" points="{_points(edge)}"/>')
    if line:
        parts.append(f'<polyline class="line" points="{_points([at(x, y) for x, y in line])}"/>')
    for mark in marks:
        x, y = at(mark.x, mark.y)
        kind = f"mark {mark.kind}"
        parts.append(f'<g class="{kind}"><title>{escape(mark.says)}</title>')
        if mark.low is not None and mark.high is not None:
            (_, top), (_, bottom) = at(mark.x, mark.high), at(mark.x, mark.low)
            parts.append(f'<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if mark.label else 4.5}"/>')
        if mark.label:
            before = x > WIDTH - 160
            anchor, beside = ("end", x - 12) if before else ("start", x + 12)
            parts.append(f'<text x="{beside:.1f}" y="{y - 10:.1f}" text-anchor="{anchor}">{escape(mark.label)}</text>')
        parts.append("</g>")
    middle = TOP + (HEIGHT - TOP - BOTTOM) / 2
    parts.append(f'<text class="title" x="{LEFT}" y="{HEIGHT - 6}">{escape(x_title)}</text>')
    turned = f'transform="rotate(-90 14 {middle:.0f})" text-anchor="middle"'
    parts.append(f'<text class="title" x="14" y="{middle:.0f}" {turned}>{escape(y_title)}</text>')
    return _svg(WIDTH, HEIGHT, "chart", alt, parts)


def curves(shown: Sequence[Curve], *, alt: str) -> str:
    """Small charts of losses on one logarithmic scale of four decades, ranks from 0 to each layer's largest."""
    largest = max((y for curve in shown for _, y in curve.points), default=1.0) or 1.0
    charts = "".join(_curve(curve, largest) for curve in shown)
    return f'<div class="curves" role="group" aria-label="{escape(alt)}">{charts}</div>'


def _curve(curve: Curve, largest: float, width: int = 150, height: int = 84) -> str:
    def at(x: float, y: float) -> tuple[float, float]:
        decades = min(4.0, max(0.0, log10(largest / y))) if y > 0 else 4.0
        return 3 + (width - 6) * x, 4 + (height - 8) * decades / 4

    parts = [
        f'<line class="grid" x1="3" x2="{width - 3}" y1="{y:.1f}" y2="{y:.1f}"/>'
        for y in (4 + (height - 8) * decade / 4 for decade in range(5))
    ]
    for chosen in curve.chosen:
        x, _ = at(chosen, largest)
        parts.append(f'<line class="chosen" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - 2}"/>')
    places = [at(x, y) for x, y in curve.points]
    parts.append(f'<polyline class="line" points="{_points(places)}"/>')
    parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in places]
    name = escape(curve.name)
    return f'<figure><figcaption title="{name}">{name}</figcaption>{_svg(width, height, "small", name, parts)}</figure>'


def confusion(found: Confusion, dense: Confusion | None) -> str:
    """Samples by class (down) and answer (across) as a table, with what has changed against the dense network's."""
    most = max((count for row in found.counts for count in row), default=1) or 1
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in found.shown)
    rows = []
    for at, (label, row) in enumerate(zip(found.shown, found.counts, strict=True)):
        cells = []
        for answer, count in enumerate(row):
            before = count if dense is None else dense.counts[at][answer]
            change = f"<small>{count - before:+d}</small>".replace("-", "−") if count != before else ""
            kind = "right" if at == answer else "wrong"
            strength = 0.08 + 0.62 * count / most if count else 0
            cells.append(f'<td class="{kind if count else "none"}" style="--s:{strength:.2f}">{count:,}{change}</td>')
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>')
    return (
        f'<table class="confusion"><thead><tr><td>class \\ answer</td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _svg(width: int, height: int, kind: str, alt: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}">'
        f"{''.join(parts)}</svg>"
    )
