"""FactorStore: each layer is factorised once per method, kept on disk if there is a place; any rank is then a slice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidModel
from lowrank_core.layers.data import data_hash
from lowrank_core.methods import METHODS, Factorization
from lowrank_core.networks.profile import Layer, ModelProfile, weight_at
from lowrank_core.running.scope import raise_if_cancelled
from lowrank_core.running.threads import one_thread, using_threads
from lowrank_core.store.cache import About, Cache
from lowrank_core.store.memo import Compute, Memo, Tensors
from lowrank_core.store.room import Room

SMALL = 2**18
"""Below this many weights several threads only wait for each other, on a busy machine up to 50 times longer."""

VERSION = 2
"""Of the way weights are factorised: what was kept by another version is not used. Raise it with any change of bits."""


class FactorStore:
    """Factorisations of one network, computed when first asked for and kept; safe to share between threads.

    On disk they are named by the network's fingerprint, the layer, the method, for data-aware ones the moment, and the
    number of threads they were computed with, on which the last bits depend.

    >>> factors = FactorStore(model, profile)                # doctest: +SKIP
    >>> factors("fc1", "svd").weights((64,))                 # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        profile: ModelProfile,
        moments: Callable[[str], Tensor] | None = None,
        cache: Cache | None = None,
        room: Room | None = None,
    ) -> None:
        """`moments(name)` gives a layer's second moment, for data-aware methods; without it they are refused.

        room: where the tensors are held in memory; what had to go is read from the cache or computed again.
        """
        self._model = model
        self._profile = profile
        self._moments = moments
        self._cache = cache
        self._tensors = (room or Room()).part()
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._guard = threading.Lock()

    def __call__(self, name: str, method: str) -> Factorization:
        """The factorisation of a layer; raises InvalidModel naming the layer where the weight cannot be factorised."""
        key = name, method
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            kept: Factorization | None = self._tensors.get(key)
            return self._factorized(self._profile.layer(name), method) if kept is None else kept

    def _factorized(self, layer: Layer, method: str) -> Factorization:
        raise_if_cancelled()
        weight, threads = weight_at(self._model, layer).detach(), torch.get_num_threads()
        moment = self._moment(layer.name) if METHODS[method].data_aware else None

        def moment_again() -> Tensor:
            with using_threads(threads):  # as now: a small layer is factorised in one
                return self._moment(layer.name)

        small = weight.numel() < SMALL
        with one_thread() if small else nullcontext(), _naming(layer, method):
            given = None if moment is None else moment_again
            factorization = METHODS[method].factorize(layer.spec, weight, given)
        self._tensors.put((layer.name, method), factorization, self._held_bytes(layer, weight))
        memo = getattr(factorization, "memo", None)
        if isinstance(memo, Memo):
            about: About = {
                "what": "factors",
                "version": [VERSION, torch.__version__],
                "model": self._profile.fingerprint,
                "layer": [layer.name, layer.parameter, layer.rows, layer.transposed_weight, asdict(layer.spec)],
                "method": method,
                "moment": None if moment is None or self._cache is None else data_hash(moment),
            }
            memo.kept, memo.shelf = self._tensors, (layer.name, method)
            memo.remember = partial(self._remember, layer, method, about, small)
        return factorization

    def _held_bytes(self, layer: Layer, weight: Tensor) -> int:
        """What a factorisation holds beyond the network: a weight that was computed, or had to be rearranged for it."""
        own = {t.untyped_storage().data_ptr() for t in (*self._model.parameters(), *self._model.buffers())}
        rearranged = layer.spec.transposed and layer.spec.groups > 1
        return weight.nbytes if rearranged or weight.untyped_storage().data_ptr() not in own else 0

    def _remember(self, layer: Layer, method: str, about: About, small: bool, step: str, compute: Compute) -> Tensors:
        with one_thread() if small else nullcontext(), _naming(layer, method):
            if self._cache is None:
                return compute()
            threads: int | str = 1 if small else torch.get_num_threads()
            if not small and torch.cuda.is_available():
                threads = f"{threads} and CUDA"  # the large ones of a step may have been worked on there
            return self._cache.remembered({**about, "step": step, "threads": threads}, compute)

    def _moment(self, name: str) -> Tensor:
        if self._moments is None:
            raise InvalidModel("data-aware factors need calibration data; open the model together with its data.")
        return self._moments(name)


@contextmanager
def _naming(layer: Layer, method: str) -> Iterator[None]:
    """Raise errors inside as InvalidModel that names the layer and the method."""
    try:
        yield
    except (InvalidModel, RuntimeError) as error:
        raise InvalidModel(f"layer {layer.name!r} could not be factorised by {method}: {error}") from error
