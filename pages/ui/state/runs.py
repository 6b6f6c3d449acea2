"""How a run of a page ends before its time: the only file that uses what is private in Streamlit.

`tests/test_streamlit_private.py` names all of it and fails with the reason where another version has it elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
from streamlit.runtime.scriptrunner_utils.exceptions import StopException
from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequests, ScriptRequestType
from streamlit.runtime.scriptrunner_utils.script_run_context import ThreadState, get_script_run_ctx
from streamlit.typing import UploadedFile


def newer_run_waits() -> bool:
    """Whether another run of this session waits for this one to end.

    Streamlit ends a run for a full rerun by itself, but lets one of a fragment wait (1.67), and does not say so; a run
    that streams has to look, or a released thumb would wait for the measurement before it. The fragments of `let_wait`
    do wait.
    """
    end_if_replaced()
    requests = _script_requests()
    if requests is None or requests._state is ScriptRequestType.CONTINUE:
        return False
    waiting = set(requests._rerun_data.fragment_id_queue)
    return not waiting or not waiting <= st.session_state.get("patient", set())


def end_if_replaced() -> None:
    """End this run where Streamlit has already begun another one for the same page, as after a page switch.

    A run of a page that comes to its end by itself removes all fragments but its own (1.67): those of the run that took
    its place with them, whose buttons and boards then do nothing any more. Ended like this it removes none.
    """
    requests = _script_requests()
    if requests is not None and requests._state is ScriptRequestType.STOP:
        raise StopException


RACED = "dictionary changed size during iteration"
"""What Python says where another thread writes to the session's state while Streamlit goes through it."""


def again_if_raced(error: Exception) -> None:
    """Run the page once more where a run that was replaced and had not ended yet wrote to the session's state."""
    if isinstance(error, RuntimeError) and str(error) == RACED and not st.session_state.get("raced"):
        st.session_state["raced"] = True
        st.rerun()


def went_well() -> None:
    """A page has come to its end: the next race is a new one."""
    st.session_state.pop("raced", None)


def turned_back() -> bool:
    """Whether this run was asked for by Back or Forward of the browser."""
    return bool(getattr(get_script_run_ctx(), "is_history_navigation", False))


def _script_requests() -> ScriptRequests | None:
    """What Streamlit asks of this run; None outside of one."""
    context = get_script_run_ctx()
    return None if context is None else context.script_requests


def let_wait() -> None:
    """The fragment that calls this need not interrupt a run that streams."""
    fragment = ThreadState.get().fragment_id
    if fragment is not None:
        st.session_state.setdefault("patient", set()).add(fragment)


def forget_uploads(files: Sequence[UploadedFile]) -> None:
    """Free the memory of files that were taken: Streamlit (1.67) keeps them until the session ends."""
    context = get_script_run_ctx()
    remove = getattr(context and context.uploaded_file_mgr, "remove_file", None)
    if context is not None and remove is not None:
        for file in files:
            remove(session_id=context.session_id, file_id=file.file_id)
