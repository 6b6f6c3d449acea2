"""Accuracy without retraining: methods x corrections at fixed shares of the cost, uniform ranks, paired intervals.

    python -m benchmarks.quality --model ../shared/data/resnet20_cifar10.py
    python -m benchmarks.quality --model builtin:digits-cnn --quantities parameters --shares 20,10 --whole

The first and the last layer stay dense and the shares are those of the layers between; with `--whole` only the last
layer stays dense, and the shares are those of the whole network. Every layer keeps the same share of its break-even
rank, the largest that stays within the budget. Prints one Markdown table of points lost, with 95 % intervals, and
behind the semicolon how far the outputs are from the dense network's: for class scores the mean Kullback-Leibler
divergence in nats. The last columns are the processor's seconds of each correction, from nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import nn

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.compression.correct import Corrector, load_overlay
from lowrank_core.layers.data import Dataset, Outputs, joined, run
from lowrank_core.layers.spec import Rank
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.correction import Correction, Kind
from lowrank_core.plans.cost import break_even, dense_cost, layer_cost, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.sensitivity import divergence
from lowrank_core.scoring.scores import BATCH, Reference, Score, evaluate, final_score
from lowrank_core.workspace import Workspace

CORRECTIONS: dict[str, Kind | None] = {
    "none": None,
    "bias": "bias",
    "BatchNorm": "batchnorm",
    "quick": "least_squares",
    "thorough": "thorough",
}


def uniform(
    workspace: Workspace,
    layers: Iterable[Layer],
    method: str,
    quantity: str,
    share: float,
    *,
    budget_of_layers: bool = True,
) -> RankPlan:
    """The plan whose ranks keep one share of each layer's break-even, found by bisection; at most `share` of the cost.

    Layers that the method does not fit get the first one that does; layers without a paying rank stay dense.
    """
    chosen = []
    for layer in layers:
        names = [method, *(m.name for m in layer.methods)]
        name = next(n for n in names if METHODS[n].obstacle(layer.spec) is None)
        top = break_even(layer, name, "bytes" if quantity == "parameters" else quantity)
        if all(top):
            chosen.append((layer, name, top))
    dense = sum(getattr(dense_cost(layer), quantity) for layer in layers)
    rest = 0 if budget_of_layers else getattr(plan_cost(workspace.profile), quantity) - dense

    def at(part: float) -> RankPlan:
        choices = {layer.name: Choice(name, _rounded(top, part)) for layer, name, top in chosen}
        return RankPlan.of(workspace.profile.fingerprint, choices)

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        plan = at(middle)
        cost = rest + sum(getattr(layer_cost(layer, plan.get(layer.name)), quantity) for layer in layers)
        low, high = (middle, high) if cost <= share * (rest + dense) else (low, middle)
    return at(low)


def _rounded(top: Rank, part: float) -> Rank:
    """The same share of each axis; two axes round at different points, so that the budget is met in finer steps."""
    halves = (0.5,) if len(top) == 1 else (0.75, 0.25)
    return tuple(min(t, max(1, int(part * t + half))) for t, half in zip(top, halves, strict=True))


def lost(score: Score, unit: int = 100) -> str:
    """'1.3 (0.9 to 1.8)': points lost with the paired interval; with a unit of 1 what a score is that is no share."""
    if score.drop_low is None or score.drop_high is None:
        return f"{unit * score.drop:.2f}"
    digits = 1 if unit == 100 else 2
    low, high = (f"{unit * end:.{digits}f}" for end in (score.drop_low, score.drop_high))
    return f"{unit * score.drop:.2f} ({low} to {high})"


def measured(workspace: Workspace, model: nn.Module, reference: Reference, samples: int) -> str:
    """Points lost, and how far the answers are from the dense network's, from one pass."""
    kept: list[Outputs] = []

    def forward(part: Dataset, _: int) -> Outputs:
        kept.append(run(model, part, reference.outputs))
        return kept[-1]

    score = final_score(evaluate(model, reference, samples=samples, forward=forward))
    data = reference.dataset.pick(slice(0, samples))
    if reference not in _DENSE:
        parts = (data.pick(slice(at, at + BATCH)) for at in range(0, len(data), BATCH))
        _DENSE[reference] = joined(run(workspace.model, part, reference.outputs) for part in parts)
    apart = divergence(workspace.metric, joined(kept), _DENSE[reference])
    return f"{lost(score, 100 if workspace.metric.share else 1)}; {apart:.4f}"


_DENSE: dict[Reference, Outputs] = {}
"""What the dense network answers, of the one reference of a run."""


def main() -> None:
    """Print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="../shared/data/resnet20_cifar10.py", help="model file or builtin:NAME")
    parser.add_argument("--methods", default="svd,spatial_svd,tucker2,cp3,cp4", help="comma-separated")
    parser.add_argument("--corrections", default="none,bias,BatchNorm,quick,thorough", help="comma-separated")
    parser.add_argument("--quantities", default="multiplies,parameters", help="comma-separated")
    parser.add_argument("--shares", default="75,50,30", help="percent kept, comma-separated")
    parser.add_argument("--samples", type=int, default=5000, help="evaluation samples")
    parser.add_argument("--calibration", default="256", help="calibration samples, comma-separated: one row for each")
    parser.add_argument("--seed", type=int, default=0, help="seed of the calibration samples")
    parser.add_argument("--ridge", type=float, default=Correction().ridge)
    parser.add_argument("--whole", action="store_true", help="first layer too, shares of the network")
    parser.add_argument("--on-train", action="store_true", help="score on train_data: the only way to choose settings")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workspace = Workspace.open(options.model)
    reference, pool = workspace.reference, workspace.calibration_pool
    if options.on_train:
        train, half = workspace.opened.train_data(), len(pool) // 2
        reference = Reference(workspace.model, train.pick(slice(half, None)), workspace.metric)
        pool = pool.pick(slice(0, half))
    layers = workspace.profile.layers[:-1] if options.whole else workspace.profile.layers[1:-1]
    corrections = options.corrections.split(",")
    fitted = [name for name in corrections if name in ("quick", "thorough")]
    heads = ["kept", "method", "calibration", *corrections, *(f"{name}, CPU s" for name in fitted)]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for quantity in options.quantities.split(","):
        for share in options.shares.split(","):
            for method in options.methods.split(","):
                plan = uniform(
                    workspace, layers, method, quantity, float(share) / 100, budget_of_layers=not options.whole
                )
                kept = getattr(plan_cost(workspace.profile, plan), quantity)
                for samples in options.calibration.split(","):
                    corrector = Corrector(workspace.model, workspace.profile, workspace.factors, lambda: pool)
                    row, seconds = list[str](), list[str]()
                    for name in corrections:
                        kind = CORRECTIONS[name]
                        model = workspace.compress(plan)
                        if kind is not None:
                            correction = Correction(kind, int(samples), options.seed, options.ridge)
                            corrector.dense_pass(correction)
                            start = time.process_time()
                            load_overlay(model, corrector(plan, correction))
                            seconds += [f"{time.process_time() - start:.1f}"] if name in fitted else []
                        row.append(measured(workspace, model, reference, options.samples))
                    columns = [f"{share} % {quantity} ({kept:,})", method, samples, *row, *seconds]
                    print(f"| {' | '.join(columns)} |", flush=True)
    dense = final_score(evaluate(workspace.model, reference, samples=options.samples))
    what = f"Points of {dense.metric} lost of {100 * dense.dense:.2f} %"
    if not workspace.metric.share:
        what = f"{dense.metric.capitalize()} lost, of the dense network {dense.dense:.2f}"
    print(
        f"\n{what}, {dense.samples:,} samples; "
        "in brackets the paired 95 % interval, behind the semicolon the divergence."
    )


if __name__ == "__main__":
    run_benchmark(main)
