"""Plans: the history of this session for each model, saved at every change."""

from __future__ import annotations

import streamlit as st

from lowrank_core.compression.start import starting_plan
from lowrank_core.errors import LowRankError
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import RankPlan
from lowrank_core.store.files import remove_left, write_whole
from lowrank_core.workspace import Workspace
from pages.ui.history import History
from pages.ui.state import models
from pages.ui.state.session import saved_file
from pages.ui.waiting import Steps


def history(shown: Workspace) -> History:
    """The plans of this session for this model; at first one at about half the multiplies."""
    histories = st.session_state.setdefault("histories", {})
    fingerprint = shown.profile.fingerprint
    if fingerprint not in histories:
        histories[fingerprint] = _saved(fingerprint, shown) or History(_first_plan(shown))
    return histories[fingerprint]  # type: ignore[no-any-return]


def plan(shown: Workspace) -> RankPlan:
    """The plan as it stands."""
    return history(shown).plan


def plan_if_made(shown: Workspace) -> RankPlan | None:
    """The plan as it stands; None where the first one has still to be found, for which every layer is factorised."""
    fingerprint = shown.profile.fingerprint
    kept = st.session_state.get("histories", {}).get(fingerprint) or _saved(fingerprint, shown)
    return kept.plan if kept else None


def _first_plan(shown: Workspace) -> RankPlan:
    with Steps() as say:
        models.factorise(shown, say)
        return starting_plan(shown.profile, shown.factors)


def set_history(shown: Workspace, changed: History) -> None:
    """Remember a changed history, here and on disk."""
    st.session_state["histories"][shown.profile.fingerprint] = changed
    write_whole(saved_file(shown.profile.fingerprint, ".json"), changed.to_json().encode())


def _saved(fingerprint: str, shown: Workspace) -> History | None:
    path = saved_file(fingerprint, ".json")
    remove_left(path.parent)
    try:
        found = History.from_json(path.read_text(encoding="utf-8"))
        for kept in (found.plan, *found.past, *found.future, *(s.plan for s in found.snapshots)):
            check_plan(shown.profile, kept)
    except (OSError, ValueError, KeyError, TypeError, LowRankError):
        return None
    return found


def candidate(shown: Workspace, wanted: RankPlan | None = None) -> Candidate:
    """The plan as it stands, or another one, with the correction where it is on."""
    kept = history(shown)
    return shown.candidate(kept.plan if wanted is None else wanted, corrected=kept.corrected)
