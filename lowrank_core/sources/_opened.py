"""Opened: a model and what came with it, and how a person's data is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils import data

from lowrank_core.errors import InvalidData
from lowrank_core.layers.data import Dataset, Inputs, tensors
from lowrank_core.scoring.metrics import AGREEMENT, TOP1, Metric

BATCH = 256
"""Samples of a `Dataset` of PyTorch that are put together at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A model and what came with it; data is loaded when first asked for.

    ref: the reference that opens it again; None for a network that came from Python. code: the hash of each source file
    that was run for it, as it was then.
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
    code: dict[Path, str] = field(default_factory=dict)
    provides: frozenset[str] = frozenset()  # the functions of the contract that the model file defines


def as_dataset(value: object, where: str) -> Dataset:
    """(inputs, targets), an iterable of such batches, or a `Dataset` of PyTorch, as one Dataset in memory.

    Raises InvalidData that names `where` for empty, mismatched or unreadable data.
    """
    if isinstance(value, Dataset):
        dataset = value
    elif isinstance(value, data.Dataset) and not isinstance(value, data.IterableDataset):  # sample by sample
        dataset = _concatenate(data.DataLoader(value, batch_size=BATCH, generator=torch.Generator()), where)
    elif isinstance(value, tuple | list) and len(value) == 2 and _is_targets(value[1]):
        dataset = Dataset(_as_tensors(value[0]), _as_targets(value[1]))
    elif isinstance(value, Tensor | dict):
        dataset = Dataset(_as_tensors(value))
    else:
        dataset = _concatenate(value, where)
    if len(dataset) == 0:
        raise InvalidData(f"{where} is empty; it must hold at least one sample.")
    lengths = {len(t) for t in tensors(dataset.inputs)}
    if len(lengths) > 1:
        raise InvalidData(f"{where}: all inputs must have the same number of samples, but got {sorted(lengths)}.")
    if dataset.targets is not None and len(dataset.targets) != len(dataset):
        raise InvalidData(
            f"{where}: inputs and targets must have the same number of samples, "
            f"but got {len(dataset)} inputs and {len(dataset.targets)} targets."
        )
    return dataset


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


def _concatenate(value: object, where: str) -> Dataset:
    if isinstance(value, str | bytes):  # an iterable of itself
        raise InvalidData(f"{where} must be (inputs, targets) or an iterable of such batches, but got a text.")
    try:
        batches = [as_dataset(batch, f"{where}, batch {i}") for i, batch in enumerate(cast(Iterable[object], value))]
    except TypeError as error:
        raise InvalidData(
            f"{where} must be (inputs, targets) or an iterable of such batches, "
            f"but got {type(value).__name__} ({error})."
        ) from error
    if not batches:
        raise InvalidData(f"{where} is empty; it must hold at least one sample.")
    first = batches[0].inputs
    if isinstance(first, dict):
        inputs: Inputs = {key: torch.cat([b.inputs[key] for b in batches]) for key in first}
    elif isinstance(first, tuple):
        inputs = tuple(torch.cat([b.inputs[i] for b in batches]) for i in range(len(first)))
    else:
        inputs = torch.cat([b.inputs for b in batches])
    targets = [b.targets for b in batches if b.targets is not None]
    if targets and len(targets) != len(batches):
        raise InvalidData(f"{where}: some batches have targets and some have none; give all of them or none.")
    return Dataset(inputs, torch.cat(targets) if targets else None)
