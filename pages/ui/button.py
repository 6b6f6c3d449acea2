"""A button whose click is not lost."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.ui import state


def button(label: str, *, key: str | None = None, disabled: bool = False, **look: Any) -> bool:
    """Like `st.button`, but a click lasts until a run of its page has come to the button.

    Streamlit (1.67) sets all triggers back when a run ends, also the click that another run of the session, which has
    replaced this one, is still to see. A callback comes before that, so it keeps the click here.
    """
    name = key or label
    st.button(label, key=key, disabled=disabled, on_click=_press, args=(name,), **look)
    state.end_if_replaced()
    pressed = st.session_state.get("pressed") == name
    if pressed:
        del st.session_state["pressed"]
    return pressed and not disabled


def turn_to(page: str) -> None:
    """A page is shown: what was pressed on another one, and not seen there, is not meant for a later visit."""
    if st.session_state.get("page turned to") != page:
        st.session_state["page turned to"] = page
        st.session_state.pop("pressed", None)


def _press(name: str) -> None:
    st.session_state["pressed"] = name
