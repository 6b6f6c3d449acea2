"""What is around a network or in its tensors that no copy of it could be worked with: taken away, or refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowrank_core.errors import InvalidModel


def unwrapped(model: Any) -> Any:
    """The network that torch.compile or DataParallel wraps; its layers have the names that it gives them."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):
            model = inside
        else:
            return model


def made_plain(model: nn.Module) -> nn.Module:
    """The network, in place, without what compiles it, and with ordinary tensors for those of inference mode.

    Compiled, it would be compiled anew for every copy. Raises InvalidModel for a module that holds itself and for
    sparse weights.
    """
    model = unwrapped(model)
    if (loop := _holds_itself(model)) is not None:
        raise InvalidModel(
            f"the module at {loop!r} is one of those that hold it, so the network has no end; take it out of itself."
        )
    ordinary: dict[int, Tensor] = {}
    for module in list(model.modules()):
        if module._compiled_call_impl is not None:
            module._compiled_call_impl = None
        for name, child in module._modules.items():
            module._modules[name] = unwrapped(child)
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is None or is_lazy(value):
                continue
            if value.layout != torch.strided and not value.is_mkldnn:
                kind = str(value.layout).removeprefix("torch.")
                raise InvalidModel(
                    f"the weight {name!r} of a {type(module).__name__} is stored as {kind}, and factors are of dense "
                    "matrices; make it dense first (`.to_dense()`)."
                )
            if value.is_inference():
                fresh = ordinary.setdefault(id(value), _ordinary(value))
                setattr(module, name, fresh)
    return model


def _ordinary(value: Tensor) -> Tensor:
    """The same values outside of inference mode, which lets nobody change or save what was made in it."""
    clone = value.detach().clone()
    return nn.Parameter(clone, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else clone


def _holds_itself(model: nn.Module) -> str | None:
    """The name under which a module lies inside itself; None where none does."""
    done: set[nn.Module] = set()
    around: set[nn.Module] = set()
    todo: list[tuple[nn.Module, str, bool]] = [(model, "", False)]
    while todo:
        module, name, left = todo.pop()
        if left:
            around.discard(module)
        elif module in around:
            return name
        elif module not in done:
            done.add(module)
            around.add(module)
            todo.append((module, name, True))
            inside = [(leaf, child) for leaf, child in module._modules.items() if child is not None]
            todo += [(child, f"{name}.{leaf}".removeprefix("."), False) for leaf, child in inside]
    return None
