"""Two writers of one history: what each has changed since they agreed, in one history; and where they collide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from lowrank_core.plans.plan import Choice, RankPlan

from .history import (
    DEPTH,
    MOST_AHEAD,
    MOST_MADE,
    MOST_PINS,
    MOST_REMOVED,
    Branch,
    History,
    PlanSnapshot,
    bounded,
    free_name,
    name_of,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conflict(Generic[T]):
    """Both have set the same to something else: the choice of a layer (None is dense), or one of SETTINGS."""

    name: str
    mine: T
    theirs: T


SETTINGS = ("corrected", "correction", "tolerance", "goals")


@dataclass(frozen=True, slots=True)
class Merged:
    """A history of both, in which mine has won every conflict; theirs is a step of undo."""

    history: History
    layers: tuple[Conflict[Choice | None], ...] = ()
    settings: tuple[Conflict[Any], ...] = ()


def merge(base: History, mine: History, theirs: History) -> Merged:
    """What I have changed since `base` on top of what another has saved since.

    A layer, lock, snapshot or setting that only one has changed is as that one left it; a snapshot that one has taken
    is there, one that either has removed is gone. My steps of undo follow theirs, and each is the plan that it would
    have been with their changes: taking mine back leaves theirs. Steps that they had undone are then a branch.
    Of two snapshots of one name mine gets a number.

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
    past, future, branched = _steps(base, mine, theirs, plan)
    snapshots = _snapshots(base, mine, theirs)
    removed = _listed(base.removed, mine.removed, theirs.removed)
    merged = replace(
        mine,
        plan=plan,
        past=past,
        future=future,
        snapshots=snapshots,
        branches=bounded(tuple(dict.fromkeys((*_listed(base.branches, mine.branches, theirs.branches), *branched)))),
        removed=tuple(one for one in removed if one not in snapshots)[-MOST_REMOVED:],
        made=_made(base, mine, theirs, plan),
        locked=tuple(sorted(_set(set(base.locked), set(mine.locked), set(theirs.locked)))),
        pins=_listed(base.pins, mine.pins, theirs.pins)[-MOST_PINS:],
        **chosen,
    )
    if merged == mine:
        return Merged(mine, layers, tuple(settings))
    return Merged(replace(merged, rev=max(mine.rev, theirs.rev) + 1), layers, tuple(settings))


def merge_plans(
    base: RankPlan, mine: RankPlan, theirs: RankPlan
) -> tuple[RankPlan, tuple[Conflict[Choice | None], ...]]:
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


def _set(base: set[T], mine: set[T], theirs: set[T]) -> set[T]:
    return (mine & theirs) | (mine - base) | (theirs - base)


def _listed(base: tuple[T, ...], mine: tuple[T, ...], theirs: tuple[T, ...]) -> tuple[T, ...]:
    """Theirs without those that I have taken out, then those that I have put in."""
    there = set(theirs)
    left = _set(set(base), set(mine), there)
    return (*(one for one in theirs if one in left), *(one for one in mine if one in left and one not in there))


def _made(base: History, mine: History, theirs: History, plan: RankPlan) -> tuple[tuple[str, int], ...]:
    """When plans were made, by either; my steps are others now, with their changes, but were made when they were."""
    times = dict(mine.made)
    again = ((_with_theirs(base, step, theirs), times.get(name_of(step))) for step in _fresh(base, mine))
    moved = [(name_of(step), seconds) for step, seconds in [*again, (plan, times.get(name_of(mine.plan)))] if seconds]
    known: Iterable[tuple[str, int]] = dict.fromkeys((*theirs.made, *mine.made, *moved))
    return tuple(sorted(known, key=lambda one: one[1]))[-MOST_MADE:]


def _with_theirs(base: History, step: RankPlan, theirs: History) -> RankPlan:
    """What a step of mine would have been with their changes."""
    return merge_plans(base.plan, step, theirs.plan)[0]


def _fresh(base: History, mine: History) -> tuple[RankPlan, ...]:
    """Steps of mine that are newer than base."""
    return _added(base.past, mine.past)


def _steps(
    base: History, mine: History, theirs: History, plan: RankPlan
) -> tuple[tuple[RankPlan, ...], tuple[RankPlan, ...], tuple[Branch, ...]]:
    """(past, future, branches) of the merged plan.

    Those of the one who has changed the plan, else theirs and then mine; what they could redo is then a branch.
    """
    unchanged, my, their = ((h.plan, h.past, h.future) for h in (base, mine, theirs))
    if their == unchanged:
        return mine.past, mine.future, ()
    if my == unchanged:
        return theirs.past, theirs.future, ()
    steps = [*theirs.past, theirs.plan, *(_with_theirs(base, step, theirs) for step in _fresh(base, mine))]
    steps = [step for step, following in zip(steps, [*steps[1:], plan], strict=True) if step != following]
    future = tuple(_with_theirs(base, step, theirs) for step in mine.future)
    undone = (Branch(theirs.plan, theirs.future),) if theirs.future and theirs.future != base.future else ()
    return tuple(steps[-DEPTH:]), future[:MOST_AHEAD], undone


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
            kept.append(replace(snapshot, name=name))
            taken.add(name)
    return tuple(kept)
