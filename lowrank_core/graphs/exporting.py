"""A network as a graph that other runtimes read: by `torch.export` with a free batch axis, and from there as ONNX."""

from __future__ import annotations

import re
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from lowrank_core.errors import InvalidFile, InvalidModel
from lowrank_core.extras import extra
from lowrank_core.graphs import recurrent
from lowrank_core.graphs.alone import Places, at_a_time
from lowrank_core.graphs.onnx_network import AT_NODE
from lowrank_core.layers.computed import sharing
from lowrank_core.layers.data import BatchAxes, Inputs, call, evaluating, first_axes, named_outputs, tensors
from lowrank_core.running.own_process import nothing_printed

if TYPE_CHECKING:
    import onnx

exporters_turn = threading.RLock()
"""Exporters set for a whole process what they need while they trace: within one, one at a time."""

PLACES = "lowrank_samples"
"""Key of a property of an ONNX file that takes so many samples at a time: their `Places`."""

_NETWORK = "network"
_TORCH = str(Path(torch.__file__).parent)
_LAYERS = str(Path(nn.__file__).parent)


class _AsItsOperators(TorchFunctionMode):
    """Encoder layers as the operators they are made of: while a function mode is active in a thread, PyTorch does not
    take their fused kernel there, which exists in PyTorch alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def exported_program(model: nn.Module, inputs: Inputs, axes: BatchAxes | None = None) -> ExportedProgram:
    """The graph of a network in eval mode, called as `inputs` are, with a free batch axis; the model is not changed.

    axes: where the batch is; without them it comes first. A batch of one is repeated to two: PyTorch would take the 1
    for a constant. Recurrent layers are calls of PyTorch's own, at the length of the inputs.
    What it answers is of tensors, tuples, lists and dicts; anything else becomes a dict of the tensors in it, by name:
    who reads the file may not have the package that its class is of.
    Raises InvalidModel with the layer and the line of code where the network cannot be traced.
    """
    own = sharing(model)
    recurrent.call(own)
    own.register_forward_hook(lambda module, args, answered: _plain(answered))
    return _traced(own, inputs, axes or first_axes(inputs))


def fixed_program(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The graph of a network at the batch that `inputs` are, no size left open, in eval mode; it answers with tensors.

    Its inputs are the tensors of `inputs`, in the order of `data.tensors`; recurrent layers are calls of PyTorch's own.
    Raises InvalidModel as `exported_program`.
    """
    own = sharing(_Tensors(model))
    recurrent.call(own)
    return _traced(own, (inputs,), None)


def _plain(answered: Any) -> Any:
    """An answer as PyTorch alone knows it."""
    return answered if _is_plain(answered) else dict(named_outputs(answered))


def _is_plain(value: Any) -> bool:
    if type(value) in (tuple, list, dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, Tensor | int | float | str)


def _traced(own: nn.Module, inputs: Inputs, axes: BatchAxes | None) -> ExportedProgram:
    """The graph of a copy; without axes every size is that of the inputs."""
    unsayable = next((name for name in own.state_dict() if {"'", '"'} <= set(name)), None)
    if unsayable is not None:  # PyTorch writes code with it as a text
        raise InvalidModel(
            f"{_own_name(unsayable)}: no graph of PyTorch holds a name with both kinds of quotes; a checkpoint "
            "(safetensors) holds it all the same."
        )
    if axes is not None:
        inputs = _two_or_more(inputs, axes)
    kwargs = inputs if isinstance(inputs, dict) else {}
    args = () if kwargs else tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)

    def free(lengths: bool) -> Any:
        if axes is None:
            return None
        shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
        for tensor, axis in zip(tensors(inputs), axes.inputs, strict=True):
            others = dict.fromkeys(range(tensor.ndim), Dim.AUTO) if lengths else {}
            shapes[tensor] = others if axis is None else {**others, axis: Dim.DYNAMIC}
        return shapes

    with exporters_turn, evaluating(own), _AsItsOperators(), nothing_printed():
        traced = None
        if axes is not None and recurrent.is_placed(own):
            with suppress(Exception):  # then its code takes one length, and says so of anything but the batch
                traced = torch.export.export(own, args, kwargs, dynamic_shapes=free(lengths=True))
        try:
            traced = traced or torch.export.export(own, args, kwargs, dynamic_shapes=free(lengths=False))
        except Exception as error:
            raise InvalidModel(
                f"the network cannot be exported as a graph: {_place(own, error)}{_short(error)}; a checkpoint "
                "(safetensors) holds it all the same."
            ) from error
    traced.example_inputs = None  # nobody's samples are written
    for part in traced.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # nor the paths of this machine
    return traced


def onnx_program(
    model: nn.Module, inputs: Inputs, axes: BatchAxes | None = None, *, optimize: bool = True
) -> onnx.ModelProto:
    """The network as ONNX, in memory, with a free batch axis; weights keep their names.

    Recurrent layers are nodes of ONNX (`graphs.recurrent`), and their sequences may have any length that the code of
    the network allows.

    Inputs are called "input" (a tensor), "input_0", "input_1" ... (a tuple) or by the keys of a dict; outputs as
    `data.call` names them, with "_out" behind it where an input has that name. axes: as for `exported_program`.
    optimize: fold constants and BatchNorm; runtimes do so in any case.
    Raises InvalidModel with the layer and the operator where the network cannot be exported.
    """
    names = ["input"]
    if isinstance(inputs, dict):
        names = list(inputs)
    elif isinstance(inputs, tuple | list) and len(inputs) > 1:
        names = [f"input_{number}" for number in range(len(inputs))]
    with extra("onnx", "ONNX"):
        import onnxscript  # noqa: F401
    wrapped = _Tensors(model)
    with evaluating(wrapped):
        answers = [name + "_out" * (name in names) for name in call(model, inputs)]
    own = sharing(wrapped)
    placed = [(_own_name(path), module) for path, module in recurrent.place(own)]
    traced = _traced(own, (inputs,), axes or first_axes(inputs))
    _lay_out(traced)
    try:
        with exporters_turn:
            made = torch.onnx.export(
                traced,
                dynamo=True,
                verbose=False,
                external_data=False,
                optimize=optimize,
                input_names=names,
                output_names=answers,
            )
        assert made is not None
    except Exception as error:
        raise InvalidModel(
            f"the network cannot be written as ONNX: {_operator(traced, error)}{_short(error)}; .pt2 or a checkpoint "
            "(safetensors) hold it all the same."
        ) from error
    graph = made.model.graph
    for name in list(graph.initializers):
        graph.initializers[name].name = name.removeprefix(f"{_NETWORK}.")
    proto: onnx.ModelProto = made.model_proto
    recurrent.expand(proto, placed)
    _name_axes(proto.graph, axes or first_axes(inputs))
    return proto


def program_of_one(model: nn.Module, inputs: Inputs, axes: BatchAxes, whole: Sequence[str]) -> ExportedProgram:
    """The graph of a network for one sample, all sizes fixed, in the core operators of PyTorch; recurrent layers step
    by step. Its placeholders are weights and inputs, its outputs those of `data.call`, in that order.

    whole: operators that stay as they are, by their names in `torch.ops.aten`. Raises InvalidModel as
    `exported_program` does.
    """
    one = axes.pick(inputs, slice(0, 1))
    own = sharing(_Tensors(model))
    with exporters_turn, evaluating(own), _AsItsOperators(), nothing_printed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            traced = torch.export.export(own, (one,))
            known: Any = torch.export.default_decompositions()
            for name in whole:
                packet = getattr(torch.ops.aten, name)
                for overload in packet.overloads():
                    known.pop(getattr(packet, overload), None)
            lowered: ExportedProgram = traced.run_decompositions(known)
        except Exception as error:
            raise InvalidModel(
                f"the network cannot be exported as a graph: {_place(own, error)}{_short(error)}; a checkpoint "
                "(safetensors) holds it all the same."
            ) from error
    return lowered


def layer_of(node: Any) -> str:
    """The name of the layer that a node of a traced network is called in; "" for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values()) or [("", None)]
    return _own_name(str(stack[-1][0]))


def _lay_out(traced: ExportedProgram) -> None:
    """A copy between each transposition and the view of what it gives, which ONNX does not see: once attention is taken
    apart its numbers lie in another order than where it was traced, and PyTorch refuses to view them as they are.
    """
    aten = torch.ops.aten
    turned, viewed = (aten.transpose.int, aten.permute.default), (aten.view.default, aten.reshape.default)
    for part in traced.graph_module.modules():
        for node in list(part.graph.nodes) if isinstance(part, GraphModule) else ():
            if node.target not in viewed or getattr(node.args[0], "target", None) not in turned:
                continue
            with part.graph.inserting_before(node):
                copied = part.graph.call_function(
                    aten.clone.default, (node.args[0],), {"memory_format": torch.contiguous_format}
                )
            copied.meta = dict(node.args[0].meta)
            node.replace_input_with(node.args[0], copied)
        if isinstance(part, GraphModule):
            part.recompile()


def _name_axes(graph: Any, axes: BatchAxes) -> None:
    """Call the free sizes of a graph "batch" and "length", or "length_1" ..., wherever they are."""
    names: dict[str, str] = {}
    for value, axis in zip(graph.input, axes.inputs, strict=False):
        for number, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_param and number == axis:
                names.setdefault(size.dim_param, "batch")
    for value in graph.input:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                lengths = len(set(names.values()) - {"batch"})
                names.setdefault(size.dim_param, f"length_{lengths}" if lengths else "length")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), size.dim_param)


class OnnxNetwork(nn.Module):
    """An ONNX file, or its bytes, run by onnxruntime and called as the network was that it was made from.

    output_names: those of the graph, or what its outputs are to be called.
    """

    def __init__(self, model: str | bytes, output_names: Sequence[str] | None = None) -> None:
        super().__init__()
        with extra("onnx", "ONNX"):
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes are many, and none has a common parent
            raise InvalidFile(f"onnxruntime cannot open it: {_short(error)}.") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        self._places = Places.from_json(properties[PLACES]) if PLACES in properties else None
        graph = (output.name for output in self._session.get_outputs())
        self.output_names = tuple(graph if output_names is None else output_names)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        """Itself: a session keeps nothing between two calls."""
        return self

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        """All outputs of the graph, in its order."""
        taken = [given.name for given in self._session.get_inputs()]
        named = kwargs or dict(zip(taken, args, strict=True))
        inputs = [named[name].detach().cpu() for name in taken]
        if self._places:
            return at_a_time(self._answers, inputs, self._places)
        return self._answers(inputs)

    def _answers(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        taken = [given.name for given in self._session.get_inputs()]
        feed = {name: value.numpy() for name, value in zip(taken, inputs, strict=True)}
        return tuple(map(torch.from_numpy, self._session.run(None, feed)))


class _Tensors(nn.Module):
    """The network with nothing but tensors in what it answers, one after the other."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.add_module(_NETWORK, network)

    def forward(self, inputs: Inputs) -> Tensor | tuple[Tensor, ...]:
        """The outputs of the network in the order of `data.call`; one alone is no tuple."""
        outputs = tuple(call(self.get_submodule(_NETWORK), inputs).values())
        return outputs if len(outputs) > 1 else outputs[0]


def _two_or_more(inputs: Inputs, axes: BatchAxes) -> Inputs:
    return inputs if axes.samples(inputs) > 1 else axes.joined([inputs, inputs])


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _place(model: nn.Module, error: Exception) -> str:
    """The node of a file that was running, or the innermost layer and its line of code; nothing outside of all."""
    for cause in _causes(error):
        for note in getattr(cause, "__notes__", ()):
            if note.startswith(AT_NODE):
                return f"{note} stops: "
    names = {id(module): name for name, module in model.named_modules()}
    for cause in _causes(error):
        for frame, line in reversed(list(traceback.walk_tb(cause.__traceback__))):
            receiver = frame.f_locals.get((*frame.f_code.co_varnames, "")[0])
            module = names.get(id(receiver))
            file = frame.f_code.co_filename
            machinery = file.startswith(_TORCH) and not file.startswith(_LAYERS)
            if module is None or machinery or file in (nn.modules.module.__file__, __file__):
                continue
            source = traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name).line or "?"
            module = _own_name(module)
            return f"{f'layer {module!r}' if module else 'its forward()'} stops at `{source}`: "
    return ""


def _operator(traced: ExportedProgram, error: Exception) -> str:
    """The operator that ONNX lacks, and the layer it is called in."""
    for cause in _causes(error):
        operator = re.search(r"(?:aten[.:]+|op='\w+\.)(\w+)", str(cause))
        if not operator:
            continue
        for node in traced.graph.nodes:
            if node.op == "call_function" and operator[1] in str(node.target):
                stack = list(node.meta.get("nn_module_stack", {}).values()) or [("", None)]
                layer = _own_name(str(stack[-1][0]))
                return f"{f'layer {layer!r}' if layer else 'its forward()'} calls {operator[1]}: "
    return ""


def _own_name(name: str) -> str:
    """The layer's name in the network itself, not in the wrapper; "" for the network."""
    return "" if name == _NETWORK else name.removeprefix(f"{_NETWORK}.")


def _short(error: Exception) -> str:
    """The innermost cause of an exporter's failure, in one line."""
    *_, last = _causes(error)
    if isinstance(last, InvalidModel):
        return str(last).rstrip(".")
    kind = type(last).__name__
    if kind in _REASONS:
        return _REASONS[kind]
    lines = [line.strip() for line in str(last).splitlines() if line.strip()]
    return f"{kind}{': ' + lines[0][:200].rstrip('. ') if lines else ''}"


_REASONS = {
    "Unhandled": "only ONNX's own reference computes it so, which is no part of a graph",
    "GuardOnDataDependentSymNode": "what it computes depends on values that are known only when it runs",
    "ConstraintViolationError": "its code works at one batch size only (a view or a loop with that number in it)",
}
