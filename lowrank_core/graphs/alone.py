"""Networks whose file is made for a batch of one size: run on so many samples at a time, whatever is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
    answers = [
        list(run([at.taken(x, first) for x, at in zip(inputs, places.inputs, strict=True)]))
        for first in range(0, samples, place.size)
    ]
    joined = []
    for axis, *parts in zip(places.outputs, *answers, strict=True):
        shapes = {tuple(part.shape) for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"samples get outputs of different sizes, {min(shapes)} and {max(shapes)}")
        joined.append(torch.stack(parts) if axis is None else torch.cat(parts, axis).narrow(axis, 0, samples))
    return tuple(joined)
