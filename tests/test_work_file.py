"""The work as one file: what is saved is opened elsewhere, only for its network, and nothing that was there is lost."""

import json
from dataclasses import replace

import pytest

from lowrank_core.errors import InvalidFile
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace
from pages.ui.goals import Goals
from pages.ui.history import History
from pages.ui.work_file import every_plan, is_work, read_work, says, taken_in, work_file

PROFILE = Workspace.open("builtin:iris-mlp").profile
FINGERPRINT = PROFILE.fingerprint


def plan(**layers: int) -> RankPlan:
    return RankPlan.of(FINGERPRINT, {name: Choice("svd", (rank,)) for name, rank in layers.items()})


HISTORY = (
    History(plan())
    .commit(plan(fc1=2))
    .keep("light", "for the meeting | <b>")
    .commit(plan(fc1=3, fc2=2))
    .undo()
    .lock(["fc2"])
    .aim(Goals(number="int8", floor=0.9))
)
SCORE = Score("top-1 accuracy", 0.95, 0.97, 50, True, 0.9, 0.99, 0.02, -0.01, 0.05)
FILE = work_file("iris-mlp", HISTORY, [("key", SCORE)], "under")


def test_what_is_saved_is_read_to_the_last_member():
    work = read_work(FILE, PROFILE, "iris-mlp")
    assert work.history == HISTORY
    assert (work.scores, work.under, work.left_out) == ((("key", SCORE),), "under", ())
    assert is_work(FILE)
    assert work_file("iris-mlp", HISTORY, [("key", SCORE)], "under") == FILE


def test_nothing_else_is_in_it():
    document = json.loads(FILE.split(b"\n", 1)[1])
    assert set(document) == {"model", "history", "under", "scores"}
    assert set(document["model"]) == {"name", "fingerprint"}


def test_another_networks_work_is_refused_with_both_names():
    other = Workspace.open("builtin:digits-cnn")
    with pytest.raises(InvalidFile, match=r"the work on iris-mlp .*and the network here is digits-cnn") as refused:
        read_work(FILE, other.profile, "digits-cnn")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        b'{"kind": "work", ',
        FILE[:-20],
        FILE.replace(b"light", b"lighx"),
        FILE.replace(b'"version": 1', b'"version": 2'),
        FILE.replace(b'"kind": "work"', b'"kind": "history"'),
        b"[1, 2]",
        b"",
    ],
)
def test_what_is_not_as_written_is_refused_in_one_line(content):
    with pytest.raises(InvalidFile) as refused:
        read_work(content, PROFILE, "iris-mlp")
    assert "\n" not in str(refused.value)


def test_an_empty_place_goes_on_as_the_other_was_left():
    assert taken_in(None, HISTORY) == HISTORY


def test_where_there_are_plans_already_none_is_lost():
    mine = History(plan(fc1=4)).commit(plan(fc2=1)).keep("light").commit(plan(fc1=1))
    both = taken_in(mine, HISTORY)
    assert both.plan == HISTORY.plan
    assert both.undo().plan == mine.plan
    assert [one.name for one in both.snapshots] == ["light", "light 2"]
    assert both.snapshots[1].note == HISTORY.snapshots[0].note
    assert {*every_plan(mine), *every_plan(HISTORY)} <= set(every_plan(both))
    assert (both.goals, both.locked) == (HISTORY.goals, HISTORY.locked)
    assert both.rev > max(mine.rev, HISTORY.rev)
    assert taken_in(both, HISTORY).snapshots == both.snapshots


def test_what_is_said_tells_what_does_not_hold_here():
    work = read_work(FILE, PROFILE, "iris-mlp")
    assert "1 snapshot;" in says(work, scores=True)
    assert "measured anew" in says(work, scores=False)
    assert "2 locks" in says(replace(work, left_out=("2 locks",)), scores=True)
