"""Nodes of ONNX that hold graphs of their own, run as Python runs them: If, Loop, Scan; and one node of any kind.

What such a graph stores is lifted out of it, so that it counts and is kept with the network like every other tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_core.graphs.operators import LARGEST_FILL, Unhandled, Value, integers, reference, run, tensor
from lowrank_core.running.scope import raise_if_cancelled

CONTROL = {"If", "Loop", "Scan"}

MOST_TURNS = 100_000
"""Turns of all loops in one call of a network, at most."""


@dataclass(frozen=True, slots=True)
class Inner:
    """A node, of the network or of a graph inside another node. node: serialised, for ONNX's own reference."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    node: bytes = b""


@dataclass(frozen=True, slots=True)
class Body:
    """A graph inside a node. bound: {name in it: name outside} of what it takes from there, stored tensors too."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Inner, ...]
    bound: dict[str, str]


@dataclass(slots=True)
class Running:
    """One call of a network. slow: operators that ONNX's reference computed."""

    opset: int
    slow: set[str] = field(default_factory=set)
    turns: int = 0

    def turn(self, size: int = 0) -> None:
        """Count a turn of a loop that holds so many numbers, which must not grow without an end; raises Cancelled."""
        raise_if_cancelled()
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise ValueError(f"the loops of the network take more than {MOST_TURNS:,} turns")
        if size > LARGEST_FILL:
            raise ValueError(f"a loop holds {size:,} numbers, more than {LARGEST_FILL:,}")


@dataclass(slots=True)
class Rows:
    """What the turns of a loop give, one row each, and how many numbers that is."""

    listed: list[list[Tensor]]
    size: int = 0

    def add(self, given: Sequence[Value]) -> None:
        """The rows of one turn."""
        for rows, value in zip(self.listed, given, strict=True):
            rows.append(tensor(value))
            self.size += rows[-1].numel()

    def stacked(self, axes: Sequence[int], backwards: Sequence[int]) -> list[Tensor]:
        """All rows of each as one tensor, along that axis, the last one first where it goes backwards."""
        return [
            torch.stack(rows[::-1] if back else rows, axis) if rows else torch.zeros(0)
            for rows, axis, back in zip(self.listed, axes, backwards, strict=True)
        ]


def _numbers(values: Sequence[Value]) -> int:
    return sum(v.numel() for v in values if isinstance(v, Tensor))


def computed(step: Inner, given: Sequence[Value], running: Running) -> tuple[Value, ...]:
    """The outputs of a node, given its inputs, and what the graphs inside it take from outside."""
    if step.op in CONTROL:
        names = dict(zip(step.inputs, given, strict=True))
        own = [names[name] for name in step.inputs[: step.attributes["own"]]]
        return _RULES[step.op](own, step.attributes, names, running)
    try:
        return run(step.op, given, step.attributes, sum(map(bool, step.outputs)))
    except Unhandled:
        running.slow.add(step.op)
        return reference(step.node, running.opset, given)


def _called(body: Body, given: Sequence[Value], around: dict[str, Value], running: Running) -> list[Value]:
    """What a graph answers; around: values outside, by name."""
    values: dict[str, Value] = {"": None, **{inside: around[outside] for inside, outside in body.bound.items()}}
    values.update(zip(body.inputs, given, strict=True))
    for node in body.nodes:
        outputs = computed(node, [values[name] for name in node.inputs], running)
        values.update((name, value) for name, value in zip(node.outputs, outputs, strict=False) if name)
    return [values[name] for name in body.outputs]


def _one(value: Value) -> Any:
    """The only number of a value; of one that follows from shapes alone, no tensor is looked at."""
    return (value if isinstance(value, np.ndarray) else tensor(value)).reshape(()).item()


def _true(value: Value) -> bool:
    return bool(_one(value))


def _if(own: list[Value], attributes: dict[str, Any], around: dict[str, Value], running: Running) -> tuple[Value, ...]:
    running.turn()
    taken = "then_branch" if _true(own[0]) else "else_branch"
    return tuple(_called(attributes[taken], (), around, running))


def _loop(own: list[Value], attributes: dict[str, Any], around: dict[str, Value], running: Running) -> tuple[Any, ...]:
    """Inputs: turns at most, whether to begin, what is carried; the body gives whether to go on, that, and rows."""
    body: Body = attributes["body"]
    most, going, *carried = own
    limit = MOST_TURNS + 1 if most is None else int(_one(most))
    rows = Rows([[] for _ in body.outputs[1 + len(carried) :]])
    turn, on = 0, going is None or _true(going)
    while on and turn < limit:
        running.turn(rows.size + _numbers(carried))
        going, *answers = _called(body, (integers(turn), torch.tensor(True), *carried), around, running)
        carried = answers[: len(carried)]
        rows.add(answers[len(carried) :])
        turn, on = turn + 1, _true(going)
    many = len(rows.listed)
    return (*carried, *rows.stacked([0] * many, [0] * many))


def _scan(own: list[Value], attributes: dict[str, Any], around: dict[str, Value], running: Running) -> tuple[Any, ...]:
    """Inputs: what is carried, then what is gone through row by row; the body gives the first, and rows."""
    body: Body = attributes["body"]
    number = attributes["num_scan_inputs"]
    if not 1 <= number <= len(own):
        raise ValueError(f"a Scan must go through 1 to {len(own)} of its inputs, but num_scan_inputs is {number:,}")
    carried, given = own[: len(own) - number], [tensor(value) for value in own[len(own) - number :]]
    axes = attributes.get("scan_input_axes", [0] * number)
    back = attributes.get("scan_input_directions", [0] * number)
    rows = Rows([[] for _ in body.outputs[len(carried) :]])
    length = given[0].shape[axes[0]]
    for turn in range(length):
        running.turn(rows.size + _numbers(carried))
        places = [length - 1 - turn if backwards else turn for backwards in back]
        taken = [x.select(axis, place) for x, axis, place in zip(given, axes, places, strict=True)]
        answers = _called(body, (*carried, *taken), around, running)
        carried = answers[: len(carried)]
        rows.add(answers[len(carried) :])
    many = [0] * len(rows.listed)
    out_axes, out_back = (attributes.get(f"scan_output_{key}", many) for key in ("axes", "directions"))
    return (*carried, *rows.stacked(out_axes, out_back))


_RULES: dict[str, Callable[..., tuple[Any, ...]]] = {"If": _if, "Loop": _loop, "Scan": _scan}


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Lifted:
    """Reads the graphs inside a node. constants: what they store, by the names that it has outside.

    attributes, constant, literal: how a node's attributes are read, a stored tensor, and what a Constant holds.
    """

    prefix: str
    taken: Any
    attributes: Callable[[Any], dict[str, Any]]
    constant: Callable[[Any], Value]
    literal: Callable[[Any], Value]
    constants: dict[str, Value] = field(default_factory=dict)
    operators: dict[str, Any] = field(default_factory=dict)

    def body(self, graph: Any) -> Body:
        """The graph, with all that it takes from outside bound by name."""
        inputs = tuple(value.name for value in graph.input)
        bound = {i.name: self._lift(i.name, self.constant(i)) for i in graph.initializer}
        inside, nodes = {*inputs, *bound, ""}, []
        for proto in graph.node:
            attributes = self.attributes(proto)
            if proto.op_type == "Constant":
                bound[proto.output[0]] = self._lift(proto.output[0], self.literal(proto))
                inside.add(proto.output[0])
                continue
            if proto.op_type in CONTROL:
                taken = self.nested(proto, attributes)
            else:
                self.operators.setdefault(proto.op_type, proto)
                taken = ()
            bound |= {name: name for name in (*proto.input, *taken) if name not in inside}
            inside |= {*bound, *proto.output}
            node = b"" if proto.op_type in CONTROL else proto.SerializeToString()
            nodes.append(Inner(proto.op_type, (*proto.input, *taken), tuple(proto.output), attributes, node))
        outputs = tuple(value.name for value in graph.output)
        bound |= {name: name for name in outputs if name not in inside}
        return Body(inputs, outputs, tuple(nodes), bound)

    def nested(self, proto: Any, attributes: dict[str, Any]) -> tuple[str, ...]:
        """Read the graphs among a node's attributes, in place; the names that they take from outside."""
        bodies = {key: self.body(graph) for key, graph in _graphs_in(proto)}
        attributes.update(bodies)
        attributes["own"] = len(proto.input)
        return tuple(dict.fromkeys(name for body in bodies.values() for name in body.bound.values()))

    def _lift(self, name: str, value: Value) -> str:
        free, number = f"{self.prefix}.{name}", 1
        while free in self.taken or free in self.constants:
            free, number = f"{self.prefix}.{name}.{number}", number + 1
        self.constants[free] = value
        return free


def _graphs_in(proto: Any) -> Iterator[tuple[str, Any]]:
    return ((attribute.name, attribute.g) for attribute in proto.attribute if attribute.HasField("g"))
