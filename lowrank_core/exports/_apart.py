"""Exports in a process of their own, so that nothing of an exporter reaches who works in this one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from lowrank_core.compression.checkpoint import load_checkpoint, write_checkpoint
from lowrank_core.exports import EXPORTS, Compressed, Export, Exported
from lowrank_core.exports._provenance import plan_document, provenance
from lowrank_core.exports._reload import RUNNABLE
from lowrank_core.layers.data import Dataset, run
from lowrank_core.measure.apart import apart
from lowrank_core.measure.comparison import compare
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.store.files import scratch
from lowrank_core.workspace import Workspace


def write_anywhere(
    workspace: Workspace, export: Export, compressed: Compressed, path: Path, *, compared: bool = False
) -> Exported:
    """Write a file; exporters run in a process of their own, so that nothing of them reaches others here.

    compared: also run the file on all evaluation samples, by its own runtime, for `Exported.comparison`.
    """
    if export.traces and workspace.opened.ref is not None:
        return write_apart(export.name, workspace, compressed, path, compared=compared)
    return _write(workspace, export.name, compressed, path, compared)


def write_apart(
    kind: str, workspace: Workspace, compressed: Compressed, path: Path, *, compared: bool = False
) -> Exported:
    """What `EXPORTS[kind].write` does, to the bit, in a fresh process that opens the model by its reference.

    It is given our weights, and refuses a model of another fingerprint. Its steps are reported here; cancelling the
    work of this thread ends it. compared: as in `write_anywhere`. Raises InvalidModel for a network without a
    reference, and what `write` raises.
    """
    with scratch() as folder:
        weights = folder / "weights.safetensors"
        write_checkpoint(
            compressed.model,
            workspace.profile,
            compressed.plan,
            weights,
            plan_document=plan_document(workspace, compressed),
            provenance=provenance(workspace, compressed),
            dtype=None,
        )
        made = replace(compressed, model=nn.Identity())
        (exported,) = apart(_written, workspace, kind, made, weights, path.absolute(), compared)
    beside = tuple(str(path.with_name(Path(file).name)) for file in exported.beside)
    return replace(exported, path=str(path), beside=beside)


def _written(
    workspace: Workspace, kind: str, made: Compressed, weights: Path, path: Path, compared: bool
) -> Iterator[Exported]:
    network = load_checkpoint(workspace.model, weights).model
    yield _write(workspace, kind, replace(made, model=network), path, compared)


def _write(workspace: Workspace, kind: str, compressed: Compressed, path: Path, compared: bool) -> Exported:
    written = EXPORTS[kind].write(workspace, compressed, path)
    if not compared or written.comparison is not None:
        return written
    report(Progress("running the file"))
    names = tuple(run(compressed.model, Dataset(workspace.opened.example_inputs, axes=workspace.opened.axes)))
    return replace(written, comparison=compare(workspace, RUNNABLE[kind](str(path), names)))
