"""Fine-tuning: it finds what is planted, keeps the best, goes on after a kill, and leaves network and plan alone."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from awkward_layers import up
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core import Choice, RankPlan, Workspace, load_checkpoint
from lowrank_core.commands import cli
from lowrank_core.errors import (
    Cancelled,
    InvalidData,
    InvalidFile,
    InvalidPlan,
    InvalidSettings,
    LowRankError,
    TrainingFailed,
)
from lowrank_core.exports import _reload as reload
from lowrank_core.layers.data import Dataset, run
from lowrank_core.layers.spec import LayerSpec, inputs_first
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import fingerprint
from lowrank_core.plans.candidate import Candidate
from lowrank_core.running import scope as scopes
from lowrank_core.running.scope import scope, somebody_waits
from lowrank_core.running.threads import one_thread
from lowrank_core.scoring.scores import final_score
from lowrank_core.store.documents import Kind, sealed
from lowrank_core.training.finetune import STATE, Epoch, finetune, kept, read_state
from lowrank_core.training.recipe import Objective, Settings, balance, randomise, varied
from lowrank_core.training.sweep import runs, state_path, summary, sweep
from tests.conftest import PATIENCE_SECONDS

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
PLANTED = """
import torch
from torch import nn

def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).eval()
        with torch.no_grad():
            model[0].weight.copy_(torch.randn(16, 2) @ torch.randn(2, 12) / 3)
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
    return data(200, 2)
"""
"""A first layer of rank 2 by construction."""

LIVELY = 0.5
"""A learning rate at which the loss on the samples held back goes down and up again."""

QUICK = Settings(epochs=6, batch=32, learning_rate=0.1)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Workspace]:
    def made(*changes: tuple[str, str]) -> Workspace:
        text = PLANTED
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / f"planted_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text)
        return Workspace.open(str(path))

    return made


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    path = tmp_path_factory.mktemp("planted") / "planted_net.py"
    path.write_text(PLANTED)
    return Workspace.open(str(path))


def candidate(workspace: Workspace, rank: int = 1) -> Candidate:
    """The first layer at a rank, uncorrected, so that there is much to learn."""
    return Candidate(RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (rank,))}))


def last(workspace: Workspace, given: Candidate, settings: Settings, **options: Any) -> Epoch:
    *_, found = finetune(workspace, given, settings, **options)
    return found


def tuned(workspace: Workspace, given: Candidate, settings: Settings, **options: Any) -> dict[str, Tensor]:
    model = last(workspace, given, settings, **options).model
    assert model is not None
    return model.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- what the loss finds --------------------------------------------------------------------------------------------


def test_from_scratch_finds_a_weight_of_that_rank_and_not_of_a_smaller_one(planted: Workspace) -> None:
    settings = Settings(epochs=100, batch=32, learning_rate=0.2, patience=100, from_scratch=True)
    found = {rank: last(planted, candidate(planted, rank), settings).validation_loss for rank in (1, 2)}
    assert found[2] < found[1] / 10


def test_it_wins_back_what_the_ranks_cost() -> None:
    """The digits CNN at about a tenth of its parameters, without labels; the start is the plan's corrected factors."""
    workspace = Workspace.open("builtin:digits-cnn")
    ranks = {"conv1": 1, "conv2": 3, "conv3": 5, "fc1": 11, "fc2": 7}
    choices = {name: Choice("spatial_svd" if "conv" in name else "svd", (rank,)) for name, rank in ranks.items()}
    given = Candidate(RankPlan.of(workspace.profile.fingerprint, choices), workspace.correction)
    first, *_, end = finetune(workspace, given, Settings(epochs=4, batch=32, learning_rate=0.05))
    assert first.number == 0
    assert first.train_loss is None
    assert end.model is not None
    before = final_score(workspace.measure(workspace.compress(given.plan, given.correction))).value
    after = final_score(workspace.measure(end.model)).value
    assert before < 0.9
    assert after > 0.95
    assert end.validation_loss < first.validation_loss / 2


def test_the_start_is_the_plan_with_its_correction(planted: Workspace) -> None:
    held_back = planted.opened.train_data().shuffled(0).pick(slice(0, 30))  # type: ignore[misc]
    dense, seen = run(planted.model, held_back)["output"], []
    for given in (planted.candidate(candidate(planted).plan), candidate(planted)):
        start, *_ = finetune(planted, given, QUICK)
        ours = run(planted.compress(given.plan, given.correction), held_back)["output"]
        expected = float(Objective("distill", True)(ours, dense, None))
        assert start.validation_loss == pytest.approx(expected, rel=1e-4)
        seen.append(expected)
    assert seen[0] != pytest.approx(seen[1], rel=1e-3)


def test_distillation_never_reads_labels(make: Callable[..., Workspace]) -> None:
    labelled, bare = make(), make(("return data(300, 1)", "return (data(300, 1)[0], None)"))
    assert same(tuned(labelled, candidate(labelled), QUICK), tuned(bare, candidate(bare), QUICK))


def test_labels_teach_what_the_dense_network_does_not_know(make: Callable[..., Workspace]) -> None:
    """The labels are turned by one class: only a loss that reads them can learn it."""
    workspace = make(("build_model()(inputs).argmax(1)", "(build_model()(inputs).argmax(1) + 1) % 4"))
    settings = replace(QUICK, epochs=20, train="everything")
    score = {
        loss: last(workspace, candidate(workspace, 2), replace(settings, loss=loss)) for loss in ("labels", "both")
    }
    assert score["labels"].validation > 0.8
    start = last(workspace, candidate(workspace, 2), replace(settings, epochs=1))
    assert start.validation < 0.2
    assert score["both"].train_loss not in (score["labels"].train_loss, None)


def test_factors_or_everything(planted: Workspace) -> None:
    dense = planted.model.state_dict()
    factors, everything = (
        tuned(planted, candidate(planted), replace(QUICK, train=t)) for t in ("factors", "everything")
    )
    assert torch.equal(factors["2.weight"], dense["2.weight"])
    assert not torch.equal(everything["2.weight"], dense["2.weight"])
    assert not torch.equal(factors["0.1.bias"], dense["0.bias"])


def test_from_scratch_needs_no_factors_of_the_plan(planted: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "factors", lambda *_: pytest.fail("random factors need no decomposition"))
    scratch = replace(QUICK, from_scratch=True, epochs=1)
    first, second = (tuned(planted, candidate(planted), replace(scratch, seed=seed)) for seed in (0, 1))
    assert not torch.equal(first["0.0.weight"], second["0.0.weight"])
    assert torch.equal(first["2.weight"], planted.model.state_dict()["2.weight"])
    barely = replace(scratch, train="everything", learning_rate=1e-6)
    model = last(planted, candidate(planted), barely).model
    assert model is not None
    for leaves, enters in channel_norms(model.get_submodule("0")):  # type: ignore[arg-type]
        torch.testing.assert_close(leaves, enters, rtol=1e-3, atol=0)
    rest = [tuned(planted, candidate(planted), replace(barely, seed=seed))["2.weight"] for seed in (0, 1)]
    for one, other in zip(rest, [rest[1], planted.model.state_dict()["2.weight"]], strict=True):
        assert (one - other).abs().max() > 0.01


# ---- the best is kept, the rest is left alone -----------------------------------------------------------------------


def test_never_below_the_start(planted: Workspace) -> None:
    """At a rate at which every epoch is worse, the start's weights come back."""
    given = planted.candidate(candidate(planted).plan)
    end = last(planted, given, replace(QUICK, epochs=12, learning_rate=10.0, patience=3))
    assert (end.best, end.number) == (0, 9)  # and it stopped early, three epochs after the half of them
    assert end.model is not None
    sample = planted.reference.dataset.pick(slice(0, 50))
    expected = run(planted.compress(given.plan, given.correction), sample)
    torch.testing.assert_close(run(end.model, sample), expected, rtol=1e-4, atol=1e-5)  # balanced: float32 rounding


def test_the_best_weights_are_those_of_the_lowest_validation_loss(planted: Workspace) -> None:
    epochs = list(finetune(planted, candidate(planted), replace(QUICK, epochs=12, learning_rate=LIVELY, patience=12)))
    losses = [epoch.validation_loss for epoch in epochs]
    end = epochs[-1]
    assert end.best == losses.index(min(losses))
    assert 0 < end.best < end.number  # else the test says nothing
    assert end.model is not None
    held_back = planted.opened.train_data().shuffled(0).pick(slice(0, 30))  # type: ignore[misc]
    found = Objective("distill", True)(*(run(m, held_back)["output"] for m in (end.model, planted.model)), None)
    assert float(found) == pytest.approx(min(losses), rel=1e-4)
    assert [epoch.model is None for epoch in epochs] == [True] * end.number + [False]


def test_of_equal_losses_the_earliest_is_the_best(make: Callable[..., Workspace]) -> None:
    """Inputs of zeros teach a weight nothing: the start is as good as any epoch, and patience ends the run."""
    workspace = make(
        ("torch.randn(samples, 12, generator=torch.Generator().manual_seed(seed))", "torch.zeros(samples, 12)"),
        ("nn.Linear(12, 16)", "nn.Linear(12, 16, bias=False)"),
    )
    epochs = list(finetune(workspace, candidate(workspace), replace(QUICK, patience=2)))
    assert len({epoch.validation_loss for epoch in epochs}) == 1
    assert [epoch.best for epoch in epochs] == [0] * 6, "two from the half of its six epochs on"


def test_network_plan_and_randomness_are_left_alone(planted: Workspace) -> None:
    before, state = fingerprint(planted.model), torch.get_rng_state()
    for settings in (QUICK, replace(QUICK, train="everything", from_scratch=True)):
        model = last(planted, candidate(planted), settings).model
        assert model is not None
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert fingerprint(planted.model) == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in planted.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_says_everything(planted: Workspace) -> None:
    first, again, other = (tuned(planted, candidate(planted), replace(QUICK, seed=seed)) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)


def test_watched_samples_change_nothing(planted: Workspace) -> None:
    plain = tuned(planted, candidate(planted), QUICK)
    epochs = list(finetune(planted, candidate(planted), QUICK, watch=64))
    assert [epoch.score is not None and epoch.score.samples for epoch in epochs] == [64] * 7
    assert epochs[-1].model is not None
    assert same(plain, epochs[-1].model.state_dict())


def test_it_can_be_cancelled_within_an_epoch(planted: Workspace) -> None:
    epochs: list[Epoch] = []
    asked = itertools.count()
    with scope(cancelled=lambda: bool(epochs) and next(asked) == 5), pytest.raises(Cancelled):
        epochs.extend(finetune(planted, candidate(planted), QUICK))
    assert [epoch.number for epoch in epochs] == [0], "it ended in its first pass, at the sixth question"


# ---- going on after a stop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [QUICK, replace(QUICK, from_scratch=True, train="everything", loss="both")])
def test_going_on_gives_the_same_result(planted: Workspace, tmp_path: Path, settings: Settings) -> None:
    state = tmp_path / "state.pt"
    whole = list(finetune(planted, candidate(planted), settings))
    training = finetune(planted, candidate(planted), settings, state=state)
    for _ in range(3):
        next(training)
    training.close()
    continued = list(finetune(planted, candidate(planted), settings, state=state))
    assert [(e.number, e.train_loss, e.best) for e in continued] == [(e.number, e.train_loss, e.best) for e in whole]
    assert continued[-1].model is not None
    assert whole[-1].model is not None
    assert same(continued[-1].model.state_dict(), whole[-1].model.state_dict())
    at_once = list(finetune(planted, candidate(planted), settings, state=state))
    assert [e.number for e in at_once] == [e.number for e in whole]
    assert at_once[-1].model is not None
    assert same(at_once[-1].model.state_dict(), whole[-1].model.state_dict())


@pytest.mark.parametrize("more", [{}, {"from_scratch": True, "train": "everything"}])
def test_a_run_cancelled_leaves_its_best_weights(planted: Workspace, tmp_path: Path, more: dict[str, Any]) -> None:
    settings, state = replace(QUICK, epochs=12, learning_rate=LIVELY, patience=12, **more), tmp_path / "state.pt"
    training = finetune(planted, candidate(planted), settings, state=state)
    while (seen := next(training)).best in (0, seen.number):
        pass  # until an epoch was worse than a trained one
    training.close()
    found = kept(planted, candidate(planted), settings, state)
    assert [epoch.model is None for epoch in found] == [True] * seen.number + [False]
    end = found[-1]
    assert (end.number, end.best, end.seconds_left) == (seen.number, seen.best, 0)
    assert end.model is not None
    held_back = planted.opened.train_data().shuffled(0).pick(slice(0, 30))  # type: ignore[misc]
    loss = Objective("distill", True)(*(run(m, held_back)["output"] for m in (end.model, planted.model)), None)
    assert float(loss) == pytest.approx(found[end.best].validation_loss, rel=1e-4)
    with pytest.raises(InvalidFile, match="another run"):
        kept(planted, candidate(planted), replace(settings, seed=1), state)


STANDS_STILL = """
import os, signal, sys
from lowrank_core.running.threads import one_thread
from lowrank_core.commands import cli

def replace(source, target, replace=os.replace):
    replace(source, target)
    if str(target).endswith("run.state.0"):
        os.kill(os.getpid(), signal.SIGSTOP)

os.replace = replace
cli.main(sys.argv[1:], prog_name="lowrank_core")
"""


def test_killed_half_way(planted: Workspace, tmp_path: Path) -> None:
    state, plan, out = (tmp_path / name for name in ("run.state", "plan.json", "tuned.safetensors"))
    plan.write_text(candidate(planted).plan.to_json())
    options = ["--plan", plan, "--out", out, "--state", state, "--epochs", 60, "--patience", 1000, "--batch", 32]
    command = [*map(str, ["finetune", planted.opened.ref, *options, "--no-correct"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", STANDS_STILL, *command], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    own = tmp_path / "run.state.0"
    while not own.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert not out.exists()
    reached = json.loads(read_state(own)["history"])[-1]["number"]
    assert reached < 60
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    uninterrupted = tuned(planted, candidate(planted), Settings(epochs=60, patience=1000, batch=32))
    assert same(load_checkpoint(planted.model, out).model.state_dict(), uninterrupted)


def test_a_state_of_another_run_is_refused_and_kept(planted: Workspace, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    next(finetune(planted, candidate(planted), QUICK, state=state))
    written = state.read_bytes()
    for given, settings in ((candidate(planted, 2), QUICK), (candidate(planted), replace(QUICK, seed=1))):
        with pytest.raises(InvalidFile, match="another run"):
            next(finetune(planted, given, settings, state=state))
    assert state.read_bytes() == written
    for other in (b"", b"nonsense", b"PK nonsense", sealed(Kind("history"), b"{}")):
        state.write_bytes(other)
        with pytest.raises(InvalidFile, match=r"state\.pt is (no state|of another kind)"):
            next(finetune(planted, candidate(planted), QUICK, state=state))
        assert state.read_bytes() == other, "it may be anybody's"


def test_a_damaged_state_is_set_aside_and_the_training_begins_anew(planted: Workspace, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    *_, whole = finetune(planted, candidate(planted), QUICK, state=state)
    assert whole.model is not None
    written = state.read_bytes()
    flipped = bytearray(written)
    flipped[len(written) // 2] ^= 4
    newer = sealed(replace(STATE, version=STATE.version + 1), b"what a later version writes")
    faults = {"damaged-1": bytes(flipped), "damaged-2": written[: len(written) // 2], "newer-1": newer}
    for name, content in faults.items():
        state.write_bytes(content)
        with pytest.raises(InvalidFile, match=r"damaged|newer"):
            kept(planted, candidate(planted), QUICK, state)
        assert state.read_bytes() == content
        first, *_, last = finetune(planted, candidate(planted), QUICK, state=state)
        assert f"{state}.{name}" in first.notice
        assert (tmp_path / f"state.pt.{name}").read_bytes() == content
        assert last.model is not None
        assert not last.notice
        assert same(last.model.state_dict(), whole.model.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.pt", *(f"state.pt.{name}" for name in faults)]


def test_what_became_of_a_damaged_state_is_one_line_of_the_command(tmp_path: Path) -> None:
    plan, state = tmp_path / "plan.json", tmp_path / "run.state"
    fingerprint = Workspace.open("builtin:iris-mlp").profile.fingerprint
    plan.write_text(RankPlan.of(fingerprint, {"fc1": Choice("svd", (1,))}).to_json())
    options = ["--plan", plan, "--out", tmp_path / "tuned.safetensors", "--state", state, "--epochs", 1]
    command = [*map(str, ["finetune", "builtin:iris-mlp", *options, "--no-cache"])]
    own = tmp_path / "run.state.0"
    own.write_bytes(sealed(STATE, b"content")[:-1])
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "damaged" in line]
    assert lines == [f"{own} is damaged: not as written. It is kept as {own}.damaged-1, and the training begins anew."]
    again = CliRunner().invoke(cli, command)
    assert "damaged" not in again.stderr


def test_while_it_gives_way_it_holds_nothing_that_others_wait_for(
    planted: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, clock = 0, itertools.count()

    def pause(seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        passed = threading.Event()

        def measure() -> None:
            with one_thread():
                passed.set()

        threading.Thread(target=measure, daemon=True).start()
        assert passed.wait(PATIENCE_SECONDS), "a measurement waits for the training, which waits for the measurement"

    monkeypatch.setattr(scopes, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=pause))
    with somebody_waits(), scope(patience_seconds=2.0):
        *_, last = finetune(planted, candidate(planted), QUICK)
    assert last.number == QUICK.epochs
    assert pauses > 2 * QUICK.epochs


# ---- what cannot be trained -----------------------------------------------------------------------------------------

REGRESSION = [
    ("build_model()(inputs).argmax(1)", "build_model()(inputs)"),
    ("def eval_data", "def evaluation_data"),
    ("def train_data", "def evaluate(model):\n    return 0.5\n\ndef train_data"),
]
"""Numbers instead of classes, judged by the person's own function alone."""

BAD: dict[str, tuple[list[tuple[str, str]], dict[str, Any], type[LowRankError], str]] = {
    "rate too high": (
        [("nn.Tanh()", "type('Exp', (nn.Module,), {'forward': lambda self, x: x.exp()})()")],
        {"learning_rate": 10.0, "clip": 1e6, "epochs": 20},
        TrainingFailed,
        "loss .*at a learning rate of 10; try",
    ),
    "NaN in the samples": (
        [("return data(300, 1)", "x, y = data(300, 1); x[:5] = float('nan'); return x, y")],
        {},
        InvalidData,
        r"train_data\(\): samples 0, 1, 2, 3 and 4 of 300 hold NaN or infinity",
    ),
    "one sample": ([("return data(300, 1)", "return data(1, 1)")], {}, InvalidData, "at least 2 .* has 1;"),
    "labels out of range": (
        [("return data(300, 1)", "x, y = data(300, 1); return x, y + 1")],
        {"loss": "labels"},
        InvalidData,
        r"labels must be 0..3, .* has 1..4",
    ),
    "no labels": (
        [("return data(300, 1)", "return data(300, 1)[0], None")],
        {"loss": "both"},
        InvalidData,
        "no labels to learn from",
    ),
    "labels of another shape": (
        [("return data(300, 1)", "x, y = data(300, 1); return x, y[:, None]")],
        {"loss": "labels"},
        InvalidData,
        "one integer for each answer",
    ),
    "no train_data": ([("def train_data", "def trained_data")], {}, InvalidData, "needs training samples"),
    "no images": ([], {"augment": "flip"}, InvalidData, "only images can be varied"),
    "another number of inputs": (
        [("return data(300, 1)", "x, y = data(300, 1); return x[:, :7], y")],
        {},
        InvalidData,
        "failed on the",
    ),
}


@pytest.mark.parametrize(("changes", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(
    make: Callable[..., Workspace],
    changes: list[tuple[str, str]],
    options: dict[str, Any],
    error: type[LowRankError],
    message: str,
) -> None:
    workspace = make(*changes)
    before = fingerprint(workspace.model)
    with pytest.raises(error, match=message):
        last(workspace, candidate(workspace), replace(QUICK, **options))
    assert fingerprint(workspace.model) == before


def test_a_dense_plan_has_no_factors_but_can_be_trained_whole(planted: Workspace) -> None:
    dense = Candidate(RankPlan(planted.profile.fingerprint))
    with pytest.raises(InvalidPlan, match="every layer dense"):
        last(planted, dense, QUICK)
    assert last(planted, dense, replace(QUICK, train="everything")).number == 6


def test_labels_out_of_range_do_not_matter_where_none_are_read(make: Callable[..., Workspace]) -> None:
    workspace = make(("return data(300, 1)", "x, y = data(300, 1); return x, y + 1"))
    assert last(workspace, candidate(workspace), QUICK).number == 6


def test_two_samples_are_enough(make: Callable[..., Workspace]) -> None:
    workspace = make(("return data(300, 1)", "return data(2, 1)"))
    assert last(workspace, candidate(workspace), QUICK).model is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 to 1000, but got epochs=0"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"loss": "love"}, "loss must be one of distill, labels, both"),
        ({"clip": float("nan")}, "clip must be"),
    ],
)
def test_settings_say_their_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        Settings(**options)


def test_cp_learns_more_slowly() -> None:
    svd, cp = (RankPlan.of("sha256:0", {"a": Choice("svd", (2,)), "b": Choice(m, (2,))}) for m in ("svd", "cp3"))
    for settings in (Settings(), Settings(optimizer="adam")):
        assert settings.rate(cp) < settings.rate(svd)
    assert Settings(learning_rate=0.5).rate(cp) == 0.5


# ---- the parts ------------------------------------------------------------------------------------------------------

SPECS = {
    "linear": (LayerSpec(9, 7), "svd", (3,)),
    "conv": (LayerSpec(6, 8, (3, 5), (2, 1), (1, 2), (1, 1), 2), "svd", (2,)),
    "spatial": (LayerSpec(6, 8, (3, 5), (2, 1), (1, 2), (1, 1)), "spatial_svd", (4,)),
    "tucker2": (LayerSpec(6, 8, (3, 3), (1, 1), (1, 1), (1, 1), bias=False), "tucker2", (4, 3)),
    "cp3": (LayerSpec(6, 8, (3, 3), (1, 1), (1, 1), (1, 1)), "cp3", (5,)),
    "cp4": (LayerSpec(6, 8, (3, 5), (1, 1), (1, 1), (1, 1)), "cp4", (5,)),
    "gate_tucker": (LayerSpec(6, 28, gates=4), "gate_tucker", (4, 3)),
    "gate_cp": (LayerSpec(6, 21, gates=3), "gate_cp", (5,)),
}
TRANSPOSED = {
    "svd": (up(6, 8, (3, 2), stride=(2, 1), groups=2), "svd", (2,)),
    "tucker2": (up(6, 8, (3, 3), stride=(2, 2), groups=2), "tucker2", (2, 2)),
    "svd_g2": (up(8, 6, (3, 3), groups=2), "svd_g2", (2,)),
}


def outputs_first(part: nn.Module) -> Tensor:
    """The weight, as one that is not transposed would store it."""
    spec = LayerSpec.of(part)
    return inputs_first(part.weight, spec.groups) if spec.transposed else part.weight


def channel_norms(chain: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    """For each pair of neighbours the norm of every channel between them, as it leaves and as it enters.

    Channels that meet the same weights count as one.
    """
    found = []
    for first, second in zip(chain, list(chain)[1:], strict=False):
        leaves = outputs_first(first).flatten(1).norm(dim=1)
        leaves = leaves.unflatten(0, (-1, LayerSpec.of(second).copies)).norm(dim=1)
        groups = LayerSpec.of(second).groups
        parts = outputs_first(second).chunk(groups)
        enters = torch.cat([part.transpose(0, 1).flatten(1).norm(dim=1) for part in parts])
        found.append((leaves, enters))
    return found


@pytest.mark.parametrize(("spec", "method", "rank"), [*SPECS.values(), *TRANSPOSED.values()])
def test_balanced_factors_compute_the_same(spec: LayerSpec, method: str, rank: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(spec.weight_shape, generator=generator, dtype=torch.float64)
    weights = METHODS[method].factorize(spec, weight).weights(rank)
    chain = nn.Sequential(*(stage.build(dtype=torch.float64) for stage in METHODS[method].stages(spec, rank)))
    with torch.no_grad():
        for part, value in zip(chain, weights, strict=True):
            part.get_parameter("weight").copy_(value)
        chain[-1].get_parameter("weight").mul_(100)  # out of balance
        x = torch.randn(2, spec.in_channels, *[11] * len(spec.kernel), generator=generator, dtype=torch.float64)
        before = chain(x)
        balance(chain)
        assert (chain(x) - before).abs().max() < 1e-9 * before.abs().max()
    for leaves, enters in channel_norms(chain):
        torch.testing.assert_close(leaves, enters, rtol=1e-3, atol=0)


def test_balance_leaves_a_dead_channel() -> None:
    chain = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4))
    with torch.no_grad():
        chain[0].weight[1] = 0
    balance(chain)
    assert all(torch.isfinite(parameter).all() for parameter in chain.parameters())


@pytest.mark.parametrize(("spec", "method", "rank"), SPECS.values(), ids=SPECS)
def test_random_factors_are_as_loud_as_asked(spec: LayerSpec, method: str, rank: tuple[int, ...]) -> None:
    """Over many channels, so that chance averages out."""
    wide = replace(spec, in_channels=spec.in_channels * 32, out_channels=spec.out_channels * 32)
    stages = METHODS[method].stages(wide, tuple(r * 32 for r in rank))
    chain = nn.Sequential(*(stage.build() for stage in stages))
    randomise(chain, 3.0, torch.Generator().manual_seed(0))
    x = torch.randn(16, wide.in_channels, *[9] * len(spec.kernel), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = chain(x)
    inner = y[..., 3:-3, 3:-3] if spec.stride == (1, 1) else y  # away from the padding
    assert 1.8 < float(inner.std()) < 3.6


def moved(padded: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
    """16 x 9 pixels of a padded image."""
    part = padded[:, top : top + 16, left : left + 9]
    return part.flip(2) if mirrored else part


@pytest.mark.parametrize("augment", ["shift", "flip"])
def test_varied_images_are_shifted_and_mirrored_ones(augment: Any) -> None:
    images = torch.rand(64, 2, 16, 9)
    found = varied({"x": images, "n": torch.arange(64)}, augment, torch.Generator().manual_seed(0))
    assert torch.equal(found["n"], torch.arange(64))
    padded, seen = F.pad(images, (1, 1, 2, 2)), set()
    for n in range(64):
        fits = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(3)
            for mirrored in (False, True)
            if torch.equal(found["x"][n], moved(padded[n], top, left, mirrored))
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert {top for top, *_ in seen} == set(range(5))
    assert {left for _, left, _ in seen} == set(range(3))
    assert {mirrored for *_, mirrored in seen} == ({False, True} if augment == "flip" else {False})
    assert varied(images, "none", torch.Generator()) is images


def test_objectives() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, dense = (torch.randn(5, 3, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 1, 0])
    assert float(Objective.of("distill", dense, None)(dense, dense, None)) == pytest.approx(0, abs=1e-6)
    assert float(Objective.of("distill", dense, None)(ours, dense, None)) > 0.1
    plain = Objective.of("labels", dense, labels)(ours, dense, labels)
    assert float(plain) == pytest.approx(float(F.cross_entropy(ours, labels)))
    words, next_words = torch.randn(2, 4, 3, generator=generator), torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    last_axis = Objective.of("labels", words, next_words)(words, words, next_words)
    assert float(last_axis) == pytest.approx(float(F.cross_entropy(words.mT, next_words)))
    pixels, classes = torch.randn(2, 3, 4, 4, generator=generator), torch.zeros(2, 4, 4, dtype=torch.long)
    assert float(Objective.of("labels", pixels, classes)(pixels, pixels, classes)) == pytest.approx(
        float(F.cross_entropy(pixels, classes))
    )
    numbers = torch.randn(5, 3, generator=generator)
    assert float(Objective.of("labels", ours, numbers)(ours, dense, numbers)) == pytest.approx(
        float(F.mse_loss(ours, numbers))
    )
    assert not Objective.of("distill", ours[:, :1], None).classes


def test_a_network_judged_by_nothing_is_judged_by_its_loss(make: Callable[..., Workspace]) -> None:
    """Targets of another shape than the outputs, by which nothing known can judge; the dense answers teach."""
    workspace = make(("build_model()(inputs).argmax(1)", "build_model()(inputs)[:, :2]"), *REGRESSION[1:])
    first, *_, end = finetune(workspace, candidate(workspace), replace(QUICK, loss="distill"))
    assert first.validation == first.validation_loss
    assert end.validation_loss < first.validation_loss


def test_numbers_are_judged_by_r2_on_the_samples_held_back(make: Callable[..., Workspace]) -> None:
    workspace = make(*REGRESSION)
    first, *_, end = finetune(workspace, candidate(workspace), replace(QUICK, loss="labels"))
    assert end.validation_loss < first.validation_loss
    assert first.validation < end.validation <= 1


# ---- several runs ---------------------------------------------------------------------------------------------------


def test_runs_differ_and_are_summed_up(planted: Workspace) -> None:
    scratch = replace(QUICK, from_scratch=True)
    steps = list(runs(planted, candidate(planted), scratch, (5, 6, 7)))
    assert [len(step.finished) for step in steps] == [0] * 6 + [1] + [1] * 6 + [2] + [2] * 6 + [3]
    finished = steps[-1].finished
    assert [run.seed for run in finished] == [5, 6, 7]
    values = [final_score(planted.measure(run.model)).value for run in finished]
    found = summary(finished)
    assert list(found.scores) == values
    assert (found.best, found.worst) == (max(values), min(values))
    assert found.mean == pytest.approx(sum(values) / 3)
    assert found.spread == pytest.approx(float(torch.tensor(values).double().std()))
    losses = [run.validation_loss for run in finished]
    assert len(set(losses)) == 3
    assert found.chosen == losses.index(min(losses))
    assert summary(finished[:1]).spread is None


def test_the_best_of_errors_is_the_smallest(planted: Workspace) -> None:
    *_, step = runs(planted, candidate(planted), replace(QUICK, from_scratch=True), (5, 6))
    errors = [replace(r, score=replace(r.score, higher_is_better=False)) for r in step.finished]
    assert summary(errors).best == min(summary(errors).scores)


def test_a_sweep_shows_both_problems_side_by_side(planted: Workspace, tmp_path: Path) -> None:
    plans = [planted.candidate(candidate(planted, rank).plan) for rank in (1, 2)]
    here = list(sweep(planted, plans, QUICK, folder=tmp_path))
    assert [found.number for found in here] == [0, 1]
    for found, given in zip(here, plans, strict=True):
        indirect = final_score(planted.measure(planted.compress(given.plan, given.correction)))
        assert found.candidate == given
        assert found.indirect == indirect
        assert found.direct.value == final_score(planted.measure(last(planted, given, QUICK).model)).value  # type: ignore[arg-type]
        assert state_path(planted, given, QUICK, tmp_path).is_file()
    assert here[0].cost.multiplies < here[1].cost.multiplies
    in_processes = sorted(sweep(planted, plans, QUICK, workers=2), key=lambda found: found.number)
    assert in_processes == here


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_can_be_cancelled(planted: Workspace, workers: int) -> None:
    with scope(cancelled=lambda: True), pytest.raises(Cancelled):
        list(sweep(planted, [candidate(planted)], QUICK, workers=workers))


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def plan_file(planted: Workspace, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(candidate(planted).plan.to_json())
    return path


@pytest.fixture
def in_process(planted: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are reloaded here, not in a fresh process, which takes seconds and has its own tests."""

    def reloaded(kind: str, ref: str, path: Path, batches: list[Any], own_seconds: float) -> list[Tensor]:
        return [run(load_checkpoint(planted.model, path).model, Dataset(inputs)) for inputs in batches]

    monkeypatch.setattr(reload, "outputs_in_fresh_process", reloaded)


def command(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.usefixtures("in_process")
def test_command(planted: Workspace, plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.bin"
    start = ("finetune", planted.opened.ref, "--plan", plan_file, "--out", out)
    result = command(*start, "--epochs", 4, "--learning-rate", 0.1, "--seeds", 2, "--watch", 50, "--json")
    found = json.loads(result.stdout)
    assert [epoch["number"] for epoch in found["epochs"]] == [0, 1, 2, 3, 4]
    assert found["epochs"][4]["score"]["samples"] == 50
    assert "epoch 4 of 4" in result.stderr
    assert [r["seed"] for r in found["runs"]] == [0, 1]
    kept = found["runs"][found["summary"]["chosen"]]
    assert found["score"] == kept["score"]
    expected = ("distill", 4, 0.1, kept["seed"], False)
    names = ("loss", "epochs", "learning_rate", "seed", "from_scratch")
    assert tuple(found["tuned"][name] for name in names) == expected
    checkpoint = load_checkpoint(planted.model, out)
    assert checkpoint.plan == candidate(planted).plan
    assert checkpoint.provenance["tuned"] == found["tuned"]
    again = json.loads(command("evaluate", planted.opened.ref, "--checkpoint", out, "--json").stdout)
    assert again["value"] == found["score"]["value"]
    other = tmp_path / "again.safetensors"
    command("export", planted.opened.ref, "--format", "safetensors", "--checkpoint", out, "--out", other)
    assert load_checkpoint(planted.model, other).provenance["tuned"] == found["tuned"]
    text = command(*start, "--epochs", 1).stdout
    assert "Before: top-1" in text
    assert "After: top-1" in text


@pytest.mark.usefixtures("in_process")
def test_command_from_scratch_with_labels(planted: Workspace, plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "scratch.safetensors"
    options = ("--from-scratch", "--no-distill", "--train", "everything", "--epochs", 1, "--seed", 3)
    found = json.loads(
        command("finetune", planted.opened.ref, "--plan", plan_file, "--out", out, *options, "--json").stdout
    )
    assert (found["before"], found["correction"]) == (None, None)
    assert (found["tuned"]["loss"], found["tuned"]["seed"]) == ("labels", 3)


def test_command_refuses(planted: Workspace, plan_file: Path, tmp_path: Path) -> None:
    out, dense = tmp_path / "out.safetensors", tmp_path / "dense.json"
    dense.write_text(RankPlan(planted.profile.fingerprint).to_json())
    start = ("finetune", planted.opened.ref, "--out", out, "--plan")
    assert "every layer dense" in command(*start, dense, status=1).stderr
    assert "leave it out" in command(*start, plan_file, "--no-distill", "--loss", "both", status=2).stderr
    assert "0 is not in the range" in command(*start, plan_file, "--epochs", 0, status=2).stderr
    assert not out.exists()


def test_without_any_labels(make: Callable[..., Workspace]) -> None:
    """The score is then agreement with the dense network."""
    workspace = make(("return data(300, 1)", "return data(300, 1)[0]"), ("def eval_data", "def evaluation_data"))
    *_, step = runs(workspace, candidate(workspace), QUICK, (0,))
    assert step.finished[0].score.metric == "agreement with the dense network"


def test_a_state_whose_name_did_not_say_what_the_network_answers_is_not_continued(tmp_path):
    """It may be another network's; the app and the commands look for the name of now, and do not find it.

    Where a person names it, it is kept under another name: factors are trained in another way since.
    """
    (old,) = (Path(__file__).parent / "golden" / "unversioned" / "cache" / "tuning").iterdir()
    state = tmp_path / "state.pt"
    state.write_bytes(old.read_bytes())
    workspace = Workspace.open("builtin:iris-mlp")
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (2,))})
    first = next(finetune(workspace, Candidate(plan), Settings(), state=state))
    assert "is of an older way of training" in first.notice
    assert state.with_name("state.pt.older-1").read_bytes() == old.read_bytes()
