"""A measurement: grows, ends, is remembered, can be called off, and says what went wrong."""

from dataclasses import replace

import pytest
import torch

from lowrank_core.measure.measurement import Measurement, Progress
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:digits-cnn")


def plan(workspace: Workspace, rank: int) -> RankPlan:
    return RankPlan(workspace.profile.fingerprint).with_choice("fc1", Choice("svd", (rank,)))


def all_progress(measurement: Measurement) -> list[Progress]:
    seen = [measurement.progress]
    while not seen[-1].over:
        seen.append(measurement.changed(seen[-1], seconds=10))
    return seen


def test_it_corrects_then_grows_then_says_what_correction_gave(workspace: Workspace) -> None:
    measurement = Measurement(workspace, workspace.candidate(plan(workspace, 6)))
    seen = all_progress(measurement)
    last = seen[-1]
    assert last.done
    assert last.score.samples == len(workspace.reference)
    assert last.plain.samples <= 1024
    assert last.score.value > last.plain.value
    counts = [p.score.samples for p in seen if p.score]
    assert counts == sorted(counts)
    *_, again = workspace.measure(workspace.compress(plan(workspace, 6), workspace.correction))
    assert again == last.score


def test_what_was_measured_is_known_at_once(workspace: Workspace) -> None:
    candidate = workspace.candidate(plan(workspace, 7))
    first = Measurement(workspace, candidate).wait().score
    second = Measurement(workspace, candidate)
    assert second.progress.done
    assert second.progress.score == first


def test_with_and_without_correction_are_different_candidates(workspace: Workspace) -> None:
    corrected = Measurement(workspace, workspace.candidate(plan(workspace, 5))).wait().score
    plain = Measurement(workspace, workspace.candidate(plan(workspace, 5), corrected=False)).wait().score
    assert corrected != plain


def test_called_off_it_is_not_remembered(workspace: Workspace) -> None:
    candidate = workspace.candidate(plan(workspace, 11))
    measurement = Measurement(workspace, candidate)
    measurement.cancel()
    assert measurement.wait().done
    assert candidate not in workspace.scores


def test_one_that_stopped_early_is_not_taken_for_a_whole_one(workspace: Workspace) -> None:
    candidate = workspace.candidate(plan(workspace, 40))
    score = Measurement(workspace, candidate, tolerance=0.2).wait().score
    assert score.within is True
    assert score.samples < len(workspace.reference)
    assert candidate not in workspace.scores


def test_a_model_that_fails_is_said_in_one_line() -> None:
    workspace = Workspace.open("builtin:iris-mlp")
    workspace.opened = replace(workspace.opened, evaluate=lambda model: 1 / 0)
    progress = Measurement(workspace, workspace.candidate(RankPlan(workspace.profile.fingerprint))).wait()
    assert "ZeroDivisionError" in progress.error
    assert "\n" not in progress.error


def test_a_thread_that_nobody_expected_to_fail_does_not_hang(workspace: Workspace, monkeypatch) -> None:
    monkeypatch.setattr(workspace, "compress", lambda *_: torch.zeros(1).unknown)
    progress = Measurement(workspace, workspace.candidate(plan(workspace, 13), corrected=False)).wait()
    assert "AttributeError" in progress.error
