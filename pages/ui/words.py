"""Figures and terms as people read them, said in one place."""

from __future__ import annotations

import importlib
import re
from math import isfinite
from pathlib import Path
from typing import Any

from lowrank_core.builtin import BUILTIN
from lowrank_core.figures import count as count
from lowrank_core.figures import drop_text, how_many, score_text
from lowrank_core.figures import duration as duration
from lowrank_core.figures import share as share
from lowrank_core.scoring.scores import Score
from lowrank_core.store.reference import address_of
from lowrank_core.workspace import Workspace

RANK = "The width of the thin middle of a factorised layer: a smaller rank is cheaper and less exact."
BREAK_EVEN = "The largest rank still cheaper than the dense layer; above it, factorising costs more than it saves."
MULTIPLIES = (
    "Multiplications for one sample in convolutions and matrix products; bias additions and activations do not count."
)
BYTES = "Parameters times their element size, tied tensors once; buffers and file headers are not counted."
CORRECTION = (
    "After the ranks are set, each layer's factors are refitted so that they answer like the dense layer on a few "
    "unlabelled samples: at once the last one (quick), and when nothing has moved for two seconds all of them "
    "(thorough). It costs no parameter and no multiply."
)
FREE_RANKS = (
    "Store the factors of SVD and Tucker-2 with rows of the identity (identity gauge): r² numbers and multiplies less "
    "for each rank r, and the same answers, so that a higher rank costs the same. Small layers may run slower."
)
INTERVAL = (
    "95 % interval of the difference to the dense network, paired on the same samples: with chance alone, the true "
    "difference would lie inside 19 times out of 20. Where the samples are too few for that there is none: fewer than "
    "30, or fewer than 5 that change anything, where a metric is more than counts of right and wrong."
)

DENSE = "The network as it was trained, before any layer is factorised; every compressed network is compared with it."
ADDITIONS = "Additions for one sample in the compressible layers, biases included."
COMPRESSIBLE = "Share of all multiplies that is spent in layers that can be factorised."
EFFECTIVE_RANK = (
    "How many singular values carry the weight: exp of the entropy of σ / Σσ; all of them if they are equal."
)
STABLE_RANK = "Sum of the squared singular values over the largest square: a rank that small values cannot inflate."
ENERGY = "Energy is the sum of the squared singular values; the smallest rank that keeps this share of it."
SELF_CHECK = (
    "A few calls of the network on its example inputs: whether it answers the same twice, where the batch is, whether "
    "all is finite, and whether every layer may be replaced: at full rank the network must answer as it did."
)
METHOD = "How the layer is replaced by a chain of thinner ones; each has its own ranks, spectrum and cost."


COMMAND = r"`[^`\n]*\b(?:lowrank_core|rank-explorer(?:\.exe)?|make) [^`\n]+`"
"""What is shown as code in a message: all else between backticks may be a part of somebody's name."""


INSIDE = r"(?<=[^\W_])_+(?=[^\W_])"
"""Underscores in a word, which mean nothing to Markdown; a screen reader would read the backslashes of a label."""


def block(name: str) -> str:
    """The block of a layer: its name up to the last number in front of its own, or all but its own.

    >>> block("model.layers.3.mlp.up_proj"), block("encoder.head.fc"), block("fc")
    ('model.layers.3', 'encoder.head', '')
    """
    parts = name.split(".")[:-1]
    numbered = max((at + 1 for at, part in enumerate(parts) if part.isdecimal()), default=len(parts))
    return ".".join(parts[:numbered])


def sizes(numbers: tuple[int, ...]) -> str:
    """Extents or ranks as text, with × between them and – for none.

    >>> sizes((16, 3, 3, 3)), sizes(())
    ('16×3×3×3', '–')
    """
    return "×".join(map(str, numbers)) or "–"


def plain(text: str) -> str:
    """A text with nothing in it that Markdown would take for itself, except `a command of ours`.

    >>> print(plain("`python -m lowrank_core new FILE_1` writes one: __init__ is $5"))
    `python -m lowrank_core new FILE_1` writes one\\: \\_\\_init\\_\\_ is \\$5
    >>> print(plain("a `name` with ticks.onnx"))
    a \\`name\\` with ticks.onnx
    >>> plain("self_attn.q_proj")
    'self_attn.q_proj'
    """
    return re.sub(rf"({COMMAND}|{INSIDE})|([\\*_\[\]$~<>#|:`])", lambda match: match[1] or f"\\{match[2]}", text)


def model_name(address: str) -> str:
    """A reference as people call it; a file by its name alone."""
    named = address_of(address)
    model, weights, data = named.model, named.weights, named.data or named.text
    name = model.removeprefix("builtin:") if model.startswith("builtin:") else Path(model).name
    name = name if weights is None else f"{name} with {Path(weights).name}"
    return plain(name if data is None else f"{name} on {Path(data).name}")


def model_description(address: str) -> str:
    """What a built-in model does, or where the other one came from."""
    name = address.removeprefix("builtin:")
    if name in BUILTIN:
        return str(importlib.import_module(BUILTIN[name]).DESCRIPTION)
    return "The model given when the app was started."


def dense(workspace: Workspace, value: float, samples: int) -> str:
    """Model and dense score, as one line of Markdown; of several outputs which are judged."""
    on = f" on {how_many(samples, 'sample')}" if samples else ""
    judged = ""
    if workspace.opened.evaluate is None and len(workspace.judged.outputs) > 1:
        judged = f" · judged: {plain(', '.join(workspace.judged.names))}"
    return f"{plain(workspace.name)} · dense {plain(metric_name(workspace))} **{score(workspace, value)}**{on}{judged}"


def shares(workspace: Workspace) -> bool:
    """Whether the score is a share of samples, shown in percent."""
    return workspace.opened.evaluate is None and workspace.metric.share


def metric(workspace: Workspace) -> str:
    """The name of the score, as it stands in front of a figure."""
    name = metric_name(workspace)
    return name[:1].upper() + name[1:]


def metric_name(workspace: Workspace) -> str:
    """The name of the score inside a sentence."""
    return "score" if workspace.opened.evaluate is not None else workspace.metric.name


def rises(workspace: Workspace) -> bool:
    """Whether the score of this model is larger when the network is worse."""
    return not (workspace.opened.higher_is_better if workspace.opened.evaluate else workspace.metric.higher_is_better)


def axis(workspace: Workspace) -> str:
    """Name of the score beside an axis or a figure, where nothing else says which way is better."""
    return f"{metric(workspace)}, lower is better" if rises(workspace) else metric(workspace)


def loss(workspace: Workspace) -> str:
    """What it is called that a score gets worse: a drop, or a rise where lower is better."""
    return "rise" if rises(workspace) else "drop"


def score(workspace: Workspace, value: float) -> str:
    """A score as text: percent where it is a share, else its own figure; words where answers are NaN or infinite."""
    if not isfinite(value):
        return "not finite"
    return score_text(value, percent=shares(workspace))


def drop(workspace: Workspace, value: float) -> str:
    """A loss of score in its own unit, positive when worse."""
    return drop_text(value, percent=shares(workspace))


def change_title(workspace: Workspace) -> str:
    """What a change of the score itself is called, with its unit, as the title of a column."""
    return "Change, points" if shares(workspace) else "Change"


def moved(workspace: Workspace, measured: Score, drop: float) -> float:
    """A drop as the change of the score itself, in points where that is a share: −1 point is a drop of 0.01."""
    scale = 100 if shares(workspace) else 1
    return (-scale if measured.higher_is_better else scale) * drop + 0.0


LARGE_CHANGE = 100_000
"""A change of a score that is no share is written with four digits from here on."""


def signed(workspace: Workspace, measured: Score, drop: float) -> str:
    """The same as text: points with two digits behind the point, small figures of other scores with two in all, and
    large ones with four.
    """
    change = moved(workspace, measured, drop)
    small, large = (not shares(workspace) and holds for holds in (0 < abs(change) < 0.1, abs(change) >= LARGE_CHANGE))
    figure = f"{change:+.2g}" if small else f"{change:+.4g}" if large else f"{round(change, 2) + 0.0:+.2f}"
    return figure.replace("-", "−")


def interval(workspace: Workspace, measured: Score) -> str:
    """The 95 % interval of the change of the score as text, or why there is none."""
    if measured.drop_low is None or measured.drop_high is None:
        return f"too few {'documents' if measured.documents else 'samples'}" if measured.too_few else ""
    ends = sorted((measured.drop_low, measured.drop_high), key=lambda drop: moved(workspace, measured, drop))
    return " to ".join(signed(workspace, measured, drop) for drop in ends)


def begun(words: str) -> str:
    """A step of work as a sentence begins; names keep their capitals.

    >>> begun("the ONNX model: reloading in a fresh process")
    'The ONNX model: reloading in a fresh process'
    """
    return words[:1].upper() + words[1:]


def verdict(workspace: Workspace, measured: Score) -> str:
    """A measured score with its paired interval, as one line, and that of each output where there are several."""
    if measured.not_finite:
        return change(workspace, measured, "")
    on = f" on {how_many(measured.samples, 'sample')}" if measured.samples else ""
    line = f"{score(workspace, measured.value)}{on}, {change(workspace, measured, 'against dense')}"
    if len(measured.outputs) < 2:
        return line
    return f"{line}; {', '.join(f'{o.name} {score(workspace, o.value)}' for o in measured.outputs)}"


def change(workspace: Workspace, measured: Score, against: str) -> str:
    """How the score itself has moved, with its interval: a drop the other way round, a rise as it is.

    Or on how many samples there is no answer to judge.
    """
    if measured.not_finite:
        return f"⚠ answers with NaN or infinity on {measured.not_finite:,} of {measured.samples:,} samples"
    unit = " points" if shares(workspace) else ""
    line = f"{signed(workspace, measured, measured.drop)}{unit} {against}".rstrip()
    if measured.drop_low is None or measured.drop_high is None:
        return f"{line} ({measured.why_none})" if measured.too_few else line
    return f"{line} (95 %: {interval(workspace, measured)})"


def score_fields(score: Score | None) -> dict[str, Any] | None:
    """A score as a browser is told it."""
    if score is None:
        return None
    return {
        "value": None if score.not_finite else score.value,
        "dense": score.dense,
        "samples": score.samples,
        "not_finite": score.not_finite,
        "drop": None if score.not_finite else score.drop,
        "drop_low": score.drop_low,
        "drop_high": score.drop_high,
        "within": score.within,
        "why_none": score.why_none,
    }
