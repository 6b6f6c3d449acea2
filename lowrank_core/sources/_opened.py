"""Opened: a model and what came with it, and how a person's data is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils import data
from torch.utils._pytree import tree_map

from lowrank_core.errors import InvalidData
from lowrank_core.layers.data import BatchAxes, Dataset, Inputs, first_axes, tensors
from lowrank_core.scoring.metrics import AGREEMENT, TOP1, Metric

BATCH = 256
"""Samples of a `Dataset` of PyTorch that are put together at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A model and what came with it; data is loaded when first asked for.

    ref: the reference that opens it again; None for a network that came from Python. axes: where the batch is in what
    the network takes and gives; None where it could not be run on the example inputs.
    """

    ref: str | None
    name: str
    description: str
    model: nn.Module
    example_inputs: Inputs
    eval_data: Callable[[], Dataset]
    train_data: Callable[[], Dataset] | None
    metric: Callable[[Dataset], Metric]
    evaluate: Callable[[nn.Module], float] | None = None
    higher_is_better: bool = True
    notices: tuple[str, ...] = field(default=())
    provides: frozenset[str] = frozenset()  # the functions of the contract that the model file defines
    axes: BatchAxes | None = None

    @property
    def batch(self) -> int:
        """Samples in the example inputs."""
        return len(Dataset(self.example_inputs, axes=self.axes))


def as_dataset(value: object, where: str, axes: BatchAxes | None = None) -> Dataset:
    """(inputs, targets), an iterable of such batches, or a `Dataset` of PyTorch, as one Dataset in memory.

    axes: where the network has its batch; without them it comes first. Targets are given samples first.
    Raises InvalidData that names `where` for empty, mismatched or unreadable data.
    """
    if isinstance(value, Dataset):
        dataset = value
    elif isinstance(value, data.Dataset) and not isinstance(value, data.IterableDataset):  # sample by sample
        loader = data.DataLoader(value, batch_size=BATCH, generator=torch.Generator())
        dataset = _turned(_concatenate(loader, where, None), axes)
    elif isinstance(value, tuple | list) and len(value) == 2 and _is_targets(value[1]):
        dataset = Dataset(_as_tensors(value[0]), _as_targets(value[1]))
    elif isinstance(value, Tensor | dict):
        dataset = Dataset(_as_tensors(value))
    else:
        return _concatenate(value, where, axes)
    dataset = _placed(dataset, axes)
    if len(dataset) == 0:
        raise InvalidData(f"{where} is empty; it must hold at least one sample.")
    known = dataset.axes or first_axes(dataset.inputs)
    lengths = {t.shape[axis] for t, axis in zip(tensors(dataset.inputs), known.inputs, strict=True) if axis is not None}
    if len(lengths) > 1:
        raise InvalidData(f"{where}: all inputs must have the same number of samples, but got {sorted(lengths)}.")
    if dataset.targets is not None and len(dataset.targets) != len(dataset):
        raise InvalidData(
            f"{where}: inputs and targets must have the same number of samples, "
            f"but got {len(dataset)} inputs and {len(dataset.targets)} targets."
        )
    return dataset


def _turned(dataset: Dataset, axes: BatchAxes | None) -> Dataset:
    """Samples that were put together one by one, and so have the batch first, as the network takes them."""
    if axes is None or not _fit(axes, dataset.inputs):
        return dataset
    places = iter(axes.inputs)

    def turned(leaf: object) -> object:
        return leaf.movedim(0, next(places) or 0) if isinstance(leaf, Tensor) else leaf

    return Dataset(tree_map(turned, dataset.inputs), dataset.targets, axes)


def _fit(axes: BatchAxes, inputs: Inputs) -> bool:
    """Whether inputs are of the form that the axes are of."""
    given = tensors(inputs)
    return len(given) == len(axes.inputs) and all(
        axis is None or axis < tensor.ndim for tensor, axis in zip(given, axes.inputs, strict=True)
    )


def _placed(dataset: Dataset, axes: BatchAxes | None) -> Dataset:
    """Samples with the axes of their network, where these fit; targets that have the batch elsewhere get it first."""
    if dataset.axes is not None or axes is None or not _fit(axes, dataset.inputs):
        return dataset
    targets = dataset.targets
    placed = replace(dataset, axes=axes)
    axis = next((a for a in axes.outputs if a), 0)
    if targets is not None and axis < targets.ndim and len(targets) != len(placed) == targets.shape[axis]:
        return replace(placed, targets=targets.movedim(axis, 0), axes=replace(axes, targets=axis))
    return placed


def default_metric(dataset: Dataset, remedy: str) -> Metric:
    """Top-1 where targets are class indices, agreement with the dense network where there are none.

    Raises InvalidData, with the remedy, for other targets.
    """
    targets = dataset.targets
    if targets is None:
        return AGREEMENT
    if targets.ndim == 1 and not targets.is_floating_point():
        return TOP1
    raise InvalidData(
        f"targets must be class indices, (N,) integers, to be scored by top-1, but got {tuple(targets.shape)} "
        f"{targets.dtype}; {remedy}."
    )


def sorted_by_class(dataset: Dataset) -> bool:
    """Whether class labels come in ascending order, so that a leading part would hold few classes."""
    targets = dataset.targets
    if targets is None or targets.ndim != 1 or targets.is_floating_point() or len(targets) < 3:
        return False
    return bool((targets.diff() >= 0).all() and targets[0] != targets[-1])


def _is_targets(value: object) -> bool:
    return value is None or isinstance(value, Tensor) or hasattr(value, "__array__")


def _as_targets(value: object) -> Tensor | None:
    return None if value is None else torch.as_tensor(value)


def _as_tensors(value: Inputs) -> Inputs:
    if isinstance(value, dict):
        return {key: torch.as_tensor(v) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(torch.as_tensor(v) for v in value)
    return torch.as_tensor(value)


def _concatenate(value: object, where: str, axes: BatchAxes | None) -> Dataset:
    if isinstance(value, str | bytes):  # an iterable of itself
        raise InvalidData(f"{where} must be (inputs, targets) or an iterable of such batches, but got a text.")
    try:
        given = enumerate(cast(Iterable[object], value))
        batches = [as_dataset(batch, f"{where}, batch {i}", axes) for i, batch in given]
    except TypeError as error:
        raise InvalidData(
            f"{where} must be (inputs, targets) or an iterable of such batches, "
            f"but got {type(value).__name__} ({error})."
        ) from error
    if not batches:
        raise InvalidData(f"{where} is empty; it must hold at least one sample.")
    first = batches[0]
    inputs = (first.axes or first_axes(first.inputs)).joined([batch.inputs for batch in batches])
    targets = [b.targets for b in batches if b.targets is not None]
    if targets and len(targets) != len(batches):
        raise InvalidData(f"{where}: some batches have targets and some have none; give all of them or none.")
    return Dataset(inputs, torch.cat(targets) if targets else None, first.axes)
