"""Sections: what a report says, part by part, before anybody writes it as HTML or Markdown."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from itertools import count as counting
from math import isfinite
from typing import Any

from lowrank_core.errors import LowRankError
from lowrank_core.figures import count, drop_text, how_many, kib, score_text, share
from lowrank_core.measure.formats import AS_IT_IS, FORMATS, dense_flash_bytes, plan_flash_bytes
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import layer_cost
from lowrank_core.plans.plan import Choice
from lowrank_core.reports import drawing
from lowrank_core.reports.drawing import Curve, Mark
from lowrank_core.reports.findings import Confusion, Findings, Told
from lowrank_core.scoring.metrics import METRICS
from lowrank_core.scoring.scores import Score
from lowrank_core.store.reference import address_of, in_its_folder
from lowrank_core.version import versions

MOST_CURVES = 36
"""Layers whose curves are drawn: those that take most bytes."""

MOST_CLASSES = 20
"""Classes of a matrix that is shown whole; of more those that changed most are listed."""

MOST_LISTED = 20
"""Classes that are listed then."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under their titles. folded: it repeats a picture, so that HTML shows it when asked for."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """One part: sentences, a picture (HTML, safe as it is) and its caption, a table, texts to copy: (what, text)."""

    title: str
    lines: tuple[str, ...] = ()
    picture: str = ""
    caption: str = ""
    table: Table | None = None
    copied: tuple[tuple[str, str], ...] = ()


def sections(found: Findings) -> tuple[Section, ...]:
    """All that the findings tell, the answer first."""
    parts = [_figures(found), _what(found), _front(found), _layers(found), _curves(found)]
    parts += [_confusion(found, plan) for plan in found.plans]
    parts.append(_repeat(found))
    return tuple(part for part in parts if part is not None)


def title(found: Findings) -> str:
    """What a report is called."""
    return f"{found.workspace.name} under {' and '.join(plan.name for plan in found.plans)}"


def change_text(score: Score) -> str:
    """How the score itself has moved against the dense network's, with its interval; minus is a smaller score.

    >>> change_text(Score("top-1 accuracy", .98, .99, 500, True, .97, .99, .01, .004, .016))
    '−1 point (95 %: −1.6 to −0.4)'
    """
    if score.not_finite:
        return f"answers with NaN or infinity on {score.not_finite:,} of {score.samples:,} samples"
    percent, way = _percent(score), -1.0 if score.higher_is_better else 1.0

    def signed(drop: float) -> str:
        text = drop_text(abs(drop), percent=percent).partition(" ")[0]
        sign = "" if float(text) == 0 else "+" if way * drop > 0 else "−"
        return f"{sign}{text}"

    unit = drop_text(abs(score.drop), percent=percent).partition(" ")[2]
    line = f"{signed(score.drop)} {unit}".rstrip()
    if score.drop_low is None or score.drop_high is None:
        return f"{line} ({score.why_none})" if score.too_few else line
    low, high = sorted((score.drop_low, score.drop_high), key=lambda drop: way * drop)
    return f"{line} (95 %: {signed(low)} to {signed(high)})"


def _percent(score: Score) -> bool:
    return score.samples > 0 and any(m.share and m.name == score.metric for m in METRICS.values())


def _score_text(score: Score, value: float) -> str:
    return score_text(value, percent=_percent(score)) if isfinite(value) else "not finite"


def _figures(found: Findings) -> Section:
    """Score and costs of each plan beside the dense network."""
    workspace, first = found.workspace, found.plans[0].score
    model, profile = workspace.model, workspace.profile

    def of_dense(now: float, dense: float, text: str) -> str:
        return f"{text} ({share(now / dense)})" if dense else text

    rows = [
        (first.metric, _score_text(first, first.dense), *(_score_text(p.score, p.score.value) for p in found.plans)),
        ("change against dense, paired", "", *(change_text(p.score) for p in found.plans)),
    ]
    for quantity, unit in (("bytes", "B"), ("multiplies", ""), ("parameters", "")):
        dense = getattr(found.dense, quantity)
        costs = [getattr(plan.cost, quantity) for plan in found.plans]
        rows.append((quantity, count(dense, unit), *(of_dense(now, dense, count(now, unit)) for now in costs)))
    for number in FORMATS:
        if number == AS_IT_IS:
            continue
        dense = dense_flash_bytes(model, number)
        flash = [plan_flash_bytes(model, profile, plan.compressed.plan, number) for plan in found.plans]
        rows.append((f"flash in {number}", kib(dense), *(of_dense(now, dense, kib(now)) for now in flash)))
    if found.dense_peak_bytes is not None:
        for number, dense in found.dense_peak_bytes.items():
            if number != AS_IT_IS:
                peaks = [(plan.peak_bytes or {}).get(number) for plan in found.plans]
                cells = ("" if now is None else of_dense(now, dense, kib(now)) for now in peaks)
                rows.append((f"RAM of activations in {number}", kib(dense), *cells))
    lines = [_says(plan) for plan in found.plans]
    return Section("Figures", tuple(lines), table=Table(("", "dense", *(p.name for p in found.plans)), tuple(rows)))


def _says(plan: Told) -> str:
    on = f" on {how_many(plan.score.samples, 'sample')}" if plan.score.samples else ""
    value = _score_text(plan.score, plan.score.value)
    layers = len(plan.compressed.plan.choices)
    change = f"{change_text(plan.score)} against dense"
    return f"{plan.name}: {value} {plan.score.metric}{on}, {change}; {layers} layers factorised."


def _what(found: Findings) -> Section:
    """The network, its data, formats and corrections."""
    workspace, score = found.workspace, found.plans[0].score
    told = [
        ("network", workspace.name),
        ("opened from", _source(found)),
        ("fingerprint", workspace.profile.fingerprint),
        ("layers that can be compressed", f"{len(workspace.profile.layers):,}"),
        ("numbers of the weights", _numbers(found)),
        ("score", score.metric if workspace.opened.evaluate else f"{workspace.metric.name}, {workspace.judged}"),
    ]
    if score.samples:
        told += [
            ("evaluation samples", f"{score.samples:,} of {len(workspace.reference):,}"),
            ("evaluation data", workspace.reference.hash),
        ]
    for plan in found.plans:
        told.append((f"correction of {plan.name}", _correction(plan.compressed.correction)))
        if plan.compressed.tuned is not None:
            told.append((f"training of {plan.name}", _tuned(plan.compressed.tuned)))
    told += [(name.replace("_", " "), version) for name, version in versions().items()]
    notices = tuple(workspace.notices)
    return Section("What was measured", notices, table=Table(("", ""), tuple(told)))


def _source(found: Findings) -> str:
    ref = found.workspace.opened.ref
    return "a live module" if ref is None else in_its_folder(ref)


def _numbers(found: Findings) -> str:
    kinds = {str(p.dtype).removeprefix("torch.") for p in found.workspace.model.parameters()}
    return ", ".join(sorted(kinds)) or "none"


def _correction(correction: dict[str, Any] | None) -> str:
    if correction is None:
        return "none"
    depth = {"least_squares": "quick", "thorough": "thorough"}.get(correction["kind"], correction["kind"])
    return f"{depth}, on {correction['samples']:,} unlabelled samples ({correction.get('data') or 'data not known'})"


def _tuned(tuned: dict[str, Any]) -> str:
    known = [f"{name} {value}" for name, value in tuned.items() if isinstance(value, int | float | str)]
    return "; ".join(known)


def _front(found: Findings) -> Section | None:
    """The best plans within 40 budgets, and these plans among them."""
    score = found.plans[0].score
    scale = (100 if _percent(score) else 1) * (-1 if score.higher_is_better else 1)
    unit = ", points" if _percent(score) else ""
    if not found.front:
        return Section("The front", (found.no_front,)) if found.no_front else None
    total = found.dense.multiplies or 1
    line = [(p.cost.multiplies / total, scale * p.predicted.drop) for p in found.front if p.predicted.drop is not None]
    band = [
        (
            p.cost.multiplies / total,
            min(scale * p.predicted.drop_low, scale * p.predicted.drop_high),
            max(scale * p.predicted.drop_low, scale * p.predicted.drop_high),
        )
        for p in found.front
        if p.predicted.drop_low is not None and p.predicted.drop_high is not None
    ]
    marks = [
        _mark(p.score, p.cost.multiplies / total, scale, "measured", "best plan within a budget, measured")
        for p in found.front
        if p.score is not None and not p.score.not_finite
    ]
    marks.append(Mark(1.0, 0.0, "dense", "dense", label="dense"))
    marks += [
        _mark(p.score, p.cost.multiplies / total, scale, "plan", p.name, p.name)
        for p in found.plans
        if not p.score.not_finite
    ]
    picture = drawing.scatter(
        line,
        band,
        marks,
        x_title="multiplies, share of dense",
        y_title=f"change of the score{unit}",
        alt=f"Change of the score against multiplies: {len(found.front)} best plans and those of this report",
    )
    rows = [
        (share(p.cost.multiplies / total), count(p.cost.bytes, "B"), change_text(p.score))
        for p in found.front
        if p.score is not None
    ]
    caption = (
        f"Line and band: what the best plan within each of {len(found.front)} budgets is predicted to change, with the "
        "range of that; dots: those that were measured, with 95 % intervals. Larger dots: the plans of this report."
    )
    measured = Table(("multiplies", "bytes", "change, measured"), tuple(rows), True)
    lines = (f"The best plans within {len(found.front)} budgets of multiplies, of which {len(rows)} were measured.",)
    return Section("The front", lines, picture, caption, measured)


def _mark(score: Score, x: float, scale: float, kind: str, what: str, label: str = "") -> Mark:
    ends: tuple[float | None, float | None] = (None, None)
    if score.drop_low is not None and score.drop_high is not None:
        low, high = sorted((scale * score.drop_low, scale * score.drop_high))
        ends = low, high
    says = f"{what}: {change_text(score)} at {share(x)} of the multiplies"
    return Mark(x, scale * score.drop, says, kind, *ends, label)


def _layers(found: Findings) -> Section:
    """Every layer: method, rank, bytes and multiplies under each plan."""
    several = len(found.plans) > 1
    titles = ["layer", "weight", "bytes", "multiplies"]
    for plan in found.plans:
        of = f", {plan.name}" if several else ""
        titles += [f"method{of}", f"rank{of}", f"bytes{of}", f"multiplies{of}", f"weight error{of}"]
    rows = []
    for layer in found.workspace.profile.layers:
        dense = layer_cost(layer, None)
        row = [layer.name, "×".join(map(str, layer.spec.weight_shape)), f"{dense.bytes:,}", f"{dense.multiplies:,}"]
        for plan in found.plans:
            row += _layer(found, layer, plan.compressed.plan.get(layer.name))
        rows.append(tuple(row))
    rest = found.workspace.profile.rest
    lines = (
        f"Outside these layers, changed by no plan: {count(rest.bytes, 'B')} and {count(rest.multiplies)} multiplies. "
        "Weight error: relative, of the factors before any correction.",
    )
    return Section("Layers", lines, table=Table(tuple(titles), tuple(rows)))


def _layer(found: Findings, layer: Layer, choice: Choice | None) -> list[str]:
    if choice is None:
        return ["dense", "", "", "", ""]
    cost, dense = layer_cost(layer, choice), layer_cost(layer, None)
    try:
        error = f"{found.workspace.factors(layer.name, choice.method).error(choice.rank):.2%}"
    except LowRankError:
        error = ""
    bytes_share, multiplies_share = (
        f"{now:,} ({share(now / of)})" if of else f"{now:,}"
        for now, of in ((cost.bytes, dense.bytes), (cost.multiplies, dense.multiplies))
    )
    rank = "×".join(map(str, choice.rank))
    return [METHODS[choice.method].label, rank, bytes_share, multiplies_share, error]


def _curves(found: Findings) -> Section | None:
    """What single layers lose at their ranks."""
    if not found.curves:
        return None
    layers = sorted(found.workspace.profile.layers, key=lambda layer: -layer_cost(layer, None).bytes)
    shown, of_layer = (
        [],
        {name: [p for p in found.curves if p.layer == name] for name in {p.layer for p in found.curves}},
    )
    for layer in layers[:MOST_CURVES]:
        points = of_layer.get(layer.name, [])
        choices = [c for plan in found.plans if (c := plan.compressed.plan.get(layer.name)) is not None]
        method = next((c.method for c in choices if any(p.method == c.method for p in points)), None)
        method = method or next((p.method for p in points), None)
        if method is None:
            continue
        top = METHODS[method].max_rank(layer.spec)
        kept = sorted((_kept(p.rank, top), max(p.loss, 0.0)) for p in points if p.method == method)
        chosen = tuple(_kept(c.rank, top) for c in choices if c.method == method)
        shown.append(Curve(layer.name, tuple(kept), chosen))
    if not shown:
        return None
    more = len(layers) - len(shown)
    caption = (
        "What the network loses where one layer alone is cut down to a rank and the others learn to make it good: from "
        "rank 0 (left) to the largest (right), all on one scale of four decades. Dashed: the rank of the plan."
        + (f" The {more} smaller layers are not drawn." if more else "")
    )
    picture = drawing.curves(shown, alt="Loss by rank, a chart for each layer")
    return Section("Curves of single layers", (), picture, caption)


def _kept(rank: Sequence[int], top: Sequence[int]) -> float:
    """A rank as a share of the largest, the mean over its axes."""
    return sum(r / t for r, t in zip(rank, top, strict=True)) / len(rank)


def _confusion(found: Findings, plan: Told) -> Section | None:
    """Which classes are taken for which; of many classes those that changed most."""
    now, dense = plan.confusion, found.dense_confusion
    if now is None:
        return None
    name = f"Classes under {plan.name}" if len(found.plans) > 1 else "Classes"
    if len(now.labels) <= MOST_CLASSES:
        same = dense if dense is not None and dense.labels == now.labels else None
        rows = tuple((label, *map(str, row)) for label, row in zip(now.shown, now.counts, strict=True))
        table = Table(("class \\ answer", *now.shown), rows, True)
        lines = ("Samples by class (down) and answer (across).",)
        picture, caption = drawing.confusion(now, same), "Small: the change against the dense network."
        return Section(name, lines, picture, caption if same else "", table)
    assert dense is not None
    changed = sorted(range(len(now.labels)), key=lambda at: (now.right[at] - _right(dense, now.labels[at]), at))
    rows = tuple(
        (
            now.shown[at],
            f"{sum(now.counts[at]):,}",
            f"{_right(dense, now.labels[at]):,}",
            f"{now.right[at]:,}",
            f"{now.right[at] - _right(dense, now.labels[at]):+,}".replace("-", "−"),
        )
        for at in changed[:MOST_LISTED]
    )
    lines = (f"The {len(rows)} of {len(now.labels)} classes that lose most.",)
    return Section(name, lines, table=Table(("class", "samples", "dense right", "right", "change"), rows))


def _right(dense: Confusion, label: int) -> int:
    return dense.right[dense.labels.index(label)] if label in dense.labels else 0


def _repeat(found: Findings) -> Section:
    """The commands that repeat it, and the plans themselves."""
    model = found.workspace.opened.ref
    if model is None:
        plans = tuple((f"{plan.name}, a plan file", plan.document) for plan in found.plans)
        return Section("To repeat it", ("The network was given as a live module.",), copied=plans)
    lines = ["# in the folder of the model, with each plan below saved under its name"]
    chosen = [word for name in found.workspace.opened.outputs for word in ("--outputs", str(name))]
    reference = (*address_of(in_its_folder(model)).words, *chosen)
    files = _file_names([plan.name for plan in found.plans])
    plain = [plan.compressed.correction is None and bool(plan.compressed.plan.choices) for plan in found.plans]
    for file, uncorrected in zip(files, plain, strict=True):
        flag = ["--no-correct"] * uncorrected
        export = ("--format", "onnx", "--out", f"{file[:-5]}.onnx")
        lines.append(shlex.join(("rank-explorer", "evaluate", *reference, "--plan", file, *flag)))
        lines.append(shlex.join(("rank-explorer", "export", *reference, "--plan", file, *flag, *export)))
    if len(set(plain)) == 1:  # a report has all its plans corrected, or none
        every = [word for file in files for word in ("--plan", file)]
        flag = ["--no-correct"] * plain[0]
        lines.append(shlex.join(("rank-explorer", "report", *reference, *every, *flag, "--out", "report.html")))
    notes = tuple(
        f"The weights of {plan.name} were trained; a plan holds none, so these commands give its factors as compressed."
        for plan in found.plans
        if plan.compressed.tuned is not None
    )
    plans = tuple((file, plan.document) for file, plan in zip(files, found.plans, strict=True))
    return Section("To repeat it", notes, copied=(("commands", "\n".join(lines)), *plans))


def _file_names(names: Sequence[str]) -> list[str]:
    """A file for each plan, each with another name.

    >>> _file_names(["my plan", "my-plan"])
    ['my-plan.json', 'my-plan-2.json']
    """
    files: list[str] = []
    for name in names:
        first = plan_file_name(name)
        tried = chain((first,), (f"{first[:-5]}-{number}.json" for number in counting(2)))
        files.append(next(file for file in tried if file not in files))
    return files


def plan_file_name(name: str) -> str:
    """A name for a plan's file that a shell takes as it is.

    >>> plan_file_name("my plan"), plan_file_name("plan.json")
    ('my-plan.json', 'plan.json')
    """
    stem = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return f"{stem.removesuffix('.json').strip('-.') or 'plan'}.json"


def as_document(found: Findings) -> dict[str, Any]:
    """What the command says of a report in JSON."""
    return {
        "network": found.workspace.name,
        "fingerprint": found.workspace.profile.fingerprint,
        "plans": [{"name": plan.name, "score": plan.score, "plan": json.loads(plan.document)} for plan in found.plans],
        "front": len(found.front),
    }
