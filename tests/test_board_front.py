"""What the board is told of a front, and the pins of a history: values alone."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import pytest

from lowrank_core.builtin import POINTS
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.prediction import Point
from lowrank_core.predict.sensitivity import PointFile
from lowrank_core.scoring.scores import Score
from lowrank_core.selection import front
from lowrank_core.selection._problem import Problem
from lowrank_core.workspace import Workspace
from pages.ui import board_values
from pages.ui.front import QUANTITIES, Asked, Measured, draw, more_tails, says
from pages.ui.history import History, read_history
from pages.ui.merging import merge

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:iris-mlp")


@pytest.fixture(scope="module")
def points(workspace: Workspace) -> tuple[Point, ...]:
    return PointFile.shipped(POINTS, workspace, workspace.correction).load()


def test_a_board_is_told_the_plans_of_the_front_that_a_search_writes(
    workspace: Workspace, points: tuple[Point, ...]
) -> None:
    drawn = list(draw(workspace, points, Asked("net", True, len(points))))
    assert [one.quantity for one in drawn] == list(QUANTITIES)
    methods = tuple(dict.fromkeys(point.method for point in points))
    for one in drawn:
        searched = front(Problem(workspace, methods=methods), quantity=one.quantity, measure=0, points=points)
        told = one.to_dict()
        plans = [
            {name: menu[at] for (name, menu), at in zip(told["layers"], numbers, strict=True) if menu[at] is not None}
            for numbers in told["plans"]
        ]
        expected = [{n: [c.method, list(c.rank)] for n, c in point.candidate.plan.choices} for point in searched]
        assert plans == [plan for at, plan in enumerate(expected) if plan not in expected[:at]]
        assert plans[-1] == {}


def test_held_layers_are_no_part_of_what_is_told_and_none_left_is_one_plan(
    workspace: Workspace, points: tuple[Point, ...]
) -> None:
    names = [layer.name for layer in workspace.profile.layers]
    some = next(draw(workspace, points, Asked("net", True, len(points), ((names[0], None),))))
    assert names[0] not in dict(some.layers)
    everything = next(draw(workspace, points, Asked("net", True, len(points), tuple((n, None) for n in names))))
    assert (everything.layers, everything.plans) == ((), ((),))
    assert more_tails(workspace, (everything,), board_values.tails_of) == {}


def test_one_line_says_why_there_is_no_front(workspace: Workspace, points: tuple[Point, ...]) -> None:
    drawn = tuple(draw(workspace, points, Asked("net", True, len(points))))
    assert says(workspace, (), (), None) == "The front comes once layers are measured."
    assert says(workspace, (), (), "no data") == "No front: no data"
    assert says(workspace, points, (), None) == "The front is being computed."
    assert says(workspace, points, drawn, None) == ""
    first = workspace.profile.layers[0].name
    itself = copy(workspace)
    itself.opened = replace(workspace.opened, evaluate=lambda model: 0.0)
    assert says(itself, (), (), None).startswith("No front: this network scores itself")
    fewer = tuple(point for point in points if point.layer != first)
    assert says(workspace, fewer, drawn, None).startswith(f"1 of {len(workspace.profile.layers)} layers")


def test_a_measured_plan_has_the_interval_of_its_drop(workspace: Workspace) -> None:
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (2,))})
    score = Score("top-1 accuracy", 0.9, 0.95, 40, True, 0.8, 0.97, 0.05, 0.01, 0.12)
    told = Measured("a", "search", Candidate(plan), score).to_dict(workspace, free=False)
    assert (told["low"], told["high"]) == pytest.approx((0.83, 0.94))
    assert told["depth"] == "no"
    few = Measured("a", "search", Candidate(plan), replace(score, drop_low=None, drop_high=None))
    assert few.to_dict(workspace, free=False)["low"] == 0.8
    assert few.plan(free=True).get("fc1") == Choice("svd", (2,), free=True)


# ---- pins -----------------------------------------------------------------------------------------------------------

NET = "sha256:0"
DENSE = History(RankPlan(NET))


def with_ranks(history: History, **ranks: int) -> History:
    return history.commit(RankPlan.of(NET, {name: Choice("svd", (rank,)) for name, rank in ranks.items()}))


def test_a_pin_goes_and_comes_with_the_change_that_it_came_from() -> None:
    first = with_ranks(DENSE, a=8, b=8).pin(["a"])
    second = with_ranks(first, a=4, b=8).pin(["a"])
    assert second.pinned == second.undo().pinned == ("a",)
    assert second.undo().undo().pinned == ()
    assert second.undo().redo().held == {"a": Choice("svd", (4,))}
    by_rule = with_ranks(second, a=5, b=5)
    assert by_rule.pinned == ()
    assert by_rule.undo().pinned == ("a",)
    assert second.lock(["b"]).held == {"a": Choice("svd", (4,)), "b": Choice("svd", (8,))}
    assert second.unpin(["a"]).undo().pinned == ()
    dense = DENSE.pin(["c"])
    assert dense.held == {"c": None}


def test_pins_are_saved_and_what_is_none_is_left_out() -> None:
    history = with_ranks(DENSE, a=8).pin(["a", "b"])
    assert History.from_json(history.to_json()) == history
    assert "pins" not in DENSE.to_json()
    text = history.to_json().replace('["b", null]', '["b", 7]')
    read = read_history(text)
    assert read.left_out == ("1 pin",)
    assert read.history is not None
    assert read.history.pinned == ("a",)


def test_two_tabs_keep_each_other_s_pins() -> None:
    base = with_ranks(DENSE, a=8, b=8).pin(["a"])
    merged = merge(base, base.unpin(["a"]), base.pin(["b"])).history
    assert merged.pinned == ("b",)


def test_what_the_board_moved_by_hand_is_pinned_and_what_gave_way_is_not(workspace: Workspace) -> None:
    names = [layer.name for layer in workspace.profile.layers]
    start = History(RankPlan(workspace.profile.fingerprint))
    message = {
        "rev": 1,
        "gesture": 1,
        "before": {},
        "choices": {name: {"method": "svd", "rank": [2]} for name in names},
    }
    by_hand = board_values.commit(workspace, start, message | {"by": "hand", "gave": names[1:]})
    assert by_hand.pinned == (names[0],)
    assert board_values.commit(workspace, start, message | {"by": "rule"}).pinned == ()
    assert board_values.commit(workspace, start, message).pinned == ()
    pinned = start.pin(names)
    assert board_values.commit(workspace, pinned, message | {"by": "front"}).undo().pinned == ()
    assert board_values.act(by_hand, {"action": "unpin", "layers": [names[0]]}).pinned == ()
