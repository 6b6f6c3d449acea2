"""Options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from lowrank_core.commands._outputs import Input, Output
from lowrank_core.store.kinds import FileKind


def existing(*names: str, **options: Any) -> Callable[..., Any]:
    """An option that names a file which must be there."""
    return click.option(*names, type=Input(), **options)


def writing(*names: str, kind: FileKind | Callable[[dict[str, Any]], FileKind], **options: Any) -> Callable[..., Any]:
    """An option that names a file to write, tried before the command works."""
    return click.option(*names, type=Output(kind), **options)


MODEL = click.argument("model")
PLAN = existing("--plan", required=True, help="Rank plan, a JSON file.")
CORRECT = click.option(
    "--correct/--no-correct", "corrected", default=True, help="Teach the factors the dense answers first; default on."
)
COMPARE = click.option("--compare", is_flag=True, help="Also measure the plan without its correction.")
MULTIPLIES = click.option(
    "--multiplies", type=float, help="At most so many; up to 1: a share of the whole dense network."
)
BYTES = click.option("--bytes", type=float, help="The same of bytes.")
MAX_DROP = click.option(
    "--max-drop", metavar="DROP", help="The largest drop of the score, in its own unit; 0.01 or 1% is one point."
)
ACCEPT = click.option(
    "--accept-difference",
    "accepting",
    is_flag=True,
    help="Save a file whose answers differ by more than rounding all the same, marked so.",
)
LOCK = click.option(
    "--lock", multiple=True, metavar="LAYER", help="Layer to leave dense, or a pattern with * (repeatable)."
)
CACHED = click.option(
    "--cache/--no-cache",
    "cached",
    default=True,
    help="Keep on disk what is computed and measured, and use what earlier runs kept; default on.",
)
WORKERS = click.option(
    "--workers", type=click.IntRange(1), default=1, help="Processes that measure layers; default 1, this one."
)
DASK = click.option("--dask", metavar="ADDRESS", help="Measure layers on the dask cluster of this scheduler: tcp://...")
OUTPUTS = click.option(
    "--outputs",
    multiple=True,
    metavar="NAME",
    help="Output of the network that is judged, by name or place (repeatable); without it those that `check` tells.",
)
