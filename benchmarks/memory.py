"""Peak activation memory: from the exported graph, and from what PyTorch holds while the network runs.

    python -m benchmarks.memory

A residual network three ways, then the convolution whose Tucker-2 chain needs more memory than itself.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.graphs.memory import exported_trace, memory, peak, trace
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.methods import METHODS
from tests.test_memory import Residual, live_peak


def main() -> None:
    """Print two tables."""
    benchmark_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    print("| residual network, float32 | graph, bytes | held by PyTorch, bytes | during |\n|---|---|---|---|")
    for widths in ((16, 16, 32, 64), (4, 32, 32, 64), (16, 16, 16)):
        for inplace in (False, True):
            model, given = Residual(widths, inplace).eval(), torch.zeros(1, 3, 32, 32)
            found = peak(exported_trace(model, given))
            held = live_peak(model, given)
            kind = "in place" if inplace else "out of place"
            print(f"| {widths}, {kind} | {found.bytes:,} | {held:,} | {found.node} |", flush=True)
    spec, given = LayerSpec(64, 128, (3, 3), (2, 2), (1, 1), (1, 1)), torch.zeros(1, 64, 32, 32)
    dense = peak(trace(spec.build(), given), itemsize=1).bytes
    print(f"\nConvolution 64 to 128, stride 2, 32 x 32, int8: {dense:,} bytes")
    for first in (32, 64):
        chain = nn.Sequential(*(stage.build() for stage in METHODS["tucker2"].stages(spec, (64, first))))
        found = memory(chain, given, itemsize=1)
        print(
            f"Tucker-2 with a first factor of {first}: {found.peak.bytes:,} bytes, {found.peak.bytes / dense - 1:+.0%}"
        )


if __name__ == "__main__":
    run_benchmark(main)
