"""The spectrum of an embedding 30,522 x 384, and a slider step with it: python -m benchmarks.embedding_spectrum

The spectrum's time is given as it is and as a share of what torch.linalg.svdvals takes in the same run, turn by turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import count

import torch
from torch import nn

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.compression.factors import FactorStore
from lowrank_core.networks.discover import discover
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan

ROWS, COLUMNS, TOKENS, TURNS, STEPS = 30_522, 384, 128, 5, 300


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call, so that other work on the machine hardly counts."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print two lines."""
    benchmark_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    decay = torch.logspace(0, -2, COLUMNS)
    model = nn.Sequential(nn.Embedding(ROWS, COLUMNS), nn.Linear(COLUMNS, COLUMNS)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(ROWS, COLUMNS) * decay @ torch.linalg.qr(torch.randn(COLUMNS, COLUMNS)).Q)
        profile = discover(model, torch.zeros(1, TOKENS, dtype=torch.long))
        found = FactorStore(model, profile)("0", "svd").spectra[0]
        exact = torch.linalg.svdvals(model[0].weight.double())
        worst = float(((found - exact).abs() / exact).max())
        ours, cut, theirs = [], [], []
        for _ in range(TURNS):
            factors = FactorStore(model, profile)
            ours.append(seconds(lambda factors=factors: factors("0", "svd").spectra))
            cut.append(seconds(lambda factors=factors: factors("0", "svd").weights((64,))))
            theirs.append(seconds(lambda: torch.linalg.svdvals(model[0].weight)))
    ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
    print(
        f"spectrum of an embedding {ROWS:,} x {COLUMNS}: median {statistics.median(ours):.2f} CPU s, {ratio:.2f} times "
        f"torch.linalg.svdvals in float32, one thread each; singular values within {worst:.1e} of float64; "
        f"then its factors at rank 64: {statistics.median(cut):.2f} CPU s"
    )
    ranks = count(1)
    steps = [
        1000
        * seconds(lambda: plan_cost(profile, RankPlan.of(profile.fingerprint, {"0": Choice("svd", (next(ranks),))})))
        for _ in range(STEPS)
    ]
    print(f"slider step (plan_cost, every rank another one): median {statistics.median(steps):.3f} ms")


if __name__ == "__main__":
    run_benchmark(main)
