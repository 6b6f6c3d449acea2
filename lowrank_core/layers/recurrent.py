"""Recurrent layers: what PyTorch's have in common with those whose weights are products of two thinner ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lowrank_core.layers.computed import answers_as, with_memory
from lowrank_core.layers.parts import Cell, Recurrent

KINDS: dict[type[nn.Module], str] = {nn.LSTM: "LSTM", nn.GRU: "GRU", nn.RNN: "RNN"}
CELLS: dict[type[nn.Module], str] = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU", nn.RNNCell: "RNN"}
Dense = nn.RNNBase | nn.RNNCellBase


def recurrent_kind(module: nn.Module) -> str:
    """The class of torch.nn that a recurrent module or cell answers as; "" where it is none, or does more than it.

    >>> recurrent_kind(nn.GRUCell(2, 3)), recurrent_kind(nn.Linear(2, 3))
    ('GRUCell', '')
    """
    return next((known.__name__ for known in (*KINDS, *CELLS) if answers_as(type(module), known)), "")


def arguments(rnn: Dense | Recurrent) -> dict[str, Any]:
    """Keyword arguments of `Recurrent` or `Cell` without ranks, plain enough for JSON."""
    arguments: dict[str, Any] = {name: getattr(rnn, name) for name in ("input_size", "hidden_size", "bias")}
    names = ("num_layers", "batch_first", "dropout", "bidirectional", "proj_size")
    if not isinstance(rnn, Cell | nn.RNNCellBase):
        arguments |= {name: getattr(rnn, name) for name in names}
    return {**arguments, "nonlinearity": getattr(rnn, "nonlinearity", "tanh")}


def op_of(rnn: Recurrent) -> str:
    """ "LSTM" or "LSTMCell", the name of the class that it stands for."""
    return rnn.kind + "Cell" * isinstance(rnn, Cell)


OPS = tuple(kind.__name__ for kind in (*KINDS, *CELLS))


def build_recurrent(op: str, given: Mapping[str, Any], **factory: Any) -> Recurrent:
    """The module from its kind and arguments; raises ValueError where they are not those of one.

    >>> build_recurrent("GRU", {"input_size": 3, "hidden_size": 4, "ranks": {"weight_hh_l0": 2}}).weight_hh_l0[0]
    Linear(in_features=4, out_features=2, bias=False)
    """
    made = Cell if op.endswith("Cell") else Recurrent
    built = made(op.removesuffix("Cell"), **given, **factory)
    if unknown := set(given.get("ranks", {})) - set(built.weights()):
        raise ValueError(f"{op} has no {', '.join(map(str, unknown))}")
    return built


def weight_shapes(rnn: Dense) -> dict[str, tuple[int, int, bool]]:
    """{name: (rows, columns, whether it has a bias)} of a recurrent module, in the order of execution."""
    return _empty(rnn).weights()


def factored(rnn: Dense, ranks: Mapping[str, Any]) -> Recurrent:
    """A copy with chains as `Recurrent` takes them, their weights not yet set; the other weights are the module's."""
    weight = next(rnn.parameters())
    built = _empty(rnn, dict(ranks)).to(weight.dtype).train(rnn.training)
    with_memory(built, weight.device)
    with torch.no_grad():
        for name, parameter in built.named_parameters(recurse=False):
            parameter.copy_(rnn.get_parameter(name))
            parameter.requires_grad_(rnn.get_parameter(name).requires_grad)
    return built


def watched(rnn: Dense) -> Recurrent:
    """A recurrent module with the same parameters, each weight a Linear of its own name that hooks can see."""
    return _in_linears(_empty(rnn).train(rnn.training), rnn)


def as_layers(rnn: Recurrent) -> Recurrent:
    """The module, in place, with each weight that is no chain in a Linear of its own name that hooks can see."""
    return _in_linears(rnn, rnn)


def _in_linears(built: Recurrent, rnn: Dense | Recurrent) -> Recurrent:
    for name, (rows, columns, biased) in built.weights().items():
        if isinstance(getattr(built, name), nn.Module):
            continue
        linear = nn.Linear(columns, rows, bias=biased, device="meta")
        linear.weight = rnn.get_parameter(name)
        if biased:
            linear.bias = rnn.get_parameter(name.replace("weight", "bias"))
            delattr(built, name.replace("weight", "bias"))
        delattr(built, name)
        built.add_module(name, linear)
    return built


def _empty(rnn: Dense, ranks: dict[str, Any] | None = None) -> Recurrent:
    made = Cell if isinstance(rnn, nn.RNNCellBase) else Recurrent
    return made(recurrent_kind(rnn).removesuffix("Cell"), **arguments(rnn), ranks=ranks, device="meta")
