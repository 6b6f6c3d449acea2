"""Calibration: what goes into each layer, learnt from a few unlabelled samples.

Everything here runs on a twin of the network (its own modules, the same weights), so hooks never touch the original
and other threads may use it meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core.errors import InvalidModel
from lowrank_core.layers.attention import watched_attention, without_fused_paths
from lowrank_core.layers.computed import sharing
from lowrank_core.layers.data import Dataset, call, data_hash, evaluating
from lowrank_core.layers.recurrent import watched
from lowrank_core.layers.spec import LayerSpec, inputs_first
from lowrank_core.networks.discover import Layer, ModelProfile, module_at
from lowrank_core.running.cancelling import go_on
from lowrank_core.store.cache import About, Cache
from lowrank_core.store.room import Room

SAMPLES = 256
"""Calibration uses at most this many samples; more change nothing that can be measured (see benchmarks/quality.py)."""

POSITIONS = 16_384
"""Rows kept of one layer: tokens or window positions over all samples, drawn without replacement."""

ANSWERS = 8
"""Samples whose answers tell networks apart that have the same weights."""

VERSION = 1
"""Of the way moments are learnt: what was kept by another version is not used."""

CHUNK_BYTES = 32 * 2**20
MOMENT_BYTES = 2**29
SHELF = "moments"
"""All of a pass go together where room is needed: one pass brings all of them back."""


def calibration_samples(pool: Dataset, samples: int = SAMPLES, seed: int = 0) -> Dataset:
    """At most `samples` of the pool, without labels, in an order that depends on the seed alone."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return Dataset(Dataset(pool.inputs).pick(order[:samples]).inputs)


def twin(model: nn.Module, watch: Iterable[Layer] = ()) -> nn.Module:
    """A copy with modules of its own that shares every parameter and buffer with the original.

    Each layer in `watch` is a module under its name, which hooks can see: also the weights of recurrent modules and
    attentions.
    """
    memo: dict[int, Any] = {}
    for name in {layer.module for layer in watch if layer.partial}:
        module = module_at(model, name)
        if isinstance(module, nn.MultiheadAttention):
            memo[id(module)] = watched_attention(module)
            continue
        assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
        memo[id(module)] = watched(module)
    return without_fused_paths(sharing(model, memo))


@lru_cache(maxsize=64)
def draw_positions(total: int, count: int, seed: int) -> Tensor:
    """(min(total, count),) indices in 0..total - 1, ascending, without repetition."""
    if total <= count:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def output_rows(spec: LayerSpec, output: Tensor, index: Tensor | None = None) -> Tensor:
    """(P, out) of a layer's output, one row per sample and position; `index` picks rows. Always a copy or a view."""
    last = _channels_last(spec, output, spec.out_channels)
    return last if index is None else last[index.to(last.device)]


def input_rows(spec: LayerSpec, x: Tensor, index: Tensor) -> Tensor:
    """(groups, P, in / groups * window): what each output position in `index` is computed from (im2col).

    Of a shared weight (copies, P, in / copies), what it is applied to.

    Columns are in the order of `weight.flatten(1)`. Strides, dilation, padding and its modes are those of the layer.
    A transposed convolution is one of stride 1 over its inputs with zeros put between them, its window mirrored.
    """
    index = index.to(x.device)
    if not spec.kernel:
        return x.reshape(-1, spec.in_channels)[index].view(len(index), -1, spec.copies).movedim(2, 0)
    dimensions = len(spec.kernel)
    x = x.reshape(-1, *x.shape[-dimensions - 1 :])
    padded = _spread(spec, x) if spec.transposed else _padded(spec, x)
    strides = (1,) * dimensions if spec.transposed else spec.stride
    out_size, size = spec.out_size(tuple(x.shape[2:])), padded.shape[2:]
    flat = padded.movedim(1, -1).reshape(-1, spec.in_channels)
    *starts, sample = _unravel(index, (len(x), *out_size))
    columns = []
    for offset in product(*(range(k)[::-1] if spec.transposed else range(k) for k in spec.kernel)):
        row = sample
        for start, o, s, d, n in zip(starts, offset, strides, spec.dilation, size, strict=True):
            row = row * n + start * s + o * d
        columns.append(flat[row])
    rows = torch.stack(columns, dim=-1)
    return rows.reshape(len(index), spec.groups, -1).transpose(0, 1)


def as_matrices(spec: LayerSpec, weight: Tensor) -> Tensor:
    """(groups, out / groups, in / groups * window) of a weight, columns in the order of `input_rows`."""
    taps = inputs_first(weight, spec.groups) if spec.transposed else weight
    return taps.reshape(spec.groups, spec.out_channels // spec.groups // spec.copies, -1)


def as_weight(spec: LayerSpec, matrices: Tensor) -> Tensor:
    """What `as_matrices` takes apart."""
    taps = matrices.reshape(spec.out_channels // spec.copies, -1, *spec.kernel)
    return inputs_first(taps, spec.groups) if spec.transposed else taps


def row_chunks(spec: LayerSpec, index: Tensor) -> Iterator[Tensor]:
    """The index in pieces whose unfolded float64 rows stay within CHUNK_BYTES."""
    size = max(256, CHUNK_BYTES // (8 * spec.in_channels * prod(spec.kernel)))
    yield from torch.split(index, size)


def _channels_last(spec: LayerSpec, tensor: Tensor, channels: int) -> Tensor:
    return (
        tensor.reshape(-1, channels)
        if not spec.kernel
        else (tensor.reshape(-1, *tensor.shape[-len(spec.kernel) - 1 :]).movedim(1, -1).reshape(-1, channels))
    )


def _unravel(index: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """Coordinates of flat positions: the spatial axes in order, the sample last."""
    coordinates: list[Tensor] = []
    for extent in reversed(shape[1:]):
        coordinates.insert(0, index % extent)
        index = index // extent
    return [*coordinates, index]


def _padded(spec: LayerSpec, x: Tensor) -> Tensor:
    if spec.padding == "same":
        totals = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(int(p), int(p)) for p in spec.padding]
    flat = [n for side in reversed(sides) for n in side]
    if not any(flat):
        return x
    return F.pad(x, flat, mode="constant" if spec.padding_mode == "zeros" else spec.padding_mode)


def _spread(spec: LayerSpec, x: Tensor) -> Tensor:
    """stride - 1 zeros between neighbours, and around them as far as the window of a transposed convolution reaches."""
    extents = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], spec.stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *extents)
    wide[:, :, *(slice(None, None, s) for s in spec.stride)] = x
    reach = [d * (k - 1) - p for d, k, p in zip(spec.dilation, spec.kernel, map(int, spec.padding), strict=True)]
    sides = [(n, n + o) for n, o in zip(reach, spec.output_padding, strict=True)]
    return F.pad(wide, [n for side in reversed(sides) for n in side])


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """Of a layer's unfolded input x, over `rows` rows: second (groups, n, n) = E[x x^T], mean (groups, n); float64.

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
    model: nn.Module, layers: Iterable[Layer], data: Dataset, *, seed: int = 0, batch: int = 64
) -> dict[str, Moment]:
    """Moments of the inputs of several layers in one pass over the data, at most POSITIONS rows of each call."""
    layers = list(layers)
    copied = twin(model, layers)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    share = min(1.0, batch / len(data))

    def record(layer: Layer, x: Tensor, output: Tensor) -> None:
        if layer.spec.table:
            seen = torch.bincount(x.flatten(), minlength=layer.spec.in_channels).double()
            sums[layer.name] = sums[layer.name] + seen if layer.name in sums else seen
            counts[layer.name] = counts.get(layer.name, 0) + x.numel()
            return
        total = output.numel() // layer.spec.out_channels
        index = draw_positions(total, max(1, round(POSITIONS * share)), seed + len(counts))
        for part in row_chunks(layer.spec, index):
            go_on()
            rows = with_ones(input_rows(layer.spec, x, part).double())
            gram = rows.mT @ rows
            sums[layer.name] = sums[layer.name].add_(gram) if layer.name in sums else gram
        counts[layer.name] = counts.get(layer.name, 0) + len(index)

    with ExitStack() as hooks, evaluating(copied):
        for layer in layers:
            hooks.callback(on_call(module_at(copied, layer.name), partial(record, layer)))
        for start in range(0, len(data), batch):
            call(copied, data.pick(slice(start, start + batch)).inputs)
    found = {}
    for name, total in sums.items():
        mean = total / counts[name]
        if mean.ndim == 1:
            found[name] = Moment(mean, mean, counts[name])
            continue
        found[name] = Moment(mean[:, :-1, :-1].contiguous(), mean[:, :-1, -1].contiguous(), counts[name])
    return found


def with_ones(rows: Tensor) -> Tensor:
    """(..., P, n) -> (..., P, n + 1) with a last column of ones, which turns a Gram matrix into moments and means."""
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


def on_call(module: nn.Module, see: Callable[[Tensor, Tensor], Any]) -> Callable[[], None]:
    """Call see(input, output) after each call of the module; returns what takes the hook away again."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        see(args[0] if args else next(iter(kwargs.values())), output)

    return module.register_forward_hook(hook, with_kwargs=True).remove


class MomentStore:
    """Second moments of a network's layer inputs, learnt when first asked for; safe to share between threads.

    One pass serves every layer where all moments together fit into `limit_bytes`; otherwise it serves the layer asked
    for and as many after it as fit, and what was held before is dropped. On disk they are named by the fingerprint, the
    data, the layers of the pass, and what the network answers to the first samples: its code is not in its weights.
    """

    def __init__(
        self,
        model: nn.Module,
        profile: ModelProfile,
        data: Callable[[], Dataset],
        *,
        limit_bytes: int = MOMENT_BYTES,
        cache: Cache | None = None,
        room: Room | None = None,
    ) -> None:
        self._model, self._profile, self._data, self._limit = model, profile, data, limit_bytes
        self._cache = cache
        self._pass: tuple[Layer, ...] = ()
        self._kept = (room or Room(limit_bytes)).part(limit_bytes)
        self._depends: About | None = None
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory held now; never more than the limit."""
        return self._kept.bytes

    def __call__(self, name: str) -> Moment:
        """The moment of a layer; raises InvalidModel where it alone is over the limit."""
        with self._lock:
            if all(layer.name != name for layer in self._pass):
                self._kept.clear()
                self._pass = ()
                self._pass = tuple(self._fitting(name))
            known: Moment | None = self._kept.get(SHELF, name)
            return known or self._stored(name) or self._learnt(name)

    def _stored(self, name: str) -> Moment | None:
        """The moment on disk, if it is there; it is then held."""
        found = None if self._cache is None else self._cache.get(self._about(name))
        if found is None:
            return None
        return self._hold(name, Moment(found["second"], found["mean"], int(found["rows"])))

    def _learnt(self, name: str) -> Moment:
        """Those of all layers of the pass; they are then held and stored."""
        learnt = input_moments(self._model, self._pass, self._data())
        for at, moment in learnt.items():
            self._hold(at, moment)
            if self._cache is not None:
                found = {"second": moment.second, "mean": moment.mean, "rows": torch.tensor(moment.rows)}
                self._cache.put(self._about(at), found)
        return learnt[name]

    def _hold(self, name: str, moment: Moment) -> Moment:
        size = moment.second.nbytes + (0 if moment.mean is moment.second else moment.mean.nbytes)
        self._kept.put(SHELF, moment, size, item=name)
        return moment

    def _about(self, name: str) -> About:
        if self._depends is None:
            data = self._data()
            with evaluating(twin(self._model)) as copied:
                answers = call(copied, data.pick(slice(0, ANSWERS)).inputs)
            self._depends = {
                "what": "moments",
                "version": [VERSION, torch.__version__, torch.get_num_threads()],
                "model": self._profile.fingerprint,
                "answers": data_hash(answers),
                "data": data_hash(data.inputs),
                "positions": POSITIONS,
            }
        return {**self._depends, "layer": name, "pass": sorted(layer.name for layer in self._pass)}

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
                f"the second moment of layer {name!r} takes {moment_bytes(layers[first].spec) >> 20} MB, more than the "
                f"limit of {self._limit >> 20} MB; choose the variant of the method that needs no data."
            )
        return chosen
