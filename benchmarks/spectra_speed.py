"""All spectra of a VGG-16 and of a BERT-base shaped network: against torch.linalg.svdvals, and opened a second time.

OMP_NUM_THREADS=1 python -m benchmarks.spectra_speed [--network vgg16|bert] [--part speed|accuracy]

CPU seconds of one thread, all in one run. Each layer under its default method: of a convolution the matrix that spatial
SVD takes apart. Random weights: values-only algorithms take the same time whatever the spectrum. "second opening": a
store of factors that finds on disk what the first one left. Accuracy: planted spectra in float32 weights, the relative
error of the singular values at and below 1e-4 of the largest.
"""

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.algebra.linalg import singular_values
from lowrank_core.compression.factors import FactorStore
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import Layer, ModelProfile, weight_at
from lowrank_core.store.cache import Cache

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def vgg16() -> tuple[nn.Module, Tensor]:
    """Thirteen convolutions and three Linear layers (Simonyan & Zisserman, arXiv 1409.1556), 138 million weights."""
    parts: list[nn.Module] = []
    channels = 3
    for width in VGG16:
        parts += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
        channels = width or channels
    parts += [nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*parts).eval(), torch.randn(1, 3, 224, 224)


def bert() -> tuple[nn.Module, Tensor]:
    """Twelve encoder layers of width 768 behind a table of 30,522 words (Devlin et al., arXiv 1810.04805)."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(30522, 768), encoder, nn.Linear(768, 768)).eval(), torch.randint(30522, (1, 8))


NETWORKS = {"vgg16": vgg16, "bert": bert}


def matrix_of(layer: Layer, weight: Tensor) -> Tensor:
    """What the layer's default method takes apart."""
    if layer.methods[0].name == "spatial_svd":
        return weight.permute(0, 3, 1, 2).flatten(0, 1).flatten(1)
    return weight.flatten(1)


def all_spectra(model: nn.Module, profile: ModelProfile, cache: Cache) -> tuple[list[Tensor], float]:
    """The spectra and the seconds they took."""
    started = time.process_time()
    factors = FactorStore(model, profile, cache=cache)
    found = [factors(layer.name, layer.methods[0].name).spectra[0] for layer in profile.layers]
    return found, time.process_time() - started


def speed(name: str) -> None:
    """Print one row."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    started = time.process_time()
    profile = discover(model, (inputs,))
    opened = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        found, first = all_spectra(model, profile, cache)
        again, second = all_spectra(model, profile, cache)
    assert all(map(torch.equal, found, again))
    started = time.process_time()
    plain = [torch.linalg.svdvals(matrix_of(layer, weight_at(model, layer).detach())) for layer in profile.layers]
    svdvals = time.process_time() - started
    worst = max(float((a - b).abs().max() / a[0]) for a, b in zip(found, plain, strict=True))
    print(
        f"| {name} | {len(plain)} | {opened:.1f} | {svdvals:.1f} | {first:.1f} | {svdvals / first:.1f} "
        f"| {second:.3f} | {first / second:.0f} | {worst:.0e} |",
        flush=True,
    )


def planted(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A float32 matrix and its singular values, 1 down to 1e-6, evenly on a logarithmic scale."""
    generator = torch.Generator().manual_seed(0)
    short, long = min(rows, columns), max(rows, columns)
    left = torch.linalg.qr(torch.randn(short, short, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(long, short, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(0, -6, short, dtype=torch.float64)
    matrix = (left * values) @ right.mT
    return (matrix if rows <= columns else matrix.mT).float(), values


def accuracy(rows: int, columns: int) -> None:
    """Print one row: the largest relative error of ten values about 1e-4, 1e-5 of the largest."""
    matrix, values = planted(rows, columns)
    cells = []
    for found in (torch.linalg.svdvals(matrix).double(), singular_values(matrix[None])[0]):
        error = (found - values).abs() / values
        for share in (1e-4, 1e-5):
            at = int((values - share).abs().argmin())
            cells.append(f"{float(error[at - 5 : at + 5].max()):.0e}")
    print(f"| {rows} x {columns} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="default: all")
    parser.add_argument("--part", choices=["speed", "accuracy"], help="default: both")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part != "speed":
        print("| planted, relative error | svdvals at 1e-4 | at 1e-5 | ours at 1e-4 | at 1e-5 |\n|---|---|---|---|---|")
        for shape in ((512, 4608), (768, 768), (3072, 768)):
            accuracy(*shape)
        print()
    if options.part != "accuracy":
        print(
            "| network | layers | opening without spectra, s | svdvals, s | first, s | times faster | second, s | "
            "times faster | largest difference |\n|---|---|---|---|---|---|---|---|---|"
        )
        for name in options.network or NETWORKS:
            speed(name)


if __name__ == "__main__":
    run_benchmark(main)
