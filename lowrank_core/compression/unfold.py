"""Layer inputs and outputs as rows of matrices (im2col), at drawn positions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod

import torch
from torch import Tensor

from lowrank_core.layers.spec import LayerSpec, inputs_first

CHUNK_BYTES = 32 * 2**20


@lru_cache(maxsize=64)
def draw_positions(total: int, count: int, seed: int) -> Tensor:
    """(min(total, count),) indices in 0..total - 1, ascending, without repetition."""
    if total <= count:
        return torch.arange(total)
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def rows_of(spec: LayerSpec, x: Tensor) -> int:
    """How many rows the output for an input has: samples times positions."""
    if not spec.kernel:
        return x.numel() // spec.in_channels
    samples, *size = _channels_last(spec, x).shape[:-1]
    return samples * prod(spec.out_size(tuple(size)))


def output_rows(spec: LayerSpec, output: Tensor, index: Tensor | None = None) -> Tensor:
    """(P, out) of a layer's output, one row per sample and position; `index` picks rows. Always a copy or a view."""
    if not spec.kernel:
        rows = output.reshape(-1, spec.out_channels)
        return rows if index is None else rows[index.to(rows.device)]
    last = _channels_last(spec, output)
    if index is None:
        return last.reshape(-1, spec.out_channels)
    *places, sample = _unravel(index.to(last.device), tuple(last.shape[:-1]))
    return last[sample, *places]


def input_rows(spec: LayerSpec, x: Tensor, index: Tensor) -> Tensor:
    """(groups, P, in / groups * window): what each output position in `index` is computed from (im2col).

    Of a shared weight (copies, P, in / copies), what it is applied to.

    Columns are in the order of `weight.flatten(1)`. Strides, dilation, padding and its modes are those of the layer.
    Only what these positions see is read: the input is neither padded nor laid out anew.
    """
    index = index.to(x.device)
    if not spec.kernel:
        rows = x.reshape(-1, spec.in_channels)[index]
        return rows.view(len(rows), spec.in_channels // spec.copies, spec.copies).movedim(2, 0)
    last = _channels_last(spec, x)
    size = tuple(last.shape[1:-1])
    *places, sample = _unravel(index, (len(last), *spec.out_size(size)))
    seen = [
        [_seen(spec, axis, place, tap, size[axis]) for tap in range(spec.kernel[axis])]
        for axis, place in enumerate(places)
    ]
    rows = last.new_empty(len(index), spec.in_channels, prod(spec.kernel))
    for number, taps in enumerate(product(*seen)):
        rows[:, :, number] = last[sample, *(at for at, _ in taps)]
        outside = [padding for _, padding in taps if padding is not None]
        if outside:
            rows[:, :, number].masked_fill_(torch.stack(outside).any(0)[:, None], 0)
    return rows.reshape(len(index), spec.groups, -1).transpose(0, 1)


def _seen(spec: LayerSpec, axis: int, place: Tensor, tap: int, extent: int) -> tuple[Tensor, Tensor | None]:
    """What one tap of the window sees from each place along an axis: (coordinate, where that is a zero of padding).

    A transposed convolution is one of stride 1 over its inputs with zeros put between them, its window mirrored.
    """
    stride, dilation, padding = spec.stride[axis], spec.dilation[axis], spec.padding
    reach = dilation * (spec.kernel[axis] - 1)
    before = reach // 2 if isinstance(padding, str) else int(padding[axis])
    if spec.transposed:
        at = place + before - tap * dilation
        between = at % stride != 0
        at = at.div(stride, rounding_mode="floor")
    else:
        at, between = place * stride + tap * dilation - before, None
    if spec.padding_mode == "circular":
        return at % extent, None
    if spec.padding_mode == "reflect":
        return extent - 1 - (extent - 1 - at.abs()).abs(), None
    inside = at.clamp(0, extent - 1)
    if spec.padding_mode == "replicate":
        return inside, None
    outside = (inside != at) if between is None else (inside != at) | between
    return inside, outside if bool(outside.any()) else None


def as_matrices(spec: LayerSpec, weight: Tensor) -> Tensor:
    """(groups, out / groups, in / groups * window) of a weight, columns in the order of `input_rows`."""
    taps = inputs_first(weight, spec.groups) if spec.transposed else weight
    return taps.reshape(spec.groups, spec.out_channels // spec.groups // spec.copies, -1)


def as_weight(spec: LayerSpec, matrices: Tensor) -> Tensor:
    """The weight of which `as_matrices` gives these matrices: its inverse."""
    taps = matrices.reshape(spec.out_channels // spec.copies, -1, *spec.kernel)
    return inputs_first(taps, spec.groups) if spec.transposed else taps


def row_chunks(spec: LayerSpec, index: Tensor) -> Iterator[Tensor]:
    """The index in pieces whose unfolded float64 rows stay within CHUNK_BYTES; none of an index of no rows."""
    size = max(256, CHUNK_BYTES // (8 * spec.in_channels * prod(spec.kernel)))
    yield from torch.split(index, size) if len(index) else ()


def _channels_last(spec: LayerSpec, tensor: Tensor) -> Tensor:
    """(samples, *size, channels) of what goes into a convolution or comes out of it, in the same memory."""
    return tensor.reshape(-1, *tensor.shape[-len(spec.kernel) - 1 :]).movedim(1, -1)


def _unravel(index: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """Coordinates of flat positions: the spatial axes in order, the sample last."""
    coordinates: list[Tensor] = []
    for extent in reversed(shape[1:]):
        coordinates.insert(0, index % extent)
        index = index // extent
    return [*coordinates, index]
