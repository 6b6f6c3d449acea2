"""LiteRT (.tflite) for phones: converted and tried in an environment of its own, whose packages do not go with ours."""

from __future__ import annotations

import subprocess
import time
from importlib.resources import as_file, files
from math import isfinite
from pathlib import Path

import torch

from lowrank_core.errors import InvalidFile, InvalidModel, LowRankError, OtherAnswers
from lowrank_core.exports import (
    Compressed,
    Export,
    Exported,
    Snippet,
    Verdict,
    check_answers,
    reference_inputs,
    register,
)
from lowrank_core.exports._rounding import difference_of
from lowrank_core.graphs.exporting import exported_program
from lowrank_core.layers.data import Dataset, first_axes, run, tensors
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import LOOK_SECONDS, raise_if_cancelled, report
from lowrank_core.store.files import scratch, whole_or_nothing, writing
from lowrank_core.workspace import Workspace

PACKAGE = "litert-torch==0.10.0"
"""What the environment holds; `make litert` makes one."""

SAMPLES = 8
"""Samples that are answered, one at a time: the file takes one."""

TOLERANCE = 1e-4
"""Largest distance of outputs that passes, relative to the largest output: another runtime rounds otherwise."""

LIMIT_SECONDS = 1200.0


def write(workspace: Workspace, compressed: Compressed, path: Path) -> Exported:
    """Convert a graph of one sample in that environment, run it there by LiteRT's interpreter, compare, write it whole.

    Raises InvalidFile where there is no such environment, InvalidModel with its reason where the converter refuses the
    network, OtherAnswers where the file answers otherwise; then `path` is as it was.
    """
    python = interpreter(compressed.litert_python)
    check_answers(compressed.score, path)
    inputs, axes = reference_inputs(workspace), workspace.opened.axes
    report(Progress("following one inference through the network"))
    program = exported_program(compressed.model, workspace.opened.example_inputs, axes)
    places, own = axes or first_axes(inputs), workspace.opened.example_inputs
    if isinstance(own, dict):
        raise InvalidModel("LiteRT is given inputs by place, and this network takes them by name.")
    samples = [places.pick(inputs, torch.tensor([at])) for at in range(min(SAMPLES, places.samples(inputs)))]
    with whole_or_nothing(path) as temporary, scratch() as folder:
        with writing(folder / "program.pt2") as file:
            torch.export.save(program, file)
        with writing(folder / "inputs.pt") as file:
            torch.save([tensors(sample) for sample in samples], file)
        report(Progress("converting, and running it there"))
        _run(python, folder)
        answers = torch.load(folder / "outputs.pt", weights_only=True)
        ours = [run(compressed.model, Dataset(sample, axes=axes)) for sample in samples]
        theirs = [dict(zip(map(str, range(len(each))), each, strict=True)) for each in answers]
        difference = difference_of(ours, theirs)
        largest, relative = difference.distance, difference.share
        if relative > TOLERANCE and not (compressed.accept_difference and isfinite(relative)):
            raise OtherAnswers(
                f"{path} was not saved: LiteRT's answers must be those of the measured network, but differ by "
                f"{largest:.3g}, {relative:.2g} of the largest output."
            )
        content = (folder / "network.tflite").read_bytes()
        with writing(temporary) as file:
            file.write(content)
    verdict: Verdict = "same" if relative <= TOLERANCE else "accepted"
    notes = ("the file takes one sample at a time",)
    return Exported(str(path), len(content), largest, compressed.score, verdict, notes)


def interpreter(home: Path | None) -> Path:
    """The Python of an environment that a person names by its folder; raises InvalidFile where there is none."""
    how = f"`make litert` makes one (Python 3.11, {PACKAGE}); name its folder by --litert-python"
    if home is None:
        raise InvalidFile(f"LiteRT needs an environment of its own, since its packages do not go with ours; {how}.")
    for python in (home / "bin" / "python", home / "Scripts" / "python.exe"):
        if python.is_file():
            return python
    raise InvalidFile(f"{home} is no folder with a Python in it (bin/python); {how}.")


def _run(python: Path, folder: Path) -> None:
    with as_file(files("lowrank_core.exports").joinpath("_litert.py")) as script:
        command = [str(python), "-I", "-W", "ignore", str(script), str(folder)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        began, said = time.monotonic(), ""
        while True:
            try:
                said = process.communicate(timeout=LOOK_SECONDS)[1]
                break
            except subprocess.TimeoutExpired:
                try:
                    raise_if_cancelled()
                    if time.monotonic() - began > LIMIT_SECONDS:
                        raise InvalidModel(f"LiteRT's converter was stopped after {LIMIT_SECONDS:.0f} s.") from None
                except LowRankError:
                    process.kill()
                    process.communicate()
                    raise
    if process.returncode:
        lines = said.strip().splitlines()
        raise InvalidModel(f"LiteRT does not take this network: {' '.join((lines or ['no word'])[-1].split())[:300]}")


def snippets(ref: str | None, file: str) -> tuple[Snippet, ...]:
    """Load and run it."""
    code = f"""from ai_edge_litert.interpreter import Interpreter

run = Interpreter({file!r}).get_signature_runner()
print(run.get_input_details(), run.get_output_details())
# outputs = run(args_0=array)
"""
    return (Snippet("with ai-edge-litert alone", code),)


def _never(workspace: Workspace) -> bool:
    """Not on a page: whoever looks at one would name a program that this machine then runs."""
    return False


register(Export("tflite", "LiteRT model", ".tflite", write, snippets, traces=True, offered=_never))
