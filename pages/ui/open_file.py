"""A plan, or a whole work, opened from a file for the network that is looked at: data, never code."""

from __future__ import annotations

import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.plans.plan import LARGEST_BYTES
from lowrank_core.workspace import Workspace
from pages.ui import plan_from_file, words, work_file
from pages.ui.state import plans, runs, session, works


def show(workspace: Workspace) -> None:
    """A place for a file, and what became of the last one; what does not fit is refused and all stays as it is."""
    number = session.widget("plan file number") or 0
    rev = plans.history(workspace).rev
    st.file_uploader(
        "Plan (.json) or work (.jsonl)",
        type=["json", "jsonl"],
        max_upload_size=max(LARGEST_BYTES, work_file.LARGEST_BYTES) // 10**6,
        key=f"plan file {number}",
        on_change=_given,
        args=(workspace, number),
    )
    lines, of = session.widget("plan file said") or ([], rev)
    for how, line in lines if of == rev else ():  # it is old once the plan has changed
        {"error": st.error, "info": st.info, "success": st.success, "warning": st.warning}[how](words.plain(line))


def _given(workspace: Workspace, number: int) -> None:
    file = session.widget(f"plan file {number}")
    if file is None:
        return
    lines = take(workspace, file.name, file.getvalue())
    session.set_widget("plan file said", (lines, plans.history(workspace).rev))
    session.set_widget("plan file number", number + 1)
    runs.forget_uploads([file])


def take(workspace: Workspace, name: str, content: bytes) -> list[tuple[str, str]]:
    """Go on with what a file holds, and say what that is: (how it is meant, line) each."""
    try:
        if work_file.is_work(content):
            return [("success", f"{name}: {works.take(workspace, content)}")]
        taken = plan_from_file.take(workspace, content)
    except LowRankError as error:
        return [("error", f"{name} is not used: {error}")]
    said = [("info", taken.correction)] if taken.correction else []
    said.append(("success", f"{name} is the plan now; Undo on the page Ranks brings the one before it back."))
    return [*said, *(("warning", warning) for warning in taken.warnings)]
