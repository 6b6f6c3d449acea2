"""Heap: memory that nobody uses any more goes back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

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
