"""Work of another session that is only looked at (?view=...), and what two tabs of one address have both set."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from lowrank_core.workspace import Workspace
from pages.ui import words
from pages.ui.history import and_so_on
from pages.ui.state import plans, session
from pages.ui.steps import choice_text


def show(place: DeltaGenerator) -> None:
    """Above a page that shows another session's work: that nothing changes it, and how to go on from it."""
    if not session.viewed():
        return
    if plans.is_nothing_viewed():
        place.warning(
            "The address shows saved work that this server does not have: ask for the address again. What stands here "
            "is not kept.",
            icon=":material/visibility_off:",
        )
        return
    with place.container(horizontal=True, vertical_alignment="center", key="viewing"):
        st.info(
            "A read-only view of another session's plans. Load the page again to see what has changed there since.",
            icon=":material/visibility:",
        )
        st.button("Make a copy of my own", key="make a copy", on_click=plans.make_a_copy, type="primary")


def choose_of_collisions(workspace: Workspace) -> None:
    """Where two tabs have both set a layer: what each has set, and which it should be."""
    collisions = plans.collisions(workspace)
    if not collisions:
        return
    each = [f"{one.name} ({choice_text(one.theirs)} there, {choice_text(one.mine)} here)" for one in collisions]
    with st.container(horizontal=True, vertical_alignment="center", key="collision"):
        st.warning(words.plain(f"Changed elsewhere, too: {and_so_on(each)}."), icon=":material/call_split:")
        for label, theirs in (("Load it", True), ("Keep mine", False)):
            st.button(
                label,
                key=f"collision {label}",
                on_click=plans.choose_of_collisions,
                args=(workspace,),
                kwargs={"theirs": theirs},
            )
