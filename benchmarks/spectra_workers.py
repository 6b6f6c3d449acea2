"""Spectra shared out: one process against two, and against two dask workers, on matrices of a LLaMA's shapes; previews.

    python -m benchmarks.spectra_workers [--blocks 1] [--width 4096] [--inner 11008] [--skip dask]

A checkpoint of so many blocks is written with random numbers in bfloat16; `spectra` takes it in turn in one process
with one thread, in two workers, in two dask workers, and as a preview in one process and in two workers: each a command
of its own, without the cache. Seconds are those of the work, with the start of the workers and without the import of
PyTorch by the command. On a machine with other work they say little; so CPU seconds stand beside them, of all processes
and of the busiest one, imports included: its share of the one process's is what two idle cores would take of its time.
GFLOP/s are those of a CPU second of the one process or of all together, operations counted by the formulas of
`algebra.gram` and `algebra.preview`. Last column: the 226 matrices of LLaMA 7B, 4.8e13 operations, or their previews,
as the busiest process took, on a core for each: its imports are in it, so of a small checkpoint, and of previews above
all, it says too much. All values must be the same to the last bit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
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
    """One command: what it took, in CPU seconds of each process, what it said it did, and what it found."""

    seconds: float
    cpu_seconds: tuple[float, ...]
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
    before, most = used(), dict[int, float]()
    with tempfile.TemporaryFile("w+") as out:
        command_run = subprocess.Popen(
            command, stdout=out, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        while command_run.poll() is None:
            most.update(used())
            time.sleep(0.2)
        out.seek(0)
        told = json.loads(out.read())
    taken = tuple(seconds - before.get(pid, 0.0) for pid, seconds in most.items())
    return Run(told["seconds"], taken, told["operations"], told["layers"])


def used() -> dict[int, float]:
    """CPU seconds of every process that this one has begun, or one of those."""
    parents, seconds, begun = dict[int, int](), dict[int, float](), {os.getpid()}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    for _ in range(6):  # generations
        begun |= {pid for pid, parent in parents.items() if parent in begun}
    return {pid: seconds[pid] for pid in begun - {os.getpid()}}


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
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        folder.mkdir()
        count = write(folder, options.blocks, options.width, options.inner)
        print(f"{count} matrices, {sum(f.stat().st_size for f in folder.iterdir()) / 1e9:.2f} GB in bfloat16")
        print(f"all of LLaMA 7B: {of_llama(preview=False):.3g} operations, previews {of_llama(preview=True):.3g}\n")
        ways: list[tuple[str, list[str]]] = [("one process", []), ("two workers", ["--workers", "2"])]
        if options.skip != "dask":
            ways.append(("two dask workers", ["--dask", ""]))
        ways += [(f"{name}, preview", [*more, "--preview"]) for name, more in ways[:2]]
        print(
            "| way | seconds | load | CPU s | of the busiest | of one process | GFLOP/s per CPU s | LLaMA 7B, minutes |"
        )
        print("|---|---|---|---|---|---|---|---|")
        first: dict[bool, Run] = {}
        for name, more in ways:
            if "--dask" in more:
                (Path(temporary) / "dask").mkdir()
                with dask_cluster(Path(temporary) / "dask") as address:
                    took = run(folder, "--dask", address)
            else:
                took = run(folder, *more)
            preview = "--preview" in more
            one = first.setdefault(preview, took)
            assert took.found == one.found, f"{name} found other values"
            busiest, whole = max(took.cpu_seconds), sum(took.cpu_seconds)
            pace = took.operations / whole / 1e9
            minutes = of_llama(preview=preview) / (took.operations / busiest) / 60
            print(
                f"| {name} | {took.seconds:.1f} | {os.getloadavg()[0]:.1f} | {whole:.1f} | {busiest:.1f} | "
                f"{busiest / max(one.cpu_seconds):.2f} | {pace:.1f} | {minutes:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    run_benchmark(main)
