"""The comparison as a table of HTML, and tables as CSV: text in, text out."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape

from pages.ui.compare import Cell, Row

STYLE = """<style>
.comparison { container-type: inline-size; overflow-x: auto; --page: light-dark(#fff, #12171d);
  border: 1px solid light-dark(#d5dce4, #35404c); border-radius: 8px;
  background: linear-gradient(to left, var(--page) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, light-dark(#0003, #000b), transparent) right / .8rem 100% no-repeat; }
.comparison table { --first: 11rem; --other: 8.4rem; table-layout: fixed; width: 100%; margin: 0;
  min-width: calc(var(--first) + var(--columns) * var(--other)); border-collapse: collapse;
  font-size: .9rem; line-height: 1.35; }
.comparison caption { text-align: left; padding: .55rem .8rem; color: light-dark(#56616d, #a9b4bf); font-size: .85rem; }
.comparison caption span { position: sticky; left: .8rem; display: inline-block; max-width: min(40rem, 78vw); }
.comparison th, .comparison td {
  padding: .4rem .8rem; border: 0; border-top: 1px solid light-dark(#e6ecf2, #222a33); vertical-align: top; }
.comparison thead th { vertical-align: bottom; }
.comparison thead td { width: var(--first); }
.comparison td, .comparison thead th { text-align: right; overflow-wrap: anywhere; }
.comparison tbody th, .comparison thead td {
  text-align: left; position: sticky; left: 0; z-index: 1; background: var(--page); }
.comparison tbody th { font-weight: 500; }
.comparison small { display: block; font-weight: 400; font-size: .78rem; color: light-dark(#56616d, #a9b4bf);
  overflow-wrap: anywhere; }
.comparison .value { font-variant-numeric: tabular-nums; font-weight: 600; overflow-wrap: anywhere; }
.comparison .change { display: block; font-size: .82rem; font-variant-numeric: tabular-nums; }
.comparison .better { color: light-dark(#00674b, #4fd6ae); }
.comparison .worse { color: light-dark(#a03c00, #f5a873); }
.comparison .bar { display: block; height: 4px; margin: .25rem 0 .1rem; border-radius: 2px;
  background: light-dark(#e6ecf2, #222a33); }
.comparison .bar i { display: block; height: 4px; min-width: 2px; margin-left: auto; border-radius: 2px;
  background: light-dark(#0072b2, #56b4e9); }
.comparison .bar.dense i { background: light-dark(#6b7785, #a3adb8); }
.comparison .axis { display: block; position: relative; height: 10px; margin: .15rem 0; background:
  linear-gradient(light-dark(#6b7785, #a3adb8) 0 0) no-repeat 50% 0 / 1px 100%,
  linear-gradient(light-dark(#e6ecf2, #222a33) 0 0) no-repeat 0 4px / 100% 2px; }
.comparison .axis i { position: absolute; top: 3px; height: 4px; min-width: 3px; border-radius: 2px;
  background: light-dark(#0072b2, #56b4e9); }
@container (max-width: 46rem) {
  .comparison table { --first: 8rem; --other: 7.2rem; }
  .comparison th, .comparison td { padding: .35rem .55rem; }
}
@container (max-width: 28rem) { .comparison table { --first: 6.4rem; } }
@media (forced-colors: active) { .comparison .bar i, .comparison .axis i { background: CanvasText; } }
</style>"""


def table(rows: Sequence[Row], headings: Mapping[str, str], caption: str) -> str:
    """HTML of the comparison; headings: what stands below the name of each column. It scrolls inside itself."""
    head = "".join(
        f'<th scope="col">{escape(name)}<small>{escape(below)}</small></th>' for name, below in headings.items()
    )
    body = "".join(
        f'<tr><th scope="row">{escape(row.label)}{_small(row.note)}</th>'
        + "".join(_cell(row.cells[name], dense=not at) for at, name in enumerate(headings))
        + "</tr>"
        for row in rows
    )
    return (
        f'{STYLE}<div class="comparison" role="region" aria-label="Comparison" tabindex="0">'
        f'<table style="--columns: {len(headings)}">'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell, *, dense: bool) -> str:
    parts = [f'<span class="value">{escape(cell.text)}</span>']
    if cell.change:
        side = "" if cell.better is None else " better" if cell.better else " worse"
        parts.append(f'<span class="change{side}">{escape(cell.change)}</span>')
    if cell.between is not None:
        low, high = (100 * end for end in cell.between)
        parts.append(f'<span class="axis"><i style="left: {low:.1f}%; width: {high - low:.1f}%"></i></span>')
    if cell.share is not None:
        width = 100 * min(1.0, max(0.0, cell.share))
        parts.append(f'<span class="bar{" dense" if dense else ""}"><i style="width: {width:.1f}%"></i></span>')
    return f"<td>{''.join(parts)}{_small(cell.note)}</td>"


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def comparison_csv(rows: Sequence[Row], headings: Mapping[str, str]) -> str:
    """The comparison as CSV: a line for each figure, and for each column its value, difference and remark."""
    first, *others = headings
    names = [first, f"{first}, remark"]
    for name in others:
        names += [name, f"{name}, against {first}", f"{name}, remark"]
    lines: list[dict[str, object]] = []
    for row in rows:
        line: dict[str, object] = {"Figure": row.label, "Unit": row.unit}
        for name in headings:
            cell = row.cells[name]
            value = cell.text if cell.value is None else float(f"{cell.value:.10g}")
            line |= {name: value, f"{name}, remark": cell.note}
            line |= {} if name == first else {f"{name}, against {first}": cell.change}
        lines.append(line)
    heads: dict[str, object] = {"Figure": "In", "Unit": "", **headings}
    return as_csv([heads, *lines], ["Figure", "Unit", *names])


def as_csv(lines: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> str:
    """Rows as CSV text; a text that a spreadsheet would take for a formula begins with an apostrophe.

    >>> print(as_csv([{"Layer": "=fc", "Ranks": 3}]), end="")
    Layer,Ranks
    '=fc,3
    """
    names = list(columns) or list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_no_formula, names))
    writer.writerows([_no_formula(line.get(name, "")) for name in names] for line in lines)
    return text.getvalue()


def _no_formula(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
