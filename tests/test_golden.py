"""What earlier versions wrote: `golden/VERSION` holds a history, questions, a cache, a plan and a tuned checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from lowrank_core import Choice, RankPlan, read_plan
from lowrank_core.commands import _opening, cli
from lowrank_core.workspace import Workspace
from pages.ui.asked import from_json
from pages.ui.history import History, PlanSnapshot
from pages.ui.question import Question
from pages.ui.tuning import Sweep, Training

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ("unversioned",)  # before the product had a number
DIGITS = "sha256:0c2dedb43b14eee82f3a1ca1ed2f92e3770b5c8ab1302aacfbb884da61b096d5"

every_version = pytest.mark.parametrize("version", VERSIONS)


def test_every_version_that_wrote_such_files_is_tested():
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} == set(VERSIONS)


@every_version
def test_a_history_opens_as_it_was_left(version):
    history = History.from_json((GOLDEN / version / "history.json").read_text())
    first, second = Choice("svd", (40,)), Choice("tucker2", (8, 9))
    plan = RankPlan.of(DIGITS, {"fc1": first})
    assert history.plan == plan
    assert history.past == (RankPlan(DIGITS),)
    assert history.future == (RankPlan.of(DIGITS, {"conv2": second}),)
    assert history.snapshots[0] == PlanSnapshot("first", plan)
    assert [snapshot.name for snapshot in history.snapshots] == ["first", "second"]
    assert (history.locked, history.corrected, history.tolerance, history.rev) == (("conv1",), True, 0.01, 4)


@every_version
def test_what_was_asked_is_asked_again(version):
    budget, energy, training, sweep = from_json((GOLDEN / version / "asked.json").read_bytes())
    assert isinstance(budget, Question)
    assert (budget.rule.name, budget.budgets, budget.locked) == ("budget", (("multiplies", 0.5),), ("conv1",))
    assert isinstance(energy, Question)
    assert (energy.rule.name, energy.rule.keep) == ("energy", 0.8)
    assert isinstance(training, Training)
    assert training.candidate.plan == RankPlan.of(DIGITS, {"fc1": Choice("svd", (40,))})
    assert training.settings.epochs == 2
    assert isinstance(sweep, Sweep)
    assert (sweep.shares, sweep.quantity, sweep.rule.name) == ((0.3, 0.6), "multiplies", "budget")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setattr(_opening, "CACHE", tmp_path / "cache")

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@every_version
def test_figures_under_the_names_of_before_are_left_alone_and_those_of_now_are_used(version, tmp_path, run):
    """Names did not say what the network answers and how it is judged: their figures may be another one's."""
    shutil.copytree(GOLDEN / version / "cache", tmp_path / "cache")
    points = tmp_path / "cache" / "points"
    kept = contents(points)
    plans = []
    for _ in range(2):
        before = contents(points)
        run("search", "builtin:iris-mlp", "--multiplies", 0.8, "--out", tmp_path / "plan.json")
        after = contents(points)
        assert after.items() > kept.items()
        plans.append(read_plan((tmp_path / "plan.json").read_text()).plan)
    assert after == before, "measured again"
    assert plans[0] == plans[1]
    assert plans[0].fingerprint == read_plan((GOLDEN / version / "plan.json").read_text()).plan.fingerprint


@every_version
def test_a_plan_and_a_tuned_checkpoint_are_evaluated(version, run):
    plan, checkpoint = GOLDEN / version / "plan.json", GOLDEN / version / "tuned.safetensors"
    assert "97.30 %" in run("evaluate", "builtin:iris-mlp", "--plan", plan, "--no-cache")
    assert "97.30 %" in run("evaluate", "builtin:iris-mlp", "--checkpoint", checkpoint)


@every_version
def test_a_training_under_the_name_of_before_is_left_alone_and_that_of_now_is_used(version, tmp_path, run):
    shutil.copytree(GOLDEN / version / "cache", tmp_path / "cache")
    tuning, plan = tmp_path / "cache" / "tuning", GOLDEN / version / "plan.json"
    kept = contents(tuning)
    for _ in range(2):
        before = contents(tuning)
        run("finetune", "builtin:iris-mlp", "--plan", plan, "--epochs", 2, "--out", tmp_path / "tuned.safetensors")
        after = contents(tuning)
        assert after.items() > kept.items()
    assert after == before, "trained again"
    assert Workspace.open("builtin:iris-mlp").profile.fingerprint == read_plan(plan.read_text()).plan.fingerprint
