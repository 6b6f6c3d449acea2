"""Options that commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf
from typing import Any

import click

from lowrank_core.commands import Refused
from lowrank_core.commands._outputs import Input, Output
from lowrank_core.commands._reference import FILE as FILE
from lowrank_core.commands._reference import MODEL as MODEL
from lowrank_core.errors import InvalidSearch, cut
from lowrank_core.running.parallel import MOST_WORKERS
from lowrank_core.selection._problem import read_drop
from lowrank_core.store.kinds import FileKind


def existing(*names: str, **options: Any) -> Callable[..., Any]:
    """An option that names a file which must be there."""
    return click.option(*names, type=Input(), **options)


def writing(*names: str, kind: FileKind | Callable[[dict[str, Any]], FileKind], **options: Any) -> Callable[..., Any]:
    """An option that names a file to write, tried before the command works."""
    return click.option(*names, type=Output(kind), **options)


class Amount(click.ParamType[float]):
    """A finite number above 0."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; refused where it is out of bounds."""
        amount = float(click.FLOAT.convert(value, param, ctx))
        if not 0 < amount < inf:
            raise Refused(
                f"--{param.name if param else self.name} must be a finite number above 0, but got {amount:g}."
            )
        return amount


class Drop(click.ParamType[str]):
    """A largest drop as text; what it may be of a score is seen where the score is known."""

    name = "drop"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is; refused where it is neither a number nor a percentage."""
        try:
            read_drop(value)
        except InvalidSearch as error:
            raise Refused(f"--max-drop: {error}") from error
        return str(value)


def _address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(\w+://)?[^/\s]+:\d+\S*|inproc://\S+", value):
        raise click.BadParameter(f"{cut(value)!r} is no address such as tcp://host:8786.", ctx, param)
    return value


PLAN = existing("--plan", required=True, help="Rank plan, a JSON file.")
CORRECT = click.option(
    "--correct/--no-correct", "corrected", default=True, help="Teach the factors the dense answers first; default on."
)
COMPARE = click.option("--compare", is_flag=True, help="Also measure the plan without its correction.")
DEPTH = click.option("--depth", is_flag=True, help="Also compare what each layer puts out with the dense network's.")
FREE = click.option(
    "--free-ranks/--no-free-ranks",
    "free",
    default=False,
    help="Store factors with rows of the identity, r^2 numbers and multiplies less each; default off.",
)
AS_FREE = click.option(
    "--free-ranks/--no-free-ranks",
    "free",
    default=None,
    help="Store the factors of the plan with rows of the identity, or without; default: as the plan says.",
)
TUNED = existing(
    "--tuned",
    help="With --plan: weights that your own training loop made of that plan's network, a state_dict (.pt, "
    ".safetensors) or a checkpoint of Lightning; taken as they are.",
)
MULTIPLIES = click.option(
    "--multiplies", type=Amount(), help="At most so many; up to 1: a share of the whole dense network."
)
BYTES = click.option("--bytes", type=Amount(), help="The same of bytes.")
LATENCY_TABLE = existing("--latency-table", help="CSV with layer, method, rank, microseconds, measured on the device.")
MAX_DROP = click.option(
    "--max-drop",
    type=Drop(),
    metavar="DROP",
    help="The largest drop of the score, in its own unit; 0.01 or 1% is one point.",
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
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    default=1,
    help="Processes that work on layers; default 1, this one.",
)
DASK = click.option(
    "--dask",
    callback=_address,
    metavar="ADDRESS",
    help="Work on layers on the dask cluster of this scheduler: tcp://...",
)
OUTPUTS = click.option(
    "--outputs",
    multiple=True,
    metavar="NAME",
    help="Output of the network that is judged, by name or place (repeatable); without it those that `check` tells.",
)
