"""The work on one network as one file: plans, snapshots, notes, goals and scores, to go on with in another place.

Nothing of the place it comes from is in it: no path, no session, no weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from lowrank_core.errors import InvalidFile, cut
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.plan import RankPlan
from lowrank_core.scoring.scores import Score
from lowrank_core.store.documents import Kind, sealed, unsealed
from pages.ui.history import (
    MOST_MADE,
    MOST_PINS,
    MOST_SNAPSHOTS,
    Branch,
    History,
    and_so_on,
    bounded,
    free_name,
    read_history,
)

KIND = Kind("work")
ENDING = "-work.jsonl"

LARGEST_BYTES = 64 * 10**6
"""Bytes of such a file, at most, as of the file of a history."""

MOST_SCORES = 10_000

Scores = tuple[tuple[str, Score], ...]
"""By `measure.ledger.score_key`."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a file holds. under: the name of all that its scores depend on; left_out: what of it does not fit."""

    history: History
    scores: Scores
    under: str
    left_out: tuple[str, ...] = ()


def work_file(name: str, history: History, scores: Sequence[tuple[str, Score]], under: str) -> bytes:
    """The file; name: what people call the network."""
    document = {
        "model": {"name": name, "fingerprint": history.plan.fingerprint},
        "history": json.loads(history.to_json()),
        "under": under,
        "scores": msgspec.to_builtins(list(scores)),
    }
    return sealed(KIND, json.dumps(document, sort_keys=True).encode())


def is_work(content: bytes) -> bool:
    """Whether a file says that it is one.

    >>> is_work(work_file("net", History(RankPlan("sha256:0")), [], "")), is_work(b'{"format": "lowrank-plan"}')
    (True, False)
    """
    return content.startswith(b'{"kind": "work", ')


def read_work(content: bytes, profile: ModelProfile, name: str) -> Work:
    """What fits of a file; raises InvalidFile in one line for another network's, or one that is not as written.

    name: what people call the network that it is opened for.
    """
    if len(content) > LARGEST_BYTES:
        raise InvalidFile(f"it is larger than {LARGEST_BYTES // 10**6} MB, and no work of this app")
    try:
        document: dict[str, Any] = json.loads(unsealed(KIND, content))
        model, history, under = document["model"], document["history"], str(document["under"])
        fingerprint, of = str(model["fingerprint"]), cut(" ".join(str(model["name"]).split()))
    except InvalidFile as unfit:
        raise InvalidFile(f"it is {unfit}; save the work again where it comes from") from unfit
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidFile("it is damaged: not as written; save the work again where it comes from") from error
    if fingerprint != profile.fingerprint:
        raise InvalidFile(
            f"it is the work on {of} ({fingerprint[:19]}...), and the network here is {name} "
            f"({profile.fingerprint[:19]}...); open that network first, then this file"
        )
    read = read_history(json.dumps(history), profile)
    if read.history is None:
        raise InvalidFile("it holds no plans of this network; save the work again where it comes from")
    return Work(read.history, _scores(document.get("scores")), under, read.left_out)


def _scores(listed: object) -> Scores:
    found = []
    for one in listed[:MOST_SCORES] if isinstance(listed, list) else ():
        try:
            found.append(msgspec.convert(one, tuple[str, Score]))
        except msgspec.ValidationError:
            continue
    return tuple(found)


def taken_in(current: History | None, opened: History) -> History:
    """The history that goes on: the opened plan as its newest step, what was there one Undo away.

    current: None where nothing was there. Snapshots of both are kept, one of those with the same plan and note; of two
    of one name the opened gets a number. The steps of the opened history are a branch. Goals, locks, pins and
    correction are the opened ones.

    >>> a, b = History(RankPlan("sha256:0")).keep("mine"), History(RankPlan("sha256:0")).keep("mine", "theirs")
    >>> [one.name for one in taken_in(a, b).snapshots]
    ['mine', 'mine 2']
    """
    if current is None:
        return opened
    snapshots, names = list(current.snapshots), {one.name for one in current.snapshots}
    there = {(one.plan, one.note) for one in current.snapshots}
    for one in opened.snapshots:
        if len(snapshots) < MOST_SNAPSHOTS and (one.plan, one.note) not in there:
            name = free_name(one.name, names, "snapshot")
            names.add(name)
            snapshots.append(replace(one, name=name))
    going_on = current.commit(opened.plan)
    first, *steps = opened.line
    branches = (*opened.branches, *((Branch(first, tuple(steps)),) if steps else ()))
    return replace(
        going_on,
        snapshots=tuple(snapshots),
        branches=bounded(tuple(dict.fromkeys((*going_on.branches, *branches)))),
        locked=opened.locked,
        pins=tuple(dict.fromkeys((*going_on.pins, *opened.pins)))[-MOST_PINS:],
        goals=opened.goals,
        corrected=opened.corrected,
        correction=opened.correction,
        tolerance=opened.tolerance,
        made=tuple(sorted({*going_on.made, *opened.made}, key=lambda one: one[1]))[-MOST_MADE:],
        rev=max(current.rev, opened.rev) + 1,
    )


def says(work: Work, *, scores: bool) -> str:
    """What was taken from a file, in one line. scores: whether its scores hold here, too."""
    count = len(work.history.snapshots)
    snapshots = f", {count} snapshot{'s' * (count != 1)}" if count else ""
    line = f"its plan is the plan now{snapshots}; Undo on the page Ranks brings the one before it back."
    if work.scores and not scores:
        line += " Its scores are of other data, weights or versions and are not taken: plans are measured anew."
    if work.left_out:
        line += f" Left out, for it does not fit this network: {and_so_on(work.left_out)}."
    return line


def every_plan(history: History) -> tuple[RankPlan, ...]:
    """All plans that a history holds, each once, the plan as it stands first."""
    branches = (plan for branch in history.branches for plan in (branch.parent, *branch.steps))
    kept = (one.plan for one in (*history.snapshots, *history.removed))
    return tuple(dict.fromkeys((history.plan, *kept, *history.line, *branches)))
