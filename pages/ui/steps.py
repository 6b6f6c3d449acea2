"""The steps of a history as people read them: when each was made, and what changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from lowrank_core.methods import METHODS
from lowrank_core.plans.plan import Choice, RankPlan

from .history import DEPTH, Branch, History, name_of


@dataclass(frozen=True, slots=True)
class Step:
    """A plan of a history. what: against the step before; seconds: when it was made, since 1970; None: unknown."""

    plan: RankPlan
    what: str
    seconds: int | None


@dataclass(frozen=True, slots=True)
class BranchSteps:
    """A branch, and the place on the line where it was left; None where it hangs at another branch, or at nothing."""

    parent: RankPlan
    steps: tuple[Step, ...]
    place: int | None


def steps(history: History) -> tuple[Step, ...]:
    """The line of a history, from the oldest step on."""
    line, times = history.line, _Times(history)
    seconds = [times.take(plan) for plan in reversed(line)][::-1]
    texts = ["start" if len(history.past) < DEPTH else "the oldest that is kept", *_changes(line)]
    return tuple(map(Step, line, texts, seconds))


def branches(history: History) -> tuple[BranchSteps, ...]:
    """What hangs beside the line, the latest first."""
    times, line = _Times(history), history.line

    def of(branch: Branch) -> BranchSteps:
        seconds = [times.take(plan) for plan in branch.steps]
        place = next((place for place in reversed(range(len(line))) if line[place] == branch.parent), None)
        return BranchSteps(
            branch.parent, tuple(map(Step, branch.steps, _changes((branch.parent, *branch.steps)), seconds)), place
        )

    return tuple(of(branch) for branch in reversed(history.branches))


class _Times:
    """When plans were made: of several times that one was made, the latest is taken first, and the first for good."""

    def __init__(self, history: History) -> None:
        self._seconds: dict[str, list[int]] = {}
        for name, seconds in history.made:
            self._seconds.setdefault(name, []).append(seconds)

    def take(self, plan: RankPlan) -> int | None:
        known = self._seconds.get(name_of(plan), [])
        return known.pop() if len(known) > 1 else next(iter(known), None)


def _changes(line: tuple[RankPlan, ...]) -> Iterator[str]:
    return (change(before, after) for before, after in pairwise(line))


@lru_cache(2000)
def change(before: RankPlan, after: RankPlan) -> str:
    """What one plan makes of another, in words: of many layers the first one, and how many more.

    >>> small = RankPlan.of("sha256:0", {"fc1": Choice("svd", (64,)), "fc2": Choice("svd", (8,))})
    >>> change(small, small.with_choice("fc1", Choice("svd", (32,))))
    'fc1: 64 → 32'
    >>> change(RankPlan("sha256:0"), small)
    'fc1: dense → SVD 64, and 1 more layer'
    >>> change(small, RankPlan("sha256:0"))
    'every layer dense'
    """
    old, new = dict(before.choices), dict(after.choices)
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not changed:
        return "no change"
    if not new:
        return "every layer dense"
    first, more = changed[0], len(changed) - 1
    was, now = old.get(first), new.get(first)
    same = was is not None and now is not None and (was.method, was.free) == (now.method, now.free)
    says = f"{first}: {_ranks(was)} → {_ranks(now)}" if same else f"{first}: {choice_text(was)} → {choice_text(now)}"
    return says + (f", and {more} more layer{'s' * (more > 1)}" if more else "")


def choice_text(choice: Choice | None) -> str:
    """How a layer is replaced, in words.

    >>> choice_text(Choice("tucker2", (16, 12))), choice_text(None)
    ('Tucker-2 16, 12', 'dense')
    """
    if choice is None:
        return "dense"
    label = METHODS[choice.method].label if choice.method in METHODS else choice.method
    return f"{label} {_ranks(choice)}{' free' * choice.free}"


def _ranks(choice: Choice | None) -> str:
    return "dense" if choice is None else ", ".join(map(str, choice.rank))
