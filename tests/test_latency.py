"""Latency: planted times on a clock of our own, staircases kept on disk."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from lowrank_core.commands import cli
from lowrank_core.errors import Cancelled, InvalidModel
from lowrank_core.layers.spec import chain_multiplies
from lowrank_core.measure import latency
from lowrank_core.measure import staircases as staircase
from lowrank_core.measure.latency import LatencyTable, Timing, network_latency, race, session, timed
from lowrank_core.measure.staircases import (
    Rung,
    Setting,
    Staircase,
    StairFile,
    as_table,
    calls_of,
    chain_work,
    known_staircases,
    staircases,
)
from lowrank_core.methods import METHODS
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running import scope as scopes
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import scope, somebody_waits
from lowrank_core.workspace import Workspace
from tests.awkward_layers import AWKWARD

pytestmark = pytest.mark.usefixtures("one_thread")


class Clock:
    """CPU time that passes only where a test says so; reading it costs `tick`."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def work(self, *seconds: float):
        """Work that takes these times in turn."""
        times = itertools.cycle(seconds)

        def run() -> None:
            self.now += next(times)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(latency.time, "thread_time", found)
    return found


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:iris-mlp")


def test_a_race_gives_the_ratio_of_each_variant_to_dense(clock: Clock) -> None:
    half, twice = race(clock.work(0.004), [clock.work(0.002), clock.work(0.008)], rounds=5)
    assert (half.ratio, half.iqr, half.unstable) == (pytest.approx(0.5), pytest.approx(0), False)
    assert (half.dense_us, half.compressed_us) == (pytest.approx(4000), pytest.approx(2000))
    assert twice.ratio == pytest.approx(2)


def test_short_work_is_timed_several_times_at_once(clock: Clock) -> None:
    clock.tick = 1e-5  # ten times the work: one run alone would measure the clock
    (found,) = race(clock.work(1e-6), [clock.work(3e-6)], rounds=5)
    assert found.compressed_us < 5


def test_a_machine_that_is_slower_in_some_rounds_cancels_out(clock: Clock) -> None:
    turns = itertools.count()
    slow = {"now": 1.0}

    def before_each_turn() -> bool:
        slow["now"] = 1.0 + next(turns) // 2 % 3  # two turns a round
        return False

    def work(seconds: float):
        return lambda: setattr(clock, "now", clock.now + seconds * slow["now"])

    with scope(cancelled=before_each_turn):
        (found,) = race(work(0.004), [work(0.002)], rounds=9)
    assert found.ratio == pytest.approx(0.5)
    assert found.iqr == pytest.approx(0)
    assert found.dense_us == pytest.approx(8000)


def test_every_other_round_runs_backwards(clock: Clock) -> None:
    """So that what changes in the course of a round, as a processor that heats up, favours nobody."""
    turns: list[set[str]] = []

    def work(name: str):
        def run() -> None:
            clock.now += 0.01
            for turn in turns[-1:]:  # none before the first: then it warms up
                turn.add(name)

        return run

    def before_each_turn() -> bool:
        turns.append(set())
        return False

    with scope(cancelled=before_each_turn):
        race(work("dense"), [work("a"), work("b")], rounds=4)
    there, back = [{"dense"}, {"a"}, {"b"}], [{"b"}, {"a"}, {"dense"}]
    assert turns == [*there, *back, *there, *back]


def wild(clock: Clock, until: float) -> tuple[Timing, ...]:
    """A race against work that takes ten times as long in every other round, up to some turn."""
    turns, factor = itertools.count(), {"now": 1.0}

    def before_each_turn() -> bool:
        turn = next(turns)
        factor["now"] = 10.0 if turn < until and turn // 2 % 2 else 1.0
        return False

    other = lambda: setattr(clock, "now", clock.now + 0.002 * factor["now"])  # noqa: E731
    with scope(cancelled=before_each_turn):
        return race(clock.work(0.004), [other], rounds=9)


def test_rounds_that_disagree_are_unstable_and_no_number(clock: Clock) -> None:
    (found,) = wild(clock, until=float("inf"))
    assert found.unstable
    assert timed(found)["ratio"] is None
    assert timed(found)["unstable"]
    assert timed(Timing(2.0, 1.0, 0.5, 0.01, 9))["ratio"] == 0.5


def test_what_is_unstable_races_again(clock: Clock) -> None:
    (found,) = wild(clock, until=18)
    assert not found.unstable
    assert found.ratio == pytest.approx(0.5)


@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_put_back(clock: Clock, fails: bool) -> None:
    seen = []

    def work() -> None:
        seen.append(torch.get_num_threads())
        clock.now += 0.01
        if fails:
            raise ValueError

    torch.set_num_threads(2)
    try:
        race(work, [work], rounds=2)
    except ValueError:
        assert fails
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_a_race_can_be_cancelled(clock: Clock) -> None:
    with scope(cancelled=lambda: True), pytest.raises(Cancelled):
        race(clock.work(0.01), [clock.work(0.01)])


def test_a_race_never_gives_way_for_others_wait_for_its_turn(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "time", None)  # no pause without it
    with somebody_waits(), scope(patience_seconds=3600.0):
        assert race(clock.work(0.01), [clock.work(0.01)], rounds=3)


@pytest.mark.parametrize("runtime", latency.RUNTIMES)
def test_networks_are_timed_by_both_runtimes(workspace: Workspace, runtime: str, monkeypatch) -> None:
    monkeypatch.setattr(latency.time, "thread_time", Clock(tick=0.01))
    (found,) = network_latency(
        workspace.model, [workspace.model], workspace.opened.example_inputs, runtime=runtime, rounds=3
    )
    assert found.ratio == pytest.approx(1)


def test_what_onnxruntime_cannot_open_is_one_clear_error() -> None:
    with pytest.raises(InvalidModel, match="onnxruntime cannot run"):
        session(b"no model", [], 1)


# ---- staircases -----------------------------------------------------------------------------------------------------


def test_a_layer_that_onnxruntime_cannot_run_is_left_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(latency.time, "thread_time", Clock(tick=0.01))
    (up,) = (layer for layer in AWKWARD if layer.name == "up-dilated")  # output_padding beyond the stride
    heard: list[Progress] = []
    layer = replace(up.layer, itemsize=4)
    with scope(report=heard.append):
        assert list(staircases([layer], Setting())) == []
    assert "is left out" in heard[-1].words
    assert list(staircases([layer], Setting("torch"), methods=["svd"]))


def stairs(*steps: tuple[tuple[int, ...], float, float]) -> Staircase:
    return Staircase("fc", "svd", 100.0, tuple(Rung(*step) for step in steps))


@pytest.mark.parametrize(
    ("found", "even", "dominated"),
    [
        (stairs(((8,), 0.5, 0.0), ((16,), 1.5, 0.0)), (11,), ()),
        (stairs(((8,), 0.5, 0.0), ((16,), 0.9, 0.0)), (16,), ()),
        (stairs(((8,), 1.2, 0.0), ((16,), 1.5, 0.0)), (0,), ()),
        (stairs(((8,), 0.5, 0.0), ((16,), 0.9, 0.3)), None, ()),
        (stairs(((4,), 0.8, 0.0), ((8,), 0.5, 0.0), ((16,), 0.9, 0.3)), (8,), ((4,),)),
        (stairs(((4,), 0.54, 0.0), ((8,), 0.5, 0.0)), (8,), ()),
        (stairs(((4,), 0.58, 0.1), ((8,), 0.5, 0.1)), (8,), ()),
        (stairs(((4, 2), 0.9, 0.0), ((8, 1), 0.5, 0.0), ((8, 4), 0.6, 0.0)), (8, 4), ((4, 2),)),
    ],
)
def test_break_even_and_dominated_ranks(found: Staircase, even: tuple[int, ...] | None, dominated) -> None:
    assert found.break_even == even
    assert found.dominated == dominated


def test_ranks_are_ten_at_most_and_every_other_one_is_aligned() -> None:
    layers = Workspace.open("builtin:fft-mlp").profile.layers
    found = staircase.ranks(layers[0], "svd")
    assert found[-1] == (126,)
    assert len(found) <= 10
    assert sum(rank % 16 == 0 for (rank,) in found) >= 4
    assert any(rank % 16 for (rank,) in found)


def test_staircases_are_measured_once_and_alike_methods_share(
    workspace: Workspace, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(latency.time, "thread_time", Clock(tick=0.01))
    heard: list[Progress] = []
    layers, setting = workspace.profile.layers, Setting("torch")
    with scope(report=heard.append):
        found = list(staircases(layers, setting, folder=tmp_path))
    usual = {(layer.name, m.name) for layer in layers for m in layer.methods if not m.reference}
    assert {(s.layer, s.method) for s in found} == usual
    assert len(heard) == len(layers)  # the data-aware factors have the same shapes
    assert all(rung.ratio == pytest.approx(1) for s in found for rung in s.rungs)
    monkeypatch.setattr(staircase, "race", None)
    assert list(staircases(layers, setting, folder=tmp_path)) == found
    assert set(known_staircases(layers, setting, tmp_path)) == set(found)
    assert known_staircases(layers, Setting("torch", batch=7), tmp_path) == ()
    for path in tmp_path.iterdir():
        path.write_text("{")
    assert known_staircases(layers, setting, tmp_path) == ()


def test_unstable_ranks_are_no_rows_of_a_table() -> None:
    found = as_table([stairs(((8,), 0.5, 0.0), ((16,), 0.9, 0.3))])
    assert found("fc", None) == 100.0
    assert found("fc", Choice("svd", (8,))) == 50.0
    assert found("fc", Choice("svd", (16,))) is None
    assert LatencyTable.from_csv(found.to_csv()).steps == found.steps


# ---- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments])


def test_the_command_gives_ratios_and_a_table_for_searches(workspace: Workspace, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(latency.time, "thread_time", Clock(tick=0.01))
    plan, table, out = tmp_path / "plan.json", tmp_path / "table.csv", tmp_path / "found.json"
    plan.write_text(RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (2,))}).to_json())
    asked = ["builtin:iris-mlp", "--plan", str(plan), "--runtime", "torch", "--json"]
    found = json.loads(command("latency", *asked, "--table", str(table)).stdout)
    assert {"dense_us", "compressed_us", "ratio", "iqr", "unstable"} <= set(found)
    assert found["ratio"] == pytest.approx(1)
    assert [layer["name"] for layer in found["layers"]] == ["fc1"]
    written = LatencyTable.from_csv(table.read_text())
    assert (written.layers, written.fingerprint) == ({"fc1", "fc2"}, workspace.profile.fingerprint)
    search = ["search", "builtin:iris-mlp", "--microseconds", "1", "--latency-table", str(table), "--out", str(out)]
    assert command(*search, "--samples", "20", "--rule", "uniform").exit_code == 0, command(*search).output


def test_the_command_shows_no_number_where_rounds_disagree(workspace: Workspace, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "lowrank_core.commands.latency.network_latency", lambda *given, **named: (Timing(10.0, 5.0, 0.5, 0.3, 11),)
    )
    plan = tmp_path / "plan.json"
    plan.write_text(RankPlan(workspace.profile.fingerprint).to_json())
    asked = ["latency", "builtin:iris-mlp", "--plan", str(plan)]
    assert "unstable" in command(*asked).stdout
    assert "0.500" not in command(*asked).stdout
    found = json.loads(command(*asked, "--json").stdout)
    assert (found["ratio"], found["unstable"], found["iqr"]) == (None, True, 0.3)


def test_the_command_needs_something_to_time() -> None:
    assert command("latency", "builtin:iris-mlp").exit_code == 2


class Tied(nn.Module):
    """A table, a head that shares its weight, and a function that is given it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 30)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        return self.head(x[:, 0]) + nn.functional.linear(x.mean(1), self.table.weight)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_all_that_is_computed_with_a_shared_weight_is_timed(runtime: str, tmp_path: Path) -> None:
    """Looked up, multiplied with by the head, and by a function; a table that is looked up alone has another file."""
    tokens, setting = torch.arange(20).reshape(4, 5), Setting(runtime)
    layers = [Workspace.of(net, tokens, tokens).profile.layers[0] for net in (Tied(), nn.Embedding(30, 8))]
    stages = METHODS["svd"].stages(layers[0].spec, (3,))
    done = calls_of(stages, layers[0], setting)
    assert sum(done.values()) == 3
    products = [(chain, size) for chain, size, _ in done if not chain[0].table]
    assert {chain_multiplies(chain, size) for chain, size in products} == {3 * (30 + 8)}
    chain_work(stages, layers[0], setting)()
    assert StairFile(tmp_path, layers[0], setting).path != StairFile(tmp_path, layers[1], setting).path
    assert len(calls_of(stages, layers[1], setting)) == 1
