"""A button whose click is not lost."""

from __future__ import annotations

from typing import Any

import streamlit as st

from pages.ui.state import runs, session


def button(label: str, *, key: str | None = None, disabled: bool = False, **look: Any) -> bool:
    """Like `st.button`, but a click lasts until a run of its page has come to the button.

    Streamlit (1.67) sets all triggers back when a run ends, also the click that another run of the session, which has
    replaced this one, is still to see. A callback comes before that, so it keeps the click here.
    """
    name = key or label
    st.button(label, key=key, disabled=disabled, on_click=session.press, args=(name,), **look)
    runs.end_if_replaced()
    return session.take_press(name) and not disabled
