"""The session: its id in the address, and the small values it keeps from run to run."""

from __future__ import annotations

import re
import secrets
from typing import Any

import streamlit as st


def session_id() -> str:
    """The name of this session's saved work: the one in the address (?w=...), or a new one."""
    if "session" not in st.session_state:
        in_address = st.query_params.get("w", "")
        st.session_state["session"] = in_address if re.fullmatch(r"[0-9a-f]{16}", in_address) else secrets.token_hex(8)
    return str(st.session_state["session"])


MOST_NOTICES = 5
"""Lines above a page; the latest ones stay."""


def say(line: str) -> None:
    """Tell the person something once: it stands above the page until another one is turned to."""
    lines: list[str] = st.session_state.setdefault("notices", [])
    if line not in lines:
        lines.append(line)


def notices() -> list[str]:
    """What was told and is to be shown above a page: until another one is turned to."""
    lines: list[str] = st.session_state.get("notices", [])
    st.session_state["notices shown"] = st.session_state["notices read"] = len(lines)
    return lines[-MOST_NOTICES:]


def later_notices() -> list[str]:
    """What was told since the page was drawn, for a fragment of it that is drawn anew."""
    lines: list[str] = st.session_state.get("notices", [])
    st.session_state["notices read"] = len(lines)
    return lines[st.session_state.get("notices shown", 0) :][-MOST_NOTICES:]


def widget(key: str) -> Any:
    """What a widget holds, or what was kept under that name; None where there is nothing."""
    return st.session_state.get(key)


def set_widget(key: str, value: Any) -> None:
    """Keep a small value, or a place on the page, until the next run."""
    st.session_state[key] = value


def heard() -> tuple[str, int]:
    """The board whose messages came last, and the number of the last one."""
    last: tuple[str, int] = st.session_state.get("heard", ("", 0))
    return last


def hear(board: str, number: int) -> bool:
    """Note a message of a board; False where it was heard before, as messages may come again."""
    if heard()[0] == board and number <= heard()[1]:
        return False
    st.session_state["heard"] = board, number
    return True


def press(button: str) -> None:
    """Remember that a button was clicked, until `take_press` has seen it."""
    st.session_state["pressed"] = button


def take_press(button: str) -> bool:
    """Whether the button was the last one pressed and nobody has taken the click yet."""
    pressed = st.session_state.get("pressed") == button
    if pressed:
        del st.session_state["pressed"]
    return pressed


def turn_to(page: str) -> None:
    """A page is shown: what was pressed on another one, and not seen there, is not meant for a later visit.

    What was told there has been read.
    """
    if st.session_state.get("page turned to") != page:
        st.session_state["page turned to"] = page
        st.session_state.pop("pressed", None)
        read = st.session_state.pop("notices read", 0)
        st.session_state["notices"] = st.session_state.get("notices", [])[read:]
