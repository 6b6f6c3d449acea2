"""The dashboard, started from the command line."""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from lowrank_core.commands import Refused, cli
from lowrank_core.errors import MissingExtra
from lowrank_core.extras import extra

CORE = Path(__file__).parents[1]


@cli.command()
@click.argument("model", required=False)
@click.option("--port", type=click.IntRange(1, 65535), help="Default 8501, or the next one that is free.")
def app(model: str | None, port: int | None) -> None:
    """Open the dashboard in a browser, on MODEL or a built-in one; Ctrl-C ends it.

    It answers this machine alone, at 127.0.0.1.
    """
    try:
        with extra("app", "the dashboard"):
            for package in ("streamlit", "plotly", "pandas"):
                if find_spec(package) is None:
                    raise ModuleNotFoundError(package)
    except MissingExtra as error:
        raise Refused(error) from error
    options = [] if port is None else ["--server.port", str(port)]
    sys.argv = ["streamlit", "run", *options, str(script()), *(["--", model] if model else [])]
    runpy.run_module("streamlit", run_name="__main__", alter_sys=True)


def script() -> Path:
    """The dashboard's app.py: a wheel has it in this package, a checkout beside it."""
    inside = CORE / "dashboard" / "app.py"
    return inside if inside.is_file() else CORE.parent / "app.py"
