"""Plans: the history of this session for each model, saved at every change."""

from __future__ import annotations

import streamlit as st

from lowrank_core.compression.start import starting_plan
from lowrank_core.errors import LowRankError
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import PlanFile, RankPlan
from lowrank_core.store.files import keep_whole, remove_left
from lowrank_core.workspace import Workspace
from pages.ui.history import History
from pages.ui.state import models
from pages.ui.state.session import saved_file
from pages.ui.waiting import Steps


def history(workspace: Workspace) -> History:
    """The plans of this session for this model; at first one at about half the multiplies."""
    histories = st.session_state.setdefault("histories", {})
    fingerprint = workspace.profile.fingerprint
    if fingerprint not in histories:
        histories[fingerprint] = _saved(fingerprint, workspace) or History(_first_plan(workspace))
    return histories[fingerprint]  # type: ignore[no-any-return]


def plan(workspace: Workspace) -> RankPlan:
    """The plan of this session for a model as it stands now."""
    return history(workspace).plan


def plan_if_made(workspace: Workspace) -> RankPlan | None:
    """The plan as it stands; None where the first one has still to be found, for which every layer is factorised."""
    fingerprint = workspace.profile.fingerprint
    current = st.session_state.get("histories", {}).get(fingerprint) or _saved(fingerprint, workspace)
    return current.plan if current else None


def _first_plan(workspace: Workspace) -> RankPlan:
    with Steps() as say:
        models.factorise(workspace, say)
        return starting_plan(workspace.profile, workspace.factors)


def set_history(workspace: Workspace, history: History) -> None:
    """Remember a changed history, here and on disk."""
    st.session_state["histories"][workspace.profile.fingerprint] = history
    keep_whole(saved_file(workspace.profile.fingerprint, ".json"), history.to_json().encode())


def _saved(fingerprint: str, workspace: Workspace) -> History | None:
    path = saved_file(fingerprint, ".json")
    remove_left(path.parent)
    try:
        saved = History.from_json(path.read_text(encoding="utf-8"))
        for plan in (saved.plan, *saved.past, *saved.future, *(s.plan for s in saved.snapshots)):
            check_plan(workspace.profile, plan)
    except (OSError, ValueError, KeyError, TypeError, LowRankError):
        return None
    return saved


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
