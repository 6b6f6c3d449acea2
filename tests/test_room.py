"""Room: limits hold whatever is put where, the least lately used goes first, and what nobody holds is given back."""

import gc
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_core.algebra import cp
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.sources import open_source
from lowrank_core.store.memo import Memo
from lowrank_core.store.room import Recent, Room
from lowrank_core.workspace import Workspace

SMALL = ("builtin:iris-mlp", "builtin:digits-cnn")


def test_the_least_lately_used_shelf_goes_first_of_whichever_part() -> None:
    room = Room(limit_bytes=100)
    one, other = room.part(), room.part()
    one.put("a", 1, 40)
    other.put("b", 2, 40)
    assert one.get("a") == 1  # used again: now b is the oldest
    one.put("c", 3, 40)
    assert (one.get("a"), other.get("b"), one.get("c")) == (1, None, 3)
    assert (one.bytes, other.bytes, room.bytes) == (80, 0, 80)


def test_a_part_has_a_limit_of_its_own() -> None:
    room = Room(limit_bytes=100)
    narrow, wide = room.part(50), room.part()
    wide.put("old", 1, 40)
    for name in "xyz":
        narrow.put(name, name, 30)
    assert [narrow.get(name) for name in "xyz"] == [None, None, "z"]
    assert wide.get("old") == 1
    narrow.put("large", 4, 51)
    assert narrow.get("large") is None
    assert narrow.get("z") == "z", "nothing goes for what does not fit"


def test_a_shelf_never_makes_room_for_its_own_items() -> None:
    part = Room(limit_bytes=100).part()
    part.put("other", 0, 30)
    for item in range(5):
        part.put("shelf", item, 30, item=item)
    assert [part.get("shelf", item) for item in range(5)] == [0, 1, 2, None, None]
    assert part.get("other") is None
    part.put("other", 0, 30)
    assert part.shelves() == ["other"], "a shelf goes as a whole"


def test_an_item_is_replaced_and_a_part_cleared() -> None:
    room = Room(limit_bytes=100)
    part = room.part()
    part.put("a", 1, 60)
    part.put("a", 2, 90)
    assert (part.get("a"), room.bytes) == (2, 90)
    part.clear()
    assert (part.get("a"), room.bytes) == (None, 0)


def test_a_part_that_nobody_holds_gives_its_room_back() -> None:
    room = Room(limit_bytes=100)
    part = room.part()
    part.put("a", 1, 90)
    del part
    gc.collect()
    assert room.bytes == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3), st.integers(0, 70), st.booleans()),
        max_size=60,
    )
)
def test_limits_hold_and_the_sum_is_right_after_every_step(steps: list[tuple[int, int, int, int, bool]]) -> None:
    room = Room(limit_bytes=100)
    parts = [room.part(), room.part(60), room.part(0)]
    for number, shelf, item, size, looks in steps:
        part = parts[number]
        if looks:
            part.get(shelf, item)
        else:
            part.put(shelf, size, size, item=item)
            alone = size <= min(part.limit_bytes, 100)
            assert not alone or part.get(shelf, item) == size or len(part._shelves[shelf].items) > 0
        for one in parts:
            held = [size for kept in one._shelves.values() for size, _ in kept.items.values()]
            assert one.bytes == sum(held) == sum(kept.bytes for kept in one._shelves.values())
            assert one.bytes <= one.limit_bytes
        assert room.bytes <= 100


def test_threads_share_a_room() -> None:
    room = Room(limit_bytes=1000)
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            part = room.part(700)
            for number in range(300):
                part.put(number % 7, number, 60 + seed, item=number % 3)
                part.get((number + 3) % 7)
                assert room.bytes <= 1000
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_recent_forgets_what_was_set_first() -> None:
    recent: Recent[str, int] = Recent(2)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        recent[key] = value
    assert recent == {"a": 3, "c": 4}


def test_results_that_had_to_go_are_computed_again_to_the_same_bits() -> None:
    memo, calls = Memo(), []
    memo.kept = Room(limit_bytes=100).part()

    def step(number: int) -> torch.Tensor:
        def compute() -> dict[str, torch.Tensor]:
            calls.append(number)
            return {"values": torch.full((20,), float(number))}

        return memo(str(number), compute)["values"]

    assert [float(step(number)[0]) for number in (1, 1, 2, 1)] == [1, 1, 2, 1]
    assert calls == [1, 2, 1]


# ---- workspaces that share one ----


@pytest.fixture(scope="module")
def few_sweeps() -> Iterator[None]:
    """A CP that is fitted again gives the same bits after any number of sweeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cp, "SWEEPS", 10)
        yield


@pytest.fixture(scope="module")
def answers(few_sweeps: None) -> dict[str, list[float]]:
    return {ref: scores(Workspace.open(ref)) for ref in SMALL}


def scores(workspace: Workspace) -> list[float]:
    """Measured scores of some plans, corrected, with data-aware and CP factors among them."""
    found = []
    for plan in plans(workspace):
        model = workspace.compress(plan, workspace.correction)
        *_, score = workspace.measure(model)
        found.append(score.value)
    return found


def plans(workspace: Workspace) -> Iterator[RankPlan]:
    for rank in (1, 3):
        for data_aware in (False, True):
            choices = {}
            for layer in workspace.profile.layers:
                method = next(m for m in reversed(layer.methods) if m.data_aware == data_aware and not m.reference)
                choices[layer.name] = Choice(method.name, tuple(min(rank, top) for top in method.max_rank(layer.spec)))
            yield RankPlan.of(workspace.profile.fingerprint, choices)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("limit_bytes", [0, 200_000, 3_000_000])
def test_workspaces_share_a_room_that_is_too_small_and_answer_the_same(
    answers: dict[str, list[float]], limit_bytes: int
) -> None:
    room = Room(limit_bytes)
    shared = [Workspace(open_source(ref), room=room) for ref in SMALL]
    for workspace in shared:
        assert scores(workspace) == answers[workspace.opened.ref]
        assert room.bytes <= limit_bytes
