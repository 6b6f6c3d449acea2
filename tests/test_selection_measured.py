"""Rules that judge ranks by measured scores: the planted rank comes back, in as many measurements as are allowed."""

from collections import OrderedDict
from dataclasses import replace
from math import ceil, log2

import pytest
import torch
from torch import Tensor, nn

from lowrank_core.errors import Cancelled, InvalidSearch
from lowrank_core.layers.data import Dataset
from lowrank_core.measure.ledger import Ledger
from lowrank_core.plans.cost import useful_rank
from lowrank_core.plans.plan import Choice
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import scope
from lowrank_core.scoring.metrics import AGREEMENT, TOP1, Metric
from lowrank_core.selection import RULES, make, search
from lowrank_core.selection._ladders import Ladder
from lowrank_core.selection._problem import problem_of
from lowrank_core.sources._opened import Opened
from lowrank_core.workspace import Workspace

MEASURED = ("brute_force", "bisection", "naive_sensitivity", "cross_validation", "aimet_greedy")
WISHES = {"budget": {"multiplies": 0.6}, "max_drop": {"max_drop": 0.05}, "nothing": {}}
MEAN_SQUARE = Metric(
    "mean square error", higher_is_better=False, value=lambda out, to: float((out - to).square().mean())
)

pytestmark = pytest.mark.usefixtures("one_thread")


def of_rank(rank: int, rows: int, columns: int) -> nn.Linear:
    linear = nn.Linear(columns, rows, bias=False)
    linear.weight.data = torch.randn(rows, rank) @ torch.randn(rank, columns) / (rank * columns) ** 0.5
    return linear


def workspace(model: nn.Module, inputs: Tensor, targets: Tensor | None = None, metric: Metric = AGREEMENT, **own):
    data = Dataset(inputs, targets)
    example = (inputs[:2],)
    return Workspace(Opened("net", "net", "", model.eval(), example, lambda: data, None, lambda _: metric, **own))


@pytest.fixture
def planted():
    """Three linear maps of rank 3, 5 and 2 between rectifiers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        maps = [of_rank(3, 40, 30), of_rank(5, 24, 40), of_rank(2, 12, 24)]
        model = nn.Sequential(OrderedDict(a=maps[0], r=nn.ReLU(), b=maps[1], s=nn.ReLU(), c=maps[2]))
        return workspace(model, torch.randn(300, 30))


def by_rank(lost: dict[int, float], calls: list[int] | None = None, size: int = 40) -> Workspace:
    """One layer that scores itself: 1 less what is lost at its rank; dense ones lose nothing."""

    def evaluate(model: nn.Module) -> float:
        rank = model.fc[0].out_features if isinstance(model.fc, nn.Sequential) else None
        if calls is not None and rank is not None:
            calls.append(rank)
        return 1.0 - lost.get(rank, 0.0)

    model = nn.Sequential(OrderedDict(fc=nn.Linear(size, size)))
    return workspace(model, torch.randn(8, size), evaluate=evaluate)


def ranks(trial) -> dict[str, tuple[int, ...]]:
    return {name: choice.rank for name, choice in trial.candidate.plan.choices}


def answer(rule: str, problem, **settings: str):
    *_, last = search(make(rule, settings), problem)
    return last


@pytest.mark.parametrize("order", ["alone", "largest first"])
@pytest.mark.parametrize("rule", ["brute_force", "bisection"])
@pytest.mark.parametrize("corrected", [True, False])
def test_the_planted_ranks_come_back(planted, rule, order, corrected):
    found = answer(rule, problem_of(planted, max_drop=0.0, corrected=corrected), order=order)
    assert ranks(found) == {"a": (3,), "b": (5,), "c": (2,)}
    assert found.score.drop == 0
    assert "saves 7" in found.note
    assert "loses 0.00 points" in found.note


def test_one_share_for_all_is_the_lowest_that_keeps_the_largest_planted_rank(planted):
    problem = problem_of(planted, max_drop=0.0)
    found = answer("bisection", problem, order="together")
    assert found.candidate == answer("brute_force", problem, order="together").candidate
    shares = [ranks(found)[x.name][0] / useful_rank(x, "svd")[0] for x in planted.profile.layers]
    assert max(shares) - min(shares) < 0.1
    assert ranks(found)["b"] >= (5,)


@pytest.mark.parametrize("order", ["alone", "largest first", "together"])
@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.3, 0.6])
def test_bisection_is_brute_force_in_few_measurements(order, tolerance):
    lost = {rank: 0.9 * 0.8**rank for rank in range(1, 100)}
    calls: list[int] = []
    space = by_rank(lost, calls, size=70)
    few = answer("bisection", problem_of(space, max_drop=tolerance, corrected=False), order=order)
    count = useful_rank(space.profile.layers[0], "svd")[0]
    assert 0 < len(calls) <= ceil(log2(count + 1)) + (tolerance == 0)  # and once for the dense answer
    assert len(calls) == len(set(calls))
    many = answer("brute_force", problem_of(space, max_drop=tolerance, corrected=False), order=order)
    assert few.candidate == many.candidate
    assert bool(few.candidate.plan.choices) == (tolerance > 0)


def test_the_largest_layer_of_a_real_network_takes_eight_measurements():
    asked: list[Progress] = []
    wish = {"max_drop": 0.1, "lock": ["fc2", "fc3"], "samples": 400}
    with scope(report=asked.append):
        found = answer("bisection", problem_of(Workspace.open("builtin:fft-mlp"), **wish))
    assert 0 < len(asked) <= 8
    assert set(ranks(found)) == {"fc1"}
    assert found.score.drop <= 0.1
    assert "saves 9" in found.note
    assert "of the multiplies" in found.note


def test_halving_finds_every_step_within_the_bound():
    for count in range(1, 70):
        for wanted in range(count + 1):
            ladder = Ladder(count, lambda step, wanted=wanted: float(step < wanted))
            assert ladder.halved(0.5) == wanted
            assert len(ladder.drops) <= ceil(log2(count + 1)) == count.bit_length()
            assert Ladder(count, lambda step, wanted=wanted: float(step < wanted)).climbed(0.5) == wanted


def test_a_rank_counts_only_if_those_above_it_are_good():
    lost = [0.9, 0.1, 0.1, 0.1, 0.5, 0.2, 0.1, 0.0]
    ladder = Ladder(8, lost.__getitem__)
    assert [ladder(step) for step in (1, 4)] == [0.1, 0.5]
    assert ladder.halved(0.3) == 5
    assert (1, 4) in ladder.dips()
    assert ladder.climbed(0.3) == 5
    assert ladder.halved(0.6) == 1


@pytest.mark.parametrize("rule", ["brute_force", "bisection"])
def test_a_score_that_is_not_monotone_is_told(rule):
    lost = dict.fromkeys(range(1, 5), 0.5) | {5: 0.03, 7: 0.02, 9: 0.06, 10: 0.09}
    found = answer(rule, problem_of(by_rank(lost), max_drop=0.1))
    assert ranks(found) == {"fc": (5,)}
    assert ("not monotone" in found.note) == (rule == "bisection")  # brute force stops before it sees it
    if rule == "bisection":
        assert "fc rank 5 loses 0.03 but fc rank 10 loses 0.09" in found.note or "rank 7 loses 0.02" in found.note


def test_the_drop_that_meets_a_budget_does_not_fall_into_a_dip():
    """Rank 4 seems to lose nothing while 5 to 8 lose much: what is found under a budget has a rank that holds."""
    lost = {1: 0.9, 2: 0.8, 3: 0.7, 4: 0.0, 5: 0.5, 6: 0.4, 7: 0.4, 8: 0.3} | dict.fromkeys(range(9, 16), 0.1)
    space = by_rank(lost)
    at = {rank: 2 * rank * 40 / 1600 for rank in range(1, 20)}
    found = answer("bisection", problem_of(space, multiplies=at[8] + 1e-6))
    assert ranks(found)["fc"][0] <= 8
    assert problem_of(space, multiplies=at[8] + 1e-6).fits(found.candidate.plan)


def test_a_lower_score_may_be_better():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(OrderedDict(a=of_rank(4, 30, 30)))
        inputs = torch.randn(200, 30)
        space = workspace(model, inputs, model(inputs).detach(), MEAN_SQUARE)
    for rule in ("brute_force", "bisection"):
        found = answer(rule, problem_of(space, max_drop=1e-6, corrected=False))
        assert ranks(found) == {"a": (4,)}
        assert found.score.value < 1e-6
    for rule in ("naive_sensitivity", "cross_validation", "aimet_greedy"):
        loose, tight = (answer(rule, problem_of(space, bytes=x, corrected=False)).score for x in (0.3, 0.15))
        assert loose.drop < tight.drop


@pytest.mark.parametrize("rule", ["brute_force", "bisection", "naive_sensitivity"])
def test_a_tolerance_below_the_noise_is_said(rule):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(OrderedDict(a=nn.Linear(30, 30), r=nn.ReLU(), b=nn.Linear(30, 10)))
        space = workspace(model, torch.randn(200, 30), torch.arange(200) % 10, TOP1)
    note = answer(rule, problem_of(space, max_drop=0.001)).note
    assert "the drop is known to ±" in note
    assert "known to" not in answer(rule, problem_of(space, max_drop=0.5)).note


@pytest.mark.parametrize("rule", ["brute_force", "bisection", "naive_sensitivity", "aimet_greedy"])
def test_a_model_that_scores_itself(rule):
    lost = {rank: 0.9 * 0.7**rank for rank in range(1, 20)}
    wish = {"multiplies": 0.55} if rule == "aimet_greedy" else {"max_drop": 0.1}
    found = answer(rule, problem_of(by_rank(lost), **wish))
    assert found.score.drop == pytest.approx(lost[ranks(found)["fc"][0]])
    if rule != "aimet_greedy":
        assert found.score.drop <= 0.1
    with pytest.raises(InvalidSearch, match="scores itself"):
        answer("cross_validation", problem_of(by_rank(lost)))


@pytest.mark.parametrize("rule", MEASURED)
@pytest.mark.parametrize(
    "budget", [{"bytes": 0.5}, {"bytes": 0.3, "multiplies": 0.4}, {"bytes": 0.6, "multiple_of": 4}]
)
def test_budgets_are_kept(planted, rule, budget):
    problem = problem_of(planted, **budget)
    found = answer(rule, problem)
    assert problem.fits(found.candidate.plan)
    assert found.score is not None
    assert all(r % problem.multiple_of == 0 for rank in ranks(found).values() for r in rank)


@pytest.mark.parametrize("rule", MEASURED)
def test_a_network_of_one_layer(rule):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        space = workspace(of_rank(4, 30, 30), torch.randn(100, 30))
    for wish in RULES[rule].serves:
        found = answer(rule, problem_of(space, **WISHES[wish]))
        assert len(found.candidate.plan.choices) == 1


@pytest.mark.parametrize(("rule", "wish"), [(r, w) for r in MEASURED for w in sorted(RULES[r].serves)])
def test_a_search_that_was_stopped_goes_on_where_it_was(planted, rule, wish, tmp_path, monkeypatch):
    """After any number of measurements: the same answer, and nothing is measured twice."""
    put: list[str] = []
    keep = Ledger.remembered

    def remembered(self, key, compute):
        def counted():
            value = compute()
            put.append(key)
            return value

        return keep(self, key, counted)

    monkeypatch.setattr(Ledger, "remembered", remembered)
    whole = answer(rule, problem_of(planted, **WISHES[wish]))
    measured = list(put)
    assert len(measured) == len(set(measured))
    put.clear()
    with scope(cancelled=lambda: len(put) >= len(measured) // 2), pytest.raises(Cancelled):
        answer(rule, problem_of(planted, folder=tmp_path, **WISHES[wish]))
    assert len(put) == len(measured) // 2
    again = answer(rule, problem_of(planted, folder=tmp_path, **WISHES[wish]))
    assert replace(again, score=None) == replace(whole, score=None)
    assert again.score == whole.score
    assert put == measured


def test_the_correction_of_a_fold_never_sees_its_samples(monkeypatch):
    """Inputs are numbered by what they hold; those that are judged and those that are fitted never meet."""
    from lowrank_core.selection import cross_validation

    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = torch.randn(60, 30)
        space = workspace(nn.Sequential(OrderedDict(a=nn.Linear(30, 30))), inputs)
    seen: list[tuple[set[float], set[float]]] = []
    real = cross_validation.Corrector

    def corrector(model, profile, factors, pool):
        others = pool()
        assert others.targets is None
        seen.append(({float(row[0]) for row in others.inputs}, set()))
        return real(model, profile, factors, pool)

    judge = cross_validation.evaluate

    def evaluate(model, reference, **rest):
        seen[-1][1].update(float(row[0]) for row in reference.dataset.inputs)
        return judge(model, reference, **rest)

    monkeypatch.setattr(cross_validation, "Corrector", corrector)
    monkeypatch.setattr(cross_validation, "evaluate", evaluate)
    answer("cross_validation", problem_of(space), folds="4")
    everything = {float(row[0]) for row in inputs}
    assert len(seen) == 4
    for fitted, judged in seen:
        assert not fitted & judged
        assert fitted | judged == everything
    assert set().union(*(judged for _, judged in seen)) == everything


def test_one_standard_error_from_the_best(planted):
    """The limit worked out by hand from what each fold scores; none allowed keeps the planted ranks."""
    inputs = planted.reference.dataset.inputs
    answers = planted.model(inputs).argmax(1)
    noisy = torch.where(torch.arange(300) % 3 == 0, torch.arange(300) % 12, answers)
    space = workspace(planted.model, inputs, noisy, TOP1)
    problem = problem_of(space, lock=["a", "c"], corrected=False)
    layer = problem.layers[0]
    data, count = space.reference.dataset, len(problem.ranks(layer, "svd"))
    grid = [(round((n + 1) * count / 8),) for n in range(8)]
    losses = {}
    for rank in (*grid, None):
        plan = problem.plan({"b": rank and Choice("svd", rank)})
        right = (space.compress(plan)(data.inputs).argmax(1) == data.targets).double()
        losses[rank] = torch.stack([1 - right[fold::5].mean() for fold in range(5)])
    best = min(losses, key=lambda rank: losses[rank].mean())
    found = []
    for errors in (0, 1, 10):
        limit = losses[best].mean() + errors * losses[best].std() / 5**0.5
        wanted = next(rank for rank in losses if losses[rank].mean() <= limit + 1e-9)
        assert ranks(answer("cross_validation", problem, errors=str(errors))) == ({"b": wanted} if wanted else {})
        found.append(wanted or (99,))
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


def test_layers_that_lose_more_rise_faster(planted):
    problem = problem_of(planted, bytes=0.6, corrected=False)
    drops = {
        x.name: problem.measure(
            problem.plan({x.name: Choice("svd", (max(1, round(0.1 * useful_rank(x, "svd")[0])),))})
        ).drop
        for x in planted.profile.layers
    }
    found = ranks(answer("naive_sensitivity", problem))
    share = {x.name: found.get(x.name, (99,))[0] / useful_rank(x, "svd")[0] for x in planted.profile.layers}
    order = sorted(drops, key=drops.get)
    assert share[order[0]] < share[order[-1]]


@pytest.mark.parametrize("rule", ["brute_force", "bisection"])
def test_the_drop_is_shared_out_where_layers_go_in_turn(rule):
    """Two layers of one size: the first may lose half of 0.1, the second what is left. Alone, each may lose all."""
    lost = {"a": {1: 0.5, 2: 0.1, 3: 0.04}, "b": {1: 0.06}}

    def evaluate(model: nn.Module) -> float:
        found = {n: getattr(model, n) for n in "ab"}
        return 1 - sum(lost[n].get(m[0].out_features, 0) for n, m in found.items() if isinstance(m, nn.Sequential))

    model = nn.Sequential(OrderedDict(a=nn.Linear(20, 20), b=nn.Linear(20, 20)))
    problem = problem_of(workspace(model, torch.randn(8, 20), evaluate=evaluate), max_drop=0.1)
    turns, alone = (answer(rule, problem, order=order) for order in ("largest first", "alone"))
    assert ranks(turns) == {"a": (3,), "b": (1,)}
    assert turns.score.drop == pytest.approx(0.1)
    assert ranks(alone) == {"a": (2,), "b": (1,)}
    assert "loses 0.16" in alone.note
    assert "each layer alone was allowed to lose 0.1" in alone.note


def test_aimet_takes_the_cheapest_candidates_of_one_common_score():
    """Two layers whose scores are planted: a layer that cannot reach the common score stays dense."""
    lost = {"a": {2: 0.3, 5: 0.05, 7: 0.04}, "b": {2: 0.6, 5: 0.3, 7: 0.02}}

    def evaluate(model: nn.Module) -> float:
        found = {n: getattr(model, n) for n in "ab"}
        return 1 - sum(lost[n][m[0].out_features] for n, m in found.items() if isinstance(m, nn.Sequential))

    model = nn.Sequential(OrderedDict(a=nn.Linear(20, 20, bias=False), b=nn.Linear(20, 20, bias=False)))
    space = workspace(model, torch.randn(8, 20), evaluate=evaluate)
    for budget, wanted in (
        (1.0, {"b": (7,)}),
        (0.7, {"a": (7,), "b": (7,)}),
        (0.65, {"a": (5,), "b": (7,)}),
        (0.4, {"a": (2,), "b": (5,)}),
    ):
        found = answer("aimet_greedy", problem_of(space, multiplies=budget), candidates="3")
        assert ranks(found) == wanted
