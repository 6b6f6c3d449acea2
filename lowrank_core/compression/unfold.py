"""Layer inputs and outputs as rows of matrices (im2col), at drawn positions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_core.layers.spec import LayerSpec, inputs_first

CHUNK_BYTES = 32 * 2**20


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
        rows = x.reshape(-1, spec.in_channels)[index]
        return rows.view(len(rows), spec.in_channels // spec.copies, spec.copies).movedim(2, 0)
    dimensions = len(spec.kernel)
    x = x.reshape(-1, *x.shape[-dimensions - 1 :])
    padded = _dilate(spec, x) if spec.transposed else _padded(spec, x)
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
    """The weight of which `as_matrices` gives these matrices: its inverse."""
    taps = matrices.reshape(spec.out_channels // spec.copies, -1, *spec.kernel)
    return inputs_first(taps, spec.groups) if spec.transposed else taps


def row_chunks(spec: LayerSpec, index: Tensor) -> Iterator[Tensor]:
    """The index in pieces whose unfolded float64 rows stay within CHUNK_BYTES; none of an index of no rows."""
    size = max(256, CHUNK_BYTES // (8 * spec.in_channels * prod(spec.kernel)))
    yield from torch.split(index, size) if len(index) else ()


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


def _dilate(spec: LayerSpec, x: Tensor) -> Tensor:
    """Inputs with stride - 1 zeros in between, and around them as far as a transposed convolution's window reaches."""
    extents = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], spec.stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *extents)
    wide[:, :, *(slice(None, None, s) for s in spec.stride)] = x
    reach = [d * (k - 1) - p for d, k, p in zip(spec.dilation, spec.kernel, map(int, spec.padding), strict=True)]
    sides = [(n, n + o) for n, o in zip(reach, spec.output_padding, strict=True)]
    return F.pad(wide, [n for side in reversed(sides) for n in side])
