"""Plans: the history of this session for each model, saved at every change."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from lowrank_core.compression.start import starting_plan
from lowrank_core.errors import LowRankError
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import PlanFile, RankPlan
from lowrank_core.store.files import remove_left
from lowrank_core.workspace import Workspace
from pages.ui import history_file
from pages.ui.history import History, and_so_on
from pages.ui.history_file import Kept
from pages.ui.merging import Merged, merge
from pages.ui.state import models, on_disk, session
from pages.ui.waiting import Steps


def history(workspace: Workspace) -> History:
    """The plans of this session for this model; at first one at about half the multiplies."""
    return _loaded(workspace) or _begin(workspace, Kept(History(_first_plan(workspace))))


def plan(workspace: Workspace) -> RankPlan:
    """The plan of this session for a model as it stands now."""
    return history(workspace).plan


def plan_if_made(workspace: Workspace) -> RankPlan | None:
    """The plan as it stands; None where the first one has still to be found, for which every layer is factorised."""
    current = _loaded(workspace)
    return current.plan if current else None


def _first_plan(workspace: Workspace) -> RankPlan:
    with Steps() as say:
        models.factorise(workspace, say)
        return starting_plan(workspace.profile, workspace.factors)


def set_history(workspace: Workspace, history: History) -> None:
    """Remember a changed history, here and on disk; what another tab has saved since is taken into it.

    Where that collides this one's change is shown, and the other plan is a step of undo.
    """
    fingerprint, file = workspace.profile.fingerprint, _file(workspace)
    st.session_state["histories"][fingerprint] = history
    try:
        saved = history_file.save(file, _kept()[fingerprint], history, workspace.profile)
    except (OSError, LowRankError) as error:
        on_disk.say_unwritable(file, error)
        return
    _begin(workspace, saved.kept)
    for line in (saved.said, _about(saved.merged, history.plan)):
        if line:
            session.say(line)


def look_again(workspace: Workspace) -> None:
    """Before a page is drawn: take in what another tab of this address has saved since."""
    fingerprint, file = workspace.profile.fingerprint, _file(workspace)
    current = _loaded(workspace)
    if current is None:
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
    remove_left(file.parent)
    try:
        found = history_file.load(file, workspace.profile)
    except OSError as error:
        on_disk.say_unwritable(file, error)
        return None
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
    return on_disk.file_of(workspace.profile.fingerprint, ".json")


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
    corrected = file.correction is not None  # null says none; a file that is silent is measured as usual
    if (file.plan, corrected, asked) != (current.plan, current.corrected, current.correction):
        set_history(workspace, current.commit(file.plan).correct(corrected, asked))


def correction_of(workspace: Workspace, file: PlanFile) -> Correction | None:
    """The correction of its own that a plan file asks for; None for none, and for that which the workspace offers."""
    if not file.correction:
        return None
    asked = Correction.from_dict(file.correction)
    usual = (workspace.correction, workspace.correction_in(workspace.correction))
    return None if asked in usual else asked
