"""Graphs of ONNX as they are found, brought to the form that is read here: opset, integers as floats, branches decided.

Nothing of this is written back where the person's own graph can be kept: `exports._onnx_surgery` looks for that first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowrank_core.errors import InvalidModel

LOWEST_OPSET = 7
"""The oldest standard operators that ONNX's own converter takes."""

READ_OPSET = 13
"""What older graphs are converted to: the lowest that is read, so that as little as possible changes."""

READ_FORMAT = 7
"""The version of the file format that came with it."""


def converted(model: Any) -> Any:
    """The same graph in the lowest opset that is read; raises whatever ONNX's converter does."""
    from onnx import version_converter

    made = version_converter.convert_version(model, READ_OPSET)
    made.ir_version = max(made.ir_version, READ_FORMAT)  # older ones list every stored tensor among the inputs
    return made


def decided(model: Any) -> Any:
    """The same graph with each `If` whose condition is a constant replaced by the branch that is taken."""
    import onnx_ir
    from onnxscript.optimizer import fold_constants

    graph = onnx_ir.from_proto(model)
    fold_constants(graph, onnx_shape_inference=False)
    return onnx_ir.to_proto(graph)


# ---- quantised graphs as float ones ----------------------------------------------------------------------------------

QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}
QUANTISED |= {"ConvInteger", "MatMulInteger"}
"""Operators of ONNX that compute with integers."""

MICROSOFT = "com.microsoft"
"""The domain of what ONNX Runtime's own quantisation writes."""


def is_quantised(node: Any) -> bool:
    """Whether a node computes with integers and `as_float` knows what it stands for."""
    return (node.domain in ("", "ai.onnx") and node.op_type in QUANTISED) or (
        node.domain == MICROSOFT and node.op_type in _RUNTIMES
    )


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A stored tensor as (integers - zero) times scale, as DequantizeLinear takes them along an axis."""

    integers: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    axis: int

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return sum(part.nbytes for part in (self.integers, self.scale, self.zero) if part is not None)

    def floats(self) -> np.ndarray:
        """What they stand for."""
        zero = np.zeros(()) if self.zero is None else self.zero
        return _scaled(self.integers, self.scale, zero, self.axis)


def as_float(model: Any, packed: dict[str, Packed]) -> Any:
    """The network that a quantised graph approximates: weights times their scales, answers between their bounds.

    packed: is given the integers that each stored tensor comes from.

    Where an activation was rounded to integers it is only held within what they can express, which a quantiser may
    have used in place of a ReLU. Raises InvalidModel for weights or scales that are computed from the inputs.
    """
    graph = model.graph
    reader = _Floats({i.name: _array(i) for i in graph.initializer})
    nodes = [part for node in graph.node for part in reader.read(node)]
    from onnx import TensorProto, numpy_helper

    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    kept = [i for i in graph.initializer if i.name in used and i.name not in reader.made]
    made = [numpy_helper.from_array(value, name) for name, value in reader.made.items() if name in used]
    for part, content in ((graph.node, nodes), (graph.initializer, [*kept, *made])):
        copies = [type(one).FromString(one.SerializeToString()) for one in content]
        del part[:]
        part.extend(copies)
    del graph.value_info[:]
    packed.update((name, each) for name, each in reader.packed.items() if name in used)
    for output in graph.output:
        if output.name in reader.floats:
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def _array(proto: Any) -> np.ndarray:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(proto))


@dataclass(slots=True)
class _Floats:
    """Goes through the nodes in order. floats: values that were integers in the file and are not any more."""

    known: dict[str, np.ndarray]
    made: dict[str, np.ndarray] = field(default_factory=dict)
    floats: set[str] = field(default_factory=set)
    packed: dict[str, Packed] = field(default_factory=dict)

    def read(self, node: Any) -> Iterator[Any]:
        """The nodes that a node becomes."""
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            value = next(iter(node.attribute))
            if value.name == "value":
                self.known[node.output[0]] = _array(value.t)
        if is_quantised(node):
            rule = _ONNX[node.op_type] if node.domain != MICROSOFT else _RUNTIMES[node.op_type]
            yield from rule(self, node)
        else:
            if self.floats & set(node.input):
                self.floats.update(name for name in node.output if name)
            yield node

    def make(self, name: str, value: Any) -> str:
        """A constant of the new graph, under a name that it had, or one of its own."""
        self.made[name] = self.known[name] = np.asarray(value)
        return name

    def constant(self, node: Any, number: int, default: Any = None) -> np.ndarray:
        """An input that must not depend on the data."""
        name = node.input[number] if len(node.input) > number else ""
        if not name and default is not None:
            return np.asarray(default)
        if name not in self.known:
            raise InvalidModel(
                f"node {node.name or node.output[0]!r} ({node.op_type}) takes its {_th(number)} input from the data; "
                "scales, zero points and weights must be constants; give the float model."
            )
        return self.known[name]

    def scaled(self, node: Any, at: tuple[int, int, int], name: str, axis: int = -1) -> str:
        """Integers of a constant as floats under that name: (q - zero point) times scale. axis: of one scale for each
        channel.
        """
        q, scale = self.constant(node, at[0]), self.constant(node, at[1])
        zero = self.constant(node, at[2], 0)
        return self.unpacked(name, q, scale, zero, axis)

    def unpacked(self, name: str, q: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> str:
        """The same of arrays; what DequantizeLinear of opset 13 can write again is remembered."""
        value = _scaled(q, scale, zero, axis)
        flat = scale.size == 1 or scale.ndim == 1
        plain = q.dtype in (np.int8, np.uint8) or (q.dtype == np.int32 and not zero.any())
        if flat and plain and scale.dtype == np.float32:
            channels = max(scale.size, zero.size)
            shape = () if channels == 1 else (channels,)
            each, zeros = (np.broadcast_to(v.reshape(-1), (channels,)).reshape(shape) for v in (scale, zero))
            kept = None if q.dtype == np.int32 else zeros.astype(q.dtype)
            self.packed[name] = Packed(q, each, kept, axis % max(q.ndim, 1))
        return self.make(name, value)

    def bounded(self, x: str, y: str, scale: np.ndarray, zero: np.ndarray) -> Iterator[Any]:
        """x held within what the integers of `y` can express."""
        from onnx import helper

        self.floats.add(y)
        if scale.size != 1 or zero.dtype.kind not in "iu":
            yield helper.make_node("Identity", [x], [y], name=f"{y}.as_float")
            return
        info, steps = np.iinfo(zero.dtype), float(scale.reshape(-1)[0])
        low, high = ((limit - int(zero.reshape(-1)[0])) * steps for limit in (info.min, info.max))
        ends = [self.make(f"{y}.{end}", np.float32(v)) for end, v in (("lowest", low), ("highest", high))]
        yield helper.make_node("Clip", [x, *ends], [y], name=f"{y}.as_float")


def _th(number: int) -> str:
    return f"{number + 1}{ {0: 'st', 1: 'nd', 2: 'rd'}.get(number, 'th') }"


def _scaled(q: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> np.ndarray:
    """(q - zero) times scale, each along the axis."""
    return np.asarray((q.astype(np.float32) - _along(zero, q, axis)) * _along(scale, q, axis))


def _along(scale: np.ndarray, q: np.ndarray, axis: int) -> np.ndarray:
    """Scales or zero points, spread along the axis of a tensor whose channels they belong to."""
    scale = scale.astype(np.float32)
    if scale.size == 1:
        return scale.reshape(())
    if scale.ndim == q.ndim:  # one for each block
        for i, (whole, parts) in enumerate(zip(q.shape, scale.shape, strict=True)):
            scale = np.repeat(scale, -(-whole // parts), axis=i).take(range(whole), axis=i)
        return scale
    shape = [1] * q.ndim
    shape[axis] = scale.size
    return scale.reshape(shape)


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _quantise(reader: _Floats, node: Any) -> Iterator[Any]:
    x, y = node.input[0], node.output[0]
    scale, axis = reader.constant(node, 1), _attribute(node, "axis", 1)
    zero = reader.constant(node, 2, np.uint8(0))
    if x in reader.known and zero.dtype.kind in "iu":
        info, value = np.iinfo(zero.dtype), reader.known[x].astype(np.float32)
        steps = np.rint(value / _along(scale, value, axis)) + _along(zero, value, axis)
        reader.make(y, np.clip(steps, info.min, info.max).astype(zero.dtype))
        return
    yield from reader.bounded(x, y, scale, zero)


def _dequantise(reader: _Floats, node: Any) -> Iterator[Any]:
    from onnx import helper

    x, y, axis = node.input[0], node.output[0], _attribute(node, "axis", 1)
    if x in reader.known:
        reader.scaled(node, (0, 1, 2), y, axis)
    elif x in reader.floats:
        yield helper.make_node("Identity", [x], [y], name=f"{y}.as_float")
    else:  # integers that the network is given
        scale, zero = reader.constant(node, 1), reader.constant(node, 2, 0)
        if scale.size != 1:
            raise InvalidModel(f"node {node.name or y!r} scales the network's input by channels; give the float model.")
        zero_name = reader.make(f"{y}.zero", np.float32(zero.reshape(-1)[0]))
        scale_name = reader.make(f"{y}.scale", np.float32(scale.reshape(-1)[0]))
        yield helper.make_node("Cast", [x], [f"{y}.cast"], name=f"{y}.cast", to=1)
        yield helper.make_node("Sub", [f"{y}.cast", zero_name], [f"{y}.centred"], name=f"{y}.centred")
        yield helper.make_node("Mul", [f"{y}.centred", scale_name], [y], name=f"{y}.as_float")


def _dynamic(reader: _Floats, node: Any) -> Iterator[Any]:
    """The scale of the moment cancels: x stays as it is, times one."""
    from onnx import helper

    y, scale, zero = node.output
    reader.floats.add(y)
    reader.make(scale, np.float32(1))
    reader.make(zero, np.float32(0))
    yield helper.make_node("Identity", [node.input[0]], [y], name=f"{y}.as_float")


def _integers(op: str) -> Callable[[_Floats, Any], Iterator[Any]]:
    """MatMulInteger, ConvInteger: products of what is left when the zero points are taken off."""

    def rule(reader: _Floats, node: Any) -> Iterator[Any]:
        from onnx import helper

        weight, y = reader.constant(node, 1), node.output[0]
        zero = reader.constant(node, 3, 0)
        if node.input[0] not in reader.floats and reader.constant(node, 2, 0).any():
            raise InvalidModel(_as_they_come(node))
        reader.floats.add(y)
        axis = 0 if op == "Conv" else weight.ndim - 1
        name = reader.unpacked(f"{y}.weight", weight, np.ones(1, np.float32), zero, axis)
        made = helper.make_node(op, [node.input[0], name], [y], name=node.name or y)
        made.attribute.extend(node.attribute)
        yield made

    return rule


def _qlinear(op: str, weight_axis: int) -> Callable[[_Floats, Any], Iterator[Any]]:
    """QLinearConv, QLinearMatMul: x, its scale and zero; weight, its scale and zero; those of y; a bias in int32."""

    def rule(reader: _Floats, node: Any) -> Iterator[Any]:
        from onnx import helper

        y = node.output[0]
        inputs = [_operand(reader, node, (at, at + 1, at + 2), axis) for at, axis in ((0, 1), (3, weight_axis))]
        if len(node.input) > 8 and node.input[8]:
            scale = reader.constant(node, 1).astype(np.float32) * reader.constant(node, 4).astype(np.float32)
            bias = reader.constant(node, 8).astype(np.float32)
            inputs.append(reader.make(f"{y}.bias", bias * scale.reshape(-1)))
        made = helper.make_node(op, inputs, [f"{y}.free"], name=node.name or y)
        made.attribute.extend(node.attribute)
        yield made
        yield from reader.bounded(f"{y}.free", y, reader.constant(node, 6), reader.constant(node, 7, np.uint8(0)))

    return rule


def _operand(reader: _Floats, node: Any, at: tuple[int, int, int], axis: int) -> str:
    """The name of an operand as floats."""
    name: str = node.input[at[0]]
    if name in reader.known:
        return reader.scaled(node, at, f"{node.output[0]}.{at[0]}", axis)
    if name not in reader.floats:
        raise InvalidModel(_as_they_come(node))
    return name


def _as_they_come(node: Any) -> str:
    return f"node {node.name or node.output[0]!r} ({node.op_type}) takes integers as they come; give the float model."


def _pairwise(op: str, operands: int) -> Callable[[_Floats, Any], Iterator[Any]]:
    """What ONNX Runtime computes on integers: each operand with its scale and zero, then those of y."""

    def rule(reader: _Floats, node: Any) -> Iterator[Any]:
        from onnx import helper

        y = node.output[0]
        given = [_operand(reader, node, (3 * i, 3 * i + 1, 3 * i + 2), 1) for i in range(operands)]
        made = helper.make_node(op, given, [f"{y}.free"], name=node.name or y)
        made.attribute.extend(a for a in node.attribute if a.name not in ("channels_last",))
        if _attribute(node, "channels_last", 0):
            raise InvalidModel(f"node {node.name or y!r} keeps its channels last; give the float model.")
        yield made
        scale, zero = reader.constant(node, 3 * operands), reader.constant(node, 3 * operands + 1, np.uint8(0))
        yield from reader.bounded(f"{y}.free", y, scale, zero)

    return rule


def _joined(reader: _Floats, node: Any) -> Iterator[Any]:
    """QLinearConcat: those of y first, then each operand with its scale and zero."""
    from onnx import helper

    y = node.output[0]
    given = [_operand(reader, node, (at, at + 1, at + 2), 1) for at in range(2, len(node.input), 3)]
    made = helper.make_node("Concat", given, [f"{y}.free"], name=node.name or y)
    made.attribute.extend(node.attribute)
    yield made
    yield from reader.bounded(f"{y}.free", y, reader.constant(node, 0), reader.constant(node, 1))


def _product(reader: _Floats, node: Any) -> Iterator[Any]:
    """QGemm: a and b, each with scale and zero; c in int32; scale and zero of y, or none where y is float."""
    from onnx import helper

    y, flags = node.output[0], {a.name: a for a in node.attribute}
    flipped = _attribute(node, "transB", 0)
    given = [_operand(reader, node, (0, 1, 2), 1), _operand(reader, node, (3, 4, 5), 0 if flipped else 1)]
    if len(node.input) > 6 and node.input[6]:
        scale = reader.constant(node, 1).astype(np.float32) * reader.constant(node, 4).astype(np.float32)
        given.append(reader.make(f"{y}.bias", reader.constant(node, 6).astype(np.float32) * scale.reshape(-1)))
    rounded = len(node.input) > 7 and node.input[7]
    made = helper.make_node("Gemm", given, [f"{y}.free" if rounded else y], name=node.name or y)
    made.attribute.extend(flags.values())
    yield made
    if rounded:
        yield from reader.bounded(f"{y}.free", y, reader.constant(node, 7), reader.constant(node, 8, np.uint8(0)))


def _lstm(reader: _Floats, node: Any) -> Iterator[Any]:
    """DynamicQuantizeLSTM: an LSTM whose weights are (directions, inputs, 4 hidden), with a scale and zero for each."""
    from onnx import helper

    y = next(name for name in node.output if name)
    inputs = list(node.input[:8])
    for number, at in ((1, (1, 8, 9)), (2, (2, 10, 11))):
        q = reader.constant(node, at[0])
        scale, zero = (reader.constant(node, i, 0).astype(np.float32) for i in at[1:])
        scale, zero = (v.reshape(len(q), 1, -1) if v.size > 1 else v for v in (scale, zero))
        value = ((q.astype(np.float32) - zero) * scale).transpose(0, 2, 1)
        inputs[number] = reader.make(f"{y}.{number}", np.ascontiguousarray(value))
    while inputs and not inputs[-1]:
        inputs.pop()
    made = helper.make_node("LSTM", inputs, list(node.output), name=node.name or y)
    made.attribute.extend(node.attribute)
    yield made


_ONNX: dict[str, Callable[[_Floats, Any], Iterator[Any]]] = {
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _integers("MatMul"),
    "ConvInteger": _integers("Conv"),
    "QLinearMatMul": _qlinear("MatMul", 1),
    "QLinearConv": _qlinear("Conv", 0),
}

_RUNTIMES: dict[str, Callable[[_Floats, Any], Iterator[Any]]] = {
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
    "QLinearAdd": _pairwise("Add", 2),
    "QLinearMul": _pairwise("Mul", 2),
    "QLinearSigmoid": _pairwise("Sigmoid", 1),
    "QLinearLeakyRelu": _pairwise("LeakyRelu", 1),
    "QLinearGlobalAveragePool": _pairwise("GlobalAveragePool", 1),
    "QLinearAveragePool": _pairwise("AveragePool", 1),
    "QLinearSoftmax": _pairwise("Softmax", 1),
    "QLinearConcat": _joined,
    "QGemm": _product,
    "DynamicQuantizeLSTM": _lstm,
}
