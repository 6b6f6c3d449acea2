"""A checkpoint far larger than memory: a 7-billion-parameter LLaMA's shapes in bfloat16, in shards with holes.

    python -m benchmarks.large_checkpoint

Headers and sizes are real, and so are the numbers of the first block; the rest of the files is holes, which take no
disk, and all of it is removed at the end. Printed: the time to list it, the peak memory of a fresh process that
computes the spectrum of one layer, relative to the tensor's bytes, and the estimate of all spectra.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.sources import open_any
from lowrank_core.sources._inventory import Inventory, measure_speed, remaining, take_stock
from lowrank_core.sources._weights import Weights

WIDTH, INNER, BLOCKS, WORDS = 4096, 11008, 32, 32000
SHARDS = 3
REAL = "model.layers.0."

MEASURED = """
import sys, time
from pathlib import Path
from benchmarks.large_checkpoint import peak_bytes, resident_bytes, stock
from lowrank_core.sources._inventory import measure_speed
found = stock(sys.argv[1])
layer = {layer.name: layer for layer in found.layers}[sys.argv[2]]
before, began = resident_bytes(), time.thread_time()
sigma = found.spectrum(layer.name)
peak, seconds = peak_bytes() - before, time.thread_time() - began
print(peak, seconds, measure_speed(time.thread_time).seconds(layer), float(sigma[0]), float(sigma[-1]))
"""


def tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as in LLaMA 7B."""
    yield "model.embed_tokens.weight", (WORDS, WIDTH)
    for block in range(BLOCKS):
        name = f"model.layers.{block}"
        for part in "qkvo":
            yield f"{name}.self_attn.{part}_proj.weight", (WIDTH, WIDTH)
        for part, shape in {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}.items():
            yield f"{name}.mlp.{part}_proj.weight", shape
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{part}.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (WORDS, WIDTH)


def write(folder: Path, real: tuple[str, ...] = (REAL,)) -> int:
    """Write the shards and their index; gives the bytes of all tensors. real: what has numbers, by how it begins."""
    listed = list(tensors())
    each = -(-len(listed) // SHARDS)
    index: dict[str, str] = {}
    total = 0
    generator = torch.Generator().manual_seed(0)
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        header, at = {}, 0
        for name, shape in listed[number * each : (number + 1) * each]:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * prod(shape)]}
            at += 2 * prod(shape)
            index[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name, entry in header.items():
                if name.startswith(real):
                    out.seek(8 + len(text) + entry["data_offsets"][0])
                    numbers = torch.randn(entry["shape"], generator=generator, dtype=torch.float32) / WIDTH**0.5
                    out.write(numbers.bfloat16().view(torch.uint8).numpy().data)
            out.truncate(8 + len(text) + at)
        total += at
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return total


def stock(ref: str) -> Inventory:
    """What the product knows of the folder."""
    found = open_any(ref)
    assert isinstance(found, Weights)
    return take_stock(found)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def peak_bytes() -> int:
    """The most it had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    options = benchmark_parser(__doc__)
    options.add_argument("--folder", type=Path, help="where to make it; default: a temporary folder")
    folder = Path(tempfile.mkdtemp(prefix="large-checkpoint-", dir=options.parse_args().folder))
    try:
        total = write(folder)
        held = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
        print(f"{total / 1e9:.1f} GB in {SHARDS} shards, of which {held / 1e6:.0f} MB are on disk")
        times = []
        for _ in range(5):
            began = time.perf_counter()
            found = stock(str(folder))
            times.append(time.perf_counter() - began)
        count = f"{len(found.layers)} layers, {found.parameters:,} parameters"
        print(f"listed in {1000 * min(times):.0f} to {1000 * max(times):.0f} ms: {count}")
        for command in (["layers", str(folder)], ["--help"]):
            before = os.times()
            subprocess.run([sys.executable, "-m", "lowrank_core", *command], capture_output=True, check=True)
            after = os.times()
            seconds = after.children_user + after.children_system - before.children_user - before.children_system
            print(f"the whole command `{command[0]}`, most of it importing PyTorch: {seconds:.1f} CPU s")
        print("spectrum of one layer in a fresh process, CPU seconds of one thread:")
        for part in ("mlp.down_proj", "mlp.up_proj", "self_attn.q_proj"):
            name = REAL + part
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, str(folder), name],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            peak, seconds, estimated, largest, smallest = map(float, done.stdout.split())
            size = found.tensors[name].bytes
            print(
                f"  {name} {'x'.join(map(str, found.tensors[name].shape))}: peak {peak / 1e6:.0f} MB, "
                f"{peak / size:.2f} times its {size / 1e6:.0f} MB; {seconds:.1f} s (estimated {estimated:.1f} s), "
                f"singular values {largest:.4f} to {smallest:.2e}"
            )
        torch.set_num_threads(1)
        whole = remaining(found, [layer.name for layer in found.layers], measure_speed(time.thread_time))
        print(f"estimate for all {len(found.layers)} spectra: {whole / 60:.0f} min of one core")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    run_benchmark(main)
