"""The budget rule: the least divergence within every budget, by any method; and the frame that all rules share."""

import re
from dataclasses import replace
from itertools import product
from math import inf

import pytest
import torch
from torch import nn

from lowrank_core.compression.calibration import calibration_samples
from lowrank_core.errors import Cancelled, InvalidFile, InvalidSearch
from lowrank_core.layers.data import Dataset, data_hash
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.measure.ledger import Ledger
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice
from lowrank_core.predict.prediction import Point, closed_form_error
from lowrank_core.predict.sensitivity import divergence, unknown
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import scope
from lowrank_core.scoring.metrics import AGREEMENT, RESEMBLANCE, TOP1, Metric
from lowrank_core.selection import RULES, _curves, _whole, make, search
from lowrank_core.selection._curves import AT_FIRST, SHARES, asks, begun, best_plan, expected, followed
from lowrank_core.selection._problem import problem_of
from lowrank_core.selection._whole import GLANCE, held_out, judge, mean, scores
from lowrank_core.sources._opened import Opened
from lowrank_core.workspace import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")


def net(samples: int = 1500, seed: int = 0) -> Workspace:
    """Two of three layers are nearly of low rank; the targets are the network's own classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)]
        for at, rank in ((0, 4), (2, 3)):
            left, right = torch.randn(24, rank), torch.randn(rank, layers[at].in_features)
            noise = 0.005 * torch.randn_like(layers[at].weight)
            layers[at].weight.data = left @ right / (rank * layers[at].in_features) ** 0.5 + noise
        model, inputs = nn.Sequential(*layers).eval(), torch.randn(samples, 20)
        with torch.no_grad():
            data = Dataset(inputs, model(inputs).argmax(1))
    return Workspace(Opened("net", "net", "", model, (inputs[:2],), lambda: data, lambda: data, lambda _: TOP1))


@pytest.fixture(scope="module")
def small() -> Workspace:
    return net()


@pytest.mark.parametrize(
    ("budgets", "multiple_of"),
    [({"multiplies": 0.5}, 1), ({"bytes": 0.6, "multiplies": 0.45}, 1), ({"bytes": 0.5}, 2), ({"multiplies": 700}, 3)],
    ids=str,
)
def test_the_plan_of_the_curves_loses_least_of_all_plans_within_the_budgets(small, budgets, multiple_of):
    problem = problem_of(small, multiple_of=multiple_of, methods=("svd",), **budgets)
    menus = make("budget", {}).menus(problem)
    found = best_plan(problem, menus, dict(problem.budgets))
    assert problem.fits(found)
    assert all(r % multiple_of == 0 for _, c in found.choices for r in c.rank)

    def loss(plan):
        return sum(dict(menu)[plan.get(layer.name)] for layer, menu in zip(problem.layers, menus, strict=True))

    names = [layer.name for layer in problem.layers]
    every = (
        problem.plan(dict(zip(names, chosen, strict=True)))
        for chosen in product(*[[choice for choice, _ in menu] for menu in menus])
    )
    assert loss(found) == pytest.approx(min(loss(plan) for plan in every if problem.fits(plan)), rel=1e-6)


def test_no_rank_below_the_lowest_measured_one(small):
    problem = problem_of(small, multiplies=0.5, methods=("svd",))
    lowest = {}
    for name, choice in asks(problem):
        lowest[name] = min(lowest.get(name, choice.rank), choice.rank)
    assert len(asks(problem)) <= len(SHARES) * len(problem.layers)
    for layer, menu in zip(problem.layers, make("budget", {}).menus(problem), strict=True):
        assert min(choice.rank for choice, _ in menu if choice) == lowest[layer.name]


def test_layers_of_planted_rank_are_cut_and_the_other_is_not(small):
    *_, last = search(make("budget", {}), problem_of(small, multiplies=0.55))
    assert {name for name, _ in last.candidate.plan.choices} == {"0", "2"}
    assert last.score.drop < 0.01


def test_a_locked_layer_stays_dense_and_a_pattern_locks_many(small):
    *_, last = search(make("budget", {}), problem_of(small, multiplies=0.8, lock=["2"]))
    assert "2" not in dict(last.candidate.plan.choices)
    with pytest.raises(InvalidSearch, match="no layer goes by '7'"):
        problem_of(small, lock=["7"])
    with pytest.raises(InvalidSearch, match="no layer that is not locked"):
        list(search(make("budget", {}), problem_of(small, multiplies=0.8, lock=["*"])))


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"multiplies": 0.01}, "cannot be reached: with the lowest ranks everywhere"),
        ({"multiplies": -1}, "must be a finite number above 0"),
        ({"microseconds": 0.5}, "needs a latency table"),
        ({"methods": ("qr",), "bytes": 0.5}, "unknown method 'qr'"),
        ({"max_drop": -0.1}, "must be 0 or more"),
        ({"max_drop": 0.0001}, "cannot be told from chance on 1,500 evaluation samples"),
        ({}, "works from a budget or a largest drop"),
    ],
    ids=str,
)
def test_what_cannot_be_answered_is_refused_at_once(small, wishes, says):
    with pytest.raises(InvalidSearch, match=says):
        list(search(make("budget", {}), problem_of(small, **wishes)))


def test_budgets_that_exclude_each_other_are_said_together(small):
    table = LatencyTable({("0", "dense"): (((), 10.0),), ("0", "svd"): (((20,), 30.0),)})
    problem = problem_of(small, multiplies=0.5, microseconds=10.0, latency=table, methods=("svd",))
    answer = best_plan(problem, make("budget", {}).menus(problem), dict(problem.budgets))
    assert answer.get("0") is None  # slower on the device at every rank
    with pytest.raises(InvalidSearch, match="no plan keeps all budgets together"):
        list(search(make("budget", {}), replace(problem, budgets=(("multiplies", 250.0), ("microseconds", 10.0)))))


def test_the_smallest_network_within_a_drop_holds_on_unseen_samples():
    searched, unseen = net(), net(3000)
    *trials, last = search(make("budget", {"smallest": "bytes"}), problem_of(searched, max_drop=0.03))
    assert last.score.within
    assert last.score.samples < 1500
    assert f"decided on {last.score.samples}" in last.note
    assert last.cost.bytes == min(t.cost.bytes for t in trials if t.score.within)
    assert last.cost.bytes < 0.8 * plan_cost(searched.profile).bytes
    model = unseen.compress(last.candidate.plan, last.candidate.correction)
    *_, score = unseen.measure(model)
    assert score.drop <= 0.03


def test_a_lower_score_may_be_better_and_a_model_may_score_itself(small):
    """The same network, judged by the squared distance to its own outputs: a drop is a rise."""

    def distance(model):
        with torch.no_grad():
            return float((model(inputs) - target).square().mean())

    inputs, model = small.reference.dataset.inputs, small.model
    with torch.no_grad():
        target = model(inputs)
    mean = Metric(
        "distance", higher_is_better=False, value=lambda outputs, wanted: float((outputs - wanted).square().mean())
    )
    data = Dataset(inputs, target)
    opened = Opened("net", "net", "", model, (inputs[:2],), lambda: data, lambda: data, lambda _: mean)
    itself = replace(opened, evaluate=distance, higher_is_better=False)
    for workspace in (Workspace(opened), Workspace(itself)):
        *_, last = search(make("budget", {}), problem_of(workspace, max_drop=0.02, methods=("svd",)))
        assert last.cost.multiplies < plan_cost(workspace.profile).multiplies
        assert 0 < last.score.value <= 0.02
        assert last.score.drop == pytest.approx(last.score.value, abs=1e-9)


def test_a_network_of_one_layer():
    layer = nn.Linear(12, 12)
    layer.weight.data = torch.diag(torch.tensor([2.0**-k for k in range(12)]))
    inputs = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    data = Dataset(inputs)
    workspace = Workspace(Opened("one", "one", "", layer, (inputs[:2],), lambda: data, None, lambda _: AGREEMENT))
    *_, last = search(make("budget", {}), problem_of(workspace, multiplies=0.6))
    ((name, choice),) = last.candidate.plan.choices
    assert name == "Linear"
    assert choice.rank == (3,)  # 3 * 24 of 144 multiplies


def test_refinement_never_ends_with_a_larger_divergence(small):
    problem = problem_of(small, multiplies=0.4, methods=("svd",))
    trials = list(make("budget", {"refine": "6"}).search(problem))
    seen = [float(re.search(r"divergence ([\d.]+)", trial.note)[1]) for trial in trials]
    assert seen[-1] == min(seen)


def test_a_search_that_was_stopped_measures_nothing_twice(tmp_path, monkeypatch):
    folder = tmp_path

    def run(stop_after):
        calls: list[Progress] = []
        with scope(report=calls.append, cancelled=lambda: len(calls) >= stop_after):
            list(search(make("budget", {}), problem_of(net(300), multiplies=0.5, folder=folder)))
        return [progress for progress in calls if progress.words.startswith("measuring layers")]

    with pytest.raises(Cancelled):
        run(4)
    rest, again = run(10**6), run(10**6)
    folder = tmp_path / "whole"
    assert len(rest) == len(run(10**6)) - 4
    assert again == []


def test_a_ledger_forgives_a_line_that_was_cut_off(tmp_path, small):
    ledger = Ledger(tmp_path / "scores.jsonl")
    problem = replace(problem_of(small, samples=64), ledger=ledger)
    score = problem.measure(problem.plan({"0": Choice("svd", (3,))}))
    with (tmp_path / "scores.jsonl").open("ab") as file:
        file.write(b'\n0a1b2c3d ["abc", {"metric": "top')
    again = Ledger(tmp_path / "scores.jsonl")
    problem = replace(problem, ledger=again, workspace=None)  # nothing is left to measure with
    with pytest.raises(AttributeError):
        problem.measure(problem_of(small).plan({"0": Choice("svd", (4,))}))
    assert len(again._values) == 1
    assert next(iter(again._values.values())) == score


def test_a_ledger_of_other_data_is_another_file(tmp_path):
    assert Ledger.of(net(100), tmp_path)._path != Ledger.of(net(101), tmp_path)._path
    assert Ledger.of(net(100), tmp_path)._path == Ledger.of(net(100), tmp_path)._path


@pytest.mark.parametrize("text", ["", "layer,method\n", "layer,method,rank,microseconds\nfc,svd,x,1\n"])
def test_a_latency_table_that_is_none_is_refused(text):
    with pytest.raises(InvalidFile, match="latency table"):
        LatencyTable.from_csv(text)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_says_what_it_is(name):
    rule = make(name, {})
    assert rule.label
    assert rule.source
    assert rule.serves
    assert (type(rule).__doc__ or "").strip()
    assert rule == type(rule)()


def test_settings_are_read_and_refused_in_one_line():
    assert make("budget", {"samples": "32", "smallest": "bytes"}).samples == 32
    for settings, says in (
        ({"sample": "3"}, "no setting 'sample'"),
        ({"samples": "many"}, "must be like 64"),
        ({"samples": "1"}, "must be from 8 to 4096"),
        ({"smallest": "time"}, "must be one of multiplies, bytes"),
    ):
        with pytest.raises(InvalidSearch, match=says):
            make("budget", settings)
    with pytest.raises(InvalidSearch, match="unknown rule 'best'"):
        make("best", {})


def test_wide_layers_are_not_slowed_down_by_their_moments():
    workspace = Workspace.open("builtin:fft-mlp")
    problem = problem_of(workspace, methods=("svd", "svd_aware"))
    assert problem.methods_of(workspace.profile.layer("fc1")) == ("svd",)
    assert problem.methods_of(workspace.profile.layer("fc2")) == ("svd", "svd_aware")
    only = problem_of(workspace, methods=("svd_aware",))
    assert only.methods_of(workspace.profile.layer("fc1")) == ("svd_aware",)


class Cancelling(nn.Module):
    """Two large maps that take each other away: cut alike they go on doing so, and alone either does great harm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(24, 24) for _ in range(3))
        self.second.load_state_dict(self.first.state_dict())

    def forward(self, x):
        return self.last(x) + 10 * (self.first(x) - self.second(x))


def test_another_rules_plan_is_the_answer_where_it_loses_less_as_a_whole():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = Cancelling().eval(), Dataset(torch.randn(400, 24))
    opened = Opened("net", "net", "", model, (data.inputs[:2],), lambda: data, None, lambda _: RESEMBLANCE)
    problem = problem_of(Workspace(opened), multiplies=0.5, methods=("svd",), corrected=False)
    *_, uniform = search(make("uniform", {}), problem)
    *_, found = search(make("budget", {}), problem)
    alone = best_plan(problem, make("budget", {}).menus(problem), dict(problem.budgets))
    assert found.candidate.plan == uniform.candidate.plan
    assert problem.measure(alone).drop > 2 * found.score.drop


@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
def test_the_answer_is_never_behind_those_of_uniform_and_balf(small, share):
    problem = problem_of(small, multiplies=share)
    judged = judge(problem)
    behind = {}
    for name in ("budget", "uniform", "balf"):
        *_, last = search(make(name, {}), problem)
        behind[name] = last.score.drop, mean(judged(last.candidate.plan))
    assert behind["budget"] == min(behind.values())


def test_plans_are_judged_on_samples_that_no_factor_was_fitted_to():
    many, few, other = net(1500), net(100), net(100, seed=1)
    fitted, others = many.calibration.inputs, held_out(many).inputs
    assert len(others) == 256
    assert not (fitted[:, None] == others[None]).all(2).any()
    judged, taught = few.reference.dataset, Workspace(replace(few.opened, train_data=lambda: other.reference.dataset))
    assert held_out(taught).inputs.equal(judged.inputs)
    assert held_out(taught).targets is None
    alone = Workspace(replace(few.opened, train_data=None))
    assert held_out(alone).inputs.equal(alone.calibration.inputs)


@pytest.mark.parametrize(("loss", "kept"), [(0.99, True), (0.995, False)])
def test_an_answer_takes_more_samples_where_they_bring_something(small, monkeypatch, loss, kept):
    problem, judged_on = problem_of(small, multiplies=0.5), list[Dataset]()

    def judged(asked, data):
        judged_on.append(data)
        return lambda plan: (1.0 if asked is problem else loss,) * 2

    monkeypatch.setattr(_whole, "judge", judged)
    found = _whole.with_more_samples(problem, problem.plan({}))
    assert (found is not None) == kept
    if found is not None:
        (more, loss_then), fitted = found, calibration_samples(small.calibration_pool, 1024)
        assert (loss_then, more.correction.samples) == (loss, 1024)
        assert more.correction.data == data_hash(fitted.inputs)
        assert [len(data) for data in judged_on] == [1500 // 4] * 2
        assert not (fitted.inputs[:, None] == judged_on[0].inputs[None]).all(2).any()


def test_no_more_samples_are_taken_than_leave_some_to_judge_by(monkeypatch):
    monkeypatch.setattr(_whole, "judge", lambda asked, data: lambda plan: (1 / asked.correction.samples,) * 2)
    for pool, samples in ((400, 300), (340, None)):
        problem = problem_of(net(pool), multiplies=0.5)
        found = _whole.with_more_samples(problem, problem.plan({}))
        assert (None if found is None else found[0].correction.samples) == samples


def test_the_curves_of_the_thorough_correction_lead_to_another_plan_where_it_diverges_less(small):
    problem, rule = problem_of(small, multiplies=0.4, methods=("svd",)), make("budget", {})
    poor, every = problem.plan(dict.fromkeys("024", Choice("svd", (1,)))), set(asks(problem))
    ((better, words),) = rule._deeper(problem, [poor], {poor: inf}, rule._samples(problem), every).items()
    loss = mean(judge(problem)(better))
    assert problem.fits(better)
    assert loss < mean(judge(problem)(poor))
    assert words.startswith("the curves of the thorough correction")
    assert words.endswith(f"divergence {loss:.4f}")
    assert rule._deeper(problem, [better], {better: inf}, rule._samples(problem), every) == {}
    with_the_quick_one = {poor: loss}
    assert rule._deeper(problem, [poor], with_the_quick_one, rule._samples(problem), every) == {}
    uncorrected = replace(problem, corrected=False)
    assert rule._deeper(uncorrected, [poor], {poor: inf}, rule._samples(problem), every) == {}


class Faint(nn.Module):
    """32 classes: `faint` decides, by margins that no distribution shows; `loud` moves it, and decides nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.faint, self.loud = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return torch.cat([0.05 * self.faint(x), 2 * self.loud(4 * x).tanh() - 3], dim=1)


def test_another_rules_plan_is_the_answer_where_it_scores_better_and_diverges_more():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = Faint().eval(), Dataset(torch.randn(GLANCE, 16))
    opened = Opened("net", "net", "", model, (data.inputs[:2],), lambda: data, None, lambda _: AGREEMENT)
    problem = problem_of(Workspace(opened), multiplies=0.6, methods=("svd",), corrected=False)
    *_, uniform = search(make("uniform", {}), problem)
    *_, found = search(make("budget", {}), problem)
    alone, judged = best_plan(problem, make("budget", {}).menus(problem), dict(problem.budgets)), judge(problem)
    assert mean(judged(alone)) < min(mean(judged(trial.candidate.plan)) for trial in (uniform, found))
    assert problem.measure(alone).drop > uniform.score.drop + 0.1
    assert found.candidate.plan != alone
    assert found.score.drop == uniform.score.drop
    assert "by the score on 128 evaluation samples" in found.note


def test_a_plan_that_is_clearly_worse_is_not_measured_on_all_samples():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = Faint().eval(), Dataset(torch.randn(200, 16))
    opened = Opened("net", "net", "", model, (data.inputs[:2],), lambda: data, None, lambda _: AGREEMENT)
    problem = problem_of(Workspace(opened), multiplies=0.6, methods=("svd",), corrected=False)
    plans = [problem.plan({"faint": Choice("svd", (rank,))}) for rank in (1, 6, 7)]
    found = scores(problem, plans)
    assert list(found) == plans[1:]
    assert {score.samples for score in found.values()} == {200}
    assert list(scores(replace(problem, samples=GLANCE), plans)) == plans  # there is nothing to be saved


def test_probabilities_diverge_as_their_logarithms_do():
    dense, other = torch.randn(2, 50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    said = divergence(TOP1, {"y": other.softmax(1)}, {"y": dense.softmax(1)})
    assert said == pytest.approx(divergence(TOP1, {"y": other}, {"y": dense}), rel=1e-3)


def test_where_all_of_training_calibrates_there_are_curves_of_other_samples_too(small):
    few = net(100)
    taught = Workspace(replace(few.opened, train_data=lambda: net(100, seed=1).reference.dataset))
    for workspace, hashes in ((small, 1), (taught, 2), (Workspace(replace(few.opened, train_data=None)), 1)):
        assert len(make("budget", {})._samples(problem_of(workspace, multiplies=0.5))) == hashes
    fitted, other = make("budget", {})._samples(problem_of(taught, multiplies=0.5))
    assert fitted.inputs.equal(taught.calibration.inputs[:64])
    assert other.inputs.equal(held_out(taught).inputs[:64])


@pytest.mark.parametrize(("near", "at"), [(set(), ()), ({"svd"}, (0,)), ({"svd"}, (1,)), ({"svd", "cp3"}, (0, 1))])
def test_of_many_points_methods_far_behind_are_only_glanced_at(near, at, monkeypatch):
    """By planted losses: all but one method are far behind, save some at some of the two ranks."""
    model, inputs = nn.Sequential(nn.Conv2d(24, 32, 3), nn.Flatten()).eval(), torch.rand(40, 24, 5, 5)
    data = Dataset(inputs, torch.zeros(40, dtype=torch.long))
    workspace = Workspace(Opened("net", "net", "", model, (inputs[:2],), lambda: data, lambda: data, lambda _: TOP1))
    methods = ("spatial_svd", "svd", "tucker2", "cp3")
    problem = problem_of(workspace, multiplies=0.5, methods=methods)
    taken: list[tuple[str, Choice]] = []

    def planted(problem, wanted, data):
        points = []
        for name, choice in wanted:
            taken.append((name, choice))
            error = closed_form_error(workspace.factors(name, choice.method).spectra, choice.rank)
            ranks = [c.rank for n, c in asks(problem, AT_FIRST) if (n, c.method) == (name, choice.method)]
            close = choice.method in near and choice.rank in [ranks[place] for place in at]
            bad = {"svd": 1e6, "tucker2": 1e3, "cp3": 1e6}  # tucker2 has the cheapest rank
            loss = 1e-6 if close else bad.get(choice.method, 1e-6)
            points.append(Point(name, choice.method, choice.rank, error, 1.0, loss))
        return tuple(points)

    monkeypatch.setattr(_curves, "measured", planted)
    assert len(asks(problem)) <= _curves.MANY
    assert {(p.layer, Choice(p.method, p.rank)) for p in begun(problem, workspace.calibration)} == set(asks(problem))
    monkeypatch.setattr(_curves, "MANY", 0)
    taken.clear()
    points = begun(problem, workspace.calibration)
    assert len(taken) == len(set(taken)) == len(points)
    assert {c.method for _, c in followed(problem, points)} == {"spatial_svd"} | near
    assert set(taken) == {*asks(problem, AT_FIRST), *followed(problem, points)}


def test_a_search_that_glances_first_is_as_good_with_fewer_points(tmp_path, monkeypatch):
    workspace, rule = Workspace.open("builtin:digits-cnn"), make("budget", {"refine": "0"})
    problem = replace(problem_of(workspace, multiplies=0.3, folder=tmp_path), methods=_curves.USUAL)
    (data,) = rule._samples(problem)
    *_, usual = search(rule, replace(problem, folder=None))
    monkeypatch.setattr(_curves, "MANY", 0)
    assert set(expected(problem.quick, data)) == set(asks(problem))
    *_, answer = search(rule, problem)
    assert answer.score.value > usual.score.value - 0.01
    wanted = expected(problem.quick, data)
    assert len(wanted) < 0.9 * len(asks(problem))
    assert unknown(workspace, problem.quick.correction, wanted, data, tmp_path) == []
    assert not [one for one in rule.measurements(problem) if one.samples == len(data) and one.plans == 1]
