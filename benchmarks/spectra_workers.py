"""Spectra shared out: one process against two, and against two dask workers, on matrices of a LLaMA's shapes; previews.

    python -m benchmarks.spectra_workers [--blocks 1] [--width 4096] [--inner 11008] [--skip dask]

A checkpoint of so many blocks is written with random numbers in bfloat16; `spectra` takes it in turn in one process
with one thread, in two workers, in two dask workers, and as a preview in one process and in two workers: each a command
of its own, without the cache. Seconds are those of the work, with the start of the workers and without the import of
PyTorch by the command; CPU seconds those of the command and its workers, imports included, where they are its own
processes. Operations are counted by the formulas of `algebra.gram` and `algebra.preview`. Last column: the same GFLOP/s
on the 226 matrices of LLaMA 7B, 4.8e13 operations, or on their previews. All values must be the same to the last bit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.large_checkpoint import tensors
from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.algebra.gram import WHOLE, operations
from lowrank_core.algebra.preview import COLUMNS, ROUNDS
from tests.conftest import dask_cluster


@dataclass(frozen=True, slots=True)
class Run:
    """One command: what it took, what it said it did, and what it found."""

    seconds: float
    cpu_seconds: float
    operations: float
    found: list[object]


def write(folder: Path, blocks: int, width: int, inner: int) -> int:
    """Write a shard for each block; gives the number of matrices."""
    generator, count = torch.Generator().manual_seed(0), 0
    for block in range(blocks):
        held = {}
        shapes = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
        shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
        for name, shape in shapes.items():
            falling = torch.linspace(1, 0, shape[1]).square() + 0.02
            numbers = torch.randn(shape, generator=generator) * falling / width**0.5
            held[f"model.layers.{block}.{name}.weight"] = numbers.bfloat16()
            count += 1
        save_file(held, folder / f"block-{block}.safetensors")
    return count


def run(folder: Path, *options: str) -> Run:
    """`spectra` of the folder in a fresh process with one thread."""
    command = [sys.executable, "-m", "lowrank_core", "spectra", str(folder), "--no-cache", "--json", *options]
    before = os.times()
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    told = json.loads(done.stdout)
    return Run(told["seconds"], cpu, told["operations"], told["layers"])


def of_llama(*, preview: bool) -> float:
    """Operations of all matrices of LLaMA 7B."""
    matrices = [shape for _, shape in tensors() if len(shape) == 2]
    if preview:
        return sum(
            rows * columns * COLUMNS * (4.0 * ROUNDS + 2) for rows, columns in matrices if min(rows, columns) > WHOLE
        )
    return sum(operations(*shape) for shape in matrices)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--skip", choices=["dask"], help="leave this out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary) / "checkpoint"
        folder.mkdir()
        count = write(folder, options.blocks, options.width, options.inner)
        print(f"{count} matrices, {sum(f.stat().st_size for f in folder.iterdir()) / 1e9:.2f} GB in bfloat16")
        print(f"all of LLaMA 7B: {of_llama(preview=False):.3g} operations, previews {of_llama(preview=True):.3g}\n")
        ways: list[tuple[str, list[str]]] = [("one process", []), ("two workers", ["--workers", "2"])]
        if options.skip != "dask":
            ways.append(("two dask workers", ["--dask", ""]))
        ways += [(f"{name}, preview", [*more, "--preview"]) for name, more in ways[:2]]
        print("| way | seconds | CPU s | load | of one process | GFLOP/s | LLaMA 7B, minutes |")
        print("|---|---|---|---|---|---|---|")
        first: dict[bool, Run] = {}
        for name, more in ways:
            if "--dask" in more:
                (Path(temporary) / "dask").mkdir()
                more = ["--dask", stack.enter_context(dask_cluster(Path(temporary) / "dask"))]
            preview = "--preview" in more
            took = run(folder, *more)
            one = first.setdefault(preview, took)
            assert took.found == one.found, f"{name} found other values"
            pace, share = took.operations / took.seconds / 1e9, took.seconds / one.seconds
            cpu = "-" if "--dask" in more else f"{took.cpu_seconds:.0f}"
            print(
                f"| {name} | {took.seconds:.1f} | {cpu} | {os.getloadavg()[0]:.1f} | {share:.2f} | "
                f"{pace:.1f} | {of_llama(preview=preview) / pace / 6e10:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    run_benchmark(main)
