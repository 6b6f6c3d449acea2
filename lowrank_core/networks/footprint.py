"""The memory that a forward pass takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import nn

from lowrank_core.layers.data import tensors

T = TypeVar("T")


def with_pass_bytes(model: nn.Module, run: Callable[[], T]) -> tuple[T, int]:
    """What run() gives, and the memory of a pass of the model in it: twice what the largest module takes and gives.

    Hooks are on the model meanwhile, so give it a twin.
    """
    largest = 1

    def see(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(t.numel() * t.element_size() for t in tensors((args, output))))

    with ExitStack() as hooks:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):  # those take no hooks
                hooks.callback(module.register_forward_hook(see).remove)
        result = run()
    return result, 2 * largest
