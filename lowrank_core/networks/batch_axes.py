"""Where the batch is: the axis of each input and output of a network, found by calling it with two batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowrank_core.errors import Cancelled
from lowrank_core.layers.data import (
    BatchAxes,
    Inputs,
    answer,
    evaluating,
    generators_untouched,
    named_outputs,
    samples_first,
    tensors,
)

MOST_TRIES = 24
"""Ways to read the axes of the inputs that are tried; the first one is right for nearly all networks."""

CLOSE = {torch.float16: 0.02, torch.bfloat16: 0.1}
"""How far the answers to one sample may be apart in two batches, relative to the largest; 0.001 of other types."""


def batch_axes(model: nn.Module, inputs: Inputs) -> BatchAxes | None:
    """The batch axis of every input and output; None where the network cannot be run on the inputs.

    An axis is the batch where samples that are put in another order, one of them twice, get the answers they had. Where
    no axis is, because places or other samples count too, the leading samples alone must get theirs; else the axis
    counts by which an output grows with the inputs, and is not proved. Where no output does, all of theirs are None.
    """
    given = tensors(inputs)
    if not given or given[0].ndim == 0 or any(map(is_lazy, model.parameters())):
        return None
    with evaluating(model), generators_untouched():
        for look in (_moved, _leading, _grown):
            for axes in islice(_readings(given), MOST_TRIES):
                if found := look(model, inputs, axes):
                    return found
        if _answers(model, inputs) is None:
            return None
    return BatchAxes((0,) * len(given), (None,) * len(_answers(model, inputs) or ()), proved=False)


def _readings(given: list[Tensor]) -> Iterator[tuple[int | None, ...]]:
    """Axes of the inputs that may be the batch: the first of all, then others that have one extent in all inputs.

    An input that has no axis of that extent has no batch; at last also others may have none.
    """
    for none in ([], [None]):
        for axis, extent in enumerate(given[0].shape):
            others: list[list[int | None]] = []
            for other in given[1:]:
                fitting = [a for a, n in enumerate(other.shape) if n == extent]
                others.append([*sorted(fitting, key=lambda a: a != axis), *none] or [None])
            yield from ((axis, *rest) for rest in product(*others))


def _moved(model: nn.Module, inputs: Inputs, axes: tuple[int | None, ...]) -> BatchAxes | None:
    if _samples(inputs, axes) > 1:
        return _found(model, inputs, axes, [0, 1], [1, 0, 0], [1, 0, 0])
    return _found(model, inputs, axes, [0], [0, 0], [0, 0])


def _leading(model: nn.Module, inputs: Inputs, axes: tuple[int | None, ...]) -> BatchAxes | None:
    if _samples(inputs, axes) < 2:
        return None
    return _found(model, inputs, axes, [0, 1], [0], [0])


def _grown(model: nn.Module, inputs: Inputs, axes: tuple[int | None, ...]) -> BatchAxes | None:
    return _found(model, inputs, axes, [0, 0], [0, 0, 0], None)


def _samples(inputs: Inputs, axes: tuple[int | None, ...]) -> int:
    return BatchAxes(axes, ()).samples(inputs)


def _found(
    model: nn.Module,
    inputs: Inputs,
    axes: tuple[int | None, ...],
    one: list[int],
    other: list[int],
    same: list[int] | None,
) -> BatchAxes | None:
    """The axes under which two batches get outputs that differ by their samples alone; None where they do not.

    one, other: numbers of the samples in each batch; same: at which places of the first the samples of the other are,
    None compares no values. The rows of a sample may lie together or apart.
    """
    read = BatchAxes(axes, ())
    first = _answers(model, read.pick(inputs, torch.tensor(one)))
    second = None if first is None else _answers(model, read.pick(inputs, torch.tensor(other)))
    if first is None or second is None or len(first) != len(second):
        return None
    found, rows, apart = [], [], []
    for a, b in zip(first, second, strict=True):
        axis, many = _grows(a, b, len(one), len(other))
        found.append(axis)
        rows.append(many)
        apart.append(False)
        if axis is None or same is None:
            continue
        order, moved = torch.tensor(same, device=a.device), samples_first(a, axis)
        together = moved.reshape(len(one), many, *moved.shape[1:])[order].flatten(0, 1)
        if not _alike(together.movedim(0, axis), b):
            between = moved.reshape(many, len(one), *moved.shape[1:])[:, order].flatten(0, 1)
            if many == 1 or not _alike(between.movedim(0, axis), b):
                return None
            apart[-1] = True
    if all(axis is None for axis in found):
        return None
    return BatchAxes(axes, tuple(found), 0, same is not None, tuple(rows), tuple(apart) if any(apart) else ())


def _grows(a: Tensor, b: Tensor, samples: int, others: int) -> tuple[int | None, int]:
    """(the one axis that is as many times longer as there are more samples, its rows for each sample)."""
    if a.ndim != b.ndim:
        return None, 1
    changed = [axis for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n]
    if len(changed) != 1:
        return None, 1
    m, n = a.shape[changed[0]], b.shape[changed[0]]
    return (changed[0], m // samples) if m * others == n * samples and m % samples == 0 else (None, 1)


def _alike(a: Tensor, b: Tensor) -> bool:
    if not (a.is_floating_point() or a.is_complex()):
        return a.dtype == b.dtype
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    apart = (a - b)[finite].abs().double()
    if not apart.numel():
        return True
    return float(apart.max()) <= CLOSE.get(a.dtype, 1e-3) * float(a[finite].abs().double().max())


def _answers(model: nn.Module, inputs: Inputs) -> list[Tensor] | None:
    """All tensors that the network returns; None where it fails."""
    try:
        return list(named_outputs(answer(model, inputs)).values())
    except Cancelled:
        raise
    except (Exception, SystemExit):
        return None
