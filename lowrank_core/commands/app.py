"""The dashboard, started from the command line."""

from __future__ import annotations

import runpy
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import click

from lowrank_core.commands import Refused, cli
from lowrank_core.commands._reference import MODEL
from lowrank_core.errors import MissingExtra
from lowrank_core.extras import extra

CORE = Path(__file__).parents[1]


@cli.command()
@partial(MODEL, required=False)
@click.option("--port", type=click.IntRange(1, 65535), help="Default 8501, or the next one that is free.")
@click.option(
    "--export-folder",
    "export_folders",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Pages may write files there and below, as in the folder where the command is given; may be repeated.",
)
def app(model: str | None, port: int | None, export_folders: tuple[Path, ...]) -> None:
    """Open the dashboard in a browser, on MODEL or a built-in one; Ctrl-C ends it.

    It answers this machine alone, at 127.0.0.1, and no page but its own.
    """
    try:
        with extra("app", "the dashboard"):
            for package in ("streamlit", "plotly", "pandas"):
                if find_spec(package) is None:
                    raise ModuleNotFoundError(package)
    except MissingExtra as error:
        raise Refused(error) from error
    options = [] if port is None else ["--server.port", str(port)]
    told = [*([model] if model else []), *(f"--export-folder={folder}" for folder in export_folders)]
    sys.argv = ["streamlit", "run", *options, str(script()), "--", *told]
    runpy.run_module("streamlit", run_name="__main__", alter_sys=True)


def script() -> Path:
    """The dashboard's app.py: a wheel has it in this package, a checkout beside it."""
    inside = CORE / "dashboard" / "app.py"
    return inside if inside.is_file() else CORE.parent / "app.py"
