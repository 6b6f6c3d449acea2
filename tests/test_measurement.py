"""A measurement: grows, ends, is remembered, can be cancelled, and says what went wrong."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from lowrank_core.measure.measurement import Figure, figures, is_final, is_settled, measurement
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import scope
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:digits-cnn")


def plan(workspace: Workspace, rank: int) -> RankPlan:
    return RankPlan(workspace.profile.fingerprint).with_choice("fc1", Choice("svd", (rank,)))


def test_it_corrects_then_grows_then_says_what_correction_gave(workspace: Workspace) -> None:
    candidate = workspace.candidate(plan(workspace, 6))
    heard: list[Progress] = []
    with scope(report=heard.append):
        seen = list(figures(workspace, candidate))
    assert [progress.words for progress in heard] == ["correcting layer 1 of 1", "correcting layer 1 of 1", "measuring"]
    last = seen[-1]
    assert [figure.final for figure in seen[-2:]] == [True, True]
    assert not any(figure.final for figure in seen[:-2])
    assert seen[-2] == replace(last, plain=None)
    assert last.score.samples == len(workspace.reference)
    assert last.plain.samples <= 1024
    assert last.score.value > last.plain.value
    counts = [figure.score.samples for figure in seen]
    assert counts == sorted(counts)
    *_, again = workspace.measure(workspace.compress(plan(workspace, 6), workspace.thorough))
    assert again == last.score


def test_what_was_measured_is_known_at_once(workspace: Workspace) -> None:
    candidate = workspace.candidate(plan(workspace, 7))
    first = measurement(workspace, candidate).wait().found[-1]
    second = measurement(workspace, candidate)
    assert second.snapshot.over, "without a thread"
    assert second.snapshot.found == (first,)
    assert first.final
    assert first.plain is not None


def test_the_final_score_is_there_before_the_one_without_correction(workspace: Workspace, monkeypatch) -> None:
    candidate, go, compress = workspace.candidate(plan(workspace, 8)), threading.Event(), workspace.compress

    def held(wanted: RankPlan, correction: Correction | None = None, **each) -> nn.Module:
        if correction is None:
            go.wait()
        return compress(wanted, correction, **each)

    monkeypatch.setattr(workspace, "compress", held)
    job = measurement(workspace, candidate)
    known = job.wait(until=is_final)
    assert not known.over
    assert known.found[-1] == Figure(workspace.scores[candidate], final=True)
    go.set()
    assert job.wait().found[-1].plain is not None


def test_with_and_without_correction_are_different_candidates(workspace: Workspace) -> None:
    corrected = measurement(workspace, workspace.candidate(plan(workspace, 5))).wait().found[-1].score
    plain = measurement(workspace, workspace.candidate(plan(workspace, 5), corrected=False)).wait().found[-1].score
    assert corrected != plain


def test_the_quick_correction_comes_first_where_somebody_waits_and_the_own_one_ends_it(
    workspace: Workspace, monkeypatch
) -> None:
    monkeypatch.setattr("lowrank_core.measure.measurement.PAUSE_SECONDS", 0.0)
    candidate = workspace.candidate(plan(workspace, 9))
    seen = [*figures(workspace, candidate, quick_first=True)]
    quick = [figure for figure in seen if figure.quick]
    assert seen == [*quick, *[figure for figure in seen if not figure.quick]]
    assert quick[-1].settled
    assert not any(figure.final for figure in quick)
    assert quick[-1].score == workspace.scores[candidate.quick]
    assert seen[-1].final
    assert (seen[-1].score, seen[-1].plain) == (workspace.scores[candidate], quick[-1].plain)
    assert seen[-1].score != quick[-1].score


def test_the_quick_correction_takes_no_more_samples_than_usual(workspace: Workspace) -> None:
    usual = workspace.candidate(plan(workspace, 9))
    more = replace(usual, correction=workspace.correction_in(replace(workspace.thorough, samples=300)))
    assert more.correction is not None
    assert more.correction.samples == 300
    assert workspace.quick(more) == workspace.quick(usual) == usual.quick


def test_who_moves_on_before_the_thorough_correction_is_not_kept_waiting(workspace: Workspace, monkeypatch) -> None:
    monkeypatch.setattr("lowrank_core.measure.measurement.PAUSE_SECONDS", 1e6)
    candidate = workspace.candidate(plan(workspace, 12))
    job = measurement(workspace, candidate, quick_first=True)
    job.wait(until=lambda known: is_settled(known) and known.found[-1].plain is not None)
    job.cancel()
    end = job.wait()
    assert end.cancelled
    assert candidate not in workspace.scores
    assert candidate.quick in workspace.scores


def test_cancelled_it_keeps_what_it_found_and_is_not_remembered(workspace: Workspace, monkeypatch) -> None:
    candidate, go, measure = workspace.candidate(plan(workspace, 11)), threading.Event(), workspace.measure

    def held(*given, **options) -> Iterator[Score]:
        for score in measure(*given, **options):
            yield score
            go.wait()

    monkeypatch.setattr(workspace, "measure", held)
    job = measurement(workspace, candidate)
    (first,) = job.wait(until=lambda known: bool(known.found)).found
    job.cancel()
    go.set()
    end = job.wait()
    assert (end.found, end.cancelled, end.error) == ((first,), True, None)
    assert is_final(end)
    assert candidate not in workspace.scores


def test_the_score_without_correction_comes_also_where_an_earlier_measurement_was_cancelled_before_it(
    workspace: Workspace,
) -> None:
    candidate = workspace.candidate(plan(workspace, 17))
    whole = measurement(workspace, candidate).wait().found[-1]
    other = Workspace.open("builtin:digits-cnn")
    other.scores[candidate] = whole.score  # all that was remembered of it
    assert measurement(other, candidate).wait().found[-1] == whole


def test_one_that_stopped_early_is_not_taken_for_a_whole_one(workspace: Workspace) -> None:
    candidate = workspace.candidate(plan(workspace, 40))
    score = measurement(workspace, candidate, tolerance=0.2).wait().found[-1].score
    assert score.within is True
    assert score.samples < len(workspace.reference)
    assert candidate not in workspace.scores


def test_a_model_that_fails_is_said_in_one_line() -> None:
    workspace = Workspace.open("builtin:iris-mlp")
    workspace.opened = replace(workspace.opened, evaluate=lambda model: 1 / 0)
    end = measurement(workspace, workspace.candidate(RankPlan(workspace.profile.fingerprint))).wait()
    assert "ZeroDivisionError" in end.error
    assert "\n" not in end.error


def test_a_thread_that_nobody_expected_to_fail_does_not_hang(workspace: Workspace, monkeypatch) -> None:
    monkeypatch.setattr(workspace, "compress", lambda *_, **__: torch.zeros(1).unknown)
    end = measurement(workspace, workspace.candidate(plan(workspace, 13), corrected=False)).wait()
    assert end.error.startswith("the measurement failed: AttributeError: ")
