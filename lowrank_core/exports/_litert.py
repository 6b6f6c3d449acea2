"""Run by the Python of a LiteRT environment, without anything of Rank Explorer: python _litert.py FOLDER

FOLDER holds program.pt2 and inputs.pt, a list of samples. Written are network.tflite, of one sample, and outputs.pt:
what LiteRT's own interpreter answers to each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch


class Program(torch.nn.Module):
    """An exported program as a plain module, which the converter follows once more."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.inner = program.module(check_guards=False)

    def train(self, mode: bool = True) -> Program:
        self.training = mode
        return self

    def forward(self, *inputs: Any) -> Any:
        return self.inner(*inputs)


def main(folder: Path) -> None:
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    samples = torch.load(folder / "inputs.pt", weights_only=True)
    edge = litert_torch.convert(Program(torch.export.load(folder / "program.pt2")), tuple(samples[0]))
    edge.export(str(folder / "network.tflite"))
    interpreter = Interpreter(str(folder / "network.tflite"))
    run = interpreter.get_signature_runner()
    inputs = sorted(run.get_input_details(), key=lambda name: int(name.rpartition("_")[2]))
    answers = []
    for sample in samples:
        found = run(**{name: value.numpy() for name, value in zip(inputs, sample)})  # noqa: B905
        answers.append([torch.from_numpy(found[name].copy()) for name in run.get_output_details()])
    torch.save(answers, folder / "outputs.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
