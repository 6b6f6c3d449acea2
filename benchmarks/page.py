"""What a benchmark prints, kept as a page: `--write` after any of them writes docs/benchmarks/NAME.md.

A page has one part for each command line, with date, commit, machine and versions. A run that ends well replaces the
part of its own command line; all other parts stay, those written by hand too.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "benchmarks"
BUSY = 0.5
"""Processes that wished to run when it began, averaged over a minute, from which on a machine is called shared."""

THREADS = os.environ.get("OMP_NUM_THREADS")
"""As it was asked for: what a benchmark imports may set it later."""

PART = re.compile(r"^(?=## )", re.MULTILINE)
RUN = "## `"
"""How the heading of a run's part begins; every other part was written by hand."""


class _Both(io.TextIOBase):
    """Standard output that is also remembered."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.told = out, io.StringIO()

    def write(self, text: str) -> int:
        self.told.write(text)
        return self.out.write(text)

    def flush(self) -> None:
        self.out.flush()


def benchmark_parser(doc: str | None) -> argparse.ArgumentParser:
    """What every benchmark reads its command line with: its docstring as help, and --write."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--write", action="store_true", help="also write what is printed to the page in docs")
    return made


def run_benchmark(main: Callable[[], None], *, apart: tuple[str, ...] = ()) -> None:
    """Run a benchmark's `main`; with --write what it printed becomes a part of its page, once it has ended well.

    apart: options with a value that make no part of their own, such as one that chooses rows of tables: then `main`
    prints the others as they stand on the page.
    """
    words = sys.argv[1:]
    if "--write" not in words or {"-h", "--help"} & set(words):
        main()
        return
    name, doc = Path(sys.argv[0]).stem, sys.modules["__main__"].__doc__ or ""
    from lowrank_core.store.files import write_whole  # here: benchmarks.fuzz must see the core being imported

    where, began = surroundings(), time.monotonic()
    both = _Both(sys.stdout)
    with redirect_stdout(both):
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
    command = f"{f'OMP_NUM_THREADS={THREADS} ' if THREADS else ''}python -m benchmarks.{name}"
    left_out = {at for at, word in enumerate(words) if word == "--write"}
    left_out |= {at + offset for at, word in enumerate(words) if word in apart for offset in (0, 1)}
    shown = [word for at, word in enumerate(words) if at not in left_out]
    command = " ".join([command, *(shlex.quote(_from_here(word)) for word in shown)])
    taken = f"{time.monotonic() - began:.0f} s"
    path = PAGES / f"{name}.md"
    write_whole(path, page(path, doc, part(command, f"{where} · {taken}", both.told.getvalue())).encode())
    print(f"written: {path.relative_to(ROOT)}", file=sys.stderr)


def surroundings() -> str:
    """Date, commit, kind of machine, versions, and whether the machine had other work."""
    from lowrank_core.measure.latency import cpu_name

    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return " · ".join(
        [
            f"{datetime.now(UTC):%Y-%m-%d}",
            f"commit {commit()}",
            f"{cores} cores, {cpu_name()}, {platform.system()}",
            f"Python {platform.python_version()}, torch {version('torch')}",
            f"shared machine, load {load:.1f} at the start" if load > BUSY else "quiet machine",
        ]
    )


def commit() -> str:
    """The commit that runs, and whether what is committed has been changed since."""
    changed = " with changes" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs") else ""
    return f"{_git('rev-parse', '--short', 'HEAD') or 'unknown'}{changed}"


def stamp() -> str:
    """The commit and the date, for a row that stays while others are renewed."""
    return f"{commit()}, {datetime.now(UTC):%Y-%m-%d}"


def part(command: str, where: str, printed: str) -> str:
    """The part of one run: its command, where it ran, and what it printed.

    >>> print(part("python -m benchmarks.memory", "2 cores", "| a | b |\\n|---|---|\\n| 1 | 2 |\\nin all 3"))
    ## `python -m benchmarks.memory`
    <BLANKLINE>
    2 cores
    <BLANKLINE>
    | a | b |
    |---|---|
    | 1 | 2 |
    <BLANKLINE>
    ```text
    in all 3
    ```
    """
    return "\n\n".join([f"{RUN}{command}`", where, *_blocks(printed)])


def _blocks(printed: str) -> list[str]:
    """Tables of Markdown as they are, everything else word for word."""
    blocks = []
    for is_table, group in groupby(printed.strip("\n").splitlines(), key=lambda line: line.startswith("|")):
        lines = "\n".join(group).strip("\n")
        if is_table and "\n|--" in lines:
            blocks.append(lines)
        elif lines.strip():
            blocks.append(f"```text\n{lines}\n```")
    return blocks


def page(path: Path, doc: str, new: str) -> str:
    """The text of the page at `path` with one part new; the head says what the benchmark's docstring says."""
    _, *parts = PART.split(path.read_text(encoding="utf-8")) if path.exists() else [""]
    parts = [each.strip() for each in parts]
    heading = new.splitlines()[0]
    headings = [each.splitlines()[0] for each in parts]
    if heading in headings:
        parts[headings.index(heading)] = new
    else:
        parts.append(new)
    parts.sort(key=lambda each: not each.startswith(RUN))
    return "\n\n".join([f"# {path.stem}", doc.strip(), *parts]) + "\n"


def renewed(path: Path | None, head: str, new: list[list[str]]) -> list[list[str]]:
    """Rows of a table: these, and those of the same table on a page whose first cells are not among them.

    head: the first two lines of the table.
    """
    names = {row[0] for row in new}
    _, found, rest = (path.read_text(encoding="utf-8") if path is not None and path.exists() else "").partition(head)
    kept = [] if not found else rest.split("\n\n")[0].strip("\n").splitlines()
    old = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in kept]
    return [row for row in old if row[0] not in names] + new


def table_of(head: str, rows: list[list[str]]) -> str:
    """A table of Markdown.

    >>> print(table_of("| a | b |\\n|---|---|", [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


def between(path: Path, name: str, text: str, whole: str | None = None) -> str:
    """The text of a file with what stands between `<!-- NAME -->` and `<!-- end of NAME -->` replaced.

    whole: that text, where another place in it was replaced before. Raises ValueError where the file has no such place.
    """
    whole = path.read_text(encoding="utf-8") if whole is None else whole
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise ValueError(f"{path.name} must have {begin} and {end} once each")
    before, _, rest = whole.partition(begin)
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.partition(end)[2]}"


def _from_here(word: str) -> str:
    """A word of a command line; an absolute path as it is from the repository, so that no page names a machine's.

    >>> _from_here(str(ROOT.parent / "before")), _from_here("--write"), _from_here("builtin:digits-cnn")
    ('../before', '--write', 'builtin:digits-cnn')
    """
    return os.path.relpath(word, ROOT) if os.path.isabs(word) else word


def _git(*words: str) -> str:
    """What git answers, "" where it cannot."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
