"""What pages/ui/state/runs.py takes from Streamlit's inside: all of it is named here, with what it is needed for."""

import ast
from importlib import import_module
from pathlib import Path

import pytest
import streamlit
from conftest import ROOT
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData, ScriptRequests
from streamlit.runtime.uploaded_file_manager import UploadedFileRec
from streamlit.testing.v1 import AppTest

RUNS = ROOT / "pages" / "ui" / "state" / "runs.py"
INSIDE = "streamlit.runtime.scriptrunner_utils."

NEEDED = {
    "exceptions.StopException": "a run that was replaced ends by it, without taking the newer one's fragments along",
    "script_requests.ScriptRequests": "what Streamlit asks of a run",
    "script_requests.ScriptRequestType.CONTINUE": "nothing is asked of a run: it may stream on",
    "script_requests.ScriptRequestType.STOP": "another run has taken the place of this one",
    "script_run_context.get_script_run_ctx": "the way from a run to what is asked of it",
    "script_run_context.ThreadState.get": "tells which fragment runs, so that a badge need not interrupt a board",
}
"""Private name -> why a page needs it."""


def missing(name: str, why: str) -> str:
    """What somebody reads who has just installed another Streamlit."""
    return (
        f"Streamlit {streamlit.__version__} has no {INSIDE}{name} any more. pages/ui/state/runs.py needs it: {why}. "
        "Find what took its place, change runs.py and this test, and only then the version in requirements.txt."
    )


@pytest.mark.parametrize(("name", "why"), NEEDED.items(), ids=NEEDED)
def test_streamlit_still_has_it(name: str, why: str) -> None:
    module, *path = name.split(".")
    try:
        found = import_module(INSIDE + module)
        for part in path:
            found = getattr(found, part)
    except (ImportError, AttributeError):
        pytest.fail(missing(name, why))


def test_what_is_asked_of_a_run_can_be_read() -> None:
    requests = ScriptRequests()
    why = "a run that streams must see that another one waits (newer_run_waits)"
    assert hasattr(requests, "_state"), missing("script_requests.ScriptRequests._state", why)
    requests.request_rerun(RerunData(fragment_id="badge"))
    waiting = getattr(getattr(requests, "_rerun_data", None), "fragment_id_queue", None)
    assert waiting == ["badge"], missing("script_requests.ScriptRequests._rerun_data.fragment_id_queue", why)


def test_a_run_knows_that_back_was_pressed() -> None:
    field = "script_run_context.ScriptRunContext.is_history_navigation"
    context = import_module(f"{INSIDE}script_run_context").ScriptRunContext
    why = "Back must bring the model of its page back (turned_back)"
    assert hasattr(context, "is_history_navigation"), missing(field, why)


def a_patient_badge() -> None:
    import streamlit as st

    from pages.ui.state import runs

    st.fragment(runs.let_wait)()
    assert runs._script_requests() is not None


def test_a_run_tells_its_fragment_and_what_is_asked_of_it() -> None:
    page = AppTest.from_function(a_patient_badge).run()
    why = "script_run_context.ThreadState.fragment_id, or ScriptRunContext.script_requests"
    assert not page.exception, missing(why, page.exception[0].message)
    assert len(page.session_state["patient"]) == 1, missing(why, "a badge does not interrupt a board (let_wait)")


def test_the_memory_of_an_upload_can_be_freed() -> None:
    manager = MemoryUploadedFileManager("")
    manager.add_file("session", UploadedFileRec("file", "net.onnx", "", b"1"))
    why = "files that were taken to disk would stay in memory as long as a tab is open (forget_uploads)"
    assert hasattr(manager, "remove_file"), missing("memory_uploaded_file_manager...remove_file", why)
    manager.remove_file(session_id="session", file_id="file")
    assert manager.get_files("session", ["file"]) == []


def inside(path: Path) -> set[str]:
    """The private names of Streamlit that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("streamlit.runtime"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("streamlit.runtime")}
    return found


def test_all_of_it_is_in_one_file_and_named_here() -> None:
    pages = [ROOT / "app.py", *(ROOT / "pages").rglob("*.py")]
    assert {path for path in pages if inside(path)} == {RUNS}
    named = {".".join((INSIDE + name).split(".")[:5]) for name in NEEDED}
    assert inside(RUNS) == named
