"""Load each artefact where only its runtime is installed: python -m benchmarks.fresh_env [MODEL[=EXPRESSION] ...]

A plan of uniform ranks is exported as checkpoint, .pt2 and ONNX. In a virtual environment made for each (torch and
safetensors; torch; onnxruntime and numpy) the file is loaded and run in batches of 1, 2 and 7, and compared with
stored outputs. EXPRESSION builds the untrained network from the classes of the model file, default untrained().
--keep FOLDER keeps the environments and uses those that are there.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core import Workspace
from lowrank_core.exports import EXPORTS, Compressed, reference_inputs
from lowrank_core.layers.data import Dataset, run
from lowrank_core.plans.uniform import uniform_plan

BATCHES = (1, 2, 7)

TORCH_CHECK = """
import json, torch
inputs, outputs = torch.load("reference.pt", weights_only=True)
with torch.no_grad():
    found = [float((model(x) - y).abs().max()) for x, y in zip(inputs, outputs)]
print(json.dumps(found))
"""
CHECKPOINT = """
import sys; sys.path.insert(0, ".")
from load_lowrank import load_lowrank
from network import build_model
model = load_lowrank(build_model(), "model.safetensors")
"""
PROGRAM = """
import torch
model = torch.export.load("model.pt2").module()
"""
ONNX_CHECK = """
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
stored = numpy.load("reference.npz")
found = [float(abs(session.run(None, {"input": stored[f"x{n}"]})[0] - stored[f"y{n}"]).max()) for n in (1, 2, 7)]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Environment:
    """What is installed, and what is run there on which file."""

    name: str
    packages: tuple[str, ...]
    kind: str
    script: str


ENVIRONMENTS = (
    Environment("torch-safetensors", ("torch", "safetensors"), "safetensors", CHECKPOINT + TORCH_CHECK),
    Environment("torch", ("torch",), "pt2", PROGRAM + TORCH_CHECK),
    Environment("onnxruntime-numpy", ("onnxruntime", "numpy"), "onnx", ONNX_CHECK),
)


def architecture(text: str, expression: str) -> str:
    """The classes of a model file without data and weights, and a build_model() that gives the untrained network."""
    tree = ast.parse(text)
    kept = []
    for node in tree.body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
        wanted = names and all(name.partition(".")[0] in ("torch", "collections", "math") for name in names)
        if wanted or isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and node.name == "untrained"):
            kept.append(ast.unparse(node))
    return "\n\n".join(["from __future__ import annotations", *kept, f"build_model = lambda: {expression}\n"])


def write_artefacts(workspace: Workspace, expression: str, share: float, folder: Path) -> None:
    """Everything a fresh environment is given: three files, the loader, the architecture, inputs and outputs."""
    plan = uniform_plan(workspace.profile, share)
    compressed = Compressed(workspace.compress(plan), plan)
    for environment in ENVIRONMENTS:
        export = EXPORTS[environment.kind]
        export.write(workspace, compressed, folder / f"model{export.suffix}")
    partial = not all(workspace.profile.layer(name).plain for name, _ in plan.choices)
    snippets = EXPORTS["safetensors"].snippets(workspace.opened.ref, "model.safetensors")
    loader = next(snippet.loader for snippet in snippets if snippet.loader and snippet.partial == partial)
    (folder / "load_lowrank.py").write_text(loader)
    (folder / "network.py").write_text(architecture(source(workspace.opened.ref), expression))
    inputs = reference_inputs(workspace)
    batches = [inputs[:size] for size in BATCHES]
    outputs = [run(compressed.model, Dataset(batch))["output"] for batch in batches]
    torch.save((batches, outputs), folder / "reference.pt")
    named = {f"x{len(x)}": x.numpy() for x in batches} | {f"y{len(y)}": y.numpy() for y in outputs}
    np.savez(folder / "reference.npz", **named)


def interpreter(environment: Environment, folder: Path) -> Path:
    """Python in a virtual environment with these packages alone, made where it is not there."""
    home, ready = folder / environment.name, folder / f"{environment.name}.ready"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not ready.exists():
        print(f"making {environment.name} ...", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        wanted = [f"{package}=={version(package).partition('+')[0]}" for package in environment.packages]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        ready.touch()
    return python


def differences(python: Path | str, script: str, folder: Path, *options: str) -> list[float]:
    """Largest distance from the stored outputs in each batch."""
    command = [str(python), "-I", *options, "-c", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:2])} failed in {folder}:\n{done.stderr}")
    found: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def source(ref: str) -> str:
    """The text of the file that defines a network."""
    if not ref.startswith("builtin:"):
        return Path(ref).read_text()
    found = find_spec(f"lowrank_core.builtin.{ref.removeprefix('builtin:').replace('-', '_')}")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).read_text()


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("models", nargs="*", default=["builtin:digits-cnn", "builtin:digits-lstm"])
    parser.add_argument("--share", type=float, default=0.5, help="share of the multiplies that the plan keeps")
    parser.add_argument("--keep", type=Path, help="folder for the environments; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        keep = options.keep or Path(temporary)
        keep.mkdir(parents=True, exist_ok=True)
        print(f"{'':>24} {'installed':>20} {'file':>18}" + "".join(f"{f'batch {n}':>10}" for n in BATCHES))
        for given in options.models:
            ref, _, expression = given.partition("=")
            workspace = Workspace.open(ref)
            with tempfile.TemporaryDirectory() as folder:
                write_artefacts(workspace, expression or "untrained()", options.share, Path(folder))
                for environment in ENVIRONMENTS:
                    python = interpreter(environment, keep.resolve())
                    found = differences(python, environment.script, Path(folder))
                    file = f"model{EXPORTS[environment.kind].suffix}"
                    cells = "".join(f"{one:>10.2g}" for one in found)
                    print(f"{workspace.name[-24:]:>24} {environment.name:>20} {file:>18}{cells}")


if __name__ == "__main__":
    run_benchmark(main)
