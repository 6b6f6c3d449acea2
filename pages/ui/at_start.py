"""What was said when the server was started: `streamlit run app.py -- [MODEL] [--data PATH] [--export-folder D]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_core.errors import InvalidFile, InvalidSettings
from lowrank_core.store.reference import OPTIONS, with_parts

STARTED_IN = Path.cwd()
"""The folder in which the server was started, whatever folder a model file changes to later."""

OPTION, PREPROCESS = "--export-folder", "--preprocess"

SHOWN_LETTERS = 100
"""Of a name in a message."""


@dataclass(frozen=True, slots=True)
class AtStart:
    """The model that was named, and the folders beside the start folder that pages may write to."""

    model: str | None = None
    export_folders: tuple[Path, ...] = ()

    @property
    def writable(self) -> tuple[Path, ...]:
        """Where pages may write: in these folders and below, links resolved."""
        return tuple(Path(os.path.realpath(folder)) for folder in (STARTED_IN, *self.export_folders))


def at_start(words: Sequence[str] | None = None) -> AtStart:
    """What the words after the script's name say; without any those of this process.

    >>> at_start(["my_model.py", "--export-folder", "/tmp"])
    AtStart(model='my_model.py', export_folders=(PosixPath('/tmp'),))
    """
    left = list(sys.argv[1:] if words is None else words)
    model, folders = None, []
    parts: dict[str, str] = {}
    while left:
        name, equals, value = left.pop(0).partition("=")
        if name == OPTION:
            folders.append(value if equals else left.pop(0) if left else "")
        elif name in OPTIONS:
            value = value if equals else left.pop(0) if left else ""
            if value:
                file = value if name == PREPROCESS else str(STARTED_IN / Path(value).expanduser())
                parts[name.removeprefix("--").replace("-", "_")] = file
        elif model is None:
            model = f"{name}{equals}{value}"
    if model is not None:
        model = with_parts(model, **parts)
    return AtStart(model, tuple(STARTED_IN / folder for folder in folders))


def check() -> None:
    """Raise InvalidSettings where a folder that was named is none."""
    for folder in at_start().export_folders:
        if folder == STARTED_IN or not os.path.isdir(folder):
            raise InvalidSettings(f"{OPTION} must name a folder that exists; got {shown(str(folder))!r}.")


def shown(name: str) -> str:
    """A name as messages have it: cut, and in one line."""
    short = name if len(name) <= SHOWN_LETTERS else f"{name[: SHOWN_LETTERS - 3]}..."
    return " ".join(short.split())


def place_for(file: str, folder: str, *, never: Path) -> Path:
    """Where a page writes a file, in a folder that a person named; links are resolved, so none leads out.

    never: a folder that nobody may name, for all that it lies in one that they may. Raises InvalidFile in one line for
    what is no folder, or one that pages must not write to.
    """
    allowed = at_start().writable
    try:
        named = STARTED_IN / Path(folder).expanduser()
        real, whole = Path(os.path.realpath(named)), Path(os.path.realpath(named / file))
        inside = all(any(path.is_relative_to(place) for place in allowed) for path in (real, whole))
        if not inside or real.is_relative_to(os.path.realpath(never)):
            raise InvalidFile(
                f"{shown(folder)!r} is none of the folders that pages may write to: {places()}. Start the server with "
                f"{OPTION} DIR to name more."
            )
        mode = "a folder" if real.is_dir() else "a file" if os.path.lexists(real) else "nothing"
    except (RuntimeError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InvalidFile(f"{shown(folder)!r} cannot be the name of a folder: {reason[:SHOWN_LETTERS]}.") from error
    if mode != "a folder":
        raise InvalidFile(
            f"there is no folder {shown(folder)!r}; create it first."
            if mode == "nothing"
            else f"{shown(folder)!r} is a file; name a folder."
        )
    return named / file


def places() -> str:
    """The folders that pages may write to, in words."""
    first, *others = map(str, at_start().writable)
    return " and ".join([f"{first}, where the server was started,", *others]) + " and all below"
