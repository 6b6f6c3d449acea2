"""Whether a file that answers a little otherwise only rounds otherwise: noise is allowed for, other weights are not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch import Tensor, nn

from lowrank_core import Workspace
from lowrank_core.commands import _opening, cli
from lowrank_core.errors import OtherAnswers
from lowrank_core.exports import EXPORTS, Compressed, Exported, _reload
from lowrank_core.exports._rounding import apart, difference_of, own_rounding
from lowrank_core.layers.data import Dataset, Inputs, Outputs, run
from lowrank_core.plans.plan import RankPlan
from lowrank_core.store.cache import Cache

pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    """Loses `size` to rounding: what it answers is the small difference of two large sums."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.fc, self.size = nn.Linear(12, 6), size

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return (y + self.size) - self.size


def workspace(size: float, cache: Cache | None = None) -> Workspace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Workspace.of(Network(size).eval(), torch.randn(1, 12), torch.randn(80, 12), cache=cache)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A fresh process whose answers are apart from those here: of the file, and of the dense network."""

    def set_up(given: Workspace, network: nn.Module, apart: float, dense_apart: float = 0.0) -> list[str]:
        asked: list[str] = []

        def outputs(kind: str, ref: object, written: Path, batches: list[Inputs], own_seconds: float) -> list[Outputs]:
            dense = kind == "dense" or written.name == "dense"
            asked.append("dense" if dense else "file")
            found = [run(given.model if dense else network, Dataset(inputs)) for inputs in batches]
            share = dense_apart if dense else apart
            return [{name: y + share * y.abs().max() for name, y in each.items()} for each in found]

        monkeypatch.setattr(_reload, "outputs_in_fresh_process", outputs)
        return asked

    return set_up


def write(kind: str, given: Workspace, path: Path, *, accept: bool = False) -> Exported:
    plan = RankPlan(given.profile.fingerprint)
    return EXPORTS[kind].write(given, Compressed(given.model, plan, accept_difference=accept), path)


def test_a_networks_own_rounding_is_that_against_float64() -> None:
    plain, lossy = workspace(0.0), workspace(1e4)
    inputs = plain.reference.dataset.inputs
    assert own_rounding(plain.model, inputs) < 1e-6
    assert 1e-4 < own_rounding(lossy.model, inputs) < 2e-3


def test_a_batch_of_small_answers_is_one_among_the_others() -> None:
    """A first sample that answers 1e-4 where others answer 1: a millionth of a millionth is no other network."""
    small, large, nan = torch.tensor([[1e-4]]), torch.tensor([[1.0], [-2.0]]), torch.tensor([[torch.nan]])
    ours, theirs = [{"p": small}, {"p": large}], [{"p": small + 1e-6}, {"p": large}]
    difference = difference_of(ours, theirs)
    assert (difference.batch, difference.output) == (0, "p")
    assert difference.share == pytest.approx(5e-7, rel=1e-2)
    assert apart(ours[0], theirs[0])[1] == pytest.approx(1e-2, rel=1e-2)
    assert difference_of([{"p": large}, {"p": nan}], [{"p": large}, {"p": nan}]).share == 0
    assert difference_of([{"p": large}, {"p": nan}], [{"p": large}, {"p": small}]).share == torch.inf
    assert difference_of(ours, [{"p": small}, {}]).distance == torch.inf


@pytest.mark.parametrize("kind", ["safetensors", "pt2"])
def test_rounding_is_told_from_other_weights(kind: str, elsewhere: Callable[..., list[str]], tmp_path: Path) -> None:
    plain, lossy = workspace(0.0), workspace(1e4)
    elsewhere(lossy, lossy.model, 6e-4)
    assert write(kind, lossy, tmp_path / "a").verdict == "rounding"
    elsewhere(plain, plain.model, 1e-6)
    assert write(kind, plain, tmp_path / "b").verdict == "same"
    elsewhere(plain, plain.model, 1e-3)
    with pytest.raises(OtherAnswers, match=r"0\.001 of the largest output, and rounding explains 1e-05") as refused:
        write(kind, plain, tmp_path / "c")
    assert "random" not in str(refused.value)
    elsewhere(lossy, lossy.model, 0.05)
    with pytest.raises(OtherAnswers):
        write(kind, lossy, tmp_path / "c")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_what_the_dense_network_differs_by_is_allowed_for_up_to_a_limit_and_kept(
    elsewhere: Callable[..., list[str]], tmp_path: Path
) -> None:
    given = workspace(0.0, Cache(tmp_path / "cache"))
    asked = elsewhere(given, given.model, 8e-4, dense_apart=5e-4)
    assert write("pt2", given, tmp_path / "a").verdict == "rounding"
    assert "dense" in asked
    asked.clear()
    assert write("pt2", given, tmp_path / "a").verdict == "rounding"
    assert "dense" not in asked
    fresh = workspace(0.0)
    elsewhere(fresh, fresh.model, 0.1, dense_apart=0.1)
    with pytest.raises(OtherAnswers, match=r"rounding explains 0\.01"):
        write("pt2", fresh, tmp_path / "b")


def test_a_difference_may_be_accepted_and_the_file_says_so(elsewhere: Callable[..., list[str]], tmp_path: Path) -> None:
    given, path = workspace(0.0), tmp_path / "a"
    elsewhere(given, given.model, 0.05)
    found = write("safetensors", given, path, accept=True)
    assert found.verdict == "accepted"
    with safe_open(path, "pt") as file:
        assert f'"accepted_difference":{found.max_abs_diff}' in str(file.metadata()).replace(" ", "").replace("\\", "")
    elsewhere(given, given.model, float("nan"))
    with pytest.raises(OtherAnswers):
        write("safetensors", given, tmp_path / "b", accept=True)


MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.shift = nn.Linear(12, 6), SHIFT

    def forward(self, x):
        return self.fc(x) + self.shift

def build_model():
    torch.manual_seed(0)
    return Net().eval()

def example_inputs():
    return (torch.zeros(1, 12),)

def eval_data():
    return torch.randn(80, 12, generator=torch.Generator().manual_seed(0))
"""


def here(kind: str, dense: str, file: Path, batches: list[Inputs], own_seconds: float) -> list[Outputs]:
    answers = _reload.READERS[kind](dense, str(file))
    return [answers(inputs) for inputs in batches]


@pytest.mark.parametrize("shift", ["0.0", "float(torch.seed() % 1000)"], ids=["a weight changed", "random"])
def test_the_command_refuses_another_network_and_says_what_is_wrong(
    shift: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_opening, "CACHE", tmp_path / "cache")
    model, out = tmp_path / "net.py", tmp_path / "out"
    model.write_text(MODEL.replace("SHIFT", shift))
    arguments = ["export", str(model), "--format", "safetensors", "--dense", "--out", str(out), "--json"]
    if shift == "0.0":
        changed = "lowrank_core.exports.safetensors.write_checkpoint"
        write_checkpoint = EXPORTS["safetensors"].write.__globals__["write_checkpoint"]

        def with_a_weight_changed(network: nn.Module, *rest: object, **more: object) -> None:
            other = Network(0.0)
            other.load_state_dict(network.state_dict())
            with torch.no_grad():
                other.fc.weight[0, 0] += 0.05
            write_checkpoint(other, *rest, **more)

        monkeypatch.setattr(changed, with_a_weight_changed)
        monkeypatch.setattr(_reload, "outputs_in_fresh_process", here)
    refused = CliRunner().invoke(cli, arguments)
    assert refused.exit_code == 1
    assert "was not saved" in refused.stderr
    assert "--accept-difference saves it all the same" in refused.stderr
    assert ("is random" in refused.stderr) == (shift != "0.0")
    assert not out.exists()
    if shift == "0.0":
        accepted = json.loads(CliRunner().invoke(cli, [*arguments, "--accept-difference"]).stdout)
        assert (accepted["verdict"], out.exists()) == ("accepted", True)
