"""The model of a command, and what belongs to it: files of its weights and data, parts of its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from lowrank_core.store.reference import with_parts


def _not_empty(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if not str(value).strip("\x00 "):
        raise click.BadParameter("it is empty; name a model or a file.", ctx, param)
    return value


def _model(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value is None:
        if ctx.meta.get(_PARTS):
            option = next(iter(ctx.meta[_PARTS])).replace("_", "-")
            raise click.UsageError(f"--{option} needs a MODEL that gets them.", ctx)
        return None
    return with_parts(_not_empty(ctx, param, value), **ctx.meta.get(_PARTS, {}))


def _part(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Kept for the model, of which it becomes a part."""
    if value is not None:
        ctx.meta.setdefault(_PARTS, {})[param.name] = _not_empty(ctx, param, value)


_PARTS = "lowrank_core parts of the model"


def _besides(option: str, metavar: str, text: str, **more: Any) -> Callable[..., Any]:
    """An option that says what belongs to the model; it is known before the model is."""
    return click.option(option, metavar=metavar, callback=_part, is_eager=True, expose_value=False, help=text, **more)


_FILE = click.Path(exists=True)

BESIDES = (
    _besides(
        "--weights",
        "FILE",
        "Weights that MODEL gets: a state_dict, training checkpoint or shards; FILE#KEY: those under this key.",
    ),
    _besides(
        "--data",
        "PATH",
        "Samples that MODEL is judged on: a folder of images or recordings by class, .csv, .npz, .txt, saved datasets.",
        type=_FILE,
    ),
    _besides("--train-data", "PATH", "The same for training and correction; without it those of --data.", type=_FILE),
    _besides(
        "--preprocess",
        "SPEC",
        "How they become inputs: mean/std/size (0.5/0.5/224), imagenet, a processor's .json, target=COLUMN.",
    ),
    _besides(
        "--text",
        "FILE",
        "A text that a causal language model is judged on, by perplexity; a folder: each .txt is a document.",
        type=_FILE,
    ),
)
"""What belongs to the model: each becomes a part of its reference."""


def FILE(function: Callable[..., Any], *, required: bool = True) -> Callable[..., Any]:  # noqa: N802
    """A model of a command that nothing belongs to: it is looked at as it lies there."""
    return click.argument("model", callback=_model, required=required)(function)


def MODEL(function: Callable[..., Any], *, required: bool = True) -> Callable[..., Any]:  # noqa: N802
    """The model of a command, with the files of its weights and data if some are given."""
    for option in reversed(BESIDES):
        function = option(function)
    return FILE(function, required=required)
