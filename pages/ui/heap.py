"""Heap: what was freed goes back to the system, which glibc seldom does by itself in a process of many threads."""

from __future__ import annotations

import ctypes
import threading
import time

ARENA_MAX = -8
"""glibc's number of the setting (malloc.h)."""

ARENAS = 2
"""Heaps that threads share; by default there are eight for each core, and each keeps what was freed in it."""

SECONDS = 10.0


def keep_small(seconds: float = SECONDS) -> threading.Thread | None:
    """Give freed memory back now and then, in a thread; None where the C library is not glibc.

    With eight sessions on three models half of the server's resident memory was free (`benchmarks/load.py`).
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(ARENA_MAX, ARENAS)
        trim = libc.malloc_trim
    except (OSError, AttributeError):
        return None

    def work() -> None:
        while True:
            time.sleep(seconds)
            trim(0)

    thread = threading.Thread(target=work, name="heap", daemon=True)
    thread.start()
    return thread
