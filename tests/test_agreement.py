"""One figure for one plan on the same samples, whoever measures it: every command, and the path of the pages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from lowrank_core.commands import _opening, cli
from lowrank_core.compression import calibration
from lowrank_core.compression.calibration import MomentStore
from lowrank_core.measure.measurement import is_final, measurement
from lowrank_core.plans.plan import read_plan
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(12, 16, batch_first=True)
        self.wide, self.narrow, self.out = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x):
        x, _ = self.rnn(x)
        return self.out(self.narrow(torch.relu(self.wide(x)))).mean(1)

def build_model():
    torch.manual_seed(0)
    return Net().eval()

def example_inputs():
    return (torch.zeros(1, 20, 12),)

def samples(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(96, 20, 12, generator=generator), torch.randn(96, 5, generator=generator)

def eval_data():
    return samples(1)

def train_data():
    return samples(2)

def metric(outputs, targets):
    return float((outputs - targets).square().mean())

higher_is_better = False
"""

FEW_BYTES = 6000
"""So little that the moments of two layers do not fit at once."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_opening, "CACHE", tmp_path / "cache")


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that is to its computer what a large one is: rows are drawn, and a pass learns some layers' moments."""
    monkeypatch.setattr(calibration, "POSITIONS", 300)
    monkeypatch.setitem(MomentStore.__init__.__kwdefaults__, "limit_bytes", FEW_BYTES)
    path = tmp_path / "tokens.py"
    path.write_text(TOKENS)
    return path


def answered(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def searched(model: object, rule: str, plan: Path, *wishes: object) -> tuple[float, set[str]]:
    """What `search` says of the plan it writes, and the methods in it."""
    found = answered("search", model, "--rule", rule, "--out", plan, *wishes)
    return found["score"]["value"], {choice["method"] for choice in found["plan"]["layers"].values()}


def on_a_page(model: object, plan: Path) -> float:
    workspace = Workspace.open(str(model))
    job = measurement(workspace, workspace.candidate_in(read_plan(plan.read_bytes())))
    return job.wait(until=is_final).found[-1].score.value


def test_every_command_gives_the_figure_that_search_has_written(tokens: Path, tmp_path: Path) -> None:
    plan, file = tmp_path / "plan.json", tmp_path / "file"
    figure, methods = searched(tokens, "budget", plan, "--multiplies", 0.5, "--method", "svd_aware")
    assert methods == {"svd_aware"}
    assert json.loads(plan.read_text())["provenance"]["score"]["value"] == figure
    assert answered("evaluate", tokens, "--plan", plan)["value"] == figure
    assert answered("evaluate", tokens, "--plan", plan, "--no-cache")["value"] == figure
    assert on_a_page(tokens, plan) == figure
    assert answered("apply", tokens, "--plan", plan, "--out", file)["score"]["value"] == figure
    assert answered("evaluate", tokens, "--checkpoint", file)["value"] == figure
    exported = answered("export", tokens, "--plan", plan, "--format", "safetensors", "--out", file)
    assert exported["score"]["value"] == figure


@pytest.mark.parametrize(
    ("model", "rule", "wishes"),
    [
        ("digits-cnn", "lc", ("--method", "tucker2", "--method", "svd_aware")),
        ("digits-lstm", "uniform", ("--method", "svd_aware")),
        ("digits-attention", "uniform", ("--method", "svd_aware", "--lock", "*in_proj*")),
        ("iris-mlp", "energy", ("--method", "svd_aware")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rules_and_built_in_networks_agree(model: str, rule: str, wishes: tuple[str, ...], tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    budget = () if rule == "energy" else ("--multiplies", 0.5)
    figure, methods = searched(f"builtin:{model}", rule, plan, *budget, *wishes)
    assert "svd_aware" in methods
    assert answered("evaluate", f"builtin:{model}", "--plan", plan, "--no-cache")["value"] == figure
    assert on_a_page(f"builtin:{model}", plan) == figure


def test_a_moment_is_the_same_whichever_layers_share_its_pass(tokens: Path) -> None:
    workspace = Workspace.open(str(tokens))
    together = MomentStore(workspace.model, workspace.profile, lambda: workspace.calibration, limit_bytes=2**20)
    names = [layer.name for layer in workspace.profile.layers]
    for name in (*names[::-1], *names):
        alone, shared = workspace.moments(name), together(name)
        assert torch.equal(alone.second, shared.second)
        assert torch.equal(alone.mean, shared.mean)
        assert workspace.moments.bytes < together.bytes
