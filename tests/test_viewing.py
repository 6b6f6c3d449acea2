"""Work of another session that is only looked at, what two tabs both set, and scores that outlive the server."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import platformdirs
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from lowrank_core.measure.measurement import measurement
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.store.documents import sealed
from lowrank_core.workspace import Workspace
from pages.ui import history_panel
from pages.ui.history import History
from pages.ui.history_file import KIND
from pages.ui.state import measurements, models, plans, session
from tests.conftest import PATIENCE_SECONDS, ROOT

IRIS = "builtin:iris-mlp"
OWNER = "00112233445566aa"


@pytest.fixture
def workspace() -> Workspace:
    return Workspace.open(IRIS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return platformdirs.user_state_path("rank-explorer")


Become = Callable[..., None]


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Iterator[Become]:
    """`become(w, view)`: from here on a new visitor with that name in the address, or that word."""

    def become(w: str, view: str = "") -> None:
        monkeypatch.setattr(st, "session_state", {"session": w, "viewed": view})

    become(OWNER)
    return become


def ranked(history: History, rank: int) -> History:
    return history.commit(history.plan.with_choice("fc1", Choice("svd", (rank,))))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_who_looks_at_a_session_follows_it_and_changes_nothing_and_may_go_on_from_a_copy(workspace, folder, become):
    history = ranked(plans.history(workspace), 2).keep("mine")
    plans.set_history(workspace, history)
    written = contents(folder)
    word = session.view_of(OWNER)
    assert OWNER not in word
    become("f" * 16, word)
    assert plans.history(workspace) == history
    assert session.address() == {"view": word}
    plans.set_history(workspace, ranked(plans.history(workspace), 1).remove("mine"))
    assert plans.history(workspace) == history
    assert session.notices() == [plans.READ_ONLY]
    assert contents(folder) == written
    viewer = st.session_state

    become(OWNER)
    later = ranked(plans.history(workspace), 1)
    plans.set_history(workspace, later)
    st.session_state = viewer
    plans.look_again(workspace)
    assert plans.plan(workspace) == later.plan

    plans.make_a_copy()
    assert session.viewed() == ""
    assert session.session_id() not in ("f" * 16, OWNER)
    assert session.address() == {"w": session.session_id()}
    plans.set_history(workspace, ranked(plans.history(workspace), 2))
    assert [one.name for one in plans.history(workspace).snapshots] == ["mine"]
    become(OWNER)
    assert plans.plan(workspace) == later.plan


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nothing", "The saved plans that this address shows are damaged, or another network's."),
        (sealed(KIND, b"[]")[:-1], "damaged"),
        (History(RankPlan("sha256:0")).to_json().encode(), "another network's"),
    ],
    ids=range(3),
)
def test_a_damaged_file_that_is_looked_at_is_left_as_it_is_and_said(workspace, folder, become, content, said):
    plans.set_history(workspace, plans.history(workspace).keep("mine"))
    (file,) = (path for path in folder.iterdir() if path.name != ".lock")
    file.write_bytes(content)
    become("f" * 16, session.view_of(OWNER))
    assert plans.history(workspace).snapshots == ()
    (line,) = session.notices()
    assert said in line
    assert contents(folder) == {file.name: content}


def test_a_word_that_shows_nothing_is_said_and_nothing_is_written(workspace, folder, become):
    become("f" * 16, session.view_of("e" * 16))
    assert plans.is_nothing_viewed()
    plans.history(workspace)
    assert not folder.exists() or contents(folder) == {}


@pytest.mark.parametrize(("word", "lines"), [("<b>x</b>", 1), ("0" * 24, 1), ("x" * 5000, 1)])
def test_an_address_that_shows_nothing_is_one_clear_line_on_the_page(folder, word, lines):
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
    page.query_params["view"] = word
    page.query_params["model"] = IRIS
    page.switch_page("pages/1_Model.py").run()
    assert not page.exception
    assert len(page.warning) == lines
    assert "The address shows" in page.warning[0].value
    assert len(page.warning[0].value) < 250


def test_what_both_have_set_is_offered_until_it_is_chosen_or_set_anew(workspace, folder, become):
    plans.history(workspace)
    mine = st.session_state
    become(OWNER)
    plans.set_history(workspace, ranked(plans.history(workspace), 2))
    st.session_state = mine
    plans.set_history(workspace, ranked(plans.history(workspace), 3))
    (conflict,) = plans.collisions(workspace)
    assert (conflict.name, conflict.theirs, conflict.mine) == ("fc1", Choice("svd", (2,)), Choice("svd", (3,)))
    plans.choose_of_collisions(workspace, theirs=True)
    assert plans.plan(workspace).get("fc1") == Choice("svd", (2,))
    assert plans.history(workspace).undo().plan.get("fc1") == Choice("svd", (3,))
    assert plans.collisions(workspace) == ()
    st.session_state["collisions"] = {workspace.profile.fingerprint: (conflict,)}
    assert plans.collisions(workspace) == (), "it is not as mine was any more"
    plans.set_history(workspace, ranked(plans.history(workspace), 3))
    plans.choose_of_collisions(workspace, theirs=False)
    assert plans.plan(workspace).get("fc1") == Choice("svd", (3,))
    assert plans.collisions(workspace) == ()


@pytest.fixture
def restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From here on a server that has measured nothing yet, on the same disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measurements._ledger.clear()
    return measurements._ledger.clear


def score_of(workspace: Workspace, candidate: Candidate) -> float:
    return measurement(workspace, candidate).wait(until=lambda snapshot: snapshot.over).found[-1].score.value


def test_a_score_outlives_the_server_and_the_switch_of_the_correction_and_says_how_it_was_measured(
    workspace, folder, become, restart
):
    plan = RankPlan(workspace.profile.fingerprint).with_choice("fc1", Choice("svd", (1,)))
    plans.set_history(workspace, plans.history(workspace).commit(plan).keep("light"))
    assert measurements.known(workspace, plan) is None
    thorough = score_of(workspace, plans.candidate(workspace))
    assert measurements.known(workspace, plan).how == "thorough"
    restart()
    again = Workspace.open(IRIS)
    known = measurements.known(again, plan)
    assert (known.score.value, known.how) == (thorough, "thorough")
    assert measurements.measured(again, plan) == known.score
    plans.set_history(again, plans.history(again).correct(False))
    assert measurements.measured(again, plan) is None, "it was measured with another correction"
    assert measurements.known(again, plan).how == "thorough"
    find = partial(measurements.known, again)
    (shown,) = history_panel.fields(again, plans.history(again), find, with_steps=False)["snapshots"]
    assert (shown["score"], shown["how"]) == (thorough, "thorough")
    plain = score_of(again, plans.candidate(again))
    assert (measurements.known(again, plan).score.value, measurements.known(again, plan).how) == (
        plain,
        "without correction",
    )


def test_a_score_of_other_data_is_never_shown(tmp_path, folder, become, restart):
    """The same weights on other samples: another key, and so no score."""
    text = """
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()

def example_inputs():
    return (torch.zeros(1, 16),)

def eval_data():
    return torch.randn(40, 16, generator=torch.Generator().manual_seed(SEED))
"""
    opened = []
    for seed in (1, 2):
        (tmp_path / "net.py").write_text(text.replace("SEED", str(seed)))
        opened.append(Workspace.open(str(tmp_path / "net.py")))
    one, other = opened
    assert one.profile.fingerprint == other.profile.fingerprint
    plan = RankPlan(one.profile.fingerprint).with_choice("0", Choice("svd", (2,)))
    plans.set_history(one, plans.history(one).commit(plan).correct(False))
    score_of(one, plans.candidate(one))
    assert measurements.known(one, plan) is not None
    assert measurements.known(other, plan) is None
    assert models.key(one) != models.key(other)
