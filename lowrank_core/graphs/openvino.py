"""OpenVINO: networks in its own form (a graph in XML, weights beside it) or in ONNX, run on the processor."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidFile, InvalidModel
from lowrank_core.extras import extra
from lowrank_core.graphs.alone import Places, at_a_time
from lowrank_core.graphs.exporting import PLACES
from lowrank_core.store.files import temporary_name, try_room, weights_beside

if TYPE_CHECKING:
    from collections.abc import Iterator

_TELEMETRY = "openvino_telemetry"


def runtime(what: str = "OpenVINO") -> Any:
    """The package openvino, imported without the part of it that tells its maker and writes into the home folder.

    OpenVINO does without that part where it is not installed, which is what it is told here.
    Raises MissingExtra where the package is missing.
    """
    with extra("edge", what), _untold():
        import openvino
    return openvino


@contextmanager
def _untold() -> Iterator[None]:
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # importing it is an ImportError
    try:
        yield
    finally:
        sys.modules.pop(_TELEMETRY, None)


def settings(threads: int) -> dict[str, Any]:
    """How a network is run here: in float32, whatever the processor has, and in the thread that asks where it is one.

    >>> settings(1)["INFERENCE_PRECISION_HINT"]
    'f32'
    """
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }


def from_onnx(content: bytes) -> Any:
    """An `openvino.Model` of an ONNX file; raises InvalidModel, with the operator, where OpenVINO has none for it."""
    core = runtime().Core()
    try:
        model = core.read_model(content)
    except Exception as error:
        raise InvalidModel(
            f"OpenVINO cannot take this network: {_short(error)}; an ONNX model, which onnxruntime runs, holds it all "
            "the same."
        ) from error
    for number, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):  # counted over all that this process has read
            node.set_friendly_name(f"{kind}_{number}")
    return model


_GRAPH_BYTES = 2**20
"""What the graph itself takes beside its weights, roughly."""


def save(model: Any, path: Path) -> None:
    """Write a graph, and its weights beside it, in their own types; raises OSError, InvalidFile where none says why."""
    try:
        runtime().save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # of a stream, which does not say what the system said
        weights = sum(each.data.nbytes for each in model.get_ops() if each.get_type_name() == "Constant")
        try_room(temporary_name(path), weights + _GRAPH_BYTES)
        raise InvalidFile(f"OpenVINO could not write {path.name}: {_short(error)}.") from error


class OpenVinoNetwork(nn.Module):
    """A file of OpenVINO, its weights beside it, called as the network was that it was made from.

    output_names: what its outputs are to be called.
    """

    def __init__(self, path: str, output_names: Sequence[str] = ()) -> None:
        super().__init__()
        openvino = runtime()
        try:
            model = openvino.Core().read_model(path, str(weights_beside(Path(path).with_suffix(".xml"))))
            self._compiled = openvino.Core().compile_model(model, "CPU", settings(torch.get_num_threads()))
        except Exception as error:
            raise InvalidFile(f"OpenVINO cannot open it: {_short(error)}.") from error
        self._places = Places.from_json(model.get_rt_info(PLACES).value) if model.has_rt_info(PLACES) else None
        self._taken = [given.get_any_name() for given in model.inputs]
        self.output_names = tuple(output_names)

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenVinoNetwork:
        """Itself: it keeps nothing between two calls."""
        return self

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        """All outputs of the graph, in its order."""
        named = kwargs or dict(zip(self._taken, args, strict=True))
        inputs = [named[name].detach().cpu() for name in self._taken]
        return at_a_time(self._answers, inputs, self._places) if self._places else self._answers(inputs)

    def _answers(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        found = self._compiled([value.contiguous().numpy() for value in inputs])
        return tuple(torch.from_numpy(found[output].copy()) for output in self._compiled.outputs)


def inference(content: bytes, values: Sequence[Any], threads: int) -> Any:
    """An inference request of an ONNX file at the sizes of these NumPy inputs, which its `infer` method runs.

    Raises InvalidModel where OpenVINO cannot.
    """
    openvino, model = runtime("timing with OpenVINO"), from_onnx(content)
    try:
        given = model.inputs  # an input that nothing takes is gone from the graph
        model.reshape({one: value.shape for one, value in zip(given, values, strict=True)})
        request = openvino.Core().compile_model(model, "CPU", settings(threads)).create_infer_request()
        for number, value in enumerate(values):
            request.set_input_tensor(number, openvino.Tensor(value, shared_memory=True))
        request.infer()
    except Exception as error:
        raise InvalidModel(
            f"OpenVINO cannot run this network: {_short(error)}; measure it with torch instead."
        ) from error
    return request


def _short(error: Exception) -> str:
    """What OpenVINO says, without the places in its own code."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "While"))]
    return " ".join(told or lines)[:300].rstrip(". ")
