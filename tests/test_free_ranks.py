"""Free ranks: rows and columns of the identity in factors, which are neither stored nor multiplied with; exact."""

import copy
from pathlib import Path

import pytest
import torch
from awkward_layers import AWKWARD, Awkward, filled, seeded
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.algebra.gauge import LARGEST, identity_rows
from lowrank_core.compression.apply import apply
from lowrank_core.compression.checkpoint import load_checkpoint
from lowrank_core.compression.factors import FactorStore
from lowrank_core.compression.precision import Storage, multiplied_out
from lowrank_core.errors import InvalidFile, InvalidPlan
from lowrank_core.exports import EXPORTS, Compressed, _reload
from lowrank_core.exports._reload import READERS
from lowrank_core.exports.safetensors import LOADER, MODULES, export_checkpoint
from lowrank_core.layers.parts import IdentityColumns, IdentityRows
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.measure.ledger import score_key
from lowrank_core.methods import METHODS, Method
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.cost import (
    break_even,
    check_plan,
    coefficients,
    layer_cost,
    plan_cost,
    stages_of,
    with_free_ranks,
)
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.selection import make, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.workspace import Workspace
from pages.ui.history import History

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.usefixtures("one_thread"),
]

PAIRS = [
    (METHODS[name], awkward)
    for awkward in AWKWARD
    for name in ("svd", "tucker2")
    if not awkward.spec.gates and METHODS[name].obstacle(awkward.spec) is None
]
every_pair = pytest.mark.parametrize(("method", "awkward"), PAIRS, ids=lambda value: value.name)


def ranks(method: Method, spec: LayerSpec) -> list[tuple[int, ...]]:
    """The smallest, one in the middle, and the largest, of which no factor is left."""
    top = method.max_rank(spec)
    return list(dict.fromkeys([(1,) * len(top), tuple(-(-t // 2) for t in top), top]))


def plan_of(profile: ModelProfile, method: str, rank: tuple[int, ...]) -> RankPlan:
    (layer,) = profile.layers
    return RankPlan.of(profile.fingerprint, {layer.name: Choice(method, rank)})


@every_pair
def test_the_same_answers_with_as_many_numbers_and_multiplies_as_it_costs(method: Method, awkward: Awkward):
    x = awkward.inputs(2)
    model = filled(nn.Sequential(awkward.spec.build(dtype=torch.float64)))
    profile = discover(model, x)
    factors = FactorStore(model, profile)
    for rank in ranks(method, awkward.spec):
        plan = plan_of(profile, method.name, rank)
        free = with_free_ranks(plan)
        network = apply(model, profile, free, factors)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            answers = network(x)
        torch.testing.assert_close(answers, apply(model, profile, plan, factors)(x), rtol=1e-9, atol=1e-9)
        cost, plain = plan_cost(profile, free), plan_cost(profile, plan)
        assert cost.parameters == sum(p.numel() for p in network.parameters())
        assert cost.multiplies == counter.get_total_flops() // 2 // len(x)
        saved = awkward.spec.groups * sum(r * r for r in rank)
        assert plain.parameters - cost.parameters == saved
        stages = stages_of(awkward.spec, free.choices[0][1])
        assert [LayerSpec.of(part) for part in network[0]] == list(stages)
        assert network[0].weight.shape == model[0].weight.shape
        dense, like = (multiplied_out(each, model, profile) for each in (network, apply(model, profile, plan, factors)))
        torch.testing.assert_close(dense[0].weight, like[0].weight, rtol=1e-9, atol=1e-9)


@every_pair
def test_the_closed_form_is_the_cost_of_the_chain(method: Method, awkward: Awkward):
    layer = awkward.layer
    for quantity in ("bytes", "multiplies"):
        closed = coefficients(layer, method, quantity, free=True)
        for rank in ranks(method, awkward.spec):
            powers = (1, rank[0], rank[0] ** 2)
            if len(rank) == 2:
                powers = (1, rank[0], rank[1], rank[0] * rank[1], rank[0] ** 2, rank[1] ** 2)
            cost = layer_cost(layer, Choice(method.name, rank, free=True))
            assert sum(c * p for c, p in zip(closed, powers, strict=True)) == getattr(cost, quantity)


def test_every_rank_below_full_pays():
    """r (m + n - r) < m n wherever r < min(m, n)."""
    for spec in (LayerSpec(12, 7), LayerSpec(8, 8, bias=False), LayerSpec(7, 12)):
        layer = Awkward("linear", spec, ()).layer
        for quantity in ("bytes", "multiplies"):
            assert break_even(layer, "svd", quantity, free=True) == (min(spec.weight_shape) - 1,)
            assert break_even(layer, "svd", quantity, free=True) > break_even(layer, "svd", quantity)
            assert break_even(layer, "svd_g2", quantity, free=True) == break_even(layer, "svd_g2", quantity)


class Everything(nn.Module):
    """A tied table, a recurrent layer, an attention, weights that functions are given, both ways round too, a bag."""

    def __init__(self, bag: bool = True) -> None:
        super().__init__()
        self.bags = bag
        self.table, self.head, self.bag = nn.Embedding(11, 6, padding_idx=2), nn.Linear(6, 11), nn.EmbeddingBag(9, 6)
        self.head.weight = self.table.weight
        self.rnn, self.att = nn.GRU(6, 6, batch_first=True), nn.MultiheadAttention(6, 2, batch_first=True)
        self.read, self.both = nn.Parameter(torch.zeros(6, 6)), nn.Parameter(torch.zeros(6, 5))
        self.words = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose1d(8, 6, 3, padding=1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.rnn(self.table(tokens))[0]
        x = x + self.bag(tokens % 9)[:, None] if self.bags else x
        x = x + self.att(x, x, x)[0] @ self.read
        x = x + (x @ self.both).tanh() @ torch.transpose(self.both, 0, 1)
        said = F.linear(x + self.words(tokens), self.words.weight)
        return said + self.head(x + self.up(self.conv(x.mT).tanh()).mT)


TOKENS = torch.arange(15).reshape(3, 5) % 11


def everything(bag: bool = True) -> tuple[Workspace, RankPlan]:
    """A workspace of it, and a plan with free ranks for every layer."""
    workspace = Workspace.of(filled(Everything(bag)), TOKENS, (TOKENS, TOKENS))
    choices = {}
    for layer in workspace.profile.layers:
        method = METHODS["tucker2" if len(layer.spec.kernel) and not layer.spec.transposed else "svd"]
        choices[layer.name] = Choice(method.name, tuple(min(3, r) for r in method.max_rank(layer.spec)))
    plan = with_free_ranks(RankPlan.of(workspace.profile.fingerprint, choices))
    assert {name for name, choice in plan.choices if choice.free} == {*choices} >= {"table", "read", "both", "words"}
    return workspace, plan


def test_every_kind_of_layer_has_them_and_comes_back_from_a_checkpoint(tmp_path: Path):
    """Corrected; read by this product, and by a file of code with torch and safetensors alone."""
    workspace, plan = everything()
    network = workspace.compress(plan, workspace.correction)
    answers, plain = network(TOKENS), workspace.compress(plan.plain, workspace.correction)(TOKENS)
    torch.testing.assert_close(answers, plain, rtol=1e-5, atol=1e-5)
    cost = plan_cost(workspace.profile, plan)
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    assert network.head[-1].weight is network.table[0].weight
    assert network.head[0].weight is network.table[1].weight
    path = tmp_path / "free.safetensors"
    exported = export_checkpoint(workspace, plan, path, correction=workspace.correction)
    assert exported.verdict == "same"
    loaded = load_checkpoint(workspace.model, path)
    assert loaded.plan == plan
    assert torch.equal(loaded.model(TOKENS), answers)
    names: dict[str, object] = {}
    exec(f"{LOADER}\n\n{MODULES}", names)  # the code that the export page shows
    alone = names["load_lowrank"](copy.deepcopy(workspace.model), str(path))
    assert torch.equal(alone(TOKENS), answers)


def test_an_order_that_is_none_is_refused(tmp_path: Path):
    workspace, plan = everything()
    path = tmp_path / "free.safetensors"
    export_checkpoint(workspace, plan, path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    state["conv.2.order"][0] = 70
    save_file(state, path, metadata=metadata)
    with pytest.raises(InvalidFile, match=r"the order of 'conv.2' is no permutation; export it again"):
        load_checkpoint(workspace.model, path)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_graphs_answer_as_the_network(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`write` compares what is read back with the network; here in this process, which test_exports.py does not."""

    def read(kind: str, ref: object, written: Path, batches: list[torch.Tensor], seconds: float) -> list[object]:
        return [READERS[kind](ref, str(written))(inputs) for inputs in batches]

    monkeypatch.setattr(_reload, "outputs_in_fresh_process", read)
    workspace, plan = everything(bag=kind != "onnx")  # PyTorch's exporter writes none that onnxruntime can open
    exported = EXPORTS[kind].write(workspace, Compressed(workspace.compress(plan), plan), tmp_path / "file")
    assert exported.max_abs_diff < 1e-4


def test_factors_of_less_than_their_rank_and_of_few_bits():
    """Nothing is divided by what is not there; an entry of X is never large, so nothing is rounded away."""
    flat = seeded((9, 2)) @ seeded((2, 5), 1)
    steep = seeded((40, 12)) * torch.logspace(0, -9, 12, dtype=torch.float64)
    for factor in (flat, steep, torch.zeros(4, 3), torch.ones(3, 3), seeded((5, 1))):
        kept, x = identity_rows(factor)
        others = [row for row in range(len(factor)) if row not in kept]
        torch.testing.assert_close(x @ factor[kept].double(), factor[others].double(), rtol=1e-12, atol=1e-12)
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert not x.numel() or x.abs().max() <= LARGEST
    growing = torch.eye(30, 10, dtype=torch.float64).tril() - 0.9 * torch.ones(30, 10, dtype=torch.float64).tril(-1)
    assert identity_rows(growing)[1].abs().max() <= LARGEST
    for dtype, near in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        model = filled(nn.Sequential(nn.Linear(12, 9))).to(dtype)
        x = seeded((4, 12)).to(dtype)
        profile = discover(model, x)
        plan = plan_of(profile, "svd", (4,))
        with torch.no_grad():
            plain, free = (apply(model, profile, p, FactorStore(model, profile)) for p in (plan, with_free_ranks(plan)))
            assert {p.dtype for p in free.parameters()} == {dtype}
            torch.testing.assert_close(free(x), plain(x), rtol=near, atol=near)


def test_a_method_without_them_is_refused_with_its_layer():
    model = filled(nn.Sequential(nn.Conv2d(4, 6, 3)))
    profile = discover(model, torch.zeros(1, 4, 5, 5))
    plan = RankPlan.of(profile.fingerprint, {"0": Choice("spatial_svd", (2,), free=True)})
    with pytest.raises(InvalidPlan, match="layer '0': spatial_svd has no free ranks"):
        check_plan(profile, plan)
    assert with_free_ranks(plan) == plan.plain


def test_a_search_sees_their_costs_and_a_history_keeps_them(tmp_path: Path):
    """The rules' menus, break-evens and budgets are those of the form in force; no score depends on it."""
    model = filled(nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5)))
    workspace = Workspace.of(model, torch.zeros(1, 12), seeded((40, 12)).float())
    plain, free = (problem_of(workspace, multiplies=0.8, samples=8, free=free) for free in (False, True))
    layer = workspace.profile.layer("0")
    assert plain.ranks(layer, "svd")[-1] == (6,)  # r (12 + 16) < 192
    assert free.ranks(layer, "svd")[-1] == (11,)
    *_, answer = search(make("uniform", {}), free)
    plan = answer.candidate.plan
    assert {choice.free for _, choice in plan.choices} == {True}
    assert answer.cost == plan_cost(workspace.profile, plan) != plan_cost(workspace.profile, plan.plain)
    assert free.fits(plan)
    assert score_key(answer.candidate, 8) == score_key(answer.candidate.plain, 8)
    history = History(plan).commit(plan.plain)
    assert History.from_json(history.to_json()).undo().plan == plan


@pytest.mark.parametrize("rule", ["budget", "balf"])
def test_every_rule_that_measures_searches_in_their_form(rule: str):
    workspace = Workspace.open("builtin:iris-mlp")
    *_, answer = search(make(rule, {}), problem_of(workspace, multiplies=0.5, free=True))
    assert {choice.free for _, choice in answer.candidate.plan.choices} == {True}
    assert answer.cost.multiplies <= 0.5 * plan_cost(workspace.profile).multiplies


def test_int8_takes_them_off_and_says_so():
    workspace, plan = everything()
    given = Compressed(workspace.compress(plan), plan)
    stored = given.stored(workspace, Storage("int8", refit=False))
    assert stored.plan == plan.plain
    assert not any(isinstance(part, IdentityRows | IdentityColumns) for part in stored.model.modules())
    assert stored.model.head[0].weight is stored.model.table[1].weight
    torch.testing.assert_close(stored.model(TOKENS), given.model(TOKENS), rtol=1e-5, atol=1e-5)
    costs = [plan_cost(workspace.profile, each).parameters for each in (plan.plain, plan)]
    assert stored.notes == (f"int8 is written with plain factors, {costs[0] - costs[1]:,} B more than with free ranks",)
    assert sum(p.numel() for p in stored.model.parameters()) == costs[0]
