"""A report as one HTML file: nothing is asked of a network, light and dark by the reader's choice, and it prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from lowrank_core.reports.sections import Section, Table

STYLE = """
:root { color-scheme: light dark; --text: #17202a; --quiet: #5b6672; --page: #fff; --raised: #f5f7f9; --line: #d5dbe1;
  --main: #0072b2; --second: #b36b00; --right: 0, 114, 178; --wrong: 213, 94, 0; }
@media (prefers-color-scheme: dark) { :root { --text: #e8ecf0; --quiet: #a3adb8; --page: #14181d; --raised: #1d232a;
  --line: #38424d; --main: #56b4e9; --second: #e69f00; --right: 86, 180, 233; --wrong: 230, 130, 60; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 32px 24px 64px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
p { margin: 8px 0; max-width: 78ch; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); }
.wide { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
td:first-child, th:first-child, .text td, .text th { text-align: left; }
tbody th { font-weight: 500; white-space: normal; overflow-wrap: anywhere; min-width: 9ch; }
.text td { overflow-wrap: anywhere; }
thead th { color: var(--quiet); vertical-align: bottom; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--main); }
pre { background: var(--raised); border: 1px solid var(--line); border-radius: 6px; padding: 12px; font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 460px; overflow-y: auto; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--text); }
svg .tick, svg .title { fill: var(--quiet); }
svg.chart { display: block; width: 100%; min-width: 560px; max-width: 860px; height: auto; }
td { white-space: nowrap; } .text td { white-space: normal; }
.grid { stroke: var(--line); stroke-width: 1; }
.line { fill: none; stroke: var(--main); stroke-width: 2; stroke-linejoin: round; }
.band { fill: var(--main); opacity: .16; }
.dot { fill: var(--main); }
.chosen { stroke: var(--second); stroke-width: 2; stroke-dasharray: 5 3; }
.mark circle { fill: var(--page); stroke: var(--main); stroke-width: 2; }
.mark .interval { stroke: var(--main); stroke-width: 1.5; }
.mark.plan circle { fill: var(--second); stroke: var(--page); }
.mark.plan .interval { stroke: var(--second); stroke-width: 2; }
.mark.plan text { font-weight: 600; }
.mark.dense circle { fill: var(--quiet); stroke: var(--page); }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; margin: 12px 0; }
.curves figure { margin: 0; min-width: 0; break-inside: avoid; }
.curves figcaption { font-size: .8rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
svg.small { display: block; width: 100%; height: auto; background: var(--raised); border-radius: 4px; }
.confusion td, .confusion th { padding: 5px 9px; min-width: 46px; text-align: right; border: 1px solid var(--line); }
.confusion td.right { background: rgba(var(--right), var(--s)); }
.confusion td.wrong { background: rgba(var(--wrong), var(--s)); }
.confusion td.none { color: var(--quiet); }
.confusion small { display: block; line-height: 1.1; }
@media (max-width: 600px) { body { padding: 20px 14px 48px; } h1 { font-size: 1.4rem; } }
@media print {
  :root { color-scheme: light; --text: #000; --quiet: #444; --page: #fff; --raised: #f5f7f9; --line: #c8ced5;
    --main: #0072b2; --second: #b36b00; --right: 0, 114, 178; --wrong: 213, 94, 0; }
  @page { margin: 14mm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2 { break-after: avoid; margin-top: 22px; } tr, svg.chart, .confusion { break-inside: avoid; }
  .wide { overflow: visible; } td { white-space: normal; } table { font-size: 8pt; } th, td { padding-right: 7px; }
  .confusion td, .confusion th { min-width: 0; padding: 3px 5px; } thead { display: table-header-group; }
  tbody th { min-width: 0; } details:not(.kept) { display: none; } pre { max-height: none; font-size: 7.5pt; }
}
"""
"""Colours are Okabe and Ito's; on paper those of light."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Whatever a name may hold: no code runs, and nothing is fetched."""


def html(title: str, parts: Sequence[Section]) -> str:
    """The whole report, one file.

    >>> "<b>" in html("a <b>", [Section("Figures", ("<b>",))])
    False
    """
    body = "\n".join(_section(part) for part in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="Rank Explorer">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{_text(title)}</h1>\n<p class="quiet">A report of Rank Explorer</p>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _text(text: str) -> str:
    return escape(text)


def _section(part: Section) -> str:
    blocks = [f"<h2>{_text(part.title)}</h2>", *(f"<p>{_text(line)}</p>" for line in part.lines)]
    if part.picture:
        blocks.append(
            f'<div class="wide" tabindex="0" role="group" aria-label="{_text(part.title)}">{part.picture}</div>'
        )
    if part.caption:
        blocks.append(f'<p class="quiet">{_text(part.caption)}</p>')
    if part.table is not None and not (part.table.folded and not part.table.rows):
        table = _table(part.table, part.title)
        folded = part.table.folded and part.picture
        if not (folded and 'class="confusion"' in part.picture):  # that is a table itself
            blocks.append(f"<details><summary>As a table</summary>{table}</details>" if folded else table)
    for what, text in part.copied:
        kept = what == "commands"
        block = f'<pre tabindex="0">{_text(text.strip())}</pre>'
        blocks.append(block if kept else f"<details><summary>{_text(what)}</summary>{block}</details>")
    return f"<section>\n{chr(10).join(blocks)}\n</section>"


def _table(table: Table, name: str) -> str:
    titles = "".join(f'<th scope="col">{_text(one)}</th>' if one else "<td></td>" for one in table.titles)
    head = f"<thead><tr>{titles}</tr></thead>" if any(table.titles) else ""
    rows = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_broken(one)}</td>" for one in row[1:])}</tr>'
        for row in table.rows
    )
    kind = "" if head else ' class="text"'
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="{_text(name)}, table">'
        f"<table{kind}>{head}<tbody>{rows}</tbody></table></div>"
    )


def _broken(text: str) -> str:
    """A cell whose bracket goes on a line of its own where there is no room."""
    return re.sub(r" (\([^()]*\))$", r" <wbr>\1", _text(text))
