"""The knapsack against all choices there are, on cases small enough to try every one."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import scipy.optimize

from lowrank_core.algebra import knapsack
from lowrank_core.algebra.knapsack import Descent, cheapest_loss, cheapest_losses


def brute_force(losses, costs, limits):
    best = None
    for choice in product(*(range(len(group)) for group in losses)):
        used = sum(cost[option] for cost, option in zip(costs, choice, strict=True))
        loss = sum(group[option] for group, option in zip(losses, choice, strict=True))
        if (used <= limits).all() and (best is None or loss < best):
            best = loss
    return best


@pytest.mark.parametrize("seed", range(60))
def test_it_is_exact(seed):
    rng = np.random.default_rng(seed)
    budgets = int(rng.integers(1, 4))
    losses = [rng.uniform(0, 1, int(rng.integers(1, 7))) ** 3 for _ in range(int(rng.integers(1, 6)))]
    costs = [rng.integers(0, 50, (len(group), budgets)).astype(float) for group in losses]
    limits = rng.uniform(0.1, 0.9) * sum(cost.max(0) for cost in costs)
    found, best = cheapest_loss(losses, costs, limits), brute_force(losses, costs, limits)
    assert (found is None) == (best is None)
    if found is not None:
        assert (sum(cost[option] for cost, option in zip(costs, found, strict=True)) <= limits).all()
        assert sum(group[option] for group, option in zip(losses, found, strict=True)) == pytest.approx(best, abs=1e-9)


def test_a_budget_that_is_met_to_the_last_unit_is_met():
    huge = np.array([[40_551_040.0], [20_275_520.0]])
    assert cheapest_loss([np.array([0.0, 1.0])] * 2, [huge] * 2, np.array([60_826_560.0])) in ((0, 1), (1, 0))
    assert cheapest_loss([np.array([0.0, 1.0])] * 2, [huge] * 2, np.array([60_826_559.0])) == (1, 1)


def test_nothing_to_choose_and_no_budget():
    assert cheapest_loss([], [], np.array([1.0])) == ()
    assert cheapest_loss([np.array([2.0, 1.0])], [np.zeros((2, 0))], np.zeros(0)) == (1,)
    assert cheapest_loss([np.array([0.0])], [np.array([[2.0]])], np.array([1.0])) is None


@pytest.mark.parametrize("within", [0.0, 0.05])
def test_many_budgets_are_answered_as_one_by_one(within):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        losses = [rng.uniform(0, 1, int(rng.integers(1, 6))) ** 3 for _ in range(int(rng.integers(1, 6)))]
        costs = [rng.integers(0, 50, len(group)).astype(float) for group in losses]
        limits = [share * sum(cost.max() for cost in costs) for share in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)]
        for limit, found in zip(limits, cheapest_losses(losses, costs, limits, within), strict=True):
            best = brute_force(losses, [cost[:, None] for cost in costs], np.array([limit]))
            assert (found is None) == (best is None)
            if found is not None:
                assert sum(cost[option] for cost, option in zip(costs, found, strict=True)) <= limit
                loss = sum(group[option] for group, option in zip(losses, found, strict=True))
                assert best - 1e-9 <= loss <= best * (1 + within) / (1 - within) + 1e-9


def test_a_thousand_groups_are_answered_without_the_solver(monkeypatch):
    def solver(*args):
        raise AssertionError("the descent is near enough")

    monkeypatch.setattr(knapsack, "_followed", solver)
    rng, ranks = np.random.default_rng(0), np.arange(1, 33)
    losses = [rng.uniform(0.1, 10) * np.exp(-ranks / 32 * rng.uniform(1, 10)) for _ in range(1000)]
    costs = [ranks * float(rng.integers(1, 100)) for _ in range(1000)]
    limits = [share * sum(cost.max() for cost in costs) for share in (0.1, 0.5, 0.9)]
    assert all(found is not None for found in cheapest_losses(losses, costs, limits, 0.01))
    assert list(cheapest_losses([], [], [1.0, 2.0], 0.01)) == [(), ()]


@pytest.mark.slow
def test_the_solver_writes_nothing_where_the_answer_belongs():
    """HiGHS prints debugging lines for cases like this one."""
    code = (
        "import numpy as np; from lowrank_core.algebra.knapsack import cheapest_loss; r = np.random.default_rng(0); "
        "n = np.arange(1, 65); l = [r.uniform(.1, 10) * np.exp(-n / 64 * r.uniform(1, 10)) for _ in range(40)]; "
        "c = [np.stack([n * r.uniform(1, 100), n * r.uniform(1, 100)], 1) for _ in range(40)]; "
        "print(len(cheapest_loss(l, c, .4 * sum(x.max(0) for x in c))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "40\n"


def table(seed, groups=30, options=40):
    """Options of several methods, each a curve of its own, whose costs are whole numbers."""
    rng = np.random.default_rng(seed)
    losses, costs = [], []
    for _ in range(groups):
        steps = [np.arange(1, options // 2 + 1.0) for _ in range(2)]
        losses.append(np.concatenate([rng.uniform(0.1, 2) * np.exp(-step / 20 * rng.uniform(1, 8)) for step in steps]))
        costs.append(np.concatenate([step * float(rng.integers(50, 5000)) for step in steps]))
    return losses, costs


def lost_by(losses, chosen):
    return sum(group[option] for group, option in zip(losses, chosen, strict=True))


def bound_of(losses, costs, limit):
    """What the linear program loses, the least that any choice can."""
    owner = np.repeat(np.arange(len(losses)), [len(group) for group in losses])
    descent = Descent.of(np.concatenate(losses), np.concatenate(costs), owner)
    return descent.bound(descent.to(limit), limit)[1]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_one_budget_loses_what_the_solver_proves_to_be_least(seed, share):
    losses, costs = table(seed)
    limit = round(share * sum(cost.max() for cost in costs))
    owner = np.repeat(np.arange(len(losses)), [len(group) for group in losses])
    proved = scipy.optimize.milp(
        np.concatenate(losses),
        constraints=[
            scipy.optimize.LinearConstraint((owner == np.arange(len(losses))[:, None]).astype(float), 1, 1),
            scipy.optimize.LinearConstraint(np.concatenate(costs)[None], -np.inf, limit),
        ],
        integrality=np.ones(len(owner)),
        bounds=scipy.optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    found = cheapest_loss(losses, [cost[:, None] for cost in costs], np.array([limit]))
    assert sum(cost[option] for cost, option in zip(costs, found, strict=True)) <= limit
    assert lost_by(losses, found) == pytest.approx(proved.fun, rel=1e-6)


def test_where_more_beginnings_could_end_best_than_are_followed_the_answer_is_near_the_bound(monkeypatch):
    monkeypatch.setattr(knapsack, "STATES", 20)
    losses, costs = table(7)
    limit = 0.3 * sum(cost.max() for cost in costs)
    found = cheapest_loss(losses, [cost[:, None] for cost in costs], np.array([limit]))
    assert sum(cost[option] for cost, option in zip(costs, found, strict=True)) <= limit
    assert lost_by(losses, found) <= 1.002 * bound_of(losses, costs, limit)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("groups", [50, 1000])
def test_groups_alike_ask_no_solver(seed, groups, monkeypatch):
    """As the blocks of a deep network: the solver could look at their permutations for minutes."""
    rng = np.random.default_rng(seed)
    ranks = np.arange(1.0, 49)
    losses = [rng.uniform(0.9, 1.1) * (1 - ranks / 48) ** rng.uniform(1.8, 2.2) for _ in range(groups)]
    costs = [ranks * 192 for _ in range(groups)]
    monkeypatch.setattr(knapsack, "milp", None)
    limit = 0.4 * sum(cost.max() for cost in costs) + 37.0  # of which nothing can be made
    found = cheapest_loss(losses, [cost[:, None] for cost in costs], np.array([limit]))
    bound = bound_of(losses, costs, limit)
    assert bound - 1e-9 <= lost_by(losses, found) <= 1.005 * bound
    assert sum(cost[option] for cost, option in zip(costs, found, strict=True)) <= limit


def test_groups_alike_under_two_budgets_are_near_the_bound_after_few_nodes(monkeypatch):
    rng, solved, ranks = np.random.default_rng(0), [], np.arange(1.0, 25)
    losses = [rng.uniform(0.9, 1.1) * (1 - ranks / 24) ** rng.uniform(1.8, 2.2) for _ in range(30)]
    costs = [np.stack([ranks * 192, ranks[::-1] + 200 * ranks], 1) for _ in range(30)]

    def solver(*args, **kwargs):
        solved.append(kwargs["options"].get("node_limit"))
        return scipy.optimize.milp(*args, **kwargs)

    monkeypatch.setattr(knapsack, "milp", solver)
    limits = 0.4 * sum(cost.max(0) for cost in costs) + 37.0
    found = cheapest_loss(losses, costs, limits)
    assert (sum(cost[option] for cost, option in zip(costs, found, strict=True)) <= limits).all()
    assert lost_by(losses, found) <= 1.01 * max(
        bound_of(losses, [cost[:, k] for cost in costs], limits[k]) for k in (0, 1)
    )
    assert solved == [knapsack.NODES]


def test_where_the_nodes_are_not_enough_for_any_choice_there_is_no_limit(monkeypatch):
    asked, rng = [], np.random.default_rng(0)
    losses = [np.sort(rng.uniform(0, 1, 40))[::-1] for _ in range(12)]
    costs = [np.stack([np.arange(1.0, 41), rng.permutation(40) + 1.0], 1) for _ in range(12)]

    def first_without(*args, **kwargs):
        asked.append("node_limit" in kwargs["options"])
        if asked[-1]:
            return scipy.optimize.OptimizeResult(x=None, status=4)
        return scipy.optimize.milp(*args, **kwargs)

    limits = np.array([200.0, 200.0])
    usual = cheapest_loss(losses, costs, limits)
    monkeypatch.setattr(knapsack, "milp", first_without)
    assert cheapest_loss(losses, costs, limits) == usual is not None
    assert asked == [True, False] * (len(asked) // 2)
