"""A model file to fill in."""

from __future__ import annotations

from pathlib import Path

import click

from lowrank_core.commands import Answer, command
from lowrank_core.store.files import write_new


@command
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> Answer:
    """Write a commented model file to fill in."""
    if file.suffix != ".py":
        raise click.UsageError(f"a model file ends in .py, but got {file}.")
    try:
        write_new(file, (Path(__file__).parent / "_template.py").read_bytes())
    except FileExistsError as error:
        raise FileExistsError(f"{file} exists and is not overwritten; give another name.") from error
    following = f"{click.get_current_context().find_root().info_name} check {file}"
    return {
        "path": str(file),
        "next": following,
    }, f"{file} is written. Fill in what is marked REPLACE, then: {following}"
