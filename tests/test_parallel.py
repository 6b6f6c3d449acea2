"""Work in other processes: the same answers in any order, processes that die, and what is said when all of them do."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import dask_cluster

from lowrank_core.errors import Cancelled, InvalidModel, WorkersLost
from lowrank_core.predict.sensitivity import asked, profile
from lowrank_core.running import parallel
from lowrank_core.running.parallel import HERE, Workers, map_elsewhere
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import scope
from lowrank_core.selection import make, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.workspace import Workspace, opened_once

IRIS = "builtin:iris-mlp"


def threads(ask: int) -> tuple[int, int, int]:
    return ask * ask, torch.get_num_threads(), os.getpid()


def dies_once(ask: tuple[Path, int]) -> int:
    """The process that meets the third ask is killed, as by the kernel when memory runs out; once."""
    marker, number = ask
    if number == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def dies(ask: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return ask


def fails(ask: int) -> int:
    raise InvalidModel(f"number {ask} is bad.")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a dask scheduler with two workers, started as a person starts them."""
    pytest.importorskip("distributed")
    with dask_cluster(tmp_path_factory.mktemp("dask")) as address:
        yield address


def where(kind: str, request: pytest.FixtureRequest) -> Workers:
    return Workers(2) if kind == "processes" else Workers(dask=request.getfixturevalue("cluster"))


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_other_processes_answer_with_one_thread_each(kind: str, request: pytest.FixtureRequest) -> None:
    found = dict(map_elsewhere(threads, range(8), where(kind, request)))
    assert [found[at][0] for at in range(8)] == [at * at for at in range(8)]
    assert {answer[1] for answer in found.values()} == {1}
    assert os.getpid() not in {answer[2] for answer in found.values()}


def test_here_it_is_done_in_order_by_this_process() -> None:
    assert [at for at, _ in map_elsewhere(threads, range(5), HERE)] == list(range(5))
    assert {answer[2] for _, answer in map_elsewhere(threads, range(5), HERE)} == {os.getpid()}


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_a_process_that_is_killed_costs_nothing_but_time(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    asks = [(tmp_path / "killed", number) for number in range(12)]
    found = list(map_elsewhere(dies_once, asks, where(kind, request)))
    assert (tmp_path / "killed").exists()
    assert sorted(found) == [(n, n * n) for n in range(12)]


def test_processes_that_keep_dying_end_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "ATTEMPTS", 2)  # every one starts two processes
    with pytest.raises(WorkersLost, match=r"died 2 times.*fewer workers"):
        list(map_elsewhere(dies, [1, 2], Workers(2)))


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_an_error_of_the_work_is_raised_here(kind: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(InvalidModel, match=r"number \d is bad"):
        list(map_elsewhere(fails, [1, 2, 3], where(kind, request)))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "tcp://"])
def test_a_scheduler_that_does_not_answer(address: str) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(WorkersLost, match="no dask scheduler answers at"):
        list(map_elsewhere(threads, [1], Workers(dask=address)))


def test_processes_at_work_are_ended_when_it_is_cancelled() -> None:
    stop = threading.Event()
    assert dict(map_elsewhere(abs, [-1, 2], Workers(2))) == {0: 1, 1: 2}
    threading.Timer(1.0, stop.set).start()
    with scope(cancelled=stop.is_set), pytest.raises(Cancelled):
        list(map_elsewhere(time.sleep, [3600.0, 3600.0, 3600.0], Workers(2)))
    assert dict(map_elsewhere(abs, [-1, 2], Workers(2))) == {0: 1, 1: 2}


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_points_are_those_of_one_thread_to_the_last_bit(kind: str, request: pytest.FixtureRequest) -> None:
    workspace, threads = Workspace.open(IRIS), torch.get_num_threads()
    data = workspace.reference.dataset.pick(slice(0, 64))
    torch.set_num_threads(1)
    try:
        serial = profile(workspace, workspace.correction, asked(workspace), data)
    finally:
        torch.set_num_threads(threads)
    heard: list[Progress] = []
    fresh = Workspace.open(IRIS)
    with scope(report=heard.append):
        elsewhere = profile(fresh, fresh.correction, asked(fresh), data, workers=where(kind, request))
    assert elsewhere == serial
    assert heard[-1] == Progress(f"measuring layers: {len(serial)} of {len(serial)} points", 0.0)


def test_what_is_sent_holds_the_samples_that_are_measured_and_no_others() -> None:
    few = Workspace.open("builtin:digits-cnn").reference.dataset.pick(slice(0, 2))
    assert len(pickle.dumps(few)) > 100_000  # a slice is sent with what it was picked from
    sent = few.alone()
    assert len(pickle.dumps(sent)) < 5_000
    assert torch.equal(sent.inputs, few.inputs)
    assert torch.equal(sent.targets, few.targets)


def test_a_search_with_workers_finds_the_same_plan() -> None:
    found = []
    for workers in (HERE, Workers(2)):
        workspace = Workspace.open(IRIS)
        problem = problem_of(workspace, bytes=0.8, workers=workers)
        *_, answer = search(make("budget", {}), problem)
        found.append(answer.candidate)
    assert found[0] == found[1]


def test_a_worker_that_opens_other_weights_says_so() -> None:
    with pytest.raises(InvalidModel, match="opened in a worker has other weights"):
        opened_once(IRIS, replace(Workspace.open(IRIS).key, fingerprint="sha256:other"))
