"""What is on the screen before PyTorch is imported, and the steps after it."""

import ast
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest

from lowrank_core.workspace import Workspace
from pages.ui.frame import PAGES
from pages.ui.once import Once
from pages.ui.state import models

LIGHT = """
import sys
import streamlit
before = set(sys.modules)
import pages.ui.frame, pages.ui.button, pages.ui.waiting
heavy = {"torch", "pandas", "numpy", "scipy", "plotly", "lowrank_core"}
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} & heavy))
"""


def test_the_frame_needs_nothing_heavy() -> None:
    told = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize("path", [path for path, _, _ in PAGES])
def test_a_page_imports_the_frame_alone(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    for node in tree.body:
        if isinstance(node, ast.If):
            node.orelse = []  # what `streamlit run` does once, before any page is drawn
    nodes = ast.walk(tree)
    imported = {ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)}
    assert imported == {"from pages.ui.frame import page"}


HOLD = """
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent

class Hold:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            (HERE / "asked").touch()
            while not (HERE / "go").exists():
                time.sleep(0.02)

sys.meta_path.insert(0, Hold())
"""
"""The import of PyTorch waits until there is a file of the name 'go'."""


def test_title_navigation_and_skeleton_come_before_pytorch(
    serve: Callable[..., str], page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOLD)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        url = serve("builtin:digits-cnn")
    try:
        for path, label, _ in (PAGES[0], PAGES[-1]):  # the files of all are alike, see above
            title = "Rank Explorer" if label == "Home" else label
            page.goto(url if label == "Home" else f"{url}/{Path(path).stem.partition('_')[2]}")
            expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
            for _, other, _ in PAGES:
                expect(page.get_by_test_id("stSidebar").get_by_role("link", name=other, exact=True)).to_be_visible()
            expect(page.get_by_test_id("skeleton")).to_be_visible()
            expect(page.get_by_role("status").filter(has_text="Loading PyTorch…")).to_be_visible()
            expect(page.get_by_text("dense top-1 accuracy")).to_have_count(0)
        assert (tmp_path / "asked").exists()
    finally:
        (tmp_path / "go").touch()
    expect(page.get_by_text("dense top-1 accuracy")).to_be_visible()  # as patient as all tests
    expect(page.get_by_test_id("skeleton")).to_have_count(0)
    expect(page.get_by_test_id("step")).to_have_count(0)


NETWORK = """
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(12, 12) for _ in range(5)), nn.BatchNorm1d(12)).eval()

def example_inputs():
    return (torch.zeros(1, 12),)

def eval_data():
    return torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
"""


def test_steps_are_said_with_counts_and_only_where_there_is_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.py"
    path.write_text(NETWORK)
    monkeypatch.setattr(models, "SAY_SECONDS", -1)
    said: list[str] = []
    workspace = models.open_model(str(path), "", said.append)
    assert isinstance(workspace, Workspace)
    assert said == ["Opening the model", "Looking at 6 layers", "Checking the network", "Scoring the dense network"]
    models.factorise(workspace, said.append)
    assert said[4:] == [f"Factorising {number} of 5 layers" for number in range(1, 6)]
    said.clear()
    assert models.open_model(str(path), "", said.append) is workspace
    assert said == []


def steps() -> None:
    import streamlit as st

    from pages.ui.waiting import Steps

    with Steps():
        pass
    with Steps() as say:
        say("Weighing <b>")
        if st.session_state.get("stay"):
            st.stop()


def test_steps_leave_nothing_on_a_page_and_are_text() -> None:
    page = AppTest.from_function(steps)
    assert not page.run().get("html")
    page.session_state["stay"] = True
    step, skeleton = page.run().get("html")
    assert "Weighing &lt;b&gt;…" in step.proto.body
    assert 'data-testid="skeleton"' in skeleton.proto.body


def test_what_two_ask_for_at_once_is_made_once() -> None:
    numbers: Once[str, int] = Once(2)
    began, go, made = threading.Event(), threading.Event(), []

    def make() -> int:
        made.append(1)
        began.set()
        assert go.wait(60)
        return 7

    found: list[int] = []
    askers = [threading.Thread(target=lambda: found.append(numbers("a", make))) for _ in range(2)]
    askers[0].start()
    assert began.wait(60)
    askers[1].start()
    assert "a" not in numbers
    go.set()
    for asker in askers:
        asker.join(60)
    assert (found, made) == ([7, 7], [1])


def test_what_went_wrong_is_made_again() -> None:
    numbers: Once[str, int] = Once(2)
    with pytest.raises(ZeroDivisionError):
        numbers("a", lambda: 1 // 0)
    assert numbers("a", lambda: 3) == 3


KEPT = {"session_state", "query_params", "cache_resource", "cache_data"}


def test_state_and_caches_are_touched_in_one_place() -> None:
    place = ROOT / "pages" / "ui" / "state"
    for path in [ROOT / "app.py", *(ROOT / "pages").rglob("*.py")]:
        used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert path.parent == place or not used & KEPT, f"{path.name} touches {used & KEPT}"
