"""Which files opening a model has read, and whether they are still as they were then."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import source_from_cache
from itertools import islice
from pathlib import Path

import lowrank_core
from lowrank_core.store.files import own_folder

MOST = 256
"""Files of one model that are watched; of a folder of images the first ones."""

LOOKED_AT = 1_000
"""Entries of a model's folder that are looked at for files that are read unheard."""

UNHEARD = {".safetensors", ".onnx", ".bin", ".gguf", ".h5", ".hdf5", ".parquet", ".arrow", ".db", ".sqlite", ".lmdb"}
"""Endings of files that compiled libraries read, of which Python's audit events tell nothing."""

Look = tuple[int, int] | None
"""Time of the last change in ns and size in bytes; None where there is no file."""

_listening = threading.local()
_hooked = threading.Lock()
_state = {"hooked": False}


class FilesRead:
    """Files with their looks when they were read."""

    def __init__(self) -> None:
        self._looks: dict[Path, Look] = {}

    def add(self, path: Path) -> None:
        """Remember how a file looks now, unless it was added before or there are enough."""
        if path not in self._looks and len(self._looks) < MOST:
            self._looks[path] = _look(path)

    def add_named(self, path: Path) -> None:
        """Add a file or folder that a reference names, with what lies there and is read unheard.

        A folder looks otherwise when a file joins it or goes, and so do those in it, as of images by class.
        """
        if not path.exists():
            return
        self.add(path)
        self.add_unheard(path if path.is_dir() else path.parent)
        if path.is_dir():
            with suppress(OSError), os.scandir(path) as entries:
                for entry in islice(entries, LOOKED_AT):
                    if entry.is_dir():
                        self.add(path / entry.name)

    def add_unheard(self, folder: Path) -> None:
        """Add the files in a folder that are read unheard, if they are; one of 50,000 files is not looked through."""
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in islice(entries, LOOKED_AT):
                if Path(entry.name).suffix in UNHEARD:
                    self.add(folder / entry.name)

    @property
    def changed(self) -> bool:
        """Whether one of the files looks otherwise now, or is gone."""
        return any(_look(path) != look for path, look in self._looks.items())

    def __iter__(self) -> Iterator[Path]:
        return iter(self._looks)


@contextmanager
def listening(files: FilesRead) -> Iterator[None]:
    """Add each file that this thread reads, but for those of Python, of installed packages and of our own cache."""
    with _hooked:
        if not _state["hooked"]:
            sys.addaudithook(_hear)
            _state["hooked"] = True
    outer, _listening.files = getattr(_listening, "files", None), files
    try:
        yield
    finally:
        _listening.files = outer


def _hear(event: str, args: tuple[object, ...]) -> None:
    files: FilesRead | None = getattr(_listening, "files", None) if event == "open" else None
    if files is None:
        return
    _listening.files = None  # what is done here is not heard
    try:
        name, mode = args[0], args[1]
        if isinstance(name, str) and not (isinstance(mode, str) and set(mode) & set("wax+")):
            path = Path(name).absolute()
            if path.parent.name == "__pycache__":
                path = Path(source_from_cache(str(path)))
            if not any(path.is_relative_to(place) for place in _not_watched()):
                files.add(path)
    except (ValueError, OSError):
        pass
    finally:
        _listening.files = files


def _not_watched() -> Iterable[Path]:
    yield from (Path(sys.prefix), Path(sys.base_prefix), Path("/proc"), Path("/sys"), Path("/dev"))
    yield own_folder("cache")
    yield own_folder("state")
    yield from OURS


OURS = (Path(__file__).resolve().parents[1], Path(lowrank_core.__file__).resolve().parent)
"""The product itself: `pages` and `lowrank_core`."""


def _look(path: Path) -> Look:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size
