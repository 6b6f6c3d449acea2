"""Mixtures of experts that keep all matrices in one parameter: one layer for each expert, however it is read."""

from __future__ import annotations

import pickle
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
X = torch.randn(40, 5, WIDTH, generator=torch.Generator().manual_seed(1))


class Mixture(nn.Module):
    """Two parameters with a matrix for each expert, as transformers keeps them; turned: (experts, in, out)."""

    def __init__(self, how: str, *, turned: bool) -> None:
        super().__init__()
        self.how, self.turned = how, turned
        self.up = nn.Parameter(torch.randn(EXPERTS, *(WIDTH, INNER)[:: 1 if turned else -1]) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS, *(INNER, WIDTH)[:: 1 if turned else -1]) / 3)
        self.bias = nn.Parameter(torch.randn(EXPERTS, INNER) / 3)

    def forward(self, x: Tensor, way: Tensor) -> Tensor:
        return getattr(self, self.how)(x, way)

    def one_by_one(self, x: Tensor, way: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for number in way.unique():
            rows = torch.where(way == number)[0]
            if self.turned:
                inner = x[rows] @ self.up[number] + self.bias[number]
                y.index_add_(0, rows, torch.matmul(inner.relu(), self.down[number]))
            else:
                inner = F.linear(x[rows], self.up[number], self.bias[number])
                y.index_add_(0, rows, inner.relu().matmul(self.down[number].T))
        return y

    def grouped(self, x: Tensor, way: Tensor) -> Tensor:
        order = way.argsort()
        ends = torch.histc(way.float(), EXPERTS, 0, EXPERTS - 1).cumsum(0).to(torch.int32)
        up, down = (self.up, self.down) if self.turned else (self.up.transpose(-2, -1), self.down.mT)
        inner = F.grouped_mm(x[order], up, offs=ends) + self.bias[way[order]]
        return F.grouped_mm(inner.relu(), down, offs=ends)[order.argsort()]

    def all_at_once(self, x: Tensor, way: Tensor) -> Tensor:
        up, down = (self.up, self.down) if self.turned else (self.up.mT, self.down.mT)
        inner = torch.bmm(x.expand(EXPERTS, *x.shape), up) + self.bias[:, None]
        every = torch.matmul(inner.relu(), down)
        return every[way, torch.arange(len(way))]

    def einsum(self, x: Tensor, way: Tensor) -> Tensor:
        up, down = ("eif", "efo") if self.turned else ("efi", "eof")
        inner = torch.einsum(f"ti,{up}->etf", x, self.up) + self.bias[:, None]
        every = torch.einsum(f"{down},etf->teo", self.down, inner.relu())
        return every[torch.arange(len(way)), way]

    def gathered(self, x: Tensor, way: Tensor) -> Tensor:
        inner = torch.bmm(self.up[way], x[:, :, None]).squeeze(-1) + self.bias[way]
        return torch.bmm(self.down[way], inner.relu()[:, :, None]).squeeze(-1)

    def summed(self, x: Tensor, way: Tensor) -> Tensor:
        return self.one_by_one(x, way) + self.up.sum()


class Flat(Mixture):
    """The matrices one behind the other in two axes, as DBRX has them."""

    def __init__(self) -> None:
        super().__init__("one_by_one", turned=False)
        self.up = nn.Parameter(torch.randn(EXPERTS * INNER, WIDTH) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS * INNER, WIDTH) / 3)

    def forward(self, x: Tensor, way: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for number in way.unique():
            rows = torch.where(way == number)[0]
            up, down = (each.view(-1, INNER, WIDTH)[number] for each in (self.up, self.down))
            y.index_add_(0, rows, (x[rows].matmul(up.T) + self.bias[number]).relu().matmul(down))
        return y


class Net(nn.Module):
    def __init__(self, how: str = "one_by_one", *, turned: bool = False) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 4)
        self.mixture = Flat() if how == "flat" else Mixture(how, turned=turned)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        return self.head(self.mixture(rows, self.gate(rows).argmax(-1)).view_as(x))


def opened(how: str = "one_by_one", *, turned: bool = False) -> tuple[Net, Workspace]:
    torch.manual_seed(0)
    model = Net(how, turned=turned).eval()
    return model, Workspace.of(model, X[:2], X)


def ranks(workspace: Workspace, rank: int, *, only: str = "mixture") -> RankPlan:
    layers = [layer for layer in workspace.profile.layers if layer.name.startswith(only)]
    tops = {layer.name: METHODS["svd"].max_rank(layer.spec)[0] for layer in layers}
    choices = {name: Choice("svd", (min(rank, top),)) for name, top in tops.items()}
    return RankPlan.of(workspace.profile.fingerprint, choices)


READS = pytest.mark.parametrize("how", ["one_by_one", "grouped", "all_at_once", "einsum"])
KEPT = pytest.mark.parametrize("turned", [False, True], ids=["out_in", "in_out"])


@READS
@KEPT
def test_each_expert_is_a_layer_and_answers_as_dense_at_full_rank(how: str, turned: bool) -> None:
    model, workspace = opened(how, turned=turned)
    names = [f"mixture.{leaf}.{number}" for leaf in ("up", "down") for number in range(EXPERTS)]
    assert [layer.name for layer in workspace.profile.layers] == ["gate", *names, "head"]
    up = workspace.profile.layer("mixture.up.2")
    assert (up.spec.weight_shape, up.type) == ((INNER, WIDTH), "Mixture")
    assert torch.equal(weight_at(model, up), model.mixture.up[2].T if turned else model.mixture.up[2])
    assert workspace.self_check.ok
    dense = plan_cost(workspace.profile)
    assert dense.parameters == sum(p.numel() for p in model.parameters())
    assert workspace.profile.rest.parameters == model.mixture.bias.numel()
    small = pickle.loads(pickle.dumps(workspace.compress(ranks(workspace, 99))))
    product = multiplied_out(small, model, workspace.profile)
    torch.testing.assert_close(product.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(small(X), model(X), rtol=1e-5, atol=1e-5)


@READS
def test_multiplies_are_those_of_the_rows_that_each_expert_gets(how: str) -> None:
    model, workspace = opened(how)
    plan = ranks(workspace, 2)
    small = workspace.compress(plan)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(X)
    assert plan_cost(workspace.profile, plan).multiplies == counter.get_total_flops() / 2 / len(X)
    rows = torch.bincount(model.gate(X.flatten(0, 1)).argmax(-1), minlength=EXPERTS).tolist()
    everywhere = how in ("all_at_once", "einsum")
    for number, got in enumerate(rows):
        layer = workspace.profile.layer(f"mixture.down.{number}")
        mean = sum(share * (size[0] if size else 1) for _, size, share in layer.work((layer.spec,)))
        assert mean == (5 if everywhere else Fraction(got, len(X)))


def test_matrices_that_are_gathered_row_by_row_are_left_and_it_is_said_so() -> None:
    """As `batched_mm` of transformers does: (rows, out, in), a copy of a matrix for each row."""
    _, workspace = opened("gathered")
    assert [layer.name for layer in workspace.profile.layers] == ["gate", "head"]
    (skipped,) = workspace.profile.skipped
    assert "is read by an index of many, so it is not one matrix for each expert alone" in skipped.reason


def test_matrices_one_behind_the_other_are_layers_too(tmp_path: Path) -> None:
    model, workspace = opened("flat")
    up, down = (workspace.profile.layer(f"mixture.{leaf}.1") for leaf in ("up", "down"))
    assert (up.spec.weight_shape, down.spec.weight_shape) == ((INNER, WIDTH), (WIDTH, INNER))
    assert torch.equal(weight_at(model, up), model.mixture.up[INNER : 2 * INNER])
    assert torch.equal(weight_at(model, down), model.mixture.down[INNER : 2 * INNER].T)
    assert workspace.self_check.ok
    assert plan_cost(workspace.profile).parameters == sum(p.numel() for p in model.parameters())
    plan, path = ranks(workspace, 2), tmp_path / "small.safetensors"
    small = workspace.compress(plan, workspace.correction)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        expected = small(X)
    assert plan_cost(workspace.profile, plan).multiplies == counter.get_total_flops() / 2 / len(X)
    write_checkpoint(small, workspace.profile, plan, path, plan_document=plan.to_json(), provenance={})
    with torch.no_grad():
        assert torch.equal(load_checkpoint(model, path).model(X), expected)


def test_other_parameters_of_two_or_three_axes_stay_as_they_are() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places, self.table = nn.Parameter(torch.randn(2, 5, WIDTH)), nn.Parameter(torch.randn(20, WIDTH))
            self.fc = nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = x + self.places[0] * 2 - self.places.sum(0) + F.softmax(x @ self.table.T, -1) @ (self.table * 0.5)
            return self.fc(y)

    workspace = Workspace.of(Net().eval(), X[:2], X)
    assert [layer.name for layer in workspace.profile.layers] == ["fc"]
    assert workspace.profile.skipped[0].name == "Net"
    assert workspace.profile.rest.parameters == 2 * 5 * WIDTH + 20 * WIDTH


def test_a_parameter_of_another_type_is_read_as_it_is_and_not_changed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.many, self.one = nn.Parameter(torch.randn(3, WIDTH, 12)), nn.Parameter(torch.randn(12, WIDTH))
            self.short, self.fc = nn.Parameter(torch.randn(12, WIDTH).half()), nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.linear(x, self.one.float()) + F.linear(x, self.short.float()) + F.linear(x, self.short.to(x.dtype))
            return self.fc(y @ self.many.to(x.dtype)[0].mT)

    model = Net().eval()
    workspace = Workspace.of(model, X[:2], X)
    assert model.short.dtype == torch.float16
    assert [x.name for x in workspace.profile.layers] == ["one", "many.0", "many.1", "many.2", "fc"]
    assert workspace.self_check.ok


def test_correction_makes_some_experts_better_and_leaves_dense_ones() -> None:
    model, workspace = opened("grouped")
    choices = dict(ranks(workspace, 3).choices)
    del choices["mixture.up.1"]
    plan = RankPlan.of(workspace.profile.fingerprint, choices)
    plain, better = workspace.compress(plan), workspace.compress(plan, workspace.correction)
    assert torch.equal(better.get_parameter("mixture.up.1.weight"), model.mixture.up[1])
    with torch.no_grad():
        errors = [float((each(X) - model(X)).square().mean()) for each in (plain, better)]
    assert errors[1] < errors[0]


def test_a_parameter_that_is_more_than_matrices_of_experts_is_left_and_says_so() -> None:
    _, workspace = opened("summed")
    assert [x.name for x in workspace.profile.layers] == [
        "gate",
        *(f"mixture.down.{n}" for n in range(EXPERTS)),
        "head",
    ]
    (skipped,) = workspace.profile.skipped
    assert skipped.name == "mixture"
    assert skipped.reason == "its 'up' is read by sum, so it is not one matrix for each expert alone"


@KEPT
def test_a_checkpoint_is_rebuilt_here_and_with_torch_alone(tmp_path: Path, turned: bool) -> None:
    model, workspace = opened("grouped", turned=turned)
    plan, path = ranks(workspace, 2, only=""), tmp_path / "small.safetensors"
    small = workspace.compress(plan, workspace.correction)
    write_checkpoint(small, workspace.profile, plan, path, plan_document=plan.to_json(), provenance={})
    again = load_checkpoint(model, path)
    assert again.plan == plan
    names: dict[str, Any] = {}
    exec(next(s.loader for s in EXPORTS["safetensors"].snippets("model", path.name) if s.partial), names)
    torch.manual_seed(0)
    alone = names["load_lowrank"](Net("grouped", turned=turned), str(path))
    with torch.no_grad():
        assert torch.equal(again.model(X), small(X))
        assert torch.equal(alone(X), small(X))


def test_grouped_products_are_exported() -> None:
    _, workspace = opened("grouped")
    small = workspace.compress(ranks(workspace, 2))
    exported = torch.export.export(small, (X,)).module()
    torch.testing.assert_close(exported(X.flip(0)), small(X.flip(0)))
