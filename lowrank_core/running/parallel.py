"""Work in several processes. joblib is the only door: processes of this machine, or those of a dask cluster."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lowrank_core.errors import WorkersLost
from lowrank_core.extras import extra
from lowrank_core.running.scope import raise_if_cancelled

if TYPE_CHECKING:
    import joblib

A = TypeVar("A")
R = TypeVar("R")

ASK_SECONDS = 0.1
"""Between two questions whether the work has been cancelled."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of these settings (malloc.h)."""

BLOCK_BYTES, KEPT_BYTES = 2**25, 2**28

ATTEMPTS = 3
"""How often all processes may be lost before the work is given up."""


MOST_WORKERS = 256
"""Processes of this machine that work is shared out to, at most."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Where work is done: in so many processes of this machine (1: here), or by the dask scheduler at an address.

    >>> Workers(4).elsewhere, Workers().elsewhere
    (True, False)
    """

    count: int = 1
    dask: str | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether work leaves this process for others."""
        return self.count != 1 or self.dask is not None


HERE = Workers()
"""In this process, as it is."""


def map_elsewhere(function: Callable[[A], R], asks: Sequence[A], workers: Workers) -> Iterator[tuple[int, R]]:
    """Yield (position, function(ask)) of each as it is done, in any order; function and asks must be picklable.

    Every process has one torch thread, so an answer does not depend on where it is computed. What a process did that
    was killed is asked again. Raises what function raises, and WorkersLost where processes keep dying or the scheduler
    does not answer. Closing the generator, cancelling the work of this thread and Ctrl-C end the
    processes of this machine; those of a cluster finish what they have begun.

    >>> sorted(map_elsewhere(abs, [-3, 4], Workers()))
    [(0, 3), (1, 4)]
    """
    if not workers.elsewhere:
        for at, ask in enumerate(asks):
            raise_if_cancelled()
            yield at, function(ask)
        return
    import joblib  # sets a variable of the environment and a filter of warnings
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    left, lost = dict(enumerate(asks)), 0
    with _pool(workers) as begin:
        while left:
            results = begin()(joblib.delayed(_one)(function, at, ask) for at, ask in list(left.items()))
            try:
                for at, answer in _waiting(results):
                    del left[at]
                    yield at, answer
            except BrokenProcessPool as error:
                lost += 1
                if lost == ATTEMPTS:
                    why = str(error).partition(".")[0]
                    raise WorkersLost(
                        f"worker processes died {ATTEMPTS} times ({why}); is there enough memory? Take fewer workers."
                    ) from error
            except BaseException as error:  # of the work, a cancellation, Ctrl-C, or a caller who has enough
                if workers.dask is None:  # those of a cluster end by themselves once nobody waits for them
                    get_reusable_executor(reuse=True).shutdown(wait=False, kill_workers=True)
                elif type(error).__name__ == "KilledWorker":  # of distributed, which is not imported for its name
                    raise WorkersLost(
                        "workers of the cluster died again and again over one piece of work; have they enough memory?"
                    ) from error
                raise


def _waiting(results: Generator[tuple[int, R], None, None]) -> Iterator[tuple[int, R]]:
    """The answers of worker processes; while it waits it asks whether it is cancelled, which joblib does not."""
    answers: SimpleQueue[tuple[int, R] | BaseException] = SimpleQueue()

    def wait() -> None:
        try:
            for answer in results:
                answers.put(answer)
            answers.put(StopIteration())
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=wait, name="answers of workers", daemon=True).start()
    while True:
        raise_if_cancelled()
        try:
            answer = answers.get(timeout=ASK_SECONDS)
        except Empty:
            continue
        if isinstance(answer, StopIteration):
            return
        if isinstance(answer, BaseException):
            raise answer
        yield answer


def _one(function: Callable[[A], R], at: int, ask: A) -> tuple[int, R]:
    torch.set_num_threads(1)
    _keep_what_is_freed()
    return at, function(ask)


@cache
def _keep_what_is_freed() -> None:
    """Let glibc use freed memory again, up to KEPT_BYTES of it, in blocks below BLOCK_BYTES.

    dask tells its workers to give everything back at once (MALLOC_TRIM_THRESHOLD_), so that every output of a layer is
    mapped and unmapped by the kernel: measuring ResNet-20 takes 1.6 times as long.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _client(address: str) -> Any:
    """Somebody who asks the scheduler at that address; raises WorkersLost where none answers."""
    with extra("cluster", "a dask cluster, here and on its workers,"):
        from dask.distributed import Client
    for _ in range(ATTEMPTS):
        try:
            return Client(address, timeout=10, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise WorkersLost(f"no dask scheduler answers at {address!r} ({error}); check the address.") from error
        except AssertionError:  # its thread has not begun within ten seconds
            continue
    raise WorkersLost("this machine is too busy to begin a thread for dask; try again later.")


@contextmanager
def _pool(workers: Workers) -> Iterator[Callable[[], joblib.Parallel]]:
    """A function that begins a Parallel anew at each call: one whose processes died may still send out its old asks."""
    import joblib

    options: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1}
    if workers.dask is None:
        yield lambda: joblib.Parallel(n_jobs=workers.count, backend="loky", **options)
        return
    client = _client(workers.dask)
    try:
        client.wait_for_workers(1, timeout=30)
    except TimeoutError as error:
        client.close()
        raise WorkersLost(f"the dask scheduler at {workers.dask!r} has no workers; start some.") from error

    def begin() -> joblib.Parallel:
        with joblib.parallel_config(backend="dask", client=client):
            return joblib.Parallel(n_jobs=-1, **options)

    try:
        yield begin
    finally:
        client.close()
