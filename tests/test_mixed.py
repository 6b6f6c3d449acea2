"""Every way in which a network may hold its weights, in one network: each is a layer, and none is in another's way."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.compression.checkpoint import load_checkpoint, write_checkpoint
from lowrank_core.compression.precision import multiplied_out
from lowrank_core.exports import EXPORTS
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import weight_at
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace

EXPERTS, WIDTH, INNER = 3, 8, 12
X = torch.randn(30, 7, WIDTH, generator=torch.Generator().manual_seed(1))


class Padded(nn.Conv1d):
    """A convolution that pads by the size of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x, (0, (-x.shape[-1]) % 2 + 1)), self.weight, self.bias, self.stride)


class Casts(nn.Linear):
    """A Linear that asks for the type of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias)


class Fused(nn.Module):
    """A matrix for each expert in one parameter by the name of `weight`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, outputs, inputs) / 3)

    def forward(self, x: Tensor, number: int) -> Tensor:
        return F.linear(x, self.weight[number])


class Mixture(nn.Module):
    """Fused experts, those of a ModuleList, and bare weights in one module; one of them goes by the name of `weight`.

    The last expert gets no row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH) / 3)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) / 3)
        self.shared = nn.Parameter(torch.randn(INNER, WIDTH) / 3)
        self.rare = nn.Parameter(torch.randn(WIDTH, INNER) / 3)
        self.down = Fused(INNER, WIDTH)
        self.after = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        way = F.linear(x, self.weight)[:, :-1].argmax(-1)
        y = F.linear(x, self.shared) @ (self.shared + 0)
        for number in range(EXPERTS):
            rows = (way == number).nonzero().flatten()
            inner = (x[rows] @ self.up[number]).relu()
            if number == 1:
                y = y.index_add(0, rows, F.linear(inner, self.rare))
            if len(rows):
                y = y.index_add(0, rows, self.after[number](self.down(inner, number)))
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.window, self.cast, self.head = Padded(WIDTH, WIDTH, 2, 2), Casts(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.mixture = Mixture()

    def forward(self, x: Tensor) -> Tensor:
        x = self.cast(self.window(x.mT).mT).relu()
        return self.head(x + self.mixture(x.flatten(0, 1)).view_as(x))


BESIDE = ["cast", "window", "mixture", "mixture.rare"]
EACH = [f"mixture.{leaf}.{number}" for leaf in ("up", "down.weight", "after") for number in range(EXPERTS)]


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    torch.manual_seed(0)
    return Workspace.of(Net().eval(), X[:2], X)


def at(workspace: Workspace, share: float) -> RankPlan:
    layers = workspace.profile.layers
    tops = {x.name: METHODS[x.methods[0].name].max_rank(x.spec) for x in layers}
    choices = {
        x.name: Choice(x.methods[0].name, tuple(max(1, int(share * top)) for top in tops[x.name])) for x in layers
    }
    return RankPlan.of(workspace.profile.fingerprint, choices)


def multiplied(model: nn.Module) -> Fraction:
    """What PyTorch's own counter says of one sample, in the mean over all."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(X)
    return Fraction(counter.get_total_flops(), 2 * len(X))


def test_every_weight_is_a_layer_of_the_rows_that_it_gets(workspace: Workspace) -> None:
    model, profile = workspace.model, workspace.profile
    assert {layer.name for layer in profile.layers} == {*BESIDE, *EACH, "head"}
    assert {layer.name for layer in profile.layers if layer.read} == set(BESIDE)
    assert [skipped.name for skipped in profile.skipped] == ["mixture"]  # whose `shared` is added to as well
    assert workspace.self_check.ok
    with torch.no_grad():
        x = model.cast(model.window(X.mT).mT).relu()
        ways = F.linear(x, model.mixture.weight)[..., :-1].argmax(-1).flatten()
    means = [Fraction(int((ways == number).sum()), len(X)) for number in range(EXPERTS)]
    assert means[-1] == 0
    for leaf in ("up", "down.weight", "after"):
        assert [profile.layer(f"mixture.{leaf}.{n}").shares for n in range(EXPERTS)] == [(mean,) for mean in means]
    assert profile.layer("mixture.rare").shares == (means[1],)
    assert torch.equal(weight_at(model, profile.layer("mixture.down.weight.1")), model.mixture.down.weight[1])


def test_at_full_rank_it_is_the_dense_network(workspace: Workspace) -> None:
    assert plan_cost(workspace.profile).parameters == sum(p.numel() for p in workspace.model.parameters())
    full = workspace.compress(at(workspace, 1))
    product = multiplied_out(full, workspace.model, workspace.profile)
    torch.testing.assert_close(product.state_dict(), workspace.model.state_dict(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(full(X), workspace.model(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_multiplies_are_those_that_pytorch_counts(workspace: Workspace, share: float) -> None:
    deciding = ("window", "cast", "mixture") if share < 1 else ()  # which rows go to which expert
    choices = {name: choice for name, choice in at(workspace, share).choices if name not in deciding}
    plan = RankPlan.of(workspace.profile.fingerprint, choices if share else {})
    small = workspace.compress(plan)
    assert abs(plan_cost(workspace.profile, plan).multiplies - multiplied(small)) <= Fraction(1, 2)


def test_a_checkpoint_is_rebuilt_here_and_with_torch_alone(workspace: Workspace, tmp_path: Path) -> None:
    plan, path = at(workspace, 0.5), tmp_path / "small.safetensors"
    small = workspace.compress(plan, workspace.correction)
    write_checkpoint(small, workspace.profile, plan, path, plan_document=plan.to_json(), provenance={})
    names: dict[str, Any] = {}
    exec(next(s.loader for s in EXPORTS["safetensors"].snippets("model", path.name) if s.partial), names)
    with torch.no_grad():
        expected = small(X)
        assert torch.equal(load_checkpoint(workspace.model, path).model(X), expected)
        assert torch.equal(names["load_lowrank"](Net(), str(path))(X), expected)
