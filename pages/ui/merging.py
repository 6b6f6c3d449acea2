"""Two writers of one history: what each has changed since they agreed, in one history; and where they collide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from lowrank_core.plans.plan import RankPlan
from pages.ui.history import DEPTH, History, PlanSnapshot, free_name

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conflict:
    """Both have set the same to something else: the choice of a layer (None is dense), or one of SETTINGS."""

    name: str
    mine: object
    theirs: object


SETTINGS = ("corrected", "correction", "tolerance")


@dataclass(frozen=True, slots=True)
class Merged:
    """A history of both, in which mine has won every conflict; theirs is a step of undo."""

    history: History
    layers: tuple[Conflict, ...] = ()
    settings: tuple[Conflict, ...] = ()


def merge(base: History, mine: History, theirs: History) -> Merged:
    """What I have changed since `base` on top of what another has saved since.

    A layer, lock, snapshot or setting that only one has changed is as that one left it; a snapshot that one has taken
    is there, one that either has removed is gone. My steps of undo follow theirs, and each is the plan that it would
    have been with their changes: taking mine back leaves theirs. Of two snapshots of one name mine gets a number.

    >>> start = History(RankPlan("sha256:0"))
    >>> merge(start, start.keep("mine"), start.keep("theirs")).history.snapshots == (
    ...     start.keep("theirs").keep("mine").snapshots
    ... )
    True
    """
    plan, layers = merge_plans(base.plan, mine.plan, theirs.plan)
    settings = []
    chosen = {}
    for name in SETTINGS:
        before, my, their = (getattr(history, name) for history in (base, mine, theirs))
        chosen[name] = _either(before, my, their)
        if before != my != their != before:
            settings.append(Conflict(name, my, their))
    past, future = _steps(base, mine, theirs, plan)
    merged = replace(
        mine,
        plan=plan,
        past=past,
        future=future,
        snapshots=_snapshots(base, mine, theirs),
        locked=tuple(sorted(_set(set(base.locked), set(mine.locked), set(theirs.locked)))),
        **chosen,
    )
    if merged == mine:
        return Merged(mine, layers, tuple(settings))
    return Merged(replace(merged, rev=max(mine.rev, theirs.rev) + 1), layers, tuple(settings))


def merge_plans(base: RankPlan, mine: RankPlan, theirs: RankPlan) -> tuple[RankPlan, tuple[Conflict, ...]]:
    """The choices of both, layer by layer, and those of which both have made something else; there mine is taken."""
    before, my, their = dict(base.choices), dict(mine.choices), dict(theirs.choices)
    choices, conflicts = {}, []
    for name in sorted(before.keys() | my.keys() | their.keys()):
        old, own, other = before.get(name), my.get(name), their.get(name)
        choice = _either(old, own, other)
        if choice is not None:
            choices[name] = choice
        if old != own != other != old:
            conflicts.append(Conflict(name, own, other))
    return RankPlan.of(mine.fingerprint, choices), tuple(conflicts)


def _either(base: T, mine: T, theirs: T) -> T:
    """Whichever has changed; mine where both have."""
    return theirs if mine == base else mine


def _set(base: set[str], mine: set[str], theirs: set[str]) -> set[str]:
    return (mine & theirs) | (mine - base) | (theirs - base)


def _steps(
    base: History, mine: History, theirs: History, plan: RankPlan
) -> tuple[tuple[RankPlan, ...], tuple[RankPlan, ...]]:
    """(past, future) of the merged plan: those of the one who has changed the plan, else theirs and then mine."""
    unchanged, my, their = ((h.plan, h.past, h.future) for h in (base, mine, theirs))
    if their == unchanged:
        return mine.past, mine.future
    if my == unchanged:
        return theirs.past, theirs.future
    fresh = _added(base.past, mine.past)
    steps = [*theirs.past, theirs.plan, *(merge_plans(base.plan, step, theirs.plan)[0] for step in fresh)]
    steps = [step for step, following in zip(steps, [*steps[1:], plan], strict=True) if step != following]
    future = tuple(merge_plans(base.plan, step, theirs.plan)[0] for step in mine.future)
    return tuple(steps[-DEPTH:]), future


def _added(base: tuple[RankPlan, ...], mine: tuple[RankPlan, ...]) -> tuple[RankPlan, ...]:
    """The steps that mine has and base has not; the oldest of base may be forgotten in mine."""
    if len(mine) < DEPTH:
        pairs = zip(base, mine, strict=False)
        return mine[next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(base), len(mine))) :]
    forgotten = next(number for number in range(len(base) + 1) if base[number:] == mine[: len(base) - number])
    return mine[len(base) - forgotten :]


def _snapshots(base: History, mine: History, theirs: History) -> tuple[PlanSnapshot, ...]:
    """Theirs without those that I have removed, then those that I have added."""
    removed = set(base.snapshots) - set(mine.snapshots)
    kept = [snapshot for snapshot in theirs.snapshots if snapshot not in removed]
    taken = {snapshot.name for snapshot in kept}
    for snapshot in mine.snapshots:
        if snapshot not in base.snapshots and snapshot not in kept:
            name = free_name(snapshot.name, taken, snapshot.name)
            kept.append(PlanSnapshot(name, snapshot.plan))
            taken.add(name)
    return tuple(kept)
