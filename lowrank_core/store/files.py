"""Files that are there whole or not at all, and what killed processes leave of them."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from lowrank_core.errors import InvalidFile

LEFT_SECONDS = 3600.0
"""A temporary file of this age was left by a process that was killed."""

SCRATCH = "rank-explorer-"
"""Beginning of the names of our folders in the system's temporary one."""

SCRATCH_SECONDS = 7 * 86400.0
"""The same of such a folder: a server may keep one for days."""


def temporary_name(path: Path) -> Path:
    """A name beside `path`, another each time, that nothing takes for a finished file: `.NAME.1a2b3c4d.tmp`."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, then take the place of `path`; its folder is made if need be.

    Where writing fails, on a full disk say, nothing is left behind; only a kill leaves the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in the system's temporary one, removed at the end; what kills left of others goes after a week."""
    remove_old_scratch()
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder:
        yield Path(folder)


def remove_left(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of files of that name; without one of any, which is for folders of our own."""
    _remove_old(folder, "*.tmp" if name is None else f".{escape(name[:200])}.????????.tmp", LEFT_SECONDS)


def remove_old_scratch() -> None:
    """Remove the folders of processes that were killed a week ago."""
    _remove_old(Path(tempfile.gettempdir()), f"{SCRATCH}*", SCRATCH_SECONDS)


def _remove_old(folder: Path, pattern: str, seconds: float) -> None:
    for path in folder.glob(pattern):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - seconds:
                drop(path)


def drop(path: Path) -> None:
    """Remove a file, or a folder that stands in its place; another process may be faster."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, which takes the place of `path` at the end; removed where anything fails.

    What a killed process left of an earlier attempt is removed once it is an hour old.
    """
    if path.is_dir():
        raise InvalidFile(f"{path} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise InvalidFile(f"there is no folder {path.parent}; create it first.")
    remove_left(path.parent, path.name)
    temporary = temporary_name(path)
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files private
        os.replace(temporary, path)
    except OSError as error:
        raise InvalidFile(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
