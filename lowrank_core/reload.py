"""Prove that a checkpoint can be used: load it in a fresh process, run stored inputs, return the outputs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from lowrank_core.checkpoint import load_checkpoint
from lowrank_core.data import Dataset, Inputs
from lowrank_core.errors import InvalidFile, LowRankError
from lowrank_core.evaluate import run
from lowrank_core.sources import open_source

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from lowrank_core.reload import main; main(sys.argv[2])"
)


def outputs_in_fresh_process(ref: str, checkpoint: Path, inputs: Inputs) -> Tensor:
    """What a new Python process computes that opens the model, loads the checkpoint and runs the inputs.

    Raises InvalidFile with the reason where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save(inputs, Path(folder, "inputs.pt"))
        request = {"ref": ref, "checkpoint": str(checkpoint.resolve()), "threads": torch.get_num_threads()}
        Path(folder, "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-c", _START, json.dumps(sys.path), folder]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
            raise InvalidFile(f"a fresh process could not use it: {lines[-1].strip()}")
        outputs: Tensor = torch.load(Path(folder, "outputs.pt"), weights_only=True)
        return outputs


def main(folder: str) -> None:
    """The fresh process."""
    request = json.loads(Path(folder, "request.json").read_text())
    torch.set_num_threads(request["threads"])
    try:
        model = load_checkpoint(open_source(request["ref"]).model, request["checkpoint"]).model
        inputs = torch.load(Path(folder, "inputs.pt"), weights_only=True)
        torch.save(run(model, Dataset(inputs)).clone(), Path(folder, "outputs.pt"))
    except LowRankError as error:
        sys.exit(" ".join(str(error).split()))
