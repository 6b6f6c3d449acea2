"""Weights that are computed: by torch.nn.utils.parametrize, or by hooks of weight_norm, spectral_norm and pruning."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_flatten

kind_of = parametrize.type_before_parametrizations
"""The class of a module; of a parametrized one, the class it had before."""


def answers_as(kind: type, known: type) -> bool:
    """Whether a class of modules is one of torch.nn, or derived from it without answering otherwise."""
    return issubclass(kind, known) and all(
        getattr(kind, name, None) is getattr(known, name, None) for name in ANSWERING
    )


ANSWERING = (
    *("__call__", "__getattr__", "forward", "_conv_forward", "_output_padding"),
    *("check_input", "check_forward_args", "permute_hidden", "merge_masks"),
)
"""Methods of layers of torch.nn that decide what comes out."""

TABLES = frozenset(vars(nn.Module()))
"""Attributes in which PyTorch keeps what a module owns."""


def effective(module: nn.Module, name: str) -> Tensor | None:
    """The tensor that a module computes with under this name in eval mode; None where nothing known makes it.

    A parameter is given as it is; what is computed has no gradient. The module is not changed.
    """
    if name in module._parameters:
        return module._parameters[name]
    with torch.no_grad():
        if parametrize.is_parametrized(module, name):
            modes = {part: part.training for part in module.modules()}
            module.eval()
            try:
                value: Tensor = getattr(module, name)
                return value.detach()
            finally:
                for part, training in modes.items():
                    part.training = training
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm) and hook.name == name:
                normed: Tensor = hook.compute_weight(module)
                return normed
            if isinstance(hook, SpectralNorm) and hook.name == name:
                return hook.compute_weight(module, do_power_iteration=False)
            if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
                pruned: Tensor = hook.apply_mask(module)  # type: ignore[no-untyped-call]
                return pruned
    return None


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """copy.deepcopy, which refuses the results of hooks that were computed with gradients: they are copied as values.

    memo: {id: what stands for that object in the copy}, as for deepcopy. The empty tables of hooks, a dozen in every
    module, are made here: deepcopy takes ten times as long for them as for all the rest. What cannot be copied at all,
    such as a lock or an open file, the copy shares.
    """
    memo = {} if memo is None else dict(memo)
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo.setdefault(id(value), value.detach().clone())
            elif type(value) in (OrderedDict, set) and not value:
                memo.setdefault(id(value), type(value)())
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:  # whatever an attribute of a module says that cannot be copied
        return copy.deepcopy(model, memo | {id(value): value for value in _uncopyable(model)})


def _uncopyable(model: nn.Module) -> Iterator[Any]:
    """Attributes of modules that deepcopy refuses, but for those with modules inside, which a copy must not share."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name in TABLES or any(isinstance(leaf, nn.Module) for leaf in tree_flatten(value)[0]):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                yield value


def with_stand_ins(model: nn.Module, stand_ins: Mapping[str, nn.Module]) -> nn.Module:
    """The model, in place, with each of these in the place of the parameter of that name."""
    for place, module in stand_ins.items():
        owner, _, leaf = place.rpartition(".")
        holder = model.get_submodule(owner)
        del holder._parameters[leaf]
        holder._modules[leaf] = module
    return model


def with_memory(module: nn.Module, device: torch.device) -> nn.Module:
    """A module built on the meta device, in place, with parameters on a real one whose values are not yet set.

    `to_empty` does the same, and for some shapes loads PyTorch's compiler to do so.
    """
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                empty = torch.empty(value.shape, dtype=value.dtype, device=device)
                part._parameters[name] = nn.Parameter(empty, requires_grad=value.requires_grad)
    return module


def sharing(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy with modules of its own that shares every parameter and buffer with the original.

    What puts something else in place of parameters while it works, as `torch.export` does, takes such a copy: others
    may run the network meanwhile. memo: as in `copied`.
    """
    return copied(model, {id(t): t for t in (*model.parameters(), *model.buffers())} | (memo or {}))
