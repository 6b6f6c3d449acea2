"""The operators of ONNX as functions of PyTorch: plain functions of tensors, attributes as keyword arguments.

Sizes travel as NumPy arrays of Python integers ("ints" below), not as tensors: what a network computes from its shapes
stays exact, costs nothing, and can be traced with a free batch. An operator, an attribute or a mode without a function
here raises Unhandled; `reference` then computes that node with ONNX's own, slow and right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from math import ceil, inf, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_core.graphs.recurrent_nodes import gru, lstm, rnn

Value = Any
"""A Tensor, or integers: a NumPy array of dtype object, of no or one axis."""

LARGEST_FILL = 2**28
"""Elements that a node of ONNX may make out of nothing (ConstantOfShape, Tile, Pad, ...), at most."""

_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_UP: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Unhandled(Exception):
    """This operator, or this use of it, has no function here."""


@dataclass(frozen=True, slots=True)
class Operator:
    """ints: numbers of the inputs that are taken as integers, and never turned into tensors.

    inputs: at most so many; attributes: those that it knows.
    """

    function: Callable[..., Any]
    inputs: float
    attributes: frozenset[str] = frozenset()
    ints: frozenset[int] = frozenset()

    @classmethod
    def of(cls, function: Callable[..., Any], ints: Sequence[int] = ()) -> Operator:
        """What a function's signature says: inputs by position, attributes by keyword only."""
        parameters = inspect.signature(function).parameters.values()
        many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        inputs = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        named = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        return cls(function, inf if many else inputs, named, frozenset(ints))


OPERATORS: dict[str, Operator] = {}
ON_INTS: dict[str, Operator] = {}


def run(op: str, given: Sequence[Value | None], attributes: dict[str, Any], outputs: int = 1) -> tuple[Value, ...]:
    """The outputs of one node; raises Unhandled where there is no function for it."""
    on_ints, operator = ON_INTS.get(op), OPERATORS.get(op)
    if on_ints is not None and all(isinstance(value, np.ndarray) for value in given):
        with suppress(Unhandled):
            return _called(on_ints, given, attributes, outputs)
    if operator is None:
        raise Unhandled(op)
    arguments = [v if i in operator.ints else tensor(v) for i, v in enumerate(given)]
    return _called(operator, arguments, attributes, outputs)


def _called(operator: Operator, given: Sequence[Any], attributes: dict[str, Any], outputs: int) -> tuple[Value, ...]:
    if len(given) > operator.inputs or not attributes.keys() <= operator.attributes:
        raise Unhandled("this use of it")
    values = operator.function(*given, **attributes)
    values = values if isinstance(values, tuple) else (values,)
    if len(values) < outputs:
        raise Unhandled("so many outputs")
    return values


def reference(node: bytes, opset: int, given: Sequence[Value | None]) -> tuple[Value, ...]:
    """The outputs of a serialised node by ONNX's reference implementation in NumPy."""
    proto, evaluator = _evaluator(node, opset)
    feeds = {name: tensor(v).detach().numpy() for name, v in zip(proto.input, given, strict=True) if name}
    outputs = iter(evaluator.run(None, feeds))
    return tuple(torch.as_tensor(np.asarray(next(outputs))) if name else None for name in proto.output)


def computable(node: bytes, opset: int) -> bool:
    """Whether the reference knows the operator."""
    try:
        _evaluator(node, opset)
    except Exception:  # what it raises is not declared
        return False
    return True


@lru_cache(maxsize=256)
def _evaluator(node: bytes, opset: int) -> tuple[Any, Any]:
    from onnx import NodeProto, helper
    from onnx.reference import ReferenceEvaluator

    proto = NodeProto.FromString(node)
    given, answers = (
        [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names) if name]
        for names in (proto.input, proto.output)
    )
    model = helper.make_model(
        helper.make_graph([proto], "node", given, answers), opset_imports=[helper.make_opsetid("", opset)]
    )
    return proto, ReferenceEvaluator(model)


def tensor(value: Value | None) -> Any:
    """Integers as an int64 tensor; everything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    return torch.tensor(value.tolist(), dtype=torch.int64)


def ints(value: Value | None) -> list[int]:
    """Integers as a list, from either form; [] for nothing."""
    if value is None:
        return []
    numbers = value.tolist()
    return list(numbers) if isinstance(numbers, list) else [numbers]


def integers(value: Any) -> np.ndarray:
    """A list of integers, or one, as integers travel."""
    return np.array(value, dtype=object)


def _op(*names: str, takes: Sequence[int] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def registered(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS.update(dict.fromkeys(names, Operator.of(function, takes)))
        return function

    return registered


def _on_ints(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def registered(function: Callable[..., Any]) -> Callable[..., Any]:
        ON_INTS[name] = Operator.of(function)
        return function

    return registered


def _bounded(shape: Sequence[int]) -> None:
    """Raise ValueError for too many numbers; while a network is traced nobody knows how many there will be."""
    size = prod(shape)
    if isinstance(size, int | float) and size > LARGEST_FILL:
        raise ValueError(f"a node makes {size:,} numbers, more than {LARGEST_FILL:,}")


# ---- one value at a time ---------------------------------------------------------------------------------------------

_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


for _name, _function in _ELEMENTWISE.items():
    OPERATORS[_name] = Operator(_function, 1)


@_op("Gelu")
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@_op("LeakyRelu")
def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@_op("Elu")
def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@_op("Celu")
def _celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@_op("Selu")
def _selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * F.elu(x, alpha)


@_op("ThresholdedRelu")
def _thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


@_op("HardSigmoid")
def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


@_op("PRelu")
def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


@_op("Clip")
def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


@_op("Dropout")
def _dropout(x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None, *, seed: int = 0) -> Any:
    if training is not None and bool(training):
        raise Unhandled("Dropout in training")
    return x, torch.ones_like(x, dtype=torch.bool)


@_op("Cast")
def _cast(x: Tensor, *, to: int = 1, saturate: int = 1, round_mode: str = "up") -> Tensor:
    dtype = dtype_of(to)
    if not dtype.is_floating_point and x.is_floating_point() and dtype is not torch.bool:
        x = x.trunc()
    return x.to(dtype)


@_op("CastLike")
def _cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(like.dtype)


@lru_cache(maxsize=32)
def dtype_of(data_type: int) -> torch.dtype:
    """PyTorch's word for a type of ONNX; raises Unhandled for one without."""
    from onnx import TensorProto

    names = {"FLOAT": "float32", "DOUBLE": "float64", "UINT16": "int32", "UINT32": "int64"}
    names |= {
        name: name.lower() for name in ("FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT16", "INT32", "INT64", "BOOL")
    }
    kind = TensorProto.DataType.Name(data_type) if data_type in TensorProto.DataType.values() else str(data_type)
    if kind not in names:
        raise Unhandled(f"the type {kind}")
    dtype: torch.dtype = getattr(torch, names[kind])
    return dtype


# ---- two values and more ---------------------------------------------------------------------------------------------


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "MatMul": torch.matmul,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": _power,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
for _name, _pair in _TWO.items():
    OPERATORS[_name] = Operator(_pair, 2)


@_op("Mod")
def _mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@_op("Sum")
def _sum(*values: Tensor) -> Tensor:
    return reduce(torch.add, values)


@_op("Mean")
def _mean(*values: Tensor) -> Tensor:
    return reduce(torch.add, values) / len(values)


@_op("Min")
def _min(*values: Tensor) -> Tensor:
    return reduce(torch.minimum, values)


@_op("Max")
def _max(*values: Tensor) -> Tensor:
    return reduce(torch.maximum, values)


@_op("Where")
def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition.bool(), a, b)


@_op("Einsum")
def _einsum(*values: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *values)


@_op("Gemm")
def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    product = alpha * ((a.mT if transA else a) @ (b.mT if transB else b))
    return product if c is None else product + beta * c


# ---- along axes ------------------------------------------------------------------------------------------------------


def _reduced(
    function: Callable[..., Tensor],
    x: Tensor,
    given: Value | None = None,
    *,
    axes: Sequence[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    along = ints(given) if given is not None else list(axes or [])
    if not along and noop_with_empty_axes:
        return x
    return function(x, tuple(along) or tuple(range(x.ndim)), bool(keepdims))


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}
for _name, _reduction in _REDUCTIONS.items():
    OPERATORS[_name] = Operator.of(partial(_reduced, _reduction), (1,))


@_op("ArgMax")
def _argmax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        raise Unhandled("select_last_index")
    return x.argmax(axis, keepdim=bool(keepdims))


@_op("ArgMin")
def _argmin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        raise Unhandled("select_last_index")
    return x.argmin(axis, keepdim=bool(keepdims))


@_op("TopK", takes=(1,))
def _topk(x: Tensor, k: Value, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:
    return tuple(torch.topk(x, ints(k)[0], axis, bool(largest), bool(sorted)))


@_op("Softmax")
def _softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return x.softmax(axis)


@_op("LogSoftmax")
def _log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return x.log_softmax(axis)


@_op("CumSum", takes=(1,))
def _cumsum(x: Tensor, axis: Value, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    if exclusive or reverse:
        raise Unhandled("CumSum backwards")
    return x.cumsum(ints(axis)[0])


# ---- shapes ----------------------------------------------------------------------------------------------------------


@_op("Shape")
def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> np.ndarray:
    return integers([*x.shape[start:end]])


@_op("Size")
def _size(x: Tensor) -> np.ndarray:
    return integers(prod(x.shape))


@_op("Reshape", takes=(1,))
def _reshape(x: Tensor, shape: Value, *, allowzero: int = 0) -> Tensor:
    sizes = ints(shape)
    if not allowzero:
        sizes = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


@_op("Flatten")
def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@_op("Transpose")
def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(*(perm if perm is not None else range(x.ndim - 1, -1, -1)))


@_op("Squeeze", takes=(1,))
def _squeeze(x: Tensor, axes: Value | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


@_op("Unsqueeze", takes=(1,))
def _unsqueeze(x: Tensor, axes: Value) -> Tensor:
    positions = ints(axes)
    for axis in sorted(axis % (x.ndim + len(positions)) for axis in positions):
        x = x.unsqueeze(axis)
    return x


@_op("Concat")
def _concat(*values: Tensor, axis: int) -> Tensor:
    _bounded([sum(value.numel() for value in values)])
    return torch.cat(values, axis)


@_op("Split", takes=(1,))
def _split(x: Tensor, split: Value | None = None, *, axis: int = 0, num_outputs: int = 0) -> Any:
    if split is not None:
        return torch.split_with_sizes(x, ints(split), axis)
    if not num_outputs:
        raise Unhandled("Split without a number")
    return torch.tensor_split(x, _cuts(x.shape[axis], num_outputs), axis)


def _cuts(size: int, parts: int) -> list[int]:
    """Where equal parts end; the last one may be smaller."""
    step = -(-size // parts)
    return [step * number for number in range(1, parts)]


@_op("Slice", takes=(1, 2, 3, 4))
def _slice(x: Tensor, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None) -> Tensor:
    begin, stop = ints(starts), ints(ends)
    along = ints(axes) or list(range(len(begin)))
    for axis, low, high, step in zip(along, begin, stop, ints(steps) or [1] * len(begin), strict=True):
        if step > 0:
            index: list[Any] = [slice(None)] * x.ndim
            index[axis] = slice(low, high, step)
            x = x[tuple(index)]
        else:
            places = torch.arange(x.shape[axis])[_backwards(x.shape[axis], low, high, step)]
            x = x.index_select(axis, places)
    return x


def _backwards(size: int, low: int, high: int, step: int) -> list[int]:
    low = min(low + size if low < 0 else low, size - 1)
    high = max(high + size if high < 0 else high, -1)
    return list(range(low, high, step))


@_op("Gather")
def _gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis % x.ndim
    rows = x.shape[axis]
    flat = torch.where(index < 0, index + rows, index).reshape(-1)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@_op("OneHot", takes=(1,))
def _one_hot(index: Tensor, depth: Value, values: Tensor, *, axis: int = -1) -> Tensor:
    many = int(ints(depth)[0])
    _bounded([index.numel(), many])
    place = axis % (index.ndim + 1)
    low, high = values[0], values[1]
    hit = index.remainder(many).unsqueeze(place) == torch.arange(many).reshape(-1, *[1] * (index.ndim - place))
    inside = ((index >= -many) & (index < many)).unsqueeze(place)
    return torch.where(hit & inside, high, low)


@_op("GatherElements")
def _gather_elements(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


_REDUCED = {"mul": "prod", "max": "amax", "min": "amin"}


@_op("ScatterElements")
def _scatter_elements(x: Tensor, index: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    places, values = torch.where(index < 0, index + x.shape[axis], index).long(), updates.to(x.dtype)
    if reduction == "none":
        return x.scatter(axis, places, values)
    if reduction == "add":
        return x.scatter_add(axis, places, values)
    return x.scatter_reduce(axis, places, values, _REDUCED[reduction])


@_op("ScatterND")
def _scatter_nd(x: Tensor, index: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    if reduction not in ("none", "add"):
        raise Unhandled(f"ScatterND, {reduction}")
    return x.index_put(tuple(index.long().unbind(-1)), updates.to(x.dtype), accumulate=reduction == "add")


@_op("Expand", takes=(1,))
def _expand(x: Tensor, shape: Value) -> Tensor:
    sizes = [1] * (x.ndim - len(ints(shape))) + ints(shape)
    have = [1] * (len(sizes) - x.ndim) + [*x.shape]
    return x.expand([m if isinstance(n, int) and n == 1 else n for n, m in zip(sizes, have, strict=True)])


@_op("Tile", takes=(1,))
def _tile(x: Tensor, repeats: Value) -> Tensor:
    times = ints(repeats)
    _bounded([n * k for n, k in zip(x.shape, times, strict=True)])
    return x.repeat(times)


@_op("ConstantOfShape", takes=(0,))
def _constant_of_shape(shape: Value, *, value: Tensor | None = None) -> Value:
    sizes = ints(shape)
    _bounded(sizes)
    if value is not None and value.dtype == torch.int64 and len(sizes) == 1 and sizes[0] <= 16:
        return integers([int(value)] * sizes[0])
    fill = torch.zeros(1) if value is None else value.reshape(1)
    return fill.repeat(sizes) if sizes else fill.reshape(())


@_op("Range", takes=(0, 1, 2))
def _range(start: Value, limit: Value, step: Value) -> Tensor:
    first, last, by = (value.item() for value in (start, limit, step))
    _bounded([max(0, ceil((last - first) / by))] if isinstance(last, int | float) else [])
    like = next((v.dtype for v in (start, limit, step) if isinstance(v, Tensor)), torch.int64)
    return torch.arange(first, last, by, dtype=like)


@_op("Trilu", takes=(1,))
def _trilu(x: Tensor, k: Value | None = None, *, upper: int = 1) -> Tensor:
    return (torch.triu if upper else torch.tril)(x, (ints(k) or [0])[0])


@_op("Pad", takes=(1, 2, 3))
def _pad(
    x: Tensor, pads: Value, value: Value | None = None, axes: Value | None = None, *, mode: str = "constant"
) -> Tensor:
    amounts = ints(pads)
    half = len(amounts) // 2
    both = [[0, 0] for _ in range(x.ndim)]
    for axis, low, high in zip(ints(axes) or range(x.ndim), amounts[:half], amounts[half:], strict=True):
        both[axis] = [low, high]
    _bounded([n + low + high for n, (low, high) in zip(x.shape, both, strict=True)])
    flat = [n for pair in reversed(both) for n in pair]
    if mode == "constant":
        return F.pad(x, flat, value=(ints(value) or [0])[0])
    while flat and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if len(flat) // 2 <= min(3, x.ndim - 2) and mode in names and min(flat, default=0) >= 0:
        return F.pad(x, flat + [0] * (2 * (x.ndim - 2) - len(flat)), mode=names[mode])
    for axis, (low, high) in enumerate(both):
        if low or high:
            x = x.index_select(axis, _places_beyond(x.shape[axis], low, high, mode))
    return x


def _places_beyond(size: int, low: int, high: int, mode: str) -> Tensor:
    """Which place of an axis stands at each place of the padded one; fewer than none are cut off."""
    places = torch.arange(-low, size + high)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    if mode == "reflect" and size > 1:
        return (size - 1) - ((size - 1) - places.remainder(2 * (size - 1))).abs()
    raise Unhandled(f"Pad, {mode}")


@_op("DepthToSpace")
def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    k = blocksize
    if mode == "CRD":
        return F.pixel_shuffle(x, k)
    return x.reshape(n, k, k, c // k**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // k**2, h * k, w * k)


@_op("SpaceToDepth")
def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    k = blocksize
    return x.reshape(n, c, h // k, k, w // k, k).permute(0, 3, 5, 1, 2, 4).reshape(n, c * k**2, h // k, w // k)


@_op("Resize", takes=(2, 3))
def _resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    antialias: int = 0,
) -> Tensor:
    if keep_aspect_ratio_policy != "stretch" or antialias:
        raise Unhandled("Resize that keeps proportions, or smooths")
    spatial = list(x.shape[2:])
    if sizes is not None:
        target = ints(sizes)[2:]
        factors = [t / n for t, n in zip(target, spatial, strict=True)]
    elif scales is not None:
        factors = [float(s) for s in ints(scales)[2:]]
        target = [int(n * s) for n, s in zip(spatial, factors, strict=True)]
    else:
        raise Unhandled("Resize without sizes")
    _bounded([*x.shape[:2], *target])
    exact = all(t == n * f for t, n, f in zip(target, spatial, factors, strict=True))
    how = coordinate_transformation_mode
    if mode == "nearest" and exact:
        floor = how == "asymmetric" and nearest_mode == "floor"
        whole = all(f >= 1 and f == int(f) for f in factors)  # then half pixels round to the same places
        if floor or (whole and how == "half_pixel" and nearest_mode.startswith("round")):
            return F.interpolate(x, size=target, mode="nearest")
    corners = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}.get(how)
    if mode == "linear" and exact and corners is not None and len(spatial) <= 3 and min(target) > 1:
        kind = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(spatial)]
        return F.interpolate(x, size=target, mode=kind, align_corners=corners)
    raise Unhandled(f"Resize, {mode}, {coordinate_transformation_mode}")


# ---- windows ---------------------------------------------------------------------------------------------------------


def window_pads(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """(before, after) for each spatial axis of an input of extent `size`; ValueError where that is beyond any input."""
    axes = len(kernel)
    if auto_pad == "VALID":
        return [(0, 0)] * axes
    if auto_pad == "NOTSET":
        given = list(pads or [0] * 2 * axes)
        return _bounded_pads(size, list(zip(given[:axes], given[axes:], strict=True)))
    sides = []
    for n, k, s, d in zip(size, kernel, strides or [1] * axes, dilations or [1] * axes, strict=True):
        total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        small = total // 2
        sides.append((small, total - small) if auto_pad == "SAME_UPPER" else (total - small, small))
    return _bounded_pads(size, sides)


def _bounded_pads(size: Sequence[int], pads: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pads as they are: a window may be as wide as what they make of an input, and is gone through whole."""
    _bounded([max(1, n + low + high) for n, (low, high) in zip(size, pads, strict=False)])
    return pads


def padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """The input with so many constants before and after each spatial axis."""
    flat = [n for pair in reversed(pads) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def even_pads(pads: Sequence[tuple[int, int]], kernel_shape: Sequence[int]) -> list[int] | None:
    """The pads as PyTorch's pooling takes them: the same before and after, at most half a window; None where not so."""
    even = all(low == high and 2 * low <= k for (low, high), k in zip(pads, kernel_shape, strict=True))
    return [low for low, _ in pads] if even else None


@_op("MaxPool")
def _max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> Tensor:
    strides, dilations = strides or [1] * len(kernel_shape), dilations or [1] * len(kernel_shape)
    both = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if len(kernel_shape) not in _POOL or not x.is_floating_point():
        raise Unhandled("MaxPool")
    if (low := even_pads(both, kernel_shape)) is not None:
        pooled: Tensor = _POOL[len(kernel_shape)](x, kernel_shape, strides, low, dilations, bool(ceil_mode))
        return pooled
    if ceil_mode:
        raise Unhandled("MaxPool")
    pooled = _POOL[len(kernel_shape)](padded(x, both, float("-inf")), kernel_shape, strides, 0, dilations)
    return pooled


@_op("AveragePool")
def _average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Tensor:
    strides = strides or [1] * len(kernel_shape)
    both = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    pool = _MEAN.get(len(kernel_shape))
    if pool is None or any(n != 1 for n in dilations or ()):
        raise Unhandled("AveragePool")
    if (low := even_pads(both, kernel_shape)) is not None:
        return pool(x, kernel_shape, strides, low, bool(ceil_mode), bool(count_include_pad))
    if ceil_mode:
        raise Unhandled("AveragePool")
    total = pool(padded(x, both), kernel_shape, strides)
    return total if count_include_pad else total / pool(padded(torch.ones_like(x), both), kernel_shape, strides)


@_op("GlobalAveragePool")
def _global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@_op("GlobalMaxPool")
def _global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@_op("Conv")
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
) -> Tensor:
    kernel = weight.shape[2:]
    if len(kernel) not in _CONV:
        raise Unhandled("Conv")
    ones = [1] * len(kernel)
    both = window_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    return _CONV[len(kernel)](padded(x, both), weight, bias, strides or ones, 0, dilations or ones, group)


@_op("ConvTranspose")
def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
) -> Tensor:
    kernel = weight.shape[2:]
    plain = auto_pad in ("NOTSET", "VALID") and output_shape is None and not any(output_padding or ())
    if len(kernel) not in _UP or not plain:
        raise Unhandled("ConvTranspose")
    ones = [1] * len(kernel)
    whole: Tensor = _UP[len(kernel)](x, weight, bias, strides or ones, 0, 0, group, dilations or ones)
    both = window_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    for axis, (low, high) in enumerate(both, start=2):
        whole = whole.narrow(axis, low, whole.shape[axis] - low - high)
    return whole


# ---- normalisation and attention -------------------------------------------------------------------------------------


@_op("BatchNormalization")
def _batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    if training_mode:
        raise Unhandled("BatchNormalization in training")
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


@_op("InstanceNormalization")
def _instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@_op("LayerNormalization")
def _layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    inside = x.shape[axis:]
    normal = F.layer_norm(x, inside, eps=epsilon) * scale
    return normal if bias is None else normal + bias


@_op("RMSNormalization")
def _rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.rms_norm(x, x.shape[axis:], eps=epsilon) * scale


@_op("GroupNormalization")
def _group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    if len(scale) != x.shape[1]:  # one number per group, as opset 18 had it
        scale, bias = (v.repeat_interleave(x.shape[1] // num_groups) for v in (scale, bias))
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@_op("Attention")
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    qk_matmul_output_mode: int = 0,
) -> Tensor:
    if q.ndim != 4 or softcap or (is_causal and mask is not None):
        raise Unhandled("Attention")
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=bool(is_causal), scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


# ---- recurrent -------------------------------------------------------------------------------------------------------

for _name, _recurrent in (("LSTM", lstm), ("GRU", gru), ("RNN", rnn)):
    OPERATORS[_name] = Operator.of(_recurrent)


# ---- spectra ---------------------------------------------------------------------------------------------------------


@_op("STFT", takes=(1, 3))
def _stft(
    signal: Tensor, step: Value, window: Tensor | None = None, length: Value | None = None, *, onesided: int = 1
) -> Tensor:
    """signal (N, samples[, 1 or 2]) -> (N, frames, frequencies, 2)."""
    if window is None and length is None:
        raise Unhandled("STFT without a length")
    size = ints(length)[0] if length is not None else len(window if window is not None else ())
    whole = signal if signal.ndim == 2 else _complex(signal)
    frames = whole.unfold(1, size, ints(step)[0])
    if window is not None:
        if len(window) != size:
            raise Unhandled("STFT with a window of another length")
        frames = frames * window
    half = onesided and not frames.is_complex()
    return torch.view_as_real(torch.fft.rfft(frames) if half else torch.fft.fft(frames))


@_op("DFT", takes=(1, 2))
def _dft(
    x: Tensor,
    length: Value | None = None,
    along: Value | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """x (..., 1 or 2) -> (..., 2), along an axis other than the last."""
    place = ints(along)[0] if along is not None else axis
    place = place % x.ndim
    size = ints(length)[0] if length is not None else None
    given = _complex(x)
    if onesided and inverse:
        raise Unhandled("DFT back to real numbers")
    if onesided:
        return torch.view_as_real(torch.fft.rfft(given.real if given.is_complex() else given, size, place))
    return torch.view_as_real((torch.fft.ifft if inverse else torch.fft.fft)(given, size, place))


def _complex(x: Tensor) -> Tensor:
    """Numbers whose last axis holds a real part, or both parts."""
    return x[..., 0] if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())


# ---- sequences -------------------------------------------------------------------------------------------------------


@_op("SequenceEmpty")
def _sequence_empty(*, dtype: int = 1) -> list[Tensor]:
    return []


@_op("SequenceConstruct")
def _sequence_construct(*values: Tensor) -> list[Tensor]:
    return list(values)


@_op("SequenceInsert", takes=(2,))
def _sequence_insert(values: list[Tensor], value: Tensor, place: Value | None = None) -> list[Tensor]:
    at = len(values) if place is None else ints(place)[0]
    _bounded([sum(part.numel() for part in (*values, value))])
    return [*values[:at], value, *values[at:]]


@_op("SequenceErase", takes=(1,))
def _sequence_erase(values: list[Tensor], place: Value | None = None) -> list[Tensor]:
    at = (len(values) - 1 if place is None else ints(place)[0]) % len(values)
    return [*values[:at], *values[at + 1 :]]


@_op("SequenceAt", takes=(1,))
def _sequence_at(values: list[Tensor], place: Value) -> Tensor:
    return values[ints(place)[0]]


@_op("SequenceLength")
def _sequence_length(values: list[Tensor]) -> np.ndarray:
    return integers(len(values))


@_op("ConcatFromSequence")
def _concat_from_sequence(values: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    _bounded([sum(value.numel() for value in values)])
    return torch.stack(values, axis) if new_axis else torch.cat(values, axis)


@_op("SplitToSequence", takes=(1,))
def _split_to_sequence(x: Tensor, split: Value | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    if split is None:
        return [part if keepdims else part.squeeze(axis) for part in torch.split(x, 1, axis)]
    sizes = ints(split)
    return list(torch.split(x, sizes if tensor(split).ndim else sizes[0], axis))


# ---- integers ------------------------------------------------------------------------------------------------------


@_on_ints("Identity")
def _same_ints(x: np.ndarray) -> np.ndarray:
    return x


@_on_ints("Cast")
def _cast_ints(x: np.ndarray, *, to: int = 7, saturate: int = 1, round_mode: str = "up") -> np.ndarray:
    if dtype_of(to) not in (torch.int32, torch.int64):  # TensorFlow computes sizes in the first
        raise Unhandled("Cast")
    return x


@_on_ints("Gather")
def _gather_ints(x: np.ndarray, index: np.ndarray, *, axis: int = 0) -> np.ndarray:
    return integers(np.take(x, index.astype(np.int64), axis=axis).tolist() if index.ndim else x[int(index)])


@_on_ints("Slice")
def _slice_ints(
    x: np.ndarray, starts: np.ndarray, ends: np.ndarray, axes: Value | None = None, steps: Value | None = None
) -> np.ndarray:
    return x[slice(ints(starts)[0], ints(ends)[0], (ints(steps) or [1])[0])]


@_on_ints("Concat")
def _concat_ints(*values: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate(values)


@_on_ints("Unsqueeze")
def _unsqueeze_ints(x: np.ndarray, axes: np.ndarray) -> np.ndarray:
    if x.ndim:
        raise Unhandled("Unsqueeze")
    return x.reshape(1)


@_on_ints("Squeeze")
def _squeeze_ints(x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    return x.reshape(())


@_on_ints("Reshape")
def _reshape_ints(x: np.ndarray, shape: np.ndarray, *, allowzero: int = 0) -> np.ndarray:
    if len(ints(shape)) > 1:
        raise Unhandled("Reshape")
    return x.reshape(ints(shape))


@_on_ints("Where")
def _where_ints(condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(condition.astype(bool), a, b), dtype=object)


@_on_ints("ReduceProd")
def _product_ints(
    x: np.ndarray, axes: Value | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> np.ndarray:
    return integers([prod(x.tolist())] if keepdims else prod(x.tolist()))


_INT_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a // b if a * b >= 0 else -(-a // b),
    "Equal": lambda a, b: int(a == b),
    "Min": lambda a, b: a if a < b else b,
    "Max": lambda a, b: a if a > b else b,
    "Mod": lambda a, b: a % b,
}


def _each(function: Callable[[Any, Any], Any], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.frompyfunc(function, 2, 1)(a, b), dtype=object)


for _name, _arithmetic in _INT_ARITHMETIC.items():
    ON_INTS[_name] = Operator(partial(_each, _arithmetic), 2)
