"""Packages in which each file is one variant of a kind: a method, a rule, a source, an export, a command."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

V = TypeVar("V", bound=Any)


def enter(table: dict[str, Any], variant: V, kind: str) -> V:
    """Enter a variant under its name and give it back; raises ValueError, which names its kind, where that is taken.

    >>> from types import SimpleNamespace
    >>> enter({}, SimpleNamespace(name="svd"), "method").name
    'svd'
    """
    if variant.name in table:
        raise ValueError(f"{kind} {variant.name!r} is registered twice")
    table[variant.name] = variant
    return variant


def register_all(package: str, path: Iterable[str]) -> None:
    """Import every variant of a package in the order of their names, so that each can make itself known.

    A module whose name starts with `_` is no variant. Called with `__name__, __path__` at the end of a package's
    `__init__`.
    """
    for name in sorted(info.name for info in iter_modules(path) if not info.name.startswith("_")):
        import_module(f"{package}.{name}")
