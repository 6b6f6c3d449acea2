"""What a network's own tokenizer or processor makes of samples, some at a time, as many as may be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from lowrank_core.errors import InvalidData, LowRankError
from lowrank_core.samples.limits import most_of
from lowrank_core.samples.preparation import Arrays


def processed(
    parts: Iterable[Sequence[Any]], process: Callable[[Any], Arrays], what: str, total: int, where: object
) -> tuple[Arrays, bool]:
    """(inputs, whether there were more) of samples that come in parts, total of them in all.

    what: how process is called in the refusal; raises InvalidData where it fails, or samples are of different shapes.
    """
    batches: list[Arrays] = []
    given, most = 0, total
    for part in parts:
        try:
            batches.append(dict(process(part)))
        except LowRankError:
            raise
        except Exception as error:  # a processor of whatever kind
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InvalidData(f"{where}: the network's {what} failed ({said}).") from error
        given += len(part)
        most = most_of(sum(value[0].nbytes for value in batches[0].values()))
        if given >= most:
            break
    return {name: value[:most] for name, value in _joined(batches, where).items()}, min(most, given) < total


def _joined(batches: Sequence[Arrays], where: object) -> Arrays:
    """Batches of one form as one, shorter ones filled with zeros on their second axis."""
    found = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        if len({tuple(part.shape[2:]) for part in parts}) > 1 or len({part.ndim for part in parts}) > 1:
            shapes = " and ".join(str(tuple(shape)) for shape in dict.fromkeys(part.shape for part in parts))
            raise InvalidData(f"{where}: samples have different shapes, {shapes}; bring them to one.")
        if parts[0].ndim > 1:
            longest = max(part.shape[1] for part in parts)
            parts = [pad(part, (0, 0) * (part.ndim - 2) + (0, longest - part.shape[1])) for part in parts]
        found[name] = torch.cat(parts)
    return found
