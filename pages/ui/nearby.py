"""The networks in a folder: found by their names and by reading, never by running anything."""

from __future__ import annotations

import ast
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

LEVELS = 2
"""Folders below the one that is looked through, and those below these."""

MOST_ENTRIES = 2_000
"""Files and folders that are looked at, in all; of a folder of 50,000 images the first ones."""

MOST_NETWORKS = 100
"""Listed at most."""

MOST_READ = 200
"""Python files that are read, at most."""

LARGEST_SOURCE = 2**16
"""Bytes of a Python file that is read, at most."""

SECONDS = 1.0
"""After which no further entry is looked at: a folder may lie on a slow disk."""

KINDS = {
    ".onnx": "ONNX",
    ".safetensors": "weights",
    ".pt2": "program of torch.export",
    ".pt": "weights",
    ".pth": "weights",
    ".ckpt": "weights",
}
"""What a file is by its ending; a Python file is read for that."""

_BUILDS = re.compile(r"^(def +build_model\b|build_model *[:=]|from .+ import .*\bbuild_model\b)", re.MULTILINE)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_INDEX = ".safetensors.index.json"
_ASIDE = {"__pycache__", "node_modules", "site-packages"}


@dataclass(frozen=True, slots=True, order=True)
class Nearby:
    """A network in a folder: its path from there, with `/` between the parts, and what it is in a word or two."""

    path: str
    kind: str


@dataclass(frozen=True, slots=True)
class Found:
    """Networks by their paths; whole: whether every entry was looked at."""

    networks: tuple[Nearby, ...] = ()
    whole: bool = True


def networks_in(folder: Path) -> Found:
    """What can be opened in a folder and two levels below; hidden files, environments and links are left out."""
    networks, waiting = [], deque([(folder, 0)])
    left, to_read, until = MOST_ENTRIES, MOST_READ, time.monotonic() + SECONDS
    while waiting and left > 0:
        place, level = waiting.popleft()
        entries = list(islice(_entries(place), left + 1))
        left -= len(entries)
        for entry in sorted(entries, key=lambda entry: entry.name):
            if time.monotonic() > until:
                left = 0
                break
            path = place / entry.name
            if entry.is_dir(follow_symlinks=False):
                if _has_config(path):
                    networks.append(Nearby(path.relative_to(folder).as_posix(), "folder of transformers"))
                elif level < LEVELS and not _is_environment(path):
                    waiting.append((path, level + 1))
                continue
            reads = entry.name.endswith(".py") and to_read > 0
            to_read -= reads
            if kind := ("Python" if reads and builds_a_model(path) else _kind(entry.name)):
                networks.append(Nearby(path.relative_to(folder).as_posix(), kind))
    shown = sorted(networks, key=lambda one: (one.path.count("/"), one.path))[:MOST_NETWORKS]
    return Found(tuple(shown), left > 0 and len(shown) == len(networks))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Files and folders that are no links and not hidden; none where the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name not in _ASIDE and not entry.is_symlink():
                    yield entry
    except OSError:
        return


def _kind(name: str) -> str:
    if name.endswith(_INDEX):
        return "weights in several files"
    return "" if _SHARD.search(name) else KINDS.get(Path(name).suffix.lower(), "")


def _has_config(folder: Path) -> bool:
    return os.path.isfile(folder / "config.json")


def _is_environment(folder: Path) -> bool:
    return os.path.isfile(folder / "pyvenv.cfg")


def builds_a_model(path: Path) -> bool:
    """Whether a Python file has a `build_model` of its own at its top level, by its text alone."""
    try:
        about = path.stat()
        return about.st_size <= LARGEST_SOURCE and _builds_a_model(path, about.st_mtime_ns, about.st_size)
    except OSError:
        return False


@lru_cache(MOST_READ)
def _builds_a_model(path: Path, changed_ns: int, size: int) -> bool:
    """Parsed once for as long as the file is as it was."""
    source = path.read_bytes()
    if b"build_model" not in source:
        return False
    text = source.decode(errors="replace")
    try:
        return bool(_BUILDS.search(text)) and any(map(_names_it, ast.parse(text).body))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _names_it(statement: ast.stmt) -> bool:
    match statement:
        case ast.FunctionDef(name=name):
            return name == "build_model"
        case ast.Assign(targets=targets):
            return any(isinstance(target, ast.Name) and target.id == "build_model" for target in targets)
        case ast.ImportFrom(names=names):
            return any((alias.asname or alias.name) == "build_model" for alias in names)
    return False
