"""The parts of the documents that the code knows best: commands, rules, methods, exports, sources, limits, imports.

    python -m benchmarks.reference            # says which pages are not what the code says; exit status 1 if any
    python -m benchmarks.reference --write    # writes them

What stands between `<!-- NAME -->` and `<!-- end of NAME -->` on a page is written here; the rest of it by people.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import Field, fields
from importlib import import_module
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import click
from torch import nn

import lowrank_core
from benchmarks.imports import graph, package_table, picture, section
from benchmarks.page import PAGES, ROOT, RUN, between
from lowrank_core.commands import cli
from lowrank_core.exports import EXPORTS, Export
from lowrank_core.figures import count
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.methods import METHODS, Method
from lowrank_core.readers import READERS
from lowrank_core.scoring.metrics import METRICS
from lowrank_core.selection import RULES, Rule
from lowrank_core.sources import SOURCES
from lowrank_core.store.files import write_whole

PROGRAM = "rank-explorer"

KINDS: dict[str, LayerSpec] = {
    "Linear": LayerSpec.of(nn.Linear(64, 64)),
    "Embedding": LayerSpec.of(nn.Embedding(64, 64)),
    "weight of an LSTM": LayerSpec(64, 256, gates=4),
    "Conv1d": LayerSpec.of(nn.Conv1d(64, 64, 3)),
    "Conv2d": LayerSpec.of(nn.Conv2d(64, 64, 3)),
    "Conv2d 1 x 1": LayerSpec.of(nn.Conv2d(64, 64, 1)),
    "Conv2d in 4 groups": LayerSpec.of(nn.Conv2d(64, 64, 3, groups=4)),
    "depthwise Conv2d": LayerSpec.of(nn.Conv2d(64, 64, 3, groups=64)),
    "Conv3d": LayerSpec.of(nn.Conv3d(64, 64, 3)),
    "ConvTranspose2d": LayerSpec.of(nn.ConvTranspose2d(64, 64, 3)),
}
"""Layers that every method is asked about."""

WISHES = {"budget": "a budget", "max_drop": "a largest drop", "nothing": "its own settings alone"}


def words(doc: str | None) -> str:
    """A docstring without its indent, paragraphs apart."""
    paragraphs = re.split(r"\n\s*\n", (doc or "").strip())
    return "\n\n".join(" ".join(line.strip() for line in paragraph.splitlines()) for paragraph in paragraphs)


def first_line(doc: str | None) -> str:
    """The first sentence of a docstring, as a phrase."""
    return words(doc).split("\n\n")[0]


# ---- commands -------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and options, as click knows them."""
    cli.load()
    return "\n\n".join(_command(name, command) for name, command in sorted(cli.commands.items()))


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"{PROGRAM} {name}")
    records = (param.get_help_record(context) for param in command.params)
    pairs = ((option, " ".join(text.split())) for option, text in filter(None, records))
    options = "\n".join(f"- `{option}`{': ' if text else ''}{text}" for option, text in pairs)
    usage = f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    return f"### {name}\n\n```text\n{usage}\n```\n\n{words(command.help)}\n\n{options}"


# ---- rules ----------------------------------------------------------------------------------------------------------


def rules() -> str:
    """Every rule: what it does, who described it, what it can be asked for, its settings."""
    rows = "\n".join(
        f"| [`{name}`](#{name}) | {first_line(rule.__doc__)} | {_rule(rule).source} |" for name, rule in RULES.items()
    )
    parts = [f"| rule | chooses by | from |\n|---|---|---|\n{rows}"]
    for name, rule in RULES.items():
        known = _rule(rule)
        methods = ", ".join(f"`{method}`" for method in known.methods) or "those that the network's layers use first"
        facts = [
            f"- From: {known.source}.",
            f"- Can be asked for: {' or '.join(WISHES[wish] for wish in sorted(known.serves))}.",
            f"- Methods, unless others are named: {methods}.",
        ]
        settings = [_setting(each) for each in fields(rule)]  # type: ignore[arg-type]
        if settings:
            facts.append("- Settings (`--set KEY=VALUE`):")
        text = "\n".join([*facts, *(f"    - {setting}" for setting in settings)])
        parts.append(f"## {name}\n\n{words(rule.__doc__)}\n\n{text}")
    return "\n\n".join(parts)


def _rule(rule: Callable[..., Rule]) -> type[Rule]:
    """A rule is made by its class."""
    assert isinstance(rule, type)
    return rule


def _setting(setting: Field[Any]) -> str:
    """`name`, label, default, bounds, help."""
    facts = setting.metadata
    if "choices" in facts:
        bounds = f"; one of {', '.join(f'`{choice}`' for choice in facts['choices'])}"
    elif "min" in facts:
        bounds = f", from {facts['min']:g} to {facts['max']:g}"
    else:
        bounds = ""
    return (
        f"`{setting.name}` ({facts.get('label', setting.name)}), default `{setting.default}`{bounds}: {facts['help']}"
    )


# ---- methods --------------------------------------------------------------------------------------------------------


def methods() -> str:
    """Every method: its chain, its ranks, its source, and which layers it cannot take, with the reason it gives."""
    head = "| layer | methods that take it |\n|---|---|\n" + "\n".join(
        f"| {kind} | {', '.join(f'`{m.name}`' for m in METHODS.values() if m.obstacle(spec) is None) or 'none'} |"
        for kind, spec in KINDS.items()
    )
    modules = groupby(METHODS.values(), key=lambda method: type(method).__module__)
    return "\n\n".join([head, *(_method(module, list(group)) for module, group in modules)])


def _method(module: str, variants: list[Method]) -> str:
    """What one file of the package registers."""
    first = variants[0]
    kind = type(first)
    rows = "\n".join(
        f"| `{m.name}` | {m.label} | {', '.join(m.axes)} "
        f"| {_yes(m.nested)} | {_yes(m.data_aware)} | {_yes(m.reference)} |"
        for m in variants
    )
    obstacles: dict[str, list[str]] = {}
    for layer, spec in KINDS.items():
        reason = first.obstacle(spec)
        if reason is not None:
            obstacles.setdefault(reason, []).append(layer)
    facts = [
        f"- From: {first_line(kind.__doc__)}",
        f"- Chain: {first_line(kind.stages.__doc__)}",
        f"- Largest rank: {first_line(kind.max_rank.__doc__)}",
        f"- Takes: {first_line(kind.obstacle.__doc__)}",
        *(f'- Obstacle of {", ".join(layers)}: "{reason}"' for reason, layers in obstacles.items()),
    ]
    title = module.rpartition(".")[2]
    return "\n\n".join(
        [
            f"## {title}",
            words(sys.modules[module].__doc__),
            "\n".join(facts),
            f"| name | label | ranks | nested | data-aware | only to compare with |\n|---|---|---|---|---|---|\n{rows}",
        ]
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# ---- exports, sources, names, benchmarks ----------------------------------------------------------------------------


def exports() -> str:
    """Every kind of file."""
    rows = [
        f"| `{name}` | {export.label} | `{export.suffix}` | {_numbers(export)} | "
        f"{first_line(import_module(export.write.__module__).__doc__)} |"
        for name, export in EXPORTS.items()
    ]
    return "| `--format` | is | name ends | numbers | |\n|---|---|---|---|---|\n" + "\n".join(rows)


def _numbers(export: Export) -> str:
    return (
        ", ".join(("float32", *export.dtypes))
        if export.dtypes
        else "ranks alone"
        if export.name == "plan"
        else "float32"
    )


def sources() -> str:
    """Every kind of reference that a model is opened by."""
    rows = [
        f"| {source.name} | {source.example} | {first_line(import_module(source.open.__module__).__doc__)} |"
        for source in SOURCES.values()
    ]
    return "| source | as in | |\n|---|---|---|\n" + "\n".join(rows)


def readers() -> str:
    """Every kind of data, with how its module says what it is."""
    rows = [
        f"| {reader.name} | {reader.example} | {first_line(import_module(reader.read.__module__).__doc__)} |"
        for reader in READERS.values()
    ]
    return "| kind | as in | |\n|---|---|---|\n" + "\n".join(rows)


def metrics() -> str:
    """Every metric that has a name, with what it computes from which outputs and targets."""
    rows = []
    for name, metric in METRICS.items():
        judge = metric.per_sample or metric.value or metric.totals or metric.about
        paragraphs = words(judge.__doc__).split("\n\n")
        says = " ".join(paragraphs if metric.of is None else [words(metric.of.__doc__), *paragraphs[1:]])
        better = "higher" if metric.higher_is_better else "lower"
        rows.append(f"| `{name}` | {metric.name} | {better} | {'yes' if metric.takes_weights else 'no'} | {says} |")
    return "| name | is | better | weights | |\n|---|---|---|---|---|\n" + "\n".join(rows)


def names() -> str:
    """Every public name, with the first line of what it says of itself."""
    rows = [f"| `{name}` | {first_line(getattr(lowrank_core, name).__doc__)} |" for name in lowrank_core.__all__]
    return "| name | |\n|---|---|\n" + "\n".join(rows)


LIMITS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Networks and weights": (
        ("lowrank_core/errors.py", "MOST_LAYERS", ""),
        ("lowrank_core/networks/profile.py", "LONGEST_NAME", ""),
        ("lowrank_core/networks/wrappers.py", "DEEPEST", ""),
        ("lowrank_core/sources/_weights.py", "MOST_TENSORS", ""),
        ("lowrank_core/sources/_shards.py", "LARGEST_HEADER", "B"),
        ("lowrank_core/sources/onnx.py", "MOST_NUMBERS", ""),
        ("lowrank_core/graphs/operators.py", "LARGEST_FILL", ""),
        ("lowrank_core/graphs/control.py", "MOST_TURNS", ""),
    ),
    "Data": (
        ("lowrank_core/samples/limits.py", "MOST_SAMPLES", ""),
        ("lowrank_core/samples/limits.py", "MOST_BYTES", "B"),
        ("lowrank_core/readers/_npz.py", "GROWTH", ""),
        ("lowrank_core/readers/_pictures.py", "MOST_PIXELS", ""),
        ("lowrank_core/readers/_sound.py", "MOST_SECONDS", ""),
        ("lowrank_core/readers/_running_text.py", "MOST_TEXT", "B"),
    ),
    "Plans": (
        ("lowrank_core/plans/plan.py", "LARGEST_BYTES", "B"),
        ("lowrank_core/plans/correction.py", "MOST_SAMPLES", ""),
        ("lowrank_core/plans/correction.py", "LARGEST_SEED", ""),
        ("lowrank_core/plans/correction.py", "LARGEST_RIDGE", ""),
    ),
    "Work": (
        ("lowrank_core/running/parallel.py", "MOST_WORKERS", ""),
        ("lowrank_core/exports/_reload.py", "LIMIT_SECONDS", ""),
        ("lowrank_core/exports/_reload.py", "LIMIT_TIMES", ""),
    ),
    "Messages": (
        ("lowrank_core/errors.py", "LISTED", ""),
        ("lowrank_core/errors.py", "SHOWN_LETTERS", ""),
        ("lowrank_core/errors.py", "MESSAGE_LETTERS", ""),
    ),
    "The dashboard": (
        ("pages/bodies/export.py", "LARGEST_DOWNLOAD", "B"),
        ("pages/ui/state/downloads.py", "MOST_EXPORTED_BYTES", "B"),
        ("pages/ui/history.py", "DEPTH", ""),
        ("pages/ui/history.py", "MOST_SNAPSHOTS", ""),
        ("pages/ui/history.py", "NAME_LETTERS", ""),
        ("pages/ui/history.py", "NOTE_LETTERS", ""),
        ("pages/ui/history.py", "MOST_AHEAD", ""),
        ("pages/ui/history.py", "MOST_BRANCHED", ""),
        ("pages/ui/history.py", "MOST_REMOVED", ""),
        ("pages/ui/history_file.py", "LARGEST_BYTES", "B"),
        ("pages/ui/shared_jobs.py", "GONE_SECONDS", ""),
        ("pages/ui/dropped.py", "LARGEST_MB", ""),
        ("pages/ui/dropped.py", "MOST_FILES", ""),
        ("pages/ui/dropped.py", "MOST_BYTES_EACH", "B"),
        ("pages/ui/dropped.py", "MOST_BYTES", "B"),
        ("pages/ui/dropped.py", "KEPT_SECONDS", ""),
        ("pages/ui/nearby.py", "MOST_ENTRIES", ""),
    ),
}
"""(file, constant, unit) of everything that has an end, by what it is about; a constant says what it limits."""


def limits() -> str:
    """Every limit with its value and what it limits, as the constant says."""
    parts = []
    for title, rows in LIMITS.items():
        lines = []
        for file, name, unit in rows:
            value, says = _constant(ROOT / file, name)
            amount = count(value, unit) if unit else f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"
            lines.append(f"| {amount} | {says} | `{name}` in `{file}` |")
        parts.append(f"## {title}\n\n| limit | | |\n|---|---|---|\n" + "\n".join(lines))
    settings = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    megabytes = settings["server"]["maxUploadSize"]
    parts[-1] += (
        f"\n| {megabytes} MB | A file that is uploaded; a plan at most what is said above. | `.streamlit/config.toml` |"
    )
    return "\n\n".join(parts)


def _constant(path: Path, name: str) -> tuple[float, str]:
    """The value of a constant of plain numbers in a file that is not run, and the text behind it."""
    body, known = ast.parse(path.read_text(encoding="utf-8")).body, dict[str, Any]()
    for statement, following in pairwise(body):
        if not isinstance(statement, ast.Assign):
            continue
        with suppress(NameError, TypeError):  # those that are no numbers
            value = eval(compile(ast.Expression(statement.value), str(path), "eval"), {"__builtins__": {}}, known)
            known[ast.unparse(statement.targets[0])] = value
        if ast.unparse(statement.targets[0]) == name:
            assert isinstance(following, ast.Expr), f"{path}: {name} says nothing of itself"
            return known[name], words(ast.literal_eval(following.value))
    raise ValueError(f"{path} has no {name}")


def benchmarks() -> str:
    """Every page of a benchmark, with what it measures and whether its figures are of a run or carried over."""
    rows = []
    for path in sorted(PAGES.glob("*.md")):
        if path.stem == "index":
            continue
        text = path.read_text(encoding="utf-8")
        says = first_line(text.split("\n\n", 1)[1].split("\n\n")[0]).partition(": python")[0].rstrip(".")
        figures = ["run"] * (f"\n## {RUN.removeprefix('## ')}" in text) + ["carried over"] * ("\n## Carried" in text)
        rows.append(f"| [{path.stem}]({path.name}) | {says} | {', '.join(figures)} |")
    return "| benchmark | what it measures | figures |\n|---|---|---|\n" + "\n".join(rows)


# ---- all of them ----------------------------------------------------------------------------------------------------

PLACES: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("docs/commands.md", "commands", commands),
    ("docs/rules.md", "rules", rules),
    ("docs/methods.md", "methods", methods),
    ("docs/exports.md", "exports", exports),
    ("docs/models.md", "sources", sources),
    ("docs/models.md", "readers", readers),
    ("docs/models.md", "metrics", metrics),
    ("docs/library.md", "names", names),
    ("docs/architecture.md", "imports", section),
    ("docs/limits.md", "limits", limits),
    ("docs/benchmarks/index.md", "benchmarks", benchmarks),
    ("CONTRIBUTING.md", "packages", package_table),
)
"""(file, name of the place in it, what is written there)"""


def outdated() -> dict[Path, str]:
    """The files that are not what the code says, and what they should be."""
    wanted: dict[Path, str] = {}
    for name, place, made in PLACES:
        path = ROOT / name
        wanted[path] = between(path, place, made(), wanted.get(path))
    wanted[picture()] = graph()
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the pages")
    wanted = parser.parse_args()
    found = outdated()
    for path, text in found.items():
        if wanted.write:
            write_whole(path, text.encode())
        print(f"{path.relative_to(ROOT)}: {'written' if wanted.write else 'not what the code says'}")
    sys.exit(bool(found) and not wanted.write)


if __name__ == "__main__":
    main()
