"""The page Fine-tune without a browser: what is asked, curves and figures, weights kept and sent to Export."""

import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest

from lowrank_core.compression.checkpoint import load_checkpoint
from lowrank_core.compression.precision import Storage
from lowrank_core.exports import EXPORTS
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.jobs import PATIENCE_SECONDS as JOB_PATIENCE_SECONDS
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import scope, somebody_waits
from lowrank_core.scoring.scores import final_score
from lowrank_core.selection import make
from lowrank_core.store.cache import Cache
from lowrank_core.store.files import scratch
from lowrank_core.training import sweep
from lowrank_core.training.finetune import Epoch, training_data
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace
from pages.ui import compare, tuning, words
from pages.ui.compare import Column, Scores
from pages.ui.state import jobs, models, trainings
from pages.ui.tuning import RunEpoch, Sweep, Trained, Training, Tuned
from tests.conftest import PATIENCE_SECONDS
from tests.test_compare_page import table

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
import torch
from torch import nn

def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).eval()
        with torch.no_grad():
            model[2].weight.mul_(3)
    return model

def example_inputs():
    return (torch.ones(1, 12),)

def data(samples, seed):
    inputs = torch.randn(samples, 12, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return inputs, build_model()(inputs).argmax(1)

def train_data():
    return data(300, 1)

def eval_data():
    return data(400, 2)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small_net.py"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def workspace(model: Path) -> Workspace:
    return Workspace.open(str(model))


@pytest.fixture(autouse=True)
def nothing_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sessions share trainings for as long as the process lives, and states for as long as the disk does."""
    restart()
    monkeypatch.setattr(models, "cache", lambda: Cache(tmp_path))


def restart() -> None:
    """What a server that was killed has forgotten."""
    for forgotten in (jobs.trainings, trainings._tuned_networks):
        forgotten.clear()


Open = Callable[..., AppTest]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, model: Path) -> Open:
    """`opened()`: the page in a fresh session; `opened(w=...)` in one that has been."""

    def opener(path: Path = model, page: str = "5_Fine_tune", **address: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["app.py", str(path)])
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS).switch_page(f"pages/{page}.py")
        for name, value in address.items():
            app.query_params[name] = value
        return app.run()

    return opener


def labelled(page: AppTest, kind: str, label: str):
    return next(element for element in page.get(kind) if element.label == label)


def press(page: AppTest, label: str) -> AppTest:
    return labelled(page, "button", label).click().run()


def goal(page: AppTest, wish: str) -> AppTest:
    return labelled(page, "button_group", "What to train").set_value(wish).run()


def start_from(page: AppTest, wish: str) -> None:
    labelled(page, "button_group", "Start from").set_value(wish)


def number(page: AppTest, label: str, value: float) -> None:
    labelled(page, "number_input", label).set_value(value)


def text(page: AppTest) -> str:
    """What the page says beside the side bar, which knows of the plan what was measured meanwhile."""
    return "\n".join(str(element.value) for kind in ("markdown", "caption") for element in page.main.get(kind))


def traces(page: AppTest) -> list[dict]:
    return json.loads(page.get("plotly_chart")[0].proto.spec)["data"]


def trained() -> tuple[Training | Sweep, Snapshot]:
    """The latest training of all sessions."""
    (_, asked), job = list(jobs.trainings()._jobs.items())[-1]
    return asked, job.snapshot


def plan_of(workspace: Workspace, rank: int = 2) -> RankPlan:
    return RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (rank,))})


def asked_for(workspace: Workspace, **changes) -> Training:
    settings = Settings(**{"epochs": 6, "learning_rate": 0.05, "patience": 6} | changes)
    return Training(workspace.candidate(plan_of(workspace)), settings)


def session(page: AppTest) -> str:
    return page.session_state["session"]


# ---- what is asked --------------------------------------------------------------------------------------------------


def test_settings_are_drawn_from_their_fields_and_reach_the_training(opened: Open, workspace: Workspace) -> None:
    page = opened()
    rate = labelled(page, "number_input", "Learning rate")
    assert rate.value is None, "chosen by the plan's methods"
    assert labelled(page, "selectbox", "Learn from").options == ["the dense network", "the labels", "both"]
    number(page, "Epochs", 2)
    rate.set_value(0.02)
    labelled(page, "selectbox", "Learn from").set_value("both")
    labelled(page, "selectbox", "What learns").set_value("everything")
    number(page, "Batch, samples", 50)
    number(page, "Seeds", 2)
    start_from(page, "both")
    page = press(page, "Start training")
    assert not page.error
    asked, _ = trained()
    history = next(iter(page.session_state["histories"].values()))
    settings = Settings(epochs=2, learning_rate=0.02, loss="both", train="everything", batch=50)
    assert asked == Training(workspace.candidate(history.plan), settings, (False, True), 2)


def test_the_plan_is_trained_as_its_correction_is_set(opened: Open) -> None:
    page = opened()
    for fingerprint, history in page.session_state["histories"].items():
        page.session_state["histories"][fingerprint] = history.correct(False)
    page = page.run()
    assert "**uncorrected**" in text(page)
    press(page, "Start training")
    assert trained()[0].candidate.correction is None


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_curves_before_and_after(opened: Open, workspace: Workspace) -> None:
    page = opened()
    number(page, "Epochs", 3)
    number(page, "Learning rate", 0.02)
    page = press(page, "Start training")
    assert not page.error
    asked, known = trained()
    shown = Trained(asked, known)
    epochs = shown.runs[asked.runs[0]]
    drawn = {trace["name"]: trace for trace in traces(page)}
    scores = [epoch.score for epoch in epochs]
    assert [epoch.number for epoch in epochs] == [0, 1, 2, 3] == drawn["from the plan"]["x"]
    assert drawn["from the plan"]["y"] == [score.value for score in scores]
    assert drawn["from the plan"]["error_y"]["array"] == pytest.approx([s.high - s.value for s in scores])
    assert drawn["loss, held back"]["y"] == [epoch.validation_loss for epoch in epochs]
    assert drawn["loss, training"]["y"][1:] == [epoch.train_loss for epoch in epochs[1:]]
    assert drawn["dense"]["y"] == [1.0, 1.0]
    (best,) = drawn["best so far, kept"]["x"]
    assert best == shown.chosen.epoch > 0
    before = final_score(workspace.measure(workspace.compress(asked.candidate.plan, asked.candidate.correction)))
    said = text(page)
    assert f"**Before**, as compressed and corrected: {words.plain(words.verdict(workspace, before))}" in said
    assert f"**After**, weights of epoch {best} of 3: " in said
    assert words.plain(words.verdict(workspace, shown.chosen.score)) in said
    assert shown.gain.score.value == shown.chosen.score.value
    assert shown.gain.score.drop == pytest.approx(before.value - shown.chosen.score.value)
    assert "against before, paired on the same samples" in said


def test_a_training_runs_on_from_where_it_stopped(opened: Open) -> None:
    page = opened()
    number(page, "Epochs", 2)
    page = press(page, "Start training")
    asked, known = trained()
    first = Trained(asked, known)
    assert "Held back, each pass won, in points: " in text(page)
    number(page, "More epochs", 1)
    page = press(page, "Run on")
    assert not page.error
    longer, known = trained()
    assert longer == replace(asked, settings=replace(asked.settings, run_on=(1,)))
    (epochs,) = Trained(longer, known).runs.values()
    (before,) = first.runs.values()
    assert [epoch.number for epoch in epochs] == [0, 1, 2, 3]
    assert [epoch.train_loss for epoch in epochs[:3]] == [epoch.train_loss for epoch in before]
    assert "of 3" in text(page)


def table_with(page: AppTest, column: str) -> pd.DataFrame:
    """The table that has such a column; the charts have tables of their own."""
    return next(table.value for table in page.dataframe if column in table.value)


def test_the_spread_is_shown_and_evaluation_samples_choose_nothing(opened: Open, workspace: Workspace) -> None:
    page = opened()
    start_from(page, "both")
    number(page, "Seeds", 2)
    page = press(page, "Start training")
    found = Trained(*trained())
    assert [(t.settings.from_scratch, t.settings.seed) for t in found.tuned] == [
        (False, 0),
        (False, 1),
        (True, 0),
        (True, 1),
    ]
    assert found.chosen.validation_loss == min(t.validation_loss for t in found.tuned)
    assert all(t.candidate.correction is None for t in found.tuned if t.settings.from_scratch)
    table = table_with(page, "Start").set_index("Start")
    first, second = (t.score.value for t in found.tuned[2:])
    row = table.loc["From scratch"]
    assert row["Runs"] == "2"
    assert row["Mean"] == words.score(workspace, (first + second) / 2)
    assert row["Standard deviation"] == words.score(workspace, abs(first - second) / 2**0.5)
    assert (row["Best"], row["Worst"]) == tuple(words.score(workspace, f(first, second)) for f in (max, min))
    weights = labelled(page, "selectbox", "Weights")
    assert weights.options[weights.index].endswith("the lowest")
    page = weights.select_index(3).run()
    assert words.plain(words.verdict(workspace, found.tuned[3].score)) in text(page)


def test_a_refresh_loses_nothing(opened: Open) -> None:
    page = press(opened(), "Start training")
    again = opened(w=session(page))
    assert text(again) == text(page)
    assert traces(again) == traces(page)


def test_a_sweep_shows_both_problems_side_by_side(opened: Open, workspace: Workspace) -> None:
    page = goal(opened(), "sweep")
    labelled(page, "multiselect", "Shares of the dense network").set_value([0.5, 0.7])
    number(page, "Epochs", 2)
    page = press(page, "Start sweep")
    assert not page.error
    swept = Trained(*trained()).swept
    assert [one.cost.multiplies <= share * 256 for one, share in zip(swept, (0.5, 0.7), strict=True)] == [True, True]
    drawn = {trace["name"]: trace for trace in traces(page)}
    assert drawn["indirect: as compressed"]["y"] == [one.indirect.value for one in swept]
    assert drawn["direct: trained"]["y"] == [one.direct.value for one in swept]
    assert drawn["direct: trained"]["x"] == pytest.approx([one.cost.multiplies / 256 for one in swept])
    assert list(table_with(page, "Epochs")["Bytes"]) == [one.cost.bytes for one in swept]
    page = press(labelled(page, "selectbox", "Plan").select_index(1).run(), "Send to Export")
    assert not page.error
    assert words.score(workspace, swept[1].direct.value) in labelled(page, "radio", "Weights").options[0]
    assert next(iter(page.session_state["histories"].values())).plan == swept[1].candidate.plan


def test_an_impossible_share_says_which(opened: Open) -> None:
    page = goal(opened(), "sweep")
    labelled(page, "multiselect", "Shares of the dense network").set_value([0.1, 0.5])
    page = press(page, "Start sweep")
    assert [error.value.startswith("at 10 % of the multiplies\\: ") for error in page.error] == [True]


def test_ranks_are_found_and_trained_at_one_press(opened: Open) -> None:
    page = goal(opened(), "find")
    number(page, "Largest drop of the top-1 accuracy, points", 20.0)
    before = next(iter(page.session_state["histories"].values())).plan
    page = press(page, "Find the rank by bisection, then train")
    assert [error.value for error in page.error] == []
    found = Trained(*trained())
    assert found.trials > 0
    assert found.chosen.candidate.plan == found.before.candidate.plan != before
    assert found.before.score.drop <= 0.2
    assert "belong to another plan" in text(page)
    page = press(page, "Send to Export")
    history = next(iter(page.session_state["histories"].values()))
    assert (history.plan, history.past[-1]) == (found.chosen.candidate.plan, before)


# ---- what is kept ---------------------------------------------------------------------------------------------------


def job_of(
    workspace: Workspace,
    asked: Training,
    folder: Path,
    kept: dict,
    stop_after: int | None = None,
    patience_seconds: float = JOB_PATIENCE_SECONDS,
) -> Job:
    """The training; cancelled after the epoch of that number."""
    made: list[Job] = []
    go = threading.Event()

    def work():
        go.wait()
        for event in tuning.train(workspace, asked, folder, folder, kept.__setitem__):
            yield event
            if isinstance(event, RunEpoch) and event.epoch.number == stop_after:
                made[0].cancel()

    made.append(Job("test", work, patience_seconds=patience_seconds))
    go.set()
    return made[0]


def test_cancelled_it_keeps_the_best_and_goes_on_from_there(workspace: Workspace, tmp_path: Path) -> None:
    asked, kept = asked_for(workspace), {}
    known = job_of(workspace, asked, tmp_path / "a", kept, stop_after=2).wait()
    shown = Trained(asked, known)
    best = shown.chosen
    assert known.cancelled
    assert (best.complete, best.epochs) == (False, 2)
    assert 0 < best.epoch <= 2
    assert tuning.cancelled(shown) == (
        f"Cancelled after 2 of 6 epochs: the best weights so far are kept, those of epoch {best.epoch}. The same "
        "training goes on from there when it is started again."
    )
    (before, after) = tuning.compared(workspace, shown, best)
    assert "on 400 samples" in before
    assert f"weights of epoch {best.epoch} of 2, broken off" in after
    network = kept[best].model
    assert final_score(workspace.measure(network, samples=tuning.WATCH)).value == best.score.value
    again = Trained(asked, job_of(workspace, asked, tmp_path / "a", kept).wait())
    whole = Trained(asked, job_of(workspace, asked, tmp_path / "b", {}).wait())
    assert again.tuned == whole.tuned
    assert again.chosen.complete
    with pytest.raises(tuning.InvalidFile, match="gone on since, to epoch 6"):
        tuning.weights(workspace, best, tmp_path / "a")


def test_what_was_cancelled_is_compared_on_the_samples_it_was_watched_on(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "WATCH", 64)
    asked = asked_for(workspace, learning_rate=10.0)
    shown = Trained(asked, job_of(workspace, asked, tmp_path, {}, stop_after=1).wait())
    assert shown.chosen.epoch == 0, "the start's weights: nothing was won or lost"
    before, after = tuning.compared(workspace, shown, shown.chosen)
    assert before.split(": ", 1)[1] == after.split(": ", 1)[1]
    assert "on 64 samples" in before
    assert shown.before.score.samples == 400


def test_it_goes_on_even_where_somebody_always_waits(workspace: Workspace, tmp_path: Path) -> None:
    asked = asked_for(workspace)
    with somebody_waits():
        known = job_of(workspace, asked, tmp_path / "a", {}, patience_seconds=0.05).wait()
    assert Trained(asked, known).chosen.complete
    assert Trained(asked, known).tuned == Trained(asked, job_of(workspace, asked, tmp_path / "b", {}).wait()).tuned


def test_cancelled_before_the_first_epoch_there_is_nothing(workspace: Workspace, tmp_path: Path) -> None:
    asked = asked_for(workspace)
    with somebody_waits():
        job = job_of(workspace, asked, tmp_path, {}, patience_seconds=inf)
        assert not job.wait(0.2).over, "it gives way"
        job.cancel()
        known = job.wait()
    assert known.cancelled
    assert not Trained(asked, known).tuned
    assert "there are no weights to keep" in tuning.cancelled(Trained(asked, known))


def test_time_left_counts_the_runs_to_come(workspace: Workspace, tmp_path: Path) -> None:
    heard: list[Progress] = []
    asked = replace(asked_for(workspace), seeds=3)
    epochs, seconds = asked.settings.epochs, []
    with scope(report=heard.append):
        for event in tuning.train(workspace, asked, tmp_path, tmp_path, lambda tuned, epoch: None):
            if isinstance(event, RunEpoch):
                left = heard[-1].seconds_left
                seconds += [event.epoch.seconds] if event.epoch.number else []
                if not seconds:
                    assert left is None, "nothing can be said yet"
                    continue
                to_come = 2 - (event.settings.seed - asked.settings.seed)
                mean = sum(seconds) / len(seconds)
                assert left == pytest.approx(event.epoch.seconds_left + to_come * epochs * mean)
    assert len(seconds) > epochs


def test_old_states_are_tidied_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(sweep, "MOST_BYTES", 250)
    for age in range(4):
        path = tmp_path / f"tune-{age}.pt"
        path.write_bytes(b"x" * 100)
        os.utime(path, (1000 - age, 1000 - age))
    sweep.tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tune-0.pt", "tune-1.pt"]


# ---- what is exported -----------------------------------------------------------------------------------------------


def written_file(page: AppTest) -> str:
    """The checkpoint that Export wrote last."""
    return page.session_state[f"written safetensors {Storage()} "][-1].path


def test_export_takes_the_tuned_weights_and_says_so(opened: Open, workspace: Workspace) -> None:
    page = opened()
    number(page, "Learning rate", 0.02)
    page = press(page, "Start training")
    asked, known = trained()
    best = Trained(asked, known).chosen
    unsent = opened(page="7_Export", w=session(page))
    assert labelled(unsent, "radio", "Weights").index == 0, "never silently the untuned"
    press(page, "Send to Export")
    page = opened(page="7_Export", w=session(page))
    weights = labelled(page, "radio", "Weights")
    name = tuning.weights_name(workspace, best)
    assert weights.options == [f"Tuned: {name}", "As compressed and corrected, untrained"]
    assert weights.index == 0
    assert f"Holds the **tuned** weights: {words.plain(name)}." in text(page)
    assert words.plain(words.verdict(workspace, best.score)) in text(page)
    page = press(page, "Write the checkpoint")
    assert not page.error
    written = load_checkpoint(workspace.model, written_file(page))
    assert final_score(workspace.measure(written.model)).value == best.score.value
    assert written.provenance["tuned"]["best_epoch"] == best.epoch
    untuned = workspace.compress(asked.candidate.plan, asked.candidate.correction).state_dict()
    assert not torch.equal(written.model.state_dict()["0.0.weight"], untuned["0.0.weight"])

    page = labelled(page, "radio", "Weights").set_value(1).run()
    assert "Download the checkpoint" not in [b.label for b in page.get("download_button")]
    page = press(page, "Write the checkpoint")
    written = load_checkpoint(workspace.model, written_file(page))
    assert torch.equal(written.model.state_dict()["0.0.weight"], untuned["0.0.weight"])
    assert "tuned" not in written.provenance


def test_a_changed_plan_has_no_tuned_weights(opened: Open, workspace: Workspace) -> None:
    page = press(press(opened(), "Start training"), "Send to Export")
    page = opened(page="7_Export", w=session(page))
    for fingerprint, history in page.session_state["histories"].items():
        page.session_state["histories"][fingerprint] = history.commit(plan_of(workspace, 3))
    page = page.run()
    assert "Weights" not in [radio.label for radio in page.radio]
    assert "This plan has **no tuned weights**" in page.info[0].value
    assert "tuned" not in "".join(code.value for code in page.code)


def test_a_restart_of_the_server_keeps_the_tuned_weights(opened: Open, workspace: Workspace) -> None:
    page = press(opened(), "Start training")
    best = Trained(*trained()).chosen
    restart()
    page = opened(page="7_Export", w=session(page))
    assert tuning.weights_name(workspace, best) in labelled(page, "radio", "Weights").options[0]
    page = press(page, "Write the checkpoint")
    assert not page.error
    written = load_checkpoint(workspace.model, written_file(page))
    assert final_score(workspace.measure(written.model)).value == best.score.value
    for path in models.cache().tuning.iterdir():
        path.unlink()
    restart()
    page = press(opened(page="7_Export", w=session(page)), "Write the checkpoint")
    assert [error.value for error in page.error] == [
        "the tuned weights are not on disk any more; train the plan again on Fine-tune."
    ]


def test_compare_shows_tuned_weights_in_a_column_of_their_own(opened: Open, workspace: Workspace) -> None:
    page = opened()
    number(page, "Learning rate", 0.02)
    page = press(page, "Start training")
    best = Trained(*trained()).chosen
    page = opened(page="6_Compare", w=session(page))
    assert not page.error
    rows = table(page)
    assert list(rows["Flash"]) == ["Dense", "This plan", "Tuned", "Dense int8"]
    assert rows["Top-1 accuracy"]["Tuned"].startswith(words.score(workspace, best.score.value))
    assert rows["Top-1 accuracy"]["Tuned"] != rows["Top-1 accuracy"]["This plan"]
    assert rows["Flash"]["Tuned"] == rows["Flash"]["This plan"]

    column = Column(best.candidate, "int8", best)
    plan = best.candidate.plan
    found = list(compare.work(workspace, Scores((column,)), Path(), lambda weights: kept_epoch(workspace, weights)))
    (narrow,) = (one.measured for one in found)
    network = tuning.compressed(workspace, best, kept_epoch(workspace, best)).stored(workspace, Storage("int8"))
    with scratch() as folder:
        written = EXPORTS["onnx"].write(workspace, network, folder / "network.onnx")
    assert network.plan == plan
    assert narrow.comparison.score == written.score
    (lost,) = compare.work(workspace, Scores((column,)), Path())
    assert "train the plan again on Fine-tune" in lost.measured.refused


def kept_epoch(workspace: Workspace, weights: Tuned) -> Epoch:
    return tuning.weights(workspace, weights, models.cache().tuning)


# ---- what cannot be trained -----------------------------------------------------------------------------------------

EXPLODES = ("nn.Tanh()", "type('Exp', (nn.Module,), {'forward': lambda self, x: x.exp()})()")
BAD = {
    "no train_data": (("def train_data", "def trained_data"), {}, "fine-tuning needs train"),
    "labels out of range": (
        ("return data(300, 1)", "x, y = data(300, 1); return x, y + 1"),
        {"Learn from": "labels"},
        "labels must be 0..3",
    ),
    "diverges": (
        EXPLODES,
        {"Learning rate": 10.0, "Clip gradients": 1e6, "Epochs": 20},
        "at a learning rate of 10; try",
    ),
}


@pytest.mark.parametrize(("change", "wishes", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_text(opened: Open, tmp_path: Path, change, wishes: dict, says: str) -> None:
    path = tmp_path / "bad_net.py"
    path.write_text(SMALL.replace(*change))
    page = opened(path)
    for label, value in wishes.items():
        labelled(page, "selectbox" if isinstance(value, str) else "number_input", label).set_value(value)
    page = press(page, "Start training")
    assert not page.exception
    assert len(page.error) == 1
    assert says in page.error[0].value
    assert not labelled(page, "button", "Start training").disabled


def test_a_training_that_broke_off_keeps_its_best_weights(tmp_path: Path) -> None:
    path = tmp_path / "explodes.py"
    path.write_text(SMALL.replace(*EXPLODES))
    workspace = Workspace.open(str(path))
    asked = asked_for(workspace, learning_rate=10.0, clip=1e6, epochs=20, patience=20)
    known = job_of(workspace, asked, tmp_path, {}).wait()
    assert "at a learning rate of 10; try" in known.error
    (left,) = Trained(asked, known).tuned
    assert (left.complete, left.epoch) == (False, 0)


def test_a_plan_with_everything_dense_is_refused(opened: Open, workspace: Workspace) -> None:
    page = opened()
    for fingerprint, history in page.session_state["histories"].items():
        page.session_state["histories"][fingerprint] = history.commit(RankPlan(fingerprint))
    page = press(page.run(), "Start training")
    assert len(page.error) == 1
    assert "every layer dense, so there are no factors" in page.error[0].value


def test_titles_say_what_was_asked(workspace: Workspace) -> None:
    plan, settings = Candidate(plan_of(workspace, 4)), Settings(epochs=1, loss="labels")
    assert tuning.title(workspace, Training(plan, settings, (False, True), 3)) == (
        "From the plan and from scratch at 68.8 % multiplies, 1 epoch, learning from the labels, 3 seeds"
    )
    assert tuning.title(workspace, Training(None, Settings(), max_drop=0.02)) == (
        "Ranks by bisection, drop up to 2 points, then from the plan, 9 epochs"
    )
    assert tuning.title(workspace, Sweep((0.3, 0.5), "bytes", make("uniform", {}), Settings())) == (
        "Sweep: Uniform at 30 %, 50 % of the bytes, 9 epochs"
    )
    assert isinstance(hash(Tuned(plan, settings, 0, 1, 1, 0.0, None)), int)


# ---- what it takes --------------------------------------------------------------------------------------------------


def test_a_training_says_what_it_takes_before_it_starts_in_epochs_steps_samples_and_seconds(
    opened: Open, workspace: Workspace, tmp_path: Path
) -> None:
    asked = replace(asked_for(workspace, epochs=4, batch=50), seeds=2)
    steps = -(-len(training_data(workspace)) // 50)
    (line, *_) = tuning.before_it_starts(workspace, asked, tmp_path)
    said = re.fullmatch(
        rf"At most 2 runs of 4 epochs of {steps} steps?, 50 samples in each: about \d+ s on this machine\.", line
    )
    assert said, line
    find = replace(asked, candidate=None, max_drop=0.05)
    assert re.search(r", about \d+ s of it to find the ranks\.$", tuning.before_it_starts(workspace, find, tmp_path)[0])
    page = opened()
    assert "epochs of" in text(page)
    number(page, "Epochs", 1)
    page = press(page, "Start training")
    assert "Done already: it is shown at once" in text(page).replace("\\", "")
    assert re.search(r"At most about \d+ s on this machine", text(page)), "what more epochs take"
