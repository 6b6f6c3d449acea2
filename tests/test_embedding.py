"""Embedding: a table that becomes a narrower one and a Linear."""

from pathlib import Path

import pytest
import torch
from awkward_layers import filled, seeded
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.algebra.linalg import tail_energy
from lowrank_core.compression.apply import apply
from lowrank_core.compression.calibration import input_moments
from lowrank_core.compression.correct import Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.exports.safetensors import export_checkpoint
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.methods import METHODS
from lowrank_core.networks.discover import discover
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import break_even, dense_cost, plan_cost, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.sensitivity import measured
from lowrank_core.training.finetune import finetune
from lowrank_core.training.recipe import Settings, balance, randomise
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = LayerSpec(11, 6, bias=False, table=True, padding_idx=2)
TABLE = seeded((11, 6))
OFTEN = torch.tensor([8.0, 4, 0, 2, 2, 1, 1, 1, 1, 0, 0], dtype=torch.float64) / 20


class Net(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.table = filled(nn.Embedding(11, 6, **options).double())
        self.head = filled(nn.Linear(6, 3).double())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).tanh().mean(1))


TOKENS = torch.arange(15).reshape(3, 5) % 11
DRAWN = torch.multinomial(OFTEN, 500, replacement=True, generator=torch.Generator().manual_seed(0)).reshape(100, 5)


@pytest.mark.parametrize("shape", [(11, 6), (4, 6)], ids=["tall", "flat"])
@pytest.mark.parametrize("method", ["svd", "svd_aware"])
def test_chain_reconstruction_and_error_agree(method, shape):
    rows, columns = shape
    spec = LayerSpec(rows, columns, bias=False, table=True, padding_idx=2)
    weight, often = TABLE[:rows], OFTEN[:rows] / OFTEN[:rows].sum()
    found = METHODS[method].factorize(spec, weight, often if method == "svd_aware" else None)
    weights = often if method == "svd_aware" else torch.ones(rows, dtype=torch.float64)
    (top,) = METHODS[method].max_rank(spec)
    assert top == min(shape)
    norm = (weights[:, None] * weight.square()).sum()
    for rank in range(1, top + 1):
        stages = METHODS[method].stages(spec, (rank,))
        chain = nn.Sequential(*(stage.build(dtype=torch.float64) for stage in stages))
        with torch.no_grad():
            for part, value in zip(chain, found.weights((rank,)), strict=True):
                assert part.weight.shape == value.shape
                assert value.is_contiguous()
                part.weight.copy_(value)
            torch.testing.assert_close(chain(torch.arange(rows)), found.reconstruct((rank,)))
        assert sum(p.numel() for p in chain.parameters()) == sum(stage.parameters for stage in stages)
        left = (weights[:, None] * (weight - found.reconstruct((rank,))).square()).sum()
        assert found.error((rank,)) == pytest.approx(float((left / norm).sqrt()), abs=1e-6)
        best = torch.linalg.svdvals(weights.sqrt()[:, None] * weight)  # Eckart and Young, rows as often as they occur
        torch.testing.assert_close(tail_energy(found.spectra[0])[rank], tail_energy(best)[rank], atol=1e-12, rtol=1e-9)
    assert found.error((top,)) < 1e-7
    assert chain[0].padding_idx == 2


def test_a_planted_rank_is_found():
    weight = seeded((11, 3)) @ seeded((3, 6), 1)
    for method in ("svd", "svd_aware"):
        found = METHODS[method].factorize(SPEC, weight, OFTEN if method == "svd_aware" else None)
        assert found.error((3,)) < 1e-6
        assert found.error((2,)) > 1e-2


@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if m.name not in ("svd", "svd_aware")])
def test_no_other_method_takes_it(method):
    assert METHODS[method].obstacle(SPEC) is not None


def test_costs_are_those_of_the_network():
    model = Net(padding_idx=2)
    profile = discover(model, TOKENS)
    layer = profile.layer("table")
    assert (layer.spec, layer.in_sizes) == (SPEC, ((5,),))
    assert dense_cost(layer).multiplies == 0
    assert break_even(layer, "svd", "bytes") == useful_rank(layer, "svd") == (3,)  # r (11 + 6) < 66
    assert break_even(layer, "svd", "multiplies") == (0,)
    plan = RankPlan.of(profile.fingerprint, {"table": Choice("svd", (2,))})
    compressed = apply(model, profile, plan, FactorStore(model, profile))
    for network, cost in ((model, plan_cost(profile)), (compressed, plan_cost(profile, plan))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(TOKENS)
        assert cost.multiplies == counter.get_total_flops() // 2 // len(TOKENS)
        assert cost.parameters == sum(p.numel() for p in network.parameters())
    assert plan_cost(profile, plan).multiplies - plan_cost(profile).multiplies == 5 * 2 * 6


def test_tokens_are_counted_and_common_ones_are_kept_best():
    model = Net()
    profile = discover(model, TOKENS)
    found = input_moments(model, profile.layers, Dataset(DRAWN))
    often = torch.bincount(DRAWN.flatten(), minlength=11) / DRAWN.numel()
    torch.testing.assert_close(found["table"].second, often.double())
    factors = FactorStore(model, profile, lambda name: found[name].second)
    lost = []
    for method in ("svd", "svd_aware"):
        plan = RankPlan.of(profile.fingerprint, {"table": Choice(method, (2,))})
        chain = apply(model, profile, plan, factors).table
        with torch.no_grad():
            lost.append(float((chain(DRAWN) - model.table(DRAWN)).norm()))
    assert lost[1] < 0.9 * lost[0]


def test_the_correction_refits_it():
    model = Net()
    profile = discover(model, TOKENS)
    factors = FactorStore(model, profile)
    corrector = Corrector(model, profile, factors, lambda: Dataset(DRAWN))
    plan = RankPlan.of(profile.fingerprint, {"table": Choice("svd", (2,))})
    plain, corrected, alone = (apply(model, profile, plan, factors) for _ in range(3))
    overlay = corrector(plan, Correction(ridge=0))
    assert set(overlay) == {"table.1.weight"}
    load_overlay(corrected, overlay)
    load_overlay(alone, corrector.alone(alone, plan, Correction(ridge=0)))
    with torch.no_grad():
        far, near = (float((copy.table(DRAWN) - model.table(DRAWN)).norm()) for copy in (plain, corrected))
        assert near < 0.95 * far
        torch.testing.assert_close(alone(TOKENS), corrected(TOKENS))


def test_what_cannot_be_compressed_says_why():
    profile = discover(Net(max_norm=1.0), TOKENS)
    assert [layer.name for layer in profile.layers] == ["head"]
    assert "max_norm=1 rescales its rows" in profile.skipped[0].reason


def test_balanced_and_random_tables():
    chain = nn.Sequential(nn.Embedding(200, 8), nn.Linear(8, 30, bias=False)).double()
    randomise(chain, 3.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = chain(torch.arange(200))
        assert float(before.square().mean().sqrt()) == pytest.approx(3, rel=0.15)
        chain[1].weight.mul_(100)
        chain[0].weight.div_(100)
        balance(chain)
        torch.testing.assert_close(chain(torch.arange(200)), before)
    torch.testing.assert_close(chain[0].weight.norm(dim=0), chain[1].weight.norm(dim=0))


MODEL = """
import torch
from torch import nn

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 12, padding_idx=0)
        self.rnn = nn.GRU(12, 8, batch_first=True)
        self.head = nn.Linear(8, 30)
    def forward(self, tokens):
        return self.head(self.rnn(self.table(tokens))[0])

metric = "perplexity"
def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reader().eval()
def example_inputs(): return (torch.ones(1, 6).long(),)
def data(seed):
    tokens = torch.randint(30, (160, 7), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]
def eval_data(): return data(1)
def train_data(): return data(2)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    path = tmp_path / "language_net.py"
    path.write_text(MODEL)
    return Workspace.open(str(path))


def test_a_language_model_goes_all_the_way(workspace, tmp_path):
    """Measured by perplexity, exported and loaded in a fresh process, trained."""
    names = [layer.name for layer in workspace.profile.layers]
    assert names == ["table", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "head"]
    plan = RankPlan.of(workspace.profile.fingerprint, {name: Choice("svd", (3,)) for name in names})
    assert export_checkpoint(workspace, plan, tmp_path / "c", correction=workspace.correction).max_abs_diff == 0
    *_, score = workspace.measure(workspace.compress(plan, workspace.correction))
    assert (score.metric, score.higher_is_better) == ("perplexity", False)
    assert score.drop == pytest.approx(score.value - score.dense)
    points = list(measured(workspace, workspace.correction, asks=[(n, Choice("svd", (2,))) for n in names]))
    assert all(point.change > 0 and point.loss > 0 for point in points)
    for from_scratch in (False, True):
        settings = Settings(epochs=1, from_scratch=from_scratch)
        *_, last = finetune(workspace, workspace.candidate(plan), settings)
        assert last.model is not None
