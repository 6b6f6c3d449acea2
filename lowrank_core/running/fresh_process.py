"""Work in a fresh Python process of ours, which ends with its work, with its time, or with whoever began it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
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

REFUSED, SAID, HEARD = "refused.json", "said.jsonl", "stderr.txt"
"""Files that the process leaves in its folder: a refusal, what it reports, and what else it says."""

_START = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from lowrank_core.running.fresh_process import main
main(*sys.argv[2:])"""


def in_fresh_process(work: str, folder: Path, *, limit_seconds: float = inf) -> None:
    """Have `module:function` called with a folder in a new Python process that finds the modules this one does.

    What it needs and what it answers are files in the folder. Its reports are heard here; it is killed when the work of
    this thread is cancelled, when so many seconds are over, or when this process ends.

    Raises the LowRankError that the function raises, Cancelled, and WorkersLost with the reason where the process fails
    or takes longer.
    """
    said = folder / SAID
    said.touch()
    command = [sys.executable, "-c", _START, json.dumps(sys.path), work, str(folder)]
    began = time.monotonic()
    with (folder / HEARD).open("wb") as heard, said.open(encoding="utf-8") as news:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=heard, start_new_session=True
        )
        try:
            while _runs(process):
                raise_if_cancelled()
                _tell(news)
                if time.monotonic() - began > limit_seconds:
                    raise WorkersLost(f"it was not done after {limit_seconds:.0f} s, and was ended")
            _tell(news)
        finally:
            _end(process)
    if process.returncode == 0:
        return
    with suppress(OSError):
        kind, text = json.loads((folder / REFUSED).read_text(encoding="utf-8"))
        raise getattr(import_module(LowRankError.__module__), kind)(text)
    lines = _last_lines(folder / HEARD) or [f"it ended with status {process.returncode}"]
    raise WorkersLost(lines[-1].strip())


def main(work: str, folder: str) -> None:
    """What the fresh process does: call the function, leave a refusal behind if it raises one, and end at once.

    It does not wait for threads that a model file has started.
    """
    _end_with_its_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    module, _, function = work.partition(":")
    with open(Path(folder, SAID), "a", encoding="utf-8", buffering=1) as said:

        def say(progress: Progress) -> None:
            said.write(json.dumps(asdict(progress)) + "\n")

        try:
            with scope(report=say):
                getattr(import_module(module), function)(Path(folder))
        except LowRankError as error:
            text = json.dumps([type(error).__name__, " ".join(str(error).split())])
            Path(folder, REFUSED).write_text(text, encoding="utf-8")
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


def _tell(news: IO[str]) -> None:
    """Hand on what the process has reported since the last look; a line that is half written waits."""
    while True:
        at, line = news.tell(), news.readline()
        if not line.endswith("\n"):
            news.seek(at)
            return
        report(Progress(**json.loads(line)))


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
    assert process.stdin is not None
    process.stdin.close()


def _kill_group(process: int, how: signal.Signals) -> None:
    with suppress(OSError):  # all of it has just ended
        os.killpg(process, how)


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16))
        return file.read().decode(errors="replace").strip().splitlines()


def _end_with_its_parent() -> None:
    """Standard input is a pipe that ends when whoever began this process does; the work itself finds it empty."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end with the parent", daemon=True).start()
