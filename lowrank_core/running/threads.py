"""How many threads arithmetic is done on, without a word to the other threads of the process."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import torch

_turn = threading.RLock()


def one_thread() -> AbstractContextManager[None]:
    """Small matrices are not worth handing round: with busy cores two threads take fifty times longer than one.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    return using_threads(1)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """PyTorch on so many threads inside, as far as this thread asks for it; as it was before afterwards.

    `torch.set_num_threads` would also set what every thread that begins meanwhile keeps for good, so it is called only
    where PyTorch hides the libraries it computes with (Windows), by one thread at a time.
    """
    before = torch.get_num_threads()
    set_here = _of_this_thread()
    if set_here is None:
        with _turn:
            before = torch.get_num_threads()
            torch.set_num_threads(count)
            try:
                yield
            finally:
                torch.set_num_threads(before)
        return
    mkl_before = set_here(count, count)
    try:
        yield
    finally:
        set_here(before, mkl_before)


@cache
def _of_this_thread() -> Callable[[int, int], int] | None:
    """A function (OpenMP's threads, MKL's) that sets both for the calling thread and gives what MKL's were.

    `omp_set_num_threads` (OpenMP 5.2, section 18.2.1) and `MKL_Set_Num_Threads_Local` are those of the libraries that
    PyTorch itself calls; MKL is not there on every machine. None where they cannot be found.
    """
    name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
        openmp = library.omp_set_num_threads
    except (OSError, AttributeError):
        return None
    mkl = getattr(library, "MKL_Set_Num_Threads_Local", None)

    def set_here(threads: int, mkl_threads: int) -> int:
        openmp(threads)
        return 0 if mkl is None else int(mkl(mkl_threads))

    return set_here
