"""LSTM, GRU and RNN: each weight a layer of its own, compressed, corrected, measured, stored and loaded again."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from awkward_layers import filled, seeded
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.compression.apply import apply, restructure
from lowrank_core.compression.calibration import MomentStore, input_moments
from lowrank_core.compression.checkpoint import load_checkpoint, write_checkpoint
from lowrank_core.compression.correct import ROUNDS, Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidFile
from lowrank_core.exports import EXPORTS
from lowrank_core.exports.safetensors import export_checkpoint
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.parts import Recurrent
from lowrank_core.layers.recurrent import build_recurrent, factored, watched
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile, fingerprint, weight_at
from lowrank_core.networks.twin import twin
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import break_even, plan_cost, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.sensitivity import measured
from lowrank_core.scoring.scores import final_score
from lowrank_core.training.finetune import finetune
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:TF32 acceleration", "ignore:.*weight_norm.*:FutureWarning"),
]


def rnn(kind: type[nn.RNNBase], **options: object) -> nn.RNNBase:
    return filled(kind(5, 7, **options).double())


KINDS = {
    "lstm": (nn.LSTM, {}),
    "lstm-first": (nn.LSTM, {"batch_first": True}),
    "lstm-both-ways-2": (nn.LSTM, {"bidirectional": True, "num_layers": 2, "batch_first": True}),
    "lstm-projected": (nn.LSTM, {"proj_size": 3, "num_layers": 2}),
    "lstm-projected-both-ways": (nn.LSTM, {"proj_size": 3, "bidirectional": True, "bias": False}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru-3-no-bias": (nn.GRU, {"num_layers": 3, "bias": False}),
    "gru-both-ways": (nn.GRU, {"bidirectional": True, "batch_first": True}),
    "rnn-tanh": (nn.RNN, {"num_layers": 2}),
    "rnn-relu-both-ways": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True, "batch_first": True}),
}
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS)


class Net(nn.Module):
    """Batch first, whatever the recurrent module takes; the mean over time goes into a Linear."""

    def __init__(self, inner: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = inner
        width = (inner.proj_size or inner.hidden_size) * (2 if inner.bidirectional else 1)
        self.head = filled(nn.Linear(width, 4).double())

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        out, _ = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        return self.head(out.mean(1 if self.rnn.batch_first else 0))


X = seeded((3, 6, 5))
SAMPLES = Dataset(seeded((100, 6, 5), 3))


def opened(model: nn.Module, inputs: Tensor = X) -> tuple[ModelProfile, FactorStore]:
    profile = discover(model, inputs)
    moments = MomentStore(model, profile, lambda: SAMPLES)
    return profile, FactorStore(model, profile, lambda name: moments(name).second)


def full(profile: ModelProfile, method: str = "svd", share: float = 1) -> RankPlan:
    ranks = {layer.name: (max(1, int(share * min(layer.spec.weight_shape))),) for layer in profile.layers}
    return RankPlan.of(profile.fingerprint, {name: Choice(method, rank) for name, rank in ranks.items()})


@every_kind
def test_the_module_computes_what_pytorchs_does(kind, options):
    """Outputs and last states, of batches and of single sequences, from zero and from given states."""
    inner = rnn(kind, **options)
    outputs, states = inner(X)
    for module in (watched(inner), factored(inner, {})):
        for given in (X, X[0]):
            torch.testing.assert_close(module(given), inner(given), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(module(X, states), inner(X, states), rtol=1e-9, atol=1e-12)
    assert outputs.shape[-1] == watched(inner)(X)[0].shape[-1]
    copied = factored(inner, {})
    assert copied.state_dict().keys() == inner.state_dict().keys()
    copied.load_state_dict(inner.state_dict())


@every_kind
def test_each_weight_is_a_layer_and_counts_are_pytorchs(kind, options):
    model = Net(rnn(kind, **options))
    profile = discover(model, X)
    wanted = [name for name, _ in model.rnn.named_parameters() if name.startswith("weight")]
    assert {layer.name for layer in profile.layers} == {f"rnn.{name}" for name in wanted} | {"head"}
    assert profile.skipped == ()
    assert profile.rest.parameters == 0
    assert profile.rest.multiplies == 0
    for layer in profile.layers:
        assert weight_at(model, layer).shape == layer.spec.weight_shape
    assert profile.layers[0].name == "rnn.weight_ih_l0"
    assert profile.layer("rnn.weight_ih_l0").in_sizes == ((6,),)
    assert profile.layer("rnn.weight_hh_l0").in_sizes == ((),) * 6
    total = plan_cost(profile)
    assert total.parameters == sum(p.numel() for p in model.parameters())
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(X)
    assert total.multiplies == counter.get_total_flops() // 2 // len(X)


@pytest.mark.parametrize("method", ["svd", "svd_aware"])
@every_kind
def test_full_rank_is_the_network_and_half_costs_what_the_plan_says(kind, options, method):
    model = Net(rnn(kind, **options))
    before = fingerprint(model)
    profile, factors = opened(model)
    exact = apply(model, profile, full(profile, method), factors)
    torch.testing.assert_close(exact(X), model(X), rtol=1e-8, atol=1e-10)
    plan = full(profile, method, 0.5)
    half = apply(model, profile, plan, factors)
    assert isinstance(half.rnn, Recurrent)
    assert sum(p.numel() for p in half.parameters()) == plan_cost(profile, plan).parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        half(X)
    assert counter.get_total_flops() == 2 * len(X) * plan_cost(profile, plan).multiplies
    assert fingerprint(model) == before
    assert type(model.rnn) is kind
    loaded = restructure(model, profile, plan)
    loaded.load_state_dict(half.state_dict())
    assert torch.equal(loaded(X), half(X))


def test_one_weight_alone_leaves_the_others_as_they_are():
    model = Net(rnn(nn.LSTM, bidirectional=True, num_layers=2))
    profile, factors = opened(model)
    name = "rnn.weight_hh_l1_reverse"
    compressed = apply(model, profile, RankPlan.of(profile.fingerprint, {name: Choice("svd", (2,))}), factors)
    chain = compressed.get_submodule(name)
    assert [part.weight.shape for part in chain] == [(2, 7), (28, 2)]
    expected = factors(name, "svd").reconstruct((2,))
    torch.testing.assert_close(chain[1].weight @ chain[0].weight, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(chain[1].bias, model.rnn.bias_hh_l1_reverse)
    dense = dict(model.named_parameters())
    assert all(n.startswith(name) or torch.equal(p, dense[n]) for n, p in compressed.named_parameters())
    with torch.no_grad():
        model.rnn.weight_hh_l1_reverse.copy_(expected)
    torch.testing.assert_close(compressed(X), model(X), rtol=1e-9, atol=1e-12)


def test_a_planted_rank_is_found():
    model = Net(rnn(nn.GRU))
    with torch.no_grad():
        model.rnn.weight_hh_l0.copy_(seeded((21, 3)) @ seeded((3, 7), 1) / 7)
    _, factors = opened(model)
    assert factors("rnn.weight_hh_l0", "svd").error((3,)) < 1e-6
    assert factors("rnn.weight_hh_l0", "svd").error((2,)) > 1e-2


def test_data_aware_factors_see_the_states_that_occur():
    """Inputs in a plane: rank 2 is exact on the data, where that of the plain SVD is not."""
    model, plane = Net(rnn(nn.LSTM, batch_first=True)), seeded((2, 5))
    data = Dataset(seeded((100, 6, 2), 3) @ plane)
    profile = discover(model, X)
    found = input_moments(model, profile.layers, data)
    rows = data.inputs.reshape(-1, 5)
    torch.testing.assert_close(found["rnn.weight_ih_l0"].second[0], rows.mT @ rows / len(rows))
    with torch.no_grad():
        states = model.rnn(data.inputs)[0]
    before = torch.cat([states.new_zeros(100, 1, 7), states[:, :-1]], 1).reshape(-1, 7)
    torch.testing.assert_close(found["rnn.weight_hh_l0"].second[0], before.mT @ before / len(before))
    factors = FactorStore(model, profile, lambda name: found[name].second)
    outputs = []
    for method in ("svd", "svd_aware"):
        plan = RankPlan.of(profile.fingerprint, {"rnn.weight_ih_l0": Choice(method, (2,))})
        outputs.append((apply(model, profile, plan, factors)(data.inputs) - model(data.inputs)).norm())
    assert outputs[1] < 1e-5
    assert outputs[0] > 1e-2


def change(model: nn.Module, compressed: nn.Module) -> float:
    with torch.no_grad():
        return float((compressed(SAMPLES.inputs) - model(SAMPLES.inputs)).norm())


@pytest.mark.parametrize(
    "name", ["lstm-first", "lstm-both-ways-2", "lstm-projected", "gru-both-ways", "gru-3-no-bias", "rnn-tanh"]
)
def test_a_corrected_copy_answers_more_like_the_dense_one(name):
    kind, options = KINDS[name]
    model = Net(rnn(kind, **options))
    profile, factors = opened(model)
    plan = full(profile, share=0.6)
    corrector = Corrector(model, profile, factors, lambda: SAMPLES)
    overlay = corrector(plan, Correction())
    chains = {n for n, _ in apply(model, profile, plan, factors).named_parameters() if ".1." in n}
    assert set(overlay) == chains
    plain, corrected = (apply(model, profile, plan, factors) for _ in range(2))
    load_overlay(corrected, overlay)
    assert change(model, corrected) < 0.9 * change(model, plain)
    for layer in profile.layers[:2]:  # single layers, as sensitivity measures them
        alone = RankPlan.of(profile.fingerprint, {layer.name: plan.get(layer.name)})
        one = apply(model, profile, alone, factors)
        load_overlay(one, corrector.alone(one, alone, Correction()))
        whole = corrector(alone, Correction())
        other = load_overlay(apply(model, profile, alone, factors), whole)
        torch.testing.assert_close(one(X), other(X), rtol=1e-6, atol=1e-8)


def test_the_hidden_side_is_fitted_on_the_states_of_the_dense_network_and_its_own():
    """min E|W h + b - L F h' - c|^2 over L and c, by torch.linalg.lstsq; h' first h, then what each fit led to."""
    model = Net(rnn(nn.LSTM, batch_first=True))
    profile, factors = opened(model)
    plan = RankPlan.of(profile.fingerprint, {"rnn.weight_hh_l0": Choice("svd", (3,)), "head": Choice("svd", (2,))})
    first, _ = apply(model, profile, plan, factors).rnn.weight_hh_l0
    fitted = Net(rnn(nn.LSTM, batch_first=True))

    def states(net: Net) -> Tensor:
        after = net.rnn(SAMPLES.inputs)[0]
        return torch.cat([after.new_zeros(100, 1, 7), after[:, :-1]], 1).reshape(-1, 7)

    with torch.no_grad():
        seen = [states(model)]
        wanted = seen[0] @ model.rnn.weight_hh_l0.T + model.rnn.bias_hh_l0
        for _ in range(1 + ROUNDS):
            features = torch.cat([first(torch.cat(seen)), torch.ones(600 * len(seen), 1).double()], 1)
            expected = torch.linalg.lstsq(features, wanted.repeat(len(seen), 1)).solution
            fitted.rnn.weight_hh_l0.copy_(expected[:-1].T @ first.weight)
            fitted.rnn.bias_hh_l0.copy_(expected[-1])
            seen.append(states(fitted))
    overlay = Corrector(model, profile, factors, lambda: SAMPLES)(plan, Correction(ridge=0))
    torch.testing.assert_close(overlay["rnn.weight_hh_l0.1.weight"], expected[:-1].T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(overlay["rnn.weight_hh_l0.1.bias"], expected[-1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("choice", [Choice("svd", (8,)), Choice("gate_tucker", (30, 32))], ids=str)
def test_a_hidden_side_of_few_ranks_is_corrected_for_the_better(choice):
    """The first at an eighth of its rank, where a fit on the dense network's states alone loses more than none does."""
    digits = Workspace.open("builtin:digits-lstm")
    plan = RankPlan.of(digits.profile.fingerprint, {"rnn.weight_hh_l0": choice})
    plain, corrected = (final_score(digits.measure(digits.compress(plan, c))) for c in (None, digits.correction))
    assert corrected.drop < plain.drop - 0.01


def test_digits_bear_half_the_hidden_side_and_half_the_input_side():
    """Without retraining: within 1 point and 2 points of the dense network."""
    digits = Workspace.open("builtin:digits-lstm")
    for name, rank, share, most in (("rnn.weight_hh_l0", 25, 0.5, 0.01), ("rnn.weight_ih_l0", 4, 0.52, 0.02)):
        dense, layer = plan_cost(digits.profile), digits.profile.layer(name)
        for method, correction in (("svd", digits.correction), ("svd_aware", None)):
            plan = RankPlan.of(digits.profile.fingerprint, {name: Choice(method, (rank,))})
            saved = dense.multiplies - plan_cost(digits.profile, plan).multiplies
            assert saved >= (1 - share) * 8 * layer.spec.weights
            assert final_score(digits.measure(digits.compress(plan, correction))).drop <= most


def test_a_twin_that_is_watched_shares_the_weights_and_leaves_the_network_alone():
    model = Net(rnn(nn.LSTM))
    profile = discover(model, X)
    copied = twin(model, profile.layers)
    assert copied.get_submodule("rnn.weight_hh_l0").weight is model.rnn.weight_hh_l0
    assert type(twin(model).rnn) is type(model.rnn) is nn.LSTM
    torch.testing.assert_close(copied(X), model(X))


def test_a_network_that_is_one_recurrent_module(tmp_path):
    model = rnn(nn.LSTM, batch_first=True)
    profile, factors = opened(model)
    assert [layer.name for layer in profile.layers] == ["weight_ih_l0", "weight_hh_l0"]
    plan = full(profile, share=0.5)
    compressed = apply(model, profile, plan, factors)
    path = tmp_path / "c"
    write_checkpoint(compressed, profile, plan, path, plan_document=plan.to_json(), provenance={})
    torch.testing.assert_close(load_checkpoint(model, path).model(X), compressed(X), rtol=0, atol=0)


def test_a_module_under_two_names_called_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.again = rnn(nn.GRU, batch_first=True)
            self.down = filled(nn.Linear(7, 5).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.down(self.first(x)[0]))[0][:, -1]

    model = Twice()
    profile, factors = opened(model)
    layer = profile.layer("first.weight_hh_l0")
    assert (layer.aliases, len(layer.in_sizes)) == (("again.weight_hh_l0",), 12)
    compressed = apply(model, profile, full(profile, share=0.5), factors)
    assert compressed.first is compressed.again
    overlay = Corrector(model, profile, factors, lambda: SAMPLES)(full(profile, share=0.5), Correction())
    corrected = load_overlay(apply(model, profile, full(profile, share=0.5), factors), overlay)
    assert change(model, corrected) < change(model, compressed)


def reason(module: nn.Module, forward=None, inputs: Tensor = X) -> str:
    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = module

        def forward(self, x: Tensor) -> Tensor:
            return forward(self.m, x) if forward else self.m(x)[0]

    (skipped,) = discover(Uses().eval(), inputs).skipped
    assert (skipped.name, skipped.type) == ("m", type(module).__name__)
    return skipped.reason


def test_a_state_may_come_before_the_input():
    class Given(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(hx=x.new_ones(1, len(x), 7), input=x)[0][:, -1])

    model = Given(rnn(nn.GRU, batch_first=True))
    profile, factors = opened(model)
    assert profile.skipped == ()
    torch.testing.assert_close(apply(model, profile, full(profile), factors)(X), model(X), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("ordered", [True, False])
def test_packed_sequences_give_pytorchs_outputs_and_states(kind, ordered):
    model = rnn(kind, num_layers=2, bidirectional=True)
    states = torch.stack([X[:, :4].mean(1)] * 4)[..., :1].expand(-1, -1, 7).contiguous()
    given = (states, states + 1) if kind is nn.LSTM else states
    together = pack_padded_sequence(X, [6, 5, 2] if ordered else [2, 6, 5], True, enforce_sorted=ordered)
    ours = factored(model, {})
    for hx in (None, given):
        expected, last = model(together, hx)
        outputs, end = ours(together, hx)
        torch.testing.assert_close(pad_packed_sequence(outputs)[0], pad_packed_sequence(expected)[0])
        for one, other in zip(end, last, strict=True) if kind is nn.LSTM else [(end, last)]:
            torch.testing.assert_close(one, other)
        assert torch.equal(outputs.batch_sizes, expected.batch_sizes)


def test_what_cannot_be_compressed_says_why():
    assert "never ran" in reason(rnn(nn.LSTM), lambda m, x: x)
    other = {"forward": lambda self, *given: super(type(self), self).forward(*given)}
    assert "special kind of LSTM" in reason(type("Mine", (nn.LSTM,), other)(5, 7).double())
    assert "special kind of GRUCell" in reason(
        type("Mine", (nn.GRUCell,), other)(5, 7).double(), lambda m, x: m(x[:, 0])
    )
    more = type("Mine", (nn.LSTM,), {})(5, 7).double()
    more.register_buffer("scale", torch.ones(1))
    assert "holds 'scale' beside its weights" in reason(more)
    hooked = nn.utils.weight_norm(rnn(nn.GRU), "weight_hh_l0")
    assert "computed by a hook" in reason(hooked)
    tied = rnn(nn.RNN, num_layers=2)
    tied.weight_hh_l1 = tied.weight_hh_l0
    assert "one tensor" in reason(tied)


def test_ranks_that_pay_are_those_of_the_formula():
    layers = discover(Net(rnn(nn.LSTM)), X)
    hidden, inner = layers.layer("rnn.weight_hh_l0"), layers.layer("rnn.weight_ih_l0")
    assert break_even(hidden, "svd", "multiplies") == (5,)  # r (4h + h) < 4h h: below 4h/5 = 5.6
    assert break_even(inner, "svd", "multiplies") == (4,)  # r (4h + d) < 4h d: below 140 / 33
    assert useful_rank(hidden, "svd") == (5,)


def test_torch_export_takes_a_compressed_module(tmp_path):
    model = Net(rnn(nn.LSTM, batch_first=True, bidirectional=True))
    profile, factors = opened(model)
    compressed = apply(model, profile, full(profile, share=0.5), factors)
    program = torch.export.export(compressed, (X,))
    torch.export.save(program, tmp_path / "net.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(X), compressed(X))


def test_arguments_that_are_none_are_refused():
    with pytest.raises(ValueError, match="no weight_hh_l7"):
        build_recurrent("LSTM", {"input_size": 3, "hidden_size": 4, "ranks": {"weight_hh_l7": 2}})


MODEL = """
import torch
from torch import nn

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Linear(5, 6)
        self.rnn = nn.LSTM(6, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 4)
    def forward(self, x):
        return self.head(self.rnn(self.table(x).relu())[0][:, -1])

def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reader().eval()
def example_inputs(): return (torch.ones(1, 6, 5),)
def data(seed):
    x = torch.randn(160, 6, 5, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return x, build_model()(x).argmax(1)
def eval_data(): return data(1)
def train_data(): return data(2)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    path = tmp_path / "reader_net.py"
    path.write_text(MODEL)
    return Workspace.open(str(path))


def some(workspace: Workspace) -> RankPlan:
    names = ("table", "rnn.weight_ih_l0", "rnn.weight_hh_l0_reverse", "rnn.weight_ih_l1", "head")
    return RankPlan.of(workspace.profile.fingerprint, {name: Choice("svd", (3,)) for name in names})


@pytest.mark.slow
def test_a_checkpoint_is_the_network_that_was_measured(workspace, tmp_path):
    target = tmp_path / "small.safetensors"
    compressed = workspace.compress(some(workspace), workspace.correction)
    exported = export_checkpoint(workspace, some(workspace), target, correction=workspace.correction)
    assert exported.max_abs_diff == 0  # in a fresh process
    images = workspace.reference.dataset.inputs
    loaded = load_checkpoint(workspace.model, target)
    assert torch.equal(loaded.model(images), compressed(images))
    expected = compressed(torch.ones(1, 6, 5)).detach()
    (alone,) = [s for s in EXPORTS["safetensors"].snippets(workspace.opened.ref, target.name) if s.partial]
    script = "import sys; sys.modules['lowrank_core'] = None\nimport torch; torch.set_num_threads(1)\n"
    script += f"{alone.code}\ntorch.save(model(torch.ones(1, 6, 5)).detach(), 'out.pt')\n"
    (tmp_path / "script.py").write_text(script)
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True)
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), expected)


def test_a_damaged_list_of_layers_is_refused(workspace, tmp_path):
    model, plan = workspace.compress(some(workspace)), some(workspace)
    path = tmp_path / "c"
    write_checkpoint(model, workspace.profile, plan, path, plan_document=plan.to_json(), provenance={})
    with safe_open(path, "pt") as file:
        about = file.metadata()["lowrank"]
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for old, new in (
        ("weight_hh_l0_reverse", "weight_hh_l9"),
        ('"op": "LSTM"', '"op": "LSTX"'),
        ('"op": "LSTM"', '"op": "GRU"'),
        ('"bidirectional": true', '"bidirectional": 1, "more": 2'),
        ('"weight_ih_l1": 3', '"weight_ih_l1": 4'),
    ):
        assert old in about
        save_file(state, path, metadata={"lowrank": about.replace(old, new)})
        with pytest.raises(InvalidFile):
            load_checkpoint(workspace.model, path)
    save_file(state, path, metadata={"lowrank": about})
    load_checkpoint(workspace.model, path)


def test_measuring_goes_on_from_what_is_kept_and_gives_the_same_bits(workspace):
    plans = [some(workspace)]
    plans += [some(workspace).with_choice(n, Choice("svd", (2,))) for n in ("head", "rnn.weight_ih_l1", "table")]
    plans += [some(workspace).with_choice("rnn.weight_ih_l0", None), RankPlan(workspace.profile.fingerprint)]
    for plan in plans:
        model = workspace.compress(plan)
        runner = workspace.prefixes.runner(model, len(workspace.reference))
        for start in range(0, len(workspace.reference), 64):
            part = workspace.reference.dataset.pick(slice(start, start + 64))
            with torch.no_grad():
                assert torch.equal(runner(part, start)["output"], model(part.inputs)), plan
    again = workspace.prefixes.runner(workspace.compress(plans[1].with_choice("head", None)), len(workspace.reference))
    again(workspace.reference.dataset.pick(slice(0, 64)), 0)
    assert again.reused == 1


def test_single_layers_are_measured(workspace):
    asks = [(layer.name, Choice("svd", (2,))) for layer in workspace.profile.layers]
    found = list(measured(workspace, workspace.correction, asks=asks))
    assert [point.layer for point in found] == [layer.name for layer in workspace.profile.layers]
    assert all(point.change > 0 for point in found)
    score = final_score(workspace.measure(workspace.compress(some(workspace), workspace.correction)))
    assert 0.3 < score.value <= 1


@pytest.mark.slow
@pytest.mark.parametrize("from_scratch", [False, True])
def test_factors_are_trained(workspace, from_scratch):
    settings = Settings(epochs=2, from_scratch=from_scratch)
    *_, last = finetune(workspace, workspace.candidate(some(workspace)), settings)
    dense = dict(workspace.model.named_parameters())
    for name, parameter in last.model.named_parameters():
        assert name not in dense or torch.equal(parameter, dense[name])


def test_random_state_is_left_alone():
    model = Net(rnn(nn.LSTM))
    profile, factors = opened(model)
    state = torch.get_rng_state()
    apply(model, profile, full(profile), factors)
    twin(model, profile.layers)
    assert torch.equal(torch.get_rng_state(), state)
