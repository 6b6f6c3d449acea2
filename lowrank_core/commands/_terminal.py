"""What the command line says: lines of progress, and figures for people to read."""

from __future__ import annotations

import sys
import time

import click

from lowrank_core.plans.cost import Cost, plan_cost
from lowrank_core.running.progress import Progress
from lowrank_core.scoring.metrics import METRICS
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace

SHARES = {metric.name for metric in METRICS.values() if metric.share}
"""Metrics that are read in percent."""


class ProgressLine:
    """Hears reports: a line that is written over itself in a terminal, elsewhere one every few seconds."""

    def __init__(self) -> None:
        self._last = -5.0

    def __call__(self, progress: Progress) -> None:
        text, live = progress.words, sys.stderr.isatty()
        if progress.seconds_left is not None:
            text = f"{text}, about {duration(progress.seconds_left)} left"
        if live or time.monotonic() - self._last > 5:
            self._last = time.monotonic()
            say(f"\r{text:<78}" if live else text, newline=not live)


def say_step(progress: Progress) -> None:
    """Hears reports: each step on a line of its own."""
    say(f"{progress.words} ...")


def say(line: str, *, newline: bool = True) -> None:
    """A message or progress, which never mixes with the answer."""
    click.echo(line, err=True, nl=newline)


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Aligned columns; a column of figures is set flush right."""
    lines = [titles, *rows] if titles else rows
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
    right = [all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows) for i in range(len(widths))]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def amount(count: float) -> str:
    """'40.55 M'; counts below 10,000 are written out."""
    if count < 10_000:
        return f"{count:,.0f}"
    for unit in ("k", "M", "G"):
        count /= 1000
        if count < 1000:
            return f"{count:.4g} {unit}"
    return f"{count / 1000:.4g} T"


def size(count: float) -> str:
    """'1.07 MB', decimal units."""
    return f"{amount(count)}B" if count >= 10_000 else f"{count:,.0f} B"


def duration(seconds: float) -> str:
    """'45 s', '23 min', '2.5 h'."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def figures(cost: Cost) -> list[str]:
    """Parameters, bytes and multiplies for people."""
    return [f"{cost.parameters:,}", size(cost.bytes), amount(cost.multiplies)]


def rank_text(rank: tuple[int, ...]) -> str:
    return "x".join(map(str, rank)) if all(rank) else "none"


def share_text(workspace: Workspace, cost: Cost) -> str:
    dense = plan_cost(workspace.profile)
    multiplies, stored = cost.multiplies / max(1, dense.multiplies), cost.bytes / max(1, dense.bytes)
    return f"{multiplies:.1%} of the multiplies, {stored:.1%} of the bytes"


def score_value(score: Score, value: float) -> str:
    return f"{value:.2%}" if score.metric in SHARES else f"{value:.6g}"


def score_line(score: Score, *, alone: bool) -> str:
    """The score in a sentence, with its 95 % interval."""
    samples = f" on {score.samples:,} samples" if score.samples else ""
    if alone:
        bounds = "" if score.low is None or score.high is None else _between(score, score.low, score.high)
        return f"{score.metric} {score_value(score, score.value)}{bounds}{samples}"
    bounds = (
        "" if score.drop_low is None or score.drop_high is None else _between(score, score.drop_low, score.drop_high)
    )
    return (
        f"{score.metric} {score_value(score, score.value)}{samples}; dense {score_value(score, score.dense)}; "
        f"drop {score_value(score, score.drop)}{bounds}, paired"
    )


def _between(score: Score, low: float, high: float) -> str:
    return f" (95 % interval {score_value(score, low)} to {score_value(score, high)})"
