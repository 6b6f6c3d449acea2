"""What `pip install rank-explorer` leaves out: packages that only some files and commands need, in named extras."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from lowrank_core.errors import MissingExtra


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around the import of packages of an extra: where one is missing, MissingExtra says what to install for `what`.

    >>> with extra("onnx", "an ONNX file"):
    ...     import a_package_that_is_missing
    Traceback (most recent call last):
    lowrank_core.errors.MissingExtra: an ONNX file needs more packages: pip install 'rank-explorer[onnx]'
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtra(f"{what} needs more packages: pip install 'rank-explorer[{name}]'") from error


def check_installed(name: str, what: str, *packages: str) -> None:
    """Raise MissingExtra where one of the packages of an extra is missing; none of them is imported.

    >>> check_installed("onnx", "an ONNX file", "torch")
    """
    with extra(name, what):
        for package in packages:
            if find_spec(package) is None:
                raise ModuleNotFoundError(package)
