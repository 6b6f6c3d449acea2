"""Ctrl-C while `python -m lowrank_core` imports what it needs, which takes seconds, ends it at once.

Python would show where it was in PyTorch; NumPy, interrupted as it is imported, even loses itself for ten seconds.
"""

from __future__ import annotations

import signal
import sys

if sys.argv[:1] == ["-m"]:  # what Python leaves there while it looks for the module to run
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def as_usual() -> None:
    """Everything is imported: Ctrl-C raises KeyboardInterrupt again, so that what was begun is tidied up."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
