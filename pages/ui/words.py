"""Figures and terms as people read them, said in one place."""

from __future__ import annotations

from lowrank_core.evaluate import Score
from lowrank_core.workspace import Workspace

RANK = "The width of the thin middle of a factorised layer: a smaller rank is cheaper and less exact."
BREAK_EVEN = "The largest rank that is still cheaper than the dense layer; above it, factorising costs more than it saves."
MULTIPLIES = (
    "Multiplications for one sample in convolutions and matrix products; bias additions and activations are not counted."
)
BYTES = "Parameters times their element size, tied tensors once; buffers and file headers are not counted."
INTERVAL = (
    "95 % interval of the difference to the dense network, paired on the same samples: with chance alone, the true "
    "difference would lie inside 19 times out of 20."
)


def count(value: float, unit: str = "") -> str:
    """Four digits and a prefix: 40.55 M, 1.079 MB.

    >>> count(40_551_040), count(1_078_888, "B"), count(12)
    ('40.55 M', '1.079 MB', '12')
    """
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            scaled = value / size
            digits = 3 - (scaled >= 10) - (scaled >= 100)
            return f"{scaled:.{digits}f} {prefix}{unit}"
    return f"{value:g} {unit}".strip()


def shares(workspace: Workspace) -> bool:
    """Whether the score is a share of samples, shown in percent."""
    return workspace.opened.evaluate is None and workspace.metric.per_sample is not None


def metric(workspace: Workspace) -> str:
    """Name of the score."""
    return "Score" if workspace.opened.evaluate is not None else workspace.metric.name.capitalize()


def score(workspace: Workspace, value: float) -> str:
    """A score in its own unit."""
    return f"{100 * value:.2f} %" if shares(workspace) else f"{value:.4g}"


def verdict(workspace: Workspace, found: Score) -> str:
    """A measured score with its paired interval, as one line."""
    points = 100 if shares(workspace) else 1
    line = f"{score(workspace, found.value)} on {found.samples:,} samples, {-points * found.drop:+.2f} against dense"
    if found.drop_low is None or found.drop_high is None:
        return line
    return f"{line} (95 %: {-points * found.drop_high:+.2f} to {-points * found.drop_low:+.2f})"
