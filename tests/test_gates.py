"""Tucker and CP over the stacked gates of LSTM and GRU: planted, exact, counted, corrected, trained, stored, loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from awkward_layers import filled, seeded
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.compression.apply import apply, restructure
from lowrank_core.compression.checkpoint import load_checkpoint, write_checkpoint
from lowrank_core.compression.correct import Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidFile
from lowrank_core.exports import EXPORTS
from lowrank_core.exports.safetensors import export_checkpoint
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.parts import GroupedLinear, SharedLinear
from lowrank_core.layers.spec import LayerSpec, build_part
from lowrank_core.methods import METHODS
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile, fingerprint
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import break_even, coefficients, layer_cost, plan_cost, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.training.finetune import finetune
from lowrank_core.training.recipe import CP_RATE, Settings
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

GATE_METHODS = ("gate_tucker", "gate_cp")
every_method = pytest.mark.parametrize("method", GATE_METHODS)
X = seeded((3, 4, 5))
SAMPLES = Dataset(1 + seeded((100, 4, 5), 3) @ seeded((5, 5), 4))  # inputs that have much in common
KINDS = {
    "lstm-both-ways": (nn.LSTM, {"bidirectional": True, "batch_first": True}),
    "lstm-projected": (nn.LSTM, {"proj_size": 3}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru-2-no-bias": (nn.GRU, {"num_layers": 2, "bias": False}),
}
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS)


class Net(nn.Module):
    """Batch first, whatever the recurrent module takes; the mean over time goes into a Linear."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.rnn = kind(5, 7, **options)
        self.head = nn.Linear((self.rnn.proj_size or 7) * (2 if self.rnn.bidirectional else 1), 4)
        filled(self.double())

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        return self.head(out.mean(1 if self.rnn.batch_first else 0))


def opened(model: nn.Module) -> tuple[ModelProfile, FactorStore]:
    profile = discover(model, X)
    return profile, FactorStore(model, profile)


def gate_plan(profile: ModelProfile, method: str, share: float = 1) -> RankPlan:
    """Every gate-stacked weight at a share of its largest rank."""
    chosen = {}
    for layer in profile.layers:
        if METHODS[method].obstacle(layer.spec) is None:
            top = METHODS[method].max_rank(layer.spec)
            chosen[layer.name] = Choice(method, tuple(max(1, int(share * r)) for r in top))
    return RankPlan.of(profile.fingerprint, chosen)


def distance(model: nn.Module, other: nn.Module, x: Tensor = SAMPLES.inputs) -> float:
    with torch.no_grad():
        return float((model(x) - other(x)).norm() / model(x).norm())


def test_which_weights_have_gates():
    def gates(model: nn.Module) -> dict[str, int]:
        return {layer.name.removeprefix("rnn."): layer.spec.gates for layer in discover(model, X).layers}

    lstm = gates(Net(nn.LSTM, proj_size=3))
    assert lstm == {"weight_ih_l0": 4, "weight_hh_l0": 4, "weight_hr_l0": 0, "head": 0}
    assert gates(Net(nn.GRU)) == {"weight_ih_l0": 3, "weight_hh_l0": 3, "head": 0}
    assert gates(Net(nn.RNN)) == {"weight_ih_l0": 1, "weight_hh_l0": 1, "head": 0}
    for method in map(METHODS.get, GATE_METHODS):
        assert "one gate: a matrix has one rank" in method.obstacle(LayerSpec(7, 7, gates=1))
        assert "no gates are stacked" in method.obstacle(LayerSpec(7, 28))
        assert method.obstacle(LayerSpec(7, 28, gates=4)) is None
    assert "too small" in METHODS["gate_cp"].obstacle(LayerSpec(1, 4, gates=4))
    assert discover(Net(nn.LSTM), X).layers[0].methods[0].name == "svd"


@pytest.mark.parametrize("groups", [1, 3])
def test_a_grouped_linear_is_a_grouped_convolution(groups):
    linear = filled(GroupedLinear(6, 9, groups, dtype=torch.float64))
    for x in (seeded((6,)), seeded((2, 6)), seeded((2, 5, 6))):
        expected = F.conv1d(x.reshape(-1, 6, 1), linear.weight[:, :, None], linear.bias, groups=groups)
        torch.testing.assert_close(linear(x), expected.reshape(*x.shape[:-1], 9))


def test_a_shared_linear_is_one_linear_for_every_part():
    linear = filled(SharedLinear(6, 12, 3, dtype=torch.float64))
    x = seeded((2, 5, 6))
    parts = [x[..., k::3] @ linear.weight.T for k in range(3)]
    torch.testing.assert_close(linear(x), torch.cat(parts, -1) + linear.bias)
    assert linear.weight.shape == (4, 2)


@pytest.mark.parametrize("spec", [LayerSpec(6, 9, groups=3), LayerSpec(6, 12, copies=3, bias=False)], ids=str)
def test_specs_of_both_survive_the_module_and_json(spec):
    built = build_part(spec.op, json.loads(json.dumps(spec.arguments)))
    assert LayerSpec.of(built) == spec
    assert spec.weight_shape == tuple(built.weight.shape)
    assert spec.parameters == sum(p.numel() for p in built.parameters())
    with FlopCounterMode(display=False) as counter:
        built(torch.ones(1, 5, 6))
    assert spec.multiplies((5,)) == counter.get_total_flops() // 2


def test_costs_are_those_of_the_formulas():
    """gates g, hidden h, inputs n: Tucker n q + g p q + h p weights, CP r (n + g + h); h p or h r again per gate."""
    layer = discover(Net(nn.LSTM), X).layer("rnn.weight_ih_l0")
    g, h, n, steps = 4, 7, 5, 4
    p, q, r = 3, 2, 6
    tucker = layer_cost(layer, Choice("gate_tucker", (p, q)))
    assert tucker.parameters == n * q + g * p * q + h * p + g * h
    assert tucker.multiplies == steps * (n * q + g * p * q + g * h * p)
    cp = layer_cost(layer, Choice("gate_cp", (r,)))
    assert cp.parameters == r * (n + g + h) + g * h
    assert cp.multiplies == steps * r * (n + g + g * h)
    assert METHODS["gate_tucker"].max_rank(layer.spec) == (7, 5)
    assert METHODS["gate_cp"].max_rank(layer.spec) == ((g * h * n - 1) // (n + g + h),) == (8,)
    assert break_even(layer, "gate_cp", "bytes") == useful_rank(layer, "gate_cp") == (8,)
    assert break_even(layer, "gate_cp", "multiplies") == (3,)  # below 140 / 37
    assert coefficients(layer, METHODS["gate_cp"], "multiplies") == (0, steps * (n + g + g * h))


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_planted_ranks_of_the_gate_tensor_are_found(kind, gates):
    """Multilinear rank (gates, 3, 2) and CP rank 2 of (gates, hidden, inputs)."""
    tucker, cp = Net(kind, batch_first=True), Net(kind, batch_first=True)
    core, hidden, inputs = seeded((gates, 3, 2)), seeded((7, 3), 1), seeded((7, 2), 2)
    tensor = torch.einsum("gpq,hp,nq->ghn", core, hidden, inputs) / 7
    rank_two = torch.einsum("gr,hr,nr->ghn", seeded((gates, 2), 3), seeded((7, 2), 4), inputs) / 7
    with torch.no_grad():
        tucker.rnn.weight_hh_l0.copy_(tensor.flatten(0, 1))
        cp.rnn.weight_hh_l0.copy_(rank_two.flatten(0, 1))
    for model, method, rank, smaller in (
        (tucker, "gate_tucker", (3, 2), ((2, 2), (3, 1))),
        (cp, "gate_cp", (2,), ((1,),)),
    ):
        profile, factors = opened(model)
        found = factors("rnn.weight_hh_l0", method)
        plan = RankPlan.of(profile.fingerprint, {"rnn.weight_hh_l0": Choice(method, rank)})
        compressed = apply(model, profile, plan, factors)
        limit = 1e-6 if method == "gate_tucker" else 1e-3  # what iterates stops before it is exact
        weight = model.rnn.weight_hh_l0
        assert (found.reconstruct(rank) - weight).norm() < limit * weight.norm()
        assert distance(model, compressed, X) < limit
        for less in smaller:
            assert (found.reconstruct(less) - weight).norm() > 1e-2 * weight.norm()


@every_kind
@every_method
def test_a_compressed_network_is_the_reconstructed_one_and_costs_what_the_plan_says(kind, options, method):
    model = Net(kind, **options)
    before = fingerprint(model)
    profile, factors = opened(model)
    plan = gate_plan(profile, method, 0.5)
    assert len(plan.choices) == sum(name.startswith(("weight_ih", "weight_hh")) for name in model.rnn._parameters)
    compressed, expected = apply(model, profile, plan, factors), Net(kind, **options)
    with torch.no_grad():
        for name, choice in plan.choices:
            expected.get_parameter(name).copy_(factors(name, method).reconstruct(choice.rank))
    torch.testing.assert_close(compressed(X), expected(X), rtol=1e-9, atol=1e-12)
    assert sum(p.numel() for p in compressed.parameters()) == plan_cost(profile, plan).parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        compressed(X)
    assert counter.get_total_flops() == 2 * len(X) * plan_cost(profile, plan).multiplies
    if method == "gate_tucker":
        exact = apply(model, profile, gate_plan(profile, method), factors)
        torch.testing.assert_close(exact(X), model(X), rtol=1e-8, atol=1e-10)
    again = restructure(model, profile, plan)
    again.load_state_dict(compressed.state_dict())
    assert torch.equal(again(X), compressed(X))
    assert fingerprint(model) == before


@every_method
def test_the_shared_last_stage_is_fitted_over_all_gates(method):
    """min over L and a bias for each gate of the sum over gates of E|W_g x + b_g - L z_g - c_g|^2, by lstsq."""
    model = Net(nn.LSTM, batch_first=True)
    profile, factors = opened(model)
    name, rank = "rnn.weight_ih_l0", {"gate_tucker": (3, 2), "gate_cp": (4,)}[method]
    plan = RankPlan.of(profile.fingerprint, {name: Choice(method, rank)})
    first, middle, last = apply(model, profile, plan, factors).get_submodule(name)
    with torch.no_grad():
        x = SAMPLES.inputs.reshape(-1, 5)
        z = middle(first(x)).unflatten(1, (-1, 4))
        wanted = (x @ model.rnn.weight_ih_l0.T + model.rnn.bias_ih_l0).unflatten(1, (4, -1))
        ones = torch.eye(4, dtype=torch.float64)
        rows = [torch.cat([z[..., g], ones[g].expand(len(z), -1)], 1) for g in range(4)]
        answer = torch.linalg.lstsq(torch.cat(rows), torch.cat([wanted[:, g] for g in range(4)])).solution
    corrector = Corrector(model, profile, factors, lambda: SAMPLES)
    whole = corrector(plan, Correction(ridge=0))
    alone = corrector.alone(apply(model, profile, plan, factors), plan, Correction(ridge=0))
    for overlay in (whole, alone):
        fitted = overlay[f"{name}.2.weight"]
        assert fitted.shape == last.weight.shape
        torch.testing.assert_close(fitted, answer[: fitted.shape[1]].T, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(overlay[f"{name}.2.bias"], answer[fitted.shape[1] :].flatten(), rtol=1e-6, atol=1e-9)


@every_kind
@every_method
def test_a_corrected_copy_answers_more_like_the_dense_one(kind, options, method):
    model = Net(kind, **options)
    profile, factors = opened(model)
    plan = gate_plan(profile, method, 0.7)
    overlay = Corrector(model, profile, factors, lambda: SAMPLES)(plan, Correction())
    plain, corrected = (apply(model, profile, plan, factors) for _ in range(2))
    load_overlay(corrected, overlay)
    assert {name.rpartition(".")[0] for name in overlay} == {f"{name}.2" for name, _ in plan.choices}
    assert distance(model, corrected) < 0.95 * distance(model, plain)


def test_torch_export_takes_shared_and_grouped_factors(tmp_path):
    model = Net(nn.GRU, batch_first=True)
    profile, factors = opened(model)
    plan = gate_plan(profile, "gate_cp", 0.5).with_choice("rnn.weight_ih_l0", Choice("gate_tucker", (3, 2)))
    compressed = apply(model, profile, plan, factors)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(compressed, (X[:, :2],), dynamic_shapes=(batch,)).module()
    for given in (X[:1, :2], X[:, :2]):
        torch.testing.assert_close(program(given), compressed(given))


MODEL = """
import torch
from torch import nn

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(5, 8, batch_first=True)
        self.head = nn.Linear(8, 4)
    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reader().eval()
def example_inputs(): return (torch.ones(1, 4, 5),)
def data(seed):
    x = torch.randn(160, 4, 5, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return x, build_model()(x).argmax(1)
def eval_data(): return data(1)
def train_data(): return data(2)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    path = tmp_path / "gate_net.py"
    path.write_text(MODEL)
    return Workspace.open(str(path))


def some(workspace: Workspace) -> RankPlan:
    chosen = {"rnn.weight_ih_l0": Choice("gate_tucker", (3, 2)), "rnn.weight_hh_l0": Choice("gate_cp", (4,))}
    return RankPlan.of(workspace.profile.fingerprint, chosen)


@pytest.mark.slow
def test_a_checkpoint_is_the_network_that_was_measured(workspace, tmp_path):
    target = tmp_path / "small.safetensors"
    compressed = workspace.compress(some(workspace), workspace.correction)
    exported = export_checkpoint(workspace, some(workspace), target, correction=workspace.correction)
    assert exported.max_abs_diff == 0  # in a fresh process
    expected = compressed(torch.ones(1, 4, 5)).detach()
    (alone,) = [s for s in EXPORTS["safetensors"].snippets(workspace.opened.ref, target.name) if s.partial]
    script = "import sys; sys.modules['lowrank_core'] = None\nimport torch; torch.set_num_threads(1)\n"
    script += f"{alone.code}\ntorch.save(model(torch.ones(1, 4, 5)).detach(), 'out.pt')\n"
    (tmp_path / "script.py").write_text(script)
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True)
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), expected)


def test_chains_that_do_not_fit_are_refused(workspace, tmp_path):
    path = tmp_path / "c"
    plan = some(workspace)
    write_checkpoint(
        workspace.compress(plan), workspace.profile, plan, path, plan_document=plan.to_json(), provenance={}
    )
    with safe_open(path, "pt") as file:
        about = file.metadata()["lowrank"]
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for old, new in (
        ('"op": "SharedLinear"', '"op": "Bilinear"'),
        ('"op": "SharedLinear"', '"op": "Linear"'),
        ('"copies": 3', '"copies": 1'),
        ('"copies": 3', '"copies": 0'),
        ('"out_features": 12', '"out_features": 9'),
        ('"groups": 4', '"groups": 4, "device": "cpu"'),
        ('"bias": true, "copies"', '"bias": false, "copies"'),
        ('"in_features": 5, "out_features": 2', '"in_features": 6, "out_features": 2'),
    ):
        assert old in about, old
        save_file(state, path, metadata={"lowrank": about.replace(old, new)})
        with pytest.raises(InvalidFile, match=r"cannot be rebuilt|does not fit"):
            load_checkpoint(workspace.model, path)
    save_file(state, path, metadata={"lowrank": about})
    load_checkpoint(workspace.model, path)


def test_a_rank_that_is_one_number_is_read_for_ever():
    """`golden/checkpoint-1-lstm.safetensors`: the hidden side of an LSTM 3 -> 4 as 4 -> 2 -> 16, by formula."""
    model = nn.LSTM(3, 4, batch_first=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.arange(parameter.numel()).reshape(parameter.shape) % 5 - 2) / 4)
    loaded = load_checkpoint(model, Path(__file__).parent / "golden" / "checkpoint-1-lstm.safetensors")
    assert loaded.plan.get("weight_hh_l0") == Choice("svd", (2,))
    first, last = loaded.model.weight_hh_l0
    assert torch.equal(first.weight.flatten(), torch.arange(8) / 8)
    with torch.no_grad():
        model.weight_hh_l0.copy_(last.weight @ first.weight)
    x = seeded((2, 5, 3)).float()
    torch.testing.assert_close(loaded.model(x)[0], model(x)[0])


def test_factors_are_trained(workspace):
    settings = Settings(epochs=2)
    assert settings.rate(some(workspace)) == CP_RATE
    *_, last = finetune(workspace, workspace.candidate(some(workspace)), settings)
    dense, start = dict(workspace.model.named_parameters()), workspace.compress(some(workspace))
    for name, parameter in last.model.named_parameters():
        assert torch.equal(parameter, dense.get(name, start.get_parameter(name))) == (name in dense), name
