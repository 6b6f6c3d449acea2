"""A chain of layer specs as an ONNX model with random weights: what a micro-benchmark runs, written in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from lowrank_core.extras import extra
from lowrank_core.layers.spec import LayerSpec, Size

OPSET = 20
_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def onnx_chain(stages: tuple[LayerSpec, ...], size: Size, batch: int = 1) -> Any:
    """An onnx.ModelProto: float32 (batch, channels, *size), or (batch, *size, features) of a Linear, to the same.

    A table takes (batch, *size) int64. Weights are random, seeded; none of the times depends on them.
    """
    with extra("onnx", "timing with onnxruntime"):
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    random = np.random.default_rng(0)
    nodes, weights = [], []

    def constant(name: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    value, first = "x", stages[0]
    for i, stage in enumerate(stages):
        scale = 1 / max(1, stage.fan_in) ** 0.5
        if stage.identity:
            value = _partly_identity(stage, i, len(size), value, constant, node)
            continue
        shape = stage.weight_shape if stage.kernel or stage.table or stage.transposed else stage.weight_shape[::-1]
        weight = constant(f"w{i}", (scale * random.standard_normal(shape)).astype(np.float32))
        bias = [constant(f"b{i}", np.zeros(stage.out_channels, np.float32))] if stage.bias else []
        if stage.table:
            value = node("Gather", [weight, value], f"y{i}")
        elif stage.kernel:
            before, after = _pads(stage)
            attributes = {"strides": stage.stride, "dilations": stage.dilation, "group": stage.groups}
            if stage.padding_mode != "zeros" and any(before + after):
                pads = constant(f"p{i}", np.array([0, 0, *before, 0, 0, *after], np.int64))
                value = node("Pad", [value, pads], f"padded{i}", mode=_PAD_MODES[stage.padding_mode])
                before = after = (0,) * len(before)
            if stage.transposed:
                attributes["output_padding"] = stage.output_padding
            op = "ConvTranspose" if stage.transposed else "Conv"
            value = node(op, [value, weight, *bias], f"y{i}", pads=[*before, *after], **attributes)
        elif stage.groups > 1 or stage.copies > 1:
            parts, outputs = stage.groups * stage.copies, stage.out_channels
            split = [batch, *size, parts, 1, -1] if stage.groups > 1 else [batch, *size, -1, parts]
            value = node("Reshape", [value, constant(f"s{i}", np.array(split, np.int64))], f"split{i}")
            if stage.groups > 1:  # (parts, 1, in) times (parts, in, out)
                apart = constant(f"a{i}", np.array([stage.fan_in, parts, outputs // parts], np.int64))
                weight = node("Reshape", [weight, apart], f"apart{i}")
                weight = node("Transpose", [weight], f"each{i}", perm=[1, 0, 2])
            else:
                order = [*range(1 + len(size)), 2 + len(size), 1 + len(size)]
                value = node("Transpose", [value], f"turned{i}", perm=order)
            value = node("MatMul", [value, weight], f"m{i}")
            value = node("Reshape", [value, constant(f"j{i}", np.array([batch, *size, outputs], np.int64))], f"y{i}")
            if bias:
                value = node("Add", [value, *bias], f"z{i}")
        elif len(size) == 0:
            value = node("Gemm", [value, weight, *bias], f"y{i}")
        else:
            value = node("MatMul", [value, weight], f"y{i}")
            if bias:
                value = node("Add", [value, *bias], f"z{i}")
    kind = TensorProto.INT64 if first.table else TensorProto.FLOAT
    given = helper.make_tensor_value_info("x", kind, input_shape(first, size, batch))
    axes = 1 + len(size) + 1
    answer = helper.make_tensor_value_info(value, TensorProto.FLOAT, [None] * axes)
    graph = helper.make_graph(nodes, "chain", [given], [answer], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _partly_identity(
    stage: LayerSpec, i: int, tokens: int, value: str, constant: Callable[[str, Any], str], node: Callable[..., str]
) -> str:
    """A stage some of whose rows or columns are those of the identity, as `layers.parts` computes it."""
    wide = max(stage.in_channels, stage.out_channels)
    axis, ones = (1, (1,) * len(stage.kernel)) if stage.kernel else (1 + tokens, ())
    order = constant(f"o{i}", np.arange(wide, dtype=np.int64)[::-1])
    others = value

    def ordered(name: str) -> str:
        if stage.kernel or not tokens:
            return node("Gather", [value, order], name, axis=axis)
        turn = [*range(axis - 1), axis, axis - 1]  # whole rows are gathered faster by far
        rows = node("Gather", [node("Transpose", [value], f"{name}.t", perm=turn), order], f"{name}.g", axis=axis - 1)
        return node("Transpose", [rows], name, perm=turn)

    if stage.identity == "columns":
        value = ordered(f"ordered{i}")
        for name, start, end in ((f"kept{i}", 0, stage.out_channels), (f"others{i}", stage.out_channels, wide)):
            cut = [constant(f"{name}.{n}", np.array([at], np.int64)) for n, at in enumerate((start, end, axis))]
            others = node("Slice", [value, *cut], name)
        value = f"kept{i}"
    if stage.weights:
        shape = stage.weight_shape if stage.kernel else stage.weight_shape[:: 1 if stage.transposed else -1]
        weight = constant(f"w{i}", np.full(shape, 1 / max(shape), np.float32))
        op, how = ("Conv", {"group": stage.groups, "kernel_shape": ones}) if stage.kernel else ("MatMul", {})
        product = node(op, [others, weight], f"m{i}", **how)
        combine, by = ("Concat", {"axis": axis}) if stage.identity == "rows" else ("Add", {})
        value = node(combine, [value, product], f"c{i}", **by)
    if stage.identity == "rows":
        value = ordered(f"y{i}")
    if stage.bias:
        value = node("Add", [value, constant(f"b{i}", np.zeros((stage.out_channels, *ones), np.float32))], f"z{i}")
    return value


def input_shape(spec: LayerSpec, size: Size, batch: int) -> tuple[int, ...]:
    """(batch, channels, *size) of a convolution, (batch, *size, features) of a Linear, (batch, *size) of a table."""
    if spec.kernel:
        return (batch, spec.in_channels, *size)
    return (batch, *size) if spec.table else (batch, *size, spec.in_channels)


def example_input(spec: LayerSpec, size: Size, batch: int) -> Any:
    """A seeded NumPy input of the shape that a chain takes."""
    random, shape = np.random.default_rng(1), input_shape(spec, size, batch)
    if spec.table:
        return random.integers(spec.in_channels, size=shape, dtype=np.int64)
    return random.standard_normal(prod(shape), dtype=np.float32).reshape(shape)


def _pads(spec: LayerSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each spatial axis."""
    if not isinstance(spec.padding, str):
        return tuple(spec.padding), tuple(spec.padding)
    whole = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]
    return tuple(n // 2 for n in whole), tuple(n - n // 2 for n in whole)
