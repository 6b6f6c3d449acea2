"""Products with a weight that a graph of ONNX writes otherwise than as inputs times a matrix, written so.

As Keras does, whose dense layers are an Einsum with weights of three axes, and code in which the weight stands first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from math import prod
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Products:
    """A graph's nodes with some of its products written as ones that layers stand for."""

    nodes: list[Any]
    written: int

    def into(self, model: Any) -> Any:
        """The model, in place, with these nodes."""
        copies = [type(node).FromString(node.SerializeToString()) for node in self.nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)
        return model


def as_products(model: Any) -> Products:
    """Each Einsum, MatMul and Gemm of inputs with a weight as inputs times a matrix, where it can be; all else stays.

    An Einsum in which axes of the inputs are summed up with those of a weight whose others take their place; a weight
    that stands first; a Gemm with factors, or with its inputs turned.
    """
    taken = {name for node in model.graph.node for name in (*node.input, *node.output, node.name)}
    writing = _Writing(model, _constants(model.graph), taken)
    nodes, written = [], 0
    for node in model.graph.node:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        made = None if rule is None else rule(writing, node)
        written += made is not None
        nodes += [node] if made is None else made
    return Products(nodes, written)


def _constants(graph: Any) -> set[str]:
    """Names of values that do not depend on the inputs."""
    constants = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if not any(attribute.HasField("g") for attribute in node.attribute) and constants.issuperset(node.input):
            constants.update(node.output)
    return constants - {""}


@dataclass(slots=True)
class _Writing:
    """What is known of a graph while its products are written. constants: values that do not depend on the inputs."""

    model: Any
    constants: set[str]
    taken: set[str]
    _values: dict[str, tuple[np.dtype[Any], list[int | None]]] | None = None

    def value(self, name: str) -> tuple[np.dtype[Any], list[int | None]]:
        """The type and sizes of a value of real numbers; [] for anything else, None for a size that nothing tells."""
        if self._values is None:
            from onnx import TensorProto, shape_inference

            real = {TensorProto.FLOAT16: np.float16, TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64}
            graph = shape_inference.infer_shapes(self.model).graph
            seen = [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in graph.initializer]
            for value in (*graph.value_info, *graph.input):
                kind = value.type.tensor_type
                seen.append((value.name, kind.elem_type, [axis.dim_value or None for axis in kind.shape.dim]))
            self._values = {name: (np.dtype(real[kind]), sizes) for name, kind, sizes in reversed(seen) if kind in real}
        return self._values.get(name, (np.dtype(np.float32), []))

    def sizes(self, name: str) -> list[int | None]:
        """The sizes of a value, see `value`."""
        return self.value(name)[1]

    def weight(self, name: str, axes: int) -> list[int] | None:
        """The sizes of a constant of so many axes; None for anything else."""
        sizes = self.sizes(name) if name in self.constants else []
        whole = [size for size in sizes if size]
        return whole if len(whole) == len(sizes) == axes > 1 else None


@dataclass(slots=True)
class _Chain:
    """Nodes one behind the other that come to the value `end`; names: of those in between."""

    names: Iterator[str]
    end: str
    nodes: list[Any] = field(default_factory=list)

    def turned(self, order: list[int]) -> None:
        """Its axes in another order."""
        if order != sorted(order):
            self._then("Transpose", perm=order)

    def shaped(self, sizes: list[int]) -> None:
        """In another shape; 0 stands for the size that was there."""
        self._then("Reshape", self._constant(np.array(sizes, np.int64)))

    def times(self, number: float, dtype: np.dtype[Any]) -> None:
        """Times a number, but for one."""
        if number != 1:
            self._then("Mul", self._constant(np.array(number, dtype)))

    def product(self, op: str, node: Any, *others: str, **attributes: Any) -> None:
        """A product, of the name that the node has."""
        self._then(op, *others, name=node.name or node.output[0], **attributes)

    def _constant(self, value: np.ndarray) -> str:
        from onnx import helper, numpy_helper

        name = next(self.names)
        self.nodes.append(helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(value)))
        return name

    def _then(self, op: str, *others: str, name: str = "", **attributes: Any) -> None:
        from onnx import helper

        value = next(self.names)
        self.nodes.append(helper.make_node(op, [self.end, *others], [value], name=name or value, **attributes))
        self.end = value

    def to(self, value: str) -> list[Any]:
        """The nodes, the last of which is the value of that name."""
        self._then("Identity")
        self.nodes[-1].output[0] = value
        return self.nodes


def _chains(writing: _Writing, node: Any) -> Callable[[str], _Chain]:
    """Begins chains of values named after what the node puts out."""
    names = (f"{node.output[0]}.product_{number}" for number in count())
    free = (name for name in names if name not in writing.taken)
    return lambda begin: _Chain(free, begin)


def _einsum(writing: _Writing, node: Any) -> list[Any] | None:
    equation = next((attribute.s.decode() for attribute in node.attribute if attribute.name == "equation"), "")
    terms, arrow, out = equation.replace(" ", "").partition("->")
    given = terms.split(",")
    if not arrow or len(given) != 2 or not all(term.isalpha() for term in (*given, out)):
        return None
    if any(len(set(term)) < len(term) for term in (*given, out)):
        return None
    at = next((i for i in (1, 0) if writing.weight(node.input[i], len(given[i]))), None)
    if at is None or node.input[1 - at] in writing.constants:
        return None
    weight, x, sizes = given[at], given[1 - at], writing.weight(node.input[at], len(given[at])) or []
    summed, new = [c for c in weight if c in x], [c for c in weight if c not in x]
    kept = [c for c in x if c not in summed]
    if not (summed and new and kept) or sorted(out) != sorted([*kept, *new]):
        return None
    size = dict(zip(weight, sizes, strict=True))
    begin = _chains(writing, node)
    matrix = begin(node.input[at])
    matrix.turned([weight.index(c) for c in (*summed, *new)])
    if len(weight) > 2:
        matrix.shaped([prod(size[c] for c in summed), prod(size[c] for c in new)])
    chain = begin(node.input[1 - at])
    chain.turned([x.index(c) for c in (*kept, *summed)])
    if len(summed) > 1:
        chain.shaped([*[0] * len(kept), -1])
    chain.product("MatMul", node, matrix.end)
    if len(new) > 1:
        chain.shaped([*[0] * len(kept), *(size[c] for c in new)])
    chain.turned([[*kept, *new].index(c) for c in out])
    return [*matrix.nodes, *chain.to(node.output[0])]


def _matmul(writing: _Writing, node: Any) -> list[Any] | None:
    first, second = node.input
    if first not in writing.constants or second in writing.constants or not writing.weight(first, 2):
        return None
    axes = len(writing.sizes(second))
    if axes < 2:
        return None
    order = [*range(axes - 2), axes - 1, axes - 2]
    begin = _chains(writing, node)
    matrix, chain = begin(first), begin(second)
    matrix.turned([1, 0])
    chain.turned(order)
    chain.product("MatMul", node, matrix.end)
    chain.turned(order)
    return [*matrix.nodes, *chain.to(node.output[0])]


def _gemm(writing: _Writing, node: Any) -> list[Any] | None:
    said = {attribute.name: attribute for attribute in node.attribute}
    alpha, beta = (said[name].f if name in said else 1.0 for name in ("alpha", "beta"))
    turned = [bool(said[name].i) if name in said else False for name in ("transA", "transB")]
    given, added = list(node.input[:2]), [name for name in node.input[2:] if name]
    at = 1 if given[1] in writing.constants else 0
    odd = at == 0 or alpha != 1 or (beta != 1 and added) or turned[0]
    sizes = writing.weight(given[at], 2) if odd and given[1 - at] not in writing.constants else None
    if sizes is None or (at == 0 and added and writing.weight(added[0], 2) != [sizes[turned[0]], 1]):
        return None
    begin = _chains(writing, node)
    matrix, chain, offset = begin(given[at]), begin(given[1 - at]), [begin(name) for name in added]
    swapped, (dtype, _) = [1, 0], writing.value(given[at])
    matrix.times(alpha, dtype)
    chain.turned(swapped if turned[1 - at] != (at == 0) else [0, 1])
    for one in offset:
        one.times(beta, dtype)
        one.turned(swapped if at == 0 else [0, 1])
    flip = turned[1] if at else not turned[0]
    chain.product("Gemm", node, matrix.end, *(one.end for one in offset), transB=int(flip))
    chain.turned([0, 1] if at else swapped)
    return [*matrix.nodes, *(each for one in offset for each in one.nodes), *chain.to(node.output[0])]


_RULES: dict[str, Callable[[_Writing, Any], list[Any] | None]] = {
    "Einsum": _einsum,
    "MatMul": _matmul,
    "Gemm": _gemm,
}
