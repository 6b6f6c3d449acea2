"""History: the plans of one session, with undo, redo and snapshots. Values in, values out; a page keeps the latest."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Annotated, Any

import msgspec

from lowrank_core.errors import InvalidPlan, LowRankError
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.version import versions

DEPTH = 100
"""Steps that can be undone; older ones are forgotten."""

MOST_SNAPSHOTS = 1_000
"""Snapshots of a history, at most; no more are added until some are removed. Two merged tabs may have a few more."""

NAME_LETTERS = 40
"""Letters of a snapshot's name as it is given, at most; a number may follow where it was taken."""


@dataclass(frozen=True, slots=True)
class PlanSnapshot:
    """A plan under a name, kept because somebody wants to come back to it."""

    name: str
    plan: RankPlan


@dataclass(frozen=True, slots=True)
class History:
    """rev counts every change of the plan; gesture joins the commits of one drag into one step of undo.

    correction: what a plan file asked for and plans are measured with where `corrected`; None for the workspace's own.
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

    def commit(self, plan: RankPlan, *, rev: int | None = None, gesture: int = -1) -> History:
        """A new plan; within one gesture it replaces the last one. A rev that is not newer is ignored."""
        new_rev = self.rev + 1 if rev is None else rev
        if new_rev <= self.rev:
            return self
        if plan == self.plan:
            return replace(self, rev=new_rev)
        same = gesture >= 0 and gesture == self.gesture
        if same and self.past[-1:] == (plan,):  # there and back again is no step
            return replace(self, plan=plan, past=self.past[:-1], rev=new_rev, gesture=-1)
        past = self.past if same else (*self.past, self.plan)[-DEPTH:]
        return replace(self, plan=plan, past=past, future=(), rev=new_rev, gesture=gesture)

    def undo(self) -> History:
        """Back to the plan before the last change; itself where there is none."""
        if not self.past:
            return self
        return replace(
            self,
            plan=self.past[-1],
            past=self.past[:-1],
            future=(self.plan, *self.future),
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
            past=(*self.past, self.plan),
            future=self.future[1:],
            rev=self.rev + 1,
            gesture=-1,
        )

    def keep(self, name: str) -> History:
        """A snapshot of the plan; a name already taken gets a number. Itself where there are MOST_SNAPSHOTS."""
        if len(self.snapshots) >= MOST_SNAPSHOTS:
            return self
        unique = free_name(name, {s.name for s in self.snapshots}, f"S{len(self.snapshots) + 1}")
        return replace(self, snapshots=(*self.snapshots, PlanSnapshot(unique, self.plan)))

    def restore(self, name: str) -> History:
        """Back to a snapshot, as a step that can be undone."""
        for snapshot in self.snapshots:
            if snapshot.name == name:
                return self.commit(snapshot.plan)
        return self

    def remove(self, name: str) -> History:
        """The history without the snapshot of that name."""
        return replace(self, snapshots=tuple(s for s in self.snapshots if s.name != name))

    def lock(self, names: Iterable[str]) -> History:
        """Which layers presets, groups and the budget lock leave alone."""
        return replace(self, locked=tuple(sorted(names)))

    def correct(self, on: bool, correction: Correction | None = None) -> History:
        """Whether plans are measured and exported with a correction, and with which; the plan itself stays."""
        return replace(self, corrected=on, correction=correction, rev=self.rev + 1)

    def tolerate(self, drop: float | None) -> History:
        """Measurements end once the drop is clearly within this, or clearly not; None measures all samples."""
        return replace(self, tolerance=drop, rev=self.rev + 1)

    def to_json(self) -> str:
        """Everything, so that a refresh of the browser or a restart of the server loses nothing."""
        return json.dumps(
            {
                "fingerprint": self.plan.fingerprint,
                "plan": _choices(self.plan),
                "past": [_choices(p) for p in self.past],
                "future": [_choices(p) for p in self.future],
                "snapshots": [{"name": s.name, "plan": _choices(s.plan)} for s in self.snapshots],
                "locked": list(self.locked),
                "corrected": self.corrected,
                "tolerance": self.tolerance,
                "rev": self.rev,
                "versions": versions(),
                **({} if self.correction is None else {"correction": self.correction.to_dict()}),
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

_Choices = dict[
    str, tuple[str, Annotated[tuple[Annotated[int, msgspec.Meta(ge=1)], ...], msgspec.Meta(min_length=1, max_length=8)]]
]


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

    def plans(key: str, nearest: slice, singular: str) -> tuple[RankPlan, ...]:
        listed = whole(key)
        read = (_plan(fingerprint, choices, profile) for choices in listed[nearest])
        fitting = tuple(plan for plan in read if plan is not None)
        left.extend(_counted(len(listed) - len(fitting), singular))
        return fitting

    plan = _plan(fingerprint, document.get("plan"), profile)
    left.extend(["the plan itself"] if plan is None else [])
    past = plans("past", slice(-DEPTH, None), "step of undo")
    future = plans("future", slice(DEPTH), "step of redo")
    listed = whole("snapshots")
    snapshots: dict[str, PlanSnapshot] = {}
    renamed = 0
    for one in listed[-2 * MOST_SNAPSHOTS :]:
        name = one.get("name") if isinstance(one, dict) else None
        kept = _plan(fingerprint, one.get("plan"), profile) if isinstance(name, str) else None
        if isinstance(name, str) and kept is not None:
            known = name if _shown(name) and name not in snapshots else free_name(name, snapshots, "snapshot")
            renamed += known != name
            snapshots[known] = PlanSnapshot(known, kept)
    left.extend(_counted(len(listed) - len(snapshots), "snapshot"))
    left.extend(_counted(renamed, "name"))
    locks = whole("locked")
    layers = None if profile is None else {layer.name for layer in profile.layers}
    locked = [name for name in locks if isinstance(name, str) and (layers is None or name in layers)]
    left.extend(_counted(len(locks) - len(locked), "lock"))
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
        read = msgspec.convert(choices, _Choices)
        plan = RankPlan.of(fingerprint, {name: Choice(method, rank) for name, (method, rank) in read.items()})
        if profile is not None:
            check_plan(profile, plan)
    except (msgspec.ValidationError, LowRankError):
        return None
    return plan


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
    return [f"{number} {first}{'' if number == 1 else 's'}{rest and f' {rest}'}"] if number else []


def _choices(plan: RankPlan) -> dict[str, Any]:
    return {name: (choice.method, list(choice.rank)) for name, choice in plan.choices}
