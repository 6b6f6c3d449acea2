"""The plan that a network is opened with: the ranks that its spectra suggest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowrank_core import Workspace
from lowrank_core.algebra.spectra import bend
from lowrank_core.compression.start import starting_plan, suggested_plan
from lowrank_core.plans.cost import plan_cost
from lowrank_core.scoring.scores import final_score


def noise(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / columns**0.5


def signal(rank: int, size: float) -> Tensor:
    return torch.cat([torch.full((rank,), size), torch.linalg.svdvals(noise(96, 64))[: 64 - rank]])


@pytest.mark.parametrize(
    ("spectrum", "rank"),
    [
        (signal(8, 6.0), 8),
        (signal(1, 30.0), 1),
        (torch.cat([torch.ones(64), torch.zeros(64)]), 64),
        (torch.cat([torch.tensor([3.0]), torch.arange(1, 65) ** -0.5]), 17),  # one outlier of a slope is no bend
        (torch.cat([torch.ones(60), torch.full((4,), 0.01)]), 55),  # among the last ranks every spectrum falls
        (torch.zeros(5), 1),
        (torch.ones(1), 1),
    ],
    ids=["noise", "one", "exact", "slope", "end", "zeros", "single"],
)
def test_the_bend_of_a_spectrum(spectrum: Tensor, rank: int) -> None:
    assert bend(spectrum) == rank


@pytest.mark.parametrize(("name", "bytes", "points"), [("digits-cnn", 0.5, 0.5), ("digits-lstm", 0.5, 1.0)])
def test_a_first_plan_is_small_and_loses_little(name: str, bytes: float, points: float) -> None:
    workspace = Workspace.open(f"builtin:{name}")
    plan = suggested_plan(workspace.profile, workspace.factors)
    assert plan_cost(workspace.profile, plan).bytes < bytes * plan_cost(workspace.profile).bytes
    score = final_score(workspace.measure(workspace.compress(plan, workspace.correction)))
    assert 100 * score.drop < points


def test_a_wide_layer_starts_where_its_spectrum_bends_and_what_says_nothing_at_half() -> None:
    wide, flat = nn.Linear(512, 512), nn.Linear(64, 64)
    with torch.no_grad():
        wide.weight.copy_(2 * noise(512, 24, 1) @ noise(24, 512, 2) + 0.01 * noise(512, 512, 3))
        flat.weight.copy_(torch.linalg.qr(noise(64, 64)).Q)
    for layer, ranks in ((wide, 24), (flat, None)):
        data = torch.randn(40, layer.in_features, generator=torch.Generator().manual_seed(1))
        workspace = Workspace.of(nn.Sequential(layer), data[:2], data)
        plan = suggested_plan(workspace.profile, workspace.factors)
        if ranks is None:
            assert plan == starting_plan(workspace.profile, workspace.factors)
        else:
            assert [choice.rank for _, choice in plan.choices] == [(ranks,)]
