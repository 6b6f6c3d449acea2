"""What a network answers to a few samples, all of it: its code is not in its weights, but shows in its answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from lowrank_core.errors import Cancelled, InvalidData
from lowrank_core.figures import how_many
from lowrank_core.layers.data import Dataset, answer, data_hash, evaluating
from lowrank_core.networks.twin import twin
from lowrank_core.running.threads import one_thread

SAMPLES = 8
"""Whose answers tell networks apart that have the same weights."""


def drawn(data: Dataset) -> Dataset:
    """At most SAMPLES of the data, drawn with seed 0: the leading ones may all be of one class."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data.pick(order[:SAMPLES])


def answers(model: nn.Module, samples: Dataset) -> list[Tensor]:
    """Every tensor of the answer to one batch, in order, whether it is judged or not. Raises InvalidData.

    The network itself is left alone: a twin with the same weights answers.
    """
    try:
        with evaluating(twin(model)) as copied:
            answered = answer(copied, samples.inputs)
    except Cancelled:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidData(
            f"the network failed on {how_many(len(samples), 'sample')} with {type(error).__name__}: "
            f"{' '.join(str(error).split())}; eval_data() and train_data() must give inputs of the same form as "
            "example_inputs()."
        ) from error
    return list(_tensors(answered, set()))


def answers_hash(model: nn.Module, samples: Dataset) -> str:
    """'sha256:' over dtype, shape and bytes of every tensor of the answer, computed in one thread.

    The same under any number of threads, in every process of one machine; another processor may round otherwise.
    """
    with one_thread():
        return data_hash(answers(model, samples))


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors in nested containers, and in objects that are none, as the caches of transformers."""
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield from _tensors(dict(vars(leaf)), seen)
