"""Steps, branches and snapshots of a history: whatever is done, every plan that was made can be gone to again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace
from pages.ui import steps
from pages.ui.board import act
from pages.ui.history import (
    DEPTH,
    MOST_BRANCHED,
    MOST_REMOVED,
    NAME_LETTERS,
    NOTE_LETTERS,
    Branch,
    History,
    name_of,
    read_history,
)
from pages.ui.history_file import load, look
from pages.ui.merging import merge

START = RankPlan("sha256:0")
GOLDEN = Path(__file__).parent / "golden" / "history-2.json"


def at(rank: int) -> RankPlan:
    return START.with_choice("fc", Choice("svd", (rank,)))


def through(history: History, *ranks: int) -> History:
    for rank in ranks:
        history = history.commit(at(rank))
    return history


def undone(history: History, times: int) -> History:
    for _ in range(times):
        history = history.undo()
    return history


def test_what_undo_has_left_is_a_branch_and_a_click_goes_over_to_it():
    history = through(undone(through(History(START), 1, 2, 3), 2), 4)
    assert history.line == (START, at(1), at(4))
    assert history.branches == (Branch(at(1), (at(2), at(3))),)
    there = history.go(name_of(at(2)))
    assert (there.line, there.plan) == ((START, at(1), at(2), at(3)), at(2))
    assert there.branches == (Branch(at(1), (at(4),)),)
    assert there.rev > history.rev, "or the board would not take it"
    assert (there.undo().plan, there.redo().plan) == (at(1), at(3))
    assert there.go(name_of(at(4))).line == history.line


def test_a_click_along_the_line_is_undo_and_redo():
    history = through(History(START), 1, 2, 1)
    first = history.go(name_of(at(1)), 1)
    assert (first.past, first.future) == ((START,), (at(2), at(1)))
    assert first.go(name_of(at(1)), 3).plan == at(1)
    assert first.go(name_of(at(1)), 3).future == ()
    assert first.go(name_of(at(2)), 99).past == (START, at(1)), "a place that is none: the nearest"
    assert history.go("nothing") is history


def test_a_plan_that_is_on_the_line_and_on_a_branch_is_gone_to_where_it_was_clicked():
    history = through(undone(through(History(START), 1, 2, 1), 2), 3)
    assert history.go(name_of(at(1))).line == history.line
    there = history.go(name_of(at(1)), -1, name_of(at(1)))
    assert (there.line, len(there.past)) == ((START, at(1), at(2), at(1)), 3)


def test_a_branch_of_a_branch_is_gone_to_through_it():
    history = through(undone(through(History(START), 1, 2, 3), 1), 4)
    history = through(undone(history, 3), 5)
    assert {branch.parent for branch in history.branches} == {at(2), START}
    assert history.go(name_of(at(3))).line == (START, at(1), at(2), at(3))


def test_a_branch_whose_place_is_forgotten_is_gone_to_by_a_step():
    history = through(undone(through(History(START), 1, 2), 1), *range(3, DEPTH + 10))
    there = history.go(name_of(at(2)))
    assert there.past[-2:] == (at(DEPTH + 9), at(1))
    assert there.plan == at(2)


MOVES = st.lists(st.one_of(st.integers(1, 5), st.sampled_from(["undo", "redo"]), st.integers(10, 40)), max_size=25)


@settings(max_examples=100, deadline=None)
@given(MOVES)
def test_whatever_is_done_every_plan_that_was_made_is_there(moves):
    history, made = History(START), {START}
    for move in moves:
        if move == "undo":
            history = history.undo()
        elif move == "redo":
            history = history.redo()
        elif move < 10:
            history = history.commit(at(move))
            made.add(at(move))
        else:
            plans = sorted(made, key=name_of)
            wanted = plans[move % len(plans)]
            history = history.go(name_of(wanted))
            assert history.plan == wanted
        kept = {*history.line, *(plan for branch in history.branches for plan in branch.steps)}
        assert made <= kept
    assert read_history(history.to_json()).left_out == ()
    assert History.from_json(history.to_json()) == history


def test_branches_are_bounded_and_the_oldest_goes_first():
    history = History(START)
    for number in range(1, MOST_BRANCHED + 50):
        history = through(history, number).undo()
    assert sum(len(branch.steps) for branch in history.branches) == MOST_BRANCHED
    assert history.branches[-1].steps == (at(MOST_BRANCHED + 48),)


def test_a_snapshot_has_a_note_a_date_another_name_and_comes_back():
    history = History(START).keep("a", "first\n note").commit(at(1)).keep("b")
    first = history.snapshots[0]
    assert first.note == "first note"
    assert first.seconds is not None
    assert first.seconds > 1_700_000_000
    described = history.describe("a", "b", "<b>" + "x" * 500)
    assert [one.name for one in described.snapshots] == ["b 2", "b"]
    assert (described.snapshots[0].plan, len(described.snapshots[0].note)) == (START, NOTE_LETTERS)
    assert history.describe("a", "  ", "").snapshots[0].name == "a"
    removed = history.remove("a")
    assert [one.name for one in removed.removed] == ["a"]
    again = History.from_json(removed.to_json()).bring_back("a")
    assert (again.snapshots[1], again.snapshots[1].seconds, again.removed) == (first, first.seconds, ())
    assert removed.keep("a").bring_back("a").snapshots[-1].name == "a 2"
    assert history.bring_back("nothing") is history
    for number in range(MOST_REMOVED + 5):
        history = history.keep(f"n{number}").remove(f"n{number}")
    assert len(history.removed) == MOST_REMOVED


def test_a_plan_is_kept_once():
    history = act(History(START), {"action": "snapshot", "name": "a"})
    assert act(history, {"action": "snapshot", "name": "b"}) is history
    assert history.holding(START) == "a"
    moved = history.commit(at(1))
    assert len(act(moved, {"action": "snapshot", "name": "b"}).snapshots) == 2


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"action": "go", "plan": 3, "at": "x"}, START),
        ({"action": "go"}, START),
        ({"action": "describe", "name": "nothing"}, START),
        ({"action": "bring back"}, START),
        ({"action": "go", "plan": name_of(at(2)), "at": 10**9}, at(2)),
    ],
    ids=range(5),
)
def test_a_message_that_fits_nothing_changes_nothing(message, expected):
    history = undone(through(History(START), 1, 2), 2)
    assert act(history, message).plan == expected


def test_each_step_says_when_it_was_made_and_what_changed():
    history = replace(
        through(History(START), 1, 2, 1),
        made=((name_of(at(1)), 10), (name_of(at(2)), 20), (name_of(at(1)), 30)),
    )
    assert [(step.what, step.seconds) for step in steps.steps(history)] == [
        ("start", None),
        ("fc: dense → SVD 1", 10),
        ("fc: 1 → 2", 20),
        ("fc: 2 → 1", 30),
    ]
    branched = through(undone(history, 2), 5)
    (branch,) = steps.branches(branched)
    assert (branch.place, [step.what for step in branch.steps]) == (1, ["fc: 1 → 2", "fc: 2 → 1"])


def test_the_file_of_this_version_opens_as_it_was_left():
    """It was written by `History.to_json` and `sealed`, with times of its own."""
    profile = Workspace.open("builtin:iris-mlp").profile
    found = look(GOLDEN, profile)
    assert found.said == ""
    assert found.kept is not None
    history, plan = found.kept.history, RankPlan(profile.fingerprint)
    one, two = (plan.with_choice("fc1", Choice("svd", (rank,))) for rank in (1, 2))
    assert (history.plan, history.past, history.future) == (two, (plan,), ())
    assert history.branches == (Branch(plan, (one,)),)
    assert [(s.name, s.plan, s.note, s.seconds) for s in history.snapshots] == [("first", one, "a note", 1796000000)]
    assert [s.name for s in history.removed] == ["second"]
    assert dict(history.made) == {name_of(one): 1796000010, name_of(two): 1796000020}


def document(**changes: object) -> str:
    history = through(undone(through(History(START).keep("a"), 1, 2), 1), 3).remove("a")
    return json.dumps(json.loads(history.to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (document(branches=3), "the list of branches"),
        (document(branches=[3, {"from": {}, "steps": []}, {"from": {}, "steps": [{"fc": 1}]}]), "3 branches"),
        (document(removed=[1]), "1 removed snapshot"),
        (document(made=[["x", 3]]), "1 time of a step"),
        (document(made=[[name_of(START), -3]]), "1 time of a step"),
        (document(made={}), "the list of made"),
        (document(past=[{}] * 10_000), f"9900 steps of undo (of 10000 at most {DEPTH} are kept)"),
    ],
    ids=range(7),
)
def test_what_does_not_fit_of_it_is_said_and_the_rest_is_kept(text, said):
    read = read_history(text)
    assert said in read.left_out
    assert read.history is not None
    assert read.history.plan == at(3)


def test_a_history_of_ten_thousand_steps_is_cut_to_its_bound_in_one_line(tmp_path):
    profile = Workspace.open("builtin:iris-mlp").profile
    plan = RankPlan(profile.fingerprint)
    history = History(plan)
    for number in range(200):
        history = history.commit(plan.with_choice("fc1", Choice("svd", (1 + number % 2,)))).keep(f"<b>{number}</b>")
    long = json.loads(history.to_json())
    long["past"] = long["past"] * 100
    long["snapshots"][0]["name"] = "x" * 200
    path = tmp_path / "0123456789abcdef-0c2dedb43b14.json"
    path.write_text(json.dumps(long))
    found = load(path, profile)
    assert found.kept is not None
    assert found.said.count("\n") == 0
    assert "9900 steps of undo (of 10000 at most 100 are kept) and 1 name cannot be taken over" in found.said
    assert len(found.kept.history.past) == DEPTH
    assert found.kept.history.snapshots[0].name == "x" * NAME_LETTERS
    assert [one.name for one in found.kept.history.snapshots[1:]] == [f"<b>{number}</b>" for number in range(1, 200)]
    assert load(path, profile).said == ""


def test_two_tabs_keep_the_branches_notes_and_removed_snapshots_of_both():
    base = through(History(START).keep("goes").keep("noted"), 1, 2)
    mine = through(base.undo(), 3).remove("goes")
    theirs = base.describe("noted", "noted", "a note").undo()
    merged = merge(base, mine, theirs).history
    assert Branch(at(1), (at(2),)) in merged.branches
    assert [(one.name, one.note) for one in merged.snapshots] == [("noted", "a note")]
    assert [one.name for one in merged.removed] == ["goes"]
    back = merge(merged, merged, merged.bring_back("goes")).history
    assert ([one.name for one in back.snapshots], back.removed) == (["noted", "goes"], ())
    assert dict(merged.made).keys() >= {name_of(at(1)), name_of(at(2)), name_of(merged.plan)}
