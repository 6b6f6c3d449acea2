"""History: the plans of one session, with undo, redo and snapshots. Values in, values out; a page keeps the latest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.version import versions

DEPTH = 100


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
    gesture: int = -1
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
        """A snapshot of the plan; a name already taken gets a number."""
        taken = {s.name for s in self.snapshots}
        base = name.strip()[:40] or f"S{len(self.snapshots) + 1}"
        unique, number = base, 2
        while unique in taken:
            unique, number = f"{base} {number}", number + 1
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
    def from_json(cls, text: str) -> History:
        """The history in a text written by `to_json`; raises ValueError, KeyError, TypeError or InvalidPlan."""
        d = json.loads(text)

        def plan(choices: dict[str, Any]) -> RankPlan:
            return RankPlan.of(
                d["fingerprint"], {name: Choice(method, tuple(rank)) for name, (method, rank) in choices.items()}
            )

        return cls(
            plan(d["plan"]),
            tuple(plan(p) for p in d["past"]),
            tuple(plan(p) for p in d["future"]),
            tuple(PlanSnapshot(s["name"], plan(s["plan"])) for s in d["snapshots"]),
            tuple(d["locked"]),
            bool(d["corrected"]),
            None if d["tolerance"] is None else float(d["tolerance"]),
            int(d["rev"]),
            correction=Correction.from_dict(d["correction"]) if d.get("correction") else None,
        )


def _choices(plan: RankPlan) -> dict[str, Any]:
    return {name: (choice.method, list(choice.rank)) for name, choice in plan.choices}
