"""What is set for the whole of a process, and so only in those of our own: commands, the dashboard, fresh processes."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import NoReturn

EXPORTERS = (
    *("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "torch.utils._pytree"),
    *("onnxscript", "onnx_ir", "torchao", "executorch"),
)
"""Loggers of what writes and reads graphs."""


_alone = False


def hush_libraries(*, alone: bool = False) -> None:
    """Hear nothing but errors of exporters and decompositions: they give dozens of lines that no user can act on.

    alone: nobody else in this process writes to stderr, as in a command. A host program that imports the library keeps
    what it hears as it is.
    """
    global _alone
    _alone = alone
    for name in EXPORTERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|onnx|onnxscript|onnx_ir|onnxruntime|tensorly|copyreg)(\.|$)")
    warnings.filterwarnings(
        "ignore", message="The tensor attributes? .* (was|were) assigned during export"
    )  # of an LSTM


@contextmanager
def errors_alone(*loggers: str) -> Iterator[None]:
    """Hear nothing but errors of these loggers meanwhile; afterwards they are as their host set them."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def nothing_printed() -> Iterator[None]:
    """Keep off stderr what libraries print there; only in a process where nobody else writes to it."""
    if not _alone:
        yield
        return
    with redirect_stderr(StringIO()):
        yield


@contextmanager
def stdout_left_alone() -> Iterator[None]:
    """Let what compiled libraries print go to stderr; only in a process where nobody else writes to either.

    C keeps what is printed until its buffer is full, so the buffer is emptied at both ends.
    """
    if not _alone:
        yield
        return
    c = ctypes.CDLL(None if os.name == "posix" else "msvcrt")
    c.fflush(None)
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        c.fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)


LINGER_SECONDS = 2.0
"""After its work a command waits so long for threads that a model file started, and that do not end."""


_ending = threading.RLock()
"""Held by the thread that does what was registered for the end of this process, which is done once."""


def leave(status: int) -> NoReturn:
    """End this process now: what was registered for its end is done, and no thread is waited for.

    What was printed must be flushed before, as click does.
    """
    _ending.acquire()
    atexit._run_exitfuncs()
    os._exit(status)


def _leave_if_it_waits(status: int) -> None:
    """End this process, unless its end is under way, as where worker processes take their time."""
    if _ending.acquire(blocking=False):
        leave(status)


@contextmanager
def ending_with_its_work() -> Iterator[None]:
    """Around all that a command does: when that is done the process ends, LINGER_SECONDS later at the latest.

    Python would wait for ever for a thread that a model file has started and that is no daemon.
    """
    status = 1
    try:
        yield
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        atexit.register(_ending.acquire)  # the last to be registered, and so the first that is called
        late = threading.Timer(LINGER_SECONDS, _leave_if_it_waits, (status,))
        late.daemon = True
        late.start()
