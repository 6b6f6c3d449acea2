"""Recurrent layers whose weights may be products of two thinner ones, and what they have in common with PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lowrank_core.layers.linears import GroupedLinear, SharedLinear

KINDS: dict[type[nn.Module], str] = {nn.LSTM: "LSTM", nn.GRU: "GRU", nn.RNN: "RNN"}
CELLS: dict[type[nn.Module], str] = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU", nn.RNNCell: "RNN"}
Dense = nn.RNNBase | nn.RNNCellBase


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
        shapes = {}
        for layer in range(self.num_layers):
            inputs = state * len(directions) if layer else self.input_size
            for direction in directions:
                shapes[f"weight_ih_l{layer}{direction}"] = gates, inputs, self.bias
                shapes[f"weight_hh_l{layer}{direction}"] = gates, state, self.bias
                if self.proj_size:
                    shapes[f"weight_hr_l{layer}{direction}"] = self.proj_size, self.hidden_size, False
        return shapes

    def reset_parameters(self) -> None:
        """Random weights as PyTorch draws them, where they are not chains."""
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def flatten_parameters(self) -> None:
        """Nothing to do; networks that call it go on working."""

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """(outputs, last states), in the shapes of PyTorch's; packed sequences are padded and packed again."""
        ended = None
        x, batched = input, True
        if isinstance(input, PackedSequence):
            x, lengths = pad_packed_sequence(input)
            ended = (torch.arange(len(x))[:, None] >= lengths).unsqueeze(-1).to(x.device)
        elif input.dim() == 2:
            x, batched = input.unsqueeze(1), False
        elif self.batch_first:
            x = input.transpose(0, 1)
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
                output, end = self._run(suffix, x, *(start or zeros), reverse=direction == 1, ended=ended)
                outputs.append(output)
                ends.append(end)
            x = torch.cat(outputs, dim=-1)
        last = [torch.stack(state) for state in zip(*ends, strict=True)]
        if isinstance(input, PackedSequence):
            x = pack_padded_sequence(x, lengths, enforce_sorted=input.sorted_indices is None)
        elif not batched:
            x, last = x.squeeze(1), [state.squeeze(1) for state in last]
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, tuple(last) if self.kind == "LSTM" else last[0]

    def _run(
        self, suffix: str, x: Tensor, h: Tensor, c: Any = None, *, reverse: bool = False, ended: Any = None
    ) -> tuple[Tensor, Any]:
        """One direction of one layer: (steps, batch, in) -> (steps, batch, out) and the state at its end.

        ended: (steps, batch, 1), True where a sequence is over; there the state stays as it is.
        """
        inputs = self._times("weight_ih" + suffix, x).unbind(0)
        outputs = []
        for step, a in list(enumerate(inputs))[:: -1 if reverse else 1]:
            before, c_before = h, c
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
            if ended is not None:
                h = torch.where(ended[step], before, h)
                c = torch.where(ended[step], c_before, c) if self.kind == "LSTM" else c
            outputs.append(h)
        return torch.stack(outputs[::-1] if reverse else outputs), (h, c) if self.kind == "LSTM" else (h,)

    def _times(self, name: str, x: Tensor) -> Tensor:
        part = getattr(self, name)
        if isinstance(part, nn.Module):
            product: Tensor = part(x)
            return product
        return F.linear(x, part, getattr(self, name.replace("weight", "bias"), None))


class Cell(Recurrent):
    """An nn.LSTMCell, nn.GRUCell or nn.RNNCell in the same way: one step, and no numbers in the names of weights."""

    def weights(self) -> dict[str, tuple[int, int, bool]]:
        """{name: (rows, columns, whether it has a bias)}, input first."""
        return {name.removesuffix("_l0"): about for name, about in super().weights().items()}

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """The next state, (h, c) for an LSTM, from one input (batch, in) or (in,)."""
        states = list(hx if self.kind == "LSTM" else (hx,)) if hx is not None else []
        zeros = [input.new_zeros(*input.shape[:-1], self.hidden_size)] * 2
        _, last = self._run("", input[None], *(states or zeros))
        return last if self.kind == "LSTM" else last[0]


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
    built = _empty(rnn, dict(ranks)).to(weight.dtype).to_empty(device=weight.device).train(rnn.training)
    with torch.no_grad():
        for name, parameter in built.named_parameters(recurse=False):
            parameter.copy_(rnn.get_parameter(name))
            parameter.requires_grad_(rnn.get_parameter(name).requires_grad)
    return built


def watched(rnn: Dense) -> Recurrent:
    """A recurrent module with the same parameters, each weight a Linear of its own name that hooks can see."""
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


def _empty(rnn: Dense, ranks: dict[str, Any] | None = None) -> Recurrent:
    made = Cell if type(rnn) in CELLS else Recurrent
    return made((KINDS | CELLS)[type(rnn)], **arguments(rnn), ranks=ranks, device="meta")
