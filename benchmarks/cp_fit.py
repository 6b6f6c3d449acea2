"""CP fits: seconds, what is left of the kernel, and how far components cancel, at the ranks of half and a fifth.

    python -m benchmarks.cp_fit --channels 64,128,256,512
    python -m benchmarks.cp_fit --weights network.onnx        # the widest square 3 x 3 kernels of a file

Kernels are made: 4 n components of falling size and a tenth of noise; trained ones come from --weights. One thread, CPU
seconds, the start in closed form apart. Cancelling is the sum of the components' squared norms over the kernel's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.algebra.cp import Start, als, compose, growth

SHARES = (0.5, 0.2)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def made(channels: int) -> Tensor:
    """(channels, channels, 9), the same in every run."""
    generator = torch.Generator().manual_seed(0)
    extents, rank = (channels, channels, 9), 4 * channels
    factors = [torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in extents]
    kernel = compose([factors[0] * torch.arange(1, rank + 1, dtype=torch.float64) ** -0.5, *factors[1:]])
    noise = torch.randn(extents, generator=generator, dtype=torch.float64)
    return (kernel / kernel.norm() + 0.1 * noise / noise.norm()).float().double()


def trained(path: Path) -> Iterator[tuple[str, Tensor]]:
    """One square 3 x 3 kernel of each width from 64 on, of an ONNX file."""
    import onnx
    from onnx import numpy_helper

    found: dict[int, tuple[str, Tensor]] = {}
    for stored in onnx.load(path).graph.initializer:
        if len(stored.dims) == 4 and stored.dims[0] == stored.dims[1] >= 64 and list(stored.dims[2:]) == [3, 3]:
            weight = torch.from_numpy(numpy_helper.to_array(stored).copy())
            found.setdefault(stored.dims[0], (f"{path.name}, {stored.name}", weight.double().flatten(2)))
    yield from (found[width] for width in sorted(found))


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--channels", default="64,128,256,512")
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels = (
        [(f"made, {n}", made(n)) for n in map(int, options.channels.split(","))]
        if options.weights is None
        else trained(options.weights)
    )
    columns = ["kernel", "channels", "rank", "start, s", "fit, s", "left of it", "cancelling"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, kernel in kernels:
        start = Start.of(kernel)
        begun = seconds(lambda start=start: start.factors)
        for share in SHARES:
            rank, found = int(share * kernel.numel() / sum(kernel.shape)), []
            taken = seconds(
                lambda start=start, kernel=kernel, rank=rank, found=found: found.append(als(start)(kernel, rank))
            )
            factors = [factor.double() for factor in found[0]]
            left = float((kernel - compose(factors)).norm() / kernel.norm())
            row = [name, kernel.shape[0], rank, f"{begun:.2f}", f"{taken:.2f}", f"{left:.4f}"]
            print(f"| {' | '.join(map(str, row))} | {growth(kernel, factors) ** 2:.1f} |", flush=True)


if __name__ == "__main__":
    run_benchmark(main)
