"""Which Rank Explorer this is: the one place that says so."""

from __future__ import annotations

import platform
from importlib.metadata import version

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Of Rank Explorer, Python and PyTorch, for every file that is written; PyTorch is not imported for it.

    >>> sorted(versions())
    ['python', 'rank_explorer', 'torch']
    """
    return {"rank_explorer": __version__, "python": platform.python_version(), "torch": version("torch")}
