"""What a file holds beside the bytes on the board: python -m benchmarks.file_sizes [MODEL ...] [--share 0.5]

Per kind of file: its size, what is not weights in it (layers, graph, plan, names: the overhead) and buffers (running
statistics), and how far the rest is from the bytes that the board shows for the plan.
"""

from __future__ import annotations

import struct
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core import Workspace, plan_cost
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.plans.uniform import uniform_plan

KINDS = ("safetensors", "pt2", "onnx")


@dataclass(frozen=True)
class Size:
    """Bytes of one file. tensors: weights and buffers in it; weights: without the buffers of the network."""

    kind: str
    file: int
    tensors: int
    buffers: int
    board: int

    @property
    def overhead(self) -> int:
        """Everything that is no tensor."""
        return self.file - self.tensors

    @property
    def difference(self) -> float:
        """Weights in the file against the board, as a share."""
        return (self.tensors - self.buffers) / self.board - 1


def tensor_bytes(kind: str, path: Path) -> int:
    """Bytes of all tensors in a file."""
    if kind == "safetensors":
        with path.open("rb") as file:
            return path.stat().st_size - 8 - int(struct.unpack("<Q", file.read(8))[0])
    if kind == "pt2":
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist() if "/weights/weight_" in member.filename)
    return sum(len(weight.raw_data) for weight in onnx.load(path).graph.initializer)


def sizes(workspace: Workspace, share: float, folder: Path) -> Iterator[Size]:
    """One per kind of file, at uniform ranks."""
    plan = uniform_plan(workspace.profile, share)
    compressed = Compressed(workspace.compress(plan), plan)
    board, buffers = plan_cost(workspace.profile, plan).bytes, workspace.profile.rest.buffer_bytes
    for kind in KINDS:
        path = folder / kind
        file = EXPORTS[kind].write(workspace, compressed, path).bytes
        yield Size(kind, file, tensor_bytes(kind, path), buffers if kind != "onnx" else 0, board)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("models", nargs="*", default=["builtin:digits-cnn", "builtin:digits-lstm"])
    parser.add_argument("--share", type=float, default=0.5, help="share of the multiplies that the plan keeps")
    options = parser.parse_args()
    print(f"{'':>24} {'kind':>12} {'file':>10} {'overhead':>9} {'buffers':>8} {'board':>10} {'difference':>10}")
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            for size in sizes(Workspace.open(model), options.share, Path(folder)):
                figures = f"{size.file:>10,} {size.overhead:>9,} {size.buffers:>8,} {size.board:>10,}"
                print(f"{Path(model).name[-24:]:>24} {size.kind:>12} {figures} {size.difference:>10.2%}")


if __name__ == "__main__":
    run_benchmark(main)
