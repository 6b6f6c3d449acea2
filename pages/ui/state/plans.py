"""Plans: the history of this session for each model, saved at every change."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import streamlit as st

from lowrank_core.compression.start import suggested_plan
from lowrank_core.errors import LowRankError
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import Choice, PlanFile, RankPlan
from lowrank_core.store.files import own_folder, remove_left, write_whole
from lowrank_core.workspace import Workspace
from pages.ui import history_file
from pages.ui.goals import Goals
from pages.ui.history import History, and_so_on
from pages.ui.history_file import Kept
from pages.ui.merging import Conflict, Merged, merge
from pages.ui.state import models, on_disk, session
from pages.ui.waiting import Steps


def history(workspace: Workspace) -> History:
    """The plans of this session for this model; at first the one that the spectra suggest."""
    current = _loaded(workspace)
    if current is None:
        current = _begin(workspace, Kept(History(_first_plan(workspace), goals=_goals_so_far())))
    return current


def goals(workspace: Workspace) -> Goals:
    """What this session's plans of a model are judged by."""
    return history(workspace).goals


def aim(workspace: Workspace, goals: Goals) -> None:
    """Judge by other goals from now on, on every page; networks that are opened next begin with the same device."""
    current = history(workspace)
    st.session_state["goals so far"] = goals.elsewhere
    if goals != current.goals:
        set_history(workspace, current.aim(goals))


def _goals_so_far() -> Goals:
    chosen: Goals = st.session_state.get("goals so far", Goals())
    return chosen


def plan(workspace: Workspace) -> RankPlan:
    """The plan of this session for a model as it stands now."""
    return history(workspace).plan


def history_if_any(workspace: Workspace) -> History | None:
    """The plans of this session for this model; None where there are none yet, and none are made for it."""
    return _loaded(workspace)


def plan_if_made(workspace: Workspace) -> RankPlan | None:
    """The plan as it stands; None where the first one has still to be found, for which every layer is factorised."""
    current = _loaded(workspace)
    return current.plan if current else None


def _first_plan(workspace: Workspace) -> RankPlan:
    with Steps() as say:
        models.factorise(workspace, say)
        return suggested_plan(workspace.profile, workspace.factors)


def set_history(workspace: Workspace, history: History) -> None:
    """Remember a changed history, here and on disk; what another tab has saved since is taken into it.

    Where that collides this one's change is shown, and the other plan is a step of undo. What is only looked at is left
    as it is, and that is said.
    """
    if session.viewed():
        session.say(READ_ONLY)
        return
    fingerprint, file = workspace.profile.fingerprint, _file(workspace)
    st.session_state["histories"][fingerprint] = history
    try:
        saved = history_file.save(file, _kept().get(fingerprint, Kept(history)), history, workspace.profile)
    except (OSError, LowRankError) as error:
        on_disk.say_unwritable(file, error)
        return
    _begin(workspace, saved.kept)
    _note_collision(workspace, saved.merged)
    for line in (saved.said, _about(saved.merged, history.plan)):
        if line:
            session.say(line)


READ_ONLY = (
    "Nothing is changed: this address shows the work of another session. Make a copy of your own to go on from it."
)


def _note_collision(workspace: Workspace, merged: Merged) -> None:
    if merged.layers:
        before = {conflict.name: conflict for conflict in collisions(workspace)}
        now = before | {conflict.name: conflict for conflict in merged.layers}
        st.session_state.setdefault("collisions", {})[workspace.profile.fingerprint] = tuple(now.values())


def collisions(workspace: Workspace) -> tuple[Conflict[Choice | None], ...]:
    """Layers that another tab has set to something else, and nobody has chosen since which it should be."""
    noted: dict[str, tuple[Conflict[Choice | None], ...]] = st.session_state.get("collisions", {})
    plan = history(workspace).plan
    return tuple(one for one in noted.get(workspace.profile.fingerprint, ()) if plan.get(one.name) == one.mine)


def choose_of_collisions(workspace: Workspace, *, theirs: bool) -> None:
    """Have the layers as the other tab has set them, as one step, or as they are here."""
    open_ones = collisions(workspace)
    st.session_state.get("collisions", {}).pop(workspace.profile.fingerprint, None)
    if theirs and open_ones:
        current = history(workspace)
        plan = current.plan
        for conflict in open_ones:
            plan = plan.with_choice(conflict.name, conflict.theirs)
        set_history(workspace, current.commit(plan))


def make_a_copy() -> None:
    """Go on from the work that is looked at as a new session, with plans of its own."""
    begun = secrets.token_hex(8)
    owner = _session_viewed()
    for file in _histories_of(owner) if owner else ():
        try:
            write_whole(file.with_name(f"{begun}{file.name[len(owner) :]}"), file.read_bytes())
        except (OSError, LowRankError) as error:
            on_disk.say_unwritable(file, error)
            return
    session.begin_anew(begun)
    session.say("This is a copy of your own now: what you change here changes nothing for others.")


def _histories_of(owner: str) -> list[Path]:
    """The files with the plans of a session, one for each network."""
    folder = own_folder("state")
    return [file for file in folder.glob(f"{owner}-*.json") if _HISTORY.fullmatch(file.name)]


_HISTORY = re.compile(r"([0-9a-f]{16})-[0-9a-f]{12}\.json")


def _session_viewed() -> str:
    """The session whose work is looked at; "" where this server has none of it."""
    known: str | None = st.session_state.get("session that is viewed")
    if known is None:
        names = map(_HISTORY.fullmatch, (file.name for file in own_folder("state").glob("*.json")))
        owners = {name[1] for name in names if name is not None}
        known = next((owner for owner in owners if session.view_of(owner) == session.viewed()), "")
        st.session_state["session that is viewed"] = known
    return known


def is_nothing_viewed() -> bool:
    """Whether the address is to show work that this server does not have."""
    return bool(session.viewed()) and not _session_viewed()


def look_again(workspace: Workspace) -> None:
    """Before a page is drawn: take in what another tab of this address has saved since."""
    fingerprint, file = workspace.profile.fingerprint, _file(workspace)
    current = _loaded(workspace)
    if current is None:
        return
    if session.viewed():
        if history_file.changed(file, _kept()[fingerprint]):
            _look_at(workspace, file)
        return
    try:
        if not history_file.changed(file, _kept()[fingerprint]):
            return
        found = history_file.load(file, workspace.profile)
    except (OSError, LowRankError) as error:
        on_disk.say_unwritable(file, error)
        return
    if found.said:
        session.say(found.said)
    if found.kept is not None:
        merged = merge(_kept()[fingerprint].history, current, found.kept.history)
        _begin(workspace, found.kept)
        _note_collision(workspace, merged)
        st.session_state["histories"][fingerprint] = merged.history
        if about := _about(merged, current.plan):
            session.say(about)


def _about(merged: Merged, mine: RankPlan) -> str:
    """A line about what another tab has changed of the plan on the screen; "" where that is nothing."""
    collided = [conflict.name for conflict in (*merged.layers, *merged.settings)]
    if collided:
        undo = "; Undo leads back to the other plan" if merged.layers else ""
        return f"Another tab of this address has changed {and_so_on(collided)} too. What was set here is shown{undo}."
    before, after = dict(mine.choices), dict(merged.history.plan.choices)
    taken = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"Another tab of this address has changed {and_so_on(taken)}: that is taken in here." if taken else ""


def _loaded(workspace: Workspace) -> History | None:
    """This session's history, read from disk at first; None where there is none yet."""
    histories: dict[str, History] = st.session_state.setdefault("histories", {})
    fingerprint, file = workspace.profile.fingerprint, _file(workspace)
    if fingerprint in histories:
        return histories[fingerprint]
    if session.viewed():
        return _look_at(workspace, file)
    remove_left(file.parent)
    try:
        found = history_file.load(file, workspace.profile)
    except OSError as error:
        on_disk.say_unwritable(file, error)
        return None
    if found.said:
        session.say(found.said)
    return None if found.kept is None else _begin(workspace, found.kept)


def _look_at(workspace: Workspace, file: Path) -> History | None:
    """The history of another session as it lies on disk, which is left as it is; None where there is none."""
    found = history_file.look(file, workspace.profile)
    if found.said:
        session.say(found.said)
    return None if found.kept is None else _begin(workspace, found.kept)


def _begin(workspace: Workspace, kept: Kept) -> History:
    """Go on from a history as it lies on disk."""
    fingerprint = workspace.profile.fingerprint
    _kept()[fingerprint] = kept
    st.session_state["histories"][fingerprint] = kept.history
    return kept.history


def _kept() -> dict[str, Kept]:
    """For each model the history that this session and the disk have agreed upon."""
    kept: dict[str, Kept] = st.session_state.setdefault("histories on disk", {})
    return kept


def _file(workspace: Workspace) -> Path:
    return on_disk.file_of(workspace.profile.fingerprint, ".json", owner())


def owner() -> str:
    """The session whose plans are shown where it is not this one; "" for this one."""
    return _session_viewed() if session.viewed() else ""


def candidate(workspace: Workspace, plan: RankPlan | None = None) -> Candidate:
    """The plan as it stands, or another one, with the correction where it is on: that of the plan's file, if any."""
    current = history(workspace)
    chosen = current.plan if plan is None else plan
    if current.corrected and current.correction is not None and chosen.choices:
        return Candidate(chosen, workspace.correction_in(current.correction))
    return workspace.candidate(chosen, corrected=current.corrected)


def open_file(workspace: Workspace, file: PlanFile) -> None:
    """Make the plan of a file the session's own, with the correction it asks for."""
    current, asked = history(workspace), correction_of(workspace, file)
    corrected = file.correction is not None  # null says none
    if (file.plan, corrected, asked) != (current.plan, current.corrected, current.correction):
        set_history(workspace, current.commit(file.plan).correct(corrected, asked))


def correction_of(workspace: Workspace, file: PlanFile) -> Correction | None:
    """The correction of its own that a plan file asks for, the quick one where it is silent; None for none, and for the
    one of new plans."""
    if file.correction is None:
        return None
    asked = Correction.from_dict(file.correction) if file.correction else workspace.correction
    usual = (workspace.thorough, workspace.correction_in(workspace.thorough))
    return None if asked in usual else asked
