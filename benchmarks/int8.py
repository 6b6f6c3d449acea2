"""What int8 loses: a network at half of its multiplies, in onnxruntime and ExecuTorch, with and without the refit.

    python -m benchmarks.int8 --samples 1000
    python -m benchmarks.int8 --only svd --runtime onnx       # one row of one runtime

One plan for each method, by BALF, with the quick correction; first and last layer stay dense. Each is quantised with a
scale per output channel and with one per weight. A cell holds the points that int8 loses against the same network in
float, and in parentheses the error of all outputs relative to their variance, which tells more where samples are few.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

import torch
from torch import Tensor, nn

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.compression.precision import INT8, Storage
from lowrank_core.exports import Compressed
from lowrank_core.exports.onnx import quantised
from lowrank_core.graphs.alone import Places
from lowrank_core.graphs.executorch_network import ExecutorchNetwork, lowered
from lowrank_core.graphs.exporting import PLACES, OnnxNetwork, onnx_program
from lowrank_core.layers.data import Dataset, first_axes, run, tensors
from lowrank_core.selection import make, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.store.cache import Cache
from lowrank_core.workspace import Workspace

METHODS = {"CP": "cp3", "spatial SVD": "spatial_svd", "SVD": "svd"}
TRIED = 64
"""Samples of the one trial of the rule, which is not what is told here."""

BATCH = 50
"""Samples that ExecuTorch takes at a time."""


def by_onnx(workspace: Workspace, made: Compressed) -> nn.Module:
    """The network as onnxruntime runs it in int8."""
    proto = onnx_program(made.model, workspace.opened.example_inputs, workspace.opened.axes)
    return OnnxNetwork(quantised(proto, workspace.calibration.inputs, made.storage.int8).SerializeToString())


def by_executorch(workspace: Workspace, made: Compressed) -> nn.Module:
    """The network as XNNPACK runs it in int8."""
    given = workspace.calibration.inputs
    axes = workspace.opened.axes or first_axes(given)
    places, inputs = Places.of(axes, 1, BATCH), axes.pick(given, torch.arange(BATCH))
    samples = places.batches(tensors(given))
    made_by = lowered(made.model, inputs, samples=samples, per_channel=made.storage.int8 == "per-channel")
    return ExecutorchNetwork(made_by({PLACES: places.to_json()}))


RUNTIMES: dict[str, Callable[[Workspace, Compressed], nn.Module]] = {"onnx": by_onnx, "executorch": by_executorch}


def answers(network: nn.Module, data: Dataset) -> Tensor:
    """What it answers to all samples."""
    return next(iter(run(network, data).values()))


def points(found: Tensor, data: Dataset) -> float:
    """Percent that are right."""
    return 100 * float((found.argmax(1) == data.targets).double().mean())


def rows(options: argparse.Namespace) -> None:
    workspace = Workspace.open(options.model, cache=Cache(options.folder / "cache"))
    data = workspace.reference.dataset.pick(slice(0, options.samples))
    print(f"dense, float32: {points(answers(workspace.model, data), data):.2f} % on {len(data):,} samples", flush=True)
    kept = [f"{runtime}, {scales}, {how}" for runtime in options.runtime for scales in INT8 for how in ("", "refit")]
    print(f"| method | float32 | {' | '.join(name.removesuffix(', ') for name in kept)} |\n|{'---|' * (2 + len(kept))}")
    for method in options.only or METHODS:
        asked = {"lock": options.lock, "methods": (METHODS.get(method, method),), "samples": TRIED}
        problem = problem_of(workspace, multiplies=0.5, **asked)
        *_, last = search(make("balf", {}), problem)
        plan = last.candidate.plan
        made = Compressed(workspace.compress(plan, workspace.correction), plan)
        exact = answers(made.model, data)
        cells = [method, f"{points(exact, data):.2f} %"]
        stored = {
            (scales, refit): made.stored(workspace, Storage("int8", int8=scales, refit=refit))
            for scales in INT8
            for refit in (False, True)
        }
        for runtime in options.runtime:
            for network in stored.values():
                found = answers(RUNTIMES[runtime](workspace, network), data)
                error = float((found - exact).square().mean() / exact.var())
                cells.append(f"{points(exact, data) - points(found, data):.2f} ({error:.4f})")
                print(f"{method}, {runtime}: {cells[-1]}", file=sys.stderr, flush=True)
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="../shared/data/resnet20_cifar10.py", help="model file or builtin:NAME")
    parser.add_argument("--lock", action="append", help="layer to leave dense (repeatable); default conv1 and linear")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path(gettempdir(), "int8"), help="keeps factors between runs")
    parser.add_argument("--only", action="append", help="a method (repeatable)")
    parser.add_argument("--runtime", action="append", choices=list(RUNTIMES))
    options = parser.parse_args()
    options.lock = options.lock or ["conv1", "linear"]
    options.runtime = options.runtime or list(RUNTIMES)
    torch.set_num_threads(1)
    rows(options)


if __name__ == "__main__":
    run_benchmark(main, apart=("--folder",))
