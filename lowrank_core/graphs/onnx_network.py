"""A graph of ONNX as a network of PyTorch: its layers are plain `torch.nn` modules, everything else plain functions.

So discovery, compression, correction and evaluation work as for any other network, and a `Site` remembers which nodes
each module stands for, so that they alone are replaced when the graph is written again.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lowrank_core.errors import InvalidModel
from lowrank_core.graphs.alone import Places, at_a_time
from lowrank_core.graphs.as_found import Packed
from lowrank_core.graphs.control import CONTROL, Inner, Lifted, Running, computed
from lowrank_core.graphs.operators import (
    OPERATORS,
    Unhandled,
    Value,
    computable,
    dtype_of,
    integers,
    padded,
    tensor,
    window_pads,
)
from lowrank_core.graphs.recurrent_nodes import inside
from lowrank_core.running.scope import raise_if_cancelled

SMALL = 16
"""Integers of at most so many elements are sizes and axes, not data."""

FOLD = 65_536
"""What follows from constants is computed once, unless it is so many elements larger than they are."""

AT_NODE = "node "
"""What a note on an error begins with that says where in the file a network stopped."""

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
KINDS = {"Gemm": "Linear", "MatMul": "Linear", "Gather": "Embedding", "LayerNormalization": "LayerNorm"}
KINDS |= {"BatchNormalization": "BatchNorm"} | {op: op for op in ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN")}
"""The class of PyTorch that an operator comes from, without the number of its axes."""

UP = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """A BatchNorm of any number of axes: the graph does not say how many there are."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the graph that a module computes. nodes: the first output of each node it stands for, in order.

    values: {name of a tensor in the module: (name of the node's output, number of its input, transposed)}.
    pads: of an asymmetric window, (before, after) per axis, applied before the module; same: the rule of an automatic
    one.
    """

    module: str
    op: str
    input: str
    output: str
    nodes: tuple[str, ...]
    values: dict[str, tuple[str, int, bool]]
    pads: tuple[tuple[int, int], ...] = ()
    same: str = ""


@dataclass(frozen=True, slots=True)
class Step(Inner):
    """One node, or a module's, as it is run in the network itself. dead: values that nothing needs after it."""

    site: Site | None = None
    dead: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the file calls the node, or what it gives."""
        from onnx import NodeProto

        return (NodeProto.FromString(self.node).name if self.node else "") or next(filter(None, self.outputs), "")


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """What the graph says, apart from its numbers; copies of the network share it.

    buffers: {name of a value: its buffer in `constants`}; turned: those whose buffer holds the transpose, as a layer
    has it; sizes: values that are plain numbers; slow: operators that ONNX's reference computes; aside: weights that
    did not become layers, with the reason. held: inputs of the file that are constants here. places: where the samples
    are if the file fixes their number; loops: whether so many are run at a time here too. lengths: outputs whose
    last axis goes by the name of an input's.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    buffers: dict[str, str]
    sizes: dict[str, np.ndarray]
    opset: int
    turned: frozenset[str] = frozenset()
    slow: set[str] = field(default_factory=set)
    aside: tuple[str, ...] = ()
    held: dict[str, np.ndarray] = field(default_factory=dict)
    places: Places | None = None
    loops: bool = False
    lengths: frozenset[str] = frozenset()

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self

    @property
    def sites(self) -> tuple[Site, ...]:
        """The places in the graph that a module computes, in the order of the nodes."""
        return tuple(step.site for step in self.steps if step.site is not None)


class OnnxGraph(nn.Module):
    """The network. Inputs in the order of the graph's, outputs a Tensor, or a tuple where the graph has several."""

    def __init__(
        self,
        program: Program,
        modules: dict[str, nn.Module],
        constants: dict[str, Tensor],
        stored_bytes: dict[str, int] | None = None,
    ) -> None:
        """stored_bytes: what the file needs for the weights of a module, where these are kept in another type there."""
        super().__init__()
        self.program = program
        self.stored_bytes = dict(stored_bytes or {})
        self.constants = nn.Module()
        for name, value in constants.items():
            if isinstance(value, nn.Parameter):
                self.constants.register_parameter(name, value)
            else:
                self.constants.register_buffer(name, value)
        for path, module in modules.items():
            *parents, leaf = path.split(".")
            inside: nn.Module = self
            for parent in parents:
                if parent not in inside._modules:
                    inside.add_module(parent, nn.Module())
                inside = inside.get_submodule(parent)
            inside.add_module(leaf, module)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order in which they come."""
        return self.program.outputs

    @property
    def branches(self) -> bool:
        """Whether nodes of it look at values and decide by them what is computed, and how often."""
        return any(step.op in CONTROL for step in self.program.steps)

    @property
    def by_lengths(self) -> frozenset[str]:
        """Paths of recurrent modules whose sequences may have lengths of their own."""
        recurrent = (step for step in self.program.steps if step.site is not None and step.op in _RECURRENT)
        return frozenset(step.site.module for step in recurrent if step.site is not None and step.inputs[1])

    @property
    def outputs_of_lengths(self) -> frozenset[str]:
        """Names of the outputs whose last axis is as long as an input is, so that it holds no classes."""
        return self.program.lengths

    def forward(
        self,
        first: Tensor,
        second: Tensor | None = None,
        third: Tensor | None = None,
        fourth: Tensor | None = None,
        *more: Tensor,
    ) -> Any:
        """Run the steps in the order of the file; what is done with is let go.

        The first inputs have names of their own because `torch.export` cannot free an axis of `*inputs`.
        """
        program = self.program
        inputs = [value for value in (first, second, third, fourth, *more) if value is not None]
        if len(inputs) != len(program.inputs):
            names = ", ".join(program.inputs)
            raise ValueError(f"the graph takes {len(program.inputs)} inputs ({names}), but got {len(inputs)}")
        looped = program.places if program.loops else None
        answers = at_a_time(self._answers, inputs, looped) if looped else self._answers(inputs)
        return answers[0] if len(answers) == 1 else answers

    def _answers(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        program = self.program
        values: dict[str, Value] = {**program.sizes, **dict(zip(program.inputs, inputs, strict=True)), "": None}
        for name, buffer in program.buffers.items():
            held = getattr(self.constants, buffer)
            values[name] = held.mT if name in program.turned else held
        running = Running(program.opset, program.slow)
        for step in program.steps:
            raise_if_cancelled()
            given = [values[name] for name in step.inputs]
            try:
                if step.site is not None:
                    outputs = CALLS[step.op](self.get_submodule(step.site.module), given, step)
                else:
                    outputs = computed(step, given, running)
            except Exception as error:
                error.add_note(f"{AT_NODE}{step.name!r} ({step.op})")
                raise
            values.update((name, value) for name, value in zip(step.outputs, outputs, strict=False) if name)
            for name in step.dead:
                values.pop(name, None)
        return tuple(_answer(values[name]) for name in program.outputs)


def _answer(value: Value) -> Value:
    return torch.tensor(value.tolist()) if isinstance(value, np.ndarray) else value


# ---- how modules are called ------------------------------------------------------------------------------------------


def _call_map(module: nn.Module, given: list[Value], step: Step) -> tuple[Value, ...]:
    return (module(given[0]),)


def _call_conv(module: nn.Module, given: list[Value], step: Step) -> tuple[Value, ...]:
    site, x = step.site, given[0]
    assert site is not None
    if site.same:
        window = step.attributes
        pads = window_pads(x.shape[2:], window["kernel_shape"], window["strides"], window["dilations"], None, site.same)
        return (module(padded(x, pads)),)
    return (module(padded(x, site.pads) if site.pads else x),)


def _call_table(module: nn.Module, given: list[Value], step: Step) -> tuple[Value, ...]:
    index, rows = tensor(given[0]), step.attributes["rows"]
    return (module(torch.where(index < 0, index + rows, index)),)


def _call_recurrent(module: nn.Module, given: list[Value], step: Step) -> tuple[Value, ...]:
    """X (steps, N, in), lengths (N,) or none, states (directions, N, hidden) -> Y (steps, directions, N, hidden), last
    states."""
    x, lengths, *states = given
    directions = step.attributes["directions"]
    given_states = [state for state in states if state is not None]
    hx = None if not given_states else given_states[0] if len(states) == 1 else tuple(given_states)
    if lengths is None:
        y, last = module(x) if hx is None else module(x, hx)
    else:
        y, last = _by_lengths(module, x, hx, tensor(lengths))
    y = y.unflatten(-1, (directions, -1)).transpose(1, 2)
    return (y, *last) if isinstance(last, tuple) else (y, last)


def _by_lengths(module: nn.Module, x: Tensor, hx: Any, lengths: Tensor) -> tuple[Tensor, Any]:
    """What a recurrent module answers to sequences that end before the others, one without any step by zeros."""
    begun = inside(x, lengths)[:1, :, None]
    packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), enforce_sorted=False)
    y, last = module(packed) if hx is None else module(packed, hx)
    y, _ = pad_packed_sequence(y, total_length=len(x))
    return y * begun, tuple(state * begun for state in last) if isinstance(last, tuple) else last * begun


CALLS: dict[str, Callable[[nn.Module, list[Value], Step], tuple[Value, ...]]] = {
    "Conv": _call_conv,
    "ConvTranspose": _call_map,
    "Gemm": _call_map,
    "MatMul": _call_map,
    "Gather": _call_table,
    "BatchNormalization": _call_map,
    "LayerNormalization": _call_map,
    "LSTM": _call_recurrent,
    "GRU": _call_recurrent,
    "RNN": _call_recurrent,
}


# ---- reading a graph -------------------------------------------------------------------------------------------------


def build(model: Any, packed: Mapping[str, Packed] | None = None) -> OnnxGraph:
    """The network of a checked `onnx.ModelProto`; raises InvalidModel for tensors of a kind that PyTorch lacks.

    packed: how the file keeps tensors of it that are floats here.
    """
    return _Reader(model, packed or {}).graph()


@dataclass(slots=True)
class _Node:
    """A node, its attributes as Python values, and the one that was found to add its bias."""

    proto: Any
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


class _Reader:
    """Goes through the nodes once, in order."""

    def __init__(self, model: Any, packed: Mapping[str, Packed]) -> None:
        self.model, self.proto = model, model.graph
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.known: dict[str, Value] = {i.name: _constant(i) for i in self.proto.initializer}
        self.sizes = {i.name: _stored_bytes(i) for i in self.proto.initializer}
        self.sizes |= {name: each.nbytes for name, each in packed.items()}
        self.origins: dict[str, frozenset[str]] = {name: frozenset({name}) for name in self.sizes}
        self.weights: dict[str, tuple[str, ...]] = {}  # of each module, the names of its tensors
        self.stored = frozenset(self.known)  # in the file, as weights are
        self.roots: dict[str, tuple[str, bool]] = {}  # what a value is a copy of, and whether transposed
        self.inputs = tuple(i.name for i in self.proto.input if i.name not in self.known)
        self.outputs = tuple(o.name for o in self.proto.output)
        self.modules: dict[str, nn.Module] = {}
        self.aside: list[str] = []
        self.inside: dict[str, Any] = {}  # operators of the graphs inside nodes
        self.nodes = [self._with_graphs(_node(n)) for n in self.proto.node]
        self.users: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            for name in node.inputs:
                self.users.setdefault(name, []).append(number)
        self.paths: dict[Any, str] = {}  # the same weights used in the same way are one module
        self.parameters: dict[tuple[str, bool], nn.Parameter] = {}
        self.steps: list[Step] = []
        self.taken: set[int] = set()

    def _with_graphs(self, node: _Node) -> _Node:
        """A node with what the graphs inside it take from outside among its inputs."""
        if node.op not in CONTROL:
            return node
        reader = Lifted(
            _named(node), self.known, lambda proto: _node(proto).attributes, _constant, lambda p: _literal(_node(p))
        )
        attributes = dict(node.attributes)
        taken = reader.nested(node.proto, attributes)
        self.inside |= reader.operators
        self.known |= reader.constants
        self.stored |= reader.constants.keys()
        if any(self._is_weight(name) for name in reader.constants):
            self.aside.append(f"those inside {_named(node)} ({node.op}), which are read at each of its turns")
        return replace(node, inputs=(*node.inputs, *taken), attributes=attributes)

    def graph(self) -> OnnxGraph:
        """Every node as a module, a constant or a step."""
        for number, node in enumerate(self.nodes):
            raise_if_cancelled()
            if number in self.taken or self._constant(node):
                continue
            step = self._layer(number, node)
            if step is None:
                if node.op not in CONTROL:
                    self._check_computable(node.op, node.proto)
                if node.op in WEIGHTS and any(map(self._is_weight, node.inputs)):
                    self.aside.append(f"{_named(node)} ({node.op}) is used in a way that is not factorised")
                step = Step(node.op, node.inputs, node.outputs, node.attributes, _serialised(node))
            self.steps.append(step)
        for op, proto in self.inside.items():
            self._check_computable(op, proto)
        steps = _with_ends(self.steps, self.outputs)
        needed = {*self.outputs, *(name for step in steps for name in step.inputs)} & self.known.keys()
        sizes = {name: self.known[name] for name in needed if isinstance(self.known[name], np.ndarray)}
        sizes |= {name: integers(self.known[name].tolist()) for name in needed - sizes.keys() if self._plain(name)}
        buffers, turned, constants = self._constants(needed - sizes.keys())
        short = {name: integers(self.known[name].tolist()) for name in buffers if _is_short(self.known[name])}
        sizes |= short  # and buffers all the same, by which plans know the network
        program = Program(
            self.inputs,
            self.outputs,
            steps,
            {name: buffer for name, buffer in buffers.items() if name not in short},
            sizes,
            self.opset,
            turned=turned,
            aside=tuple(dict.fromkeys(self.aside)),
            lengths=_of_lengths(self.proto),
        )
        stored = {path: self._stored(names) for path, names in self.weights.items()}
        if constants:
            layers = {p for module in self.modules.values() for p in module.parameters()}
            own = {name for name, value in constants.items() if isinstance(value, nn.Parameter) and value not in layers}
            tied = layers.intersection(constants.values())
            stored["constants"] = self._stored([name for name, buffer in buffers.items() if buffer in own])
            stored["constants"] += sum(value.nbytes for value in tied)
        graph = OnnxGraph(program, self.modules, constants).eval()
        for path, size in stored.items():
            if size != sum(p.numel() * p.element_size() for p in graph.get_submodule(path).parameters()):
                graph.stored_bytes[path] = size
        return graph

    def _stored(self, names: Collection[str]) -> int:
        """Bytes of the tensors of the file that these values come from; of those from elsewhere, their own."""
        origins = frozenset[str]().union(*(self.origins.get(name, frozenset()) for name in names))
        others = (self.known[name] for name in names if name in self.known and name not in self.origins)
        return sum(self.sizes[name] for name in origins) + sum(v.nbytes for v in others if isinstance(v, Tensor))

    def _check_computable(self, op: str, proto: Any) -> None:
        """Name every operator of the graph that cannot be computed."""
        if op in OPERATORS or computable(proto.SerializeToString(), self.opset):
            return
        others = {n.op: n.proto for n in self.nodes if n.op not in CONTROL} | self.inside
        missing = sorted(
            op
            for op, proto in others.items()
            if op not in OPERATORS and op != "Constant" and not computable(proto.SerializeToString(), self.opset)
        )
        raise InvalidModel(f"nothing here can compute {', '.join(missing)}; give the network as a Python file.")

    def _layer(self, number: int, node: _Node) -> Step | None:
        layer = LAYERS.get(node.op)
        try:
            return None if layer is None else layer(self, number, node)
        except Exception as error:  # the checker of ONNX does not compare shapes
            raise InvalidModel(
                f"node {_named(node)!r} ({node.op}) has weights or attributes that do not fit: {_told(error)}"
            ) from error

    def _constant(self, node: _Node) -> bool:
        """Compute what follows from constants alone; weights are kept apart, so that layers can still share them."""
        if node.op == "Constant":
            self.known[node.outputs[0]] = _literal(node)
            return True
        if not node.inputs or node.op in CONTROL or any(name not in self.known for name in node.inputs if name):
            return False
        if node.op == "Gather" and self._is_weight(node.inputs[0]):
            return False
        given = [self.known[name] if name else None for name in node.inputs]
        step = Step(node.op, node.inputs, node.outputs, node.attributes, node.proto.SerializeToString())
        try:
            outputs = computed(step, given, Running(self.opset))
        except Exception as error:
            raise InvalidModel(f"node {_named(node)!r} ({node.op}) cannot be computed: {_told(error)}") from error
        elements = sum(v.numel() for v in given if isinstance(v, Tensor))
        if sum(v.numel() for v in outputs if isinstance(v, Tensor)) > elements + FOLD:
            return False
        self.known.update((name, value) for name, value in zip(node.outputs, outputs, strict=False) if name)
        origins = frozenset[str]().union(*(self.origins.get(name, frozenset()) for name in node.inputs))
        self.origins.update((name, origins) for name in node.outputs if origins)
        flat = self.tensor(node.inputs[0], 2) is not None
        if node.op == "Identity" or (flat and node.op == "Transpose" and node.attributes.get("perm", [1, 0]) == [1, 0]):
            root, flipped = self._root(node.inputs[0])
            self.roots[node.outputs[0]] = root, flipped ^ (node.op == "Transpose")
        return True

    def _constants(self, names: set[str]) -> tuple[dict[str, str], frozenset[str], dict[str, Tensor]]:
        """Names of buffers, those that are read turned round, and what they hold: each weight of the file once.

        One that is a layer as well stays tied to it, all others count. By that tie the layer is seen to share it, also
        where what is read here is only made of it.
        """
        buffers: dict[str, str] = {}
        turned: set[str] = set()
        constants: dict[str, Tensor] = {}
        homes: dict[tuple[str, bool], str] = {}
        beside: list[tuple[str, bool]] = []
        held = {weight: key for key in self.parameters for weight in self._weights_of(key[0])}
        for name in sorted(names, key=lambda name: (self._root(name)[0] not in self.stored, name)):
            buffer, value = _free(re.sub(r"\W", "_", name) or "value", constants), self.known[name]
            root, flipped = self._root(name)
            key = next((k for k in ((root, flipped), (root, not flipped)) if k in self.parameters), None)
            made_of = self._weights_of(name)
            if key is None and made_of and not made_of & held.keys() and torch.isfinite(value).all():
                key = root, flipped
                self.parameters[key] = nn.Parameter(value)
                held |= dict.fromkeys(made_of, key)
            if key is None:
                buffers[name], constants[buffer] = buffer, value
                beside += [held[weight] for weight in made_of & held.keys()]
                continue
            buffers[name] = homes.setdefault(key, buffer)
            constants[homes[key]] = self.parameters[key]
            turned |= {name} if key[1] != flipped else set()
        for key in set(beside) - homes.keys():
            constants[_free(re.sub(r"\W", "_", key[0]), constants)] = self.parameters[key]
        return buffers, frozenset(turned), constants

    def _weights_of(self, name: str) -> set[str]:
        """The weights of the file that a constant is, or is made of with as many numbers."""
        if not self._is_weight(name):
            return set()
        root, elements = self._root(name)[0], self.known[name].numel()
        made_of = {w for w in self.origins.get(root, ()) if self._is_weight(w) and self.known[w].numel() == elements}
        return made_of | ({root} & self.stored)

    def _plain(self, name: str) -> bool:
        """Whether a few real numbers that only say how far or how much: not data, so no tensor."""
        used = {(self.nodes[n].op, self.nodes[n].inputs.index(name)) for n in self.users.get(name, ())}
        return self.known[name].numel() <= SMALL and bool(used) and used <= {("Resize", 2), ("Pad", 2)}

    # ---- what layers ask ---------------------------------------------------------------------------------------------

    def tensor(self, name: str, axes: int | None = None) -> Tensor | None:
        """The constant of that name where it is a tensor of real numbers (with so many axes)."""
        value = self.known.get(name)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        return value if axes is None or value.ndim == axes else None

    def _is_weight(self, name: str) -> bool:
        value = self.tensor(name)
        return value is not None and value.ndim >= 2 and value.numel() > SMALL

    def _root(self, name: str) -> tuple[str, bool]:
        return self.roots.get(name, (name, False))

    def is_turned(self, name: str, *, transposed: bool = False) -> bool:
        """Whether a layer has this weight the other way round already, so that another one would store it twice."""
        root, flipped = self._root(name)
        return (root, not flipped ^ transposed) in self.parameters

    def parameter(self, name: str, *, transposed: bool = False) -> nn.Parameter:
        """A weight as a parameter; one that goes by several names, or is used both ways round, is one parameter."""
        root, flipped = self._root(name)
        key = root, flipped ^ transposed
        if key not in self.parameters:
            value = self.known[root]
            self.parameters[key] = nn.Parameter((value.T if key[1] else value).detach().clone().contiguous())
        return self.parameters[key]

    def place(self, node: _Node, weight: str, bias: str, kind: Any, make: Callable[[], nn.Module]) -> str:
        """The path of the module for these weights, made where there is none yet."""
        key = (node.op, self._root(weight), bias, repr(kind))
        if key not in self.paths:
            self.paths[key] = self._path(node, weight, bias)
            last = 4 if node.op in _RECURRENT else 5 if node.op == "BatchNormalization" else 0
            names = node.inputs[1:last] if last else (weight, bias)
            self.weights[self.paths[key]] = tuple(name for name in names if name in self.known)
            self.modules[self.paths[key]] = make()
        return self.paths[key]

    def _path(self, node: _Node, weight: str, bias: str) -> str:
        """A name that a person knows the layer by: of its weight, its bias, its place in the program, or its node."""
        root = self._root(weight)[0]
        scope, kind = _scope(node.proto)
        alone = [name for name in (root, bias) if len(self.users.get(name, ())) == 1]
        for name in [*alone, scope if re.fullmatch(rf"{KINDS[node.op]}(\dd)?", kind) else "", root, scope]:
            match = re.fullmatch(r"(.+)[./_](weight|kernel|bias)", name)
            if match or (name and name == scope):
                return self._clean(match[1] if match else scope)
        path = ""
        for part in [part for part in node.proto.name.split("/") if part][:-1]:
            path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
        return self._clean(path or node.proto.name or node.op.lower())

    def _clean(self, name: str) -> str:
        """A module path that is free: no empty part, no word of nn.Module, no path through another layer.

        Of a node that was several in TensorFlow Lite, whose name has theirs one behind the other, the first.
        """
        first = next(filter(None, name.split(";")), "")
        parts = [re.sub(r"\W", "_", part) for part in re.split(r"[./]", first) if part] or ["layer"]
        reserved = nn.Module()
        parts = [f"{part}_" if hasattr(reserved, part) or part in ("program", "constants") else part for part in parts]

        def clashes(path: str) -> bool:
            return any(f"{p}.".startswith(f"{path}.") or f"{path}.".startswith(f"{p}.") for p in self.modules)

        path = ".".join(parts)
        if not clashes(path):
            return path
        flat, number = "_".join(parts), 1
        while clashes(f"{flat}_{number}"):
            number += 1
        return f"{flat}_{number}"

    def bias_added(self, node: _Node, width: int) -> tuple[int, str] | None:
        """(number of the node that adds a constant to each feature of this one's output and is alone to take it, its
        name)."""
        users = self.users.get(node.outputs[0], [])
        if len(users) != 1 or node.outputs[0] in self.outputs or self.nodes[users[0]].op != "Add":
            return None
        add = self.nodes[users[0]]
        other = add.inputs[0] if add.inputs[1] == node.outputs[0] else add.inputs[1]
        value = self.tensor(other)
        if value is None or value.numel() != width or value.ndim == 0 or value.shape[-1] != width:
            return None
        return users[0], other


def _of_lengths(graph: Any) -> frozenset[str]:
    """The outputs whose last axis goes by the name of an input's."""
    named = {size.dim_param for value in graph.input for size in value.type.tensor_type.shape.dim} - {""}
    last = {value.name: value.type.tensor_type.shape.dim[-1:] for value in graph.output}
    return frozenset(name for name, sizes in last.items() if sizes and sizes[0].dim_param in named)


def _with_ends(steps: list[Step], outputs: tuple[str, ...]) -> tuple[Step, ...]:
    """The steps, each with the values that nothing after it needs."""
    needed, steps_needed = set(outputs), []
    for step in reversed(steps):
        names = {*step.inputs, *step.outputs} - {""}
        steps_needed.append(replace(step, dead=tuple(sorted(names - needed))))
        needed |= names
    return tuple(reversed(steps_needed))


def _serialised(node: _Node) -> bytes:
    return b"" if node.op in CONTROL else bytes(node.proto.SerializeToString())


def _free(name: str, taken: Any) -> str:
    name = f"_{name}" if name[:1].isdigit() or hasattr(nn.Module(), name) else name
    free, number = name, 1
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _named(node: _Node) -> str:
    return node.proto.name or next(filter(None, node.outputs), node.op)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _node(proto: Any) -> _Node:
    from onnx import helper

    attributes = {}
    for attribute in proto.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif hasattr(value, "data_type"):
            value = _array(value)
        elif isinstance(value, list):
            value = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]
        attributes[attribute.name] = value
    return _Node(proto, proto.op_type, tuple(proto.input), tuple(proto.output), attributes)


def _scope(proto: Any) -> tuple[str, str]:
    """The module of a program that a node comes from, and its class, as PyTorch's exporter notes them; else ''."""
    noted = {p.key: p.value[:10_000] for p in proto.metadata_props}
    prefixes = []
    for key in ("name_scopes", "class_hierarchy"):
        try:
            names = ast.literal_eval(noted.get(f"pkg.torch.onnx.{key}", "[]"))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            names = []
        prefixes.append(str(names[-2]) if isinstance(names, list) and len(names) > 2 else "")
    return prefixes[0], prefixes[1].rpartition(".")[2]


def _literal(node: _Node) -> Value:
    (key, value), *_ = node.attributes.items()
    if isinstance(value, Tensor):
        return _as_sizes(value)
    if key in ("value_int", "value_ints"):
        return integers(value)
    if key in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    raise InvalidModel(f"node {_named(node)!r} holds a {key}, which PyTorch has no tensor for.")


def _stored_bytes(proto: Any) -> int:
    """Bytes of a stored tensor in its own type."""
    from onnx import TensorProto, helper

    bits = 4 if TensorProto.DataType.Name(proto.data_type).endswith("INT4") else 0
    elements = int(prod(proto.dims))
    return -(-elements * (bits or 8 * int(helper.tensor_dtype_to_np_dtype(proto.data_type).itemsize)) // 8)


def _constant(proto: Any) -> Value:
    return _as_sizes(_array(proto))


def _as_sizes(value: Tensor) -> Value:
    if value.dtype == torch.int64 and value.ndim <= 1 and value.numel() <= SMALL:
        return integers(value.tolist())
    return value


def _is_short(value: Value) -> bool:
    """Whether these are integers of 32 bits that say sizes and axes: TensorFlow computes them so."""
    return isinstance(value, Tensor) and value.dtype == torch.int32 and value.ndim <= 1 and value.numel() <= SMALL


def _array(proto: Any) -> Tensor:
    from onnx import numpy_helper

    try:
        dtype = dtype_of(proto.data_type)
        array = numpy_helper.to_array(proto)
        if dtype is torch.bfloat16:
            return torch.from_numpy(array.astype(np.float32)).to(dtype)
        if array.dtype.kind == "u" and array.dtype != np.uint8:
            array = array.astype(np.int64)
        return torch.from_numpy(np.array(array)).to(dtype)
    except (Unhandled, ValueError, TypeError) as error:
        raise InvalidModel(f"the tensor {proto.name[:100]!r} cannot be read: {_told(error)}") from error


# ---- which nodes are layers ------------------------------------------------------------------------------------------

WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
"""What multiplies by weights: where it is no layer, that is said."""


def _window(node: _Node, axes: int) -> dict[str, Any]:
    ones = [1] * axes
    return {
        "strides": list(node.attributes.get("strides", ones)),
        "dilations": list(node.attributes.get("dilations", ones)),
        "group": int(node.attributes.get("group", 1)),
    }


def _bias(reader: _Reader, node: _Node, number: int) -> tuple[str, Tensor | None, bool]:
    """(its name, its value, whether it can be had): a layer without one has none to be had."""
    name = node.inputs[number] if len(node.inputs) > number else ""
    value = reader.tensor(name)
    return name, value, not name or value is not None


def _copied(module: nn.Module, weight: nn.Parameter, bias: Tensor | None) -> nn.Module:
    """The module with this weight, and its own copy of the bias: equal biases may be stored once without being tied."""
    module.register_parameter("weight", weight)
    if bias is not None:
        module.register_parameter("bias", nn.Parameter(bias.detach().clone().contiguous()))
    return module


def _conv(reader: _Reader, number: int, node: _Node) -> Step | None:
    weight, (name, bias, constant) = reader.tensor(node.inputs[1]), _bias(reader, node, 2)
    if weight is None or not constant or weight.ndim - 2 not in CONV:
        return None
    axes, kernel = weight.ndim - 2, list(weight.shape[2:])
    window, same = _window(node, axes), node.attributes.get("auto_pad", "NOTSET")
    pads: list[tuple[int, int]] = []
    if same in ("SAME_UPPER", "SAME_LOWER") and all(s == 1 for s in window["strides"]):
        pads = window_pads([1] * axes, kernel, None, window["dilations"], None, same)
        same = ""
    elif same in ("NOTSET", "VALID"):
        pads = window_pads([], kernel, None, None, node.attributes.get("pads"), same)
        same = ""
    even = all(low == high >= 0 for low, high in pads) and not same
    options = {
        "kernel_size": tuple(kernel),
        "stride": tuple(window["strides"]),
        "dilation": tuple(window["dilations"]),
        "groups": window["group"],
        "padding": tuple(low for low, _ in pads) if even else (0,) * axes,
        "bias": bias is not None,
    }
    inputs = weight.shape[1] * window["group"]

    def make() -> nn.Module:
        empty = CONV[axes](inputs, weight.shape[0], **options, device="meta")
        return _copied(empty, reader.parameter(node.inputs[1]), bias)

    path = reader.place(node, node.inputs[1], name, options, make)
    site = _site(node, path, bias=2 if bias is not None else 0)
    if not even:
        site = replace(site, pads=tuple(pads), same=same)
    return Step(node.op, node.inputs[:1], node.outputs, {"kernel_shape": kernel, **window}, site=site)


def _site(node: _Node, path: str, *, bias: int = 0, transposed: bool = False) -> Site:
    first = node.outputs[0]
    values = {"weight": (first, 1, transposed)} | ({"bias": (first, bias, False)} if bias else {})
    return Site(path, node.op, node.inputs[0], first, (first,), values)


def _up(reader: _Reader, number: int, node: _Node) -> Step | None:
    weight, (name, bias, constant) = reader.tensor(node.inputs[1]), _bias(reader, node, 2)
    plain = node.attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and "output_shape" not in node.attributes
    if weight is None or not constant or weight.ndim - 2 not in UP or not plain:
        return None
    axes, window = weight.ndim - 2, _window(node, weight.ndim - 2)
    auto = node.attributes.get("auto_pad", "NOTSET")
    pads = window_pads([], weight.shape[2:], None, None, node.attributes.get("pads"), auto)
    extra = list(node.attributes.get("output_padding") or [0] * axes)
    extra = [more + low - high for more, (low, high) in zip(extra, pads, strict=True)]
    limits = [max(s, d) for s, d in zip(window["strides"], window["dilations"], strict=True)]
    if any(not 0 <= more < limit for more, limit in zip(extra, limits, strict=True)):
        return None  # its end is cut off by more than its beginning
    options = {
        "kernel_size": tuple(weight.shape[2:]),
        "stride": tuple(window["strides"]),
        "dilation": tuple(window["dilations"]),
        "groups": window["group"],
        "padding": tuple(low for low, _ in pads),
        "output_padding": tuple(extra),
        "bias": bias is not None,
    }

    def make() -> nn.Module:
        empty = UP[axes](weight.shape[0], weight.shape[1] * window["group"], **options, device="meta")
        return _copied(empty, reader.parameter(node.inputs[1]), bias)

    path = reader.place(node, node.inputs[1], name, options, make)
    return Step(node.op, node.inputs[:1], node.outputs, {}, site=_site(node, path, bias=2 if bias is not None else 0))


def _gemm(reader: _Reader, number: int, node: _Node) -> Step | None:
    weight, (name, bias, constant) = reader.tensor(node.inputs[1], 2), _bias(reader, node, 2)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    if weight is None or not constant or node.attributes.get("transA", 0) or alpha != 1.0 or beta != 1.0:
        return None
    flip = not node.attributes.get("transB", 0)
    if reader.is_turned(node.inputs[1], transposed=flip):
        return None
    outputs, inputs = weight.shape[::-1] if flip else weight.shape
    if bias is not None and (bias.numel() not in (1, outputs) or (bias.ndim and bias.shape[-1] != bias.numel())):
        return None
    wide = None if bias is None else bias.reshape(-1).expand(outputs)

    def make() -> nn.Module:
        empty = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
        return _copied(empty, reader.parameter(node.inputs[1], transposed=flip), wide)

    path = reader.place(node, node.inputs[1], name, flip, make)
    site = _site(node, path, bias=2 if bias is not None else 0, transposed=flip)
    return Step(node.op, node.inputs[:1], node.outputs, {}, site=site)


def _matmul(reader: _Reader, number: int, node: _Node) -> Step | None:
    weight = reader.tensor(node.inputs[1], 2)
    if weight is None or reader.is_turned(node.inputs[1], transposed=True):
        return None
    inputs, outputs = weight.shape
    added = reader.bias_added(node, outputs)
    add, name = added or (-1, "")
    bias = reader.tensor(name)

    def make() -> nn.Module:
        empty = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
        return _copied(
            empty, reader.parameter(node.inputs[1], transposed=True), None if bias is None else bias.reshape(-1)
        )

    path = reader.place(node, node.inputs[1], name, (), make)
    site = _site(node, path, transposed=True)
    if bias is None:
        return Step(node.op, node.inputs[:1], node.outputs, {}, site=site)
    last = reader.nodes[add]
    reader.taken.add(add)
    values = {**site.values, "bias": (last.outputs[0], last.inputs.index(name), False)}
    site = replace(site, output=last.outputs[0], nodes=(*site.nodes, last.outputs[0]), values=values)
    return Step(node.op, node.inputs[:1], last.outputs, {}, site=site)


def _table(reader: _Reader, number: int, node: _Node) -> Step | None:
    table = reader.tensor(node.inputs[0], 2)
    if table is None or node.attributes.get("axis", 0) not in (0, -2) or reader.is_turned(node.inputs[0]):
        return None
    if not torch.isfinite(table).all():  # a row of -inf stands for padding
        reader.aside.append(f"{_named(node)} (Gather) looks up a table that is not finite")
        return None

    def make() -> nn.Module:
        return _copied(nn.Embedding(len(table), table.shape[1], device="meta"), reader.parameter(node.inputs[0]), None)

    path = reader.place(node, node.inputs[0], "", (), make)
    values = {"weight": (node.outputs[0], 0, False)}
    site = Site(path, node.op, node.inputs[1], node.outputs[0], (node.outputs[0],), values)
    return Step(node.op, node.inputs[1:], node.outputs, {"rows": len(table)}, site=site)


def _batch_norm(reader: _Reader, number: int, node: _Node) -> Step | None:
    tensors = [reader.tensor(name, 1) for name in node.inputs[1:]]
    if len(tensors) != 4 or any(v is None for v in tensors) or node.attributes.get("training_mode", 0):
        return None
    scale, bias, mean, variance = (v.detach().clone() for v in tensors if v is not None)

    def make() -> nn.Module:
        norm = BatchNorm(len(scale), eps=node.attributes.get("epsilon", 1e-5))
        norm.weight, norm.bias = nn.Parameter(scale), nn.Parameter(bias)
        norm.running_mean, norm.running_var = mean, variance
        return norm

    path = reader.place(node, node.inputs[1], node.inputs[2], node.outputs[0], make)
    names = ("weight", "bias", "running_mean", "running_var")
    values = {name: (node.outputs[0], i, False) for i, name in enumerate(names, start=1)}
    site = Site(path, node.op, node.inputs[0], node.outputs[0], (node.outputs[0],), values)
    return Step(node.op, node.inputs[:1], node.outputs[:1], {}, site=site)


def _layer_norm(reader: _Reader, number: int, node: _Node) -> Step | None:
    scale, (name, bias, constant) = reader.tensor(node.inputs[1], 1), _bias(reader, node, 2)
    if scale is None or not constant or node.attributes.get("axis", -1) != -1 or len(node.outputs) > 1:
        return None
    if bias is not None and bias.shape != scale.shape:
        return None

    def make() -> nn.Module:
        norm = nn.LayerNorm(len(scale), eps=node.attributes.get("epsilon", 1e-5), bias=bias is not None, device="meta")
        return _copied(norm, nn.Parameter(scale.detach().clone()), bias)

    path = reader.place(node, node.inputs[1], name, node.outputs[0], make)
    site = _site(node, path, bias=2 if bias is not None else 0)
    return Step(node.op, node.inputs[:1], node.outputs[:1], {}, site=site)


GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""PyTorch's order of gates, in ONNX's (i o f c; z r h)."""

_RECURRENT: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def gates(kind: str, value: Tensor, order: tuple[int, ...]) -> Tensor:
    """Rows of stacked gates in another order."""
    parts = value.chunk(len(GATES[kind]))
    return torch.cat([parts[i] for i in order])


def _recurrent_obstacle(node: _Node) -> str:
    """What a recurrent node does that PyTorch's layer does not, in words that follow its name; "" for nothing."""
    given = (*node.inputs, *[""] * 8)
    options = {"direction": "forward", "activations": None, "linear_before_reset": 0} | node.attributes
    options.pop("hidden_size", None)
    direction, activations, after = (options.pop(k) for k in ("direction", "activations", "linear_before_reset"))
    usual = _ACTIVATIONS[node.op] * (2 if direction == "bidirectional" else 1)
    further = sorted(name for name, value in options.items() if value)
    if given[7]:
        return "has peepholes (P)"
    if direction not in ("forward", "bidirectional"):
        return f"goes through its inputs in the direction {direction!r}"
    if activations not in (None, usual):
        return f"has activations of its own ({', '.join(activations)})"
    if node.op == "GRU" and after != 1:
        return "resets before the product (linear_before_reset 0), where PyTorch's GRU resets after it"
    if node.op == "LSTM" and bool(given[5]) != bool(given[6]):
        return "is given one of its two states alone"
    return f"has {', '.join(further)}" if further else ""


def _recurrent(reader: _Reader, number: int, node: _Node) -> Step | None:
    """A plain LSTM, GRU or RNN: PyTorch's activations, no peepholes, time first; sequences may have own lengths."""
    inputs = (*node.inputs, *[""] * 8)
    weight, hidden, biases = (reader.tensor(name) for name in inputs[1:4])
    if weight is None or hidden is None or (inputs[3] and biases is None):
        return None
    if obstacle := _recurrent_obstacle(node):
        reader.aside.append(f"{_named(node)} ({node.op}) {obstacle}")
        return None
    directions = 2 if node.attributes.get("direction") == "bidirectional" else 1
    width, size, order = hidden.shape[-1], weight.shape[-1], GATES[node.op]

    def make() -> nn.Module:
        module = _RECURRENT[node.op](size, width, bias=biases is not None, bidirectional=directions == 2)
        values = {}
        for direction, suffix in zip(range(directions), ("", "_reverse"), strict=False):
            values[f"weight_ih_l0{suffix}"] = gates(node.op, weight[direction], order)
            values[f"weight_hh_l0{suffix}"] = gates(node.op, hidden[direction], order)
            if biases is not None:
                ours, theirs = biases[direction].chunk(2)
                values[f"bias_ih_l0{suffix}"] = gates(node.op, ours, order)
                values[f"bias_hh_l0{suffix}"] = gates(node.op, theirs, order)
        module.to(weight.dtype).load_state_dict(values)
        return module

    path = reader.place(node, node.inputs[1], node.inputs[2], inputs[3], make)
    states = inputs[5:7] if node.op == "LSTM" else inputs[5:6]
    given = (node.inputs[0], inputs[4], *states)
    first = next(name for name in node.outputs if name)
    site = Site(path, node.op, node.inputs[0], first, (first,), {})
    return Step(node.op, given, node.outputs, {"directions": directions}, site=site)


LAYERS: dict[str, Callable[[_Reader, int, _Node], Step | None]] = {
    "Conv": _conv,
    "ConvTranspose": _up,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _table,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
"""What becomes a module, and how; None where this node cannot."""
