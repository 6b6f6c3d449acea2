"""The error along the depth: it begins where a layer was destroyed, and is what the definition says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core.measure.depth import depth_errors
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH = 24


def deep(layers: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True))))


def given(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(1))


def opened(network: nn.Module, *sizes: int) -> Workspace:
    return Workspace.of(network.eval(), given(1, *sizes), given(40, *sizes), metric="r2")


def planned(workspace: Workspace, **ranks: int) -> RankPlan:
    return RankPlan.of(
        workspace.profile.fingerprint, {name.replace("_", "."): Choice("svd", (rank,)) for name, rank in ranks.items()}
    )


def test_it_begins_at_the_layer_that_is_destroyed_and_is_smaller_after_the_correction() -> None:
    workspace = opened(deep(5), WIDTH)
    plan = RankPlan.of(workspace.profile.fingerprint, {"4": Choice("svd", (1,))})
    found = depth_errors(workspace, workspace.candidate(plan))
    assert found.samples == 16
    assert [layer.name for layer in found.layers] == ["0", "2", "4", "6", "8"]
    assert [layer.plain for layer in found.layers[:2]] == [0, 0]
    assert found.layers[2].plain > 0.1
    assert all(layer.plain > 0.001 for layer in found.layers[3:])
    assert found.layers[2].corrected < found.layers[2].plain

    inputs, model = workspace.calibration.pick(slice(0, 16)).inputs, workspace.model
    with torch.no_grad():
        dense, ours = (network[:5](inputs) for network in (model, workspace.compress(plan)))
    assert found.layers[2].plain == pytest.approx(float((ours - dense).norm() / dense.norm()), rel=1e-5)


def test_a_plan_that_loses_nothing_has_no_error_anywhere() -> None:
    workspace = Workspace.open("builtin:text-lm")
    plan = RankPlan.of(
        workspace.profile.fingerprint,
        {layer.name: Choice(m.name, m.max_rank(layer.spec)) for layer in workspace.profile.layers
         for m in layer.methods[:1] if not layer.stepwise},
    )  # fmt: skip
    found = depth_errors(workspace, Candidate(plan), samples=3)
    assert found.samples == 3
    assert {layer.name for layer in found.layers} >= {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    assert all(layer.plain is not None and layer.plain < 1e-4 for layer in found.layers)
    assert all(layer.corrected is None for layer in found.layers)


class Reads(nn.Module):
    """Gives a function the weight of one layer, and calls another one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.twice = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(torch.relu(self.twice(F.linear(x, self.read.weight))))


def test_a_weight_that_is_read_and_a_layer_that_is_called_twice_are_compared() -> None:
    workspace = opened(Reads(), WIDTH)
    for name in ("read", "twice"):
        found = {
            layer.name: layer for layer in depth_errors(workspace, Candidate(planned(workspace, **{name: 1}))).layers
        }
        assert found["twice"].plain > 0.05
        assert (found["read"].plain > 0.05) == (name == "read")


class Routed(nn.Module):
    """Sends only some rows through one of its layers, which depend on the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.expert = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        chosen = x[:, 0] > 0
        y = x.clone()
        y[chosen] = self.expert(x[chosen])
        return y


def test_a_layer_that_is_given_other_rows_says_that_it_cannot_be_compared() -> None:
    workspace = opened(Routed(), WIDTH)
    found = {layer.name: layer for layer in depth_errors(workspace, Candidate(planned(workspace, first=1))).layers}
    assert found["first"].plain > 0.05
    assert found["expert"].plain is None
    assert "rows" in found["expert"].why


def test_what_is_not_finite_is_infinitely_far() -> None:
    workspace = opened(deep(3), WIDTH)
    plan = RankPlan.of(workspace.profile.fingerprint, {"2": Choice("svd", (4,))})
    compress = workspace.compress

    def broken(*given: object) -> nn.Module:
        model = compress(*given)
        with torch.no_grad():
            model[2][0].weight.fill_(torch.inf)
        return model

    workspace.compress = broken
    assert [layer.plain for layer in depth_errors(workspace, Candidate(plan)).layers] == [0, torch.inf, torch.inf]


def test_many_samples_go_through_in_parts(monkeypatch) -> None:
    workspace = opened(deep(4), WIDTH)
    candidate = workspace.candidate(RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (3,))}))
    whole = depth_errors(workspace, candidate, samples=11)
    monkeypatch.setattr("lowrank_core.measure.depth.OUTPUT_BYTES", 4 * 4 * WIDTH * 3)
    parts = depth_errors(workspace, candidate, samples=11)
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert (a.plain, a.corrected) == pytest.approx((b.plain, b.corrected), rel=1e-4)
