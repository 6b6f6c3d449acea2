"""Heap: how much memory there is, and what nobody uses any more of it goes back to the system."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

LARGE_BYTES = 2**26
"""Work that takes as much asks for it: what was freed before is given back first, so that the two do not add up."""


def give_back() -> None:
    """Give freed memory back, where the C library is glibc: it keeps blocks below 32 MB for whoever asks next."""
    _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    try:
        trim: Callable[[int], object] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return lambda pad: None
    return trim


def machine_bytes() -> int | None:
    """Memory that processes may take here in all: of the machine, or of its container; None where nothing tells it."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            return min(whole, int(Path(file).read_text()))
    return whole
