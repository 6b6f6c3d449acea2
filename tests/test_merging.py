"""Two writers of one history: whatever the order of their changes, nothing that one of them has made is lost."""

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import Choice, RankPlan
from pages.ui.history import DEPTH, History
from pages.ui.merging import Conflict, merge, merge_plans

START = History(RankPlan("sha256:0"))


def ranks(**layers: int) -> RankPlan:
    return RankPlan.of("sha256:0", {name: Choice("svd", (rank,)) for name, rank in layers.items()})


def test_layers_that_one_has_changed_are_as_that_one_left_them():
    base = START.commit(ranks(a=1, b=1, c=1))
    merged = merge(base, base.commit(ranks(a=2, b=1)), base.commit(ranks(a=1, b=3, c=1)))
    assert merged.history.plan == ranks(a=2, b=3)
    assert (merged.layers, merged.settings) == ((), ())
    assert merged.history.undo().plan == ranks(a=1, b=3, c=1), "mine is taken back, theirs stays"
    assert merged.history.undo().undo().plan == ranks(a=1, b=1, c=1)


def test_a_layer_that_both_have_changed_is_mine_and_theirs_is_a_step_of_undo():
    base = START.commit(ranks(a=1, b=1))
    merged = merge(base, base.commit(ranks(a=2, b=1)), base.commit(ranks(a=3, b=4)))
    assert merged.history.plan == ranks(a=2, b=4)
    assert merged.layers == (Conflict("a", Choice("svd", (2,)), Choice("svd", (3,))),)
    assert merged.history.undo().plan == ranks(a=3, b=4)
    same = merge(base, base.commit(ranks(a=5, b=1)), base.commit(ranks(a=5, b=1)))
    assert (same.history.plan, same.layers) == (ranks(a=5, b=1), ())
    gone = merge_plans(ranks(a=1), ranks(), ranks(a=2))
    assert gone == (ranks(), (Conflict("a", None, Choice("svd", (2,))),))


def test_settings_locks_and_snapshots():
    base = START.keep("both").keep("mine goes").keep("theirs goes").lock(["a", "b"]).tolerate(0.1)
    mine = base.remove("mine goes").commit(ranks(a=1)).keep("new").lock(["b", "c"]).tolerate(0.2)
    theirs = base.remove("theirs goes").commit(ranks(a=1, b=2)).keep("new").lock(["a", "b", "d"]).tolerate(0.3)
    merged = merge(base, mine, theirs.correct(True, Correction(seed=1)))
    assert [s.name for s in merged.history.snapshots] == ["both", "new", "new 2"]
    assert [s.plan for s in merged.history.snapshots][1:] == [ranks(a=1, b=2), ranks(a=1)]
    assert merged.history.locked == ("b", "c", "d")
    assert merged.history.tolerance == 0.2
    assert merged.settings == (Conflict("tolerance", 0.2, 0.3),)
    assert merged.history.correction == Correction(seed=1)
    assert merged.history.rev > max(mine.rev, theirs.rev), "or the board would not take it"


def test_what_one_has_undone_can_be_redone():
    base = START.commit(ranks(a=1)).commit(ranks(a=2))
    merged = merge(base, base.undo(), base.commit(ranks(a=2, b=1))).history
    assert merged.plan == ranks(a=1, b=1)
    assert merged.redo().plan == ranks(a=2, b=1)
    assert merge(base, base, base.undo()).history.redo().plan == base.plan
    assert merge(base, base.undo(), base).history == base.undo()


def test_a_plan_that_collides_is_a_step_of_undo_also_where_a_step_was_taken_back():
    base = START.commit(ranks(a=1)).commit(ranks(a=2))
    merged = merge(base, base.undo().commit(ranks(a=3)), base.commit(ranks(a=4)))
    assert merged.history.plan == ranks(a=3)
    assert merged.history.undo().plan == ranks(a=4)


def test_steps_that_are_forgotten_for_their_age_are_no_steps_of_mine():
    base = START
    for rank in range(1, DEPTH + 50):
        base = base.commit(ranks(a=rank))
    mine = base.commit(ranks(a=1)).commit(ranks(a=2))
    merged = merge(
        base, mine, base.commit(replace(base.plan, choices=(*base.plan.choices, ("b", Choice("svd", (7,))))))
    )
    a = DEPTH + 49
    assert len(merged.history.past) == DEPTH
    assert merged.history.past[-3:] == (ranks(a=a), ranks(a=a, b=7), ranks(a=1, b=7))


@dataclass
class Writer:
    """One tab: what it shows, and what it last knew of the disk."""

    mine: History = START
    base: History = START

    def save(self, disk: History) -> History:
        merged = merge(self.base, self.mine, disk)
        for conflict in merged.layers:
            assert any(dict(plan.choices).get(conflict.name) == conflict.theirs for plan in merged.history.past)
        self.mine = self.base = merged.history
        return merged.history


CHANGES = st.tuples(
    st.integers(0, 1),
    st.one_of(
        st.tuples(st.just("rank"), st.sampled_from(range(3)), st.integers(0, 3)),
        st.tuples(st.just("keep"), st.sampled_from("ab"), st.none()),
        st.tuples(st.just("remove"), st.integers(0, 5), st.none()),
        st.tuples(st.just("lock"), st.integers(0, 1), st.none()),
        st.tuples(st.just("save"), st.none(), st.none()),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(CHANGES, max_size=40))
def test_in_any_order_nothing_is_lost(changes):
    """Each writer has layers of its own and one that both set; a change is saved at once or with later ones."""
    disk, writers = START, (Writer(), Writer())
    last: dict[str, Choice | None] = {}
    plans, removed, locks = set(), set(), {}
    for who, (what, which, value) in changes:
        writer = writers[who]
        if what == "rank":
            layer = "shared" if which == 2 else f"{who} {which}"
            last[layer] = Choice("svd", (value,)) if value else None
            writer.mine = writer.mine.commit(writer.mine.plan.with_choice(layer, last[layer]))
        elif what == "keep":
            writer.mine = writer.mine.keep(which)
            plans.add(writer.mine.plan)
        elif what == "remove" and which < len(writer.mine.snapshots):
            snapshot = writer.mine.snapshots[which]
            removed.add(snapshot.plan)
            writer.mine = writer.mine.remove(snapshot.name)
        elif what == "lock":
            own = f"lock of {who}"
            locks[own] = bool(which)
            writer.mine = writer.mine.lock({*writer.mine.locked} - {own} | ({own} if which else set()))
        elif what == "save":
            disk = writer.save(disk)
    for writer in (*writers, *writers):
        disk = writer.save(disk)
    assert writers[0].mine.plan == writers[1].mine.plan == disk.plan
    assert writers[0].mine.snapshots == writers[1].mine.snapshots
    assert plans - removed <= {snapshot.plan for snapshot in disk.snapshots}
    assert len({snapshot.name for snapshot in disk.snapshots}) == len(disk.snapshots)
    assert {layer: disk.plan.get(layer) for layer in last if layer != "shared"} == {
        layer: choice for layer, choice in last.items() if layer != "shared"
    }
    assert set(disk.locked) == {name for name, locked in locks.items() if locked}
