"""Recurrent layers whose weights may be products of two thinner ones, and what they have in common with PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core.linears import GroupedLinear, SharedLinear

KINDS: dict[type[nn.Module], str] = {nn.LSTM: "LSTM", nn.GRU: "GRU", nn.RNN: "RNN"}


class Recurrent(nn.Module):
    """An nn.LSTM, nn.GRU or nn.RNN, step by step: the same arguments, states, outputs and names of parameters.

    A weight in `ranks` is a chain of layers under its name, the last with its bias: two Linear layers of that rank, or
    those of a list of parts {"op", "args"}. The others are parameters as usual. Needs torch and LINEARS alone, so that
    checkpoints can carry its source.
    """

    GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}  # noqa: RUF012
    LINEARS = {"Linear": nn.Linear, "GroupedLinear": GroupedLinear, "SharedLinear": SharedLinear}  # noqa: RUF012

    def __init__(
        self,
        kind: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        nonlinearity: str = "tanh",
        ranks: dict[str, Any] | None = None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.kind, self.input_size, self.hidden_size, self.num_layers = kind, input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        self.proj_size, self.nonlinearity = proj_size, nonlinearity
        for name, (rows, columns, biased) in self.weights().items():
            if ranks and name in ranks:
                parts = ranks[name]
                if not isinstance(parts, list):
                    first = {"in_features": columns, "out_features": parts, "bias": False}
                    last = {"in_features": parts, "out_features": rows, "bias": biased}
                    parts = [{"op": "Linear", "args": args} for args in (first, last)]
                built = [self.LINEARS[part["op"]](**part["args"], **factory) for part in parts]
                self.add_module(name, nn.Sequential(*built))
                continue
            self.register_parameter(name, nn.Parameter(torch.empty(rows, columns, **factory)))
            if biased:
                beside = nn.Parameter(torch.empty(rows, **factory))
                self.register_parameter(name.replace("weight", "bias"), beside)
        self.reset_parameters()

    def weights(self) -> dict[str, tuple[int, int, bool]]:
        """{name: (rows, columns, whether it has a bias)} in the order of execution."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        gates, state = self.GATES[self.kind] * self.hidden_size, self.proj_size or self.hidden_size
        found = {}
        for layer in range(self.num_layers):
            inputs = state * len(directions) if layer else self.input_size
            for direction in directions:
                found[f"weight_ih_l{layer}{direction}"] = gates, inputs, self.bias
                found[f"weight_hh_l{layer}{direction}"] = gates, state, self.bias
                if self.proj_size:
                    found[f"weight_hr_l{layer}{direction}"] = self.proj_size, self.hidden_size, False
        return found

    def reset_parameters(self) -> None:
        """Random weights as PyTorch draws them, where they are not chains."""
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def flatten_parameters(self) -> None:
        """Nothing to do; networks that call it go on working."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """(outputs, last states), in the shapes of PyTorch's; raises TypeError for packed sequences."""
        if not isinstance(input, Tensor):
            raise TypeError("packed sequences are not supported by a compressed recurrent layer; give it a tensor")
        batched = input.dim() == 3
        x = (input.transpose(0, 1) if self.batch_first else input) if batched else input.unsqueeze(1)
        states = list(hx if self.kind == "LSTM" else (hx,)) if hx is not None else []
        states = states if batched else [state.unsqueeze(1) for state in states]
        directions = 2 if self.bidirectional else 1
        ends = []
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for direction in range(directions):
                suffix = f"_l{layer}" + ("_reverse" if direction else "")
                start = [state[layer * directions + direction] for state in states]
                zeros = [
                    x.new_zeros(x.shape[1], size) for size in (self.proj_size or self.hidden_size, self.hidden_size)
                ]
                output, end = self._run(suffix, x, *(start or zeros), reverse=direction == 1)
                outputs.append(output)
                ends.append(end)
            x = torch.cat(outputs, dim=-1)
        last = [torch.stack(state) for state in zip(*ends, strict=True)]
        if not batched:
            x, last = x.squeeze(1), [state.squeeze(1) for state in last]
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, tuple(last) if self.kind == "LSTM" else last[0]

    def _run(self, suffix: str, x: Tensor, h: Tensor, c: Any = None, *, reverse: bool) -> tuple[Tensor, Any]:
        """One direction of one layer: (steps, batch, in) -> (steps, batch, out) and the state at its end."""
        inputs = self._times("weight_ih" + suffix, x).unbind(0)
        outputs = []
        for a in reversed(inputs) if reverse else inputs:
            b = self._times("weight_hh" + suffix, h)
            if self.kind == "LSTM":
                i, f, g, o = (a + b).chunk(4, dim=-1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                h = self._times("weight_hr" + suffix, h) if self.proj_size else h
            elif self.kind == "GRU":
                (r, z, n), (hr, hz, hn) = a.chunk(3, dim=-1), b.chunk(3, dim=-1)
                z, n = torch.sigmoid(z + hz), torch.tanh(n + torch.sigmoid(r + hr) * hn)
                h = n + z * (h - n)
            else:
                h = torch.tanh(a + b) if self.nonlinearity == "tanh" else torch.relu(a + b)
            outputs.append(h)
        return torch.stack(outputs[::-1] if reverse else outputs), (h, c) if self.kind == "LSTM" else (h,)

    def _times(self, name: str, x: Tensor) -> Tensor:
        part = getattr(self, name)
        if isinstance(part, nn.Module):
            product: Tensor = part(x)
            return product
        return F.linear(x, part, getattr(self, name.replace("weight", "bias"), None))


def arguments(rnn: nn.RNNBase | Recurrent) -> dict[str, Any]:
    """Keyword arguments of `Recurrent` without ranks, plain enough for JSON."""
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
    nonlinearity = getattr(rnn, "nonlinearity", "tanh")
    return {**{name: getattr(rnn, name) for name in names}, "nonlinearity": nonlinearity}


def build_recurrent(kind: str, given: Mapping[str, Any], **factory: Any) -> Recurrent:
    """The module from its kind and arguments; raises ValueError where they are not those of one.

    >>> build_recurrent("GRU", {"input_size": 3, "hidden_size": 4, "ranks": {"weight_hh_l0": 2}}).weight_hh_l0[0]
    Linear(in_features=4, out_features=2, bias=False)
    """
    built = Recurrent(kind, **given, **factory)
    if unknown := set(given.get("ranks", {})) - set(built.weights()):
        raise ValueError(f"{kind} has no {', '.join(map(str, unknown))}")
    return built


def weight_shapes(rnn: nn.RNNBase) -> dict[str, tuple[int, int, bool]]:
    """{name: (rows, columns, whether it has a bias)} of a recurrent module, in the order of execution."""
    return _empty(rnn).weights()


def factored(rnn: nn.RNNBase, ranks: Mapping[str, Any]) -> Recurrent:
    """A copy with chains as `Recurrent` takes them, their weights not yet set; the other weights are the module's."""
    weight = next(rnn.parameters())
    built = _empty(rnn, dict(ranks)).to(weight.dtype).to_empty(device=weight.device).train(rnn.training)
    with torch.no_grad():
        for name, parameter in built.named_parameters(recurse=False):
            parameter.copy_(rnn.get_parameter(name))
            parameter.requires_grad_(rnn.get_parameter(name).requires_grad)
    return built


def watched(rnn: nn.RNNBase) -> Recurrent:
    """The same computation with the same parameters, each weight a Linear of its own name that hooks can see."""
    built = _empty(rnn).train(rnn.training)
    for name, (rows, columns, biased) in built.weights().items():
        linear = nn.Linear(columns, rows, bias=biased, device="meta")
        linear.weight = rnn.get_parameter(name)
        if biased:
            linear.bias = rnn.get_parameter(name.replace("weight", "bias"))
            delattr(built, name.replace("weight", "bias"))
        delattr(built, name)
        built.add_module(name, linear)
    return built


def recurrent_modules(model: nn.Module) -> Iterator[tuple[str, nn.RNNBase]]:
    """(name, module) of PyTorch's own recurrent modules; subclasses may do anything and are left out."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and type(module) in KINDS:
            yield name, module


def _empty(rnn: nn.RNNBase, ranks: dict[str, Any] | None = None) -> Recurrent:
    return Recurrent(KINDS[type(rnn)], **arguments(rnn), ranks=ranks, device="meta")
