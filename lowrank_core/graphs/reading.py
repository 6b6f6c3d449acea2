"""ONNX files, read without trust: every claim is held against the bytes that are there before anything is loaded.

A file of ONNX is data, not code; what could do harm are paths to other files, sizes that lie, messages that swell when
they are unpacked, and functions that call each other until there are billions of nodes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_core.errors import InvalidFile, InvalidModel
from lowrank_core.extras import extra
from lowrank_core.figures import how_many
from lowrank_core.graphs.as_found import LOWEST_OPSET, READ_OPSET, Packed, as_float, converted, decided, is_quantised
from lowrank_core.graphs.products import as_products
from lowrank_core.running.scope import raise_if_cancelled

OPSETS = (READ_OPSET, 23)
"""The versions of the standard operators whose meaning is known here; older ones are converted."""

LARGEST = 2**31 - 1
"""Bytes of one protobuf file; larger models keep their weights in a file beside it."""

MESSAGES = 1_000_000
"""More parts than any network has, in a file that is made to swell."""

NODES = 100_000
"""More nodes than any network has, once its functions are written out."""


@dataclass(frozen=True, slots=True, eq=False)
class AsRead:
    """A graph in the form that is read here. own: as the file has it, where that is another; changes: in words.

    packed: the integers that tensors of a quantised file come from, by the names that these have here.
    """

    model: Any
    own: Any = None
    changes: tuple[str, ...] = ()
    packed: dict[str, Packed] = field(default_factory=dict)


def read_onnx(path: Path, held: Mapping[str, np.ndarray] | None = None) -> AsRead:
    """The graph of a file, weights inside, functions written out, and nothing in it that is not known.

    held: values of inputs that are the same for all samples; they become constants, which a runtime may still be given
    others for. Older operators are converted, quantised graphs opened as the float network that they approximate,
    branches of constant conditions decided. Raises InvalidFile where the file is damaged or was made to do harm,
    InvalidModel where it is sound but holds operators that are not ONNX's own.
    """
    onnx = _onnx(path)
    size = path.stat().st_size
    if size > LARGEST:
        raise InvalidFile(
            f"{path} is {size:,} bytes, but a file of ONNX ends at 2 GB; keep the weights in a second file."
        )
    content = path.read_bytes()
    _check_wire(content, onnx.ModelProto.DESCRIPTOR, path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:
        raise InvalidFile(f"{path} is cut short or damaged ({' '.join(str(error).split())[:200]}).") from error
    del content
    if not model.graph.node:
        raise InvalidFile(f"{path} holds no graph; it is no model of ONNX.")
    raise_if_cancelled()
    _check_names(model, path)
    _load_external(model, path)
    _check_meaning(model, path)
    if model.functions:
        _check_functions(model, path)
        model = _known(path, lambda: onnx.inliner.inline_local_functions(model))
    _check_equations(model, path)
    given = _without_inputs(model, held or {})
    read = _brought_up(model, path)
    for graph in (read.model, read.own) if given else ():
        _with_inputs(graph, given, held or {})
    _check_operators(read.model, path)
    if read.model.ByteSize() < LARGEST:
        _known(path, lambda: onnx.checker.check_model(read.model))
    return read


def _without_inputs(model: Any, held: Mapping[str, np.ndarray]) -> list[Any]:
    """Turn inputs into stored tensors; the inputs as they were, with where each stood."""
    given = [(number, value) for number, value in enumerate(model.graph.input) if value.name in held]
    copies = []
    for number, value in reversed(given):
        copy = type(value)()
        copy.CopyFrom(value)
        copies.append((number, copy))
        model.graph.initializer.append(_as_declared(held[value.name], value))
        del model.graph.input[number]
    return copies[::-1]


def _as_declared(array: np.ndarray, value: Any) -> Any:
    from onnx import helper, numpy_helper

    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return numpy_helper.from_array(array.astype(dtype), value.name)


def _with_inputs(model: Any, given: list[Any], held: Mapping[str, np.ndarray]) -> None:
    """List them among the inputs again: what is stored under the name of an input is what it has where none is given.

    From version 4 of the format on.
    """
    if model is None:
        return
    stored = {tensor.name for tensor in model.graph.initializer}
    for number, value in given:
        model.graph.input.insert(number, value)
        if value.name not in stored:
            model.graph.initializer.append(_as_declared(held[value.name], value))
    model.ir_version = max(model.ir_version, 4)


def _brought_up(model: Any, path: Path) -> AsRead:
    """The same network with operators that are read here."""
    own, changes = None, []
    packed: dict[str, Packed] = {}

    def changed(work: Callable[[Any], Any], words: str) -> None:
        nonlocal model, own
        if own is None:
            own = type(model)()
            own.CopyFrom(model)
        raise_if_cancelled()
        try:
            model = work(model)
        except InvalidModel as error:
            raise InvalidModel(f"{path}: {error}") from error
        except Exception as error:
            raise InvalidModel(
                f"{path} was not opened: {words} failed ({' '.join(str(error).split())[:300]})."
            ) from error
        changes.append(words)

    opset = _opset(model)
    if opset < READ_OPSET:
        changed(converted, f"converting it from opset {opset} to {READ_OPSET}")
    if any(map(is_quantised, model.graph.node)):
        changed(
            lambda graph: as_float(graph, packed), "opening its quantised weights as floats, with their scales applied"
        )
    branches = _branches(model)
    if branches:
        with suppress(Exception):  # whatever ONNX IR raises: then each is decided when it is run
            folded = decided(model)
            if _branches(folded) < branches:
                changed(lambda _: folded, "deciding the branches whose conditions are constants")
    with suppress(Exception):  # whatever ONNX's shapes raise: then they stay as they are
        products = as_products(model)
        if products.written:
            many = how_many(products.written, "product")
            changed(products.into, f"writing {many} with weights as inputs times a matrix")
    stored = {tensor.name for tensor in model.graph.initializer}
    return AsRead(model, own, tuple(changes), {name: packed[name] for name in packed.keys() & stored})


def _branches(model: Any) -> int:
    return sum(node.op_type == "If" for graph in _graphs(model) for node in graph.node)


def _opset(model: Any) -> int:
    """The version of the standard operators."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _onnx(path: Path) -> Any:
    with extra("onnx", str(path)):
        import onnx
        import onnx.inliner
    return onnx


def _known(path: Path, work: Any) -> Any:
    """What the tools of ONNX answer; whatever they raise becomes one line."""
    try:
        return work()
    except Exception as error:
        raise InvalidFile(f"{path} is no valid model of ONNX: {' '.join(str(error).split())[:400]}") from error


def _check_wire(content: bytes, descriptor: Any, path: Path) -> None:
    """Walk the messages as they lie in the file, and stop where there are more than any network has."""
    stack: list[tuple[int, int, Any]] = [(0, len(content), _nested(descriptor))]
    kinds: dict[str, Any] = {}
    fields_seen = messages = 0
    try:
        while stack:
            at, end, fields = stack.pop()
            while at < end:
                fields_seen += 1
                if fields_seen > 5 * MESSAGES or messages > MESSAGES:
                    raise InvalidFile(f"{path} has more parts than any network; it was not opened.")
                tag, at = _varint(content, at)
                kind = tag & 7
                if kind == 0:
                    _, at = _varint(content, at)
                elif kind == 2:
                    length, at = _varint(content, at)
                    inner = fields.get(tag >> 3)
                    if inner is not None:
                        messages += 1
                        if inner.full_name not in kinds:
                            kinds[inner.full_name] = _nested(inner)
                        stack.append((at, at + length, kinds[inner.full_name]))
                    at += length
                elif kind in (1, 5):
                    at += 8 if kind == 1 else 4
                else:
                    raise ValueError(f"wire type {kind}")
            if at != end:
                raise ValueError("a part is longer than what holds it")
    except (IndexError, ValueError) as error:
        raise InvalidFile(f"{path} is cut short or damaged, or no model of ONNX ({error}).") from error


def _nested(descriptor: Any) -> dict[int, Any]:
    """The fields of a message that hold messages."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number without an end")


def _graphs(model: Any) -> Iterator[Any]:
    """The graph and the functions, with every graph inside their nodes."""
    pending = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                pending += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())
        for node in graph.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t


def _check_names(model: Any, path: Path) -> None:
    """That every name is text: what is no UTF-8 comes as bytes."""
    for graph in _graphs(model):
        named = [*getattr(graph, "initializer", ()), *graph.node, *(a for node in graph.node for a in node.attribute)]
        values = [*graph.input, *graph.output]  # names alone in a function, else with their types
        used = [name for node in graph.node for name in (node.op_type, node.domain, *node.input, *node.output)]
        typed = [value for value in (*values, *getattr(graph, "value_info", ())) if hasattr(value, "type")]
        sizes = [axis.dim_param for value in typed for axis in value.type.tensor_type.shape.dim]
        for name in (*used, *sizes, *(one.name for one in named), *(getattr(value, "name", value) for value in values)):
            if not isinstance(name, str):
                raise InvalidFile(f"{path} is damaged: it holds a name that is no text ({name[:40]!r}).")


def _load_external(model: Any, path: Path) -> None:
    """Check every path and size first; only then read what lies in the files beside the model."""
    from onnx import TensorProto

    outside = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
    places = [_place(tensor, path) for tensor in outside]
    sizes = {file: file.stat().st_size for file, _, _ in places}
    claimed = sum(length for _, _, length in places)
    if claimed > sum(sizes.values()):
        raise InvalidFile(
            f"{path} claims {claimed:,} bytes of weights in files of {sum(sizes.values()):,}; it was not opened."
        )
    for tensor, (file, offset, length) in zip(outside, places, strict=True):
        with file.open("rb") as data:
            data.seek(offset)
            tensor.raw_data = data.read(length)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _place(tensor: Any, path: Path) -> tuple[Path, int, int]:
    """(file, offset, bytes) of a tensor outside the model's file, in its folder or below, with all its bytes there."""
    about = {entry.key: entry.value for entry in tensor.external_data}
    location = about.get("location", "")
    where = f"{path}: the weights {tensor.name[:100]!r}"
    parts = Path(location).parts
    if not parts or Path(location).is_absolute() or ".." in parts or "\\" in location or "\0" in location:
        raise InvalidFile(f"{where} lie in {location[:100]!r}, outside the model's folder; that is not opened.")
    file = path.parent
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise InvalidFile(f"{where} lie behind the link {location[:100]!r}, which is not followed; copy the file.")
    if not file.is_file():
        raise InvalidFile(
            f"{where} lie in {location[:100]!r}, but there is no such file beside the model; copy it there."
        )
    try:
        offset = int(about.get("offset", "0"))
        length = int(about["length"]) if "length" in about else file.stat().st_size - offset
    except ValueError:
        offset = length = -1
    bits = _bits(tensor.data_type)
    if offset < 0 or length < 0 or bits is None or -(-prod(tensor.dims) * bits // 8) != length:
        shape = "x".join(map(str, tensor.dims))
        raise InvalidFile(
            f"{where} claim to be {length:,} bytes at {offset:,} for {shape}, which cannot be; not opened."
        )
    if offset + length > file.stat().st_size:
        length_held = file.stat().st_size
        raise InvalidFile(
            f"{where} end at byte {offset + length:,} of {location[:100]!r}, which has {length_held:,}; not opened."
        )
    return file, offset, length


def _bits(data_type: int) -> int | None:
    """Bits of one element; None for texts and what is no type."""
    from onnx import TensorProto, helper

    if data_type == TensorProto.STRING or data_type not in helper.get_all_tensor_dtypes():
        return None
    name = TensorProto.DataType.Name(data_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    if name in ("INT2", "UINT2"):
        return 2
    return 8 * int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _check_meaning(model: Any, path: Path) -> None:
    """What is sound, but is not opened here."""
    opset, high = _opset(model), OPSETS[1]
    if not LOWEST_OPSET <= opset <= high:
        raise InvalidModel(
            f"{path} is written in opset {opset}, and {LOWEST_OPSET} to {high} are read; convert it: "
            f"onnx.version_converter.convert_version(model, {min(max(opset, 18), high)})."
        )
    if model.training_info:
        raise InvalidModel(f"{path} carries a training graph; export the network for inference.")
    if any(getattr(graph, "sparse_initializer", ()) for graph in _graphs(model)):
        raise InvalidModel(f"{path} holds sparse weights, which are not factorised; export them dense.")


def _check_equations(model: Any, path: Path) -> None:
    """That each Einsum has an equation that is one: over another ONNX's shape inference never ends."""
    for node in (node for graph in _graphs(model) for node in graph.node if node.op_type == "Einsum"):
        for attribute in node.attribute:
            equation = attribute.s.decode("utf-8", "replace").replace(" ", "")
            if attribute.name == "equation" and not _EQUATION.fullmatch(equation):
                raise InvalidFile(
                    f"{path}: node {node.name!r} (Einsum) must have an equation such as 'ab,bc->ac', "
                    f"but has {equation[:80]!r}; not opened."
                )


_TERM = r"[A-Za-z]*(?:\.\.\.[A-Za-z]*)?"
_EQUATION = re.compile(rf"{_TERM}(?:,{_TERM})*(?:->{_TERM})?")


def _check_functions(model: Any, path: Path) -> None:
    """How many nodes there will be once every function is written out; none may call itself."""
    bodies = {(f.domain, f.name, getattr(f, "overload", "")): f for f in model.functions}
    counted: dict[Any, int] = {}

    def count(nodes: Any, open_: tuple[Any, ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, getattr(node, "overload", ""))
            if key in open_ or len(open_) > 100:
                raise InvalidFile(f"{path}: the function {node.op_type!r} calls itself; it was not opened.")
            if key in bodies and key not in counted:
                counted[key] = count(bodies[key].node, (*open_, key))
            total += counted.get(key, 1)
            for attribute in node.attribute:
                for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    total += count(graph.node, open_)
        return total

    total = count(model.graph.node, ())
    if total > NODES:
        raise InvalidFile(f"{path} would have {total:,} nodes once its functions are written out; it was not opened.")


def _check_operators(model: Any, path: Path) -> None:
    """All that is in the way, at once."""
    nodes = [node for graph in _graphs(model) for node in graph.node]
    foreign = Counter(f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in ("", "ai.onnx"))
    if foreign:
        raise InvalidModel(
            f"{path} uses operators that are not ONNX's own ({_counted(foreign)}); export it without optimisation "
            "for one runtime."
        )


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} {number} times" if number > 1 else name for name, number in sorted(names.items()))
