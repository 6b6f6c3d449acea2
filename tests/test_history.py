"""History: undo, redo, snapshots and the way to disk and back, as pure values."""

import json
from pathlib import Path

import pytest

from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.version import versions
from lowrank_core.workspace import Workspace
from pages.ui.board import act, commit
from pages.ui.editor import edited_plan, rows
from pages.ui.history import DEPTH, History

START = RankPlan("sha256:0")


def at(rank: int) -> RankPlan:
    return START.with_choice("fc", Choice("svd", (rank,)))


def test_undo_takes_back_and_redo_gives_again():
    history = History(START).commit(at(5)).commit(at(6))
    assert history.undo().plan == at(5)
    assert history.undo().undo().plan == START
    assert history.undo().undo().undo().plan == START
    assert history.undo().redo().plan == at(6)
    assert history.undo().commit(at(9)).redo().plan == at(9)


def test_commits_of_one_gesture_are_one_step():
    history = History(START)
    for rank in (5, 6, 7):
        history = history.commit(at(rank), rev=history.rev + 1, gesture=3)
    history = history.commit(at(8), rev=history.rev + 1, gesture=4)
    assert history.undo().plan == at(7)
    assert history.undo().undo().plan == START


def test_a_gesture_that_comes_back_to_its_start_is_no_step():
    history = History(START).commit(at(5))
    for rank in (6, 5):
        history = history.commit(at(rank), rev=history.rev + 1, gesture=3)
    assert history.undo().plan == START
    history = history.commit(at(7), rev=history.rev + 1, gesture=3)
    assert history.undo().plan == at(5)


def test_ranks_sent_before_an_undo_was_seen_are_the_plan(workspace):
    """The browser numbers its ranks by what it has seen: here as the undo that came before them."""
    fingerprint = workspace.profile.fingerprint
    history = History(RankPlan(fingerprint)).commit(RankPlan.of(fingerprint, {"fc1": Choice("svd", (2,))})).undo()
    choices = {"fc1": {"method": "svd", "rank": [3]}}
    changed = commit(workspace, history, {"rev": history.rev, "gesture": 9, "choices": choices})
    assert changed.plan.get("fc1") == Choice("svd", (3,))
    assert changed.rev > history.rev


def test_ranks_sent_from_a_plan_that_another_tab_has_changed_since_change_what_was_moved(workspace):
    fingerprint = workspace.profile.fingerprint
    before = {"fc1": {"method": "svd", "rank": [3]}, "fc2": {"method": "svd", "rank": [2]}}
    history = History(RankPlan.of(fingerprint, {"fc1": Choice("svd", (1,)), "fc2": Choice("svd", (2,))}), rev=7)
    choices = {**before, "fc2": {"method": "svd", "rank": [1]}}
    changed = commit(workspace, history, {"rev": 8, "gesture": 9, "choices": choices, "before": before})
    assert changed.plan.choices == (("fc1", Choice("svd", (1,))), ("fc2", Choice("svd", (1,))))
    assert changed.rev > 8, "or the board would go on showing its own"
    same = commit(workspace, changed, {"rev": 10, "gesture": 9, "choices": before, "before": {}})
    assert (same.plan.get("fc1"), same.rev) == (Choice("svd", (3,)), 10)


def test_a_late_message_changes_nothing():
    history = History(START).commit(at(5), rev=7)
    assert history.commit(at(9), rev=7) is history
    assert history.commit(at(9), rev=3) is history
    assert history.undo().rev == 8


def test_every_change_has_a_newer_rev():
    history = History(START)
    for change in (lambda h: h.commit(at(5)), History.undo, History.redo, lambda h: h.correct(False)):
        changed = change(history)
        assert changed.rev > history.rev
        history = changed


def test_the_past_is_bounded():
    history = History(START)
    for rank in range(1, DEPTH + 50):
        history = history.commit(at(rank))
    assert len(history.past) == DEPTH


def test_snapshots_have_names_of_their_own():
    history = History(START).keep("a").commit(at(5)).keep("a").keep("")
    assert [s.name for s in history.snapshots] == ["a", "a 2", "S3"]
    assert history.restore("a").plan == START
    assert history.restore("a").undo().plan == at(5)
    assert history.restore("nothing") is history
    assert [s.name for s in history.remove("a").snapshots] == ["a 2", "S3"]


def test_a_history_survives_the_disk():
    history = History(START).commit(at(5)).keep("x").commit(at(6)).undo().lock(["fc"]).correct(False)
    read = History.from_json(history.to_json())
    assert read.to_json() == history.to_json()
    assert (read.plan, read.redo().plan, read.snapshots, read.locked, read.corrected) == (
        at(5),
        at(6),
        history.snapshots,
        ("fc",),
        False,
    )


def test_the_correction_of_a_plan_file_survives_the_disk_and_undo():
    asked = Correction("bias", 64, 3, 0.01)
    history = History(START).commit(at(5)).correct(True, asked)
    assert History.from_json(history.to_json()).correction == asked
    assert history.undo().correction == asked
    assert history.correct(True).correction is None


def test_a_history_of_before_versions_were_written_is_read():
    old = json.loads((Path(__file__).parent / "golden" / "history-0.json").read_text())
    read = History.from_json(json.dumps(old))
    assert json.loads(read.to_json()) == {**old, "versions": versions()}
    assert read.plan.get("conv") == Choice("tucker2", (3, 2))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"plan": 1}', "null"])
def test_a_damaged_file_is_an_error_of_reading(text):
    with pytest.raises((ValueError, KeyError, TypeError)):
        History.from_json(text)


@pytest.fixture(scope="module")
def workspace():
    return Workspace.open("builtin:iris-mlp")


@pytest.mark.parametrize(
    "choices",
    [
        {"nothing": {"method": "svd", "rank": [1]}},
        {"fc1": {"method": "svd", "rank": [0]}},
        {"fc1": {"method": "none", "rank": [1]}},
        {"fc1": {"method": "svd", "rank": ["x"]}},
        {"fc1": 3},
    ],
)
def test_ranks_that_do_not_fit_are_ignored(workspace, choices):
    history = History(RankPlan(workspace.profile.fingerprint))
    assert commit(workspace, history, {"rev": 1, "gesture": 0, "choices": choices}) is history


def test_an_unknown_action_changes_nothing():
    history = History(START)
    assert act(history, {"action": "explode"}) is history
    assert act(history.commit(at(2)), {"action": "undo"}).plan == START


def test_the_table_shows_and_edits_the_plan(workspace):
    plan = RankPlan(workspace.profile.fingerprint)
    plan = edited_plan(workspace, plan, {0: {"Rank": "2"}})
    assert plan.get("fc1") == Choice("svd", (2,))
    assert rows(workspace, plan).loc[0, ["Method", "Rank"]].tolist() == ["svd", "2"]
    assert edited_plan(workspace, plan, {0: {"Method": "dense"}}).choices == ()
    with pytest.raises(Exception, match="whole number"):
        edited_plan(workspace, plan, {0: {"Rank": "two"}})
