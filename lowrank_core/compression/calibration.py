"""Calibration: what goes into each layer, learnt from a few unlabelled samples.

Everything here runs on a twin of the network (its own modules, the same weights), so hooks never touch the original
and other threads may use it meanwhile.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import torch
from torch import Tensor, nn

from lowrank_core.compression.unfold import draw_positions, input_rows, row_chunks
from lowrank_core.errors import InvalidData, InvalidModel
from lowrank_core.layers.data import Dataset, call, data_hash, evaluating, samples_named
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.answers import answers_hash, drawn
from lowrank_core.networks.profile import Layer, ModelProfile, module_at
from lowrank_core.networks.twin import on_call, twin
from lowrank_core.plans.correction import SAMPLES
from lowrank_core.running.scope import raise_if_cancelled
from lowrank_core.store.cache import About, Cache
from lowrank_core.store.room import Room

POSITIONS = 16_384
"""Rows kept of one layer: tokens or window positions over all samples, drawn without replacement."""

VERSION = 2

"""Of the way moments are learnt: what was kept by another version is not used."""

MOMENT_BYTES = 2**29
SHELF = "moments"
"""All of a pass go together where room is needed: one pass brings all of them back."""


def calibration_samples(pool: Dataset, samples: int = SAMPLES, seed: int = 0) -> Dataset:
    """At most `samples` of the pool, without labels, in an order that depends on the seed alone."""
    return pool.unlabelled().pick(_order(pool, seed)[:samples])


def last_samples(pool: Dataset, samples: int = SAMPLES, *, beyond: int = SAMPLES) -> Dataset:
    """At most `samples` of the pool from the other end of the same order, none of the first `beyond`: nothing is fitted
    to them, however many samples a correction takes that leaves so many."""
    return pool.unlabelled().pick(_order(pool, 0)[max(beyond, len(pool) - samples) :])


def _order(pool: Dataset, seed: int) -> Tensor:
    return torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """Of a layer's unfolded input x, over `rows` rows: second (groups, n, n) = E[x x^T], mean (groups, n); float64.

    Of an expert that no row was routed to nothing is known: rows is 0, and all directions count alike.
    Of a table both are (n,), the share of each token: what E[x x^T] holds of one-hot inputs is its diagonal.
    """

    second: Tensor
    mean: Tensor
    rows: int


def moment_bytes(spec: LayerSpec) -> int:
    """Memory that the second moment of one layer takes."""
    if spec.table:
        return 8 * spec.in_channels
    return 8 * spec.groups * (spec.fan_in + 1) ** 2


def input_moments(
    model: nn.Module,
    layers: Iterable[Layer],
    data: Dataset,
    *,
    seed: int = 0,
    batch: int = 64,
    watch: Iterable[Layer] | None = None,
) -> dict[str, Moment]:
    """Moments of the inputs of several layers in one pass over the data, at most POSITIONS rows of each call.

    Which rows are drawn depends on the layer's name, the seed and the call alone, so a moment is the same to the last
    bit whichever other layers the pass serves.
    """
    layers = list(layers)
    copied = twin(model, layers if watch is None else watch)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    calls: Counter[str] = Counter()
    share = min(1.0, batch / len(data))

    def record(layer: Layer, x: Tensor, output: Tensor) -> None:
        if layer.spec.table:
            seen = torch.bincount(x.flatten(), minlength=layer.spec.in_channels).double()
            sums[layer.name] = sums[layer.name] + seen if layer.name in sums else seen
            counts[layer.name] = counts.get(layer.name, 0) + x.numel()
            return
        total = output.numel() // layer.spec.out_channels
        drawing = crc32(f"{layer.name} {seed} {calls[layer.name]}".encode())
        index = draw_positions(total, max(1, round(POSITIONS * share)), drawing)
        calls[layer.name] += 1
        for part in row_chunks(layer.spec, index):
            raise_if_cancelled()
            rows = with_ones(input_rows(layer.spec, x, part).double())
            gram = rows.mT @ rows
            sums[layer.name] = sums[layer.name].add_(gram) if layer.name in sums else gram
        counts[layer.name] = counts.get(layer.name, 0) + len(index)

    with ExitStack() as hooks, evaluating(copied):
        for layer in layers:
            hooks.callback(on_call(module_at(copied, layer.name), partial(record, layer)))
        for start in range(0, len(data), batch):
            call(copied, data.pick(slice(start, start + batch)).inputs)
    moments = {layer.name: _unknown(layer.spec) for layer in layers if not counts.get(layer.name)}
    for name, total in sums.items():
        if name in moments:
            continue
        mean = total / counts[name]
        if mean.ndim == 1:
            moments[name] = Moment(mean, mean, counts[name])
            continue
        moments[name] = Moment(mean[:, :-1, :-1].contiguous(), mean[:, :-1, -1].contiguous(), counts[name])
    return moments


def _unknown(spec: LayerSpec) -> Moment:
    """What is known of inputs of which there are none."""
    if spec.table:
        even = torch.full((spec.in_channels,), 1 / spec.in_channels, dtype=torch.float64)
        return Moment(even, even, 0)
    one = torch.eye(spec.fan_in, dtype=torch.float64).repeat(spec.groups, 1, 1)
    return Moment(one, one.new_zeros(spec.groups, spec.fan_in), 0)


def samples_not_finite(model: nn.Module, profile: ModelProfile, name: str, data: Dataset) -> int:
    """Of how many samples something NaN or infinite goes into a layer of the dense network, or comes out of it."""
    copied, finite, bad = twin(model, profile.layers), [True], 0

    def see(x: Tensor, output: Tensor) -> None:
        finite[0] = finite[0] and bool(x.isfinite().all()) and bool(output.isfinite().all())

    on_call(module_at(copied, name), see)
    with evaluating(copied):
        for number in range(len(data)):
            finite[0] = True
            call(copied, data.pick(slice(number, number + 1)).inputs)
            bad += not finite[0]
    return bad


def named_not_finite(pool: Dataset) -> str:
    """Which samples of a set hold NaN or infinity themselves, in parentheses; "" where none does."""
    bad = pool.not_finite()
    return f" ({samples_named(bad, len(pool))} that may be drawn)" if bad else ""


def with_ones(rows: Tensor) -> Tensor:
    """(..., P, n) -> (..., P, n + 1) with a last column of ones, which turns a Gram matrix into moments and means."""
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


class MomentStore:
    """Second moments of a network's layer inputs, learnt when first asked for; safe to share between threads.

    One pass serves every layer where all moments together fit into `limit_bytes`; otherwise it serves the layer asked
    for and as many after it as fit, and what was held before is dropped. On disk they are named by the fingerprint, the
    data, the layer, and what the network answers to a few samples: its code is not in its weights.
    """

    def __init__(
        self,
        model: nn.Module,
        profile: ModelProfile,
        data: Callable[[], Dataset],
        *,
        pool: Callable[[], Dataset] | None = None,
        limit_bytes: int = MOMENT_BYTES,
        cache: Cache | None = None,
        room: Room | None = None,
    ) -> None:
        """pool: the samples that `data` is drawn from, whose numbers a refusal names."""
        self._model, self._profile, self._data, self._limit = model, profile, data, limit_bytes
        self._pool = pool or data
        self._cache = cache
        self._pass: tuple[Layer, ...] = ()
        self._moments = (room or Room(limit_bytes)).part(limit_bytes)
        self._depends: About | None = None
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory that the moments take now; never more than the limit."""
        return self._moments.bytes

    def __call__(self, name: str) -> Moment:
        """The moment of a layer; raises InvalidModel where it alone is over the limit."""
        with self._lock:
            if all(layer.name != name for layer in self._pass):
                self._moments.clear()
                self._pass = ()
                self._pass = tuple(self._fitting(name))
            moment: Moment | None = self._moments.get(SHELF, name)
            return moment or self._stored(name) or self._learnt(name)

    def _stored(self, name: str) -> Moment | None:
        """The moment on disk, if it is there; it is then held."""
        tensors = None if self._cache is None else self._cache.get(self._about(name))
        if tensors is None:
            return None
        return self._hold(name, Moment(tensors["second"], tensors["mean"], int(tensors["rows"])))

    def _learnt(self, name: str) -> Moment:
        """The moment of a layer, learnt with all layers of the pass, whose moments are then held and stored."""
        data = self._data()
        learnt = input_moments(self._model, self._pass, data, watch=self._profile.layers)
        for at, moment in learnt.items():
            if not moment.second.isfinite().all():
                bad = samples_not_finite(self._model, self._profile, at, data)
                raise InvalidData(
                    f"layer {at!r}: what goes into it or comes out is NaN or infinite on {bad:,} of {len(data):,} "
                    f"calibration samples{named_not_finite(self._pool())}; take these out of train_data() (where there "
                    "is none, of eval_data()), or use methods that are not data-aware."
                )
        for at, moment in learnt.items():
            self._hold(at, moment)
            if self._cache is not None:
                tensors = {"second": moment.second, "mean": moment.mean, "rows": torch.tensor(moment.rows)}
                self._cache.put(self._about(at), tensors)
        return learnt[name]

    def _hold(self, name: str, moment: Moment) -> Moment:
        size = moment.second.nbytes + (0 if moment.mean is moment.second else moment.mean.nbytes)
        self._moments.put(SHELF, moment, size, item=name)
        return moment

    def _about(self, name: str) -> About:
        if self._depends is None:
            data = self._data()
            self._depends = {
                "what": "moments",
                "version": [VERSION, torch.__version__, torch.get_num_threads()],
                "model": self._profile.fingerprint,
                "answers": answers_hash(self._model, drawn(data)),
                "data": data_hash(data.inputs),
                "positions": POSITIONS,
            }
        return {**self._depends, "layer": name}

    def _fitting(self, name: str) -> list[Layer]:
        layers = list(self._profile.layers)
        first = next(i for i, layer in enumerate(layers) if layer.name == name)
        chosen, left = [], self._limit
        for layer in layers[first:] + layers[:first]:
            left -= moment_bytes(layer.spec)
            if left < 0:
                break
            chosen.append(layer)
        if not chosen:
            raise InvalidModel(
                f"the second moment of layer {name!r} takes {moment_bytes(layers[first].spec) // 10**6} MB, more than "
                f"the limit of {self._limit // 10**6} MB; choose the variant of the method that needs no data."
            )
        return chosen
