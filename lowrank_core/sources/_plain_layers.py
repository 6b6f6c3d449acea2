"""Operators of a graph of PyTorch as the plain `torch.nn` layers that do the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def plain_layer(node: torch.fx.Node, place: str, owner: nn.Module) -> nn.Module | None:
    """The `torch.nn` layer that does what a node does, with the parameters of `owner`; None where there is none.

    place: what the targets of the owner's parameters begin with in the graph, such as 'encoder.0.'.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return None
    given = {argument.name: argument.default_value for argument in schema.arguments}
    given |= dict(zip(given, node.args, strict=False)) | node.kwargs
    build = _BUILDERS.get(schema.name.removeprefix("aten::"))
    constants = {
        name: value for name, value in given.items() if isinstance(value, torch.fx.Node) and value.op == "get_attr"
    }
    fit = all(f"{place}{name}" == value.target for name, value in constants.items())
    if build is None or not fit or "weight" not in constants:
        return None
    plain = build(given, owner)
    if plain is None:
        return None
    plain._parameters.update(owner._parameters)
    plain._buffers.update(owner._buffers)
    for name, value in plain._buffers.items():
        if value is not None and value.is_meta:  # a count of batches, which the graph has no use for
            plain._buffers[name] = torch.zeros_like(value, device="cpu")
    return plain


def _linear(given: dict[str, Any], module: nn.Module) -> nn.Module:
    outputs, inputs = module.get_parameter("weight").shape
    return nn.Linear(inputs, outputs, bias=given["bias"] is not None, device="meta")


def _convolution(given: dict[str, Any], module: nn.Module) -> nn.Module | None:
    weight = module.get_parameter("weight")
    kernel, transposed = tuple(weight.shape[2:]), given["transposed"]
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{len(kernel)}d")
    groups = given["groups"]
    channels = (weight.shape[0], weight.shape[1] * groups)
    extra = {"output_padding": _each(given["output_padding"], kernel)} if transposed else {}
    padding = given["padding"]
    built: nn.Module = kind(
        *(channels if transposed else channels[::-1]),
        kernel,
        stride=_each(given["stride"], kernel),
        padding=padding if isinstance(padding, str) else _each(padding, kernel),
        dilation=_each(given["dilation"], kernel),
        groups=groups,
        bias=given["bias"] is not None,
        device="meta",
        **extra,
    )
    return built


def _each(values: list[int], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """One number may stand for all axes."""
    return tuple(values) * len(kernel) if len(values) == 1 else tuple(values)


def _embedding(given: dict[str, Any], module: nn.Module) -> nn.Module:
    rows, columns = module.get_parameter("weight").shape
    padding = given["padding_idx"]
    return nn.Embedding(rows, columns, padding_idx=None if padding < 0 else padding, device="meta")


def _batch_norm(given: dict[str, Any], module: nn.Module) -> nn.Module | None:
    axes = given["input"].meta["val"].ndim
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(axes)
    if given["training"] or kind is None or "running_mean" not in module._buffers:
        return None
    return kind(len(module.get_parameter("weight")), eps=given["eps"], momentum=given["momentum"], device="meta")


def _layer_norm(given: dict[str, Any], module: nn.Module) -> nn.Module:
    return nn.LayerNorm(given["normalized_shape"], eps=given["eps"], bias=given["bias"] is not None, device="meta")


def _of_convolution(transposed: bool) -> Callable[[dict[str, Any], nn.Module], nn.Module | None]:
    return lambda given, module: _convolution({"transposed": transposed, **given}, module)


_BUILDERS: dict[str, Callable[[dict[str, Any], nn.Module], nn.Module | None]] = {
    "linear": _linear,
    "convolution": _convolution,
    **{f"conv{n}d": _of_convolution(False) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _of_convolution(True) for n in (1, 2, 3)},
    "embedding": _embedding,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
}
"""By the operator that is the whole of a module's graph."""
