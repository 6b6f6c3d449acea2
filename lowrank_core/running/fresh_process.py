"""Work in a fresh Python process of ours, which ends with its work, with its time, or with whoever began it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from importlib import import_module
from math import inf
from pathlib import Path
from typing import IO

from lowrank_core.errors import LowRankError, WorkersLost
from lowrank_core.running.own_process import leave
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import raise_if_cancelled, report, scope

LOOK_SECONDS = 0.05
"""Between two looks at the process, and at whether the work has been cancelled."""

GRACE_SECONDS = 3.0
"""From being asked to end until it is killed."""

HEARD_BYTES = 2**16
"""Of what else the process says, the end of which tells why it failed."""

_START = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from lowrank_core.running.fresh_process import main
main(*sys.argv[2:])"""


def in_fresh_process(work: str, folder: Path, *, limit_seconds: float = inf) -> None:
    """Have `module:function` called with a folder in a new Python process, and wait for it; see `looking_at`."""
    for _ in looking_at(work, folder, limit_seconds=limit_seconds):
        pass


def looking_at(work: str, folder: Path, *, limit_seconds: float = inf) -> Generator[None]:
    """Have `module:function` called with a folder in a new Python process that finds the modules this one does.

    Gives a turn after each look at the process, LOOK_SECONDS apart, and a last one when it is over. What it needs and
    what it answers are files in the folder. Its reports are heard here; it is killed when the work of this thread is
    cancelled, when so many seconds are over, when the iterator is closed, or when this process ends.

    Raises the LowRankError that the function raises, Cancelled, and WorkersLost with the reason where the process fails
    or takes longer.
    """
    command = [sys.executable, "-c", _START, json.dumps(sys.path), work, str(folder)]
    began, pipe = time.monotonic(), subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    told, heard, refused = b"", b"", None
    try:
        runs = True
        while runs:
            runs = _runs(process)
            raise_if_cancelled()
            told, heard = told + _read(process.stdout), (heard + _read(process.stderr))[-HEARD_BYTES:]
            *lines, told = told.split(b"\n")
            for kind, text, seconds_left in map(json.loads, lines):
                if kind:
                    refused = getattr(import_module(LowRankError.__module__), kind)(text)
                else:
                    report(Progress(text, seconds_left))
            if runs and time.monotonic() - began > limit_seconds:
                raise WorkersLost(f"it was not done after {limit_seconds:.0f} s, and was ended")
            yield
    finally:
        _end(process)
    if process.returncode == 0:
        return
    if refused is not None:
        raise refused
    last = heard.decode(errors="replace").strip().splitlines() or [f"it ended with status {process.returncode}"]
    raise WorkersLost(last[-1].strip())


def main(work: str, folder: str) -> None:
    """What the fresh process does: call the function, leave a refusal behind if it raises one, and end at once.

    It does not wait for threads that a model file has started.
    """
    _end_with_its_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    module, _, function = work.partition(":")
    pipe = os.dup(1)
    os.dup2(2, 1)  # what a model file prints is none of what we say

    def say(kind: str, text: str, seconds_left: float | None = None) -> None:
        line = json.dumps([kind, text, seconds_left]).encode() + b"\n"
        while line:
            line = line[os.write(pipe, line) :]

    try:
        with scope(report=lambda progress: say("", progress.words, progress.seconds_left)):
            getattr(import_module(module), function)(Path(folder))
    except LowRankError as error:
        say(type(error).__name__, " ".join(str(error).split()))
        leave(1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        leave(1)
    leave(0)


def _runs(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process still runs after LOOK_SECONDS."""
    try:
        process.wait(LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _read(pipe: IO[bytes] | None) -> bytes:
    """What is there to be read now; whoever else holds the other end is not waited for."""
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    content = b""
    with suppress(BlockingIOError):
        while more := os.read(pipe.fileno(), 2**16):
            content += more
    return content


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process, and what it started, if it still runs; it has GRACE_SECONDS to remove what it was writing."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            _kill_group(process.pid, signal.SIGTERM)
            until = time.monotonic() + GRACE_SECONDS
            ended = os.WEXITED | os.WNOHANG | os.WNOWAIT  # looked at only, so that its group keeps its number
            while os.waitid(os.P_PID, process.pid, ended) is None and time.monotonic() < until:
                time.sleep(LOOK_SECONDS)
            _kill_group(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def _kill_group(process: int, how: signal.Signals) -> None:
    with suppress(OSError):  # all of it has just ended
        os.killpg(process, how)


def _end_with_its_parent() -> None:
    """Standard input is a pipe that ends when whoever began this process does; the work itself finds it empty."""
    pipe = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end with the parent", daemon=True).start()
