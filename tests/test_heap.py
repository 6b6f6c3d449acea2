"""Memory that was freed goes back to the system, tried in a process of its own."""

import subprocess
import sys
import tomllib

import pytest
from conftest import PATIENCE_SECONDS, ROOT

FREED = (
    f"PATIENCE_SECONDS = {PATIENCE_SECONDS}\n"
    + """
import threading, time
from pathlib import Path
from pages.ui import heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def fill():
    blocks = [bytes(1000) for _ in range(100_000)]
    del blocks[1::2], blocks[:-1]
    kept.extend(blocks)  # the last block stays, so that what lies below it is not at the end of the heap

kept = []
before = resident()
threads = [threading.Thread(target=fill) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
full = resident()
heap.keep_small(0.1)
for _ in range(PATIENCE_SECONDS * 20):
    if resident() - before < (full - before) / 2:
        break
    time.sleep(0.05)
print(full - before, resident() - before)
"""
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_what_was_freed_goes_back() -> None:
    told = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True).stdout
    full, left = map(float, told.split())
    assert full > 50
    assert left < full / 2


RING = (
    f"PATIENCE_SECONDS = {PATIENCE_SECONDS}\n"
    + """
import ctypes, gc, time, weakref
from pages.ui import heap

def missing(name):
    raise OSError(name)

class Ring:
    def __init__(self):
        self.own = self

ctypes.CDLL = missing
gc.disable()
heap.keep_small(0.05)
ring = Ring()
gone = weakref.ref(ring)
del ring
for _ in range(PATIENCE_SECONDS * 20):
    if gone() is None:
        break
    time.sleep(0.05)
assert gone() is None
"""
)


def test_what_refers_to_itself_is_collected_also_beside_another_c_library() -> None:
    subprocess.run([sys.executable, "-c", RING], check=True)


def test_streamlit_does_not_collect_after_every_run() -> None:
    settings = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    assert settings["runner"]["postScriptGC"] is False
