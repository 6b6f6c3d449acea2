"""What work is said to take before it starts: counted as it is then done, and told where a person should know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_core.measure.effort import Effort, Measurements, Work, effort, stairs_effort, timing_effort
from lowrank_core.measure.latency import ROUNDS
from lowrank_core.measure.ledger import Ledger
from lowrank_core.predict import sensitivity
from lowrank_core.scoring.scores import Score
from lowrank_core.selection import RULES, at_once, make, search, search_effort
from lowrank_core.selection._compact import compact, needs_tuning
from lowrank_core.selection._curves import asks
from lowrank_core.selection._problem import problem_of
from lowrank_core.training.expected import training_effort
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    """Two small layers and a few samples, to be had in a moment; more than `budget` glances at."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))
    data = torch.randn(150, 12), torch.arange(150) % 3
    return Workspace.of(network, data[0][:2], data, train_data=data)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_measures_no_more_than_it_said(name: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = make(name, {})
    wish = {"multiplies": 0.5} if "budget" in rule.serves else {"max_drop": 0.2}
    problem = problem_of(workspace, **wish)
    said = search_effort(rule, problem).measurements
    made = 0
    remembered, points = Ledger.remembered, sensitivity.measured

    def counted(self: Ledger, key: str, measure: Callable[[], Any]) -> Any:
        def once() -> Any:
            nonlocal made
            made += 1
            return measure()

        return remembered(self, key, once)

    def counted_points(*args: Any, **more: Any) -> Iterator[Any]:
        nonlocal made
        for point in points(*args, **more):
            made += 1
            yield point

    monkeypatch.setattr(Ledger, "remembered", counted)
    monkeypatch.setattr(sensitivity, "measured", counted_points)
    list(search(rule, problem))
    assert made <= said
    closed = tuple(rule.measurements(replace(problem, methods=rule.methods))) == ()
    assert closed == (made <= 1)


def test_points_that_are_kept_are_not_counted_again(workspace: Workspace, tmp_path: Path) -> None:
    rule, problem = make("budget", {}), problem_of(workspace, multiplies=0.5, folder=tmp_path)
    before = search_effort(rule, problem).measurements
    list(search(rule, problem))
    points = len(asks(replace(problem, methods=rule.methods)))
    assert (before - search_effort(rule, problem).measurements) in (points, 2 * points)


def test_seconds_follow_from_what_is_counted(workspace: Workspace) -> None:
    once = effort(workspace, Work((Measurements(1, 100),), corrected=False)).seconds
    ten = effort(workspace, Work((Measurements(10, 100),), corrected=False)).seconds
    assert ten == pytest.approx(10 * once)
    whole, last = (
        effort(workspace, Work((Measurements(10, 10**7, *alone),), corrected=False)).seconds
        for alone in (("", ""), ("2", "svd"))
    )
    assert whole > last > ten


def test_a_network_that_scores_itself_is_timed_by_its_own_score(workspace: Workspace) -> None:
    own = Workspace.of(workspace.model, torch.zeros(2, 12), train_data=torch.randn(40, 12), evaluate=lambda _: 1.0)
    own.__dict__["own_score_seconds"] = 7.0
    assert effort(own, Work((Measurements(3, 0),), corrected=False)).seconds == pytest.approx(21, abs=1)
    assert search_effort(make("uniform", {}), problem_of(own, multiplies=0.5)).seconds == pytest.approx(7, abs=2)


def test_timing_takes_longer_for_more_networks_for_a_runtime_that_reads_files_and_for_slow_ones(
    workspace: Workspace,
) -> None:
    one, two = (timing_effort(workspace, count, exported=False).seconds for count in (1, 2))
    assert 0 < one < two < timing_effort(workspace, 2, exported=True).seconds
    layers = [(layer, "svd") for layer in workspace.profile.layers]
    assert stairs_effort(workspace, layers[:1]).seconds < stairs_effort(workspace, layers).seconds
    workspace.__dict__["sample_seconds"] = 1.0
    assert timing_effort(workspace, 1, exported=False).seconds > 2 * ROUNDS * len(workspace.opened.example_inputs)
    del workspace.__dict__["sample_seconds"]


def test_a_training_counts_its_epochs_and_runs(workspace: Workspace) -> None:
    short, long = (training_effort(workspace, Settings(epochs=n), 1).seconds for n in (1, 1000))
    assert long > 10 * short
    assert training_effort(workspace, Settings(epochs=1000), 3).seconds > 2 * long


def test_a_quick_rule_is_offered_only_where_it_can_answer(workspace: Workspace) -> None:
    problem = problem_of(workspace, multiplies=0.5)
    assert at_once(make("budget", {}), problem) is RULES["balf"]
    assert at_once(make("balf", {}), problem) is None
    assert at_once(make("budget", {}), problem_of(workspace, max_drop=0.2)) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "about 1 s"), (75, "about 1 min 15 s"), (1716, "about 29 min"), (7300, "about 2 h 2 min")],
)
def test_effort_reads_as_people_say_it(seconds: float, text: str) -> None:
    assert Effort(3, seconds).text == f"3 measurements, {text}"
    assert Effort(0, seconds).text == text


def test_compact_is_a_network_between_depthwise_convolutions() -> None:
    def block(inputs: int, outputs: int, groups: int) -> nn.Module:
        wide = 4 * inputs
        return nn.Sequential(
            nn.Conv2d(inputs, wide, 1), nn.Conv2d(wide, wide, 3, padding=1, groups=groups), nn.Conv2d(wide, outputs, 1)
        )

    image = torch.randn(2, 8, 8, 8)
    built_small, usual = (Workspace.of(block(8, 8, groups), image, image) for groups in (32, 1))
    assert compact(built_small.profile)
    assert not compact(usual.profile)


@pytest.mark.parametrize(("low", "expected"), [(0.05, True), (0.01, False), (None, False)])
def test_tuning_is_advised_where_a_loss_is_shown(low: float | None, expected: bool) -> None:
    score = Score("top-1 accuracy", 0.8, 0.9, 500, True, 0.76, 0.84, 0.1, low, 0.15)
    assert needs_tuning(score) is expected
