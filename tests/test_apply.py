"""apply: a compressed copy that computes what the plan says, and a model that is left alone."""

import copy

import pytest
import torch
from awkward_layers import EACH_ONCE, filled, seeded
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.compression.apply import apply, restructure
from lowrank_core.compression.calibration import MomentStore
from lowrank_core.compression.correct import Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidModel, InvalidPlan
from lowrank_core.layers.data import Dataset
from lowrank_core.methods import METHODS
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile, fingerprint, module_at
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.plans.uniform import uniform_plan

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.usefixtures("one_thread"),
]

ONE_MODULE = [(method, awkward) for method, awkward in EACH_ONCE if not awkward.spec.gates]


class Net(nn.Module):
    """`again` is `fc`; the convolution has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, (3, 5), stride=(2, 1), padding=(1, 2), bias=False)
        self.fc = nn.Linear(6, 6)
        self.again = self.fc
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu().mean((2, 3))
        return self.drop(self.again(self.fc(x).relu()))


@pytest.fixture
def model() -> nn.Module:
    return filled(Net().double())


X = torch.linspace(-1, 1, 2 * 2 * 7 * 8, dtype=torch.float64).reshape(2, 2, 7, 8)


def opened(model: nn.Module, inputs: torch.Tensor = X) -> tuple[ModelProfile, FactorStore]:
    """Profile and factors; what data-aware methods learn from are 100 samples of normal numbers."""
    profile = discover(model, inputs)
    moments = MomentStore(model, profile, lambda: samples(inputs))
    return profile, FactorStore(model, profile, lambda name: moments(name).second)


def samples(inputs: torch.Tensor) -> Dataset:
    """100 samples of the same form."""
    return Dataset(seeded((100, *inputs.shape[1:])).to(inputs))


def full(profile: ModelProfile, *methods: str) -> RankPlan:
    """Every layer at full rank, by the first of the methods that fits."""
    choices = {}
    for layer in profile.layers:
        name = next((m for m in methods if METHODS[m].obstacle(layer.spec) is None), "svd")
        choices[layer.name] = Choice(name, METHODS[name].max_rank(layer.spec))
    return RankPlan.of(profile.fingerprint, choices)


@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if m.nested])
def test_at_full_rank_the_copy_computes_the_same(model, method):
    profile, factors = opened(model)
    compressed = apply(model, profile, full(profile, method), factors)
    torch.testing.assert_close(compressed(X), model(X), rtol=1e-9, atol=1e-12)
    assert isinstance(compressed.conv, nn.Sequential)


@pytest.mark.parametrize(("method", "awkward"), ONE_MODULE, ids=lambda v: v.name)
def test_the_copy_is_the_model_with_the_reconstructed_weight(method, awkward):
    model = filled(nn.Sequential(awkward.spec.build(dtype=torch.float64)))
    x = awkward.inputs(2)
    profile, factors = opened(model, x)
    rank = tuple((top + 1) // 2 for top in method.max_rank(awkward.spec))
    compressed = apply(model, profile, RankPlan.of(profile.fingerprint, {"0": Choice(method.name, rank)}), factors)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected[0].weight.copy_(factors("0", method.name).reconstruct(rank))
    torch.testing.assert_close(compressed(x), expected(x), rtol=1e-9, atol=1e-12)


def flops(model: nn.Module, inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["least_squares", "bias"])
@pytest.mark.parametrize("method", METHODS)
def test_a_corrected_copy_has_the_same_parameters_and_multiplies(method, kind, model):
    """As PyTorch counts them, and as the plan's cost says."""
    profile, factors = opened(model)
    halves = {
        name: Choice(choice.method, tuple((r + 1) // 2 for r in choice.rank))
        for name, choice in full(profile, method).choices
    }
    plan = RankPlan.of(profile.fingerprint, halves)
    overlay = Corrector(model, profile, factors, lambda: samples(X))(plan, Correction(kind))
    assert overlay
    plain, corrected = (apply(model, profile, plan, factors) for _ in range(2))
    load_overlay(corrected, overlay)
    assert all(not torch.equal(corrected.get_parameter(n), plain.get_parameter(n)) for n in overlay)
    shapes = [{n: p.shape for n, p in copy.named_parameters()} for copy in (plain, corrected)]
    assert shapes[0] == shapes[1]
    cost = plan_cost(profile, plan)
    assert sum(p.numel() for p in corrected.parameters()) == cost.parameters
    assert flops(plain, X) == flops(corrected, X) == 2 * len(X) * cost.multiplies


def test_the_users_model_is_untouched(model):
    profile, factors = opened(model)
    before, modules = fingerprint(model), list(model.modules())
    compressed = apply(model, profile, full(profile), factors)
    with torch.no_grad():
        for parameter in compressed.parameters():
            parameter.zero_()
    assert fingerprint(model) == before
    assert list(model.modules()) == modules
    assert not {id(p) for p in model.parameters()} & {id(p) for p in compressed.parameters()}


def test_a_dense_plan_is_a_plain_copy(model):
    profile, factors = opened(model)
    compressed = apply(model, profile, RankPlan(profile.fingerprint), factors)
    assert compressed is not model
    assert fingerprint(compressed) == fingerprint(model)


def test_a_shared_module_stays_shared(model):
    profile, factors = opened(model)
    compressed = apply(model, profile, RankPlan.of(profile.fingerprint, {"fc": Choice("svd", (2,))}), factors)
    assert compressed.fc is compressed.again
    assert isinstance(compressed.fc, nn.Sequential)
    assert isinstance(compressed.conv, nn.Conv2d)


def test_parameters_are_those_of_the_cost(model):
    profile, factors = opened(model)
    for share in (0.3, 0.6):
        plan = uniform_plan(profile, share)
        cost = plan_cost(profile, plan)
        compressed = apply(model, profile, plan, factors)
        assert sum(p.numel() for p in compressed.parameters()) == cost.parameters
        assert sum(p.numel() * p.element_size() for p in compressed.parameters()) == cost.bytes


def test_a_network_that_is_one_layer():
    model = filled(nn.Linear(6, 4, dtype=torch.float64))
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6)
    profile, factors = opened(model, x)
    compressed = apply(model, profile, full(profile), factors)
    assert isinstance(compressed, nn.Sequential)
    torch.testing.assert_close(compressed(x), model(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_and_bias_are_kept(dtype):
    model = filled(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3, bias=False)).to(dtype))
    profile, factors = opened(model, torch.ones(1, 6, dtype=dtype))
    compressed = apply(model, profile, full(profile), factors)
    assert {p.dtype for p in compressed.parameters()} == {dtype}
    assert torch.equal(compressed[0][-1].bias, model[0].bias)
    assert [part.bias is None for part in compressed[0]] == [True, False]
    assert all(part.bias is None for part in compressed[1])


def test_each_modules_mode_is_kept(model):
    profile, factors = opened(model)
    plan = full(profile)
    assert not any(m.training for m in apply(model, profile, plan, factors).modules())
    model.train()
    model.conv.eval()
    compressed = apply(model, profile, plan, factors)
    assert compressed.drop.training
    assert compressed.fc[0].training
    assert not compressed.conv[0].training


def test_a_plan_that_does_not_fit_changes_nothing(model):
    profile, factors = opened(model)
    with pytest.raises(InvalidPlan, match="no layer 'fcc'"):
        apply(model, profile, RankPlan.of(profile.fingerprint, {"fcc": Choice("svd", (2,))}), factors)
    with pytest.raises(InvalidPlan, match="made for the model"):
        restructure(model, profile, RankPlan("sha256:other"))


def test_restructure_takes_a_state_dict_of_the_compressed_network(model):
    profile, factors = opened(model)
    plan = uniform_plan(profile, 0.5)
    compressed = apply(model, profile, plan, factors)
    loaded = restructure(model, profile, plan)
    loaded.load_state_dict(compressed.state_dict())
    assert torch.equal(loaded(X), compressed(X))


def test_a_layer_is_factorised_once(model):
    _, factors = opened(model)
    first = factors("fc", "svd")
    assert factors("fc", "svd") is first
    assert factors("conv", "svd") is not first


def test_a_weight_that_went_bad_is_named(model):
    _, factors = opened(model)
    with torch.no_grad():
        model.fc.weight[0, 0] = torch.nan
    with pytest.raises(InvalidModel, match="layer 'fc' could not be factorised by svd: a weight holds NaN or Inf"):
        factors("fc", "svd")


def test_module_at_prefers_a_real_name():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.Linear = nn.Linear(2, 2)

    model = Linear()
    assert module_at(model, "Linear") is model.Linear
