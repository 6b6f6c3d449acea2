"""How long the correction takes, in passes: its time over one dense plus one compressed forward pass, same images.

    python -m benchmarks.correction_speed --model ../shared/data/resnet20_cifar10.py

Rounds alternate between passes and corrections, and medians are compared, so that a busy machine slows both. Two
figures: from nothing, with the dense pass and every layer to fit; and after one rank has moved in the middle layer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.compression.calibration import calibration_samples
from lowrank_core.compression.correct import Corrector
from lowrank_core.layers.data import call, evaluating
from lowrank_core.plans.correction import Correction, Kind
from lowrank_core.plans.cost import rank_at, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print a Markdown table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="../shared/data/resnet20_cifar10.py", help="model file or builtin:NAME")
    parser.add_argument("--methods", default="svd,spatial_svd,tucker2,cp3,cp4", help="comma-separated")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--correction", choices=("quick", "thorough"), default="quick")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workspace = Workspace.open(options.model)
    profile, layers = workspace.profile, workspace.profile.layers[1:-1]
    pool = calibration_samples(workspace.calibration_pool, options.samples)
    kind: Kind = "thorough" if options.correction == "thorough" else "least_squares"
    correction = Correction(kind, options.samples)
    print("| method | dense s | compressed s | correction s | ratio | after one move s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for method in options.methods.split(","):
        ranks = {layer.name: rank_at(useful_rank(layer, method), 0.5) for layer in layers}
        plan = RankPlan.of(profile.fingerprint, {name: Choice(method, rank) for name, rank in ranks.items()})
        middle = layers[len(layers) // 2].name
        moved = plan.with_choice(middle, Choice(method, tuple(max(1, r - 1) for r in ranks[middle])))
        compressed = workspace.compress(plan)
        workspace.compress(moved)
        times: list[tuple[float, ...]] = []
        for _ in range(options.rounds + 1):
            with evaluating(workspace.model) as dense, evaluating(compressed):
                passes = [seconds(lambda net=net: call(net, pool.inputs)) for net in (dense, compressed)]
            corrector = Corrector(workspace.model, profile, workspace.factors, lambda: pool)
            runs = [seconds(lambda p=p, c=corrector: c(p, correction)) for p in (plan, moved)]
            times.append((*passes, *runs))
        dense_s, compressed_s, whole, again = map(statistics.median, zip(*times[1:], strict=True))
        both = dense_s + compressed_s
        figures = f"{dense_s:.3f} | {compressed_s:.3f} | {whole:.3f} | {whole / both:.2f}"
        print(f"| {method} | {figures} | {again:.3f} | {again / both:.2f} |", flush=True)


if __name__ == "__main__":
    run_benchmark(main)
