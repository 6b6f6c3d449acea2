"""Two tabs of one address, and what is said of files that do not fit: the pages in two sessions of one server."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.selection import make
from lowrank_core.workspace import Workspace
from pages.ui import running
from pages.ui.history import History
from pages.ui.question import Question
from pages.ui.state import jobs, plans, session
from tests.conftest import PATIENCE_SECONDS, ROOT

IRIS = "builtin:iris-mlp"
W = "00112233445566aa"


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open(IRIS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return platformdirs.user_state_path("rank-explorer")


@pytest.fixture
def saved(folder: Path, workspace: Workspace) -> Path:
    return folder / f"{W}-{workspace.profile.fingerprint[7:19]}.json"


@pytest.fixture
def tabs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`tabs(0)`, `tabs(1)`: from here on it is that session that calls."""
    states: dict[int, dict[str, object]] = {}

    def turn(number: int) -> None:
        monkeypatch.setattr(st, "session_state", states.setdefault(number, {"session": W}))

    turn(0)
    return turn


def ranked(history: History, **layers: int) -> History:
    plan = history.plan
    for name, rank in layers.items():
        plan = plan.with_choice(name, Choice("svd", (rank,)))
    return history.commit(plan)


def test_a_snapshot_of_one_tab_outlives_a_click_in_the_other(workspace, folder, tabs):
    histories = {}
    for tab in (0, 1):
        tabs(tab)
        histories[tab] = plans.history(workspace)
    tabs(0)
    plans.set_history(workspace, ranked(histories[0], fc1=2).keep("mine"))
    tabs(1)
    plans.set_history(workspace, ranked(histories[1], fc2=1))
    shown = plans.history(workspace)
    assert [snapshot.name for snapshot in shown.snapshots] == ["mine"]
    assert (shown.plan.get("fc1"), shown.plan.get("fc2")) == (Choice("svd", (2,)), Choice("svd", (1,)))
    assert session.later_notices() == ["Another tab of this address has changed fc1: that is taken in here."]
    tabs(0)
    assert session.notices() == []
    plans.look_again(workspace)
    assert plans.plan(workspace) == shown.plan
    assert plans.history(workspace).rev > shown.rev, "or the board would not take it"
    assert "fc2: that is taken in here" in session.notices()[0]
    plans.look_again(workspace)
    assert len(session.notices()) == 1


def test_where_both_set_a_layer_the_later_one_is_shown_and_undo_leads_to_the_other(workspace, folder, tabs):
    for tab in (0, 1):
        tabs(tab)
        plans.history(workspace)
    for tab in (0, 1):
        tabs(tab)
        plans.set_history(workspace, ranked(plans.history(workspace), fc1=tab + 2).tolerate(0.1 + tab))
    assert plans.plan(workspace).get("fc1") == Choice("svd", (3,))
    assert plans.history(workspace).undo().plan.get("fc1") == Choice("svd", (2,))
    (line,) = session.notices()
    assert "fc1 and tolerance too" in line
    assert "Undo leads back to the other plan" in line


def test_what_is_asked_in_two_tabs_is_noted_of_both(workspace, folder, tabs):
    wishes = [Question(make("energy", {"keep": share})) for share in (0.7, 0.8)]
    for tab, wish in enumerate(wishes):
        tabs(tab)
        jobs.note_asked(workspace, wish)
    assert jobs.noted(workspace) == tuple(wishes)
    (file,) = folder.glob("*-asked.json")
    damaged = file.read_bytes().replace(b"0.7", b"0.9")
    file.write_bytes(damaged)
    assert jobs.noted(workspace) == ()
    assert str(file) in session.notices()[0]
    jobs.note_asked(workspace, wishes[0])
    assert (jobs.noted(workspace), file.with_name(f"{file.name}.damaged-1").read_bytes()) == (
        tuple(wishes[:1]),
        damaged,
    )
    gone = json.dumps(
        [{"kind": "Question", "rule": {"name": "gone", "settings": {}}}, json.loads(file.read_text().split("\n")[1])[0]]
    )
    file.write_text(gone)
    assert jobs.noted(workspace) == tuple(wishes[:1])
    assert "1 of 2 cannot be taken over" in session.notices()[-1]
    assert file.with_name(f"{file.name}.damaged-2").read_text() == gone


def test_a_state_folder_that_cannot_be_written_is_named_once_and_the_work_goes_on(workspace, folder, tabs):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("no folder")
    for rank in (1, 2):
        plans.set_history(workspace, ranked(plans.history(workspace), fc1=rank))
    jobs.note_asked(workspace, None)  # type: ignore[arg-type]
    assert jobs.noted(workspace) == ()
    assert plans.plan(workspace).get("fc1") == Choice("svd", (2,))
    assert plans.history(workspace).undo().plan.get("fc1") == Choice("svd", (1,))
    (line,) = session.notices()
    assert line.startswith(f"{folder} cannot be written (")
    folder.unlink()
    plans.set_history(workspace, plans.history(workspace).keep("later"))
    tabs(1)
    assert plans.history(workspace).snapshots[0].name == "later", "kept once it can be"


def opened(title: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
    app.query_params["w"] = W
    app.query_params["model"] = IRIS
    return app.switch_page(f"pages/{title}.py").run()


def test_a_damaged_history_is_said_above_the_page_until_another_one_is_turned_to(workspace, folder, saved):
    folder.mkdir(parents=True)
    text = History(RankPlan(workspace.profile.fingerprint)).keep("kept").to_json()
    saved.write_text(text[:-30])
    page = opened("3_Ranks")
    aside = f"{saved}.damaged-1"
    assert not page.exception
    assert not page.error
    assert [aside in re.sub(r"\\(.)", r"\1", warning.value) for warning in page.warning] == [True]
    assert Path(aside).read_text() == text[:-30]
    assert len(page.run().warning) == 1
    assert not page.switch_page("pages/1_Model.py").run().warning
    assert not page.switch_page("pages/3_Ranks.py").run().warning


def test_the_address_names_the_session_before_anything_of_it_is_drawn_and_so_do_links(workspace, folder, monkeypatch):
    named: list[str] = []
    monkeypatch.setattr(running, "badge", lambda page: named.append(st.query_params.get("w", "")))
    app = opened("1_Model")
    for page in ("2_Spectra", "1_Model"):
        app.query_params.clear()  # as Streamlit does where another page is turned to
        app.switch_page(f"pages/{page}.py").run()
    assert named == [W] * 3
    links = [link.proto.query_string for link in app.get("page_link")]
    assert len(links) > 7
    assert set(links) == {f"w={W}&model=builtin%3Airis-mlp"}
