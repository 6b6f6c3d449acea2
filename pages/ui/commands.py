"""The command line as it works here when it is copied: with the interpreter that runs the app."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path


def core_command(*arguments: str) -> str:
    """A command of lowrank_core; `rank-explorer ...` where the package is installed.

    >>> core_command("new", "my_model.py")  # doctest: +SKIP
    '.venv/bin/python -m lowrank_core new my_model.py'
    """
    script = _script()
    return _line(script, *arguments) if script else _line(_shown(sys.executable), "-m", "lowrank_core", *arguments)


def app_command(model: str) -> str:
    """The command that opens the app with a model; `rank-explorer app` where the package is installed."""
    script = _script()
    if script:
        return _line(script, "app", model)
    return _line(_shown(sys.executable), "-m", "streamlit", "run", "app.py", "--", model)


def as_here(text: str) -> str:
    """A text of the library with its commands as they work here."""
    return text.replace("`python -m lowrank_core ", f"`{core_command()} ")


def _script() -> str | None:
    """The installed command beside the interpreter; None where the app runs from a checkout without one."""
    script = Path(sys.executable).with_name("rank-explorer.exe" if os.name == "nt" else "rank-explorer")
    return _shown(str(script)) if script.exists() else None


def _shown(program: str) -> str:
    """A program as it is called from the folder the app was started in; by name alone where that finds it."""
    path, here = Path(program), Path.cwd()
    if any(Path(folder) == path.parent for folder in os.environ.get("PATH", "").split(os.pathsep)):
        return path.name
    return str(path.relative_to(here)) if path.is_relative_to(here) else program


def _line(*words: str) -> str:
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
