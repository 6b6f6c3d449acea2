"""Experts that rows are routed to: counted exactly by the rows they get over the data, and compressed as others."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core import compress
from lowrank_core.methods import METHODS
from lowrank_core.plans.cost import amounts, break_even, coefficients, layer_cost, plan_cost, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace
from pages.ui import board_values
from tests.board_script import answer, needs_node

EXPERTS = 5
X = torch.randn(150, 12, generator=torch.Generator().manual_seed(1))


class Routed(nn.Module):
    """Each row goes to one of five experts, the last of which gets none; it is called all the same if nobody asks."""

    def __init__(self, *, asks_first: bool = True) -> None:
        super().__init__()
        self.gate, self.head, self.asks_first = nn.Linear(12, EXPERTS), nn.Linear(12, 4), asks_first
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12)) for _ in range(EXPERTS)
        )
        with torch.no_grad():
            self.gate.bias[-1] = -1e4

    def ways(self, x: Tensor) -> Tensor:
        """The expert of each row."""
        return self.gate(x).argmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        way, y = self.ways(x), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (way == number).nonzero().flatten()
            if len(rows) or not self.asks_first:
                y = y.index_add(0, rows, expert(x[rows]))
        return self.head(y)


def opened(**options: bool) -> tuple[Routed, Workspace]:
    torch.manual_seed(0)
    model = Routed(**options).eval()
    with torch.no_grad():
        few = X[model.ways(X) == 0][:3]  # as deployed: one expert alone runs
        return model, Workspace.of(model, few, (X, model(X).argmax(1)))


def everywhere(workspace: Workspace, rank: int) -> RankPlan:
    layers = workspace.profile.layers
    choices = {x.name: Choice("svd", (min(rank, *x.spec.weight_shape),)) for x in layers}
    return RankPlan.of(workspace.profile.fingerprint, choices)


def multiplied(model: nn.Module) -> Fraction:
    """What PyTorch's own counter says of one sample, in the mean over all."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(X)
    return Fraction(counter.get_total_flops(), 2 * len(X))


@pytest.mark.parametrize("asks_first", [True, False])
def test_multiplies_are_the_mean_over_the_data_as_pytorch_counts_them(asks_first: bool) -> None:
    model, workspace = opened(asks_first=asks_first)
    assert plan_cost(workspace.profile).multiplies == 12 * 5 + 2 * 12 * 20 + 12 * 4
    for plan in (RankPlan.of(workspace.profile.fingerprint, {}), everywhere(workspace, 2), everywhere(workspace, 5)):
        exact = multiplied(workspace.compress(plan))
        assert abs(plan_cost(workspace.profile, plan).multiplies - exact) <= Fraction(1, 2)
    with torch.no_grad():
        got = torch.bincount(model.ways(X), minlength=EXPERTS).tolist()
    assert [workspace.profile.layer(f"experts.{e}.0").shares for e in range(EXPERTS)] == [
        (Fraction(n, len(X)),) for n in got
    ]


def test_multiplies_of_a_plan_are_rounded_once() -> None:
    _, workspace = opened()
    apart = 0
    for rank in range(1, 5):
        plan, layers = everywhere(workspace, rank), workspace.profile.layers
        closed = [coefficients(layer, METHODS["svd"], "multiplies") for layer in layers]
        exact = sum(constant + slope * rank for constant, slope in closed)
        total = plan_cost(workspace.profile, plan).multiplies
        assert abs(total - exact) <= Fraction(1, 2)
        apart += total != sum(layer_cost(layer, Choice("svd", (rank,))).multiplies for layer in layers)
    assert apart  # each rounded by itself would give another sum


def test_an_expert_that_no_sample_reaches_costs_bytes_alone_and_can_be_compressed() -> None:
    model, workspace = opened()
    idle = workspace.profile.layer(f"experts.{EXPERTS - 1}.2")
    dense, small = layer_cost(idle, None), layer_cost(idle, Choice("svd", (3,)))
    assert (dense.multiplies, small.multiplies, dense.bytes, small.bytes) == (0, 0, 4 * 252, 4 * (3 * 32 + 12))
    assert break_even(idle, "svd", "multiplies") == (0,)
    assert useful_rank(idle, "svd") == break_even(idle, "svd", "bytes") == (7,)
    assert any("No evaluation sample is routed to 'experts.4.0', 'experts.4.2'" in n for n in workspace.notices)
    plan = everywhere(workspace, 3)
    corrected = workspace.compress(plan, workspace.correction)
    plain = workspace.compress(plan)
    same = {n: torch.equal(p, plain.get_parameter(n)) for n, p in corrected.named_parameters()}
    assert all(same[n] for n in same if n.startswith("experts.4."))
    assert not all(same[n] for n in same if n.startswith("experts.0."))
    aware = workspace.factors(idle.name, "svd_aware").spectra[0]
    torch.testing.assert_close(aware, torch.linalg.svdvals(model.experts[4][2].weight.double()), check_dtype=False)


@pytest.mark.parametrize("rule", ["budget", "uniform", "balf"])
def test_rules_search_a_network_with_an_idle_expert(rule: str) -> None:
    model, _ = opened()
    with torch.no_grad():
        found = compress(model, X[:2], eval_data=(X, model(X).argmax(1)), rule=rule, bytes=0.6)
    assert found.cost.bytes <= 0.6 * found.dense_cost.bytes


def test_a_network_whose_rows_follow_from_shapes_asks_for_no_data() -> None:
    def unread() -> None:
        raise AssertionError("evaluation data were asked for")

    model = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    assert Workspace.of(model, X[:2], unread).profile.layers[0].shares == ()


@needs_node
def test_the_board_adds_up_the_same_whole_numbers() -> None:
    _, workspace = opened()
    profile = workspace.profile
    plans = [everywhere(workspace, rank) for rank in (1, 2, 3, 4)]
    shown = {
        "rest": {"bytes": profile.rest.bytes, "multiplies": profile.rest.multiplies},
        "layers": [board_values.layer_fields(workspace, layer, i) for i, layer in enumerate(profile.layers)],
    }
    assert shown["layers"][1]["dense"]["multiplies"] == amounts(profile.layers[1], [None], "multiplies")[0]
    given = [{n: {"method": c.method, "rank": list(c.rank)} for n, c in plan.choices} for plan in plans]
    told = answer("return plans.map(choices => totals(model, choices));", model=shown, plans=[{}, *given])
    costs = [plan_cost(profile, plan) for plan in (None, *plans)]
    assert told == [{"bytes": cost.bytes, "multiplies": cost.multiplies} for cost in costs]
