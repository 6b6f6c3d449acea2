"""Recurrent layers in graphs: one node or one loop for each layer, where tracing would unroll the steps.

In ONNX the side of the inputs is a thin product in front of the LSTM, GRU or RNN node, whose W is the other factor. A
node has no place for factors of its recurrent weight R: there they are multiplied out, in the graph, so that the file
holds the factors and a runtime the product; or the layer becomes a `Scan` that takes the factors at every step, where
that pays. Programs of `torch.export` call PyTorch's own layers in the same way, at the length they are written with.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from lowrank_core.errors import InvalidModel
from lowrank_core.layers.parts import GroupedLinear, IdentityRows, Recurrent, SharedLinear
from lowrank_core.layers.recurrent import recurrent_kind

DOMAIN = "lowrank"
"""Of nodes that stand for recurrent layers until the graph is written."""

ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""ONNX's order of gates (i o f c; z r h) in PyTorch's (i f g o; r z n)."""

STEP_ORDER = {"LSTM": (0, 1, 3, 2), "GRU": (0, 1, 2), "RNN": (0,)}
"""The order in which a step of `Scan` has its gates: those with a sigmoid first."""

SCAN_PAYS = {"LSTM": 270_000, "GRU": 220_000, "RNN": 30_000}
"""Multiplies that the factors must save in each step before a loop is faster than the node it replaces.

`python -m benchmarks.recurrent_export --borders`: a step of `Scan` takes onnxruntime 15 to 20 microseconds for its
nodes (an RNN 4, for four) beside its products, and one core does some 12 multiplies a nanosecond in the node. With 256
units an LSTM cannot save so much, and a loop is at best as fast; with 512 it takes half the time at a quarter of the
ranks.
Batches move the border down; it is drawn for one sample.
"""

How = Literal["dense", "factors", "product"]


@dataclass(frozen=True, slots=True)
class Written:
    """How one weight of a recurrent layer is computed with in a graph.

    weight: its name in the network. op: the node it is part of, or "Scan". how: "factors" one after the other,
    "product" where they are multiplied out first. multiplies: of one vector.
    """

    weight: str
    op: str
    how: How
    multiplies: int


# ---- weights as products ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """A weight (gates * hidden, in) as factors, from left to right, its gates in the order that is asked for.

    (W), or (U, V), or with gates that share factors (H, one matrix for each gate, A): H (hidden, out), the middle one
    (gates, out, in), or (gates, 1, rank) where it is diagonal.
    """

    factors: tuple[Tensor, ...]
    bias: Tensor | None
    diagonal: bool = False

    @property
    def rows(self) -> int:
        """Gates times hidden units."""
        first = self.factors[0]
        return len(first) * len(self.factors[1]) if len(self.factors) == 3 else len(first)

    @property
    def columns(self) -> int:
        """Numbers in a vector of inputs."""
        return self.factors[-1].shape[1]

    @property
    def multiplies(self) -> int:
        """Of one vector, factor after factor."""
        if len(self.factors) < 3:
            return sum(factor.numel() for factor in self.factors)
        hidden, middle, first = self.factors
        return first.numel() + middle.numel() + len(middle) * hidden.numel()

    @property
    def thin(self) -> int:
        """Multiplies of one vector with the last factor apart and the others multiplied out."""
        return (self.columns + self.rows) * len(self.factors[-1])

    @property
    def is_thin(self) -> bool:
        """Whether its last factor pays for itself, with the others multiplied out."""
        return len(self.factors) > 1 and self.thin < self.dense

    @property
    def dense(self) -> int:
        """Multiplies of one vector with all factors multiplied out."""
        return self.rows * self.columns

    def value(self, *, apart: bool = False) -> Tensor:
        """All factors multiplied out; apart: all but the last."""
        factors = self.factors[:-1] if apart else self.factors
        made, others = factors[0], factors[1:]
        if len(self.factors) == 3:
            made, others = (made * others[0] if self.diagonal else made @ others[0]), others[1:]
        for factor in others:
            made = made @ factor
        return made.flatten(0, 1) if len(self.factors) == 3 else made


def factors_of(rnn: Any, name: str, order: Sequence[int]) -> Factors:
    """A weight of a recurrent layer as it is stored, rows of gates in an order (numbers of PyTorch's)."""
    gates, turn = len(order), list(order)
    stages = _stages(rnn, name)

    def turned(rows: Tensor) -> Tensor:
        return rows.reshape(gates, -1, *rows.shape[1:])[turn].flatten(0, 1)

    if not stages:
        bias = getattr(rnn, name.replace("weight", "bias"), None)
        return Factors((turned(getattr(rnn, name)),), None if bias is None else turned(bias))
    *others, last = stages
    weight, bias = _unfolded(last)
    turned_bias = None if bias is None else turned(bias)
    first = [other.weight for other in reversed(others)]
    if isinstance(last, SharedLinear):  # its inputs, and so the rows of the middle one, are by channel and gate
        outer, middle = others
        by_gate = middle.weight.reshape(-1, gates, middle.weight.shape[1]).transpose(0, 1)[turn]
        diagonal = isinstance(middle, GroupedLinear)
        return Factors((weight, by_gate.mT if diagonal else by_gate, outer.weight), turned_bias, diagonal)
    return Factors((turned(weight), *first), turned_bias)


def _unfolded(last: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the last part of a chain; also where they are stored as one matrix for inputs beside a one, or
    without the rows of the identity, which are written out here: a recurrent node has no place for a permutation."""
    if isinstance(last, nn.Sequential):
        weight: Any = last[-1].weight
        return weight[:, :-1], weight[:, -1]
    return last.full() if isinstance(last, IdentityRows) else last.weight, getattr(last, "bias", None)


def suffixes(rnn: Any, layer: int) -> list[str]:
    """What the names of one layer's weights end in, a direction each."""
    return [f"_l{layer}{way}" for way in (("", "_reverse") if rnn.bidirectional else ("",))]


# ---- as ONNX ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Writer:
    """Takes nodes down. name(base) is a name that nothing has; stored(name, value) that of an initializer."""

    name: Callable[[str], str]
    stored: Callable[[str, Tensor], str]
    opset: int
    nodes: list[Any] = field(default_factory=list)

    def node(self, op: str, inputs: Sequence[str], base: str, /, *, output: str = "", **attributes: Any) -> str:
        """Add a node of one output; the name of that."""
        from onnx import helper

        output = output or self.name(base)
        self.nodes.append(helper.make_node(op, inputs, [output], name=self.name(f"{base}.{op}"), **attributes))
        return output

    def numbers(self, base: str, *values: int) -> str:
        """A stored list of integers."""
        return self.stored(f"{base}.{'_'.join(map(str, values))}".replace("-", "m"), torch.tensor(values))

    def split(self, value: str, base: str, *sizes: int) -> list[str]:
        """Parts of the last axis."""
        from onnx import helper

        outputs = [self.name(f"{base}.part") for _ in sizes]
        old = self.opset < 13
        how: dict[str, Any] = {"split": sizes} if old else {}
        inputs = [value] if old else [value, self.numbers(f"{base}.sizes", *sizes)]
        self.nodes.append(helper.make_node("Split", inputs, outputs, name=self.name(f"{base}.Split"), axis=-1, **how))
        return outputs


def write_layer(
    to: Writer,
    rnn: Any,
    path: str,
    layer: int,
    x: str,
    states: Sequence[str],
    outputs: Sequence[str],
    lengths: str = "",
    *,
    loops: bool | None = None,
) -> None:
    """Write one layer of a recurrent module in the form of ONNX.

    x: (steps, batch, in). states: the first ones, (directions, batch, hidden) each, or none. outputs: names of
    Y (steps, directions, batch, hidden) and of the last states, "" for those that nothing takes. lengths: of the
    sequences, (batch,), if they have their own; loops: whether it may be a `Scan`, which knows no lengths; where that
    pays by default.
    """
    sides = [_Side(rnn, path, suffix, number, loops=loops) for number, suffix in enumerate(suffixes(rnn, layer))]

    def write(sides: list[_Side], states: Sequence[str], outputs: Sequence[str]) -> None:
        if sides[0].loops:
            _loop(to, sides, x, states, outputs)
        else:
            _node(to, sides, x, lengths, states, outputs)

    if len(sides) == 1 or all(side.plain for side in sides):
        write(sides, states, outputs)
        return
    pieces = []
    for side in sides:
        at = to.numbers(f"{path}.way", side.number)
        own = [to.node("Gather", [state, at], f"{side.base}.state", axis=0) for state in states]
        made = [to.name(f"{side.base}.{number}") if output else "" for number, output in enumerate(outputs)]
        write([side], own, made)
        pieces.append(made)
    for number, output in enumerate(outputs):
        if output:
            parts = [made[number] for made in pieces]
            to.node("Concat", parts, f"{path}.both", output=output, axis=0 if number else 1)


class _Side:
    """One direction of one layer."""

    def __init__(self, rnn: Any, path: str, suffix: str, number: int, *, loops: bool | None = None) -> None:
        self.rnn, self.path, self.suffix, self.number = rnn, path, suffix, number
        self.base = f"{path}.{suffix.removeprefix('_')}".removeprefix(".")
        order = ORDER[rnn.kind]
        self.inputs, self.hidden = (factors_of(rnn, f"weight_{side}{suffix}", order) for side in ("ih", "hh"))
        saved = self.hidden.dense - self.hidden.multiplies
        exotic = bool(rnn.proj_size) or self.hidden.factors[0].dtype is not torch.float32
        self.loops = exotic or saved >= SCAN_PAYS[rnn.kind] if loops is None else loops
        self.thin = self.inputs.is_thin
        if self.loops:
            order = STEP_ORDER[rnn.kind]
            self.inputs, self.hidden = (factors_of(rnn, f"weight_{side}{suffix}", order) for side in ("ih", "hh"))

    @property
    def plain(self) -> bool:
        """Whether it is a node with the weights as they are."""
        return not self.loops and len(self.inputs.factors) == len(self.hidden.factors) == 1

    def name(self, side: str) -> str:
        """Of a weight in the network."""
        return f"{self.path}.weight_{side}{self.suffix}".removeprefix(".")

    def written(self) -> Iterator[Written]:
        """How its weights are computed with."""
        op = "Scan" if self.loops else self.rnn.kind
        for side, weight in (("ih", self.inputs), ("hh", self.hidden)):
            if len(weight.factors) == 1:
                yield Written(self.name(side), op, "dense", weight.dense)
            elif self.loops or (side == "ih" and self.thin):
                yield Written(self.name(side), op, "factors", weight.multiplies if self.loops else weight.thin)
            else:
                yield Written(self.name(side), op, "product", weight.dense)
        if self.rnn.proj_size:
            parts = _projection(self.rnn, self.suffix)
            how: How = "factors" if len(parts) > 1 else "dense"
            yield Written(self.name("hr"), op, how, sum(part.numel() for part in parts))


def _stages(rnn: Any, name: str) -> list[Any]:
    """The parts of a weight's chain, in the order in which they are applied; none where it is a plain weight."""
    part = getattr(rnn, name)
    return list(part.children()) if isinstance(part, nn.Module) else []


def _projection(rnn: Any, suffix: str) -> list[Tensor]:
    """The matrices that project the state of an LSTM, in the order in which they are applied."""
    stages = _stages(rnn, f"weight_hr{suffix}")
    return [_unfolded(stage)[0] for stage in stages] or [getattr(rnn, f"weight_hr{suffix}")]


def _node(to: Writer, sides: list[_Side], x: str, lengths: str, states: Sequence[str], outputs: Sequence[str]) -> None:
    """One LSTM, GRU or RNN node for one direction, or for both where all their weights are dense."""
    from onnx import helper

    side, rnn = sides[0], sides[0].rnn
    if side.thin:
        last = to.stored(f"{side.name('ih')}.0.weight", side.inputs.factors[-1].mT)
        x = to.node("MatMul", [x, last], f"{side.base}.thin")
    if len(sides) > 1:
        pairs = [(each.inputs, each.hidden) for each in sides]
        stacked = [torch.stack([part.factors[0] for part in both]) for both in zip(*pairs, strict=True)]
        names = [to.stored(side.name(which), value) for which, value in zip(("ih", "hh"), stacked, strict=True)]
    else:
        names = [
            _multiplied(to, side.name("ih"), side.inputs, apart=side.thin),
            _multiplied(to, side.name("hh"), side.hidden, apart=False),
        ]
    bias = ""
    if rnn.bias:
        both = [torch.cat([each.inputs.bias, each.hidden.bias]) for each in sides]  # type: ignore[list-item]
        bias = to.stored(f"{side.base}.bias", torch.stack(both))
    inputs = [x, *names, bias, lengths, *states]
    while not inputs[-1]:
        inputs.pop()
    attributes: dict[str, Any] = {"hidden_size": rnn.hidden_size}
    attributes["direction"] = "bidirectional" if len(sides) > 1 else ("forward", "reverse")[side.number]
    if rnn.kind == "GRU":
        attributes["linear_before_reset"] = 1
    if rnn.kind == "RNN" and rnn.nonlinearity == "relu":
        attributes["activations"] = ["Relu"] * len(sides)
    name = to.name(f"{side.base}.{rnn.kind}")
    to.nodes.append(helper.make_node(rnn.kind, inputs, list(outputs), name=name, **attributes))


def _multiplied(to: Writer, name: str, weight: Factors, *, apart: bool) -> str:
    """The name of (1, gates * hidden, in), the product of all factors or, apart, of all but the last.

    Written as nodes: runtimes that fold constants compute them once, when they open the file.
    """
    factors = weight.factors[:-1] if apart else weight.factors
    if len(factors) == 1:
        return to.stored(f"{name}.1.weight" if apart else name, factors[0][None])
    if len(weight.factors) == 2:
        parts = [to.stored(f"{name}.1.weight", factors[0][None]), to.stored(f"{name}.0.weight", factors[1])]
        return to.node("MatMul", parts, f"{name}.product")
    parts = [to.stored(f"{name}.{2 - number}.weight", factor) for number, factor in enumerate(factors)]
    made = to.node("Mul" if weight.diagonal else "MatMul", parts[:2], f"{name}.gates")
    for part in parts[2:]:
        made = to.node("MatMul", [made, part], f"{name}.each")
    shape = to.numbers(f"{name}.rows", 1, weight.rows, factors[-1].shape[-1])
    return to.node("Reshape", [made, shape], f"{name}.product")


def _applied(to: Writer, name: str, weight: Factors, x: str, lead: int, plus: str = "") -> str:
    """(..., in) -> (..., gates * hidden), factor after factor; lead: axes that stand before; plus: what is added."""
    three = len(weight.factors) == 3
    factors = weight.factors[2:] if three else weight.factors[::-1]
    for number, factor in enumerate(factors):
        stored = to.stored(f"{name}{f'.{number}.weight' if len(weight.factors) > 1 else ''}", factor.mT)
        if plus and lead == 1 and not three and number == len(factors) - 1:
            return to.node("Gemm", [x, stored, plus], f"{name}.{number}")
        x = to.node("MatMul", [x, stored], f"{name}.{number}")
    if three:
        hidden, middle, _ = weight.factors
        gates, outer, inner = middle.shape
        if weight.diagonal:
            x = to.node("Reshape", [x, to.numbers(f"{name}.one", *[0] * lead, 1, inner)], f"{name}.wide")
            x = to.node("Mul", [x, to.stored(f"{name}.1.weight", middle[:, 0])], f"{name}.1")
        else:
            x = to.node("MatMul", [x, to.stored(f"{name}.1.weight", middle.flatten(0, 1).mT)], f"{name}.1")
            x = to.node("Reshape", [x, to.numbers(f"{name}.gates", *[0] * lead, gates, outer)], f"{name}.wide")
        x = to.node("MatMul", [x, to.stored(f"{name}.2.weight", hidden.mT)], f"{name}.2")
        x = to.node("Reshape", [x, to.numbers(f"{name}.rows", *[0] * lead, weight.rows)], f"{name}.flat")
    return to.node("Add", [x, plus], f"{name}.sum") if plus else x


def _loop(to: Writer, sides: list[_Side], x: str, states: Sequence[str], outputs: Sequence[str]) -> None:
    """One direction as a `Scan` over its steps; what the inputs contribute is computed for all steps before."""
    from onnx import helper, numpy_helper

    (side,) = sides
    rnn, weight, hidden = side.rnn, side.hidden, side.rnn.hidden_size
    like, state = weight.factors[0], rnn.proj_size or rnn.hidden_size
    kind = helper.np_dtype_to_tensor_dtype(like.detach().cpu().numpy().dtype)
    bias = ""
    if side.inputs.bias is not None and side.hidden.bias is not None:
        both = side.inputs.bias if rnn.kind == "GRU" else side.inputs.bias + side.hidden.bias
        bias = to.stored(f"{side.base}.bias", both)
    a = _applied(to, side.name("ih"), side.inputs, x, 2, bias)
    sizes = (state, hidden) if rnn.kind == "LSTM" else (state,)
    starts = []
    for number, size in enumerate(sizes):
        if states:
            flat = to.numbers(f"{side.base}.state", -1, size)
            starts.append(to.node("Reshape", [states[number], flat], f"{side.base}.start"))
            continue
        shape = to.node("Shape", [x], f"{side.base}.shape")
        batch = to.node("Gather", [shape, to.numbers(f"{side.base}.batch", 1)], f"{side.base}.samples")
        whole = to.node("Concat", [batch, to.numbers(f"{side.base}.size", size)], f"{side.base}.sizes", axis=0)
        zero = numpy_helper.from_array(like.new_zeros(1).detach().cpu().numpy())
        starts.append(to.node("ConstantOfShape", [whole], f"{side.base}.start", value=zero))

    body = Writer(to.name, to.stored, to.opset)
    given = [to.name(f"{side.base}.{which}") for which in ("h", "c")[: len(sizes)]]
    now = to.name(f"{side.base}.a")
    ends = _step(body, side, given, now)
    copied = body.node("Identity", [ends[0]], f"{side.base}.output")

    def values(*pairs: tuple[str, int]) -> list[Any]:
        return [helper.make_tensor_value_info(name, kind, [None, size]) for name, size in pairs]

    taken = values(*zip(given, sizes, strict=True), (now, weight.rows))
    shown = values(*zip(ends, sizes, strict=True), (copied, state))
    graph = helper.make_graph(body.nodes, to.name(f"{side.base}.step"), taken, shown)
    made = [to.name(f"{side.base}.end") for _ in sizes] + [to.name(f"{side.base}.steps")]
    way = [side.number]
    to.nodes.append(
        helper.make_node(
            "Scan",
            [*starts, a],
            made,
            name=to.name(f"{side.base}.Scan"),
            body=graph,
            num_scan_inputs=1,
            scan_input_directions=way,
            scan_output_directions=way,
        )
    )
    wholes = [(made[-1], (0, 1, -1, state)), *zip(made, ((1, -1, size) for size in sizes), strict=False)]
    for output, (value, shape_) in zip(outputs, wholes, strict=False):
        if output:
            to.node("Reshape", [value, to.numbers(f"{side.base}.whole", *shape_)], f"{side.base}.whole", output=output)


def _step(to: Writer, side: _Side, given: list[str], a: str) -> list[str]:
    """One step: the next states from those before and from what the inputs contribute, (batch, gates * hidden)."""
    rnn, base, hidden = side.rnn, side.base, side.rnn.hidden_size
    h, *others = given
    if rnn.kind == "GRU":
        bias = side.hidden.bias
        b = _applied(to, side.name("hh"), side.hidden, h, 1, "" if bias is None else to.stored(f"{base}.own", bias))
        (opened, new), (seen, own) = (to.split(value, base, 2 * hidden, hidden) for value in (a, b))
        gates = to.node("Sigmoid", [to.node("Add", [opened, seen], base)], base)
        reset, keep = to.split(gates, base, hidden, hidden)
        new = to.node("Tanh", [to.node("Add", [new, to.node("Mul", [reset, own], base)], base)], base)
        kept = to.node("Mul", [keep, to.node("Sub", [h, new], base)], base)
        return [to.node("Add", [new, kept], base)]
    total = _applied(to, side.name("hh"), side.hidden, h, 1, a)
    if rnn.kind == "RNN":
        return [to.node("Tanh" if rnn.nonlinearity == "tanh" else "Relu", [total], base)]
    (c,) = others
    opened, new = to.split(total, base, 3 * hidden, hidden)
    opens, forgets, shows = to.split(to.node("Sigmoid", [opened], base), base, hidden, hidden, hidden)
    added = to.node("Mul", [opens, to.node("Tanh", [new], base)], base)
    c = to.node("Add", [to.node("Mul", [forgets, c], base), added], base)
    h = to.node("Mul", [shows, to.node("Tanh", [c], base)], base)
    for number, part in enumerate(_projection(rnn, side.suffix) if rnn.proj_size else ()):
        h = to.node("MatMul", [h, to.stored(f"{side.name('hr')}.{number}", part.mT)], base)
    return [h, c]


# ---- while a network is traced ---------------------------------------------------------------------------------------


class _InGraph(nn.Module):
    """What stands in a traced copy for a recurrent layer, of PyTorch or with factors, and has its attributes."""

    def flatten_parameters(self) -> None:
        """Nothing to do; networks that call it go on working."""

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """As the layer's, but without packed sequences: how long each is would be a part of the graph."""
        if isinstance(input, PackedSequence):
            raise InvalidModel("packed sequences have no graph; give it padded ones, or pack them outside of it")
        rnn: Any = self
        if input.shape[-1] != rnn.input_size:  # asked while tracing, so that this axis is none of a free length
            raise InvalidModel(f"it takes vectors of {rnn.input_size}, but got {input.shape[-1]}")
        batched = input.dim() == 3
        x = input.unsqueeze(1) if not batched else input.transpose(0, 1) if rnn.batch_first else input
        kind = rnn.kind
        states = [] if hx is None else list(hx if kind == "LSTM" else (hx,))
        states = states if batched else [state.unsqueeze(1) for state in states]
        x, last = self._run(x, states)
        if not batched:
            x, last = x.squeeze(1), [state.squeeze(1) for state in last]
        elif rnn.batch_first:
            x = x.transpose(0, 1)
        return x, tuple(last) if kind == "LSTM" else last[0]

    @abstractmethod
    def _run(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """(steps, batch, in) and the first states -> the outputs at each step, and the last states."""


class _Placed(_InGraph):
    """One node of no operator for each layer."""

    def _run(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        rnn: Any = self
        ways, state, kind = 1 + bool(rnn.bidirectional), rnn.proj_size or rnn.hidden_size, rnn.kind
        sizes = (state, rnn.hidden_size) if kind == "LSTM" else (state,)
        ends: list[list[Tensor]] = []
        for layer in range(rnn.num_layers):
            given = states
            if rnn.num_layers > 1:
                given = [each[layer * ways : (layer + 1) * ways] for each in states]
            steps, batch = x.shape[:2]
            y, *end = torch.onnx.ops.symbolic_multi_out(
                f"{DOMAIN}::Recurrent",
                (x, *given),
                {"place": rnn.place, "layer": layer},
                dtypes=(x.dtype,) * (1 + len(sizes)),
                shapes=((steps, ways, batch, state), *((ways, batch, size) for size in sizes)),
            )
            x = y.squeeze(1) if ways == 1 else y.transpose(1, 2).flatten(2)
            ends.append(end)
        joined = [each[0] if len(each) == 1 else torch.cat(each) for each in map(list, zip(*ends, strict=True))]
        return x, joined


class _Called(_InGraph):
    """PyTorch's own layer for each, a thin product in front of it where that saves multiplies."""

    def _run(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        rnn: Any = self
        state = rnn.proj_size or rnn.hidden_size
        given = [rnn.num_layers * (1 + rnn.bidirectional), x.shape[1]]
        sizes = (state, rnn.hidden_size) if rnn.kind == "LSTM" else (state,)
        states = states or [x.new_zeros(*given, size) for size in sizes]
        ends: list[list[Tensor]] = []
        for layer in range(rnn.num_layers):
            outputs = []
            for number, suffix in enumerate(suffixes(rnn, layer)):
                at = layer * (1 + rnn.bidirectional) + number
                own = [each[at : at + 1] for each in states]
                y, *end = self._way(x.flip(0) if number else x, own, suffix)
                outputs.append(y.flip(0) if number else y)
                ends.append(end)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return x, [torch.cat(each) for each in map(list, zip(*ends, strict=True))]

    def _way(self, x: Tensor, states: list[Tensor], suffix: str) -> tuple[Tensor, ...]:
        rnn: Any = self
        order = range(Recurrent.GATES[rnn.kind])
        inputs, hidden = (factors_of(rnn, f"weight_{side}{suffix}", order) for side in ("ih", "hh"))
        thin = inputs.is_thin
        x = F.linear(x, inputs.factors[-1]) if thin else x
        weights = [inputs.value(apart=thin), hidden.value()]
        weights += [side.bias for side in (inputs, hidden) if side.bias is not None]
        if rnn.proj_size:
            first, *second = _projection(rnn, suffix)
            weights.append(second[0] @ first if second else first)
        settings = (rnn.bias, 1, 0.0, False, False, False)
        if rnn.kind == "LSTM":
            return tuple(torch.lstm(x, states, weights, *settings))
        call = torch.gru if rnn.kind == "GRU" else torch.rnn_tanh if rnn.nonlinearity == "tanh" else torch.rnn_relu
        return tuple(call(x, states[0], weights, *settings))


def place(network: nn.Module) -> list[tuple[str, Any]]:
    """Put nodes of no operator in place of every recurrent layer of a copy, for `expand`; (path, layer) of each."""
    placed = [(name, module) for name, module in network.named_modules() if _is_whole(module)]
    for number, (_, module) in enumerate(placed):
        module.kind, module.place = _kind(module), number
        module.__class__ = _Placed
    return placed


def call(network: nn.Module) -> None:
    """Let every recurrent layer with factors in a copy call PyTorch's own kernels."""
    for module in network.modules():
        if type(module) is Recurrent:
            module.__class__ = _Called  # type: ignore[assignment]


def forms(network: nn.Module, *, called: bool = False) -> tuple[Written, ...]:
    """How the weights of recurrent layers with factors are written; called: in programs of `torch.export`."""
    found: list[Written] = []
    nodes: frozenset[str] = getattr(network, "by_lengths", frozenset())  # a loop knows no lengths
    for path, module in network.named_modules():
        if type(module) is not Recurrent:
            continue
        loops = False if called or path in nodes else None
        for layer in range(module.num_layers):
            for number, suffix in enumerate(suffixes(module, layer)):
                found += _Side(module, path, suffix, number, loops=loops).written()
    return tuple(found)


def is_placed(network: nn.Module) -> bool:
    """Whether nodes of no operator stand in a copy for recurrent layers, so that sequences may have any length.

    PyTorch's own layers do not allow that: to learn their shapes it takes them step by step.
    """
    return any(isinstance(module, _Placed) for module in network.modules())


def _is_whole(module: nn.Module) -> bool:
    """Whether all that it computes with are its own weights: no hook, no class of somebody else."""
    plain = type(module) is Recurrent or (isinstance(module, nn.RNNBase) and bool(recurrent_kind(module)))
    return plain and not (module._forward_pre_hooks or module._forward_hooks)


def _kind(module: Any) -> str:
    return str(getattr(module, "kind", "") or module.mode.partition("_")[0])


def expand(proto: Any, placed: Sequence[tuple[str, Any]]) -> None:
    """Write the nodes of every recurrent layer of a traced network (`onnx.ModelProto`), in place."""
    from onnx import helper, numpy_helper

    graph = proto.graph
    _prune(graph)
    taken = {name for node in graph.node for name in (*node.input, *node.output, node.name)}
    taken |= {value.name for value in (*graph.initializer, *graph.input, *graph.output)}
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    weights: dict[str, str] = {}

    def name(base: str) -> str:
        made, number = base, 1
        while made in taken:
            made, number = f"{base}_{number}", number + 1
        taken.add(made)
        return made

    def stored(base: str, value: Tensor) -> str:
        if base not in weights:
            weights[base] = name(base)
            tensor = numpy_helper.from_array(value.detach().cpu().contiguous().numpy(), weights[base])
            graph.initializer.append(tensor)
        return weights[base]

    writer = Writer(name, stored, next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")))
    for node in graph.node:
        if node.domain != DOMAIN:
            writer.nodes.append(_copied(node))
            continue
        about = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        path, module = placed[about["place"]]
        outputs = [output if output in used else "" for output in node.output]
        write_layer(writer, module, path, about["layer"], node.input[0], node.input[1:], outputs)
    del graph.node[:]
    graph.node.extend(writer.nodes)
    for entry in [entry for entry in proto.opset_import if entry.domain == DOMAIN]:
        proto.opset_import.remove(entry)


def _prune(graph: Any) -> None:
    """Remove the weights that nothing takes: those of the layers before they are written."""
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for weight in [weight for weight in graph.initializer if weight.name not in used]:
        graph.initializer.remove(weight)


def _copied(node: Any) -> Any:
    """A node that does not go with the graph it was in."""
    copy = type(node)()
    copy.CopyFrom(node)
    return copy
