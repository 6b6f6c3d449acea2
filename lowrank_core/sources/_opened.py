"""Opened: a model and what came with it, and how a person's data is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils import data
from torch.utils._pytree import tree_map

from lowrank_core.errors import InvalidData
from lowrank_core.figures import how_many
from lowrank_core.layers.computed import copied
from lowrank_core.layers.data import BatchAxes, Dataset, Inputs, first_axes, samples_named, tensors
from lowrank_core.networks.filling import filled_by
from lowrank_core.samples.limits import MOST_BYTES, MOST_SAMPLES
from lowrank_core.samples.preparation import Preparation
from lowrank_core.scoring.metrics import Metric
from lowrank_core.sources._weights import Weights
from lowrank_core.store.reference import file_and_part

COMPARED = "how outputs compare with the dense ones"
"""What the score is of a network without labels, in a notice, until it is known what its outputs are."""

BATCH = 256
"""Samples of a `Dataset` of PyTorch that are put together at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A model and what came with it; data is loaded when first asked for.

    ref: the reference that opens it again; None for a network that came from Python. code: the hash of each source file
    that was run for it, as it was then.
    metric: the one that a person gives for such samples; None where they give none, and the outputs tell.
    outputs: those that are judged, by name or place; () where they are found.
    refused: what a refusal of the data or outputs begins with; own_metric: what to do where no known metric fits.
    axes: where the batch is in what the network takes and gives; None where it could not be run on the example inputs.
    preparation: how raw samples, images say, become its inputs; what it leaves open follows from the example inputs.
    of_own_data: those of the notices that are about its own data, and go where a person names others.
    """

    ref: str | None
    name: str
    description: str
    model: nn.Module
    example_inputs: Inputs
    eval_data: Callable[[], Dataset]
    train_data: Callable[[], Dataset] | None
    metric: Callable[[Dataset], Metric | None]
    evaluate: Callable[[nn.Module], float] | None = None
    higher_is_better: bool = True
    notices: tuple[str, ...] = field(default=())
    code: dict[Path, str] = field(default_factory=dict)
    provides: frozenset[str] = frozenset()  # the functions of the contract that the model file defines
    outputs: tuple[str | int, ...] = ()
    refused: str = ""
    own_metric: str = "give metric, a function (outputs, targets) -> float"
    axes: BatchAxes | None = None
    preparation: Preparation = field(default_factory=Preparation)
    of_own_data: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        """Samples in the example inputs."""
        return len(Dataset(self.example_inputs, axes=self.axes))


def filled_with(opened: Opened, weights: Weights, ref: str) -> Opened:
    """The same model with the weights of a file, in a copy of it. ref: the reference of both; raises InvalidFile."""
    assert weights.sets is not None
    _, part = file_and_part(weights.ref)
    model, said = filled_by(copied(opened.model), weights.sets, lambda tensor: tensor.whole, part)
    return replace(opened, ref=ref, model=model, notices=(*opened.notices, *said))


def as_dataset(
    value: object, where: str, inputs: Callable[[], int] = lambda: 1, axes: BatchAxes | None = None
) -> Dataset:
    """(inputs, targets), (inputs, targets, weights), an iterable of such batches, or a `Dataset`, as one in memory.

    inputs: how many tensors the network takes, asked where it matters: of a flat tuple so many come before the targets.
    axes: where the network has its batch; without them it comes first. Targets are given samples first.
    Raises InvalidData that names `where` for empty, mismatched or unreadable data.
    """
    dataset = _read(value, where, inputs, axes)
    return dataset if dataset.weights is None else replace(dataset, weights=_weights(dataset, where))


def _read(value: object, where: str, inputs: Callable[[], int], axes: BatchAxes | None) -> Dataset:
    if isinstance(value, Dataset):
        dataset = value
    elif _is_by_sample(value):
        loader = data.DataLoader(cast(data.Dataset[Any], value), batch_size=BATCH, generator=torch.Generator())
        dataset = turned(_concatenate(loader, where, inputs, None), axes)
    elif isinstance(value, tuple | list) and len(value) == 2 and _is_targets(value[1]):
        dataset = Dataset(_as_tensors(value[0]), _as_targets(value[1]))
    elif isinstance(value, tuple | list) and _is_row(value, inputs):
        dataset = _of_row(value, where, inputs)
    elif isinstance(value, Tensor | dict):
        dataset = Dataset(_as_tensors(value))
    else:
        return _concatenate(value, where, inputs, axes)
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


def turned(dataset: Dataset, axes: BatchAxes | None) -> Dataset:
    """Samples that were put together one by one, and so have the batch first, as the network takes them."""
    if axes is None or not _fit(axes, dataset.inputs):
        return dataset
    places = iter(axes.inputs)

    def turned(leaf: object) -> object:
        return leaf.movedim(0, next(places) or 0) if isinstance(leaf, Tensor) else leaf

    return replace(dataset, inputs=tree_map(turned, dataset.inputs), axes=axes)


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
    if any(axes.apart):  # labels that are not put into one axis have the batch where the inputs have it
        axis = next((a for a in axes.inputs if a is not None), 0)
    if targets is not None and axis < targets.ndim and len(targets) != len(placed) == targets.shape[axis]:
        return replace(placed, targets=targets.movedim(axis, 0), axes=replace(axes, targets=axis))
    return placed


def _is_by_sample(value: object) -> bool:
    """Whether samples come one by one: a `Dataset` of PyTorch, or a list of (inputs of one sample, its label)."""
    if isinstance(value, data.Dataset):
        return not isinstance(value, data.IterableDataset)
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, tuple) or len(first) != 2:
        return False
    label = first[1]
    return isinstance(label, int | float) or (isinstance(label, Tensor) and label.ndim == 0)


def _is_row(value: Sequence[object], inputs: Callable[[], int]) -> bool:
    """Whether this is one batch, (inputs, ..., targets or weights), and no list of batches of inputs alone.

    Its tensors have the same number of samples; where they are all of one form a list may be either.
    """
    if len(value) < 3 or not all(map(_is_array, value[1:])) or not (_is_array(value[0]) or _is_nest(value[0])):
        return False
    found = [*tensors(_as_tensors(value[0])), *map(torch.as_tensor, value[1:])]
    if not all(t.ndim and len(t) == len(found[0]) for t in found):
        return False
    return isinstance(value, tuple) or len({(t.shape, t.dtype) for t in found}) > 1 or inputs() > 1


def _is_nest(value: object) -> bool:
    """Inputs of several tensors: a tuple or a dict of them."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return bool(inside) and all(map(_is_array, inside))


def _of_row(value: Sequence[Any], where: str, inputs: Callable[[], int]) -> Dataset:
    """A batch in a flat tuple: what the network takes, targets, and weights where there is one more tensor."""
    count = inputs()
    if len(value) not in (count + 1, count + 2):
        takes = f"{count} input{'' if count == 1 else 's'}"
        raise InvalidData(
            f"{where}: a batch of {len(value)} tensors must be the network's {takes} and targets, or these and "
            "weights; give (inputs, targets) with a tuple of inputs, or example_inputs() that tells how many there are."
        )
    given = _as_tensors(value[0]) if count == 1 else _as_tensors(tuple(value[:count]))
    return Dataset(given, _as_targets(value[count]), _as_targets(value[count + 1]) if value[count + 1 :] else None)


def _weights(dataset: Dataset, where: str) -> Tensor | None:
    """What each sample counts, (N,); None where all count alike. Raises InvalidData for what can be no weights."""
    weights = cast(Tensor, dataset.weights)
    if weights.numel() != len(weights) or len(weights) != len(dataset):
        raise InvalidData(
            f"{where}: weights must be one number for each of the {how_many(len(dataset), 'sample')}, (N,), but are "
            f"{tuple(weights.shape)}; weights are the third of a tuple, or those of a .npz."
        )
    weights = weights.reshape(-1).double()
    if not bool(weights.isfinite().all() and (weights >= 0).all() and weights.any()):
        raise InvalidData(
            f"{where}: weights must be finite, 0 or more, and not all 0, but go from {float(weights.min()):g} to "
            f"{float(weights.max()):g}; weights are the third of a tuple, or those of a .npz."
        )
    return None if bool((weights == weights[0]).all()) else weights


def more_notice(kind: str, dataset: Dataset) -> str:
    """What to say of data that go on after the samples that are read; kind: "evaluation" or "training"."""
    return (
        f"There are more {kind} samples than are read: the first {len(dataset):,}, "
        f"at most {MOST_SAMPLES:,} samples and {MOST_BYTES / 1e9:g} GB."
    )


def not_finite_notice(where: str, dataset: Dataset) -> str:
    """What to say of samples that hold NaN or infinity; "" where none does. where: 'eval_data()'."""
    bad = dataset.not_finite()
    if not bad:
        return ""
    holds = "holds" if len(bad) == 1 else "hold"
    return f"{where}: {samples_named(bad, len(dataset))} {holds} NaN or infinity; no answer to them counts as right."


def sorted_by_class(dataset: Dataset) -> bool:
    """Whether class labels come in ascending order, so that a leading part would hold few classes."""
    targets = dataset.targets
    if targets is None or targets.ndim != 1 or targets.is_floating_point() or len(targets) < 3:
        return False
    return bool((targets[1:] >= targets[:-1]).all() and targets[0] != targets[-1])


def of_one_class(dataset: Dataset) -> bool:
    """Whether there are class labels, and all of them the same."""
    targets = dataset.targets
    if targets is None or targets.ndim != 1 or targets.is_floating_point() or len(targets) < 2:
        return False
    return bool((targets == targets[0]).all())


def _is_targets(value: object) -> bool:
    return value is None or _is_array(value)


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def _as_targets(value: object) -> Tensor | None:
    return None if value is None else _array(value)


def _as_tensors(value: Inputs) -> Inputs:
    if isinstance(value, dict):
        return {key: _as_tensor(v) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(map(_as_tensor, value))
    return _array(value)


def _array(value: Any) -> Tensor:
    """An array of any library; pandas says itself how its tables are one, and may forbid to write to it."""
    return torch.tensor(value.to_numpy()) if hasattr(value, "to_numpy") else torch.as_tensor(value)


def _as_tensor(value: object) -> object:
    """None, a flag or a name stay what they are: an argument of the network that is no sample."""
    return value if value is None or isinstance(value, bool | str) else _array(value)


def _concatenate(value: object, where: str, count: Callable[[], int], axes: BatchAxes | None) -> Dataset:
    if isinstance(value, str | bytes):  # an iterable of itself
        raise InvalidData(f"{where} must be (inputs, targets) or an iterable of such batches, but got a text.")
    batches: list[Dataset] = []
    samples = size = 0
    more = False
    try:
        for i, batch in enumerate(cast(Iterable[object], value)):
            if more := samples >= MOST_SAMPLES or size >= MOST_BYTES:
                break
            batches.append(_read(batch, f"{where}, batch {i}", count, axes))
            samples += len(batches[-1])
            size += sum(t.nbytes for t in tensors((batches[-1].inputs, batches[-1].targets)))
    except TypeError as error:
        raise InvalidData(
            f"{where} must be (inputs, targets) or an iterable of such batches, "
            f"but got {type(value).__name__} ({error})."
        ) from error
    if not batches:
        raise InvalidData(f"{where} is empty; it must hold at least one sample.")
    batches = _of_one_length(batches)
    first = batches[0]
    inputs = _joined_inputs(batches, where)
    targets = [b.targets for b in batches if b.targets is not None]
    if targets and len(targets) != len(batches):
        raise InvalidData(f"{where}: some batches have targets and some have none; give all of them or none.")
    weights = None
    if any(b.weights is not None for b in batches):
        weights = torch.cat([torch.ones(len(b)) if b.weights is None else b.weights for b in batches])
    return Dataset(inputs, _joined(targets, f"{where}, targets") if targets else None, weights, first.axes, more)


def _joined_inputs(batches: list[Dataset], where: str) -> Inputs:
    """The inputs of all batches; raises InvalidData that tells the shapes where they cannot be put together."""
    first, given = batches[0], [batch.inputs for batch in batches]
    axes = first.axes or first_axes(first.inputs)
    names = [f"input {i}" for i in range(len(axes.inputs))]
    if isinstance(first.inputs, dict | Tensor):
        given_as = first.inputs if isinstance(first.inputs, dict) else {"inputs": first.inputs}
        names = [name for name, value in given_as.items() if isinstance(value, Tensor)]
    for name, axis, parts in zip(names, axes.inputs, zip(*map(tensors, given), strict=True), strict=False):
        _check_alike([part.movedim(axis or 0, 0) for part in parts], f"{where}, {name}")
    return axes.joined(given)


def _joined(parts: list[Tensor], where: str) -> Tensor:
    """The same of all batches; raises InvalidData that tells the shapes where they cannot be put together."""
    _check_alike(parts, where)
    return torch.cat(parts)


def _check_alike(parts: list[Tensor], where: str) -> None:
    shapes = list(dict.fromkeys(tuple(part.shape[1:]) for part in parts))
    if len(shapes) > 1:
        other = next(part for part in parts if tuple(part.shape[1:]) == shapes[1])
        raise InvalidData(
            f"{where}: batches must have the same shape but for their number of samples, but got "
            f"{tuple(parts[0].shape)} and {tuple(other.shape)}; pad them to one length. Integer tokens in a dict that "
            "also holds their mask are padded here, where there are labels."
        )


PADDING = -100
"""Of targets: what PyTorch's losses and our metrics leave out."""


def _of_one_length(batches: list[Dataset]) -> list[Dataset]:
    """Batches of tokens with a mask, (n, T) integers in a dict, brought to the longest T: 0 where nothing is.

    Targets (n, T) get -100 there, which counts in no metric. Without targets padded places would count: such batches
    stay as they are, and so do all others.
    """
    lengths = {tokens.shape[1] for b in batches for tokens in _tokens(b)}
    if len(lengths) < 2 or not all(_tokens(b) and b.targets is not None for b in batches):
        return batches
    longest, padded = max(lengths), []
    for b in batches:
        room, targets = longest - _tokens(b)[0].shape[1], cast(Tensor, b.targets)
        if targets.shape == _tokens(b)[0].shape and not targets.is_floating_point():
            targets = pad(targets.long(), (0, room), value=PADDING)
        padded.append(replace(b, inputs={key: pad(t, (0, room)) for key, t in b.inputs.items()}, targets=targets))
    return padded


def _tokens(batch: Dataset) -> list[Tensor]:
    """The inputs of a batch of tokens with their mask, all (n, T) and whole numbers; none where it is another."""
    inputs = batch.inputs
    if not isinstance(inputs, dict) or not any("mask" in key for key in inputs):
        return []
    found = list(inputs.values())
    fitting = all(t.ndim == 2 and t.shape == found[0].shape and not t.is_floating_point() for t in found)
    return found if fitting else []
