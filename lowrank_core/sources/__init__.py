"""Where models come from: each file of this package opens one kind of reference.

A source is a function `open(ref) -> Opened`, registered with a predicate that says whether a reference is its kind.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from lowrank_core.errors import UnknownModel
from lowrank_core.opened import Opened


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of reference."""

    name: str
    accepts: Callable[[str], bool]
    open: Callable[[str], Opened]
    example: str


SOURCES: dict[str, Source] = {}


def register(source: Source) -> Source:
    """Make a kind of reference known."""
    if source.name in SOURCES:
        raise ValueError(f"source {source.name!r} is registered twice")
    SOURCES[source.name] = source
    return source


def open_source(ref: str) -> Opened:
    """Open `builtin:NAME`, `path/to/model.py`, `package.module`, a folder of `save_pretrained` or an `.onnx` file.

    Raises UnknownModel where nothing goes by that name, InvalidModel or InvalidData where it cannot be used.
    """
    for source in SOURCES.values():
        if source.accepts(ref):
            return source.open(ref)
    known = ", ".join(source.example for source in SOURCES.values())
    raise UnknownModel(f"no model goes by {ref!r}; give one of: {known}.")


for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")
