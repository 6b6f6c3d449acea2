"""Which files a page may open: those under the folder where the server was started, and code only at home.

A file that is or may run code runs with the rights of whoever started the server. So a page opens one only by its path,
and only where nobody but this machine can ask for it. What was named at the start was named by that person.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import islice
from pathlib import Path

import streamlit as st

from lowrank_core.errors import InvalidFile
from lowrank_core.store.files import own_folder
from lowrank_core.store.reference import address_of, with_parts
from pages.ui.at_start import STARTED_IN, shown

DATA = (".onnx", ".safetensors", ".safetensors.index.json")
"""Endings of files that are data and nothing else; all others are or may run code."""

CODE = {".py", ".pt2", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
"""Endings in a folder that make it one with code."""

LOOKED_AT = 1_000
"""Entries of a folder that are looked at for code."""

LONGEST = 4_096
"""Letters of a path."""


def at_home() -> bool:
    """Whether nobody but this machine can ask this server for anything: it listens on a loopback address."""
    return is_loopback(st.get_option("server.address"))


def is_loopback(address: str | None) -> bool:
    """Whether an address is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback(None)
    (True, True, False, False)
    """
    if address == "localhost":
        return True
    try:
        return address is not None and ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


FILES = ("weights", "data", "train_data", "text")
"""The parts of a reference that are files or folders, besides the model."""


def named(
    path: str,
    *,
    weights: str = "",
    data: str = "",
    preprocess: str = "",
    start: Path = STARTED_IN,
    home: bool | None = None,
) -> str:
    """The reference of a network that a person has named on a page, and of what it gets from other files.

    path: from the start folder on, or whole; options of a command may follow it, as in `MODEL --weights FILE`. home: as
    `at_home` says. Raises InvalidFile, in one line, for what is not there or may not be opened.
    """
    home, given = at_home() if home is None else home, address_of(path.strip())
    fields = {"weights": weights.strip(), "data": data.strip(), "preprocess": preprocess.strip()}
    given = replace(given, **{name: value for name, value in fields.items() if value})
    if not given.model:
        raise InvalidFile("give the path of a network, such as net.onnx or model.py.")
    files = {name: str(start / Path(value).expanduser()) for name in FILES if (value := getattr(given, name))}
    try:
        whole = address_of(with_parts("", **files, preprocess=given.preprocess))
    except (RuntimeError, ValueError) as error:
        raise InvalidFile(f"{shown(str(given))!r} cannot be the names of files: {error}.") from error
    for option, file in whole.files.items():
        if option:
            _allowed(str(file), start, home or option != "--weights")
    return str(replace(whole, model=str(_allowed(given.model, start, home))))


def text_file(path: str, *, start: Path = STARTED_IN) -> Path:
    """The whole path of a text that a person has named on a page, from the start folder on; raises InvalidFile."""
    found = _allowed(path.strip(), start, home=True)  # it is read, and nothing of it is run
    if not found.is_file():
        raise InvalidFile(f"{shown(path)!r} is no file; name a file of text.")
    return found


def _allowed(name: str, start: Path, home: bool) -> Path:
    """The whole path of a file or folder that may be opened."""
    try:
        if len(name) > LONGEST:
            raise ValueError("it is too long")
        path = Path(os.path.abspath(start / Path(name).expanduser()))
        real, root = Path(os.path.realpath(path)), Path(os.path.realpath(start))
        inside = path.is_relative_to(start) or path.is_relative_to(root)
        if not (inside and real.is_relative_to(root)):
            raise InvalidFile(
                f"{shown(name)!r} {'leads' if inside else 'lies'} outside {root}, where the server was started; only "
                "files in there are opened from a page. Start the server in another folder, or name the file then."
            )
        if any(real.is_relative_to(os.path.realpath(kept)) for kept in (own_folder("cache"), own_folder("state"))):
            raise InvalidFile(f"{shown(name)!r} lies in a folder that the server keeps for itself; name another file.")
        if not path.exists():
            raise InvalidFile(f"there is no file {shown(name)!r} in {root}, where the server was started.")
        code = may_run_code(path) or may_run_code(real)
    except (RuntimeError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InvalidFile(f"{shown(name)!r} cannot be the name of a file: {reason[:100]}.") from error
    if code and not home:
        raise InvalidFile(
            f"{shown(name)!r} is code or may run some, and this server answers other machines, too: then a page opens "
            f"{', '.join(DATA[:2])} alone. Name the file when the server is started, or let it listen on 127.0.0.1."
        )
    return path


def may_run_code(path: Path) -> bool:
    """Whether opening a file or folder may run code of it: all but data, and folders that hold nothing else."""
    if path.is_dir():
        return any(Path(name).suffix.lower() in CODE for name in _names(path))
    return not path.name.lower().endswith(DATA)


def _names(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in islice(entries, LOOKED_AT):
            yield entry.name


def may_open(address: str, *, start: Path = STARTED_IN, home: bool | None = None) -> bool:
    """Whether a page may open a reference of files now, which it once did."""
    try:
        return named(address, start=start, home=home) == address
    except InvalidFile:
        return False
