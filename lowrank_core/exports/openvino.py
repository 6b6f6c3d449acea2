"""OpenVINO: a graph (.xml) with its weights (.bin) beside it, which Intel's runtime takes for processors and NPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lowrank_core.errors import InvalidFile
from lowrank_core.exports import Compressed, Export, Exported, Snippet, register, reloaded
from lowrank_core.exports._onnx_surgery import came_from_onnx, compressed_onnx
from lowrank_core.exports._provenance import plan_document
from lowrank_core.exports._recurrent import forms_of
from lowrank_core.extras import check_installed
from lowrank_core.graphs.exporting import PLACES, onnx_program
from lowrank_core.graphs.openvino import from_onnx, runtime, save
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.store.files import folder_beside, move, weights_beside, whole_or_nothing
from lowrank_core.workspace import Workspace

PLAN = "lowrank_plan"
"""Key of the plan in what the graph says of itself (`rt_info`)."""

SUFFIX = ".xml"

TOLERANCE = 1e-4
"""Largest distance of outputs that passes, relative to the largest output: another runtime rounds otherwise."""


def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """Write graph and weights under temporary names, run them in a fresh process, compare, then move them to `path`.

    The graph is OpenVINO's own of our ONNX model, with a free batch axis and the weights in their own type.

    Raises InvalidModel where OpenVINO has no operator for the network, InvalidFile where the name does not end in .xml
    or a step fails; then `path` is as it was.
    """
    runtime()
    check_name(path)
    report(Progress("following one inference through the network"))
    stored, inputs, axes = compressed.storage, workspace.opened.example_inputs, workspace.opened.axes
    own = came_from_onnx(workspace) and not (stored.fold_bias or stored.dense)
    if own:
        proto = compressed_onnx(workspace, compressed.model, compressed.plan)
    else:
        proto = onnx_program(compressed.model, inputs, axes)
    forms = forms_of(workspace, compressed)
    report(Progress("converting"))
    model = from_onnx(proto.SerializeToString())
    for prop in proto.metadata_props:
        if prop.key == PLACES:
            model.set_rt_info(prop.value, PLACES)

    def save_with_plan(compressed: Compressed, to: Path) -> None:
        model.set_rt_info(plan_document(workspace, compressed, **forms.provenance), PLAN)
        save(model, to)

    def save_dense(to: Path) -> None:
        empty = RankPlan(workspace.profile.fingerprint)
        dense = (
            compressed_onnx(workspace, workspace.model, empty) if own else onnx_program(workspace.model, inputs, axes)
        )
        save(from_onnx(dense.SerializeToString()), to.with_suffix(SUFFIX))
        move(to.with_suffix(SUFFIX), to)

    with _files(path) as temporary:
        report(Progress("writing"))
        save_with_plan(compressed, temporary)
        largest, verdict = reloaded(
            "openvino", workspace, compressed, temporary, path, tolerance=TOLERANCE, write_dense=save_dense
        )
        if verdict == "accepted":
            save_with_plan(replace(compressed, accepted=largest), temporary)
        size = sum(file.stat().st_size for file in (temporary, weights_beside(temporary)))
    beside = (str(weights_beside(path)),)
    return Exported(str(path), size, largest, compressed.score, verdict, forms.notes, beside)


def check_name(path: Path) -> None:
    """Raise InvalidFile for a name by which OpenVINO would not find the weights."""
    if path.suffix != SUFFIX:
        raise InvalidFile(
            f"{path.name} must end in {SUFFIX}: OpenVINO takes NAME.xml with NAME.bin beside it; give such a name."
        )


@contextmanager
def _files(path: Path) -> Iterator[Path]:
    """A name for the graph, the weights beside it, in a folder of their own; both are moved at the end."""
    data = weights_beside(path)
    with whole_or_nothing(path) as temporary, whole_or_nothing(data) as weights, folder_beside(path) as folder:
        inside = folder / path.name
        yield inside
        move(weights_beside(inside), weights)
        move(inside, temporary)


def snippets(ref: str | None, file: str) -> tuple[Snippet, ...]:
    """Load and run it; and read the plan inside."""
    code = f"""import openvino

# without the hint OpenVINO computes in bfloat16 where the processor can, 0.3 % off
network = openvino.Core().compile_model({file!r}, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
print(network.inputs, network.outputs)
# outputs = network([array])
"""
    plan = f"""import json

import openvino

plan = json.loads(openvino.Core().read_model({file!r}).get_rt_info({PLAN!r}).value)
"""
    return Snippet("with openvino alone", code), Snippet("and read the plan in it", plan)


def _ready(workspace: Workspace) -> None:
    check_installed("edge", "OpenVINO", "openvino")
    check_installed("onnx", "OpenVINO, which converts an ONNX graph,", "onnx")


register(Export("openvino", "OpenVINO model", SUFFIX, write, snippets, traces=True, ready=_ready))
