"""Do fewer multiplies mean faster? A VGG-like network under plans of 50 % and 25 % of its multiplies, timed.

    python -m benchmarks.latency [--repeats 2] [--shares 0.5,0.25]

Six convolutions and two Linear layers on 32 x 32 inputs, random weights (times do not depend on them), Tucker-2 and
spatial SVD, every layer at the same share of its break-even rank, with ranks as they come and in multiples of 16. Each
repeat times all plans in turn with the dense network, one thread, and gives the ratio to it with its interquartile
range; "unstable" stands for ratios whose rounds differ by more than 0.1. Repeats should agree within 0.05.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core import Choice, RankPlan, Workspace, plan_cost
from lowrank_core.measure.latency import RUNTIMES, Timing, cpu_name, network_latency, runtime_version
from lowrank_core.plans.cost import rank_at, useful_rank

MODEL = """
from benchmarks.latency import example_inputs, vgg_like as build_model

def eval_data():
    import torch
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 10
"""


def vgg_like() -> nn.Module:
    """Two convolutions each at 32 x 32, 16 x 16 and 8 x 8, then two Linear layers; 96 M multiplies."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 256):
        for _ in range(2):
            parts += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(256 * 16, 256), nn.ReLU(), nn.Linear(256, 10)).eval()


def example_inputs() -> tuple[torch.Tensor, ...]:
    """One image."""
    return (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)


def plan_at(workspace: Workspace, method: str, share: float, multiple: int) -> RankPlan:
    """The largest equal share of all break-even ranks that keeps `share` of the multiplies; Linear layers by SVD."""
    profile = workspace.profile
    budget = share * plan_cost(profile).multiplies

    def at(step: int) -> RankPlan:
        choices = {}
        for layer in profile.layers[1:-1]:  # the first and the last are too thin to gain anything
            name = method if layer.spec.kernel else "svd"
            rank = rank_at(useful_rank(layer, name), step / 1000)
            if multiple > 1:
                rank = tuple(max(multiple, round(r / multiple) * multiple) for r in rank)
            choices[layer.name] = Choice(name, rank)
        return RankPlan.of(profile.fingerprint, choices)

    fitting = [step for step in range(20, 1001) if plan_cost(profile, at(step)).multiplies <= budget]
    return at(max(fitting))


def cell(timing: Timing) -> str:
    """A ratio with its interquartile range."""
    return "unstable" if timing.unstable else f"{timing.ratio:.3f} ({timing.iqr:.3f})"


def main() -> None:
    """Print a Markdown table, and how far the repeats are apart."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--shares", default="0.5,0.25")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg_like.py"
        path.write_text(MODEL)
        workspace = Workspace.open(str(path))
    dense = plan_cost(workspace.profile)
    named = [
        (method, share, multiple, plan_at(workspace, method, share, multiple))
        for method in ("tucker2", "spatial_svd")
        for share in map(float, options.shares.split(","))
        for multiple in (1, 16)
    ]
    networks = [workspace.compress(plan) for *_, plan in named]
    print(f"{cpu_name()}, one thread, batch 1; dense {dense.multiplies / 1e6:.1f} M multiplies")
    results: dict[str, list[tuple[Timing, ...]]] = {}
    for runtime in RUNTIMES:
        results[runtime] = [
            network_latency(workspace.model, networks, example_inputs(), runtime=runtime, rounds=options.rounds)
            for _ in range(options.repeats)
        ]
        print(f"{runtime_version(runtime)}: dense {results[runtime][0][0].dense_us:.0f} us", flush=True)
    titles = [f"{runtime}, {number + 1}" for runtime in RUNTIMES for number in range(options.repeats)]
    print(f"\n| plan | multiplies | bytes | {' | '.join(titles)} |\n|{'---|' * (3 + len(titles))}")
    for i, (method, share, multiple, plan) in enumerate(named):
        cost = plan_cost(workspace.profile, plan)
        kept = f"{cost.multiplies / dense.multiplies:.1%} | {cost.bytes / dense.bytes:.1%}"
        ranks = "free" if multiple == 1 else f"multiples of {multiple}"
        cells = [cell(repeat[i]) for runtime in RUNTIMES for repeat in results[runtime]]
        print(f"| {method} {share:.0%}, ranks {ranks} | {kept} | {' | '.join(cells)} |")
    for runtime, repeats in results.items():
        stable = [[r[i].ratio for r in repeats if not r[i].unstable] for i in range(len(named))]
        apart = max((max(ratios) - min(ratios) for ratios in stable if len(ratios) > 1), default=float("nan"))
        fastest = min((ratio for ratios in stable for ratio in ratios), default=float("nan"))
        print(f"{runtime}: repeats at most {apart:.3f} apart; fastest plan {1 / fastest:.1f} times as fast as dense")


if __name__ == "__main__":
    run_benchmark(main)
