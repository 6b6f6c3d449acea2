"""ONNX: one file that onnxruntime runs without PyTorch, at any batch size or at one, in float or in int8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank_core.compression.precision import DTYPES, Int8, Storage
from lowrank_core.errors import InvalidFile, InvalidModel, few
from lowrank_core.exports import Compressed, Export, Exported, Snippet, register, reloaded
from lowrank_core.exports._onnx_surgery import came_from_onnx, compressed_onnx
from lowrank_core.exports._provenance import plan_document
from lowrank_core.exports._recurrent import forms_of
from lowrank_core.exports._wide import wide_in_onnx
from lowrank_core.extras import check_installed, extra
from lowrank_core.figures import how_many
from lowrank_core.graphs.alone import Places
from lowrank_core.graphs.exporting import PLACES, OnnxNetwork, onnx_program
from lowrank_core.graphs.onnx_forms import (
    at_opset,
    at_sizes,
    checked,
    inputs_of,
    opset_of,
    padding_apart,
    sizes_of,
    symbolic,
)
from lowrank_core.layers.data import Dataset, Inputs, first_axes, run, tensors
from lowrank_core.measure.comparison import compare
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.store.files import folder_beside, move, scratch, weights_beside, whole_or_nothing, writing
from lowrank_core.workspace import Workspace

if TYPE_CHECKING:
    import onnx

PLAN = "lowrank_plan"
"""Key of the plan among the model's properties."""

LARGEST_BYTES = 2**31 - 2**20
"""Above this, weights go to a second file beside: a protobuf holds less than 2 GB."""

TOLERANCE = 1e-4
"""Largest distance of outputs that passes, relative to the largest output: another runtime rounds otherwise."""


def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """Write the graph under a temporary name, run it in a fresh process, compare, then move it to `path`.

    int8: weights per channel and activations, with ranges from the calibration samples; the score is then that of the
    quantised network, and compared is what the file answers here and in the fresh process.

    Raises InvalidModel where the network cannot be written, InvalidFile where a step fails; then `path` is as it was.
    """
    with extra("onnx", "ONNX"):
        import onnx
        import onnxruntime  # noqa: F401
    report(Progress("following one inference through the network"))
    narrow = DTYPES.get(compressed.storage.dtype or "")
    stored, profile = compressed.storage, workspace.profile
    own = came_from_onnx(workspace) and not (stored.fold_bias or stored.dense)
    if own:  # nothing of its graph changes but the compressed layers
        proto = compressed_onnx(workspace, compressed.model, compressed.plan)
    else:
        proto = onnx_program(
            compressed.model, workspace.opened.example_inputs, workspace.opened.axes, optimize=narrow is None
        )
    apart = padding_apart(proto)
    forms = forms_of(workspace, compressed)
    output_names = tuple(run(compressed.model, Dataset(workspace.opened.example_inputs)))
    asked = stored.batch is not None or stored.opset is not None
    if asked and _is_large(proto):
        raise InvalidModel("above 2 GB ONNX's tools take no graph apart; write it without --batch and --opset.")
    if stored.opset is not None:
        proto = at_opset(proto, stored.opset)
    if stored.batch is not None:
        report(Progress("fixing the batch"))
        proto = _at_batch(workspace, proto, stored.batch, len(output_names))
    if narrow is not None:
        _narrow(proto, narrow)
    comparison = None
    if stored.dtype == "int8":
        report(Progress("quantising"))
        proto = quantised(proto, workspace.calibration.inputs, stored.int8)
        proto = checked(proto) if not _is_large(proto) else proto
        network = OnnxNetwork(proto.SerializeToString(), output_names)
        report(Progress("measuring"))
        comparison = compare(workspace, network)
        compressed = replace(compressed, model=network, score=comparison.score)
    if asked:
        proto = checked(proto)
        _refuse_otherwise(proto, stored)
    for part in () if own else (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        del part.metadata_props[:]  # how each operator came about, often larger than the weights
    carried = {prop.key: prop.value for prop in proto.metadata_props}

    def put_plan(compressed: Compressed) -> None:
        onnx.helper.set_model_props(proto, {**carried, PLAN: plan_document(workspace, compressed, **forms.provenance)})

    def save_dense(to: Path) -> None:
        empty = RankPlan(profile.fingerprint)
        dense = (
            compressed_onnx(workspace, workspace.model, empty)
            if own
            else onnx_program(workspace.model, workspace.opened.example_inputs, optimize=True)
        )
        padding_apart(dense)
        onnx.save(dense, to)

    put_plan(compressed)
    with _files(path, proto) as temporary:
        largest, verdict = reloaded(
            "onnx", workspace, compressed, temporary, path, tolerance=TOLERANCE, write_dense=save_dense
        )
        if verdict == "accepted":
            put_plan(replace(compressed, accepted=largest))
            _save(proto, temporary, weights_beside(path).name)
        written = sum(file.stat().st_size for file in (temporary, weights_beside(temporary)) if file.is_file())
    wide = wide_in_onnx(proto) if stored.dtype == "int8" else ""
    notes = (*compressed.notes, *forms.notes, *filter(None, (wide, _kept_apart(apart))))
    return Exported(str(path), written, largest, compressed.score, verdict, notes, comparison=comparison, wide=wide)


def _kept_apart(pools: int) -> str:
    if not pools:
        return ""
    return (
        f"{how_many(pools, 'max pooling')} behind a padding {'says' if pools == 1 else 'say'} auto_pad=VALID: else "
        "onnxruntime leaves the padding out of the maximum, and answers otherwise"
    )


def _at_batch(workspace: Workspace, proto: onnx.ModelProto, batch: int, outputs: int) -> onnx.ModelProto:
    """The graph for so many samples at a time; which of its axes they are in stands among its properties."""
    import onnx

    properties = {entry.key: entry.value for entry in proto.metadata_props}
    if PLACES in properties:  # the file that the network came from fixes its batch
        given = Places.from_json(properties[PLACES])
        if any(place.size != batch for place in given.inputs):
            raise InvalidModel(
                f"the network's own file takes {given.inputs[0].size} samples at a time; give that --batch."
            )
        return at_sizes(proto, [sizes_of(value) for value in inputs_of(proto.graph)])  # type: ignore[no-any-return]
    inputs = workspace.opened.example_inputs
    axes = workspace.opened.axes or first_axes(inputs)
    places = Places.of(axes, outputs, batch)
    picked = axes.pick(inputs, torch.arange(batch) % axes.samples(inputs))
    fixed: onnx.ModelProto = at_sizes(proto, [tensor.shape for tensor in tensors(picked)])
    onnx.helper.set_model_props(fixed, {**properties, PLACES: places.to_json()})
    return fixed


def _refuse_otherwise(proto: onnx.ModelProto, stored: Storage) -> None:
    """Raise InvalidModel where a graph is not at the opset, or has a size left open, that was asked for."""
    if stored.opset is not None and opset_of(proto) != stored.opset:
        raise InvalidModel(f"onnxruntime quantises into opset {opset_of(proto)}; give --opset {opset_of(proto)}.")
    if stored.batch is not None and (left := symbolic(proto)):
        raise InvalidModel(f"sizes of {few(left, repr)} are left open; write it without --batch.")


@contextmanager
def _files(path: Path, proto: onnx.ModelProto) -> Iterator[Path]:
    """The model under a temporary name, its weights beside it where they are large; both are moved at the end."""
    data = weights_beside(path)
    if not _is_large(proto):
        with whole_or_nothing(path) as temporary:
            _save(proto, temporary, "")
            yield temporary
        return
    if data.exists() and not path.is_file():
        raise InvalidFile(
            f"{data}, where the weights go, is there without {path.name}; remove it, or give another name."
        )
    with whole_or_nothing(path) as temporary, whole_or_nothing(data) as weights, folder_beside(path) as folder:
        inside = folder / path.name
        _save(proto, inside, data.name)
        yield inside
        move(weights_beside(inside), weights)
        move(inside, temporary)


def _is_large(proto: onnx.ModelProto) -> bool:
    return sum(len(weight.raw_data) for weight in proto.graph.initializer) > LARGEST_BYTES


def _save(proto: onnx.ModelProto, to: Path, data: str) -> None:
    """Write a model, its weights to a file of the name `data` beside it where they are large and not there yet."""
    import onnx

    if _is_large(proto):
        onnx.save(proto, to, save_as_external_data=True, location=data)
    else:
        with writing(to) as file:
            file.write(proto.SerializeToString())


def _narrow(proto: onnx.ModelProto, dtype: torch.dtype) -> None:
    """Keep every weight that the dtype holds exactly in it, and widen it first thing; runtimes do that once."""
    import onnx

    kind = onnx.TensorProto.FLOAT16 if dtype == torch.float16 else onnx.TensorProto.BFLOAT16
    casts = []
    for weight in proto.graph.initializer:
        if weight.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE) or prod(weight.dims) < 2:
            continue
        wide = torch.from_numpy(onnx.numpy_helper.to_array(weight).copy())
        narrowed = wide.to(dtype)
        if torch.equal(narrowed.to(wide.dtype), wide):
            stored = f"{weight.name}.{str(dtype).removeprefix('torch.')}"
            casts.append(onnx.helper.make_node("Cast", [stored], [weight.name], to=weight.data_type))
            raw = narrowed.view(torch.int16).numpy().tobytes()
            weight.CopyFrom(onnx.helper.make_tensor(stored, kind, list(weight.dims), raw, raw=True))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def quantised(proto: onnx.ModelProto, samples: Inputs, int8: Int8) -> onnx.ModelProto:
    """Static quantisation: QuantizeLinear and DequantizeLinear around each operator, a scale per channel or weight."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names, constant = [given.name for given in proto.graph.input], _constant_nodes(proto)
    properties = {entry.key: entry.value for entry in proto.metadata_props}

    class Samples(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Calibration samples in batches, each named as the graph names its inputs."""

        def __init__(self) -> None:
            taken = tensors(samples)
            batches: Iterable[Sequence[Tensor]] = zip(*(torch.split(tensor, _BATCH) for tensor in taken), strict=True)
            if PLACES in properties:
                batches = Places.from_json(properties[PLACES]).batches(taken)
            self._feeds = (dict(zip(names, (t.numpy() for t in batch), strict=True)) for batch in batches)

        def get_next(self) -> dict[str, object] | None:
            """The next batch of calibration inputs for onnxruntime; None at the end."""
            return next(self._feeds, None)

    with scratch() as folder:
        given, prepared, done = (folder / f"{name}.onnx" for name in ("given", "prepared", "quantised"))
        try:
            onnx.save(proto, given)
            quant_pre_process(given, prepared, skip_symbolic_shape=True, skip_optimization=bool(constant))
            tables = {name: [{"quant_type": quantization.QuantType.QInt8}] for name in _tables(onnx.load(prepared))}
            quantization.quantize_static(
                prepared,
                done,
                Samples(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=int8 == "per-channel",
                nodes_to_exclude=constant,
                extra_options={"TensorQuantOverrides": tables},
            )
            made = onnx.load(done)
            onnx.helper.set_model_props(made, properties)
            return made
        except OSError:
            raise
        except Exception as error:
            raise InvalidModel(
                f"onnxruntime cannot quantise this network: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}; float16 halves the bytes too."
            ) from error


def _tables(proto: onnx.ModelProto) -> set[str]:
    """Names of the weights whose rows are looked up: one scale for all of each, whatever else multiplies by it.

    onnxruntime gives what is looked up the scales of the weight, which by channels fit no row.
    """
    import onnx

    weights = {weight.name for weight in proto.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT}
    return {node.input[0] for node in proto.graph.node if node.op_type == "Gather"} & weights


def _constant_nodes(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes that multiply factors out: optimised, the file would hold the products."""
    known, names = {weight.name for weight in proto.graph.initializer}, []
    for node in proto.graph.node:
        if node.input and set(node.input) <= known:
            known |= set(node.output)
            names.append(node.name)
    return names


_BATCH = 32


def snippets(ref: str | None, file: str) -> tuple[Snippet, ...]:
    """Load and run it; and read the plan inside."""
    code = f"""import onnxruntime

session = onnxruntime.InferenceSession({file!r})
print([(given.name, given.shape) for given in session.get_inputs()])
print([given.name for given in session.get_outputs()])
# outputs = session.run(None, {{"input": array}})
"""
    plan = f"""import json

import onnxruntime

properties = onnxruntime.InferenceSession({file!r}).get_modelmeta().custom_metadata_map
plan = json.loads(properties[{PLAN!r}])
"""
    return Snippet("with onnxruntime alone", code), Snippet("and read the plan in it", plan)


OPTIONS = ("int8", "refit", "batch", "opset")


def _ready(workspace: Workspace) -> None:
    check_installed("onnx", "ONNX", "onnx", "onnxruntime")


register(
    Export(
        "onnx",
        "ONNX model",
        ".onnx",
        write,
        snippets,
        (*DTYPES, "int8"),
        traces=True,
        options=OPTIONS,
        ready=_ready,
    )
)
