"""Layers that share a weight share its factors: one rank, stored once, computed wherever they are called."""

import copy
from pathlib import Path

import pytest
import torch
from awkward_layers import filled
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.compression.apply import apply, chain_at
from lowrank_core.compression.checkpoint import load_checkpoint
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidPlan
from lowrank_core.exports.safetensors import export_checkpoint
from lowrank_core.layers.spec import LayerSpec, sharing
from lowrank_core.methods import METHODS
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.cost import break_even, check_plan, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.training.finetune import finetune
from lowrank_core.training.recipe import Settings, Train
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = torch.arange(15).reshape(3, 5) % 11


class Net(nn.Module):
    """The head stands first, as networks may have it; it has a bias of its own and is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.table = nn.Linear(6, 11), nn.Embedding(11, 6, padding_idx=2)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens).tanh()
        return self.head(x) + self.head(-x).flip(-1).square()


def opened() -> tuple[nn.Module, ModelProfile]:
    model = filled(Net().double())
    return model, discover(model, TOKENS)


def plan_at(profile: ModelProfile, rank: int, method: str = "svd") -> RankPlan:
    return RankPlan.of(profile.fingerprint, {"table": Choice(method, (rank,))})


def compressed(model: nn.Module, profile: ModelProfile, rank: int) -> nn.Module:
    return apply(model, profile, plan_at(profile, rank), FactorStore(model, profile))


def test_it_is_one_layer_under_the_name_of_the_table():
    _, profile = opened()
    (layer,) = profile.layers
    assert (layer.name, layer.type, layer.tied[0].name) == ("table", "Embedding with head", "head")
    assert (profile.skipped, profile.rest.parameters, profile.rest.multiplies) == ((), 0, 0)
    assert [method.name for method in layer.methods] == ["svd", "svd_aware"]
    assert not layer.plain
    with pytest.raises(InvalidPlan, match="shares the weight of 'table', which stands for both"):
        check_plan(profile, RankPlan.of(profile.fingerprint, {"head": Choice("svd", (2,))}))


def test_both_compute_with_the_same_matrix_at_every_rank():
    model, profile = opened()
    for rank in range(1, 7):
        copied = compressed(model, profile, rank)
        matrix = FactorStore(model, profile)("table", "svd").reconstruct((rank,))
        reference = copy.deepcopy(model)
        with torch.no_grad():
            reference.table.weight.copy_(matrix)
            torch.testing.assert_close(copied(TOKENS), reference(TOKENS))
        assert copied.head[1].weight is copied.table[0].weight
        assert copied.head[0].weight is copied.table[1].weight
    with torch.no_grad():
        torch.testing.assert_close(copied(TOKENS), model(TOKENS))


def test_stored_once_and_computed_at_every_call():
    model, profile = opened()
    for rank in (None, 2, 6):
        network = model if rank is None else compressed(model, profile, rank)
        cost = plan_cost(profile, None if rank is None else plan_at(profile, rank))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(TOKENS)
        assert cost.multiplies == counter.get_total_flops() // 2 // len(TOKENS)
        assert cost.parameters == sum(p.numel() for p in network.parameters())
        assert cost.bytes == 8 * cost.parameters
    layer = profile.layer("table")
    assert break_even(layer, "svd", "bytes") == (3,)  # r (11 + 6) < 66
    assert break_even(layer, "svd", "multiplies") == (3,)  # 5 (2 r (11 + 6) + 6 r) < 5 * 2 * 66


@pytest.mark.parametrize("spec", [LayerSpec(6, 11), LayerSpec(11, 6, bias=False, table=True)], ids=["head", "table"])
def test_factors_that_are_shared_have_the_same_shapes(spec):
    table = METHODS["svd"].stages(LayerSpec(11, 6, bias=False, table=True, padding_idx=1), (3,))
    turned = sharing(table, spec)
    shapes = [stage.weight_shape for stage in turned]
    assert (shapes if spec.table else shapes[::-1]) == [stage.weight_shape for stage in table]
    assert (turned[0].in_channels, turned[-1].out_channels) == (spec.in_channels, spec.out_channels)
    for stage in turned:
        module = stage.build(device="meta")
        assert tuple(module.weight.shape) == stage.weight_shape
        assert LayerSpec.of(module) == stage


MODEL = """
import torch
from torch import nn

class Speaker(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 12)
        self.rnn = nn.LSTM(12, 12, batch_first=True)
        self.head = nn.Linear(12, 30)
        self.head.weight = self.table.weight
    def forward(self, tokens):
        return self.head(self.rnn(self.table(tokens))[0])

metric = "perplexity"
def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Speaker().eval()
def example_inputs(): return (torch.ones(1, 6).long(),)
def data(seed):
    tokens = torch.randint(30, (160, 7), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]
def eval_data(): return data(1)
def train_data(): return data(2)
"""


def test_a_tied_language_model_is_exported_reloaded_and_trained(tmp_path: Path):
    path = tmp_path / "tied_net.py"
    path.write_text(MODEL)
    workspace = Workspace.open(str(path))
    names = [layer.name for layer in workspace.profile.layers]
    assert names == ["table", "rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    plan = RankPlan.of(
        workspace.profile.fingerprint, {"table": Choice("svd_aware", (4,)), names[2]: Choice("svd", (3,))}
    )
    file = tmp_path / "small.safetensors"
    assert export_checkpoint(workspace, plan, file, correction=workspace.correction).max_abs_diff == 0
    with safe_open(file, "pt") as stored:
        held = sum(stored.get_tensor(name).numel() for name in stored.keys())  # noqa: SIM118
    assert held == plan_cost(workspace.profile, plan).parameters
    loaded = load_checkpoint(workspace.model, file).model
    assert loaded.head[1].weight is loaded.table[0].weight
    for from_scratch in (False, True):
        *_, last = finetune(workspace, workspace.candidate(plan), Settings(epochs=1, from_scratch=from_scratch))
        trained = last.model
        assert chain_at(workspace.model, trained, "head")[1].weight is trained.table[0].weight
        assert sum(p.numel() for p in trained.parameters()) == held


@pytest.mark.usefixtures("unset_is_nan")
@pytest.mark.parametrize("train", ["factors", "everything"])
def test_from_scratch_every_layer_that_shares_a_weight_begins_with_a_bias(tmp_path: Path, train: Train):
    path = tmp_path / "tied_net.py"
    path.write_text(MODEL)
    workspace = Workspace.open(str(path))
    plan = RankPlan.of(workspace.profile.fingerprint, {"table": Choice("svd", (4,))})
    settings = Settings(epochs=1, learning_rate=1e-6, from_scratch=True, train=train)
    *_, last = finetune(workspace, workspace.candidate(plan), settings)
    assert last.model is not None
    bias = chain_at(workspace.model, last.model, "head")[1].get_parameter("bias")
    torch.testing.assert_close(bias, torch.zeros(30), atol=1e-4, rtol=0)
