"""Plain C: one C99 header with weights and loops for a microcontroller, in float32 or int8; no malloc, no runtime."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from lowrank_core.errors import InvalidFile
from lowrank_core.exports import Compressed, Export, Exported, Snippet, register, reloaded
from lowrank_core.exports._provenance import plan_document
from lowrank_core.graphs.c_compiled import CompiledSize, compiler, size_of
from lowrank_core.graphs.c_source import Header, header, prefix_of
from lowrank_core.graphs.integers import StepsNetwork, integers, ranges_of
from lowrank_core.graphs.memory import Memory, memory_of, trace
from lowrank_core.graphs.steps import Steps, steps_of
from lowrank_core.layers.data import Dataset, first_axes, run
from lowrank_core.measure.formats import FORMATS
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.scoring.scores import final_score
from lowrank_core.store.files import scratch, whole_or_nothing, write_whole, writing
from lowrank_core.version import versions
from lowrank_core.workspace import Workspace

TOLERANCE = 1e-5
"""Largest distance of outputs that passes, relative to the largest output."""


def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """Write the header under a temporary name, compile and run it in a fresh process, compare, then move it to `path`.

    int8: activations and weights, with ranges from the calibration samples; the score is then that of the same
    integer arithmetic in PyTorch, and that is what the compiled header is compared with.

    Raises MissingExtra where there is no C compiler, InvalidModel with the layer that plain C has no loop for,
    InvalidFile where a step fails; then `path` is as it was.
    """
    compiler()
    report(Progress("following one inference through the network"))
    opened = workspace.opened
    names = tuple(run(compressed.model, Dataset(opened.example_inputs)))
    steps = _steps(workspace, compressed.model, names, number_of(compressed))
    one = (opened.axes or first_axes(opened.example_inputs)).pick(opened.example_inputs, slice(0, 1))
    traced = trace(compressed.model, one)
    counted = memory_of(traced, compressed.model, itemsize=FORMATS[number_of(compressed)])
    if compressed.storage.dtype == "int8":
        network = StepsNetwork(steps)
        report(Progress("measuring"))
        compressed = replace(compressed, model=network, score=final_score(workspace.measure(network, keep=False)))

    def save(steps: Steps, compressed: Compressed, to: Path) -> Header:
        made = header_of(workspace, compressed, steps)
        with writing(to) as file:
            file.write(made.text.encode())
        return made

    def save_dense(to: Path) -> None:
        save(_steps(workspace, workspace.model, names, "float32"), compressed, to)

    with whole_or_nothing(path) as temporary:
        report(Progress("writing"))
        save(steps, compressed, temporary)
        largest, verdict = reloaded(
            "c", workspace, compressed, temporary, path, tolerance=TOLERANCE, write_dense=save_dense
        )
        if verdict == "accepted":
            save(steps, replace(compressed, accepted=largest), temporary)
        size = temporary.stat().st_size
        taken = size_of(temporary)
    notes = compressed.notes if taken is None else (*compressed.notes, beside(taken, counted))
    return Exported(str(path), size, largest, compressed.score, verdict, notes, compiled=taken)


def beside(taken: CompiledSize, counted: Memory) -> str:
    """What the compiled object takes, beside what the board counts."""
    stack = "" if taken.stack_bytes is None else f", stack at most {taken.stack_bytes:,} B beside math.h's"
    return (
        f"flash {taken.flash_bytes:,} B ({taken.text:,} of code; the board counts {counted.flash_bytes:,} B of "
        f"parameters and buffers), RAM {taken.ram_bytes:,} B (the board: {counted.peak.bytes:,} B, with inputs and "
        f"outputs, which are the caller's here){stack}, by {taken.compiler}"
    )


def _steps(workspace: Workspace, model: nn.Module, names: tuple[str, ...], number: str) -> Steps:
    opened = workspace.opened
    steps = steps_of(model, opened.example_inputs, opened.axes, names)
    if number != "int8":
        return steps
    report(Progress("quantising"))
    samples = workspace.calibration.inputs
    return integers(steps, ranges_of(steps, samples, opened.axes or first_axes(samples)))


def compiled_size(workspace: Workspace, compressed: Compressed) -> CompiledSize:
    """What the compiled object of a network takes, without running it.

    Raises what `write` raises, and InvalidFile where this machine cannot tell the sections of an object.
    """
    compiler()
    names = tuple(run(compressed.model, Dataset(workspace.opened.example_inputs)))
    steps = _steps(workspace, compressed.model, names, number_of(compressed))
    with scratch() as folder:
        file = folder / "network.h"
        write_whole(file, header_of(workspace, compressed, steps).text.encode())
        taken = size_of(file)
    if taken is None:
        raise InvalidFile("this machine has no `size` (of binutils) that tells the sections of an object.")
    return taken


def number_of(compressed: Compressed) -> str:
    """The number format of the header."""
    return "int8" if compressed.storage.dtype == "int8" else "float32"


def header_of(workspace: Workspace, compressed: Compressed, steps: Steps) -> Header:
    """The header of a network whose steps are known, with where it comes from."""
    sides = {"inputs": steps.inputs, "outputs": steps.outputs}
    ports = {side: [asdict(port) for port in each] for side, each in sides.items()}
    document = json.loads(plan_document(workspace, compressed))
    about = {"prefix": prefix_of(workspace.name), **ports, "plan": document}
    number = number_of(compressed)
    words = [
        f"Rank Explorer {versions()['rank_explorer']}; {number}; {len(compressed.plan.choices)} layers factorised.",
        f"Network {workspace.profile.fingerprint}.",
    ]
    return header(steps, workspace.name, about, words)


def snippets(ref: str | None, file: str) -> tuple[Snippet, ...]:
    """Compile and call it from C."""
    code = f"""/* In one file; all others include the header alone. Prefix and sizes stand at its top. */
#define NAME_IMPLEMENTATION
#include "{file}"

static float in0[NAME_IN0_SIZE], out0[NAME_OUT0_SIZE];

int main(void) {{
    name_run(in0, out0);
    return 0;
}}
"""
    return (Snippet("with a C compiler alone", code, language="c"),)


def _ready(workspace: Workspace) -> None:
    compiler()


register(Export("c", "C header", ".h", write, snippets, ("int8",), traces=True, options=("refit",), ready=_ready))
