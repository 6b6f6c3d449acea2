"""What free ranks bring and what they take: rank at equal cost, milliseconds, rounding, and points of accuracy.

    python -m benchmarks.free_ranks [--model FILE] [--shares 75,50,30] [--timed 50] [--quality] [--samples 5000]

A factor among whose rows are those of the identity needs neither store nor multiply them: r^2 less at each inner joint
of rank r, exactly. Computed is the same map, by a product with fewer rows, a concatenation and a permutation, which
take time of their own on small layers; so each layer is timed as it is, with plain factors and with free ranks, at the
rank that plain factors have at that share of its multiplies, alone, one sample, one thread, in turn. Then whole
networks at half of their multiplies: the difference of the outputs, the largest number in any factor's free part, and
time. With --quality the accuracy of uniform ranks at equal cost, plain beside free, corrected on 256 samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.page import benchmark_parser, run_benchmark
from benchmarks.quality import lost
from lowrank_core import Choice, RankPlan, Workspace, plan_cost
from lowrank_core.figures import count
from lowrank_core.layers.parts import IdentityColumns, IdentityRows
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.measure.latency import RUNTIMES, Timing, cpu_name, network_latency, race, runtime_version
from lowrank_core.measure.staircases import Setting, chain_work
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import amount, rank_at, stages_of, useful_rank, with_free_ranks
from lowrank_core.scoring.scores import evaluate, final_score


def layers_of(workspaces: dict[str, Workspace]) -> Iterator[tuple[str, Layer]]:
    """Layers to time, in words: of transformers for one sentence and one vector, and of the convolutional networks."""
    for width in (384, 768):
        for tokens, words in (((128,), ", 128 tokens"), ((), ", one vector")):
            yield f"Linear {width} x {width}{words}", Layer("", "Linear", LayerSpec(width, width), (tokens,), 4)
    for name, workspace in workspaces.items():
        seen = set()
        for layer in workspace.profile.layers:
            spec, size = layer.spec, layer.in_sizes[0]
            if spec.weight_shape in seen or min(spec.weight_shape[:2]) < 16 or max(spec.stride, default=1) > 1:
                continue
            seen.add(spec.weight_shape)
            about = f"{spec.in_channels} to {spec.out_channels}"
            kernel = "x".join(map(str, spec.kernel)) + " " if spec.kernel else ""
            yield f"{name} {layer.name}: {kernel}{about}{' at ' + 'x'.join(map(str, size)) if size else ''}", layer


def rank_within(layer: Layer, method: str, share: float, *, free: bool) -> Rank:
    """The largest rank on the path of equal shares that keeps at most a share of the layer's multiplies."""
    top, most = useful_rank(layer, method, free), share * float(amount(layer, None, "multiplies"))
    steps = range(1, 4 * max(top) + 1)
    ranks = [rank_at(top, step / len(steps)) for step in steps]
    return max((r for r in ranks if amount(layer, Choice(method, r, free), "multiplies") <= most), default=ranks[0])


def milliseconds(timing: Timing) -> str:
    """Of one call, and the ratio to dense."""
    return "unstable" if timing.unstable else f"{timing.compressed_us / 1000:.3f} ({timing.ratio:.2f})"


def layers_table(named: list[tuple[str, Layer]], share: float, runtimes: list[str]) -> None:
    """Each layer dense, with plain factors, with free ranks at the same rank, and at the rank of the same cost."""
    print(f"\nAt {share:.0%} of the layer's multiplies; ms a call (ratio to dense)\n")
    columns = [f"{runtime}: {what}" for runtime in runtimes for what in ("dense", "plain", "free", "free, equal cost")]
    print(f"| layer | method | rank | free, equal cost | {' | '.join(columns)} |\n|{'---|' * (4 + len(columns))}")
    for words, layer in named:
        for method in ("svd", "tucker2") if layer.spec.kernel and max(layer.spec.kernel) > 1 else ("svd",):
            plain, more = (rank_within(layer, method, share, free=free) for free in (False, True))
            choices = (Choice(method, plain), Choice(method, plain, True), Choice(method, more, True))
            cells = []
            for runtime in runtimes:
                works = [chain_work(stages_of(layer.spec, c), layer, Setting(runtime, 1, 1)) for c in (None, *choices)]
                timings = race(works[0], works[1:])
                cells += [f"{timings[0].dense_us / 1000:.3f}", *map(milliseconds, timings)]
            ranks = [" x ".join(map(str, rank)) for rank in (plain, more)]
            print(f"| {words} | {method} | {' | '.join([*ranks, *cells])} |", flush=True)


def plan_within(workspace: Workspace, method: str, share: float, *, free: bool, inner: bool = False) -> RankPlan:
    """Every layer at the same share of its useful rank, by the method or svd; at most a share of the multiplies.

    inner: without the first layer and the last one, and of the cost of those between.
    """
    layers = workspace.profile.layers[1:-1] if inner else workspace.profile.layers
    dense = sum(amount(layer, None, "multiplies") for layer in layers)

    def at(step: int) -> RankPlan:
        choices = {}
        for layer in layers:
            name = method if method in {m.name for m in layer.methods} else "svd"
            if all(top := useful_rank(layer, name, free)):
                choices[layer.name] = Choice(name, rank_at(top, step / 1000))
        plan = RankPlan.of(workspace.profile.fingerprint, choices)
        return with_free_ranks(plan) if free else plan

    low, high = 1, 1000
    while low < high:
        middle = (low + high + 1) // 2
        plan = at(middle)
        fits = sum(amount(layer, plan.get(layer.name), "multiplies") for layer in layers) <= share * dense
        low, high = (middle, high) if fits else (low, middle - 1)
    return at(low)


def largest_entry(network: nn.Module) -> float:
    """The largest number in what is stored of factors beside the identity."""
    parts = [part for part in network.modules() if isinstance(part, IdentityRows | IdentityColumns)]
    return max((float(part.get_parameter("weight").abs().max()) for part in parts if part.weight.numel()), default=0.0)


def networks_table(workspaces: dict[str, Workspace], runtimes: list[str]) -> None:
    """Whole networks at half of their multiplies with plain factors, and the same ranks free."""
    print("\nWhole networks, plain factors at 50 % of the multiplies, and the same ranks free\n")
    columns = [f"{runtime}: {form}" for runtime in runtimes for form in ("plain", "free")]
    print(
        "| network | method | multiplies, free | numbers, plain to free | largest entry | outputs differ by | "
        f"{' | '.join(columns)} |\n|{'---|' * (6 + len(columns))}"
    )
    for name, workspace in workspaces.items():
        for method in ("svd", "tucker2"):
            plan = plan_within(workspace, method, 0.5, free=False)
            free = with_free_ranks(plan)
            networks = [workspace.compress(p, workspace.correction) for p in (plan, free)]
            inputs = workspace.calibration.pick(slice(0, 64)).inputs
            with torch.no_grad():
                ours, theirs = (network(inputs) for network in networks)
            costs = [plan_cost(workspace.profile, p) for p in (None, plan, free)]
            cells = [
                f"{costs[2].multiplies / costs[0].multiplies:.1%}",
                f"{count(costs[1].parameters, '').strip()} to {count(costs[2].parameters, '').strip()}",
                f"{largest_entry(networks[1]):.2f}",
                f"{float((ours - theirs).abs().max() / theirs.abs().max()):.1e}",
            ]
            for runtime in runtimes:
                timings = network_latency(workspace.model, networks, workspace.opened.example_inputs, runtime=runtime)
                cells += map(milliseconds, timings)
            print(f"| {name} | {method} | {' | '.join(cells)} |", flush=True)


def quality_table(workspace: Workspace, samples: int) -> None:
    """Points lost at equal cost, plain beside free."""
    print(f"\nUniform ranks, shares of the inner layers' multiplies, points lost on {samples:,} samples\n")
    print("| kept | method | plain | free | plain: ranks | free: ranks |\n|---|---|---|---|---|---|")
    for share in (0.5, 0.3):
        for method in ("svd", "tucker2"):
            cells, ranks = [], []
            for free in (False, True):
                plan = plan_within(workspace, method, share, free=free, inner=True)
                network = workspace.compress(plan, workspace.correction)
                cells.append(lost(final_score(evaluate(network, workspace.reference, samples=samples))))
                ranks.append(", ".join("x".join(map(str, choice.rank)) for _, choice in plan.choices[::6]))
            print(f"| {share:.0%} | {method} | {' | '.join([*cells, *ranks])} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = benchmark_parser(__doc__)
    parser.add_argument(
        "--model",
        default="../shared/data/resnet20_cifar10.py",
        help="model file of ResNet-20, or builtin:NAME for none",
    )
    parser.add_argument("--shares", default="75,50,30", help="percent of a layer's multiplies, comma-separated")
    parser.add_argument("--timed", default="50", help="those of them at which layers are timed")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="comma-separated")
    parser.add_argument("--quality", action="store_true", help="accuracy instead of time")
    parser.add_argument("--samples", type=int, default=5000, help="evaluation samples of --quality")
    options = parser.parse_args()
    torch.set_num_threads(1)
    resnet = Workspace.open(options.model)
    if options.quality:
        quality_table(resnet, options.samples)
        return
    runtimes = options.runtimes.split(",")
    print(f"{cpu_name()}, one thread, batch 1; {', '.join(map(runtime_version, runtimes))}\n")
    shares, timed = ([float(share) / 100 for share in given.split(",")] for given in (options.shares, options.timed))
    print("| layer | kept | rank, plain | rank, free | more |\n|---|---|---|---|---|")
    for width in (384, 768):
        layer = Layer("", "Linear", LayerSpec(width, width), ((),), 4)
        for share in shares:
            plain, more = (rank_within(layer, "svd", share, free=free)[0] for free in (False, True))
            print(f"| Linear {width} x {width} | {share:.0%} | {plain} | {more} | {more / plain - 1:.0%} |")
    workspaces = {"digits-cnn": Workspace.open("builtin:digits-cnn")}
    if not options.model.startswith("builtin:"):
        workspaces[Path(options.model).stem] = resnet
    named = list(layers_of(workspaces))
    for share in timed:
        layers_table(named, share, runtimes)
    networks_table(workspaces, runtimes)


if __name__ == "__main__":
    run_benchmark(main)
