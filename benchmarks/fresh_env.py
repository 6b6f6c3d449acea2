"""Each runtime alone in an environment of its own: every kind of file loaded and run where nothing else is installed

    python -m benchmarks.fresh_env [MODEL[=EXPRESSION] ...] [--only ENVIRONMENT ...] [--keep FOLDER]
    python -m benchmarks.fresh_env --only litert --litert-python .litert       # which `make litert` makes

A plan of uniform ranks is exported as every kind of file that ENVIRONMENTS names. In a virtual environment made for
each (torch and safetensors; torch; onnxruntime and numpy; OpenVINO; ExecuTorch; LiteRT; a C compiler and numpy) the
file is loaded and run in batches of 1, 2 and 7, and the outputs are compared with stored ones: the largest difference.
A network that a kind cannot hold has the reason instead. EXPRESSION builds the untrained network from the classes of
the model file, default untrained(); a network of transformers needs that package, too, where it is built. --keep keeps
the environments and uses those that are there. A new runtime is one more of ENVIRONMENTS.
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

from benchmarks.page import benchmark_parser, run_benchmark, table_of
from lowrank_core import Workspace
from lowrank_core.errors import LowRankError
from lowrank_core.exports import EXPORTS, Compressed, reference_inputs
from lowrank_core.layers.data import Dataset, run, tensors
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.store.files import weights_beside

BATCHES = (1, 2, 7)
BERT_TINY = "benchmarks/real_networks/bert_tiny.py"
HEAD = "| network | installed | file | bytes | batch 1 | batch 2 | batch 7 |\n|---|---|---|--:|--:|--:|--:|"

TORCH_CHECK = """
import json, torch
inputs, outputs = torch.load("reference.pt", weights_only=True)
with torch.no_grad():
    found = [float((model(*x) - y).abs().max()) for x, y in zip(inputs, outputs)]
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
STORED = """
import json, numpy
stored = numpy.load("reference.npz")
batches = [([stored[f"x{n}_{i}"] for i in range(int(stored["inputs"]))], stored[f"y{n}"]) for n in (1, 2, 7)]
"""
ONNX_CHECK = """
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
names = [given.name for given in session.get_inputs()]
found = [float(abs(session.run(None, dict(zip(names, x)))[0] - y).max()) for x, y in batches]
print(json.dumps(found))
"""
OPENVINO_CHECK = """
import sys
sys.modules["openvino_telemetry"] = None  # which tells its maker and writes into the home folder
import openvino
core = openvino.Core()
compiled = core.compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
found = [float(abs(compiled(x)[0] - y).max()) for x, y in batches]
print(json.dumps(found))
"""
EXECUTORCH_CHECK = """
import json, torch
from executorch.runtime import Runtime
forward = Runtime.get().load_program("model.pte").load_method("forward")
inputs, outputs = torch.load("reference.pt", weights_only=True)
found = []
for x, y in zip(inputs, outputs):
    answers = [forward.execute([each[n : n + 1].contiguous() for each in x])[0].clone() for n in range(len(y))]
    found.append(float((torch.cat(answers) - y).abs().max()))
print(json.dumps(found))
"""
C_CHECK = """
import ctypes, re, subprocess
prefix = re.search(r"void (\\w+)_run[(]", open("model.h").read())[1]
with open("model.c", "w") as file:
    file.write(f'#define {prefix.upper()}_IMPLEMENTATION\\n#include "model.h"\\n')
asked = ["cc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O2", "-shared", "-fPIC"]
subprocess.run([*asked, "-o", "model.so", "model.c", "-lm"], check=True)
run = getattr(ctypes.CDLL("./model.so"), f"{prefix}_run")
found = []
for inputs, expected in batches:
    largest = 0.0
    for n, y in enumerate(expected):
        kinds = [numpy.float32 if x.dtype.kind == "f" else numpy.int32 for x in inputs]
        one = [numpy.ascontiguousarray(x[n], kind) for x, kind in zip(inputs, kinds)]
        answer = numpy.empty(y.shape, numpy.float32)
        run(*(ctypes.c_void_p(array.ctypes.data) for array in (*one, answer)))
        largest = max(largest, float(abs(answer - y).max()))
    found.append(largest)
print(json.dumps(found))
"""


LITERT_CHECK = """
from ai_edge_litert.interpreter import Interpreter
run = Interpreter("model.tflite").get_signature_runner()
names = sorted(run.get_input_details(), key=lambda name: int(name.rpartition("_")[2]))
found = []
for inputs, expected in batches:
    answers = [run(**{name: x[n : n + 1] for name, x in zip(names, inputs)}) for n in range(len(expected))]
    found.append(float(max(abs(next(iter(y.values()))[0] - z).max() for y, z in zip(answers, expected))))
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
    Environment("onnxruntime-numpy", ("onnxruntime", "numpy"), "onnx", STORED + ONNX_CHECK),
    Environment("openvino", ("numpy", "openvino"), "openvino", STORED + OPENVINO_CHECK),
    Environment("executorch", ("torch", "numpy", "executorch"), "executorch", EXECUTORCH_CHECK),
    Environment("litert", ("numpy", "ai-edge-litert==2.3.0"), "tflite", STORED + LITERT_CHECK),
    Environment("cc-numpy", ("numpy",), "c", STORED + C_CHECK),
)


def architecture(text: str, expression: str) -> str:
    """The classes of a model file without data and weights, and a build_model() that gives the untrained network."""
    tree = ast.parse(text)
    kept = []
    for node in tree.body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
        wanted = names and all(
            name.partition(".")[0] in ("torch", "collections", "math", "transformers") for name in names
        )
        if wanted or isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and node.name == "untrained"):
            kept.append(ast.unparse(node))
    return "\n\n".join(["from __future__ import annotations", *kept, f"build_model = lambda: {expression}\n"])


def write_artefacts(
    workspace: Workspace, expression: str, share: float, folder: Path, litert: Path | None = None
) -> dict[str, str]:
    """Everything a fresh environment is given: files, the loader, the architecture, inputs and outputs.

    litert: the environment that writes LiteRT's. Gives the kinds that the network has no file of, with the reason.
    """
    plan, refused = uniform_plan(workspace.profile, share), dict[str, str]()
    compressed = Compressed(workspace.compress(plan), plan, litert_python=litert)
    for environment in ENVIRONMENTS:
        export = EXPORTS[environment.kind]
        try:
            export.write(workspace, compressed, folder / f"model{export.suffix}")
        except LowRankError as error:
            refused[environment.kind] = str(error).replace(f"{folder}/", "")
    partial = not all(workspace.profile.layer(name).plain for name, _ in plan.choices)
    snippets = EXPORTS["safetensors"].snippets(workspace.opened.ref, "model.safetensors")
    loader = next(snippet.loader for snippet in snippets if snippet.loader and snippet.partial == partial)
    (folder / "load_lowrank.py").write_text(loader)
    (folder / "network.py").write_text(architecture(source(workspace.opened.ref), expression))
    given = tensors(reference_inputs(workspace))
    batches = [tuple(x[:size] for x in given) for size in BATCHES]
    outputs = [run(compressed.model, Dataset(batch))["output"] for batch in batches]
    torch.save((batches, outputs), folder / "reference.pt")
    named = {
        f"x{size}_{i}": x.numpy() for size, batch in zip(BATCHES, batches, strict=True) for i, x in enumerate(batch)
    }
    named |= {f"y{size}": y.numpy() for size, y in zip(BATCHES, outputs, strict=True)}
    np.savez(folder / "reference.npz", inputs=len(given), **named)
    return refused


def needed(environment: Environment, folder: Path) -> tuple[str, ...]:
    """The packages of an environment, with those that the network itself is built from."""
    builds = environment.kind == "safetensors" and "from transformers" in (folder / "network.py").read_text()
    return (*environment.packages, *(("transformers",) if builds else ()))


def interpreter(packages: tuple[str, ...], folder: Path) -> Path:
    """Python in a virtual environment with these packages alone, made where it is not there."""
    name = "-".join(package.partition("==")[0] for package in packages)
    home, ready = folder / name, folder / f"{name}.ready"
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not ready.exists():
        print(f"making {name} ...", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        wanted = [
            package if "==" in package else f"{package}=={version(package).partition('+')[0]}" for package in packages
        ]
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
    parser.add_argument("models", nargs="*", default=["builtin:digits-cnn", "builtin:digits-lstm", BERT_TINY])
    parser.add_argument("--share", type=float, default=0.5, help="share of the multiplies that the plan keeps")
    parser.add_argument("--only", nargs="+", choices=[e.name for e in ENVIRONMENTS], help="environments to run in")
    parser.add_argument("--keep", type=Path, help="folder for the environments; a temporary one by default")
    parser.add_argument("--litert-python", type=Path, help="environment that writes LiteRT's files")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        keep = options.keep or Path(temporary)
        keep.mkdir(parents=True, exist_ok=True)
        for given in options.models:
            ref, _, expression = given.partition("=")
            workspace = Workspace.open(ref)
            with tempfile.TemporaryDirectory() as folder:
                refused = write_artefacts(
                    workspace, expression or "untrained()", options.share, Path(folder), options.litert_python
                )
                for environment in ENVIRONMENTS:
                    if options.only and environment.name not in options.only:
                        continue
                    packages, file = needed(environment, Path(folder)), f"model{EXPORTS[environment.kind].suffix}"
                    if environment.kind in refused:
                        cells = [f"none: {refused[environment.kind]}", *[""] * len(BATCHES)]
                    else:
                        python = interpreter(packages, keep.resolve())
                        found = differences(python, environment.script, Path(folder))
                        beside = weights_beside(Path(folder, file)) if environment.kind == "openvino" else Path()
                        size = Path(folder, file).stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
                        cells = [f"{size:,}", *(f"{one:.2g}" for one in found)]
                    rows.append([workspace.name, ", ".join(packages), f"`{file}`", *cells])
    print(table_of(HEAD, rows))


if __name__ == "__main__":
    run_benchmark(main, apart=("--keep", "--litert-python"))
