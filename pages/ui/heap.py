"""Heap: memory that nobody uses any more goes back to the system, without stopping everybody to look for it."""

from __future__ import annotations

import gc
import threading
import time

from lowrank_core.running.heap import give_back

SECONDS = 5.0


def keep_small(seconds: float = SECONDS) -> threading.Thread:
    """Collect what refers to itself and give freed memory back now and then, in a thread.

    Streamlit would collect after every run, fragments too, through all objects of PyTorch: 0.15 s in which no other
    thread runs, with eight sessions a quarter of the server's time (`benchmarks/load.py`). That is switched off in
    .streamlit/config.toml, and what is there at the start is not gone through any more. glibc seldom gives back by
    itself in a process of many threads: half of the resident memory was free.
    """
    gc.collect()
    gc.freeze()

    def work() -> None:
        while True:
            time.sleep(seconds)
            gc.collect()
            give_back()

    thread = threading.Thread(target=work, name="heap", daemon=True)
    thread.start()
    return thread
