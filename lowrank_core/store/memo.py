"""Memo: the expensive results inside a factorisation, by name; each is computed once, when first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from lowrank_core.store.room import Room

Tensors = dict[str, Tensor]
Compute = Callable[[], Tensors]


class Memo:
    """Results of pure functions of tensors, safe to share between threads.

    `remember(name, compute)` is asked for each result once; whoever holds a cache puts itself there, so that no
    factorisation knows of files, and gives `kept` a part of its own room, with a `shelf` by which the same
    factorisation finds its results when it is made again. Results are kept contiguous: one from a file is the same as a
    fresh one to the last bit, and so is whatever is computed from it.

    >>> memo = Memo()
    >>> memo("ones", lambda: {"ones": torch.ones(2)})["ones"].tolist()
    [1.0, 1.0]
    """

    def __init__(self) -> None:
        self.remember: Callable[[str, Compute], Tensors] = lambda name, compute: compute()
        self.kept = Room().part()
        self.shelf: Hashable = id(self)
        self._lock = threading.RLock()

    def __call__(self, name: str, compute: Compute) -> Tensors:
        """The result of that name."""
        return self._held(name, lambda: compact(self.remember(name, compute)))

    def briefly(self, name: str, compute: Compute) -> Tensors:
        """The result of that name, laid out as it was computed and held in memory alone: it is quick to have again."""
        return self._held(name, lambda: {key: t.detach().clone() for key, t in compute().items()})

    def _held(self, name: str, made: Compute) -> Tensors:
        with self._lock:
            result: Tensors | None = self.kept.get((self.shelf, name))
            if result is None:
                result = made()
                self.kept.put((self.shelf, name), result, sum(t.nbytes for t in result.values()))
            return result


def compact(tensors: Tensors) -> Tensors:
    """Copies in memory of their own, laid out row by row."""
    return {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
