"""Numbers that are none: named where they come in, never right, never taken by a rule, never written as a score."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.commands import cli
from lowrank_core.errors import InvalidData, InvalidPlan, InvalidSearch, TrainingFailed
from lowrank_core.exports import check_answers
from lowrank_core.layers.data import Dataset, samples_named
from lowrank_core.measure.check import check
from lowrank_core.measure.comparison import compare
from lowrank_core.plans.candidate import Candidate
from lowrank_core.predict.prediction import DROWNED
from lowrank_core.predict.sensitivity import PointFile, measured
from lowrank_core.scoring.scores import final_score
from lowrank_core.selection import RULES, make, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.sources._npz_data import read_npz
from lowrank_core.store.lines import append_line
from lowrank_core.training.finetune import finetune
from lowrank_core.training.recipe import Settings
from pages.ui import words
from tests.test_bad_input import GOOD, refused
from tests.test_self_check import LogOfWhatIsLost

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fragile() -> Workspace:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = LogOfWhatIsLost().eval()
        x = rows(120)
        return Workspace.of(model, x[:2], (x, model(x).argmax(1)), rows(60, 2))


def broken(workspace: Workspace) -> RankPlan:
    return RankPlan.of(workspace.profile.fingerprint, {"a": Choice("svd", (4,))})


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_no_rule_takes_a_plan_whose_answers_are_not_finite(fragile: Workspace, rule: str, corrected: bool) -> None:
    """Whatever it can be asked for: its answer is finite, or there is none."""
    wishes = {"budget": {"multiplies": 0.5}, "max_drop": {"max_drop": 0.5}, "nothing": {}}
    answered = 0
    for wish in sorted(RULES[rule].serves):
        problem = problem_of(fragile, corrected=corrected, **wishes[wish])
        try:
            *_, last = search(make(rule, {}), problem)
        except InvalidSearch:
            continue
        answered += 1
        assert last.score is not None
        assert not last.score.not_finite
        assert last.candidate.plan.get("a") is None
    assert answered or rule in ("aimet_greedy", "balf", "evbmf", "lc", "uniform")


def test_a_layer_that_breaks_the_answers_is_predicted_to_lose_everything(fragile: Workspace) -> None:
    points = list(measured(fragile, data=fragile.reference.dataset))
    of_a = [point for point in points if point.layer == "a"]
    assert of_a
    assert all(point.not_finite == 120 and point.loss == DROWNED and point.drop is None for point in of_a)
    assert all(not point.not_finite and point.loss < 1 for point in points if point.layer == "b")


def test_points_that_were_kept_without_a_number_are_measured_again(tmp_path: Path) -> None:
    """An earlier release wrote them."""
    x = rows(40)
    workspace = Workspace.of(nn.Linear(16, 16).eval(), x[:2], x)
    file, (point, *_) = PointFile(tmp_path, workspace, None), measured(workspace)
    for change, drop in ((float("nan"), None), (1.0, float("nan")), (point.change, point.drop)):
        append_line(file.path, type(point)(point.layer, point.method, point.rank, point.error, change, 0.0, drop))
    (kept,) = file.load()
    assert (kept.change, kept.drop) == (point.change, point.drop)


def test_a_plan_that_breaks_the_answers_is_marked_everywhere(fragile: Workspace, tmp_path: Path) -> None:
    candidate = Candidate(broken(fragile))
    score = final_score(fragile.measure(fragile.compress(candidate.plan)))
    says = "answers with NaN or infinity on 64 of 64 samples"
    assert says in words.verdict(fragile, score)
    assert says in words.change(fragile, score, "against dense")
    assert words.score(fragile, score.value) == "not finite"
    compared = compare(fragile, fragile.compress(candidate.plan, candidate.correction))
    assert (compared.score.not_finite, compared.classes, compared.lost) == (64, (), 0)
    with pytest.raises(InvalidPlan, match=r"was not written: .* on 64 of 64 samples"):
        check_answers(score, tmp_path / "out")
    with pytest.raises(TrainingFailed, match="before any training"):
        list(finetune(fragile, candidate, Settings(epochs=1)))


FRAGILE = """
import torch
from torch import nn

class LogOfWhatIsLost(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.a.weight.data = torch.eye(4)
    def forward(self, x):
        return self.a(x) + 0 * torch.log(1e-3 - (self.a(x) - x).abs().amax(1, keepdim=True))

def build_model():
    return LogOfWhatIsLost().eval()

def example_inputs():
    return (torch.eye(4),)

def eval_data():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    return x, x.argmax(1)
"""


def test_commands_say_in_words_why_a_score_is_null(tmp_path: Path) -> None:
    path, plan = tmp_path / "net.py", tmp_path / "plan.json"
    path.write_text(FRAGILE)
    fingerprint = Workspace.open(str(path)).profile.fingerprint
    plan.write_text(RankPlan.of(fingerprint, {"a": Choice("svd", (1,))}).to_json())
    ended = CliRunner().invoke(cli, ["evaluate", str(path), "--plan", str(plan), "--no-cache", "--json"])
    found = json.loads(ended.stdout)
    assert (found["value"], found["drop"], found["not_finite"]) == (None, None, 40)
    assert "NaN or infinity on 40 of 40 samples" in found["note"]
    ended = CliRunner().invoke(cli, ["profile", str(path), "--no-cache", "--json"])
    (layer,) = json.loads(ended.stdout)["layers"]
    assert all(p["not_finite"] and p["drop"] is None and p["loss_increase"] is None for p in layer["points"])
    assert "the network answers with NaN or infinity" in ended.stderr
    assert "was not written" in refused("apply", path, "--plan", plan, "--out", tmp_path / "x", "--no-cache")


METRICS = {
    "NaN": ("def metric(o, t): return float('nan')", "'metric' is not a number"),
    "infinite": ("def metric(o, t): return float('-inf')", "'metric' is infinite"),
    "AUC of one class": (
        "metric = 'auc'\ndef eval_data(): return torch.randn(30, 6), torch.ones(30).long()",
        r"'macro AUC' is not a number .* all alike \(1\)",
    ),
    "targets": (
        "def eval_data():\n    y = torch.randn(30, 3); y[4] = float('nan'); return torch.randn(30, 6), y",
        "'R2' is not a number on 30 samples, of which 1 hold",
    ),
    "own": ("def evaluate(model): return float('inf')", r"evaluate\(model\) of net gave inf"),
}


@pytest.mark.parametrize(("body", "says"), METRICS.values(), ids=METRICS)
def test_a_metric_that_is_no_number_is_an_error_that_names_it(body: str, says: str, tmp_path: Path) -> None:
    path, out = tmp_path / "net.py", tmp_path / "out"
    path.write_text(f"{GOOD}\n{body}\ndef train_data(): return torch.randn(30, 6)\n")
    plan = tmp_path / "plan.json"
    plan.write_text(RankPlan.of(Workspace.open(str(path)).profile.fingerprint, {"0": Choice("svd", (2,))}).to_json())
    lines = [
        ("evaluate", path),
        ("evaluate", path, "--plan", plan),
        ("search", path, "--multiplies", "0.8", "--out", out),
        ("search", path, "--rule", "energy", "--out", out),
        ("finetune", path, "--plan", plan, "--from-scratch", "--epochs", "1", "--out", out),
        ("apply", path, "--plan", plan, "--out", out),
    ]
    if "evaluate" not in body:  # which has no samples, and so no drop of a layer
        lines.append(("profile", path, "--out", out))
    for line in lines:
        said = refused(*line, "--no-cache")
        assert re.search(says, said), said
    assert not out.exists()


def test_samples_that_hold_no_numbers_are_named() -> None:
    x = rows(600)
    x[[3, 17, 40]] = torch.nan
    model = nn.Linear(16, 4).eval()
    workspace = Workspace.of(model, rows(2), (x, torch.zeros(600).long()))
    (notice,) = [text for text in workspace.notices if "NaN" in text]
    assert notice == "eval_data: samples 3, 17 and 40 of 600 hold NaN or infinity; no answer to them counts as right."
    assert any("samples 3, 17 and 40 of 600" in text for text in check(workspace).notices)
    plan = RankPlan.of(workspace.profile.fingerprint, {"Linear": Choice("svd", (2,))})
    trained = Workspace.of(model, rows(2), rows(20), x)
    with pytest.raises(InvalidData, match=r"calibration samples \(samples 3, 17 and 40 of 600 that may be drawn\)"):
        trained.compress(plan, trained.correction_in(trained.correction))
    with pytest.raises(InvalidData, match=r"train_data\(\): samples 3, 17 and 40 of 600 hold NaN"):
        list(finetune(trained, Candidate(plan), Settings(epochs=1)))


def test_samples_are_counted_along_their_axis_and_masks_may_be_infinite() -> None:
    from lowrank_core.layers.data import BatchAxes

    x = torch.zeros(5, 3)
    x[0, 2], x[1, 1] = torch.inf, -torch.inf
    assert Dataset(x, axes=BatchAxes((1,), (0,))).not_finite() == [2]
    assert Dataset(torch.zeros(3, dtype=torch.long)).not_finite() == []
    assert samples_named(list(range(5, 500)), 600) == "samples 5, 6, 7, 8, 9 and 490 more of 600"


@pytest.mark.parametrize("dtype", ["float128", "complex128", "O", "V7", "datetime64[s]", "U3"])
@pytest.mark.parametrize("key", ["inputs", "targets"])
def test_arrays_that_are_no_numbers_of_64_bits_are_refused(dtype: str, key: str, tmp_path: Path) -> None:
    arrays = {"inputs": np.zeros((5, 3), np.float32), "targets": np.zeros(5)}
    np.savez(tmp_path / "d.npz", **{**arrays, key: np.zeros(arrays[key].shape, dtype)})
    with pytest.raises(InvalidData, match=r"d\.npz: .*(64 bits|Python objects)"):
        read_npz(tmp_path / "d.npz")
