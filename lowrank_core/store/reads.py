"""What a run has read of the files that it is about to replace: whatever it reads is an input, and stays."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors

_Identity = tuple[int, int]
"""Device and inode: the same for all names and links of a file."""

_watches: list[dict[_Identity, bool]] = []
_hooked = threading.Lock()
_state = {"hooked": False}
_busy = threading.local()


@contextmanager
def watched(paths: Iterable[Path]) -> Iterator[None]:
    """Note, in all threads of this process, whether these files are read; see `was_read`."""
    _hook()
    watch = {identity: False for path in paths if (identity := _identity(path)) is not None}
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)


def was_read(path: Path) -> bool:
    """Whether a file is watched and was read since, under whatever name, or is the source of an imported module."""
    identity = _identity(path)
    watches = [watch for watch in _watches if identity in watch]
    if identity is None or not watches:
        return False
    return any(watch[identity] for watch in watches) or identity in _sources()


def same_file(a: Path, b: Path) -> bool:
    """Whether two names are of one file; by the names themselves where there is none yet."""
    identity = _identity(a)
    return os.path.realpath(a) == os.path.realpath(b) or (identity is not None and identity == _identity(b))


def _identity(path: Path | str) -> _Identity | None:
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return None
    return about.st_dev, about.st_ino


def _sources() -> set[_Identity | None]:
    """Of the modules that are imported; Python reads what it has compiled of them, and not the source."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {_identity(file) for file in files if isinstance(file, str)} - {None}


def _hook() -> None:
    """Listen from now on; Python has no way back. safetensors reads without a word, so its reader is made to tell."""
    with _hooked:
        if _state["hooked"]:
            return
        _state["hooked"] = True
        sys.addaudithook(_hear)
        for module in [m for name, m in list(sys.modules.items()) if name.partition(".")[0] == "safetensors"]:
            if getattr(module, "safe_open", None) is safetensors.safe_open and module is not safetensors:
                module.safe_open = _telling(safetensors.safe_open)  # type: ignore[attr-defined]
        safetensors.safe_open = _telling(safetensors.safe_open)  # type: ignore[assignment, misc]


def _telling(opener: Callable[..., Any]) -> Callable[..., Any]:
    def told(filename: Any, *args: Any, **rest: Any) -> Any:
        sys.audit("open", os.fspath(filename), "rb", os.O_RDONLY)
        return opener(filename, *args, **rest)

    return told


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" or not _watches or getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        name, mode, flags = args
        only_writes = set(mode) & set("wax") if isinstance(mode, str) else flags & os.O_ACCMODE == os.O_WRONLY
        if not only_writes and isinstance(name, str | bytes):
            with suppress(OSError, ValueError):
                about = os.stat(name)
                for watch in _watches:
                    if (about.st_dev, about.st_ino) in watch:
                        watch[about.st_dev, about.st_ino] = True
    finally:
        _busy.now = False
