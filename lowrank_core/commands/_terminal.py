"""What the command line says: lines of progress, and figures for people to read."""

from __future__ import annotations

import sys
import time

import click

from lowrank_core.commands import printable
from lowrank_core.figures import count, drop_text, duration, how_many, score_text, share
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
            text = f"{text}, about {duration(max(1, progress.seconds_left))} left"
        if live or time.monotonic() - self._last > 5:
            self._last = time.monotonic()
            say(f"\r{text:<78}" if live else text, newline=not live)

    def wipe(self) -> None:
        """Leave nothing of a line that was written over itself."""
        if self._last > 0 and sys.stderr.isatty():
            say(f"\r{'':<78}\r", newline=False)


def say_step(progress: Progress) -> None:
    """Hears reports: each step on a line of its own."""
    say(f"{progress.words} ...")


def say(line: str, *, newline: bool = True) -> None:
    """A message or progress, which never mixes with the answer."""
    click.echo(printable(line), err=True, nl=newline)


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Aligned columns; a column of figures is set flush right."""
    lines = [titles, *rows] if titles else rows
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
    right = [all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows) for i in range(len(widths))]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def cost_columns(cost: Cost) -> list[str]:
    """Parameters, bytes and multiplies for people."""
    return [f"{cost.parameters:,}", count(cost.bytes, "B"), count(cost.multiplies)]


def rank_text(rank: tuple[int, ...]) -> str:
    """Ranks in one word, such as 16x8."""
    return "x".join(map(str, rank)) if all(rank) else "none"


def share_text(workspace: Workspace, cost: Cost) -> str:
    """What a cost is of the dense network's, in words."""
    dense = plan_cost(workspace.profile)
    multiplies, stored = share(cost.multiplies / max(1, dense.multiplies)), share(cost.bytes / max(1, dense.bytes))
    return f"{multiplies} of the multiplies, {stored} of the bytes"


def score_value(score: Score, value: float) -> str:
    """A value of the score in its own unit."""
    return score_text(value, percent=score.metric in SHARES)


def drop_value(score: Score, value: float) -> str:
    """A drop of the score in its own unit."""
    return drop_text(value, percent=score.metric in SHARES)


def score_line(score: Score, *, alone: bool) -> str:
    """The score in a sentence, with its 95 % interval."""
    samples = f" on {how_many(score.samples, 'sample')}" if score.samples else ""
    samples += f" of {how_many(score.documents, 'document')}" if score.documents else ""
    if score.not_finite:
        return f"{score.metric}: answers with NaN or infinity on {score.not_finite:,} of {score.samples:,} samples"
    if alone:
        bounds = f" ({score.why_none})" if score.samples and score.low is None else ""
        if score.low is not None and score.high is not None:
            bounds = _between(score_value(score, score.low), score_value(score, score.high))
        return f"{score.metric} {score_value(score, score.value)}{bounds}{samples}"
    bounds = f" ({score.why_none})" if score.too_few else ""
    if score.drop_low is not None and score.drop_high is not None:
        bounds = _between(drop_value(score, score.drop_low), drop_value(score, score.drop_high))
    each = ""
    if len(score.outputs) > 1:
        drops = ", ".join(f"{output.name} {drop_value(score, output.drop)}" for output in score.outputs)
        each = f"; the worst of the outputs, which drop: {drops}"
    return (
        f"{score.metric} {score_value(score, score.value)}{samples}; dense {score_value(score, score.dense)}; "
        f"drop {drop_value(score, score.drop)}{bounds}, paired{each}"
    )


def _between(low: str, high: str) -> str:
    return f" (95 % interval {low} to {high})"
