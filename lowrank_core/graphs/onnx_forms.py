"""A graph of ONNX as a tool wants it: at one batch with no size left open, in one version of operators, checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lowrank_core.errors import InvalidModel, InvalidSettings, few

OPSETS = (7, 23)
"""Versions of ONNX's operators that are written on request: before the first onnxruntime promises nothing, after the
last there is none that PyTorch knows."""

LEAST_IR = 4
"""Version of the file itself, at least: before it weights stood among the inputs."""

FOLDED = 1024
"""Numbers that a node's answer has, at most, to be computed beforehand: sizes, not products of factors."""


def at_sizes(proto: Any, sizes: Sequence[Sequence[int]]) -> Any:
    """The graph that takes inputs of these sizes alone; what it computed of sizes is computed beforehand.

    sizes: in the order of its inputs. Raises InvalidModel where a size depends on values.
    """
    from onnxscript import optimizer

    proto = _copied(proto)
    for value, size in zip(inputs_of(proto.graph), sizes, strict=True):
        _say(value, size)
    for value in proto.graph.output:
        for size in value.type.tensor_type.shape.dim:
            size.Clear()
    del proto.graph.value_info[:]
    folded = optimizer.optimize(inferred(proto), input_size_limit=FOLDED, output_size_limit=FOLDED)
    del folded.graph.value_info[:]
    fixed = inferred(folded)
    left = [value.name for value in _open(fixed.graph)]
    if left:
        raise InvalidModel(
            f"no batch can be fixed: the size of {few(left, repr)} depends on what is computed; omit --batch."
        )
    return fixed


def at_opset(proto: Any, opset: int) -> Any:
    """The same graph in another version of ONNX's operators.

    Raises InvalidSettings for a version that is not written, InvalidModel where an operator has no such form; it names
    the lowest version in which there is one.
    """
    least, most = OPSETS
    if not least <= opset <= most:
        raise InvalidSettings(f"--opset must be from {least} to {most}, but got {opset}.")
    try:
        return _at_opset(proto, opset)
    except InvalidModel as error:
        newer = range(opset + 1, opset_of(proto))
        lowest = next((each for each in newer if _is_written(proto, each)), opset_of(proto))
        does = f"; --opset {lowest} is the lowest that does" if lowest > opset else ""
        raise InvalidModel(f"ONNX cannot write this network in opset {opset}: {error}{does}.") from error


def _at_opset(proto: Any, opset: int) -> Any:
    from onnx import helper

    now = opset_of(proto)
    if opset < ONE_AXIS <= now:
        proto = inferred(proto)  # a copy
        _say_last_axes(proto, opset)
        if opset < MAY_LACK_OFFSET:
            _say_offsets(proto)
            _count_axes_from_the_first(proto)
    changed = proto if opset == now else _converted(proto, opset)
    changed.ir_version = max(LEAST_IR, helper.find_min_ir_version_for(changed.opset_import, ignore_unknown=True))
    return changed


def _is_written(proto: Any, opset: int) -> bool:
    """Whether there is a form of a graph in that version."""
    try:
        checked(_at_opset(proto, opset))
    except InvalidModel:
        return False
    return True


LAST_AXIS_ALONE, ONE_AXIS = {"Softmax", "LogSoftmax", "Hardmax"}, 13
"""Operators that before that opset took all axes from the one they name, which ONNX's converter does not mind."""


def _say_last_axes(proto: Any, opset: int) -> None:
    """Say the axis of these operators, in a graph whose shapes are known; raises InvalidModel if it is not the last."""
    from onnx import helper

    last = {name: len(kind.shape.dim) - 1 for name, kind in _types(proto.graph).items()}
    for node in (node for part in _graphs(proto.graph) for node in part.node if node.op_type in LAST_AXIS_ALONE):
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), None)
        if axis is None:
            node.attribute.append(helper.make_attribute("axis", -1))
        elif axis not in (-1, last.get(node.output[0])):
            raise InvalidModel(
                f"{node.op_type} over another axis than the last is another operator before opset {ONE_AXIS}"
            )


MAY_LACK_OFFSET = 11
"""Before that opset a Gemm had to have its third input."""


def _say_offsets(proto: Any) -> None:
    """Give each Gemm without an offset zeros for one, in a graph whose types are known."""
    from onnx import helper, numpy_helper

    for graph in _graphs(proto.graph):
        types = _types(graph)
        for node in graph.node:
            if node.op_type == "Gemm" and len(node.input) == 2:
                zeros = np.zeros(1, helper.tensor_dtype_to_np_dtype(types[node.output[0]].elem_type))
                graph.initializer.append(numpy_helper.from_array(zeros, f"{node.output[0]}_offset"))
                node.input.append(graph.initializer[-1].name)


def _count_axes_from_the_first(proto: Any) -> None:
    """Say the axis of each Flatten from the first on, in a graph whose shapes are known: below 0 it was not allowed."""
    for graph in _graphs(proto.graph):
        axes = {name: len(kind.shape.dim) for name, kind in _types(graph).items()}
        for node in (node for node in graph.node if node.op_type == "Flatten"):
            for attribute in node.attribute:
                attribute.i += axes.get(node.input[0], 0) if attribute.i < 0 else 0


def _types(graph: Any) -> dict[str, Any]:
    """What a graph says of the types and shapes of its values, by their names."""
    return {value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)}


def _converted(proto: Any, opset: int) -> Any:
    """The graph in that version: in an older one its operators have the form they had; ONNX's converter does the rest.

    Of opset 13 that knows hardly an operator.
    """
    from onnx import version_converter

    refused: InvalidModel | None = None
    if opset < opset_of(proto):
        try:
            return _as_types_alone(_copied(proto), opset)
        except InvalidModel as error:
            refused = error
    try:
        return version_converter.convert_version(proto, opset)
    except Exception as error:  # a RuntimeError of its own for each operator
        raise refused or InvalidModel(_said(error)) from error


def _as_types_alone(proto: Any, opset: int) -> Any:
    """The graph said to be of an older version, whose operators differ from these by types alone once `_as_before` is
    done with them.

    Raises InvalidModel where one of them differs by more; types are then checked with the graph as a whole.
    """
    from onnx import defs, numpy_helper

    version = opset_of(proto)
    known: dict[str, Any] = {}  # a name is that of one value, in whatever graph it is
    for graph in _graphs(proto.graph):
        known |= {name: numpy_helper.to_array(tensor) for name, tensor in _constants(graph).items()}
    for node in (node for graph in _graphs(proto.graph) for node in graph.node if node.domain in ("", "ai.onnx")):
        if not defs.has(node.op_type, opset):
            raise InvalidModel(f"there was no {node.op_type} yet")
        now, then = (defs.get_schema(node.op_type, each) for each in (version, opset))
        if now.since_version != then.since_version:
            _as_before(node, now, then, known)
    for each in proto.opset_import:
        if each.domain in ("", "ai.onnx"):
            each.version = opset
    return proto


def _as_before(node: Any, now: Any, then: Any, known: Mapping[str, Any]) -> None:
    """Give a node the form that its operator had: attributes for inputs that are constant, none that say the usual.

    known: the constants of the graph. Raises InvalidModel where it had no such form.
    """
    from onnx import helper

    def differs() -> InvalidModel:
        return InvalidModel(f"{node.op_type} is another operator before opset {now.since_version}")

    names = [port.name for port in now.inputs]
    if names != [port.name for port in then.inputs] and len(names) >= len(node.input):
        for at in reversed(range(len(then.inputs), len(node.input))):
            name, given = names[at], node.input[at]
            if given and (name not in then.attributes or given not in known):
                raise differs()
            if given:
                value = known[given]
                node.attribute.append(helper.make_attribute(name, value.tolist() if value.ndim else value.item()))
            del node.input[at]
    given = _attributes(node)
    if node.op_type == "Reshape" and given.get("allowzero") and 0 not in known.get(node.input[1], [0]):
        given["allowzero"] = 0  # which is the same without a zero
    usual = {name: attribute.default_value for name, attribute in now.attributes.items()}
    for name in given.keys() - then.attributes.keys():
        said = name in usual and given[name] == helper.get_attribute_value(usual[name])
        if not said and not (name == "dilations" and set(given[name]) == {1}):
            raise differs()
        node.attribute.remove(next(attribute for attribute in node.attribute if attribute.name == name))


def pools_of_zeros(proto: Any) -> list[Any]:
    """The MaxPool nodes behind a Pad with zeros that onnxruntime makes one with it, and so answers otherwise.

    A MaxPool leaves its own padding out, which the zeros of a Pad are not: of negative numbers the largest is another
    (its rule Pad_Fusion, up to 1.31). Behind a ReLU the answers are the same, so these are not among them.
    """
    pools = []
    for graph in _graphs(proto.graph):
        makers = {name: node for node in graph.node for name in node.output}
        constants = _constants(graph)
        for node in graph.node:
            pad = makers.get(node.input[0]) if node.op_type == "MaxPool" else None
            if pad is None or pad.op_type != "Pad" or not _pads_zeros(pad, constants):
                continue
            before, said = makers.get(pad.input[0]), _attributes(node)
            own = any(said.get("pads", ())) or said.get("auto_pad", b"NOTSET") != b"NOTSET" or said.get("ceil_mode")
            if not own and (before is None or before.op_type != "Relu"):
                pools.append(node)
    return pools


def _pads_zeros(pad: Any, constants: Mapping[str, Any]) -> bool:
    """Whether a Pad is known to put zeros around."""
    from onnx import numpy_helper

    said = _attributes(pad)
    if said.get("mode", b"constant") != b"constant" or said.get("value", 0.0) != 0:
        return False
    name = pad.input[2] if len(pad.input) > 2 else ""
    return not name or (name in constants and not numpy_helper.to_array(constants[name]).any())


def _constants(graph: Any) -> dict[str, Any]:
    """The tensors that a graph holds, by their names."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    held = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].HasField("t")]
    return constants | {node.output[0]: node.attribute[0].t for node in held}


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def padding_apart(proto: Any) -> int:
    """Write `pools_of_zeros` so that onnxruntime leaves them apart, in place; the number of those written.

    It does where the pool says that it has no padding in the other of two ways.
    """
    from onnx import helper

    pools = pools_of_zeros(proto)
    for node in pools:
        for attribute in [a for a in node.attribute if a.name in ("pads", "auto_pad")]:
            node.attribute.remove(attribute)
        node.attribute.append(helper.make_attribute("auto_pad", "VALID"))
    return len(pools)


def opset_of(proto: Any) -> int:
    """The version of ONNX's own operators that a graph is written in."""
    return int(next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")))


def checked(proto: Any) -> Any:
    """The graph as ONNX's own checker passes it, with the shapes that it infers, strictly; unused domains are gone.

    Raises InvalidModel with the checker's words.
    """
    import onnx

    used = {node.domain or "ai.onnx" for graph in _graphs(proto.graph) for node in graph.node}
    used |= {node.domain or "ai.onnx" for function in proto.functions for node in function.node}
    kept = [each for each in proto.opset_import if (each.domain or "ai.onnx") in used | {"ai.onnx"}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    made = inferred(proto)
    try:
        onnx.checker.check_model(made, full_check=True)
    except Exception as error:
        raise InvalidModel(f"ONNX's checker refuses what was written: {_said(error)}.") from error
    return made


def inferred(proto: Any) -> Any:
    """The graph with the shapes that follow from its inputs; raises InvalidModel where they do not fit together."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise InvalidModel(f"ONNX finds no shapes for what was written: {_said(error)}.") from error


def symbolic(proto: Any) -> list[str]:
    """The values whose shape is not numbers throughout; of inner graphs those with a name in place of a size."""
    return [value.name for value in _open(proto.graph)]


def _open(graph: Any) -> Iterator[Any]:
    known = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
    for value in known.values():
        if value.type.HasField("tensor_type") and not _is_said(value):
            yield value
    import onnx

    for node in graph.node:
        for name in node.output:
            if name and name not in known:
                yield onnx.ValueInfoProto(name=name)
    for inner in list(_graphs(graph))[1:]:
        for value in (*inner.input, *inner.output, *inner.value_info):
            if any(size.dim_param for size in value.type.tensor_type.shape.dim):
                yield value


def _is_said(value: Any) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(size.HasField("dim_value") for size in tensor.shape.dim)


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def inputs_of(graph: Any) -> list[Any]:
    """The inputs that are given, without stored tensors that are listed among them."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def sizes_of(value: Any) -> list[int]:
    """The sizes that a graph says of a value; 0 for one that is left open."""
    return [size.dim_value for size in value.type.tensor_type.shape.dim]


def _copied(proto: Any) -> Any:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _say(value: Any, shape: Sequence[int]) -> None:
    sizes = value.type.tensor_type.shape
    del sizes.dim[:]
    for size in shape:
        sizes.dim.add().dim_value = int(size)


def _said(error: Exception) -> str:
    """Its words without the place in ONNX's own sources that they begin with."""
    return re.sub(r"^\S+\.(h|cc):\d+: \w+: (Assertion `\w+` failed: )?", "", " ".join(str(error).split()))[:200].rstrip(
        ". "
    )
