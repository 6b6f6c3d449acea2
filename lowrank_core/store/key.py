"""NetworkKey: one name for this network on this data, under which everything that is measured of it is kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NetworkKey:
    """What tells a network on its data from all others; each part a text that changes with what it stands for.

    fingerprint: of the weights. answers: of all that the dense network answers to a few samples, for its code is not in
    its weights. metric: how it is judged: name, direction, and what the metric says of these samples. data: of the
    evaluation samples, inputs and targets.

    A model file with its own evaluate(model) is not judged through its answers, so there `metric` is a stamp of the
    code that was run, the model file's and its neighbours': an edited comment gives another key, data that such an
    evaluate() reads by itself are not seen. Without eval_data() `answers` and `data` are then empty.

    A store takes the parts that its values depend on: factors the fingerprint alone, points and scores all of it.
    """

    fingerprint: str
    answers: str
    metric: str
    data: str

    @property
    def digest(self) -> str:
        """All of it in one word, for names of files and keys in memory."""
        return named(asdict(self))


def named(about: Any) -> str:
    """A name for all that a result depends on, given as JSON: 24 hexadecimal digits.

    >>> named({"a": 1, "b": 2}) == named({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
