"""A program of `torch.export` (.pt2): graph and weights in one file that PyTorch alone runs, at any batch size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lowrank_core.compression.precision import DTYPES, Widened
from lowrank_core.exports import Compressed, Export, Exported, Snippet, register, reloaded
from lowrank_core.exports._provenance import plan_document
from lowrank_core.exports._recurrent import forms_of
from lowrank_core.graphs.exporting import exported_program
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.store.files import whole_or_nothing, writing
from lowrank_core.workspace import Workspace

PLAN = "plan.json"
"""Name of the plan inside the file."""

TOLERANCE = 1e-5
"""Largest distance of outputs that passes, relative to the largest output."""


def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """Write the program under a temporary name, run it in a fresh process, compare, then move it to `path`.

    Raises InvalidModel where the network has no graph, InvalidFile where a step fails; then `path` is as it was.
    """
    report(Progress("following one inference through the network"))
    narrow = DTYPES.get(compressed.storage.dtype or "")
    network = compressed.model if narrow is None else Widened(compressed.model, narrow)
    program = exported_program(network, workspace.opened.example_inputs, workspace.opened.axes)
    forms = forms_of(workspace, compressed, called=True)

    def save(program: torch.export.ExportedProgram, compressed: Compressed, to: Path) -> None:
        with writing(to) as file:
            torch.export.save(
                program, file, extra_files={PLAN: plan_document(workspace, compressed, **forms.provenance)}
            )

    def save_dense(to: Path) -> None:
        dense = exported_program(workspace.model, workspace.opened.example_inputs, workspace.opened.axes)
        save(dense, compressed, to)

    with whole_or_nothing(path) as temporary:
        report(Progress("writing"))
        save(program, compressed, temporary)
        largest, verdict = reloaded(
            "pt2", workspace, compressed, temporary, path, tolerance=TOLERANCE, write_dense=save_dense
        )
        if verdict == "accepted":
            save(program, replace(compressed, accepted=largest), temporary)
        size = temporary.stat().st_size
    return Exported(str(path), size, largest, compressed.score, verdict, forms.notes)


def snippets(ref: str | None, file: str) -> tuple[Snippet, ...]:
    """Load and run it; and read the plan inside."""
    code = f"""import torch

model = torch.export.load({file!r}).module()  # runs code that is in the file: open only what you trust
"""
    plan = f"""import json

import torch

inside = {{{PLAN!r}: ""}}
torch.export.load({file!r}, extra_files=inside)
plan = json.loads(inside[{PLAN!r}])
"""
    return Snippet("with torch alone", code), Snippet("and read the plan in it", plan)


register(Export("pt2", "Exported program (.pt2)", ".pt2", write, snippets, tuple(DTYPES), traces=True))
