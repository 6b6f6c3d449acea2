"""The survey: what it finds, that it gives way, and that it goes on from what is on disk."""

import time
from pathlib import Path

import pytest

from lowrank_core.builtin import POINTS
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.predict.sensitivity import asked
from lowrank_core.predict.survey import Survey
from lowrank_core.workspace import Workspace


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:iris-mlp")


def test_it_finds_every_point_and_the_uniform_reference(workspace: Workspace, tmp_path: Path) -> None:
    found = Survey(workspace, corrected=True, folder=tmp_path).wait()
    assert found.over
    assert {(p.layer, p.method, p.rank) for p in found.points} == {
        (name, choice.method, choice.rank) for name, choice in asked(workspace)
    }
    costs = {plan_cost(workspace.profile, uniform_plan(workspace.profile, share)).multiplies for share in (0.35, 0.8)}
    assert costs <= {u.multiplies for u in found.uniform}


def test_it_goes_on_from_what_is_on_disk(workspace: Workspace, tmp_path: Path) -> None:
    first = Survey(workspace, corrected=False, folder=tmp_path).wait()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = Survey(workspace, corrected=False, folder=tmp_path).wait()
    assert set(again.points) == set(first.points)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written


def test_it_gives_way_and_stops(workspace: Workspace, tmp_path: Path) -> None:
    with workspace.somebody_waits():
        survey = Survey(workspace, corrected=True, folder=tmp_path)
        time.sleep(0.3)
        assert not survey.findings.points
        survey.stop()
        assert survey.wait().over
    assert not survey.findings.points


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_ends_also_where_it_fails(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrank_core.predict.survey.measured", lambda *_, **__: 1 / 0)
    assert Survey(workspace, corrected=True, folder=tmp_path).wait().over


@pytest.mark.parametrize("name", ["digits-cnn", "iris-mlp", "fft-mlp", "digits-lstm"])
@pytest.mark.parametrize("corrected", [True, False])
def test_the_built_in_networks_ship_their_points(name: str, corrected: bool, tmp_path: Path) -> None:
    shown = Workspace.open(f"builtin:{name}")
    survey = Survey(shown, corrected=corrected, folder=tmp_path / "none", shipped=POINTS)
    with shown.somebody_waits():
        while not survey.findings.points and not survey.findings.over:
            time.sleep(0.02)
        survey.stop()
    have = {(p.layer, p.method, p.rank) for p in survey.findings.points}
    assert {(n, c.method, c.rank) for n, c in asked(shown)} <= have
