"""A report as Markdown: tables in place of pictures; what comes from outside is text and never markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lowrank_core.reports.sections import Section, Table


def markdown(title: str, parts: Sequence[Section]) -> str:
    """The whole report.

    >>> print(markdown("a <b>", [Section("Figures", ("1 | 2",))]))
    # a &lt;b>
    <BLANKLINE>
    ## Figures
    <BLANKLINE>
    1 \\| 2
    <BLANKLINE>
    """
    blocks = [f"# {escaped(title)}"]
    for part in parts:
        if part.picture and part.table is None:
            continue
        blocks.append(f"## {escaped(part.title)}")
        blocks += map(escaped, part.lines)
        if part.table is not None:
            blocks.append(_table(part.table))
        for what, text in part.copied:
            blocks += [escaped(what), _code(text)]
    return "\n\n".join(blocks) + "\n"


def escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;"))


def _table(table: Table) -> str:
    lines = [table.titles, tuple("---" for _ in table.titles), *table.rows]
    cells = [line if at == 1 else tuple(map(escaped, line)) for at, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _code(text: str) -> str:
    """Text between fences that are longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text.strip()}\n{fence}"
