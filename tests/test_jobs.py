"""Jobs: what they find is seen as it comes, stays when they are called off, and an end is always told."""

import gc
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_core.__main__ import main
from lowrank_core.commands import Commands
from lowrank_core.errors import Cancelled, InvalidSearch
from lowrank_core.layers.data import Dataset, run
from lowrank_core.running import cancelling as stop
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.running.progress import Doing

ROOT = Path(__file__).resolve().parents[1]


class Steps:
    """Work that goes on one step at a time, when it is told to."""

    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)

    def __call__(self, job: Job[int]) -> Iterator[int]:
        for number in range(3):
            job.tell(f"step {number}")
            self.turn.acquire()
            yield number


def until(job: Job[int], count: int) -> Snapshot[int]:
    latest = job.snapshot
    while len(latest.found) < count:
        latest = job.changed(latest, seconds=10)
    return latest


def test_what_is_found_is_seen_before_the_end():
    steps = Steps()
    job = Job("steps", steps)
    steps.turn.release()
    seen = until(job, 1)
    assert seen.found == (0,)
    assert not seen.over
    assert job.seconds >= seen.seconds
    steps.turn.release(2)
    end = job.wait(10)
    assert (end.found, end.over, end.error, end.cancelled) == ((0, 1, 2), True, None, False)
    assert job.seconds == end.seconds


def test_what_was_found_stays_when_it_is_called_off():
    steps = Steps()
    job = Job("steps", steps)
    steps.turn.release()
    until(job, 1)
    job.cancel()
    steps.turn.release()
    end = job.wait(10)
    assert (end.found, end.cancelled, end.error, end.over) == ((0, 1), True, None, True)


def test_work_may_end_itself_when_it_sees_that_it_was_called_off():
    called = threading.Event()

    def work(job: Job[int]) -> Iterator[int]:
        yield 1
        called.wait(10)
        if job.stopped():
            raise Cancelled("seen.")
        yield 2

    job = Job("work", work)
    until(job, 1)
    job.cancel()
    called.set()
    end = job.wait(10)
    assert (end.found, end.cancelled, end.error) == ((1,), True, None)


@pytest.mark.parametrize(
    ("error", "says"),
    [(InvalidSearch("raise the budget."), "raise the budget."), (KeyError("x"), "planned failed: KeyError: 'x'")],
)
def test_an_error_is_told_and_nothing_found_is_lost(error: Exception, says: str):
    def work(job: Job[int]) -> Iterator[int]:
        yield 7
        raise error

    end = Job("planned", work).wait(10)
    assert (end.found, end.error, end.over, end.cancelled) == ((7,), says, True, False)


def test_a_job_that_is_over_lets_go_of_what_it_worked_on():
    class Heavy:
        pass

    heavy = Heavy()
    gone = weakref.ref(heavy)

    def work(job: Job[int], held: Heavy = heavy) -> Iterator[int]:
        yield 1

    job = Job("work", work)
    job.wait(10)
    job._thread.join(10)
    del work, heavy
    gc.collect()
    assert gone() is None
    assert job.snapshot.found == (1,)


def test_time_left_runs_down_and_is_told_of_work_that_goes_on_alone():
    told, go = threading.Event(), threading.Event()

    def work(job: Job[int]) -> Iterator[int]:
        job.tell("opening")
        assert job.seconds_left is None
        job.tell(Doing("counting", 100.0))
        told.set()
        go.wait()
        yield 1

    job = Job("count", work)
    told.wait()
    first = job.seconds_left
    assert first is not None
    assert 0 < first <= 100
    assert job.seconds_left <= first
    job.cancel()
    assert job.seconds_left is None
    go.set()
    assert job.wait(10).over
    assert job.seconds_left is None


def test_work_far_below_that_asks_ends_with_its_job():
    begun = threading.Event()

    def work(job: Job[int]) -> Iterator[int]:
        while True:
            stop.go_on()
            begun.set()
        yield 1

    job = Job("endless", work)
    begun.wait()
    job.cancel()
    end = job.wait(10)
    assert (end.over, end.cancelled, end.error) == (True, True, None)


def test_what_is_called_off_is_known_in_its_own_thread_and_inside_alone():
    with stop.until(lambda: False):
        with stop.until(lambda: True), pytest.raises(Cancelled):
            stop.go_on()
        stop.go_on()
        failed: list[BaseException] = []

        def elsewhere() -> None:
            try:
                stop.go_on()
            except BaseException as error:
                failed.append(error)

        with stop.until(lambda: True):
            other = threading.Thread(target=elsewhere)
            other.start()
            other.join()
        assert not failed
    stop.go_on()


def test_a_forward_pass_is_where_work_is_called_off():
    with stop.until(lambda: True), pytest.raises(Cancelled):
        run(nn.Linear(2, 2), Dataset(torch.zeros(1, 2)))


def test_an_error_after_it_was_called_off_is_no_failure():
    begun, go = threading.Event(), threading.Event()

    def work(job: Job[int]) -> Iterator[int]:
        begun.set()
        go.wait()
        raise RuntimeError("an exporter wraps what ends it")
        yield 1

    job = Job("export", work)
    begun.wait()
    job.cancel()
    go.set()
    end = job.wait(10)
    assert (end.cancelled, end.error) == (True, None)


LATE = """
import sys, time
class Late:
    def find_spec(self, name, *rest):
        if name == "numpy":
            print("importing", flush=True)
            time.sleep(600)
sys.meta_path.insert(0, Late())
sys.argv = ["program", "layers", "builtin:iris-mlp"]
"""
MODULE = "import runpy; runpy.run_module('lowrank_core', run_name='__main__', alter_sys=True)"
SCRIPT = "from lowrank_core.__main__ import main; main()"


@pytest.mark.parametrize("start", [MODULE, SCRIPT], ids=["python -m lowrank_core", "rank-explorer"])
def test_ctrl_c_while_a_command_is_imported_ends_it_at_once_without_a_traceback(start: str):
    process = subprocess.Popen(
        [sys.executable, "-c", LATE + start], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said) == (-signal.SIGINT, "")


@pytest.mark.parametrize("usual", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_is_as_it_was_once_the_command_is_imported(usual: Any, monkeypatch: pytest.MonkeyPatch):
    before = signal.signal(signal.SIGINT, usual)
    seen = []
    monkeypatch.setattr(sys, "argv", ["rank-explorer", "layers"])
    monkeypatch.setattr(Commands, "load", lambda self, name=None: seen.append((name, signal.getsignal(signal.SIGINT))))
    monkeypatch.setattr(Commands, "__call__", lambda self: seen.append(("run", signal.getsignal(signal.SIGINT))))
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [("layers", usual if usual is signal.SIG_IGN else signal.SIG_DFL), ("run", usual)]
