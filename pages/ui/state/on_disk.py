"""What a session keeps on disk: where, and what is said where that cannot be written."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from lowrank_core.store.files import is_not_kept, own_folder
from pages.ui.state import session


def file_of(fingerprint: str, ending: str, owner: str = "") -> Path:
    """Where a session keeps something about a model, this one without `owner`; whoever writes it makes the folder."""
    return own_folder("state") / f"{owner or session.session_id()}-{fingerprint[7:19]}{ending}"


def say_unwritable(file: Path, error: Exception) -> None:
    """Tell the person, once in a session, that nothing can be kept on disk, and where; not what every page says."""
    if not st.session_state.get("unwritable told") and not is_not_kept(file.parent):
        st.session_state["unwritable told"] = True
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        session.say(
            f"{file.parent} cannot be written ({why}): plans and what was asked for stay in memory, as long as this "
            "tab is open. Make room there, or make it writable; the next change is then kept."
        )
