"""Exports in a process of their own, so that nothing of an exporter reaches who works in this one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import nn

from lowrank_core.compression.checkpoint import load_checkpoint, write_checkpoint
from lowrank_core.exports import EXPORTS, Compressed, Export, Exported
from lowrank_core.exports._provenance import plan_document, provenance
from lowrank_core.measure.apart import apart
from lowrank_core.store.files import scratch
from lowrank_core.workspace import Workspace


def write_anywhere(workspace: Workspace, export: Export, compressed: Compressed, path: Path) -> Exported:
    """Write a file; exporters run in a process of their own, so that nothing of them reaches others here."""
    if export.traces and workspace.opened.ref is not None:
        return write_apart(export.name, workspace, compressed, path)
    return export.write(workspace, compressed, path)


def write_apart(kind: str, workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """What `EXPORTS[kind].write` does, to the bit, in a fresh process that opens the model by its reference.

    It is given our weights, and refuses a model of another fingerprint. Its steps are reported here; cancelling the
    work of this thread ends it. Raises InvalidModel for a network without a reference, and what `write` raises.
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
        (exported,) = apart(_written, workspace, kind, made, weights, path.absolute())
    beside = tuple(str(path.with_name(Path(file).name)) for file in exported.beside)
    return replace(exported, path=str(path), beside=beside)


def _written(workspace: Workspace, kind: str, made: Compressed, weights: Path, path: Path) -> Iterator[Exported]:
    network = load_checkpoint(workspace.model, weights).model
    yield EXPORTS[kind].write(workspace, replace(made, model=network), path)
