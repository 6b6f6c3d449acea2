"""How much faster ranks are found than by the protocol that is in use: every layer, ratio by ratio, on 1,000 images.

    python -m benchmarks.profile_speed --model ../shared/data/resnet20_cifar10.py --lock conv1 --lock linear

The protocol in its best straightforward form: per layer and ratio one spatial SVD, the two factors put into one copy of
the network, and a pass over all images without gradients. Only a part of its points is timed (`--timed`, evenly
spread) and counted up, because all take the same. Ours is a budget search that starts from nothing: factors,
calibration, correction, curves and knapsack. CPU seconds of one thread, both in one run; only ratios mean something.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.compression.apply import apply
from lowrank_core.compression.factors import FactorStore
from lowrank_core.layers.data import Dataset, call, evaluating
from lowrank_core.plans.cost import break_even, rank_at
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.sensitivity import Ask, measured
from lowrank_core.selection import make
from lowrank_core.selection._problem import problem_of
from lowrank_core.workspace import Workspace

RATIOS = tuple(k / 10 for k in range(1, 10))


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def slow_point(workspace: Workspace, ask: Ask, data: Dataset, batch: int) -> float:
    """One point of the protocol: factorise, replace, run everything; the share that is right."""
    plan = RankPlan.of(workspace.profile.fingerprint, dict([ask]))
    network = apply(workspace.model, workspace.profile, plan, FactorStore(workspace.model, workspace.profile))
    right = 0
    with evaluating(network):
        for start in range(0, len(data), batch):
            part = data.pick(slice(start, start + batch))
            right += int((call(network, part.inputs)["output"].argmax(1) == part.targets).sum())
    return right / len(data)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="../shared/data/resnet20_cifar10.py")
    parser.add_argument("--lock", action="append", default=[])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=27, help="points of the protocol that are really run")
    parser.add_argument("--share", type=float, default=0.5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    workspace = Workspace.open(options.model)
    layers = [layer for layer in workspace.profile.layers if layer.name not in options.lock]
    asks = [
        (layer.name, Choice(method, rank_at(break_even(layer, method, "multiplies"), ratio)))
        for layer in layers
        for method in [layer.methods[0].name]
        for ratio in RATIOS
    ]
    data = workspace.reference.dataset.pick(slice(0, options.images))
    timed = asks[:: max(1, len(asks) // options.timed)]
    slow_point(workspace, asks[0], data, 125)
    found = {}
    protocol = seconds(lambda: found.update({ask: slow_point(workspace, ask, data, 125) for ask in timed}))
    protocol *= len(asks) / len(timed)
    print(f"protocol: {len(layers)} layers x {len(RATIOS)} ratios x {len(data)} images")
    print(f"  {protocol:.0f} CPU s (from {len(timed)} of {len(asks)} points)")

    fresh = Workspace.open(options.model)
    points = []
    ours = seconds(lambda: points.extend(measured(fresh, asks=asks, data=data)))
    dense = fresh.reference.dense_score(len(data))
    same = {(p.layer, Choice(p.method, p.rank)): dense - (p.drop or 0.0) for p in points}
    worst = max(abs(same[ask] - value) for ask, value in found.items())
    print(f"the same points and images by this product: {ours:.1f} CPU s, {protocol / ours:.1f} times faster")
    print(f"  largest difference of an accuracy: {worst:.4f}")

    for label, corrected in (("with correction", True), ("without correction", False)):
        fresh = Workspace.open(options.model)
        _ = fresh.calibration
        problem = problem_of(
            fresh, multiplies=options.share, lock=options.lock, methods=("spatial_svd",), corrected=corrected
        )
        ours = seconds(lambda problem=problem: list(make("budget", {}).search(problem)))
        print(f"budget search, spatial_svd, {label}: {ours:.1f} CPU s, {protocol / ours:.0f} times faster")


if __name__ == "__main__":
    run_benchmark(main)
