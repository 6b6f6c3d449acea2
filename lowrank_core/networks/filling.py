"""A network with the weights of a file: by names, with what wrapped it in training taken off, and shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from lowrank_core.errors import InvalidFile, InvalidModel
from lowrank_core.networks.profile import check_finite
from lowrank_core.store.trained import OPTIONAL, WeightSets, fitted

T = TypeVar("T")


def filled_by(
    model: nn.Module, sets: WeightSets[T], read: Callable[[T], Tensor], part: str = ""
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model, in place, with the weights that fit it best of those in a file; and what there is to say of them.

    part: the key or prefix of the weights that a person chose. read: what gives the tensors; each is asked for once.
    Raises InvalidFile.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    fit = fitted(sets, list(own), trained, part)
    state = {name: read(value) for name, value in fit.state.items()}
    same = {(value.data_ptr(), value.shape): state[name] for name, value in own.items() if name in state}
    for name, value in own.items():
        if name not in state and name.rpartition(".")[2] in OPTIONAL:
            state[name] = value
        elif name not in state and value.numel() and (value.data_ptr(), value.shape) in same:  # tied, and stored once
            state[name] = same[value.data_ptr(), value.shape]
    return filled(model, state, sets.path, fit.tried), fit.notices


def filled(model: nn.Module, state: dict[str, Tensor], path: Path, tried: str = "") -> nn.Module:
    """The model, in place, with the weights of a file; every name and shape must fit. Raises InvalidFile.

    tried: what was done to the names before, in words.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    common = [name for name in own if name in state]
    faults = [
        _few("missing", [name for name in own if name not in state]),
        _few("unexpected", [name for name in state if name not in own]),
        _few("of another shape or kind", [_unlike(name, own[name], state[name]) for name in common]),
    ]
    if any(faults):
        raise InvalidFile(
            f"{path} does not fit the model{f' ({tried})' if tried else ''}: {'; '.join(filter(None, faults))}. "
            "Give the weights of this architecture, or the model they belong to."
        )
    for module in model.modules():
        if any(p.is_meta for p in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
        for name, buffer in module.named_buffers(recurse=False):
            if any(n > 1 and step == 0 for n, step in zip(buffer.shape, buffer.stride(), strict=True)):
                setattr(module, name, buffer.clone())  # an expanded buffer has one element for several places
    try:
        model.load_state_dict(state)
        check_finite(model)
    except (RuntimeError, InvalidModel) as error:
        raise InvalidFile(f"{path}: {' '.join(str(error).split())}") from error
    return model


def _unlike(name: str, own: Tensor, got: Tensor) -> str:
    """How a tensor of a file differs from the model's own in shape or kind; empty where it does not."""
    if own.shape != got.shape:
        return f"{name} {tuple(got.shape)} for {tuple(own.shape)}"
    same_kind = own.is_floating_point() == got.is_floating_point() and own.is_complex() == got.is_complex()
    return "" if same_kind else f"{name} {got.dtype} for {own.dtype}"


def _few(what: str, names: list[str]) -> str:
    names = [name for name in names if name]
    if not names:
        return ""
    return f"{what}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
