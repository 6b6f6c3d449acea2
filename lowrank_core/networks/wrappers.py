"""What is around a network or in its tensors that no copy of it could be worked with: taken away, or refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowrank_core.errors import InvalidModel, cut
from lowrank_core.networks.profile import name_fault

DEEPEST = 150
"""Modules inside one another, at most: each takes frames of Python's stack when the network is called."""


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

    Compiled, it would be compiled anew for every copy. Raises InvalidModel for a module that holds itself or lies too
    deep, for names that cannot be used, for sparse weights and for TorchScript inside.
    """
    model = unwrapped(model)
    check_tree(model)
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


def check_tree(model: nn.Module) -> None:
    """Raise InvalidModel for modules that hold themselves or lie too deep, and for names that cannot be used.

    Walked by hand, since PyTorch's own walks call themselves.
    """
    done: set[nn.Module] = set()
    around: set[nn.Module] = set()
    todo: list[tuple[nn.Module, str, bool]] = [(model, "", False)]
    while todo:
        module, name, left = todo.pop()
        if left:
            around.discard(module)
        elif module in around:
            raise InvalidModel(
                f"the module at {cut(name)!r} is one of those that hold it, so the network has no end; take it out of "
                "itself."
            )
        elif isinstance(module, torch.jit.ScriptModule):
            raise InvalidModel(
                f"the module {cut(name)!r} is a program of TorchScript ({module.original_name}), in which no layer can "
                "be replaced; build the network without torch.jit inside of it."
            )
        elif module not in done:
            if len(around) > DEEPEST:
                raise InvalidModel(
                    f"the modules of this network lie deeper than {DEEPEST} inside one another, and calling them would "
                    f"use up Python's stack ({cut(name)!r}); hold them in a list, or put several into one."
                )
            done.add(module)
            around.add(module)
            todo.append((module, name, True))
            for leaf in (*module._modules, *module._parameters, *module._buffers):
                if fault := leaf_fault(leaf) or name_fault(f"{name}.{leaf}"):
                    inside = f" inside {cut(name)!r}" if name else ""
                    raise InvalidModel(f"the name {cut(leaf)!r} of a module or tensor{inside} {fault}.")
            children = [(leaf, child) for leaf, child in module._modules.items() if child is not None]
            todo += [(child, f"{name}.{leaf}".removeprefix("."), False) for leaf, child in children]


def leaf_fault(leaf: object) -> str | None:
    """Why a module or parameter cannot be found again under this name inside another one; None where it can."""
    if not isinstance(leaf, str) or not leaf or "." in leaf:
        return "must be a text without dots: what lies inside what is told by dots; give it another name"
    return None
