"""The session: its id in the address, and the small values it keeps from run to run."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Any

import streamlit as st

OWN = ("w", "view")
"""What an address says of whose work is shown: one of these."""

MOST_SHOWN = 40
"""Letters of an address in a message."""


def as_shown(in_address: str) -> str:
    """A word of an address as a message has it."""
    return in_address if len(in_address) <= MOST_SHOWN else f"{in_address[:MOST_SHOWN]}…"


def session_id() -> str:
    """The name of this session's saved work: the one in the address (?w=...), or a new one."""
    if "session" not in st.session_state:
        in_address = st.query_params.get("w", "")
        is_name = re.fullmatch(r"[0-9a-f]{16}", in_address) is not None
        st.session_state["session"] = in_address if is_name else secrets.token_hex(8)
        if in_address and not is_name:
            say(
                f"The address names no saved work: w={as_shown(in_address)!r} is not 16 of 0 to 9 and a to f. "
                "New work is begun."
            )
    return str(st.session_state["session"])


def view_of(session: str) -> str:
    """The word of an address (?view=...) that shows a session's saved work and cannot change it.

    Nobody finds the session's own name by it.
    """
    return hashlib.sha256(f"view of {session}".encode()).hexdigest()[:24]


def viewed() -> str:
    """The word of the saved work of another session that is only looked at here; "" where the work is one's own."""
    if "viewed" not in st.session_state:
        in_address = st.query_params.get("view", "")
        is_word = re.fullmatch(r"[0-9a-f]{24}", in_address) is not None
        st.session_state["viewed"] = in_address if is_word else ""
        if in_address and not is_word:
            say(
                f"The address shows no saved work: view={as_shown(in_address)!r} is not 24 of 0 to 9 and a to f. "
                "New work is begun."
            )
    return str(st.session_state["viewed"])


def view(word: str) -> None:
    """Look at the saved work of that word from now on; "" at one's own."""
    st.session_state["viewed"] = word
    forget_plans()


def begin_anew(name: str) -> None:
    """Go on as the session of that name, with its own saved work."""
    st.session_state["session"] = name
    view("")


def forget_plans() -> None:
    """What is known of plans is that of other saved work: it is read again."""
    for key in ("histories", "histories on disk", "collisions", "session that is viewed"):
        st.session_state.pop(key, None)


def turn_back() -> None:
    """Back or Forward was pressed: whose work that address shows is shown again."""
    word, name = st.query_params.get("view", ""), st.query_params.get("w", "")
    if re.fullmatch(r"[0-9a-f]{24}", word):
        if word != viewed():
            view(word)
    elif re.fullmatch(r"[0-9a-f]{16}", name) and (viewed() or name != session_id()):
        begin_anew(name)


def own_address() -> dict[str, str]:
    """What an address says of whose work is shown."""
    return {"view": viewed()} if viewed() else {"w": session_id()}


def put_own_in_address() -> None:
    """Say whose work is shown in the address, and nothing else about that."""
    own = own_address()
    if all(st.query_params.get(name, "") == own.get(name, "") for name in OWN):
        return
    others = {name: value for name, value in st.query_params.items() if name not in OWN}
    st.query_params.from_dict(others | own)  # at once: each setting is an entry in the browser's history


def put_in_address(name: str, value: str) -> None:
    """Say something of this session in the address, where it does not say so yet; `address` remembers it."""
    st.session_state.setdefault("address", {})[name] = value
    if st.query_params.get(name) != value:  # each setting is an entry in the browser's history
        st.query_params[name] = value


def remember(name: str, value: str | None) -> None:
    """Have links to other pages name something that a script on the page writes into the address; None: no more."""
    said: dict[str, str] = st.session_state.setdefault("address", {})
    if value is None:
        said.pop(name, None)
    else:
        said[name] = value


def address() -> dict[str, str]:
    """What the address says of this session, for links to another page: a switch of pages empties it.

    Whoever reloads at any moment finds the saved work by it.
    """
    said: dict[str, str] = st.session_state.get("address", {})
    return own_address() | said


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


def visit() -> dict[str, Any]:
    """Small values that are forgotten when another page is turned to."""
    found: dict[str, Any] = st.session_state.setdefault("visit", {})
    return found


def turn_to(page: str) -> None:
    """A page is shown: what was pressed on another one, and not seen there, is not meant for a later visit.

    What was told there has been read.
    """
    if st.session_state.get("page turned to") != page:
        st.session_state["page turned to"] = page
        st.session_state["visit"] = {}
        st.session_state.pop("pressed", None)
        read = st.session_state.pop("notices read", 0)
        st.session_state["notices"] = st.session_state.get("notices", [])[read:]
