"""Pictures of plain rows. Colours are Okabe and Ito's; text and grid follow the theme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go
from torch import Tensor, uint8

from lowrank_core.measure.comparison import Flip
from pages.ui.bitmap import bitmap
from pages.ui.compare import RankChange
from pages.ui.tables import Curve, Dot, Learning
from pages.ui.tried import Mark

BLUE, SKY, AMBER, GREEN, GREY = "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#8A94A0"
RED, RED_DARK = "#C24A00", "#F0823C"


def spectrum(curve: Curve, *, dark: bool = False) -> go.Figure:
    """Two panels over one axis of ranks: singular values on a log scale, energy kept; marks carry their own labels."""
    ranks, line = list(range(1, curve.top + 1)), SKY if dark else BLUE
    mode = "lines+markers" if curve.top <= 32 else "lines"
    marks = _marks(curve, line)
    return go.Figure(
        [
            go.Scatter(
                x=ranks, y=curve.sigma, mode=mode, line_color=line, hovertemplate="rank %{x}: σ %{y:.4g}<extra></extra>"
            ),
            go.Scatter(
                x=ranks,
                y=curve.energy,
                mode=mode,
                line_color=GREEN,
                yaxis="y2",
                hovertemplate="rank %{x}: %{y:.2%} of the energy<extra></extra>",
            ),
        ],
        _layout(
            height=460,
            showlegend=False,
            hovermode="x",
            xaxis={"title": f"rank ({curve.axis})" if curve.axis != "rank" else "rank", "range": [0, curve.top + 0.5],
                   "anchor": "y2", "zeroline": False, **({"dtick": 1} if curve.top <= 12 else {})},
            yaxis={"type": "log", "title": "singular value σ", "domain": [0.46, 1], "tickvals": _log_ticks(curve.sigma),
                   "tickformat": ".3~g"},
            yaxis2={"tickformat": ".0%", "title": "energy kept", "domain": [0, 0.38], "range": [0, 1.04]},
            shapes=[shape for mark in marks for shape in mark["shapes"]],
            annotations=[mark["label"] for mark in marks],
            margin={"l": 8, "r": 8, "t": 14 + 18 * len(marks), "b": 8},
        ),
    )  # fmt: skip


VERDICTS: dict[str, dict[str, Any]] = {
    "tried": {"symbol": "circle-open", "size": 9},
    "refuted": {"symbol": "x", "size": 10},
    "undecided": {"symbol": "diamond", "size": 11},
    "shown within": {"symbol": "circle", "size": 11},
}
"""How a trial is drawn by the verdict on it: by its shape, and in a colour of its own."""


def search(
    trials: dict[str, list[Mark]],
    answer: Mark | None,
    earlier: list[Mark],
    front: list[Mark],
    *,
    quantity: str,
    change: str,
    budget: float | None = None,
    least: float | None = None,
    dark: bool = False,
) -> go.Figure:
    """Change against the dense network over cost: the predicted front, plans tried by verdict, and the answer ringed.

    trials: by the words of their verdicts, see VERDICTS. change: the title of the y axis.
    budget: a share of the cost; least: the change that is still allowed. Each point carries the key of what a click on
    it selects.
    """
    line = SKY if dark else BLUE
    colours = {"tried": line, "refuted": RED_DARK if dark else RED, "undecided": AMBER, "shown within": GREEN}
    outline = "#E6EAEF" if dark else "#1D2733"
    drawn: list[tuple[str, list[Mark], dict[str, Any]]] = [
        ("front, predicted", front, {"size": 6, "color": GREY}),
        (
            "earlier searches",
            earlier,
            {"symbol": "triangle-down-open", "size": 11, "color": GREY, "line": {"width": 2}},
        ),
    ]
    for says, marker in VERDICTS.items():
        width = 2 if says == "tried" else 1
        edge = line if says == "tried" else outline
        drawn.append(
            (says, trials.get(says, []), {**marker, "color": colours[says], "line": {"width": width, "color": edge}})
        )
    ring = {"symbol": "circle-open", "size": 19, "color": line, "line": {"width": 2.5}}
    drawn.append(("answer", [answer] if answer else [], ring))
    square = {"symbol": "square-open", "size": 11, "color": GREY, "line": {"width": 2}}
    drawn.append(("dense", [Mark("", 1.0, 0.0, None, None, "the dense network")], square))
    marks = [
        go.Scatter(
            name=name,
            x=[m.x for m in marks_of],
            y=[m.y for m in marks_of],
            mode="lines+markers" if marks_of is front else "markers",
            line={"color": GREY, "width": 1.5, "dash": "dot"} if marks_of is front else None,
            marker=marker,
            text=[escape(m.says) for m in marks_of],
            customdata=[[m.key, _folded(m.says)] for m in marks_of],
            error_y=_intervals(marks_of, line) if name == "answer" else None,
            hovertemplate=f"<b>{name}</b>, %{{x:.1%}} of the {quantity}<br>%{{customdata[1]}}<extra></extra>",
        )
        for name, marks_of, marker in drawn
        if marks_of
    ]
    measured = [m for _, marks_of, _ in drawn if marks_of is not front for m in marks_of]
    lines: list[tuple[dict[str, Any], dict[str, Any]]] = []
    if budget is not None:
        lines.append(
            (
                {"x0": budget, "x1": budget, "yref": "paper", "y0": 0, "y1": 1},
                {"x": budget, "yref": "paper", "y": 1, "yanchor": "bottom", "text": "budget"},
            )
        )
    if least is not None:
        lines.append(
            (
                {"y0": least, "y1": least, "xref": "paper", "x0": 0, "x1": 1},
                {"y": least, "xref": "paper", "x": 0, "xanchor": "left", "yanchor": "bottom", "text": "allowed"},
            )
        )
    stroke = {"type": "line", "line": {"color": AMBER, "width": 2, "dash": "dot"}, "layer": "below"}
    return go.Figure(
        marks,
        _layout(
            height=400,
            hovermode="closest",
            clickmode="event+select",
            xaxis={"title": f"{quantity}, share of dense", "tickformat": ".0%", "range": [0, 1.05], "zeroline": False},
            yaxis={"title": change, "tickformat": "+.3~g", "zeroline": True, "automargin": True,
                   "range": _seen(measured, front, least)},
            shapes=[{**stroke, **shape} for shape, _ in lines],
            annotations=[{"showarrow": False, **label} for _, label in lines],
            showlegend=True,
            legend={"orientation": "h", "y": 1.08, "yanchor": "bottom", "x": 0},
            margin={"l": 8, "r": 8, "t": 60, "b": 8},
        ),
    )  # fmt: skip


def _seen(marks: list[Mark], front: list[Mark], least: float | None) -> list[float]:
    """The range of changes that is shown at first: all that was measured; of the front alone its milder half."""
    values = [y for m in marks for y in (m.y, m.low, m.high) if y is not None]
    if len(marks) == 1 and front:  # the dense network alone
        values += [m.y for m in sorted(front, key=lambda m: abs(m.y))[: (len(front) + 1) // 2]]
    values += [] if least is None else [least]
    margin = 0.08 * (max(values) - min(values)) or 1.0
    return [min(values) - margin, max(values) + margin]


def _folded(text: str, letters: int = 56) -> str:
    """A text for a hover label, escaped, in lines of about so many letters."""
    return "<br>".join(escape(line) for line in wrap(text, letters))


def learning(
    runs: list[Learning],
    before: float | None,
    *,
    epochs: int,
    metric: str,
    percent: bool,
    dark: bool = False,
) -> go.Figure:
    """Two panels over the epochs: the score with the interval of the main run, and both losses on a log scale."""
    colours, figures = (SKY if dark else BLUE, AMBER), ".2%" if percent else ".4g"
    traces, last = [], {run.from_scratch: run for run in runs}
    for run in runs:
        colour, faint = colours[run.from_scratch], 1.0 if run.main else 0.35
        name = "from scratch" if run.from_scratch else "from the plan"
        usual = {"x": [e.number for e in run.epochs], "mode": "lines+markers", "opacity": faint, "text": run.label}
        scores = [e.score for e in run.epochs]
        dots = [Dot(0, s.value, s.low, s.high, "") for s in scores if s is not None]
        traces.append(
            go.Scatter(
                **usual,
                y=[d.y for d in dots],
                name=name,
                legendgroup=name,
                showlegend=run is last[run.from_scratch],
                line={"color": colour, "width": 2},
                error_y=_intervals(dots, colour) if run.main else None,
                hovertemplate=f"epoch %{{x}}: %{{y:{figures}}}<extra>%{{text}}</extra>",
            )
        )
        for kind, values, dash in (
            ("training", [e.train_loss for e in run.epochs], "solid"),
            ("held back", [e.validation_loss for e in run.epochs], "dot"),
        ):
            traces.append(
                go.Scatter(
                    **usual,
                    y=values,
                    name=f"loss, {kind}",
                    showlegend=False,
                    line={"color": colour, "width": 2, "dash": dash},
                    marker_size=4,
                    yaxis="y2",
                    hovertemplate=f"epoch %{{x}}: %{{y:.4g}}<extra>loss {kind}, %{{text}}</extra>",
                )
            )
    main = next((run for run in runs if run.main), runs[-1])
    best = main.epochs[main.epochs[-1].best]
    star = {"symbol": "star", "size": 13, "color": GREEN}
    traces.append(
        go.Scatter(
            x=[best.number],
            y=[best.validation_loss],
            mode="markers",
            marker=star,
            yaxis="y2",
            name="best so far, kept",
            hovertemplate=f"epoch {best.number}: the lowest loss held back<extra></extra>",
        )
    )
    levels = [("dense", None if best.score is None else best.score.dense, "dash"), ("as compressed", before, "dot")]
    for name, level, dash in levels:
        if level is not None:
            traces.append(
                go.Scatter(
                    x=[-0.4, epochs + 0.4],
                    y=[level, level],
                    mode="lines",
                    name=name,
                    line={"color": GREY, "width": 2, "dash": dash},
                    hovertemplate=f"{name} %{{y:{figures}}}<extra></extra>",
                )
            )
    levels_shown = [level for _, level, _ in levels if level is not None]
    return go.Figure(
        traces,
        _layout(
            height=480,
            hovermode="closest",
            xaxis={"title": "epoch", "range": [-0.4, epochs + 0.4], "anchor": "y2", "zeroline": False,
                   **({"dtick": 1} if epochs <= 12 else {})},
            yaxis={"title": metric, "domain": [0.46, 1], "tickformat": ".3~%" if percent else ".4~g",
                   "zeroline": False, "automargin": True, "range": _useful(runs, levels_shown)},
            yaxis2={"title": "loss (dotted: held back)", "type": "log", "domain": [0, 0.38], "tickformat": ".2~g",
                    "nticks": 6, "automargin": True},
            legend={"orientation": "h", "y": 1.03, "yanchor": "bottom", "x": 0},
            margin={"l": 8, "r": 8, "t": 40, "b": 8},
        ),
    )  # fmt: skip


def _useful(runs: list[Learning], levels: list[float]) -> list[float] | None:
    """The range of scores without random starts, which would press all others together; None: as it comes."""
    scored = [(run, e.number, e.score) for run in runs for e in run.epochs if e.score is not None]
    later = [x for run, number, s in scored if number or not run.from_scratch for x in (s.low, s.value, s.high)]
    values = [*levels, *(x for x in later if x is not None)]
    if not any(run.from_scratch and number for run, number, _ in scored):
        return None
    margin = 0.06 * (max(values) - min(values)) or 0.01
    return [min(values) - margin, max(values) + margin]


def sweep(
    indirect: list[Dot],
    direct: list[Dot],
    dense: Dot,
    *,
    quantity: str,
    metric: str,
    percent: bool,
    dark: bool = False,
) -> go.Figure:
    """Score against cost of the same plans, as compressed and as trained, with intervals, and the dense network."""
    line, figures = SKY if dark else BLUE, ".2%" if percent else ".4g"
    drawn = (
        ("indirect: as compressed", indirect, GREY, "circle-open", 9),
        ("direct: trained", direct, line, "circle", 10),
    )
    traces = [
        go.Scatter(
            name=name,
            x=[d.x for d in dots],
            y=[d.y for d in dots],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": size, "line": {"width": 2, "color": colour}},
            error_y=_intervals(dots, colour),
            hovertemplate=f"%{{y:{figures}}} at %{{x:.1%}} of the {quantity}<extra>{name}</extra>",
        )
        for name, dots, colour, symbol, size in drawn
    ]
    square = {"symbol": "square-open", "size": 11, "color": GREY, "line": {"width": 2}}
    traces.append(
        go.Scatter(
            name="dense",
            x=[dense.x],
            y=[dense.y],
            mode="markers",
            marker=square,
            hovertemplate=f"dense: %{{y:{figures}}}<extra></extra>",
        )
    )
    return go.Figure(
        traces,
        _layout(
            height=400,
            hovermode="closest",
            xaxis={"title": f"{quantity}, share of dense", "tickformat": ".0%", "range": [0, 1.05], "zeroline": False},
            yaxis={"title": metric, "tickformat": ".3~%" if percent else ".4~g", "zeroline": False, "automargin": True},
            legend={"orientation": "h", "y": 1.03, "yanchor": "bottom", "x": 0},
            margin={"l": 8, "r": 8, "t": 40, "b": 8},
        ),
    )


def _intervals(dots: Sequence[Dot | Mark], colour: str) -> dict[str, Any] | None:
    bounded = [(d.y, d.low, d.high) for d in dots if d.low is not None and d.high is not None]
    if len(bounded) < len(dots):
        return None
    bounds = {"array": [high - y for y, _, high in bounded], "arrayminus": [y - low for y, low, _ in bounded]}
    return {"type": "data", "symmetric": False, "color": colour, "thickness": 1.5, "width": 5, **bounds}


def _marks(curve: Curve, line: str) -> list[dict[str, Any]]:
    """Vertical lines, each with its label on a row of its own above the panels, so that no two labels meet."""
    ranks: list[tuple[int, str, str, str]] = []
    if curve.chosen is not None:
        ranks.append((curve.chosen, f"chosen rank {curve.chosen}", line, "solid"))
    if curve.even_bytes and curve.even_bytes == curve.even_multiplies:
        ranks.append((curve.even_bytes, f"break-even {curve.even_bytes}", AMBER, "dash"))
    else:
        for rank, quantity, dash in ((curve.even_bytes, "bytes", "dash"), (curve.even_multiplies, "multiplies", "dot")):
            if rank:
                ranks.append((rank, f"break-even in {quantity} {rank}", AMBER, dash))
    marks = []
    for row, (rank, text, colour, dash) in enumerate(ranks):
        stroke = {"color": colour, "width": 2, "dash": dash}
        upright = {"type": "line", "x0": rank, "x1": rank, "yref": "paper", "y0": 0, "y1": 1, "line": stroke}
        shapes = [upright]
        if row == 0 and curve.chosen is not None:
            rectangle: dict[str, Any] = {"type": "rect", "x0": 0, "x1": rank, "yref": "paper", "y0": 0, "y1": 1}
            shapes.append({**rectangle, "line": {"width": 0}, "fillcolor": line, "opacity": 0.1, "layer": "below"})
        right = rank > curve.top / 2
        label: dict[str, Any] = {"x": rank, "yref": "paper", "y": 1, "yshift": 13 + 18 * row, "text": text}
        label |= {"showarrow": False, "xanchor": "right" if right else "left"}
        marks.append({"shapes": shapes, "label": label})
    return marks


def small_multiples(curves: list[Curve], label: str = "", *, dark: bool = False) -> str:
    """A grid of log spectra, light enough for a thousand layers; it wraps on narrow screens.

    It needs SMALL_STYLE on the page. With a label it can be folded. Each curve is cut out of a plain element: pages
    take no inline SVG, and an image of SVG is a document of its own to the browser, 30 ms of its time.
    """
    cells = "".join(_small(curve, is_stop=at == 0) for at, curve in enumerate(curves))
    grid = f'<div class="sm-grid" style="--sm-line: {SKY if dark else BLUE}">{cells}</div>'
    if label:
        grid = f'<details class="sm-part" open><summary>{escape(label)}</summary>{grid}</details>'
    return grid


SMALL_STYLE = f"""
<style>
.sm-grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(148px, 1fr)); gap: 10px 14px; }}
.sm-part {{ content-visibility: auto; contain-intrinsic-size: auto 760px; }}
.sm-part summary {{ cursor: pointer; padding: 2px 0 8px; font-weight: 600; }}
.sm {{ margin: 0; font-size: .8rem; min-width: 0; }}
.sm button {{ display: block; width: 100%; padding: 0; border: 0; background: none; color: inherit; font: inherit;
  text-align: left; cursor: pointer; border-radius: 4px; }}
.sm button:focus-visible {{ outline: 2px solid var(--sm-line); outline-offset: 2px; }}
.sm button:hover .sm-picture {{ box-shadow: 0 0 0 1px var(--sm-line); }}
.sm-name {{ display: flex; justify-content: space-between; gap: 6px; }}
.sm b {{ font-weight: 500; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; direction: rtl; }}
.sm-picture {{ display: block; position: relative; height: 64px; border-radius: 4px; overflow: hidden;
  background: color-mix(in srgb, currentColor 5%, transparent); }}
.sm i {{ position: absolute; inset: 0; background:
  linear-gradient(90deg, var(--sm-line) var(--kept), color-mix(in srgb, var(--sm-line) 32%, transparent) 0); }}
.sm s {{ position: absolute; top: 0; bottom: 0; border-left: 2px dashed {AMBER}; }}
</style>
"""


def _small(curve: Curve, points: int = 48, *, is_stop: bool) -> str:
    """One cell: rank to the right, log sigma from its largest value down over two to eight decades; kept ranks full.

    is_stop: whether the Tab key stops there; arrows lead on (finding.js).
    """
    top, high = curve.top, log10(curve.sigma[0])
    depth = min(8.0, max(2.0, high - log10(curve.sigma[-1])))
    index = sorted({round(i * (top - 1) / max(1, points - 1)) for i in range(points)})

    def x(rank: float) -> str:
        return f"{100 * rank / top:.1f}%"

    def y(i: int) -> str:
        return f"{5 + 90 * min(1.0, (high - log10(curve.sigma[i])) / depth):.1f}%"

    steps = ",".join(f"{x(i + 0.5)} {y(i)}" for i in index)
    outline = f"0 {y(0)},{steps},100% {y(top - 1)},100% 100%,0 100%"
    plan_rank = top if curve.chosen is None else curve.chosen
    even = f'<s style="left:{x(curve.even_bytes - 0.5)}"></s>' if curve.even_bytes else ""
    name, plan = escape(curve.layer), "dense" if curve.chosen is None else f"rank {curve.chosen} of {top}"
    says = f"{name}: {plan}, effective rank {curve.effective_rank:.1f}, break-even {curve.even_bytes}"
    return (
        f'<figure class="sm"><button type="button" data-pick-layer="{name}" '
        f'tabindex="{0 if is_stop else -1}" title="{says}" aria-label="{says}">'
        f'<span class="sm-name"><b>{name}</b><span>{curve.effective_rank:.0f}</span></span><span class="sm-picture">'
        f'<i style="--kept:{x(plan_rank)};clip-path:polygon({outline})"></i>{even}</span></button></figure>'
    )


def rank_changes(changed: Sequence[RankChange]) -> go.Figure:
    """One bar per layer in which two plans differ: how much more, or less, of its largest rank the other one keeps."""
    points = [100 * (change.other_share - change.one_share) for change in changed]
    widest = max([5.0, *map(abs, points)]) * 1.05
    says = [f"{change.one} → {change.other}" for change in changed]
    return go.Figure(
        go.Bar(
            name="share of the largest rank, points",
            y=[change.layer for change in changed],
            x=[round(value, 2) for value in points],
            orientation="h",
            marker_color=[BLUE if value < 0 else AMBER for value in points],
            customdata=says,
            hovertemplate="%{y}: %{customdata}, %{x:+.1f} points of the largest rank<extra></extra>",
        ),
        _layout(
            height=90 + 30 * len(changed),
            bargap=0.35,
            showlegend=False,
            xaxis={"range": [-widest, widest], "title": "share of the largest rank, points", "ticksuffix": "",
                   "zeroline": True, "zerolinewidth": 2},
            yaxis={"autorange": "reversed", "automargin": True, "type": "category", "ticksuffix": " "},
            annotations=[
                {"x": 0, "y": at, "text": escape(text), "showarrow": False, "font": {"size": 12},
                 "xanchor": "left" if points[at] <= 0 else "right", "xshift": 6 if points[at] <= 0 else -6}
                for at, text in enumerate(says)
            ],
            margin={"l": 8, "r": 8, "t": 16, "b": 8},
        ),
    )  # fmt: skip


def flips(samples: list[tuple[Tensor, Flip]]) -> str:
    """HTML of samples as small pictures, each with its class and both answers; lighter is larger."""
    low, high = min(float(image.min()) for image, _ in samples), max(float(image.max()) for image, _ in samples)
    cards = [
        f'<figure><img alt="sample {flip.sample}" src="data:image/bmp;base64,{_bitmap(image, low, high)}">'
        f"<figcaption><b>{flip.target}</b>: dense {_judged(flip.dense, flip)}, plan {_judged(flip.compressed, flip)}"
        "</figcaption></figure>"
        for image, flip in samples
    ]
    return (
        "<style>.flips { display: flex; flex-wrap: wrap; gap: 10px; } .flips figure { margin: 0; width: 132px; } "
        ".flips img { width: 72px; height: 72px; object-fit: contain; image-rendering: pixelated; border-radius: 4px; "
        "display: block; } .flips figcaption { font-size: 12px; opacity: .85; }</style>"
        f'<div class="flips">{"".join(cards)}</div>'
    )


def _judged(answer: int, flip: Flip) -> str:
    return f"{answer} {'✓' if answer == flip.target else '✗'}"


def _bitmap(image: Tensor, low: float, high: float) -> str:
    """(1 or 3, height, width), from what is dark to what is light, as the base64 of a picture."""
    return bitmap(((image.detach().float() - low) / ((high - low) or 1) * 255).round().clamp(0, 255).to(uint8))


def _log_ticks(values: tuple[float, ...]) -> list[float]:
    """Round numbers inside the range of a descending row, the finest set that is at most eight."""
    low, high = values[-1] * 0.99, values[0] * 1.01
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for digits in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1,)):
        ticks = [digit * 10.0**exponent for exponent in decades for digit in digits]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 8:
            return inside or [values[0]]
    return [10.0**exponent for exponent in decades[:: round(len(decades) / 7)]]


def _layout(**extra: Any) -> dict[str, Any]:
    return {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", **extra}
