"""History: the plans of one session, as steps, branches and snapshots. Values in, values out; a page keeps the latest.

Steps lie on one line: past, the plan, future. What undo has left is the future until another plan is made; then it
becomes a branch, which hangs at the plan where it was left. Nothing goes but what is older than the bounds below.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count
from typing import Annotated, Any

import msgspec

from lowrank_core.errors import InvalidPlan, InvalidSettings, LowRankError
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.store.key import named
from lowrank_core.version import versions

from .goals import Goals

DEPTH = 100
"""Steps that can be undone; older ones are forgotten."""

MOST_AHEAD = 200
"""Steps that can be redone: those of a branch may follow those that undo has left."""

MOST_SNAPSHOTS = 1_000
"""Snapshots of a history, at most; no more are added until some are removed. Two merged tabs may have a few more."""

NAME_LETTERS = 40
"""Letters of a snapshot's name as it is given, at most; a number may follow where it was taken."""

NOTE_LETTERS = 280
"""Letters of a note to a snapshot, at most."""

MOST_BRANCHED = 200
"""Plans on branches that are kept, in all; the branch that was left first goes first."""

MOST_REMOVED = 50
"""Removed snapshots that can be brought back; the one that was removed first goes first."""

MOST_MADE = 2 * DEPTH + MOST_BRANCHED
"""Plans of which it is known when they were made."""


Pin = tuple[str, Choice | None]
"""A layer and what a person has set it to; None is dense. Free ranks are no part of it."""

MOST_PINS = 5_000
"""Of a history, at most; the oldest go first."""


@dataclass(frozen=True, slots=True)
class PlanSnapshot:
    """A plan under a name, kept because somebody wants to come back to it. seconds: when, since 1970; None: unknown."""

    name: str
    plan: RankPlan
    note: str = ""
    seconds: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Branch:
    """Plans that undo had left when another one was made, from the first step behind `parent` on."""

    parent: RankPlan
    steps: tuple[RankPlan, ...]


@lru_cache(MOST_MADE * 10)
def name_of(plan: RankPlan) -> str:
    """A word for a plan that no other plan of its network has."""
    return named(_choices(plan))


def _now() -> int:
    return int(time.time())


@dataclass(frozen=True, slots=True)
class History:
    """rev counts every change of the plan; gesture joins the commits of one drag into one step of undo.

    correction: what a plan file asked for and plans are measured with where `corrected`; None for the workspace's own.
    removed: snapshots that can be brought back. made: (`name_of` a plan, seconds since 1970), the latest last.
    pins: what people have set layers to by hand; a layer is pinned while it stands at one of its pins, so that Undo
    takes a pin back with the change that it came from, and Redo brings it again.
    """

    plan: RankPlan
    past: tuple[RankPlan, ...] = ()
    future: tuple[RankPlan, ...] = ()
    snapshots: tuple[PlanSnapshot, ...] = ()
    locked: tuple[str, ...] = ()
    corrected: bool = True
    tolerance: float | None = None
    rev: int = 0
    gesture: int = field(default=-1, compare=False)
    correction: Correction | None = None
    goals: Goals = Goals()  # noqa: RUF009 - frozen
    branches: tuple[Branch, ...] = ()
    removed: tuple[PlanSnapshot, ...] = ()
    made: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    pins: tuple[Pin, ...] = ()

    def commit(self, plan: RankPlan, *, rev: int | None = None, gesture: int = -1) -> History:
        """A new plan; within one gesture it replaces the last one. A rev that is not newer is ignored.

        What undo had left becomes a branch.
        """
        new_rev = self.rev + 1 if rev is None else rev
        if new_rev <= self.rev:
            return self
        if plan == self.plan:
            return replace(self, rev=new_rev)
        same = gesture >= 0 and gesture == self.gesture
        if same and self.past[-1:] == (plan,):  # there and back again is no step
            return replace(self, plan=plan, past=self.past[:-1], made=self.made[:-1], rev=new_rev, gesture=-1)
        past = self.past if same else (*self.past, self.plan)[-DEPTH:]
        made = (*(self.made[:-1] if same else self.made), (name_of(plan), _now()))[-MOST_MADE:]
        left = self._leaving(self.plan, self.future)
        return replace(self, plan=plan, past=past, future=(), branches=left, made=made, rev=new_rev, gesture=gesture)

    def _leaving(self, parent: RankPlan, steps: tuple[RankPlan, ...]) -> tuple[Branch, ...]:
        """The branches with one more, where there is something on it."""
        if not steps:
            return self.branches
        left = Branch(parent, steps[:MOST_BRANCHED])
        return bounded((*(branch for branch in self.branches if branch != left), left))

    def undo(self) -> History:
        """Back to the plan before the last change; itself where there is none."""
        if not self.past:
            return self
        return replace(
            self,
            plan=self.past[-1],
            past=self.past[:-1],
            future=(self.plan, *self.future)[:MOST_AHEAD],
            rev=self.rev + 1,
            gesture=-1,
        )

    def redo(self) -> History:
        """Forward to the plan that the last undo left; itself where there is none."""
        if not self.future:
            return self
        return replace(
            self,
            plan=self.future[0],
            past=(*self.past, self.plan)[-DEPTH:],
            future=self.future[1:],
            rev=self.rev + 1,
            gesture=-1,
        )

    @property
    def line(self) -> tuple[RankPlan, ...]:
        """All steps from the oldest one on: past, the plan, future."""
        return (*self.past, self.plan, *self.future)

    def go(self, name: str, at: int = -1, parent: str = "") -> History:
        """To the plan that `name_of` calls so: along the line by undo and redo, or over to its branch.

        at: its place on the line, where several steps have that plan; the nearest one counts otherwise. parent: the
        name of the plan where the branch was left that is meant, in case the plan is on the line, too. What lies behind
        that place becomes a branch itself. Itself where there is no such plan.
        """
        line, here = self.line, len(self.past)
        for branch in reversed(self.branches):
            if parent == name_of(branch.parent) and name in map(name_of, branch.steps):
                there = self._onto(branch)
                return there.go(name, len(there.past) + 1 + list(map(name_of, branch.steps)).index(name))
        places = [place for place, plan in enumerate(line) if name_of(plan) == name]
        if places:
            return self._at(line, at if at in places else min(places, key=lambda place: abs(place - here)))
        for branch in reversed(self.branches):
            if name in map(name_of, branch.steps):
                return self._onto(branch).go(name)
        return self

    def _at(self, line: tuple[RankPlan, ...], place: int) -> History:
        past, future = line[:place][-DEPTH:], line[place + 1 :][:MOST_AHEAD]
        return replace(self, plan=line[place], past=past, future=future, rev=self.rev + 1, gesture=-1)

    def _onto(self, branch: Branch) -> History:
        """With the branch in the line, at the plan where it was left; where that is forgotten, as a step of its own."""
        without = replace(self, branches=tuple(one for one in self.branches if one != branch))
        if branch.parent not in without.line:
            below = next((one for one in reversed(without.branches) if branch.parent in one.steps), None)
            without = without.commit(branch.parent) if below is None else without._onto(below)
        line = without.line
        place = max(place for place, plan in enumerate(line) if plan == branch.parent)
        left = without._leaving(branch.parent, line[place + 1 :])
        return replace(without, branches=left)._at((*line[: place + 1], *branch.steps), place)

    def keep(self, name: str, note: str = "") -> History:
        """A snapshot of the plan; a name already taken gets a number. Itself where there are MOST_SNAPSHOTS."""
        if len(self.snapshots) >= MOST_SNAPSHOTS:
            return self
        unique = free_name(name, {s.name for s in self.snapshots}, f"S{len(self.snapshots) + 1}")
        return replace(self, snapshots=(*self.snapshots, PlanSnapshot(unique, self.plan, as_note(note), _now())))

    def holding(self, plan: RankPlan) -> str:
        """The name of the snapshot that holds a plan; "" where none does."""
        return next((snapshot.name for snapshot in self.snapshots if snapshot.plan == plan), "")

    def describe(self, name: str, new: str, note: str) -> History:
        """The snapshot under another name, which gets a number where it is taken, and with another note."""
        others = {snapshot.name for snapshot in self.snapshots} - {name}
        known = free_name(new, others, name)
        return replace(
            self,
            snapshots=tuple(
                replace(one, name=known, note=as_note(note)) if one.name == name else one for one in self.snapshots
            ),
        )

    def restore(self, name: str) -> History:
        """Back to a snapshot, as a step that can be undone."""
        for snapshot in self.snapshots:
            if snapshot.name == name:
                return self.commit(snapshot.plan)
        return self

    def remove(self, name: str) -> History:
        """The history without the snapshot of that name, which can be brought back."""
        gone = tuple(s for s in self.snapshots if s.name == name)
        return replace(
            self,
            snapshots=tuple(s for s in self.snapshots if s.name != name),
            removed=(*self.removed, *gone)[-MOST_REMOVED:],
        )

    def bring_back(self, name: str) -> History:
        """The snapshot of that name that was removed last, as it was; under a free name where its own is taken."""
        back = next((snapshot for snapshot in reversed(self.removed) if snapshot.name == name), None)
        if back is None or len(self.snapshots) >= MOST_SNAPSHOTS:
            return self
        known = free_name(name, {s.name for s in self.snapshots}, name)
        return replace(
            self,
            snapshots=(*self.snapshots, replace(back, name=known)),
            removed=tuple(snapshot for snapshot in self.removed if snapshot is not back),
        )

    def lock(self, names: Iterable[str]) -> History:
        """Which layers presets, groups and the budget lock leave alone."""
        return replace(self, locked=tuple(sorted(names)))

    @property
    def pinned(self) -> tuple[str, ...]:
        """The layers that stand where a person has set them: the front leaves them as they are."""
        return tuple(sorted({name for name, choice in self.pins if _plain(self.plan.get(name)) == choice}))

    @property
    def held(self) -> dict[str, Choice | None]:
        """The layers that are locked or pinned, and what they are."""
        return {name: self.plan.get(name) for name in sorted({*self.locked, *self.pinned})}

    def pin(self, names: Iterable[str]) -> History:
        """These layers stand where a person has set them."""
        new = {(name, _plain(self.plan.get(name))): None for name in names}
        return replace(self, pins=(*(pin for pin in self.pins if pin not in new), *new)[-MOST_PINS:])

    def unpin(self, names: Iterable[str]) -> History:
        """No more pins for these layers, wherever they stand."""
        gone = set(names)
        return replace(self, pins=tuple(pin for pin in self.pins if pin[0] not in gone))

    def correct(self, on: bool, correction: Correction | None = None) -> History:
        """Whether plans are measured and exported with a correction, and with which; the plan itself stays."""
        return replace(self, corrected=on, correction=correction, rev=self.rev + 1)

    def tolerate(self, drop: float | None) -> History:
        """Measurements end once the drop is clearly within this, or clearly not; None measures all samples."""
        return replace(self, tolerance=drop, rev=self.rev + 1)

    def aim(self, goals: Goals) -> History:
        """What plans are judged by; the plan and its figures stay."""
        return replace(self, goals=goals)

    def to_json(self) -> str:
        """Everything, so that a refresh of the browser or a restart of the server loses nothing."""
        return json.dumps(
            {
                "fingerprint": self.plan.fingerprint,
                "plan": _choices(self.plan),
                "past": [_choices(p) for p in self.past],
                "future": [_choices(p) for p in self.future],
                "snapshots": [_kept(snapshot) for snapshot in self.snapshots],
                "locked": list(self.locked),
                "corrected": self.corrected,
                "tolerance": self.tolerance,
                "rev": self.rev,
                "versions": versions(),
                **({} if self.correction is None else {"correction": self.correction.to_dict()}),
                **({} if self.goals == Goals() else {"goals": self.goals.to_dict()}),
                **({"branches": [_branched(one) for one in self.branches]} if self.branches else {}),
                **({"removed": [_kept(snapshot) for snapshot in self.removed]} if self.removed else {}),
                **({"made": self.made} if self.made else {}),
                **({"pins": [(name, _written(choice)) for name, choice in self.pins]} if self.pins else {}),
            },
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> History:
        """The history in a text written by `to_json`; raises ValueError where any part of it is not as written."""
        read = read_history(text)
        if read.history is None or read.left_out:
            raise ValueError(f"no history: {and_so_on(read.left_out) or 'it holds no plan'}")
        return read.history


def bounded(branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """The latest branches, of MOST_BRANCHED plans in all."""
    left = MOST_BRANCHED
    for number, branch in enumerate(reversed(branches)):
        left -= len(branch.steps)
        if left < 0:
            return branches[len(branches) - number :]
    return branches


def as_note(note: str) -> str:
    """A note as it is kept: letters that can be shown, on one line, and not too many of them."""
    return " ".join(note.encode(errors="replace").decode().split())[:NOTE_LETTERS]


def free_name(name: str, taken: Container[str], usual: str) -> str:
    """A name for a snapshot that no other has, of letters that can be shown and not too many of them.

    >>> free_name(" light ", {"light", "light 2"}, "S3")
    'light 3'
    """
    base = name.encode(errors="replace").decode().strip()[:NAME_LETTERS].strip() or usual
    numbered = (f"{base} {number}" for number in count(2))
    return base if base not in taken else next(one for one in numbered if one not in taken)


# ---- as JSON --------------------------------------------------------------------------------------------------------

LARGEST_REV = 2**50
"""A browser counts on from there; it knows whole numbers up to 2**53."""

_Rank = Annotated[tuple[Annotated[int, msgspec.Meta(ge=1)], ...], msgspec.Meta(min_length=1, max_length=8)]


class _Choice(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """["svd", [64]], and a third member, true, where it has free ranks."""

    method: str
    rank: _Rank
    free: bool = False


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """A history as far as a text holds one; left_out: what is not as it was written, as "2 snapshots"."""

    history: History | None = None
    left_out: tuple[str, ...] = ()


def read_history(text: str | bytes, profile: ModelProfile | None = None) -> ReadHistory:
    """Whatever a text holds of a history and, with a profile, what fits that network; never raises.

    Where the plan itself does not fit, the last step of undo that does takes its place, else all layers are dense.
    """
    try:
        document = json.loads(text, parse_constant=lambda name: None, object_pairs_hook=_said_once)
    except (ValueError, RecursionError):
        return ReadHistory()
    if not isinstance(document, dict) or not isinstance(fingerprint := document.get("fingerprint"), str):
        return ReadHistory()
    if profile is not None and fingerprint != profile.fingerprint:
        return ReadHistory()
    left: list[str] = []

    def whole(key: str) -> list[Any]:
        listed = document.get(key)
        if not isinstance(listed, list):
            left.append(f"the list of {key}")
        return listed if isinstance(listed, list) else []

    def plans(key: str, nearest: slice, most: int, singular: str) -> tuple[RankPlan, ...]:
        listed = whole(key)
        read = (_plan(fingerprint, choices, profile) for choices in listed[nearest])
        fitting = tuple(plan for plan in read if plan is not None)
        bound = f" (of {len(listed)} at most {most} are kept)" if len(listed) > most else ""
        left.extend(f"{lost}{bound}" for lost in _counted(len(listed) - len(fitting), singular))
        return fitting

    def optional(key: str) -> list[Any]:
        return whole(key) if key in document else []

    plan = _plan(fingerprint, document.get("plan"), profile)
    left.extend(["the plan itself"] if plan is None else [])
    past = plans("past", slice(-DEPTH, None), DEPTH, "step of undo")
    future = plans("future", slice(MOST_AHEAD), MOST_AHEAD, "step of redo")
    listed = whole("snapshots")
    snapshots: dict[str, PlanSnapshot] = {}
    renamed = 0
    for one in listed[-2 * MOST_SNAPSHOTS :]:
        kept = _snapshot(fingerprint, one, profile)
        if kept is not None:
            name, taken = kept.name, kept.name in snapshots
            known = name if _shown(name) and not taken else free_name(name, snapshots, "snapshot")
            renamed += known != name
            snapshots[known] = replace(kept, name=known)
    left.extend(_counted(len(listed) - len(snapshots), "snapshot"))
    gone = [_snapshot(fingerprint, one, profile) for one in optional("removed")[-MOST_REMOVED:]]
    removed = tuple(replace(one, name=free_name(one.name, (), "snapshot")) for one in gone if one is not None)
    left.extend(_counted(len(optional("removed")) - len(removed), "removed snapshot"))
    read_branches = [_branch(fingerprint, one, profile) for one in optional("branches")[-MOST_BRANCHED:]]
    branches = bounded(tuple(branch for branch in read_branches if branch is not None))
    left.extend(_counted(len(optional("branches")) - len(branches), "branch"))
    made = _times(optional("made"))
    left.extend(_counted(len(optional("made")) - len(made), "time of a step"))
    left.extend(_counted(renamed, "name"))
    locks = whole("locked")
    layers = None if profile is None else {layer.name for layer in profile.layers}
    locked = [name for name in locks if isinstance(name, str) and (layers is None or name in layers)]
    left.extend(_counted(len(locks) - len(locked), "lock"))
    listed = whole("pins") if "pins" in document else []
    pins = tuple(pin for one in listed if (pin := _pin(one, layers)))
    left.extend(_counted(len(listed) - len(pins), "pin"))
    corrected, tolerance, rev = (document.get(key) for key in ("corrected", "tolerance", "rev"))
    if not isinstance(corrected, bool):
        left.append("whether plans are corrected")
    if not (tolerance is None or _is_drop(tolerance)):
        tolerance = None
        left.append("the tolerance")
    if isinstance(rev, bool) or not isinstance(rev, int) or not 0 <= rev <= LARGEST_REV:
        left.append("the number of changes")
        rev = 0
    correction = document.get("correction") or None
    try:
        asked = None if correction is None else Correction.from_dict(correction)
        if asked is not None and asked.seed >= 2**63:
            raise InvalidPlan("a seed is a whole number below 2**63.")
    except InvalidPlan:
        asked = None
        left.append("the correction")
    try:
        goals = Goals.from_dict(document.get("goals") or {})
    except InvalidSettings:
        goals = Goals()
        left.append("the goals")
    if plan is None:
        plan, past = (past[-1], past[:-1]) if past else (RankPlan(fingerprint), ())
    history = History(
        plan,
        past,
        future,
        tuple(snapshots.values()),
        tuple(sorted(set(locked))),
        corrected if isinstance(corrected, bool) else True,
        None if tolerance is None else float(tolerance),
        rev,
        correction=asked,
        goals=goals,
        branches=branches,
        removed=removed,
        made=made,
        pins=pins[-MOST_PINS:],
    )
    return ReadHistory(history, tuple(left))


def and_so_on(things: Sequence[str]) -> str:
    """The first five of a few things, in words.

    >>> and_so_on(["2 snapshots", "1 lock"])
    '2 snapshots and 1 lock'
    """
    shown = list(things[:5]) + ([f"{len(things) - 5} more"] if len(things) > 5 else [])
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def _said_once(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    """An object whose keys all differ; None, which fits nowhere, for one that says two things in one place."""
    members = dict(pairs)
    return members if len(members) == len(pairs) else None


def _plan(fingerprint: str, choices: object, profile: ModelProfile | None) -> RankPlan | None:
    """The plan in JSON; None where it is none, or does not fit."""
    try:
        read = msgspec.convert(choices, dict[str, _Choice])
        plan = RankPlan.of(fingerprint, {name: Choice(c.method, c.rank, c.free) for name, c in read.items()})
        if profile is not None:
            check_plan(profile, plan)
    except (msgspec.ValidationError, LowRankError):
        return None
    return plan


def _snapshot(fingerprint: str, one: object, profile: ModelProfile | None) -> PlanSnapshot | None:
    """The snapshot in JSON, under whatever name it has; None where it is none. A note or date that is none is left."""
    if not isinstance(one, dict) or not isinstance(name := one.get("name"), str):
        return None
    plan, note, seconds = _plan(fingerprint, one.get("plan"), profile), one.get("note"), one.get("seconds")
    if plan is None:
        return None
    written = as_note(note) if isinstance(note, str) else ""
    return PlanSnapshot(name, plan, written, seconds if _is_time(seconds) else None)


def _branch(fingerprint: str, one: object, profile: ModelProfile | None) -> Branch | None:
    """The branch in JSON; None where one of its plans is none, or does not fit."""
    if not isinstance(one, dict) or not isinstance(listed := one.get("steps"), list):
        return None
    parent, *steps = (_plan(fingerprint, choices, profile) for choices in [one.get("from"), *listed[:MOST_BRANCHED]])
    whole = tuple(step for step in steps if step is not None)
    return Branch(parent, whole) if parent is not None and whole and len(whole) == len(listed) else None


def _times(listed: list[Any]) -> tuple[tuple[str, int], ...]:
    """When plans were made, as far as it is as written."""
    try:
        made = msgspec.convert(listed[-MOST_MADE:], list[tuple[str, int]])
    except msgspec.ValidationError:
        return ()
    return tuple((name, seconds) for name, seconds in made if len(name) == _NAME_OF and _is_time(seconds))


_NAME_OF = len(named([]))


def _is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


def _pin(document: object, layers: set[str] | None) -> Pin | None:
    """A pin in JSON; None where it is none, or of no layer."""
    try:
        name, choice = msgspec.convert(document, tuple[str, _Choice | None])
    except msgspec.ValidationError:
        return None
    if layers is not None and name not in layers:
        return None
    return name, None if choice is None else Choice(choice.method, choice.rank)


def _plain(choice: Choice | None) -> Choice | None:
    return None if choice is None else replace(choice, free=False)


def _is_drop(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _shown(name: str) -> bool:
    """Whether it is a name as snapshots get them."""
    return name.strip() != "" and len(name) <= NAME_LETTERS + 8 and name.encode(errors="replace").decode() == name


def _counted(number: int, singular: str) -> list[str]:
    """Nothing for none.

    >>> _counted(0, "lock"), _counted(2, "step of undo")
    ([], ['2 steps of undo'])
    """
    first, _, rest = singular.partition(" ")
    ending = "" if number == 1 else "es" if first.endswith("ch") else "s"
    return [f"{number} {first}{ending}{rest and f' {rest}'}"] if number else []


def _kept(snapshot: PlanSnapshot) -> dict[str, Any]:
    about = {"note": snapshot.note or None, "seconds": snapshot.seconds}
    known = {name: value for name, value in about.items() if value is not None}
    return {"name": snapshot.name, "plan": _choices(snapshot.plan), **known}


def _branched(branch: Branch) -> dict[str, Any]:
    return {"from": _choices(branch.parent), "steps": [_choices(plan) for plan in branch.steps]}


def _choices(plan: RankPlan) -> dict[str, Any]:
    return {name: _written(choice) for name, choice in plan.choices}


def _written(choice: Choice | None) -> tuple[Any, ...] | None:
    return None if choice is None else (choice.method, list(choice.rank), *([True] if choice.free else []))
