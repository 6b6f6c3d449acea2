"""Points that digits-lstm loses when one side of its LSTM is compressed, plain and corrected, without retraining.

    python -m benchmarks.recurrent

First by SVD at a few ranks, then SVD of the stacked gates against Tucker and CP over them at equal cost. Also the
seconds that factorising an Embedding of 30,522 x 384 takes, plain and weighted by how often tokens occur.
"""

from __future__ import annotations

import time
from itertools import product

import torch

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core import Choice, LayerSpec, RankPlan, Workspace, plan_cost
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer, weight_at
from lowrank_core.plans.cost import dense_cost, layer_cost
from lowrank_core.scoring.scores import final_score

SIDES = {"rnn.weight_hh_l0": (25, 16, 8), "rnn.weight_ih_l0": (4, 3)}


def sides() -> None:
    """One row per side, rank and method."""
    workspace = Workspace.open("builtin:digits-lstm")
    dense = plan_cost(workspace.profile).multiplies
    print("| layer | rank | cost kept | method | plain | corrected |\n|---|---|---|---|---|---|")
    for name, ranks in SIDES.items():
        layer = workspace.profile.layer(name)
        whole = layer.spec.weights * 8
        for rank in ranks:
            for method in ("svd", "svd_aware"):
                plan = RankPlan.of(workspace.profile.fingerprint, {name: Choice(method, (rank,))})
                kept = 1 - (dense - plan_cost(workspace.profile, plan).multiplies) / whole
                print(f"| {name} | {rank} | {kept:.0%} | {method} | {lost(workspace, plan)} |", flush=True)


def lost(workspace: Workspace, plan: RankPlan) -> str:
    """Points lost, plain and corrected, each with its paired interval, as two cells of a table."""
    found = []
    for correction in (None, workspace.correction):
        score = final_score(workspace.measure(workspace.compress(plan, correction)))
        found.append(f"{100 * score.drop:.2f} ({100 * score.drop_low:.1f} to {100 * score.drop_high:.1f})")
    return " | ".join(found)


def gates() -> None:
    """One row per side, share of what its weight costs, and method, each at its closest rank of that cost."""
    workspace = Workspace.open("builtin:digits-lstm")
    print("| layer | at most | method | rank | multiplies | weights | error | plain | corrected |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, quantity, share in product(SIDES, ("multiplies", "parameters"), (0.5, 0.25)):
        layer = workspace.profile.layer(name)
        biases = layer.spec.out_channels
        for method in ("svd", "svd_aware", "gate_tucker", "gate_cp"):
            limit = share * (getattr(dense_cost(layer), quantity) - biases * (quantity == "parameters"))
            rank = closest(workspace, layer, method, quantity, limit + biases * (quantity == "parameters"))
            if rank is None:
                continue
            cost, dense = layer_cost(layer, Choice(method, rank)), dense_cost(layer)
            shares = [cost.multiplies / dense.multiplies, (cost.parameters - biases) / (dense.parameters - biases)]
            plan = RankPlan.of(workspace.profile.fingerprint, {name: Choice(method, rank)})
            points = lost(workspace, plan)
            weight = weight_at(workspace.model, layer)
            error = float((workspace.factors(name, method).reconstruct(rank) - weight).norm() / weight.norm())
            start = f"| {name} | {share:.0%} {quantity} | {method} | {', '.join(map(str, rank))}"
            print(f"{start} | {shares[0]:.0%} | {shares[1]:.0%} | {error:.2f} | {points} |", flush=True)


def closest(workspace: Workspace, layer: Layer, method: str, quantity: str, limit: float) -> tuple[int, ...] | None:
    """Of the ranks within the limit that with the smallest error."""
    top = METHODS[method].max_rank(layer.spec)
    within = [
        rank
        for rank in product(*(range(1, n + 1) for n in top))
        if getattr(layer_cost(layer, Choice(method, rank)), quantity) <= limit
    ]
    return min(within, key=workspace.factors(layer.name, method).error, default=None)


def table() -> None:
    """Seconds for one large table."""
    weight = torch.randn(30_522, 384, generator=torch.Generator().manual_seed(0))
    often = torch.rand(30_522, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spec = LayerSpec(30_522, 384, bias=False, table=True)
    for method, moment in (("svd", None), ("svd_aware", often / often.sum())):
        started = time.perf_counter()
        METHODS[method].factorize(spec, weight, moment)
        print(f"Embedding 30,522 x 384, {method}: {time.perf_counter() - started:.2f} s")


def main() -> None:
    """Print all three."""
    benchmark_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    sides()
    gates()
    table()


if __name__ == "__main__":
    run_benchmark(main)
