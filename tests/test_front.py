"""The front of a search, and plans refined: from one set of curves, within the budgets, the same again."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lowrank_core.commands import _opening, cli
from lowrank_core.errors import Cancelled, InvalidFile, InvalidSearch
from lowrank_core.layers.data import Dataset
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice
from lowrank_core.running.scope import scope
from lowrank_core.scoring.metrics import TOP1
from lowrank_core.scoring.scores import Score
from lowrank_core.selection import front, refine
from lowrank_core.selection._curves import Table, asks, best_plan, measured, menus_of, sharpened
from lowrank_core.selection._front import front_csv, front_json, prediction, read_front
from lowrank_core.selection._problem import problem_of
from lowrank_core.selection._refine import depths, refined, weights_known
from lowrank_core.selection._whole import judge, mean
from lowrank_core.sources._opened import Opened
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small() -> Workspace:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)).eval()
        for at, rank in ((0, 4), (2, 3)):
            noise, weight = 0.02 * torch.randn_like(model[at].weight), model[at].weight
            low = torch.randn(24, rank) @ torch.randn(rank, weight.shape[1])
            weight.data = low / (rank * weight.shape[1]) ** 0.5 + noise
        inputs = torch.randn(900, 20)
        with torch.no_grad():
            data = Dataset(inputs, model(inputs).argmax(1))
    return Workspace(Opened("net", "net", "", model, (inputs[:2],), lambda: data, lambda: data, lambda _: TOP1))


@pytest.fixture(scope="module")
def problem(small):
    return problem_of(small, multiplies=0.5, methods=("svd",), samples=200)


@pytest.fixture(scope="module")
def points(problem):
    return measured(problem, asks(problem), problem.workspace.calibration.pick(slice(0, 64)))


@pytest.fixture(scope="module")
def found(problem, points):
    return front(problem, budgets=12, measure=3, points=points)


def test_every_plan_of_a_front_keeps_its_budget_and_more_is_never_predicted_worse(problem, found):
    profile = problem.workspace.profile
    dense = plan_cost(profile).multiplies
    assert found[-1].share == 1
    assert found[-1].predicted.drop == 0
    assert any(point.share == 0.5 for point in found)
    for point in found:
        assert plan_cost(profile, point.candidate.plan) == point.cost
        assert point.cost.multiplies <= point.limit == pytest.approx(point.share * dense)
        assert point.predicted.drop_low <= point.predicted.drop <= point.predicted.drop_high
    drops = [point.predicted.drop for point in found]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] > 0
    assert 1 <= sum(point.score is not None for point in found) <= 3


def test_a_plan_of_a_front_is_the_one_a_search_at_that_budget_finds_from_the_same_curves(problem, points, found):
    menus = menus_of(problem, points)
    for point in found:
        assert point.candidate.plan == best_plan(problem, menus, {"multiplies": point.limit})


def test_layers_that_are_held_stay_as_they_are_and_take_their_part_of_every_budget(small, points):
    problem = problem_of(small, methods=("svd",), samples=200)
    held = {"0": Choice("svd", (3,)), "4": None}
    found = front(problem, budgets=12, measure=0, points=points, held=held, within=0.01)
    assert len({point.candidate.plan for point in found}) > 2
    for point in found:
        assert {name: point.candidate.plan.get(name) for name in held} == held
        assert plan_cost(small.profile, point.candidate.plan).multiplies <= point.limit
    table = Table.of(problem, menus_of(problem, points, held), ("multiplies",))
    assert [len(menu) for menu in table.menus][::2] == [1, 1]
    assert table.losses[0][0] > table.losses[2][0] == 0
    everything = {layer.name: None for layer in problem.layers}
    (whole,) = {p.candidate.plan for p in front(problem, budgets=4, measure=0, points=points, held=everything)}
    assert not whole.choices


def test_a_layer_without_points_stays_dense_on_a_front(small, points):
    problem = problem_of(small, methods=("svd",), samples=200)
    found = front(problem, budgets=8, measure=0, points=tuple(p for p in points if p.layer != "2"))
    assert len({point.candidate.plan for point in found}) > 2
    assert all(point.candidate.plan.get("2") is None for point in found)


def test_a_front_within_a_share_of_the_least_loss_is_as_near(problem, points, found):
    near = front(problem, budgets=12, measure=0, points=points, within=0.05)
    assert [point.limit for point in near] == [point.limit for point in found]
    for exact, point in zip(found, near, strict=True):
        assert point.cost.multiplies <= point.limit
        assert point.loss <= 1.06 * exact.loss + 1e-9


def test_other_budgets_hold_at_every_point_of_a_front(small, points):
    problem = problem_of(small, bytes=0.6, multiplies=0.5, methods=("svd",), samples=200)
    found = front(problem, quantity="bytes", budgets=6, measure=0, points=points)
    assert all(point.cost.multiplies <= dict(problem.budgets)["multiplies"] for point in found)
    assert {point.predicted.drop for point in found} == {None}  # nothing was measured
    with pytest.raises(InvalidSearch, match="no plan keeps all budgets together"):
        front(replace(problem, budgets=(("bytes", 1e9), ("multiplies", 1.0))), budgets=4, points=points)


def test_a_front_file_tells_all_of_it(problem, found):
    assert read_front(front_json(found, "multiplies", "net")) == found
    rows = front_csv(found).splitlines()
    assert len(rows) == len(found) + 1
    assert rows[0].startswith("share,multiplies,bytes")
    for text in ("", "{}", "[1]", front_json(found, "bytes").replace('"version": 1', '"version": 9')):
        with pytest.raises(InvalidFile, match="not a front"):
            read_front(text)


def test_drops_in_the_wrong_order_are_taken_together():
    def score(drop):
        return Score("m", 0.9 - drop, 0.9, 100, True, None, None, drop, drop - 0.01, drop + 0.01)

    predicted = prediction([(1.0, score(0.03)), (2.0, score(0.01)), (4.0, score(0.1)), (3.0, score(float("inf")))])
    assert [predicted(loss).drop for loss in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([0, 0.01, 0.02, 0.02])
    assert predicted(3.0).drop == pytest.approx(0.06)
    assert predicted(8.0).drop == pytest.approx(0.26)
    assert predicted(4.0).drop_high - predicted(4.0).drop > 0.01
    assert prediction([])(1.0).drop is None


def test_refining_never_diverges_more_and_keeps_the_budget_and_does_the_same_again(problem, points):
    table = Table.of(problem, menus_of(problem, points), dict(problem.budgets))
    poor = problem.plan({"0": Choice("svd", (8,)), "2": Choice("svd", (2,))})
    assert problem.fits(poor)
    judged = judge(problem)
    seen = list(refined(table, poor, judged, 10))
    assert len(seen) > 1
    losses = [mean(judged(poor)), *(loss for _, _, loss in seen)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]
    for _, plan, loss in seen:
        assert problem.fits(plan)
        assert loss == mean(judged(plan))
    assert seen == list(refined(table, poor, judged, 10))
    assert list(refined(table, poor, judged, 0)) == []


def test_any_plan_can_be_refined_without_a_budget_within_what_it_takes(small, problem):
    own = problem_of(small, methods=("svd",), samples=200)
    poor = own.plan({"0": Choice("svd", (9,)), "2": Choice("svd", (2,))})
    first, *_, last = refine(own, poor, moves=8)
    assert first.candidate.plan == poor
    assert last.cost.multiplies <= first.cost.multiplies
    assert last.cost.bytes <= first.cost.bytes
    with pytest.raises(InvalidSearch, match="does not keep the budgets"):
        next(refine(problem, own.plan({"0": Choice("svd", (10,))})))
    with pytest.raises(InvalidSearch, match="compresses '0', which is locked"):
        next(refine(replace(own, locked=frozenset({"0"})), poor))


def test_weights_of_layers_follow_what_plans_diverge(problem, points):
    """Divergences made of weights 2, 1 and 1 are found again from six plans."""
    table = Table.of(problem, menus_of(problem, points), ("multiplies",))
    options = [(1, 5, 0), (3, 1, 0), (6, 2, 0), (1, 1, 0), (5, 5, 0), (2, 6, 0)]
    wanted = [2.0, 1.0, 1.0]
    known = {o: sum(w * loss[k] for w, loss, k in zip(wanted, table.losses, o, strict=True)) for o in options}
    before, _ = weights_known(table, {})
    weights, covariance = weights_known(table, known)
    assert before.tolist() == [1, 1, 1]
    assert weights[0] / weights[1] > 1.3
    assert (covariance.diagonal() <= weights_known(table, {})[1].diagonal() + 1e-9).all()
    assert depths(1).tolist() == [0]


def test_curves_are_measured_at_the_ranks_that_a_plan_takes(problem, points):
    data = problem.workspace.calibration.pick(slice(0, 64))
    sharp = sharpened(problem, points, data)
    assert sharp[: len(points)] == points
    plan = best_plan(problem, menus_of(problem, points), dict(problem.budgets))
    ranks = {(point.layer, point.rank) for point in sharp}
    assert all((name, choice.rank) in ranks for name, choice in plan.choices)


def test_a_front_is_called_off_between_two_plans(problem, points):
    with scope(cancelled=lambda: True), pytest.raises(Cancelled):
        front(problem, budgets=4, points=points)


def test_search_writes_the_front_beside_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(_opening, "CACHE", tmp_path / "cache")
    asked = ["search", "builtin:iris-mlp", "--bytes", "0.8", "--out", str(tmp_path / "plan.json"), "--set", "refine=0"]
    for name in ("front.json", "front.csv"):
        done = CliRunner().invoke(cli, [*asked, "--front", str(tmp_path / name)])
        assert done.exit_code == 0, done.stderr
        assert f"{name}: " in done.stderr
    points = read_front((tmp_path / "front.json").read_bytes())
    assert json.loads((tmp_path / "front.json").read_text())["quantity"] == "bytes"
    assert len((tmp_path / "front.csv").read_text().splitlines()) == len(points) + 1
    (tmp_path / "notes.json").write_text("{}")
    for path, status, says in (
        (tmp_path / "front.txt", 2, "--front writes .json or .csv, but got 'front.txt'"),
        (tmp_path / "none" / "front.json", 1, "none"),
        (tmp_path / "notes.json", 1, "--force"),
    ):
        done = CliRunner().invoke(cli, [*asked, "--front", str(path)])
        assert done.exit_code == status
        assert says in done.stderr
        assert "Traceback" not in done.output
    assert (tmp_path / "notes.json").read_text() == "{}"
