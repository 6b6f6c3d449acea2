"""Thread counts: one thread inside, for this thread alone, with the bits that one thread always gives."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from conftest import PATIENCE_SECONDS, ROOT

from lowrank_core.layers.data import generators_untouched
from lowrank_core.running import threads
from lowrank_core.running.threads import one_thread, using_threads

THREADS = """
import threading, torch
from lowrank_core.running import threads
torch.set_num_threads(3)
said = []
def say():
    said.append(torch.get_num_threads())
begun, go = threading.Event(), threading.Event()
before = threading.Thread(target=lambda: (say(), begun.set(), go.wait(), say()))
before.start()
begun.wait()
with threads.one_thread():
    after = threading.Thread(target=say)
    after.start()
    after.join()
    go.set()
    before.join()
    say()
say()
after = threading.Thread(target=say)
after.start()
after.join()
print(said)
"""


def test_other_threads_keep_their_own_count() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[3, 3, 3, 1, 3, 3]"


def test_nobody_waits_for_another_thread() -> None:
    both_are_inside = threading.Barrier(2)

    def work() -> None:
        with one_thread():
            both_are_inside.wait(PATIENCE_SECONDS)

    other = threading.Thread(target=work, daemon=True)
    other.start()
    work()
    other.join()


BITS = """
import hashlib, sys, torch
from torch.nn import functional as F
from lowrank_core.running.threads import one_thread
torch.set_num_threads(1 if sys.argv[1] == "all" else 4)
torch.manual_seed(0)
a, b, x, w = torch.randn(300, 700), torch.randn(700, 200), torch.randn(4, 8, 60, 60), torch.randn(16, 8, 3, 3)
def work():
    square = a.double() @ a.double().T
    root = torch.linalg.cholesky(square + torch.eye(300))
    for result in (a @ b, F.conv2d(x, w), torch.linalg.svdvals(a), root, a.sum()):
        yield result.numpy().tobytes()
digest = hashlib.sha256()
with one_thread():
    for part in work():
        digest.update(part)
print(digest.hexdigest())
"""


def test_the_bits_are_those_of_one_thread() -> None:
    answers = {
        subprocess.run([sys.executable, "-c", BITS, how], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for how in ("all", "inside")
    }
    assert len(answers) == 1


@pytest.mark.parametrize("hidden", [False, True])
def test_the_count_comes_back_whatever_happens(hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> Callable[[int, int], int] | None:
        return None

    if hidden:
        monkeypatch.setattr(threads, "_of_this_thread", nothing)
    before = torch.get_num_threads()

    def work() -> None:
        with using_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            with one_thread():
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == before + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert torch.get_num_threads() == before


def test_two_that_put_generators_back_do_not_come_between_each_other() -> None:
    before = random.getstate(), torch.get_rng_state()
    inside, first_is_out = threading.Event(), threading.Event()

    def second() -> None:
        with generators_untouched():
            inside.set()
            first_is_out.wait()

    other = threading.Thread(target=second)
    with generators_untouched():
        random.seed(1)
        torch.manual_seed(1)
        other.start()
        assert not inside.wait(0.3), "it waits for its turn"
    first_is_out.set()
    other.join()
    assert inside.is_set()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
