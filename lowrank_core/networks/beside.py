"""What stands beside a network's layers: hooks and replaced forwards that change answers, modules it does not own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten

from lowrank_core.layers.computed import TABLES
from lowrank_core.layers.data import cloned, tensors

UNOWNED = (
    "it is in a plain Python list or dict, so the network does not own it: neither counted nor stored; an "
    "nn.ModuleList or nn.ModuleDict would be"
)
PRE_HOOK = "a forward pre-hook on it changes its inputs, and a chain in its place would run without the hook"
HOOK = "a forward hook on it changes its outputs, and a chain in its place would run without the hook"
FORWARD = "its forward was replaced on the module itself by one that answers otherwise, and a chain would not run it"

BESIDE = (PRE_HOOK, HOOK, FORWARD)
"""Reasons for which a layer is left alone that only its own network has."""


def watch_beside(layers: Iterable[nn.Module], until: ExitStack) -> dict[nn.Module, str]:
    """In the forward pass that follows, note which layers a person's hook or replaced forward changes, and how.

    A hook that only looks changes nothing. until: takes what is watched with away again.
    """
    reasons: dict[nn.Module, str] = {}
    for layer in layers:
        if _pre_hooks(layer) or layer._forward_hooks or "forward" in vars(layer):
            _watch(layer, partial(reasons.setdefault, layer), until)
    return reasons


def unowned(model: nn.Module) -> dict[nn.Module, str]:
    """Modules with weights that lie in lists, tuples and dicts of the network's own modules, with what they go by."""
    owned = set(model.modules())
    found: dict[nn.Module, str] = {}
    for owner, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in TABLES or not isinstance(value, list | tuple | dict):
                continue
            for number, leaf in enumerate(tree_flatten(value)[0]):
                if isinstance(leaf, nn.Module) and leaf not in owned:
                    name = f"{owner}.{attribute}[{number}]".removeprefix(".")
                    for inner, part in leaf.named_modules():
                        if next(part.parameters(recurse=False), None) is not None:
                            found.setdefault(part, f"{name}.{inner}".removesuffix("."))
    return found


def _pre_hooks(layer: nn.Module) -> list[Callable[..., Any]]:
    """Those before the forward but for PyTorch's own, which compute the weight."""
    known = (WeightNorm, SpectralNorm, BasePruningMethod)
    return [hook for hook in layer._forward_pre_hooks.values() if not isinstance(hook, known)]


def _watch(layer: nn.Module, tell: Callable[[str], Any], ours: ExitStack) -> None:
    """Compare what goes into and comes out of a layer before and after its own hooks; tell(reason) where it differs."""
    before: list[Any] = []
    plain: list[Any] = []

    def first(_: nn.Module, args: Any, kwargs: Any) -> None:
        before.append(cloned((args, kwargs)))

    def entered(_: nn.Module, args: Any, kwargs: Any) -> None:
        if not _same(before.pop(), (args, kwargs)):
            tell(PRE_HOOK)

    def computed(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        plain.append(cloned(output))
        if "forward" not in vars(module):
            return
        with _disable_current_modes():  # nobody counts this call
            same = _same(type(module).forward(module, *args, **kwargs), output)
        if not same:
            tell(FORWARD)

    def left(_: nn.Module, args: Any, output: Any) -> None:
        if not _same(plain.pop(), output):
            tell(HOOK)

    for handle in (
        layer.register_forward_pre_hook(first, prepend=True, with_kwargs=True),
        layer.register_forward_pre_hook(entered, with_kwargs=True),
        layer.register_forward_hook(computed, prepend=True, with_kwargs=True),
        layer.register_forward_hook(left),
    ):
        ours.callback(handle.remove)


def _same(a: Any, b: Any) -> bool:
    one, other = tensors(a), tensors(b)
    return len(one) == len(other) and all(map(_same_tensor, one, other))


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=a.is_floating_point() or a.is_complex())
