"""Inputs and outputs of any network: how a model is called, and how samples are counted and picked."""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from lowrank_core.errors import LISTED, Cancelled, InvalidData, few
from lowrank_core.running.scope import raise_if_cancelled

Inputs = Any
"""A Tensor, a tuple (called as `model(*x)`) or a dict (`model(**x)`); where the batch is, `BatchAxes` say."""


Outputs = dict[str, Tensor]
"""What a network answers: every tensor in it, by name."""


@dataclass(frozen=True, slots=True)
class BatchAxes:
    """Which axis of each tensor is the batch, in the order of `tensors` and `named_outputs`; None where there is none.

    Found by `networks.batch_axes`. targets: of the labels as a person gives them. proved: samples that were moved to
    another place and batch got the same answers; else the axes follow from shapes alone. rows: of each output, how many
    of its rows belong to one sample. apart: whether these lie apart, as where time comes first and is put into one axis
    with the batch: the first row of every sample, then the second.

    >>> BatchAxes((1,), (0,)).samples(torch.zeros(7, 3, 5))
    3
    """

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    targets: int = 0
    proved: bool = True
    rows: tuple[int, ...] = ()
    apart: tuple[bool, ...] = ()

    def samples(self, inputs: Inputs) -> int:
        """Samples in a batch of inputs."""
        return next(t.shape[axis] for t, axis in zip(tensors(inputs), self.inputs, strict=True) if axis is not None)

    def pick(self, inputs: Inputs, index: Tensor | slice) -> Inputs:
        """The samples at `index`, in that order; what has no batch axis is given as it is."""
        axes = iter(self.inputs)

        def picked(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            axis = next(axes)
            return leaf if axis is None else leaf[(slice(None),) * axis + (index,)]

        return tree_map(picked, inputs)

    def joined(self, batches: list[Inputs]) -> Inputs:
        """Batches of the same form as one."""
        axes, others = iter(self.inputs), iter(zip(*map(tensors, batches), strict=True))

        def together(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            axis, parts = next(axes), next(others)
            return leaf if axis is None else torch.cat(parts, dim=axis)

        return tree_map(together, batches[0])


def first_axes(inputs: Inputs) -> BatchAxes:
    """The axes of a network that takes and gives its batch first, as most do."""
    return BatchAxes((0,) * len(tensors(inputs)), ())


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Samples in memory: inputs as one batch, targets (N, ...) or None where there are none.

    weights: (N,), how much each sample counts in scores; None where all count alike.
    axes: where the batch is in the inputs, and in what the network answers; None is the first axis of all.
    more: whether there were more samples than are read.
    documents: (N,), the number of the document that each sample is a part of; None where samples stand alone.
    """

    inputs: Inputs
    targets: Tensor | None = None
    weights: Tensor | None = None
    axes: BatchAxes | None = None
    more: bool = False
    documents: Tensor | None = None

    def __len__(self) -> int:
        return batch_size(self.inputs) if self.axes is None else self.axes.samples(self.inputs)

    def pick(self, index: Tensor | slice) -> Dataset:
        """The samples at `index`, in that order."""
        inputs = (self.axes or first_axes(self.inputs)).pick(self.inputs, index)
        others = (self.targets, self.weights, self.documents)
        targets, weights, documents = (None if each is None else each[index] for each in others)
        return replace(self, inputs=inputs, targets=targets, weights=weights, documents=documents)

    @property
    def hash(self) -> str:
        """'sha256:' over all that scores on these samples depend on."""
        given = self.inputs, self.targets, self.weights
        return data_hash(given if self.documents is None else (*given, self.documents))

    def not_finite(self) -> list[int]:
        """Numbers of the samples whose inputs or targets hold NaN or infinity; minus infinity may be that of a mask.

        >>> Dataset(torch.tensor([[1.0], [torch.nan], [-torch.inf]])).not_finite()
        [1]
        """
        bad = torch.zeros(len(self), dtype=torch.bool)
        given = list(zip(tensors(self.inputs), (self.axes or first_axes(self.inputs)).inputs, strict=True))
        for tensor, axis in [*given, *([] if self.targets is None else [(self.targets, 0)])]:
            if axis is not None and tensor.is_floating_point():
                unfit = (tensor.isnan() | tensor.isposinf()).movedim(axis, 0)
                bad |= unfit.reshape(len(unfit), -1).any(1).cpu()
        return bad.nonzero().flatten().tolist()

    def unlabelled(self) -> Dataset:
        """The same samples without targets and weights."""
        return replace(self, targets=None, weights=None, documents=None)

    def alone(self) -> Dataset:
        """These samples in memory of their own: what a slice picks is sent with all that it was picked from."""
        inputs, targets, weights, documents = cloned((self.inputs, self.targets, self.weights, self.documents))
        return replace(self, inputs=inputs, targets=targets, weights=weights, documents=documents)

    def shuffled(self, seed: int) -> Dataset:
        """These samples in an order that depends on the seed alone, so that any leading part is a fair subset."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.pick(order)


def samples_named(numbers: Sequence[int], total: int) -> str:
    """Some samples of a set in words, by their numbers from 0 on.

    >>> samples_named([3, 17, 40], 600), samples_named([2], 9)
    ('samples 3, 17 and 40 of 600', 'sample 2 of 9')
    """
    shown = few(numbers) if len(numbers) > LISTED else " and ".join(filter(None, _but_last(list(map(str, numbers)))))
    return f"sample{'s' * (len(numbers) > 1)} {shown} of {total:,}"


def _but_last(names: list[str]) -> tuple[str, str]:
    return ", ".join(names[:-1]), names[-1]


def tensors(value: Any) -> list[Tensor]:
    """Every tensor inside a nested structure, in order."""
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def cloned(value: Any) -> Any:
    """The same nest of tuples, lists and dicts, every tensor copied to memory of its own."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def octets(tensor: Tensor) -> Any:
    """The bytes of a tensor row by row, of any type, as a buffer for hashes and files."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel() < 2:
        flat = flat.as_strided((flat.numel(),), (1,))  # one number may lie at stride 0, which is no stride of bytes
    return flat.view(torch.uint8).numpy().data


def data_hash(inputs: Inputs) -> str:
    """'sha256:' over dtype, shape and bytes of every input tensor."""
    digest = hashlib.sha256()
    for tensor in tensors(inputs):
        digest.update(f"{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(octets(tensor))
    return f"sha256:{digest.hexdigest()}"


def batch_size(inputs: Inputs) -> int:
    """Samples in a batch: the first axis of the first tensor."""
    batch = tensors(inputs)
    if not batch or batch[0].ndim == 0:
        raise InvalidData(
            f"inputs must hold a tensor with a batch axis, but got {type(inputs).__name__}; "
            "give a Tensor, a tuple for model(*x) or a dict for model(**x)."
        )
    return len(batch[0])


def named_outputs(answer: Any) -> Outputs:
    """Every tensor of what a network has answered, by name: the key in a dict, the field in a named tuple or dataclass,
    the place in another tuple or a list, those of nested ones joined by dots; "output" where it is a tensor itself.

    >>> list(named_outputs((torch.zeros(2), {"boxes": torch.zeros(2, 4), "loss": None})))
    ['0', '1.boxes']
    """
    return {".".join(path) or "output": tensor for path, tensor in _leaves(answer, ())}


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inside = value.items()
    elif isinstance(value, tuple | list):
        inside = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    elif is_dataclass(value) and not isinstance(value, type):
        inside = [(item.name, getattr(value, item.name)) for item in fields(value)]
    elif isinstance(getattr(value, "logits", None), Tensor):
        inside = [("logits", value.logits)]
    for name, part in inside:
        yield from _leaves(part, (*path, str(name)))


def answer(model: nn.Module, inputs: Inputs) -> Any:
    """All that the model returns, as it returns it.

    The model is given a copy of the inputs: some write into theirs. Raises Cancelled where the work was cancelled.
    """
    raise_if_cancelled()
    inputs = cloned(inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def call(model: nn.Module, inputs: Inputs, axes: BatchAxes | None = None) -> Outputs:
    """Run the model and return every tensor that it answers with, by name: its own `output_names`, or `named_outputs`.

    axes: those of the network, by which the samples come first in each output; without them it is as it is.
    The model is given a copy of the inputs: some write into theirs. Raises Cancelled where the work was cancelled.
    """
    answered = answer(model, inputs)
    outputs = named_outputs(answered)
    if not outputs:
        raise InvalidData(f"the model must return a tensor, or a structure with one, but got {type(answered)}")
    own = getattr(model, "output_names", ())
    if len(own) == len(outputs):
        outputs = dict(zip(own, outputs.values(), strict=True))
    if axes is None or len(axes.outputs) != len(outputs):
        return outputs
    placed = zip(outputs.items(), axes.outputs, axes.apart or (False,) * len(outputs), strict=True)
    return {
        name: samples_first(values, axis or 0, axes.samples(inputs) if apart else 0)
        for (name, values), axis, apart in placed
    }


def samples_first(values: Tensor, axis: int, samples: int = 0) -> Tensor:
    """A tensor with its batch axis in front; samples: how many there are, where the rows of each lie apart.

    >>> samples_first(torch.tensor([1, 10, 2, 20, 3, 30]), 0, 2).tolist()
    [1, 2, 3, 10, 20, 30]
    """
    values = values.movedim(axis, 0)
    if not samples:
        return values
    return values.reshape(-1, samples, *values.shape[1:]).transpose(0, 1).flatten(0, 1)


_generators_turn = threading.RLock()
"""A thread that came in between would put back what another one has changed."""


@contextmanager
def generators_untouched() -> Iterator[None]:
    """Put the random generators that all share (PyTorch's, numpy's, Python's) back to where they were.

    By one thread at a time; what a thread outside draws from them meanwhile, it draws again afterwards.
    """
    with _generators_turn, _generators_kept():
        yield


@contextmanager
def _generators_kept() -> Iterator[None]:
    numbers, draws = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(numbers)
            np.random.set_state(draws)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode without gradients; each module's own mode is put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes.items():
            module.training = training


def run(
    model: nn.Module, samples: Dataset, names: Sequence[str] | None = None, *, source: str = "eval_data"
) -> Outputs:
    """The outputs of one batch in eval mode, samples first, all or those named.

    source: the function that the samples came from, which the refusal names. Raises InvalidData when the network cannot
    take them.
    """
    try:
        with evaluating(model):
            outputs = call(model, samples.inputs, samples.axes)
    except (InvalidData, Cancelled):
        raise
    except (Exception, SystemExit) as error:
        notes = "".join(f" at {note}" for note in getattr(error, "__notes__", ())[:1])  # which node of a file it was
        raise InvalidData(
            f"the network failed on the {'training' if source == 'train_data' else 'evaluation'} inputs{notes} with "
            f"{type(error).__name__}: {' '.join(str(error).split())}; {source}() must give inputs of the same form as "
            "example_inputs()."
        ) from error
    if len(samples) == 1:  # a network may squeeze away a batch of one
        outputs = {name: values.reshape(1) if values.ndim == 0 else values for name, values in outputs.items()}
    if all(output.ndim == 0 for output in outputs.values()):
        raise InvalidData("outputs must have a batch axis, but the model returns a single number for the whole batch.")
    return outputs if names is None else {name: picked(outputs, name) for name in names}


def picked(outputs: Outputs, name: str) -> Tensor:
    """One output by its name; raises InvalidData that tells the names there are."""
    if name not in outputs:
        raise InvalidData(f"the network has no output {name!r}; its outputs are {', '.join(outputs)}.")
    return outputs[name]


def distance(ours: Tensor, theirs: Tensor, among: float = 0.0) -> tuple[float, float]:
    """The largest distance of two outputs, and the same relative to the largest number of ours (to 1 where all are 0).

    among: the largest number of all the answers that these are some of. What is not finite must be the same in both,
    as masked scores are; infinite where it is not, and for other shapes.

    >>> distance(torch.tensor([4.0, -torch.inf]), torch.tensor([3.0, -torch.inf]))
    (1.0, 0.25)
    >>> distance(torch.tensor([4.0]), torch.tensor([3.0]), among=8)
    (1.0, 0.125)
    """
    if ours.shape != theirs.shape:
        return math.inf, math.inf
    exact = torch.complex128 if ours.is_complex() else torch.float64
    mine, other, finite = ours.to(exact), theirs.to(exact), ours.isfinite()
    if not torch.equal(finite, theirs.isfinite()):
        return math.inf, math.inf
    if not torch.equal(mine[~finite].nan_to_num(0.5), other[~finite].nan_to_num(0.5)):
        return math.inf, math.inf
    if not finite.any():
        return 0.0, 0.0
    largest, apart = max(among, float(mine[finite].abs().max())), float((mine - other)[finite].abs().max())
    return apart, apart / (largest or 1.0)


def joined(parts: Iterable[Outputs]) -> Outputs:
    """The outputs of batch after batch as those of one: each (n, ...) along its first axis."""
    listed = list(parts)
    return {name: torch.cat([part[name] for part in listed]) for name in listed[0]}
