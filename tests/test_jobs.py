"""Jobs: what they find is seen as it comes, stays when they are cancelled, and an end is always told."""

import gc
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import FrozenInstanceError
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_core.__main__ import main
from lowrank_core.commands import Commands
from lowrank_core.errors import Cancelled, InvalidSearch
from lowrank_core.layers.data import Dataset, run
from lowrank_core.running import own_process
from lowrank_core.running import scope as scopes
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import (
    cancelled,
    give_way,
    nobody,
    raise_if_cancelled,
    report,
    scope,
    somebody_waits,
    under,
)
from tests.conftest import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[1]


class Steps:
    """Work that goes on one step at a time, when it is told to."""

    def __init__(self) -> None:
        self.turn = threading.Semaphore(0)

    def __call__(self) -> Iterator[int]:
        for number in range(3):
            report(Progress(f"step {number}"))
            self.turn.acquire()
            yield number


def until(job: Job[int], count: int) -> Snapshot[int]:
    return job.wait(until=lambda known: len(known.found) >= count)


def test_what_is_found_is_seen_before_the_end():
    steps = Steps()
    job = Job("steps", steps)
    steps.turn.release()
    seen = until(job, 1)
    assert seen.found == (0,)
    assert not seen.over
    assert job.seconds >= seen.seconds
    steps.turn.release(2)
    end = job.wait()
    assert (end.found, end.over, end.error, end.cancelled) == ((0, 1, 2), True, None, False)
    assert job.seconds == end.seconds


def test_what_was_found_stays_when_it_is_cancelled():
    steps = Steps()
    job = Job("steps", steps)
    steps.turn.release()
    until(job, 1)
    job.cancel()
    steps.turn.release()
    end = job.wait()
    assert (end.found, end.cancelled, end.error, end.over) == ((0, 1), True, None, True)


def test_work_may_end_itself_when_it_sees_that_it_was_cancelled():
    called = threading.Event()

    def work() -> Iterator[int]:
        yield 1
        called.wait()
        if cancelled():
            raise Cancelled("seen.")
        yield 2

    job = Job("work", work)
    until(job, 1)
    job.cancel()
    called.set()
    end = job.wait()
    assert (end.found, end.cancelled, end.error) == ((1,), True, None)


@pytest.mark.parametrize(
    ("error", "says"),
    [(InvalidSearch("raise the budget."), "raise the budget."), (KeyError("x"), "planned failed: KeyError: 'x'")],
)
def test_an_error_is_told_and_nothing_found_is_lost(error: Exception, says: str):
    def work() -> Iterator[int]:
        yield 7
        raise error

    end = Job("planned", work).wait()
    assert (end.found, end.error, end.over, end.cancelled) == ((7,), says, True, False)


def test_a_job_that_is_over_lets_go_of_what_it_worked_on():
    class Heavy:
        pass

    heavy = Heavy()
    gone = weakref.ref(heavy)

    def work(held: Heavy = heavy) -> Iterator[int]:
        yield 1

    job = Job("work", work)
    job.wait()
    job._thread.join()
    del work, heavy
    gc.collect()
    assert gone() is None
    assert job.snapshot.found == (1,)


def test_time_left_runs_down_and_is_told_of_work_that_goes_on_alone():
    opening, on, told, go = (threading.Event() for _ in range(4))

    def work() -> Iterator[int]:
        report(Progress("opening"))
        opening.set()
        on.wait()
        report(Progress("counting", 100.0))
        told.set()
        go.wait()
        yield 1

    job = Job("count", work)
    opening.wait()
    assert job.snapshot.progress == Progress("opening")
    assert job.seconds_left is None
    on.set()
    told.wait()
    assert job.snapshot.progress == Progress("counting", 100.0)
    first = job.seconds_left
    assert first is not None
    assert 0 < first <= 100
    assert job.seconds_left <= first
    job.cancel()
    assert job.seconds_left is None
    go.set()
    end = job.wait()
    assert end.over
    assert end.progress == Progress()
    assert job.seconds_left is None


def test_work_far_below_that_asks_ends_with_its_job():
    begun = threading.Event()

    def work() -> Iterator[int]:
        while True:
            raise_if_cancelled()
            begun.set()
        yield 1

    job = Job("endless", work)
    begun.wait()
    job.cancel()
    end = job.wait()
    assert (end.over, end.cancelled, end.error) == (True, True, None)


def test_what_is_cancelled_is_known_in_its_own_thread_and_inside_alone():
    with scope(cancelled=lambda: False):
        with scope(cancelled=lambda: True), pytest.raises(Cancelled):
            raise_if_cancelled()
        raise_if_cancelled()
        failed: list[BaseException] = []

        def elsewhere() -> None:
            try:
                raise_if_cancelled()
            except BaseException as error:
                failed.append(error)

        with scope(cancelled=lambda: True):
            other = threading.Thread(target=elsewhere)
            other.start()
            other.join()
        assert not failed
    raise_if_cancelled()


def test_a_forward_pass_is_where_work_is_cancelled():
    with scope(cancelled=lambda: True), pytest.raises(Cancelled):
        run(nn.Linear(2, 2), Dataset(torch.zeros(1, 2)))


def test_an_error_after_it_was_cancelled_is_no_failure():
    begun, go = threading.Event(), threading.Event()

    def work() -> Iterator[int]:
        begun.set()
        go.wait()
        raise RuntimeError("an exporter wraps what ends it")
        yield 1

    job = Job("export", work)
    begun.wait()
    job.cancel()
    go.set()
    end = job.wait()
    assert (end.cancelled, end.error) == (True, None)


def test_a_snapshot_never_changes_and_says_how_it_stood():
    steps = Steps()
    job = Job("steps", steps)
    steps.turn.release()
    first = until(job, 1)
    steps.turn.release()
    second = until(job, 2)
    assert (first.found, second.found) == ((0,), (0, 1))
    with pytest.raises(FrozenInstanceError):
        first.over = True  # type: ignore[misc]
    steps.turn.release()
    assert job.wait().seconds >= second.seconds >= first.seconds
    assert not first.over


def test_what_is_known_already_is_over_at_once_and_leaves_no_scope_behind():
    with scope(cancelled=lambda: True):
        job = Job("known", lambda: [1, 2], here=True)
        assert cancelled()
    assert (job.snapshot.found, job.snapshot.over, job.snapshot.cancelled) == ((1, 2), True, False)


# ---- reports --------------------------------------------------------------------------------------------------------


def test_reports_reach_the_snapshot_from_far_below():
    reported, go = threading.Event(), threading.Event()

    def far_below() -> None:
        report(Progress("solving", 3.0))
        reported.set()
        go.wait()

    def work() -> Iterator[int]:
        far_below()
        yield 1

    job = Job("work", work)
    reported.wait()
    assert job.snapshot.progress == Progress("solving", 3.0)
    go.set()
    assert job.wait().found == (1,)


def test_a_part_is_heard_under_its_heading_or_not_at_all():
    heard: list[Progress] = []
    with scope(report=heard.append):
        with scope(report=under("plan 1 of 2")):
            report(Progress("correcting", 2.0))
        with scope(report=nobody):
            report(Progress("a detail"))
        report(Progress("tracing"))
    report(Progress("to nobody"))
    assert heard == [Progress("plan 1 of 2: correcting", 2.0), Progress("tracing")]


# ---- giving way -----------------------------------------------------------------------------------------------------


class Clock:
    """Time that goes on only while somebody sleeps or works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.slept = 0.0
        monkeypatch.setattr(scopes, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def test_a_job_that_gives_way_gets_half_of_the_time_whoever_waits(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    with somebody_waits(), scope(patience_seconds=0.5):
        for _ in range(1000):
            give_way()
            clock.now += 0.01  # a step of its work
    assert clock.now - clock.slept == pytest.approx(10.0)
    assert clock.slept == pytest.approx(10.0, rel=0.1)


def test_where_nobody_waits_it_never_pauses(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    with scope(patience_seconds=inf):
        for _ in range(100):
            give_way()
    assert clock.slept == 0


def test_whoever_waits_gives_way_to_nobody(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    with scope(patience_seconds=inf), somebody_waits():
        give_way()
    assert clock.slept == 0


def test_work_that_nobody_asked_for_waits_as_long_as_anybody_does_and_is_cancelled_even_then():
    paused = threading.Event()

    def work() -> Iterator[int]:
        paused.set()
        give_way()
        yield 1

    with somebody_waits():
        job = Job("work", work, patience_seconds=inf)
        paused.wait()
        assert not job.wait(0.2).found
        job.cancel()
        assert job.wait().cancelled
        other = Job("work", work, patience_seconds=inf)
        assert not other.wait(0.2).over
    assert other.wait().found == (1,)


def test_a_figure_is_not_kept_waiting_by_a_lock_that_its_giver_way_holds():
    """Where a lock is held work only asks whether it is cancelled: the one who waits gets the lock."""
    lock, begun, go = threading.Lock(), threading.Event(), threading.Event()

    def work() -> Iterator[int]:
        with lock:
            begun.set()
            go.wait()
            run(nn.Linear(2, 2), Dataset(torch.zeros(1, 2)))  # asks, deep inside
        give_way()
        yield 1

    job = Job("work", work, patience_seconds=inf)
    begun.wait()
    with somebody_waits():
        go.set()
        assert lock.acquire(timeout=PATIENCE_SECONDS)
        lock.release()
        assert not job.snapshot.over
    assert job.wait().found == (1,)


def test_somebody_waits_until_the_last_one_has_got_what_they_wait_for(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    with somebody_waits(), suppress(ZeroDivisionError), somebody_waits():
        raise ZeroDivisionError
    with scope(patience_seconds=0.5):
        give_way()
        assert clock.slept == 0
        with somebody_waits():
            pass
        give_way()
        assert clock.slept == 0


# ---- the end of a command -------------------------------------------------------------------------------------------


LATE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a shell is deaf to it
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
    monkeypatch.setattr(own_process, "ending_with_its_work", nullcontext)  # it would end the suite, seconds later
    monkeypatch.setattr(own_process, "hush_libraries", lambda **how: None)
    monkeypatch.setattr(sys, "argv", ["rank-explorer", "layers"])
    monkeypatch.setattr(Commands, "load", lambda self, name=None: seen.append((name, signal.getsignal(signal.SIGINT))))
    monkeypatch.setattr(Commands, "__call__", lambda self: seen.append(("run", signal.getsignal(signal.SIGINT))))
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert own_process._leave_if_it_waits not in [getattr(thread, "function", None) for thread in threading.enumerate()]
    assert seen == [("layers", usual if usual is signal.SIG_IGN else signal.SIG_DFL), ("run", usual)]


def test_a_process_that_ends_in_the_middle_of_a_job_ends_well() -> None:
    script = """
import torch
from lowrank_core.running.jobs import Job
from lowrank_core.running.scope import raise_if_cancelled

def work():
    while True:
        raise_if_cancelled()
        torch.ones(50, 50) @ torch.ones(50, 50)
        yield 1

jobs = [Job("work", work) for _ in range(3)]
jobs[0].wait(until=lambda snapshot: len(snapshot.found) > 3)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
