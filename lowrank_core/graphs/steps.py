"""A network as a list of plain steps on flat arrays of fixed sizes: what a program without a runtime carries out.

It is read from the graph of `torch.export` for one sample. What only moves numbers (views, permutations, slices,
padding, concatenation) is one kind of step, whatever PyTorch calls it: where each number goes is found by sending the
numbers 0, 1, 2 ... through the operator itself.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from lowrank_core.errors import InvalidModel
from lowrank_core.graphs.exporting import layer_of, program_of_one
from lowrank_core.layers.data import BatchAxes, Inputs, first_axes
from lowrank_core.layers.spec import inputs_first

WHOLE = (
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool1d", "conv1d", "conv2d",
    "hardsigmoid", "hardswish", "layer_norm", "linear", "matmul", "max_pool1d", "max_pool2d", "mish",
    "scaled_dot_product_attention", "silu", "softmax", "softplus", "log_softmax", "group_norm", "relu6",
    "upsample_nearest2d", "pixel_shuffle", "rms_norm",
)  # fmt: skip
"""Operators that are steps, or end as a few, by their names in `torch.ops.aten`; all others are taken apart."""

MOVES = {
    "_unsafe_view", "alias", "as_strided", "channel_shuffle", "chunk", "clone", "contiguous", "detach", "diagonal",
    "dropout", "expand", "flatten", "flip", "index", "index_select", "lift_fresh_copy", "movedim", "narrow",
    "native_channel_shuffle", "permute", "pixel_shuffle", "pixel_unshuffle", "reflection_pad1d", "reflection_pad2d",
    "repeat", "replication_pad1d", "replication_pad2d", "reshape", "roll", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "tile", "transpose", "unbind", "unflatten", "unfold", "unsqueeze",
    "upsample_nearest1d", "upsample_nearest2d", "view",
}  # fmt: skip
"""Operators that put each number of one tensor somewhere else, or nowhere."""

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs, "cos": torch.cos, "erf": torch.erf, "exp": torch.exp, "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish,
    "log": torch.log, "mish": F.mish, "neg": torch.neg, "reciprocal": torch.reciprocal, "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid, "silu": F.silu, "sin": torch.sin, "softplus": F.softplus, "sqrt": torch.sqrt,
    "square": torch.square, "tanh": torch.tanh,
}  # fmt: skip
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "div": torch.div, "maximum": torch.maximum, "minimum": torch.minimum, "mul": torch.mul,
    "sub": torch.sub,
}  # fmt: skip
MOST_DIMS = 4
"""Axes of a move in loops; one that needs more takes a table of places."""


@dataclass(frozen=True, slots=True)
class Step:
    """One loop over flat arrays. inputs: names of values and constants; args: plain numbers; layer: whose it is.

    low, high: what its results are clamped to.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    args: Mapping[str, Any]
    layer: str = ""
    low: float = -inf
    high: float = inf

    @property
    def place(self) -> str:
        """The layer as a message names it."""
        return f"layer {self.layer!r}" if self.layer else "its forward()"


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output: its name, the value that it is, its shape for one sample, and the axis of the batch."""

    name: str
    value: str
    shape: tuple[int, ...]
    axis: int = 0
    integer: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """All steps in order. sizes: numbers in each value; constants: flat, by name, with what they are part of."""

    steps: tuple[Step, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sizes: Mapping[str, int]
    constants: Mapping[str, Tensor]


def steps_of(model: nn.Module, inputs: Inputs, axes: BatchAxes | None, names: tuple[str, ...]) -> Steps:
    """The steps of a network in eval mode, for one sample. names: of its outputs.

    Raises InvalidModel where it has no graph, or with the layer and the operator that is no step.

    >>> found = steps_of(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(1, 3), None, ("output",))
    >>> [(step.op, step.layer, step.low) for step in found.steps]
    [('linear', '0', 0.0)]
    """
    axes = axes or first_axes(inputs)
    if None in axes.inputs or None in axes.outputs or any(axes.apart):
        raise InvalidModel("plain C takes one sample at a time, and this network has an input or output without it.")
    program = program_of_one(model, inputs, axes, WHOLE)
    reading = _Reading(program)
    reading.read()
    called = list(inputs) if isinstance(inputs, dict) else [f"input_{n}" for n in range(len(reading.inputs))]
    called = ["input"] if called == ["input_0"] else called
    placed = zip(reading.inputs, called, axes.inputs, strict=True)
    taken = tuple(replace(port, name=name, axis=axis or 0) for port, name, axis in placed)
    given = tuple(
        Port(name, value, shape, axis or 0)
        for name, (value, shape), axis in zip(names, reading.outputs, axes.outputs or (0,) * len(names), strict=True)
    )
    return _folded(Steps(tuple(reading.steps), taken, given, reading.sizes, reading.constants))


@dataclass(frozen=True, slots=True)
class _Value:
    """A flat array, seen in a shape. index: whether it holds whole numbers."""

    name: str
    shape: tuple[int, ...]
    index: bool = False


class _Unknown(Exception):
    """An operator, or a form of it, that is no step."""


@dataclass
class _Reading:
    program: Any
    steps: list[Step] = field(default_factory=list)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[tuple[torch.dtype, bytes], str] = field(default_factory=dict)
    layer: str = ""

    def read(self) -> None:
        signature, found = self.program.graph_signature, dict[str, Any]()
        weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        weights |= signature.inputs_to_lifted_tensor_constants
        state = {**self.program.constants, **self.program.state_dict}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in weights:
                    found[node.name] = state[weights[node.name]].detach()
                else:
                    found[node.name] = self._input(node)
            elif node.op == "output":
                for leaf in tree_leaves(node.args[0]):
                    self.outputs.append(self._output(found[leaf.name]))
            else:
                self.layer = layer_of(node)
                args = tree_map(
                    lambda a: found[a.name] if isinstance(a, torch.fx.Node) else a, (node.args, node.kwargs)
                )
                try:
                    found[node.name] = self._taken(node, *args)
                except _Unknown as error:
                    where = f"layer {self.layer!r}" if self.layer else "its forward()"
                    raise InvalidModel(
                        f"{where} calls {_name(node.target)}{error}, which plain C has no loop for here; ONNX and .pt2 "
                        "hold it."
                    ) from None

    def _input(self, node: Any) -> _Value | None:
        meta = node.meta.get("val")
        if not isinstance(meta, Tensor):
            return None
        whole = not meta.is_floating_point()
        value = _Value(f"in{len(self.inputs)}", tuple(map(int, meta.shape)), whole)
        name = str(node.name)
        self.inputs.append(Port(name, value.name, value.shape, 0, whole))
        self.sizes[value.name] = prod(value.shape)
        return value

    def _output(self, value: Any) -> tuple[str, tuple[int, ...]]:
        value = self.value(value)
        if value.index:
            raise InvalidModel("an output of whole numbers is not written as plain C; ONNX and .pt2 hold it.")
        return value.name, value.shape

    def _taken(self, node: Any, args: Any, kwargs: Any) -> Any:
        if node.target is operator.getitem:
            return args[0][args[1]]
        if not any(isinstance(leaf, _Value) for leaf in tree_leaves((args, kwargs))):
            return node.target(*args, **kwargs)  # of constants alone
        name, schema = _name(node.target), node.target._schema.arguments
        if name.startswith("_assert"):
            return None  # what the exporter holds to be true, which computes nothing
        given = {argument.name: value for argument, value in zip(schema, args, strict=False)} | kwargs
        given = {a.name: a.default_value for a in schema if a.has_default_value()} | given
        if name in MOVES:
            return self._moved(node.target, args, kwargs)
        own = getattr(self, f"on_{name}", None)
        if own is not None:
            return own(**{"self_" if key == "self" else key: value for key, value in given.items()})
        if name in UNARY:
            return self.step("unary", (self.value(args[0]),), args[0].shape, of=name)
        if name in BINARY:
            return self._binary(name, args[0], args[1], given.get("alpha", 1))
        raise _Unknown("")

    # ---- values ------------------------------------------------------------------------------------------------------

    def constant(self, tensor: Tensor) -> _Value:
        """A constant as a value; the same numbers once."""
        whole = not tensor.is_floating_point()
        flat = tensor.detach().cpu().reshape(-1).contiguous().to(torch.int64 if whole else torch.float32)
        if not whole and not torch.isfinite(flat).all():
            raise InvalidModel("a weight or constant of it is NaN or infinite, which is not written as plain C.")
        key = (flat.dtype, flat.numpy().tobytes())
        name = self.kept.setdefault(key, f"c{len(self.constants)}")
        self.constants[name] = flat
        return _Value(name, tuple(tensor.shape), whole)

    def value(self, given: Any) -> _Value:
        if isinstance(given, _Value):
            return given
        return self.constant(given if isinstance(given, Tensor) else torch.tensor(float(given)))

    def known(self, given: Any) -> Tensor:
        """A constant operand; raises where it is computed."""
        if not isinstance(given, Tensor):
            raise _Unknown(" with weights that it computes")
        return given

    def step(self, op: str, inputs: tuple[_Value, ...], shape: tuple[int, ...], **args: Any) -> _Value:
        if any(value.index for value in inputs) and op not in ("rows", "copy", "gather"):
            raise _Unknown(" of whole numbers")
        name = f"v{len(self.sizes)}"
        self.sizes[name] = prod(shape)
        low, high = args.pop("low", -inf), args.pop("high", inf)
        made = Step(op, tuple(v.name for v in inputs), name, {**args, "n": prod(shape)}, self.layer, low, high)
        self.steps.append(made)
        return _Value(name, tuple(shape), op in ("copy", "gather") and inputs[0].index)

    # ---- moves -------------------------------------------------------------------------------------------------------

    def _moved(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Whatever the operator makes of 0, 1, 2 ..."""
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, _Value)]
        if len(leaves) != 1:
            raise _Unknown(" at places that it computes")
        (value,) = leaves
        numbers = torch.arange(prod(value.shape), dtype=torch.float64).reshape(value.shape)
        args, kwargs = tree_map(lambda leaf: numbers if isinstance(leaf, _Value) else leaf, (args, kwargs))
        places = target(*args, **kwargs)
        if isinstance(places, Tensor):
            return self._at(value, places)
        return [self._at(value, each) for each in places]

    def _at(self, value: _Value, places: Tensor) -> _Value:
        shape, whole = tuple(places.shape), places.to(torch.int64)
        flat = whole.reshape(-1)
        if torch.equal(flat, torch.arange(prod(value.shape))):
            return replace(value, shape=shape)
        strided = _strides(whole)
        if strided is not None:
            sizes, strides, offset = strided
            return self.step("copy", (value,), shape, dims=sizes, strides=strides, offset=offset)
        return self.step("gather", (value, self.constant(flat)), shape)

    def _joined(self, parts: list[tuple[_Value, Tensor]], shape: tuple[int, ...], fill: float | None) -> _Value:
        """Values put at places of a larger one; what is at none of them is `fill`."""
        pieces = []
        for _, places in parts:
            strided = _strides(places)
            if strided is None:
                raise _Unknown(f" of more than {MOST_DIMS} axes")
            pieces.append(strided)
        return self.step("join", tuple(value for value, _ in parts), shape, pieces=tuple(pieces), fill=fill)

    def on_cat(self, tensors: list[Any], dim: int) -> _Value:
        values = [self.value(each) for each in tensors]
        values = [value for value in values if prod(value.shape)]
        dim %= len(values[0].shape)
        shape = list(values[0].shape)
        shape[dim] = sum(value.shape[dim] for value in values)
        places = torch.split(torch.arange(prod(shape)).reshape(shape), [value.shape[dim] for value in values], dim)
        if len(values) == 1:
            return values[0]
        return self._joined(list(zip(values, places, strict=True)), tuple(shape), None)

    def on_stack(self, tensors: list[Any], dim: int) -> _Value:
        values = [self.value(each) for each in tensors]
        dim %= len(values[0].shape) + 1
        shape = (*values[0].shape[:dim], 1, *values[0].shape[dim:])
        return self.on_cat([replace(value, shape=shape) for value in values], dim)

    def on_constant_pad_nd(self, self_: _Value, pad: list[int], value: float = 0) -> _Value:
        frame = torch.arange(prod(self_.shape), dtype=torch.float64).reshape(self_.shape)
        where = F.pad(frame, pad, value=-1)
        shape = tuple(where.shape)
        if min(pad) < 0:
            raise _Unknown(" that cuts")
        inside = [slice(None)] * len(shape)
        for at in range(len(pad) // 2):
            axis = len(shape) - 1 - at
            inside[axis] = slice(pad[2 * at], pad[2 * at] + self_.shape[axis])
        places = torch.arange(prod(shape)).reshape(shape)[tuple(inside)]
        return self._joined([(self_, places)], shape, float(value))

    # ---- products ----------------------------------------------------------------------------------------------------

    def _convolved(self, x: _Value, weight: Any, bias: Any, **how: Any) -> _Value:
        weight = self.known(weight)
        axes = weight.dim() - 2
        if axes > 2:
            raise _Unknown(" over three axes")

        def both(given: Any) -> tuple[int, int]:
            each = [given] * axes if isinstance(given, int) else list(given) * (axes if len(given) == 1 else 1)
            return (each[0], each[1]) if axes == 2 else (how["still"], each[0])

        if len(x.shape) != axes + 2 or x.shape[0] != 1:
            x = replace(x, shape=(1, *x.shape))
        height, width = (1, x.shape[2]) if axes == 1 else x.shape[2:]
        kernel = (1, weight.shape[2]) if axes == 1 else tuple(weight.shape[2:])
        how["still"] = 1
        stride, dilation = both(how["stride"]), both(how["dilation"])
        how["still"] = 0
        reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        if how["padding"] == "same":
            padding, after = ([each // 2 for each in reach], [each - each // 2 for each in reach])
        else:
            padding = list(both(0 if how["padding"] == "valid" else how["padding"]))
            after = padding
        sizes = zip((height, width), padding, after, reach, stride, strict=True)
        out = [(size + before + behind - far - 1) // step + 1 for size, before, behind, far, step in sizes]
        channels = weight.shape[0]
        shape = (1, channels, *(out if axes == 2 else out[1:]))
        given = torch.zeros(channels) if bias is None else self.known(bias)
        return self.step(
            "conv",
            (x, self.constant(weight), self.constant(given)),
            shape,
            channels=x.shape[1],
            height=height,
            width=width,
            out=channels,
            rows=out[0],
            columns=out[1],
            kernel=kernel,
            stride=stride,
            padding=tuple(padding),
            dilation=dilation,
            groups=how["groups"],
        )

    def on_conv2d(
        self,
        input: _Value,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> _Value:
        if not isinstance(input, _Value):
            raise _Unknown(" of constants with weights that it computes")
        return self._convolved(input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)

    on_conv1d = on_conv2d

    def on_convolution(
        self,
        input: _Value,
        weight: Any,
        bias: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        transposed: bool,
        output_padding: Any,
        groups: int,
    ) -> _Value:
        if transposed:
            return self._transposed(input, weight, bias, stride, padding, dilation, output_padding, groups)
        return self._convolved(input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)

    def _transposed(
        self,
        x: _Value,
        weight: Any,
        bias: Any,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        output_padding: list[int],
        groups: int,
    ) -> _Value:
        """A convolution with the window turned about, over an image with zeros between its numbers and around them."""
        weight = self.known(weight)
        axes = weight.dim() - 2
        sizes, shape, inside = x.shape[-axes:], list[int](), [slice(None)]
        for size, step, cut, far, more, taps in zip(
            sizes, stride, padding, dilation, output_padding, weight.shape[2:], strict=True
        ):
            before = far * (taps - 1) - cut
            if before < 0 or axes > 2:
                raise _Unknown(" transposed, with more padding than its window" if axes < 3 else " over three axes")
            shape.append(2 * before + step * (size - 1) + 1 + more)
            inside.append(slice(before, before + step * (size - 1) + 1, step))
        whole = (x.shape[-axes - 1], *shape)
        places = torch.arange(prod(whole)).reshape(whole)[tuple(inside)]
        image = self._joined([(x, places)], (1, *whole), 0.0)
        turned = inputs_first(weight, groups).flip(tuple(range(2, axes + 2)))
        return self._convolved(image, turned, bias, stride=1, padding=0, dilation=dilation, groups=groups)

    def on_linear(self, input: _Value, weight: Any, bias: Any = None) -> _Value:
        weight = self.known(weight)
        columns = weight.shape[1]
        given = torch.zeros(len(weight)) if bias is None else self.known(bias)
        rows = prod(input.shape) // columns
        operands = (input, self.constant(weight), self.constant(given))
        return self.step(
            "linear", operands, (*input.shape[:-1], len(weight)), rows=rows, columns=columns, out=len(weight)
        )

    def on_mm(self, self_: Any, mat2: Any) -> _Value:
        return self.on_matmul(self_, mat2)

    def on_bmm(self, self_: Any, mat2: Any) -> _Value:
        return self.on_matmul(self_, mat2)

    def on_addmm(self, self_: Any, mat1: Any, mat2: Any, beta: float = 1, alpha: float = 1) -> _Value:
        if beta != 1 or alpha != 1:
            raise _Unknown(" with factors")
        if isinstance(self_, Tensor) and self_.dim() == 1 and isinstance(mat2, Tensor) and isinstance(mat1, _Value):
            return self.on_linear(mat1, mat2.mT, self_)
        return self._binary("add", self.on_matmul(mat1, mat2), self_)

    def on_matmul(self, self_: Any, other: Any, **_: Any) -> _Value:
        if isinstance(self_, _Value) and isinstance(other, Tensor) and other.dim() == 2:
            return self.on_linear(self_, other.mT)
        one, two = self.value(self_), self.value(other)
        if len(one.shape) < 2 or len(two.shape) < 2:
            raise _Unknown(" of vectors")
        batch = _broadcast(one.shape[:-2], two.shape[:-2])
        one, two = self._spread(one, (*batch, *one.shape[-2:])), self._spread(two, (*batch, *two.shape[-2:]))
        rows, inner, columns = one.shape[-2], one.shape[-1], two.shape[-1]
        return self.step(
            "matmul", (one, two), (*batch, rows, columns), batch=prod(batch), rows=rows, inner=inner, columns=columns
        )

    def _spread(self, value: _Value, shape: tuple[int, ...]) -> _Value:
        if prod(shape) == prod(value.shape):
            return replace(value, shape=shape)
        return self._at(value, torch.arange(prod(value.shape)).reshape(value.shape).expand(shape))

    def on_scaled_dot_product_attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> _Value:
        if enable_gqa:
            raise _Unknown(" of grouped queries")
        query, key, value = map(self.value, (query, key, value))
        wide = query.shape[-1] ** -0.5 if scale is None else scale
        query = self._binary("mul", query, torch.tensor(wide))
        turned = torch.arange(prod(key.shape)).reshape(key.shape).mT
        scores = self.on_matmul(query, self._at(key, turned))
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None:
            mask = self.known(attn_mask)
            if mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape).masked_fill(~mask, -1e30)
            scores = self._binary("add", scores, mask.clamp(min=-1e30))
        return self.on_matmul(self.on_softmax(scores, -1), value)

    # ---- norms -------------------------------------------------------------------------------------------------------

    def _normalised(self, input: _Value, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> _Value:
        """BatchNorm as a convolution of each channel with one number; it goes into the one before where it can."""
        channels = input.shape[1] if len(input.shape) > 1 else input.shape[0]
        mean, var = self.known(mean), self.known(var)
        one = torch.ones(channels) if weight is None else self.known(weight)
        zero = torch.zeros(channels) if bias is None else self.known(bias)
        scale = one.double() / torch.sqrt(var.double() + eps)
        shift = zero.double() - mean.double() * scale
        places = prod(input.shape[2:])
        return self.step(
            "conv",
            (input, self.constant(scale.reshape(-1, 1, 1, 1)), self.constant(shift)),
            input.shape,
            channels=channels,
            height=1,
            width=places,
            out=channels,
            rows=1,
            columns=places,
            kernel=(1, 1),
            stride=(1, 1),
            padding=(0, 0),
            dilation=(1, 1),
            groups=channels,
        )

    def on_batch_norm(
        self,
        input: _Value,
        weight: Any,
        bias: Any,
        running_mean: Any,
        running_var: Any,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> _Value:
        if training:
            raise _Unknown(" of the statistics of a batch")
        return self._normalised(input, weight, bias, running_mean, running_var, eps)

    def on__native_batch_norm_legit_no_training(
        self, input: _Value, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
    ) -> list[_Value]:
        return [self._normalised(input, weight, bias, running_mean, running_var, eps)]

    def on_layer_norm(
        self,
        input: _Value,
        normalized_shape: list[int],
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
        cudnn_enable: bool = True,
    ) -> _Value:
        size = prod(normalized_shape)
        one = torch.ones(size) if weight is None else self.known(weight)
        zero = torch.zeros(size) if bias is None else self.known(bias)
        operands = (input, self.constant(one), self.constant(zero))
        return self.step("norm", operands, input.shape, outer=prod(input.shape) // size, inner=size, eps=eps)

    # ---- over several numbers ----------------------------------------------------------------------------------------

    def on_softmax(self, self_: _Value, dim: int, *_: Any, of: str = "softmax", **__: Any) -> _Value:
        dim %= len(self_.shape)
        inner = prod(self_.shape[dim + 1 :])
        size = self_.shape[dim]
        return self.step(of, (self_,), self_.shape, outer=prod(self_.shape[:dim]), size=size, inner=inner)

    def on__softmax(self, self_: _Value, dim: int, half_to_float: bool) -> _Value:
        return self.on_softmax(self_, dim)

    def on_log_softmax(self, self_: _Value, dim: int, *_: Any, **__: Any) -> _Value:
        return self.on_softmax(self_, dim, of="log_softmax")

    def on__log_softmax(self, self_: _Value, dim: int, half_to_float: bool) -> _Value:
        return self.on_softmax(self_, dim, of="log_softmax")

    def _reduced(self, of: str, value: _Value, dim: Any, keepdim: bool) -> _Value:
        axes = len(value.shape)
        dims = sorted(each % axes for each in ([dim] if isinstance(dim, int) else dim or range(axes)))
        kept = [each for each in range(axes) if each not in dims]
        shape = tuple(1 if each in dims else size for each, size in enumerate(value.shape))
        if dims != list(range(dims[0], dims[-1] + 1)):
            order = torch.arange(prod(value.shape)).reshape(value.shape).permute(*kept, *dims)
            value, outer, inner = self._at(value, order), prod(value.shape[each] for each in kept), 1
            size = prod(value.shape) // outer
        else:
            outer, inner = prod(value.shape[: dims[0]]), prod(value.shape[dims[-1] + 1 :])
            size = prod(value.shape[each] for each in dims)
        made = self.step("reduce", (value,), shape, of=of, outer=outer, size=size, inner=inner)
        return made if keepdim else replace(made, shape=tuple(shape[each] for each in kept))

    def on_mean(self, self_: _Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> _Value:
        return self._reduced("mean", self_, dim, keepdim)

    def on_sum(self, self_: _Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> _Value:
        return self._reduced("sum", self_, dim, keepdim)

    def on_amax(self, self_: _Value, dim: Any = (), keepdim: bool = False) -> _Value:
        return self._reduced("max", self_, dim, keepdim)

    def _pooled(
        self,
        of: str,
        x: _Value,
        size: Any,
        stride: Any,
        padding: Any,
        dilation: Any = 1,
        ceil: bool = False,
        counted: bool = True,
    ) -> _Value:
        axes = len(x.shape) - 2

        def both(given: Any, still: int) -> tuple[int, int]:
            each = [given] * axes if isinstance(given, int) else list(given) * (axes if len(given) == 1 else 1)
            return (each[0], each[1]) if axes == 2 else (still, each[0])

        if axes not in (1, 2):
            raise _Unknown(f" over {axes} axes")
        kernel, dilated = both(size, 1), both(dilation, 1)
        step, pad = both(stride or size, 1), both(padding, 0)
        height, width = (1, x.shape[2]) if axes == 1 else x.shape[2:]
        image = torch.zeros(1, 1, height, width)
        if of == "max":
            rows, columns = F.max_pool2d(image, kernel, step, pad, dilated, ceil).shape[2:]
        else:
            rows, columns = F.avg_pool2d(image, kernel, step, pad, ceil).shape[2:]
        if of == "mean" and (
            (rows - 1) * step[0] + kernel[0] > height + 2 * pad[0]
            or (columns - 1) * step[1] + kernel[1] > width + 2 * pad[1]
        ):
            raise _Unknown(" with windows that reach beyond the padding")
        shape = (*x.shape[:2], *((rows, columns) if axes == 2 else (columns,)))
        return self.step(
            "pool",
            (x,),
            shape,
            of=of,
            channels=prod(x.shape[:2]),
            height=height,
            width=width,
            rows=rows,
            columns=columns,
            kernel=kernel,
            stride=step,
            padding=pad,
            dilation=dilated,
            counted=counted,
        )

    def on_max_pool2d(
        self,
        self_: _Value,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> _Value:
        return self._pooled("max", self_, kernel_size, stride, padding, dilation, ceil_mode)

    on_max_pool1d = on_max_pool2d

    def on_max_pool2d_with_indices(self, self_: _Value, *args: Any, **kwargs: Any) -> list[_Value]:
        return [self.on_max_pool2d(self_, *args, **kwargs)]

    def on_avg_pool2d(
        self,
        self_: _Value,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> _Value:
        if divisor_override:
            raise _Unknown(" with a divisor of its own")
        return self._pooled("mean", self_, kernel_size, stride, padding, 1, ceil_mode, count_include_pad)

    on_avg_pool1d = on_avg_pool2d

    def _adaptive(self, of: str, value: _Value, output_size: Any) -> _Value:
        sizes = [output_size] if isinstance(output_size, int) else list(output_size)
        axes = len(value.shape) - 2
        sizes = sizes * (axes if len(sizes) == 1 else 1)
        given = value.shape[2:]
        if all(size == 1 for size in sizes):
            return self._reduced(of, value, tuple(range(2, len(value.shape))), keepdim=True)
        if any(have % size for have, size in zip(given, sizes, strict=True)):
            raise _Unknown(" with windows of different sizes")
        window = [have // size for have, size in zip(given, sizes, strict=True)]
        return self._pooled(of, value, window, window, 0)

    def on_adaptive_avg_pool2d(self, self_: _Value, output_size: Any) -> _Value:
        return self._adaptive("mean", self_, output_size)

    on_adaptive_avg_pool1d = on_adaptive_avg_pool2d

    def on_adaptive_max_pool2d(self, self_: _Value, output_size: Any) -> list[_Value]:
        return [self._adaptive("max", self_, output_size)]

    # ---- number by number --------------------------------------------------------------------------------------------

    def _binary(self, of: str, one: Any, other: Any, alpha: float = 1) -> _Value:
        if alpha != 1:
            other = self._binary("mul", other, alpha) if isinstance(other, _Value) else torch.as_tensor(other) * alpha
        given = [value if isinstance(value, _Value | Tensor) else torch.tensor(float(value)) for value in (one, other)]
        values = [self.value(value.float() if isinstance(value, Tensor) else value) for value in given]
        shape = _broadcast(*(value.shape for value in values))
        places = [torch.arange(prod(v.shape)).reshape(v.shape).expand(shape) for v in values]
        loops = _loops(shape, places)
        if loops is None:
            values = [self._spread(value, shape) for value in values]
            loops = (1,) * (MOST_DIMS - 1) + (prod(shape),), ((0,) * (MOST_DIMS - 1) + (1,),) * 2
        dims, strides = loops
        return self.step("binary", tuple(values), shape, of=of, dims=dims, strides=strides)

    def on_pow(self, self_: _Value, exponent: Any) -> _Value:
        if exponent == 2:
            return self.step("unary", (self.value(self_),), self_.shape, of="square")
        if exponent == 0.5:
            return self.step("unary", (self.value(self_),), self_.shape, of="sqrt")
        if exponent == -0.5:
            return self.step("unary", (self.value(self_),), self_.shape, of="rsqrt")
        raise _Unknown(f" {exponent}")

    def _clamped(self, value: _Value, low: float | None, high: float | None) -> _Value:
        return self.step(
            "clamp", (value,), value.shape, low=-inf if low is None else low, high=inf if high is None else high
        )

    def on_relu(self, self_: _Value) -> _Value:
        return self._clamped(self_, 0.0, None)

    def on_relu6(self, self_: _Value) -> _Value:
        return self._clamped(self_, 0.0, 6.0)

    def on_hardtanh(self, self_: _Value, min_val: float = -1, max_val: float = 1) -> _Value:
        return self._clamped(self_, min_val, max_val)

    def on_clamp(self, self_: _Value, min: float | None = None, max: float | None = None) -> _Value:
        return self._clamped(self_, min, max)

    def on_clamp_min(self, self_: _Value, min: float) -> _Value:
        return self._clamped(self_, min, None)

    def on_leaky_relu(self, self_: _Value, negative_slope: float = 0.01) -> _Value:
        return self.step("unary", (self_,), self_.shape, of="leaky", slope=negative_slope)

    def on_elu(self, self_: _Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> _Value:
        if scale != 1 or input_scale != 1:
            raise _Unknown(" with a scale")
        return self.step("unary", (self_,), self_.shape, of="elu", slope=alpha)

    def on_gelu(self, self_: _Value, approximate: str = "none") -> _Value:
        return self.step("unary", (self_,), self_.shape, of="gelu_tanh" if approximate == "tanh" else "gelu")

    def on_softplus(self, self_: _Value, beta: float = 1, threshold: float = 20) -> _Value:
        if beta != 1:
            raise _Unknown(f" with beta {beta}")
        return self.step("unary", (self_,), self_.shape, of="softplus")

    def on__to_copy(self, self_: _Value, dtype: Any = None, **_: Any) -> _Value:
        if self_.index and dtype in (torch.int32, torch.int64, None):
            return self_
        if self_.index or dtype not in (torch.float32, None):
            raise _Unknown(f" to {dtype}")
        return self_

    def on_embedding(self, weight: Any, indices: Any, *_: Any, **__: Any) -> _Value:
        table = self.known(weight)
        places = self.value(indices)
        return self.step(
            "rows",
            (self.constant(table), places),
            (*places.shape, table.shape[1]),
            width=table.shape[1],
            rows=len(table),
        )


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    total = torch.zeros(())
    for shape in shapes:
        total = total + torch.zeros(()).expand(shape)
    return tuple(total.shape)


def _name(target: Any) -> str:
    return str(getattr(getattr(target, "overloadpacket", target), "__name__", target))


def _strides(places: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    """Sizes and strides of at most MOST_DIMS loops that go through these places in order, and the first of them."""
    first = int(places.reshape(-1)[0])
    sizes, strides = list[int](), list[int]()
    for axis, size in enumerate(places.shape):
        if size > 1:
            at = [0] * places.dim()
            at[axis] = 1
            step = int(places[tuple(at)]) - first
            if sizes and strides[-1] == step * size:
                sizes[-1], strides[-1] = sizes[-1] * size, step
            else:
                sizes.append(size)
                strides.append(step)
    sums = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(sizes, strides, strict=True):
        sums = sums[..., None] + torch.arange(size) * stride
    if len(sizes) > MOST_DIMS or not torch.equal(sums.reshape(-1) + first, places.reshape(-1)):
        return None
    pad = MOST_DIMS - len(sizes)
    return (1,) * pad + tuple(sizes), (0,) * pad + tuple(strides), first


def _loops(
    shape: tuple[int, ...], operands: list[Tensor]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]] | None:
    """Sizes of at most MOST_DIMS loops, and the strides of each operand in them."""
    sizes, strides = list[int](), [list[int]() for _ in operands]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        steps = []
        for places in operands:
            at = [0] * places.dim()
            at[axis] = 1
            steps.append(int(places[tuple(at)]) - int(places.reshape(-1)[0]))
        if sizes and all(each[-1] == step * size for each, step in zip(strides, steps, strict=True)):
            sizes[-1] *= size
            for each, step in zip(strides, steps, strict=True):
                each[-1] = step
        else:
            sizes.append(size)
            for each, step in zip(strides, steps, strict=True):
                each.append(step)
    if len(sizes) > MOST_DIMS:
        return None
    pad = MOST_DIMS - len(sizes)
    return (1,) * pad + tuple(sizes), tuple((0,) * pad + tuple(each) for each in strides)


# ---- fewer steps ----------------------------------------------------------------------------------------------------


def _folded(steps: Steps) -> Steps:
    """BatchNorm in the product before it, clamps in the step before them, and no constant that nobody reads."""
    uses = Counter(name for step in steps.steps for name in step.inputs)
    uses.update(port.value for port in steps.outputs)
    made, constants, renamed = dict[str, Step](), dict(steps.constants), dict[str, str]()
    for step in steps.steps:
        step = replace(step, inputs=tuple(renamed.get(name, name) for name in step.inputs))
        before = made.get(step.inputs[0])
        alone = before is not None and uses[before.output] == 1 and (before.low, before.high) == (-inf, inf)
        if before is not None and alone and step.op == "clamp" and before.op in ("conv", "linear", "binary"):
            made[before.output] = replace(before, low=step.low, high=step.high)
        elif (
            before is not None
            and alone
            and _scales(step)
            and before.op in ("conv", "linear")
            and before.args["out"] == step.args["out"]
        ):
            weight, bias, scale, shift = (constants[n].double() for n in (*before.inputs[1:], *step.inputs[1:]))
            names = [f"{before.output}_{word}" for word in ("weight", "bias")]
            constants[names[0]] = (weight.view(len(scale), -1) * scale[:, None]).reshape(-1).float()
            constants[names[1]] = (bias * scale + shift).float()
            made[before.output] = replace(before, inputs=(before.inputs[0], *names))
        else:
            made[step.output] = step
            continue
        renamed[step.output] = before.output
        uses[before.output] = uses[step.output]
    outputs = tuple(replace(port, value=renamed.get(port.value, port.value)) for port in steps.outputs)
    needed = {port.value for port in outputs}
    for step in reversed(made.values()):
        needed |= set(step.inputs) if step.output in needed else set()
    return Steps(
        tuple(step for step in made.values() if step.output in needed),
        steps.inputs,
        outputs,
        steps.sizes,
        {name: value for name, value in constants.items() if name in needed},
    )


def _scales(step: Step) -> bool:
    """Whether a step only scales and shifts each channel."""
    args = step.args
    return (
        step.op == "conv"
        and args["groups"] == args["out"] == args["channels"]
        and args["kernel"] == (1, 1)
        and args["stride"] == (1, 1)
    )


# ---- carried out ----------------------------------------------------------------------------------------------------


def values_of(steps: Steps, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Every value, flat, as PyTorch computes it of one sample: what ranges are taken from."""
    found: dict[str, Tensor] = {**steps.constants}
    found |= {port.value: value.reshape(-1) for port, value in zip(steps.inputs, inputs, strict=True)}
    for step in steps.steps:
        given = [found[name] for name in step.inputs]
        value = COMPUTED[step.op](step.args, *given)
        found[step.output] = value if (step.low, step.high) == (-inf, inf) else value.clamp(step.low, step.high)
    return found


def convolved(args: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of one sample; only as much padding behind as its results need."""
    height, width, (rows, columns) = args["height"], args["width"], (args["rows"], args["columns"])
    kernel, stride, padding, dilation = (args[word] for word in ("kernel", "stride", "padding", "dilation"))
    behind = [
        max(0, (count - 1) * step + far * (size - 1) + 1 - have - before)
        for count, step, far, size, have, before in zip(
            (rows, columns), stride, dilation, kernel, (height, width), padding, strict=True
        )
    ]
    image = F.pad(x.view(1, args["channels"], height, width), (padding[1], behind[1], padding[0], behind[0]))
    window = weight.view(args["out"], -1, *kernel)
    done = F.conv2d(image, window, bias, stride, 0, dilation, args["groups"])
    return done[:, :, :rows, :columns].reshape(-1)


def pooled(args: Mapping[str, Any], x: Tensor) -> Tensor:
    """The largest or the mean of each window of one sample."""
    image = x.view(1, args["channels"], args["height"], args["width"])
    kernel, stride, padding = args["kernel"], args["stride"], args["padding"]
    if args["of"] == "mean":
        done = F.avg_pool2d(image, kernel, stride, padding, count_include_pad=args["counted"])
    else:
        done = F.max_pool2d(image, kernel, stride, padding, args["dilation"], ceil_mode=True)
    return done[:, :, : args["rows"], : args["columns"]].reshape(-1)


def spread(args: Mapping[str, Any], at: int, x: Tensor) -> Tensor:
    """An operand of a binary step in the order of its loops."""
    if args["strides"][at][-1] == 1 and args["dims"][:-1] == (1,) * (MOST_DIMS - 1):
        return x
    index = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(args["dims"], args["strides"][at], strict=True):
        index = index[..., None] + torch.arange(size) * stride
    return x[index.reshape(-1)]


def places(dims: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Tensor:
    """The places that loops go through."""
    index = torch.tensor(offset)
    for size, stride in zip(dims, strides, strict=True):
        index = index[..., None] + torch.arange(size) * stride
    return index.reshape(-1)


def joined(args: Mapping[str, Any], *parts: Tensor, fill: float | int | None = None) -> Tensor:
    """Values put at places of a larger one."""
    source = torch.full((args["n"],), len(parts[0]) + sum(map(len, parts[1:])), dtype=torch.int64)
    first = 0
    for part, (dims, strides, offset) in zip(parts, args["pieces"], strict=True):
        source[places(dims, strides, offset)] = torch.arange(first, first + len(part))
        first += len(part)
    value = args["fill"] if fill is None else fill
    rest = torch.full((1,), value or 0, dtype=parts[0].dtype)
    return torch.cat([*parts, rest])[source]


def unary(args: Mapping[str, Any], x: Tensor) -> Tensor:
    """A function of each number."""
    if args["of"] == "leaky":
        return F.leaky_relu(x, args["slope"])
    if args["of"] == "elu":
        return F.elu(x, args["slope"])
    return UNARY[args["of"]](x)


def _reduced(args: Mapping[str, Any], x: Tensor) -> Tensor:
    shaped = x.view(args["outer"], args["size"], args["inner"])
    how: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda t: t.mean(1),
        "sum": lambda t: t.sum(1),
        "max": lambda t: t.amax(1),
    }
    return how[args["of"]](shaped).reshape(-1)


def _over(args: Mapping[str, Any], x: Tensor, of: Callable[..., Tensor]) -> Tensor:
    return of(x.view(args["outer"], args["size"], args["inner"]), dim=1).reshape(-1)


COMPUTED: dict[str, Callable[..., Tensor]] = {
    "conv": convolved,
    "linear": lambda a, x, w, b: F.linear(x.view(a["rows"], -1), w.view(a["out"], -1), b).reshape(-1),
    "matmul": lambda a, x, y: (
        x.view(a["batch"], a["rows"], -1) @ y.view(a["batch"], a["inner"], a["columns"])
    ).reshape(-1),
    "pool": pooled,
    "reduce": _reduced,
    "softmax": lambda a, x: _over(a, x, torch.softmax),
    "log_softmax": lambda a, x: _over(a, x, torch.log_softmax),
    "norm": lambda a, x, w, b: F.layer_norm(x.view(a["outer"], -1), (a["inner"],), w, b, a["eps"]).reshape(-1),
    "unary": unary,
    "clamp": lambda a, x: x,
    "binary": lambda a, x, y: BINARY[a["of"]](spread(a, 0, x), spread(a, 1, y)),
    "copy": lambda a, x: x[places(a["dims"], a["strides"], a["offset"])],
    "gather": lambda a, x, index: x[index],
    "join": joined,
    "rows": lambda a, table, index: F.embedding(index, table.view(-1, a["width"])).reshape(-1),
}
"""What each kind of step computes, of its args and its inputs; `graphs.integers` adds those in whole numbers."""
