"""A network that is opened checks itself: planted faults are found, each with the right words, and sound ones pass."""

import json
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from streamlit.testing.v1 import AppTest
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ZOO, Calls

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.commands import cli
from lowrank_core.compression.self_check import SelfCheck, self_check
from lowrank_core.errors import InvalidData, InvalidModel, InvalidPlan, InvalidSearch
from lowrank_core.exports._reload import _batch
from lowrank_core.graphs.exporting import exported_program
from lowrank_core.layers.computed import copied
from lowrank_core.layers.data import BatchAxes, Dataset, call
from lowrank_core.networks.batch_axes import batch_axes
from lowrank_core.networks.discover import discover
from lowrank_core.networks.wrappers import made_plain
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.scoring.scores import final_score
from lowrank_core.selection import make, search
from lowrank_core.selection._problem import problem_of
from tests.conftest import PATIENCE_SECONDS

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

ROOT = Path(__file__).parents[1]
SOUND = [specimen for specimen in ZOO if specimen.name not in ("lazy", "noisy")]


def rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def mlp() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)))


def checked(model: nn.Module, inputs: Any) -> SelfCheck:
    axes = batch_axes(model, inputs)
    return self_check(model, discover(model, inputs, axes), inputs, axes)


def detail(check: SelfCheck, what: str) -> str:
    return next(one.detail for one in check.checked if one.what == what and not one.ok)


# ---- sound networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("specimen", SOUND, ids=str)
def test_a_sound_network_of_the_zoo_gives_no_finding(specimen: Any) -> None:
    check = checked(specimen.build(), specimen.inputs)
    assert check.ok
    assert not check.refusal
    assert not check.left_alone


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_rounding_is_no_fault_in_any_type(dtype: torch.dtype) -> None:
    """Deep, and with what makes rounding larger on the way: factors of the identity at one end, then the other."""
    parts = [part for _ in range(12) for part in (nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24), nn.LayerNorm(24))]
    deep = seeded(lambda: nn.Sequential(*parts)).to(dtype)
    image = seeded(lambda: nn.Sequential(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.Conv2d(9, 40, 1), nn.Flatten()))
    assert checked(deep, rows(4, 24).to(dtype)).ok
    assert checked(image.to(dtype), rows(2, 3, 7, 7).to(dtype)).ok


def test_shared_random_generators_are_where_they_were() -> None:
    model = Calls(lambda self, x: F.dropout(self.fc(x)) + np.random.rand() + random.random(), fc=nn.Linear(6, 4))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert not checked(model.eval(), rows(3, 6)).ok
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


# ---- faults of one layer --------------------------------------------------------------------------------------------


def with_hook() -> nn.Module:
    model = mlp()
    model[2].register_forward_hook(lambda module, args, output: 3 * output + 1)
    return model


def with_pre_hook() -> nn.Module:
    model = mlp()
    model[2].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return model


def with_replaced_forward() -> nn.Module:
    model = mlp()
    original, beside = model[2].forward, seeded(lambda: nn.Linear(16, 8))
    model[2].forward = lambda x: original(x) + beside(x)
    return model


def with_a_reader() -> nn.Module:
    """The parent takes another way for whatever is no Linear: no hook, and no one reads the weight."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.net[1](self.net[0](x))
        x = self.net[2](x) if type(self.net[2]) is nn.Linear else -self.net[2](x)
        return self.net[4](self.net[3](x))

    return Calls(forward, net=mlp()).eval()


def with_an_attribute() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.net(x) * self.net[2].weight_scale

    net = mlp()
    net[2].weight_scale = 1.5
    return Calls(forward, net=net).eval()


FAULTS = {
    "hook": (with_hook, "2", "a forward hook on it changes its outputs"),
    "pre-hook": (with_pre_hook, "2", "a forward pre-hook on it changes its inputs"),
    "replaced forward": (with_replaced_forward, "2", "its forward was replaced"),
    "another way": (with_a_reader, "net.2", r"changes \d+ % of the largest output"),
    "an attribute": (with_an_attribute, "net.2", "ends with AttributeError: .*weight_scale"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_layer_leaves_that_layer_alone(fault: str) -> None:
    make, name, words = FAULTS[fault]
    model = make()
    workspace = Workspace.of(model, rows(2, 12), rows(60, 12))
    assert len(workspace.factors(name, "svd").spectra) == 1 if name in names(workspace) else True
    check = workspace.self_check
    assert not check.ok
    assert not check.refusal
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(detail(check, "full rank"))
    prefix = name.rpartition("2")[0]
    assert names(workspace) == [f"{prefix}0", f"{prefix}4"]
    assert next(s for s in workspace.profile.skipped if s.name == name).reason in detail(check, "full rank")
    assert plan_cost(workspace.profile).parameters == sum(p.numel() for p in workspace.model.parameters())
    full = {layer.name: Choice("svd", layer.methods[0].max_rank(layer.spec)) for layer in workspace.profile.layers}
    compressed = workspace.compress(RankPlan.of(workspace.profile.fingerprint, full))
    given = rows(5, 12, seed=3)
    with torch.no_grad():
        assert torch.allclose(compressed(given), workspace.model(given), atol=1e-5)
    with pytest.raises(InvalidPlan, match=f"'{name}' cannot be compressed"):
        workspace.compress(RankPlan.of(workspace.profile.fingerprint, {name: Choice("svd", (2,))}))


def names(workspace: Workspace) -> list[str]:
    return [layer.name for layer in workspace.profile.layers]


def test_a_hook_that_only_looks_skips_no_layer() -> None:
    model, seen = mlp(), []
    model[0].register_forward_hook(lambda module, args, output: seen.append(float(output.sum())))
    model[2].register_forward_pre_hook(lambda module, args: seen.append(float(args[0].sum())))
    forward = model[4].forward
    model[4].forward = lambda x: (seen.append(float(x.sum())), forward(x))[1]
    check = checked(model, rows(2, 12))
    assert check.ok
    assert seen
    assert [layer.name for layer in discover(model, rows(2, 12)).layers] == ["0", "2", "4"]


# ---- faults of the whole network ------------------------------------------------------------------------------------


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(12, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x) + self.calls


def random_inside() -> nn.Module:
    return Calls(lambda self, x: self.b(self.drop(self.a(x))), a=nn.Linear(12, 8), b=nn.Linear(8, 4),
                 drop=Calls(lambda self, x: F.dropout(x, 0.5)))  # fmt: skip


WHOLE = {
    "random": (
        lambda: Calls(lambda self, x: F.dropout(self.fc(x), 0.5), fc=nn.Linear(12, 4)),
        "same answer twice",
        "this network is random in eval mode: two calls with the same inputs differ by",
    ),
    "a random layer": (random_inside, "same answer twice", r"random in eval mode \(first in Calls 'drop'\)"),
    "a memory": (Counts, "same answer twice", "remembers earlier calls"),
    "NaN": (
        lambda: Calls(lambda self, x: self.fc(x) * torch.nan, fc=nn.Linear(12, 4)),
        "finite",
        r"not finite \(NaN or Inf\): 8 of the 8 numbers of output",
    ),
    "one number": (
        lambda: Calls(lambda self, x: self.fc(x).mean(), fc=nn.Linear(12, 4)),
        "batch axis",
        "no output of this network has a batch axis",
    ),
}


@pytest.mark.parametrize("fault", WHOLE)
def test_a_fault_of_the_whole_network_refuses_figures_and_search_alone(fault: str) -> None:
    make, what, words = WHOLE[fault]
    workspace = Workspace.of(seeded(make), rows(2, 12), rows(60, 12), name="net")
    assert len(workspace.profile.layers) >= 1
    assert plan_cost(workspace.profile).parameters > 0
    first = workspace.profile.layers[0].name
    assert len(workspace.factors(first, "svd").spectra[0]) > 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(detail(workspace.self_check, what))
    for asked in (lambda: workspace.reference, lambda: problem_of(workspace, multiplies=0.5)):
        with pytest.raises(InvalidModel, match=f"^net: .*{words}.* no figures and no search") as caught:
            asked()
        assert "\n" not in str(caught.value)


def test_a_network_that_is_scored_by_its_own_function_needs_no_batch_axis() -> None:
    model = seeded(lambda: Calls(lambda self, x: self.fc(x).mean(), fc=nn.Linear(12, 4)))
    workspace = Workspace.of(model, rows(2, 12), rows(9, 12), evaluate=lambda network: float(network(rows(3, 12))))
    assert not next(one for one in workspace.self_check.checked if one.what == "batch axis").ok
    full = RankPlan.of(workspace.profile.fingerprint, {"fc": Choice("svd", (4,))})
    assert final_score(workspace.measure(workspace.compress(full))).drop == pytest.approx(0, abs=1e-6)


def test_it_is_made_once_also_by_many_threads() -> None:
    model, calls = mlp(), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    workspace = Workspace.of(model, rows(2, 12), rows(60, 12))
    calls.clear()
    found: list[SelfCheck] = []
    threads = [threading.Thread(target=lambda: found.append(workspace.self_check)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert len(calls) == 2  # the dense network twice; a chain has no hook


def test_layers_in_a_plain_list_are_said() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.many, self.head = [nn.Linear(12, 12), nn.Linear(12, 8)], nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.many:
                x = layer(x).relu()
            return self.head(x)

    model = seeded(Hidden)
    check = checked(model, rows(2, 12))
    assert "'many[0]', 'many[1]' run but are found in no module list" in detail(check, "owned")
    assert not check.refusal
    skipped = {s.name: s.reason for s in discover(model, rows(2, 12)).skipped}
    assert skipped.keys() == {"many[0]", "many[1]"}
    assert "nn.ModuleList" in skipped["many[0]"]


# ---- the batch ------------------------------------------------------------------------------------------------------


def recurrent(batch_first: bool) -> nn.Module:
    """(N, T, 5) or (T, N, 5) -> an answer for each step."""
    forward = lambda self, x: self.head(self.rnn(x)[0])  # noqa: E731 - a forward of a network
    return seeded(lambda: Calls(forward, rnn=nn.GRU(5, 6, batch_first=batch_first), head=nn.Linear(6, 3)))


AXES = {
    "batch first": (recurrent(True), rows(3, 7, 5), (0,), (0,)),
    "time first": (recurrent(False), rows(7, 3, 5), (1,), (1,)),
    "time first, one sample": (recurrent(False), rows(7, 1, 5), (1,), (1,)),
    "as many steps as samples": (recurrent(False), rows(4, 4, 5), (1,), (1,)),
    "time first in the outputs": (
        Calls(lambda self, x: self.net(x).transpose(0, 1), net=recurrent(True)), rows(3, 7, 5), (0,), (1,),
    ),
    "with a mask": (
        Calls(lambda self, x, mask: self.att(x, x, x, attn_mask=mask), att=nn.MultiheadAttention(8, 2)).eval(),
        (rows(5, 3, 8), torch.zeros(5, 5)), (1, None), (1, 0),
    ),
    "one without": (
        Calls(lambda self, x: (self.fc(x), self.fc.weight.sum(0)), fc=nn.Linear(5, 4)), rows(3, 5), (0,), (0, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", AXES)
def test_the_batch_axis_is_found(case: str) -> None:
    model, inputs, given, answered = AXES[case]
    axes = batch_axes(model, inputs)
    assert axes is not None
    assert axes.proved
    assert (axes.inputs, axes.outputs) == (given, answered)
    if None in answered:
        assert "1 has none and is not judged" in str(checked(model, inputs).checked)


def test_a_network_with_time_first_is_measured_as_the_same_one_with_samples_first() -> None:
    data, labels = rows(40, 7, 5), torch.arange(280).reshape(40, 7) % 3
    seen: list[tuple[int, ...]] = []

    def accuracy(outputs: Tensor, targets: Tensor) -> float:
        seen.append((*outputs.shape, *targets.shape))
        return float((outputs.argmax(-1) == targets).double().mean())

    first = Workspace.of(recurrent(True), data[:2], (data, labels), metric=accuracy)
    turned = data.transpose(0, 1).contiguous()
    second = Workspace.of(recurrent(False), turned[:, :2], (turned, labels.T.contiguous()), metric=accuracy)
    assert plan_cost(first.profile) == plan_cost(second.profile)
    scores = []
    for workspace in (first, second):
        plan = uniform_plan(workspace.profile, 0.6)
        assert plan.choices
        scores.append(final_score(workspace.measure(workspace.compress(plan, workspace.correction))))
        assert (scores[-1].samples, len(workspace.calibration)) == (40, 40)
    assert scores[0].value == pytest.approx(scores[1].value, abs=1 / 40)
    assert scores[0].dense == pytest.approx(scores[1].dense, abs=1e-9)
    assert {shape[0] for shape in seen if len(shape) == 5} == {7, 40, 39}  # as the person has it
    picked = Dataset(turned, axes=BatchAxes((1,), (1,))).pick(torch.tensor([4, 2]))
    assert torch.equal(picked.inputs, turned[:, [4, 2]])
    assert len(picked) == 2


def test_samples_put_together_one_by_one_get_their_place() -> None:
    class Samples(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, number: int) -> tuple[Tensor, int]:
            return torch.full((7, 5), float(number)), number % 3

    workspace = Workspace.of(recurrent(False), rows(7, 2, 5), Samples(), metric=lambda outputs, targets: 0.0)
    assert len(workspace.reference) == 6
    assert workspace.reference.dataset.inputs.shape == (7, 6, 5)


# ---- answers that are not finite ------------------------------------------------------------------------------------


class LogOfWhatIsLost(nn.Module):
    """Right with its dense weight, the identity; log of a negative number once anything of it is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16, bias=False), nn.Linear(16, 4)
        with torch.no_grad():
            self.a.weight.copy_(torch.eye(16))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x)
        return self.b(hidden) + 0 * torch.log(1e-3 - (hidden - x).abs().amax(1, keepdim=True))


@pytest.fixture(scope="module")
def fragile() -> Workspace:
    model, inputs = seeded(LogOfWhatIsLost), rows(200, 16)
    with torch.no_grad():
        return Workspace.of(model, inputs[:2], (inputs, model(inputs).argmax(1)), rows(100, 16, seed=2))


def test_a_score_says_that_answers_are_not_finite(fragile: Workspace) -> None:
    assert fragile.self_check.ok
    plan = RankPlan.of(fragile.profile.fingerprint, {"a": Choice("svd", (4,))})
    score = final_score(fragile.measure(fragile.compress(plan), tolerance=0.9))
    assert (score.not_finite, score.samples, score.within) == (64, 64, False)
    assert score.drop == torch.inf
    assert score.value != score.value
    assert score.dense == 1.0


@pytest.mark.parametrize("rule", ["budget", "bisection", "naive_sensitivity", "aimet_greedy", "uniform"])
def test_no_rule_accepts_answers_that_are_not_finite(fragile: Workspace, rule: str) -> None:
    wish = {"multiplies": 0.6} if rule in ("aimet_greedy", "uniform") else {"max_drop": 0.9}
    problem = problem_of(fragile, corrected=False, **wish)
    if rule in ("aimet_greedy", "uniform"):
        with pytest.raises(InvalidSearch, match="NaN or infinity"):
            list(search(make(rule, {}), problem))
        return
    *_, answer = search(make(rule, {}), problem)
    assert answer.score is not None
    assert not answer.score.not_finite
    assert answer.candidate.plan.get("a") is None


def test_a_layer_that_cannot_be_corrected_is_named_with_the_samples() -> None:
    inputs = rows(50, 12)
    inputs[[3, 8]] = torch.nan
    workspace = Workspace.of(mlp(), rows(2, 12), inputs)
    plan = RankPlan.of(workspace.profile.fingerprint, {"2": Choice("svd", (3,))})
    with pytest.raises(InvalidData, match=r"layer '2' cannot be corrected: .* on 2 of 50 calibration samples"):
        workspace.compress(plan, workspace.correction)
    with pytest.raises(InvalidData, match=r"layer '\d': .* on 2 of 50 calibration samples"):
        _ = workspace.factors("2", "svd_aware").spectra
    score = final_score(workspace.measure(workspace.compress(plan)))
    assert score.samples == 50
    assert not score.not_finite


# ---- what is around a network, and in its tensors -------------------------------------------------------------------


def test_what_compiles_a_network_is_taken_away_also_inside() -> None:
    inside = mlp()
    for model in (torch.compile(mlp()), nn.Sequential(torch.compile(inside)), nn.DataParallel(mlp())):
        plain = made_plain(model)
        assert not any("OptimizedModule" in type(module).__name__ for module in plain.modules())
        assert not any("_orig_mod" in name for name in plain.state_dict())
    in_place = mlp()
    in_place.compile()
    assert made_plain(in_place)._compiled_call_impl is None


def test_a_network_of_inference_mode_gets_ordinary_tensors_once_for_each_weight() -> None:
    with torch.inference_mode():
        model = seeded(lambda: nn.Sequential(nn.Embedding(11, 6), nn.LSTM(6, 6), nn.BatchNorm1d(6)))
        model.append(nn.Linear(6, 11, bias=False))
        model[3].weight = model[0].weight
        expected = model[1](torch.ones(2, 6))[0]
    model = made_plain(model)
    assert not any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
    assert model[3].weight is model[0].weight
    with torch.no_grad():
        assert torch.equal(model[1](torch.ones(2, 6))[0], expected)


def in_itself() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6)))
    model[1].add_module("loop", model)
    return model


def sparse() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6))
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse_csr(), requires_grad=False)
    return model


@pytest.mark.parametrize(("make", "words"), [
    (in_itself, "the module at '1.loop' is one of those that hold it"),
    (sparse, "the weight 'weight' of a Linear is stored as sparse_csr"),
])  # fmt: skip
def test_what_no_copy_could_be_made_of_is_refused_in_one_line(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(InvalidModel, match=words) as caught:
        made_plain(make())
    assert "\n" not in str(caught.value)


def test_what_cannot_be_copied_is_shared_by_the_copy_and_the_modules_are_not() -> None:
    model = mlp()
    model.lock = threading.Lock()
    copy = copied(model)
    assert copy.lock is model.lock
    assert copy[0] is not model[0]
    assert copy[0].weight is not model[0].weight
    model.unknown = [model[0], threading.Lock()]  # its module would be that of the network itself
    with pytest.raises(TypeError, match="lock"):
        copied(model)
    workspace = Workspace(replace(Workspace.of(mlp(), rows(2, 12), rows(9, 12)).opened, model=model))
    assert "cannot be copied" in workspace.self_check.refusal


# ---- commands and pages ---------------------------------------------------------------------------------------------

RANDOM = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc2(F.dropout(self.fc1(x)))

def build_model():
    torch.manual_seed(0)
    return Net().eval()

def example_inputs():
    return (torch.ones(2, 6),)

def eval_data():
    return torch.ones(30, 6), torch.arange(30) % 3

def train_data():
    return torch.ones(30, 6).double()
"""


@pytest.fixture
def random_network(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(RANDOM)
    return path


def test_commands_that_give_figures_refuse_a_random_network_and_the_others_go_on(random_network: Path) -> None:
    for command in ("layers", "spectra"):
        result = CliRunner().invoke(cli, [command, str(random_network), "--json"])
        assert len(json.loads(result.stdout)["layers"]) == 2
    for command in (["evaluate"], ["search", "--multiplies", "0.5", "--out", "p.json"], ["profile"]):
        result = CliRunner().invoke(cli, [command[0], str(random_network), *command[1:]])
        assert result.exit_code == 1
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert "net: this network is random in eval mode" in line


def test_check_lists_what_the_network_tells(random_network: Path) -> None:
    result = CliRunner().invoke(cli, ["check", str(random_network), "--json"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    listed = {one["what"]: one["ok"] for one in document["self_check"]}
    assert listed == {"same answer twice": False, "batch axis": True, "finite": True, "full rank": False, "owned": True}
    trained = next(one for one in document["functions"] if one["function"] == "train_data")
    assert trained["state"] == "refused"
    assert "train_data() must give inputs of the same form" in trained["detail"]
    text = CliRunner().invoke(cli, ["check", "builtin:iris-mlp"]).stdout
    assert "2 layers at full rank answer as the dense network" in text


def test_the_model_page_lists_it_and_pages_with_figures_refuse(
    random_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", str(random_network)])
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
    model = app.switch_page("pages/1_Model.py").run()
    assert not model.exception
    assert "this network is random in eval mode" in model.error[0].value
    assert any("**same answer twice**" in text.value for text in model.markdown)
    assert {header.value for header in model.header} >= {"Checked on opening", "Layers that can be compressed"}
    ranks = app.switch_page("pages/3_Ranks.py").run()
    assert "this network is random in eval mode" in ranks.error[0].value


def test_an_exported_graph_has_its_free_axis_where_the_batch_is() -> None:
    model = seeded(lambda: Calls(lambda self, x: self.fc(x).cumsum(0), fc=nn.Linear(5, 4)))
    axes = batch_axes(model, rows(7, 1, 5))
    program = exported_program(model, rows(7, 1, 5), axes)
    with torch.no_grad():
        assert program.module()(rows(7, 3, 5)).shape == (7, 3, 4)
    assert _batch(rows(7, 2, 5), 5, axes).shape == (7, 5, 5)


# ---- time comes first -----------------------------------------------------------------------------------------------


class WordModel(nn.Module):
    """As in PyTorch's examples: tokens (time, batch), and answers with time and batch in one axis, time first."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat, self.table, self.rnn, self.head = flat, nn.Embedding(11, 6), nn.LSTM(6, 8), nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Any]:
        y, state = self.rnn(self.table(tokens))
        return torch.log_softmax(self.head(y.flatten(0, 1) if self.flat else y), -1), state


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("samples", [1, 4])
def test_multiplies_are_of_one_sample_where_time_comes_first(flat: bool, samples: int) -> None:
    steps = 9
    tokens = torch.arange(steps * samples).reshape(steps, samples) * 7 % 11
    workspace = Workspace.of(seeded(lambda: WordModel(flat)), tokens)
    assert batch_axes(workspace.model, tokens).inputs == (1,)
    assert plan_cost(workspace.profile).multiplies == steps * (4 * 8 * (6 + 8) + 8 * 11)
    assert workspace.self_check.ok


def test_answers_with_time_and_batch_in_one_axis_are_given_by_sample() -> None:
    model = seeded(lambda: WordModel(True))
    tokens = torch.arange(9 * 4).reshape(9, 4) * 7 % 11
    axes = batch_axes(model, tokens)
    by_sample = call(model, tokens, axes)["0"].reshape(4, 9, 11)
    for number in range(4):
        assert torch.allclose(by_sample[number], model(tokens[:, number : number + 1])[0], atol=1e-6)
