"""One writer at a time: a lock among all threads and processes that change what lies in a folder."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".lock"
PATIENCE_SECONDS = 10.0
"""Whoever holds the lock writes a few files: one that holds it longer has been stopped."""

LOOK_SECONDS = 0.005

if sys.platform == "win32":
    import msvcrt

    def _take(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

    def _give_back(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _give_back(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


HELD = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK}


@contextmanager
def locked(folder: Path, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Inside, nobody else is in `locked(folder)`; the folder is made if need be, and a file `.lock` in it.

    The system ends a lock with the process that holds it, so that a kill leaves none. On a file system without locks
    it goes on without. Raises OSError, TimeoutError where another one holds it for so long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        taken = _wait_for(file, time.monotonic() + patience_seconds)
        if taken is None:
            raise TimeoutError(errno.ETIMEDOUT, "another program holds its lock", str(folder / NAME))
        try:
            yield
        finally:
            if taken:
                _give_back(file)  # not left to closing: a process forked meanwhile holds the file, too
    finally:
        os.close(file)


def _wait_for(file: int, until: float) -> bool | None:
    """Whether the lock is taken; None where time is over, False where there are no locks."""
    while True:
        try:
            _take(file)
        except OSError as error:
            if error.errno not in HELD:
                return False
        else:
            return True
        if time.monotonic() > until:
            return None
        time.sleep(LOOK_SECONDS)
