"""What is looked at, in the side bar of every page: the network, and what the plan makes of it."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lowrank_core.figures import count
from lowrank_core.plans.cost import plan_cost
from lowrank_core.workspace import Workspace
from pages.ui import words
from pages.ui.frame import link
from pages.ui.state import measurements, plans, selected

MADE_HERE = ("Ranks", "Search", "Export")
"""Pages on which the plan may change without a run of the whole page: what stood here would be of an older one."""


def show(workspace: Workspace, page: str, place: DeltaGenerator) -> None:
    """The name of the network and, where the plan cannot change under it, what that takes and keeps."""
    with place.container(key="looked_at"):
        st.markdown(f"**{words.plain(workspace.name)}**")
        plan = plans.plan_if_made(workspace) if page not in MADE_HERE else None
        if plan is not None:
            cost, dense = plan_cost(workspace.profile, plan), plan_cost(workspace.profile)
            score = measurements.measured(workspace, plan)
            says = [f"{count(cost.bytes, 'B')} of {count(dense.bytes, 'B')}"]
            says.append(f"{count(cost.multiplies)} of {count(dense.multiplies)} multiplies")
            if score is not None:
                says.append(f"{words.score(workspace, score.value)} measured")
            st.caption("The plan: " + " · ".join(says))
        if page != "Ranks" and (layer := selected.layer(workspace.profile)):
            st.caption(f"Layer **{words.plain(layer)}** is selected.")
        if page != "Rank Explorer":
            link("Home", says="Look at another network")
