"""ExecuTorch: a program (.pte) for phones that XNNPACK runs at one batch size, in float32 or in int8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lowrank_core.exports import Compressed, Export, Exported, Snippet, register, reloaded
from lowrank_core.exports._provenance import plan_document
from lowrank_core.exports._recurrent import forms_of
from lowrank_core.exports._wide import wide_words
from lowrank_core.extras import check_installed
from lowrank_core.graphs.alone import Places
from lowrank_core.graphs.executorch_network import ExecutorchNetwork, available, lowered
from lowrank_core.graphs.exporting import PLACES
from lowrank_core.layers.data import Dataset, first_axes, run, tensors
from lowrank_core.measure.comparison import compare
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.store.files import whole_or_nothing, writing
from lowrank_core.workspace import Workspace

PLAN = "lowrank_plan"
"""Name of the method that answers with the plan."""

TOLERANCE = 1e-4
"""Largest distance of outputs that passes, relative to the largest output: another runtime rounds otherwise."""


def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """Write the program under a temporary name, run it in a fresh process, compare, then move it to `path`.

    It takes as many samples at a time as `storage.batch` says, one without it. int8: ranges from the calibration
    samples; the score is then that of the quantised network, and compared is what the file answers here and in the
    fresh process.

    Raises InvalidModel where the network cannot be lowered, InvalidFile where a step fails; then `path` is as it was.
    """
    available()
    stored, opened = compressed.storage, workspace.opened
    axes = opened.axes or first_axes(opened.example_inputs)
    batch = stored.batch or 1
    inputs = axes.pick(opened.example_inputs, torch.arange(batch) % axes.samples(opened.example_inputs))
    output_names = tuple(run(compressed.model, Dataset(opened.example_inputs, axes=opened.axes)))
    places = Places.of(axes, len(output_names), batch)
    forms = forms_of(workspace, compressed, called=True)

    def said(compressed: Compressed) -> dict[str, str]:
        return {PLAN: plan_document(workspace, compressed, **forms.provenance), PLACES: places.to_json()}

    def save_dense(to: Path) -> None:
        _save(lowered(workspace.model, inputs)(said(compressed)), to)

    samples = places.batches(tensors(workspace.calibration.inputs)) if stored.dtype == "int8" else None
    report(Progress("lowering to XNNPACK" if samples is None else "quantising and lowering to XNNPACK"))
    content = lowered(compressed.model, inputs, samples=samples, per_channel=stored.int8 == "per-channel")
    comparison = None
    if samples is not None:
        report(Progress("measuring"))
        network = ExecutorchNetwork(content(said(compressed)), output_names)
        comparison = compare(workspace, network)
        compressed = replace(compressed, model=network, score=comparison.score)
    with whole_or_nothing(path) as temporary:
        _save(content(said(compressed)), temporary)
        largest, verdict = reloaded(
            "executorch", workspace, compressed, temporary, path, tolerance=TOLERANCE, write_dense=save_dense
        )
        if verdict == "accepted":
            _save(content(said(replace(compressed, accepted=largest))), temporary)
        size = temporary.stat().st_size
    wide = wide_words("ExecuTorch", content.wide, content.narrow)
    notes = (*compressed.notes, *forms.notes, *filter(None, (wide,)))
    return Exported(str(path), size, largest, compressed.score, verdict, notes, comparison=comparison, wide=wide)


def _save(content: bytes, to: Path) -> None:
    with writing(to) as file:
        file.write(content)


def snippets(ref: str | None, file: str) -> tuple[Snippet, ...]:
    """Load and run it; and read the plan inside."""
    code = f"""from executorch.runtime import Runtime

forward = Runtime.get().load_program({file!r}).load_method("forward")
print(forward.metadata)
# outputs = forward.execute([tensor])
"""
    plan = f"""import json

from executorch.runtime import Runtime

(text,) = Runtime.get().load_program({file!r}).load_method({PLAN!r}).execute([])
plan = json.loads(text)
"""
    return Snippet("with executorch", code), Snippet("and read the plan in it", plan)


OPTIONS = ("int8", "refit", "batch")


def _ready(workspace: Workspace) -> None:
    check_installed("edge", "ExecuTorch", "executorch", "torchao")


register(
    Export(
        "executorch",
        "ExecuTorch program (.pte)",
        ".pte",
        write,
        snippets,
        ("int8",),
        traces=True,
        options=OPTIONS,
        ready=_ready,
    )
)
