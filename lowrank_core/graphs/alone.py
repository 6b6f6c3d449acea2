"""Networks whose file is made for a batch of one size: run on so many samples at a time, whatever is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_core.errors import InvalidModel
from lowrank_core.layers.data import BatchAxes


@dataclass(frozen=True, slots=True)
class Place:
    """Where the samples of an input are. axis: of the input as the file has it, whose extent there is `size`; None
    where samples have an axis of their own, before all others.
    """

    axis: int | None = 0
    size: int = 1

    def taken(self, value: Tensor, first: int) -> Tensor:
        """The samples from that number on, as the file takes them, the last one again where there are too few."""
        if self.axis is None:
            return value[first]
        places = torch.arange(first, first + self.size).clamp(max=value.shape[self.axis] - 1)
        return value.index_select(self.axis, places)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the samples of each input are, and of each output; None for an axis of their own, before all others."""

    inputs: tuple[Place, ...] = ()
    outputs: tuple[int | None, ...] = ()

    @classmethod
    def of(cls, axes: BatchAxes, outputs: int, size: int) -> Places:
        """Those of a file that takes so many samples at a time of a network with these axes and so many outputs.

        Raises InvalidModel where an input has no batch, or an output several rows for each sample.
        """
        if None in axes.inputs:
            raise InvalidModel("no batch can be fixed: an input of the network has no batch axis.")
        if any(rows > 1 for rows in axes.rows):
            raise InvalidModel("no batch can be fixed: an output has several rows for each sample.")
        return cls(tuple(Place(axis, size) for axis in axes.inputs), axes.outputs or (0,) * outputs)

    def batches(self, inputs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """The samples as the file takes them, in order; the last one again where there are too few."""
        place = self.inputs[0]
        for first in range(0, inputs[0].shape[place.axis or 0], place.size):
            yield [at.taken(x, first) for x, at in zip(inputs, self.inputs, strict=True)]

    def to_json(self) -> str:
        """As a text that `from_json` reads."""
        return json.dumps({"inputs": [(at.axis, at.size) for at in self.inputs], "outputs": self.outputs})

    @classmethod
    def from_json(cls, text: str) -> Places:
        """Raises ValueError for another text."""
        said = json.loads(text)
        try:
            return cls(tuple(Place(axis, size) for axis, size in said["inputs"]), tuple(said["outputs"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no places of samples: {text[:100]!r}") from error


def at_a_time(
    run: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor], places: Places
) -> tuple[Tensor, ...]:
    """The outputs of all samples, in order, each along its axis.

    Raises ValueError where samples get outputs of different sizes.
    """
    place = places.inputs[0]
    samples = inputs[0].shape[place.axis or 0]
    answers = [list(run(batch)) for batch in places.batches(inputs)]
    joined = []
    for axis, *parts in zip(places.outputs, *answers, strict=True):
        shapes = {tuple(part.shape) for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"samples get outputs of different sizes, {min(shapes)} and {max(shapes)}")
        joined.append(torch.stack(parts) if axis is None else torch.cat(parts, axis).narrow(axis, 0, samples))
    return tuple(joined)
