"""The survey: what it finds, that it gives way, and that it goes on from what is on disk."""

from math import inf
from pathlib import Path

import pytest

from lowrank_core.builtin import POINTS
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.predict.context import JOINT_PLANS, VERSION
from lowrank_core.predict.prediction import Context, Point, Repair
from lowrank_core.predict.sensitivity import PointFile, asked
from lowrank_core.predict.survey import CONTEXT, Finding, Learnt, read_context, survey, write_context
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.running.scope import somebody_waits
from lowrank_core.store.documents import sealed
from lowrank_core.workspace import Workspace


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:iris-mlp")


def begun(
    workspace: Workspace, folder: Path, *, corrected: bool = True, shipped: Path | None = None
) -> Job[tuple[Finding, ...]]:
    """As the page Ranks begins it."""
    return Job(
        "the survey",
        lambda: survey(workspace, corrected=corrected, folder=folder, shipped=shipped),
        patience_seconds=inf,
    )


def points(known: Snapshot[tuple[Finding, ...]]) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(point.layer, point.method, point.rank) for point in Learnt.of(known).points}


def all_points(workspace: Workspace) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(name, choice.method, choice.rank) for name, choice in asked(workspace)}


def test_it_finds_every_point_the_uniform_reference_and_what_layers_do_to_each_other(
    workspace: Workspace, tmp_path: Path
) -> None:
    end = begun(workspace, tmp_path).wait()
    assert (end.over, end.error, end.cancelled) == (True, None, False)
    learnt = Learnt.of(end)
    assert points(end) == all_points(workspace)
    assert len(learnt.points) == len(points(end)), "each once"
    costs = {plan_cost(workspace.profile, uniform_plan(workspace.profile, share)).multiplies for share in (0.35, 0.8)}
    assert costs <= {uniform.multiplies for uniform in learnt.uniform}
    assert learnt.context.order == tuple(layer.name for layer in workspace.profile.layers)


def test_it_says_how_far_it_is_while_it_measures_layers(workspace: Workspace, tmp_path: Path) -> None:
    job, heard = begun(workspace, tmp_path, corrected=False), []
    known = job.snapshot
    while not known.over:
        known = job.changed(known, seconds=10)
        heard.append(known.progress)
    total = len(asked(workspace))
    assert any(progress.words.endswith(f" of {total} points") for progress in heard)


def test_it_goes_on_from_what_is_on_disk(workspace: Workspace, tmp_path: Path) -> None:
    first = begun(workspace, tmp_path, corrected=False).wait()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = begun(workspace, tmp_path, corrected=False).wait()
    assert points(again) == points(first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written


def test_it_gives_way_and_is_cancelled_while_it_does(workspace: Workspace, tmp_path: Path) -> None:
    with somebody_waits():
        job = begun(workspace, tmp_path)
        assert not Learnt.of(job.wait(0.3)).points
        job.cancel()
        assert job.wait().cancelled
    assert not Learnt.of(job.snapshot).points


def test_cancelled_half_way_what_it_measured_is_on_disk(workspace: Workspace, tmp_path: Path) -> None:
    job = begun(workspace, tmp_path)
    known = job.wait(until=lambda known: bool(known.found))
    job.cancel()
    end = job.wait()
    assert end.over
    assert points(known) <= points(end)
    assert Learnt.of(end).points
    file = PointFile(tmp_path, workspace, workspace.correction)
    assert points(end) <= {(point.layer, point.method, point.rank) for point in file.load()}


def test_the_context_and_points_of_another_network_are_not_believed_under_this_ones_names(
    workspace: Workspace, tmp_path: Path
) -> None:
    mine, other = PointFile(tmp_path, workspace, workspace.correction), PointFile(tmp_path, workspace, None)
    write_context(other, Context(("fc1",), (), 1.5))
    other.add(Point("fc1", "svd", (1,), 0.5, 0.5, 0.5))
    assert read_context(other) is not None
    for there, here in ((other.path, mine.path), (other.beside("context", VERSION), mine.beside("context", VERSION))):
        there.rename(here)
    assert (read_context(mine), mine.load()) == (None, ())


def test_it_ends_also_where_it_fails_and_says_why(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowrank_core.predict.survey.measured", lambda *_, **__: 1 / 0)
    end = begun(workspace, tmp_path).wait()
    assert end.over
    assert "ZeroDivisionError" in str(end.error)


def test_a_model_that_scores_itself_has_nothing_to_learn(workspace: Workspace, tmp_path: Path) -> None:
    from dataclasses import replace

    own = Workspace.open("builtin:iris-mlp")
    own.opened = replace(own.opened, evaluate=lambda model: 1.0)
    assert begun(own, tmp_path).wait().found == ()


@pytest.mark.parametrize("name", ["digits-cnn", "iris-mlp", "fft-mlp", "digits-lstm"])
@pytest.mark.parametrize("corrected", [True, False])
def test_the_built_in_networks_ship_their_points(name: str, corrected: bool, tmp_path: Path) -> None:
    shown = Workspace.open(f"builtin:{name}")
    with somebody_waits():
        job = begun(shown, tmp_path / "none", corrected=corrected, shipped=POINTS)
        known = job.wait(until=lambda known: bool(known.found))
        job.cancel()
    assert all(isinstance(one, Point) for one in known.found[0])
    assert all_points(shown) <= points(known)


def test_a_context_of_an_older_version_serves_until_plans_are_measured_and_its_repairs_stay(
    workspace: Workspace, tmp_path: Path
) -> None:
    file = PointFile(tmp_path, workspace, workspace.correction)
    old = b'{"order":["fc1","fc2"],"repairs":[{"layer":"fc1","change":0.5,"kept":0.25}],"scale":0.15}'
    path = file.beside("context", 1)
    path.write_bytes(sealed(CONTEXT, old, path.name))
    repairs = (Repair("fc1", 0.5, 0.25),)
    found = [one for some in begun(workspace, tmp_path).wait().found for one in some if isinstance(one, Context)]
    assert found[0] == Context(("fc1", "fc2"), repairs, 0.15)
    assert [len(context.joints) for context in found] == sorted(len(context.joints) for context in found)
    assert found[-1].repairs == repairs
    assert len(found[-1].joints) == JOINT_PLANS
    again = Learnt.of(begun(workspace, tmp_path).wait()).context
    assert again == found[-1] == read_context(file)


def test_without_correction_no_layer_makes_good_what_another_loses_but_plans_are_measured(
    workspace: Workspace, tmp_path: Path
) -> None:
    context = Learnt.of(begun(workspace, tmp_path, corrected=False).wait()).context
    assert context.repairs == ()
    assert len(context.joints) == JOINT_PLANS
