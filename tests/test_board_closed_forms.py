"""The board's closed forms, run under node, answer as the core does: costs, ranks, errors, predictions, budgets."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import exp
from typing import Any

import pytest
import torch

from lowrank_core.algebra.spectra import rank_for_energy
from lowrank_core.errors import LowRankError
from lowrank_core.measure.formats import FORMATS, plan_flash_bytes
from lowrank_core.methods import Method
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import check_plan, dense_cost, has_free_ranks, layer_cost, plan_cost, rank_at, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.interval import Prediction, predict
from lowrank_core.predict.prediction import Context, Joint, NoiseTable, Point, Repair, closed_form_error, curves
from lowrank_core.predict.prediction import between as core_between
from lowrank_core.running.jobs import Snapshot
from lowrank_core.workspace import Workspace
from pages.ui import board_values
from pages.ui.state import models
from tests.board_script import answer, needs_node

pytestmark = needs_node

NETWORKS = ("digits-cnn", "iris-mlp", "fft-mlp", "digits-lstm", "digits-attention", "text-lm")
TOTALS = "return plans.map(choices => totals(model, choices));"


@dataclass(frozen=True)
class Shown:
    """A built-in network: as the core has it, and as the browser gets it with every method factorised."""

    workspace: Workspace
    model: dict[str, Any]
    table: NoiseTable

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.workspace.profile.layers

    def methods(self, layer: Layer) -> list[Method]:
        """Those of the layer that could be factorised."""
        known = self.model["layers"][self.layers.index(layer)]["methods"]
        return [method for method in layer.methods if method.name in known and known[method.name]["tails"]]

    def choice(self, draw: random.Random, layer: Layer, *, known: bool = False) -> Choice:
        """A method and a rank that the layer can have; known: one at which the browser's curve has a point."""
        method = draw.choice(self.methods(layer))
        tails = self.model["layers"][self.layers.index(layer)]["methods"][method.name]["tails"]
        ranks = []
        for top, tail in zip(method.max_rank(layer.spec), tails, strict=True):
            ranks.append(draw.choice([r for r in tail["ranks"] if 1 <= r <= top]) if known else draw.randint(1, top))
        free = has_free_ranks(method.name) and draw.random() < 0.5
        return Choice(method.name, tuple(ranks), free)

    def plan(self, choices: dict[str, Choice]) -> RankPlan:
        return RankPlan.of(self.workspace.profile.fingerprint, choices)

    def plans(self, number: int, *, known: bool = False, seed: int = 0) -> Iterator[RankPlan]:
        """Random plans in which about one layer in five stays dense."""
        draw = random.Random(seed)
        for _ in range(number):
            chosen = [layer for layer in self.layers if draw.random() < 0.8]
            yield self.plan({layer.name: self.choice(draw, layer, known=known) for layer in chosen})

    def singles(self, number: int, seed: int = 0) -> list[tuple[int, Choice]]:
        """Random choices of single layers, with the layer's number."""
        draw = random.Random(seed)
        indices = [draw.randrange(len(self.layers)) for _ in range(number)]
        return [(i, self.choice(draw, self.layers[i], known=True)) for i in indices]

    def spectra(self, layer: str, method: str) -> tuple[torch.Tensor, ...]:
        return self.workspace.factors(layer, method).spectra


@pytest.fixture(scope="module", params=NETWORKS)
def shown(request: pytest.FixtureRequest) -> Shown:
    workspace = Workspace.open(f"builtin:{request.param}")
    table = models.noise(workspace)
    model = board_values.constants(workspace, models.dense_score(workspace)[0], table)
    assert table is not None
    for layer in model["layers"]:
        for name, method in layer["methods"].items():
            with suppress(LowRankError):  # a layer may be too large for methods that look at data
                method["tails"] = board_values.tails_of(workspace, layer["name"], name)
    metric = model["metric"] | {"dense": model["metric"]["dense"] + 0.01}  # as if the table were of some samples only
    return Shown(workspace, model | {"metric": metric}, table)


def sent(plan: RankPlan) -> dict[str, Any]:
    return board_values.choices_of(plan)


def learnt(shown: Shown, seed: int) -> tuple[tuple[Point, ...], Context]:
    """Made-up measurements of two layers in three, with repairs, as a survey would find them."""
    draw, points, repairs = random.Random(seed), [], []
    for layer in shown.layers:
        if draw.random() < 0.33:
            continue
        for method in shown.methods(layer):
            for _ in range(4):
                choice = shown.choice(draw, layer)
                error = closed_form_error(shown.spectra(layer.name, choice.method), choice.rank)
                change = error * shown.table.rough * exp(draw.uniform(-2, 2))
                points.append(Point(layer.name, method.name, choice.rank, error, change))
                repairs.append(Repair(layer.name, change, draw.uniform(0, 1.2)))
    joints = []
    for _ in range(12):
        changes = tuple(exp(draw.uniform(-9, 1)) * shown.table.rough for _ in shown.layers)
        joints.append(Joint(changes, draw.uniform(0, 0.5), draw.uniform(-0.01, 0.6)))
    if seed == 1:  # beyond the table, as where answers become constant
        most = 1.2 * abs(shown.table.score[0] - shown.table.score[-1])
        joints += [Joint(tuple(lot * shown.table.rough for _ in shown.layers), 0.0, most) for lot in (3.0, 30.0)]
    order = tuple(layer.name for layer in shown.layers)
    return tuple(points), Context(order, tuple(repairs), draw.uniform(0.5, 2), tuple(joints))


def after(shown: Shown, points: tuple[Point, ...], context: Context) -> dict[str, Any]:
    """The browser's model once it has heard of these, by the words that the board's Python side sends."""
    heard = board_values.survey_fields(Snapshot(((*points, context),)), shown.table)
    layers = [
        layer
        | {
            "methods": {
                n: m | {"points": heard["points"].get(layer["name"], {}).get(n, [])}
                for n, m in layer["methods"].items()
            }
        }
        for layer in shown.model["layers"]
    ]
    return shown.model | {"layers": layers, "context": heard["context"]}


def predicted(shown: Shown, plan: RankPlan, points: tuple[Point, ...], context: Context | None) -> Prediction:
    """The core's prediction, shifted as every figure on the board to the score of all samples."""
    shift = shown.model["metric"]["dense"] - shown.table.score[0]
    found = predict(plan, curves(points), shown.table, shown.spectra, context)
    return Prediction(found.value + shift, found.low + shift, found.high + shift)


def test_flash_is_the_same_in_every_number_format(shown: Shown) -> None:
    plans, workspace = list(shown.plans(60)), shown.workspace
    body = "return plans.map(choices => formats.map(number => flashBytes(model, choices, number)));"
    found = answer(body, model=shown.model, plans=[sent(plan) for plan in plans], formats=list(FORMATS))
    assert found == [
        [plan_flash_bytes(workspace.model, workspace.profile, plan, number) for number in FORMATS] for plan in plans
    ]


def test_a_limit_is_kept_broken_or_open() -> None:
    asked = [(1, 2, 2), (3, 4, 2), (1, 3, 2), (2, 2, 2)]
    body = "return asked.map(([least, most, limit]) => [true, false].map(up => judged(least, most, limit, up)));"
    found = answer(body, asked=asked)
    assert found == [["open", "kept"], ["kept", "broken"], ["open", "open"], ["kept", "kept"]]


def test_totals_are_the_same_integers(shown: Shown) -> None:
    plans = list(shown.plans(200))
    found = answer(TOTALS, model=shown.model, plans=[sent(plan) for plan in plans])
    costs = [plan_cost(shown.workspace.profile, plan) for plan in plans]
    assert found == [{"bytes": cost.bytes, "multiplies": cost.multiplies} for cost in costs]


def test_useful_ranks_and_choices_that_save_nothing(shown: Shown) -> None:
    body = """return model.layers.map(layer => Object.fromEntries(Object.keys(layer.methods).map(
        name => [name, [usefulRank(layer, name, free), canSave(layer, name, free)]])));"""
    for free in (False, True):
        for layer, found in zip(shown.layers, answer(body, model=shown.model, free=free), strict=True):
            useful = {name: useful_rank(layer, name, free) for name in found}
            assert found == {name: [list(rank), all(rank)] for name, rank in useful.items()}
    singles = shown.singles(200, seed=1)
    body = "return singles.map(([i, choice]) => savesNothing(model.layers[i], choice));"
    found = answer(body, model=shown.model, singles=[(i, board_choice(c)) for i, c in singles])
    plans = [shown.plan({shown.layers[i].name: choice}) for i, choice in singles]
    assert found == [bool(check_plan(shown.workspace.profile, plan)) for plan in plans]


def board_choice(choice: Choice) -> dict[str, Any]:
    return choice.to_dict()


def test_shares_of_ranks_are_rounded_as_in_python() -> None:
    draw = random.Random(0)
    asked = [([draw.randint(1, 4096) for _ in range(draw.randint(1, 2))], draw.random()) for _ in range(2000)]
    asked += [([top], share / 8) for top in range(1, 200) for share in range(9)]
    found = answer("return asked.map(([top, share]) => rankAt(top, share));", asked=asked)
    assert found == [list(rank_at(tuple(top), share)) for top, share in asked]


def test_allowed_ranks() -> None:
    asked = [(top, r, k) for top in (1, 3, 8, 13, 64) for r in range(-1, 70) for k in (1, 4, 8, 16)]
    found = answer("return asked.map(one => allowedRank(...one));", asked=asked)
    for (top, r, multiple), rank in zip(asked, found, strict=True):
        assert rank == top or (0 < rank < top and rank % multiple == 0)
        nearest = min(max(r, multiple), top)
        assert abs(rank - nearest) <= multiple / 2 or rank == top < nearest + multiple
    assert answer("return [allowedRank(13, 5), allowedRank(13, 5, 4), allowedRank(3, 1, 8)];") == [5, 4, 3]
    half_way = "return [allowedRank(13, 2.5), allowedRank(13, 3.5), allowedRank(13, 6, 4), allowedRank(13, 10, 4)];"
    assert answer(half_way) == [round(2.5), round(3.5), 4 * round(6 / 4), 4 * round(10 / 4)]


def test_the_board_has_one_way_to_round() -> None:
    scripts = {path.name: path.read_text(encoding="utf-8") for path in board_values.FOLDER.glob("*.js")}
    assert [name for name, text in scripts.items() for _ in range(text.count("Math.round("))] == ["closed_forms.js"]
    assert rank_at((5,), 0.5) == (2,)


def test_ranks_for_energy() -> None:
    draw = torch.Generator().manual_seed(0)
    spectra = [torch.rand(n, generator=draw).sort(descending=True).values for n in range(1, 13) for _ in range(4)]
    tails = [board_values.tail_fields(spectrum) for spectrum in spectra]
    assert all(tail["ranks"] == list(range(len(s) + 1)) for tail, s in zip(tails, spectra, strict=True))
    keeps = (0.5, 0.8, 0.9, 0.99, 1.0)
    body = "return tails.map(tail => keeps.map(keep => energyRank(tail, tail.ranks.length - 1, keep)));"
    expected = [[rank_for_energy(spectrum, keep) for keep in keeps] for spectrum in spectra]
    assert answer(body, tails=tails, keeps=keeps) == expected


def test_errors_of_weights_where_the_curve_has_a_point(shown: Shown) -> None:
    singles = shown.singles(200, seed=2)
    body = "return singles.map(([i, choice]) => errorSquared(model.layers[i], choice));"
    found = answer(body, model=shown.model, singles=[(i, board_choice(c)) for i, c in singles])
    expected = [closed_form_error(shown.spectra(shown.layers[i].name, c.method), c.rank) for i, c in singles]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert max(expected) > 0.1


def test_an_unknown_curve_stands_in_stretched_to_the_method_s_ranks(shown: Shown) -> None:
    body = """const layer = model.layers[0], name = Object.keys(layer.methods).at(-1), method = layer.methods[name];
        method.tails = null;
        return [tailsOf(layer, name), method.top, layer.methods[layer.default].tails[0]];"""
    tails, top, known = answer(body, model=shown.model)
    for tail, most in zip(tails, top, strict=True):
        assert (tail["ranks"][0], tail["ranks"][-1]) == (0, most)
        assert tail["lost"] == [lost / len(top) for lost in known["lost"]]


def test_between_the_knots_even_where_two_stand_at_one_place() -> None:
    draw = random.Random(0)
    curves = [sorted((draw.randint(0, 6), draw.randint(-9, 9)) for _ in range(draw.randint(1, 6))) for _ in range(1000)]
    places = [x / 4 for x in range(-4, 32)]
    body = "return curves.map(knots => places.map(x => between(knots.map(k => k[0]), knots.map(k => k[1]), x)));"
    found = answer(body, curves=curves, places=places)
    for knots, values in zip(curves, found, strict=True):
        assert values == pytest.approx([core_between(tuple(knots), x) for x in places], abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_predictions_of_plans(shown: Shown, seed: int) -> None:
    points, context = learnt(shown, seed)
    plans, known = list(shown.plans(100, known=True, seed=seed)), curves(points)
    body = "return plans.map(choices => predict(model, choices));"
    found = answer(body, model=after(shown, points, context), plans=[sent(plan) for plan in plans])
    expected = [predicted(shown, plan, points, context) for plan in plans]
    for end in ("value", "low", "high"):
        assert [f[end] for f in found] == pytest.approx([getattr(e, end) for e in expected], rel=1e-6, abs=1e-9)
    assert [f["rough"] for f in found] == [any((n, c.method) not in known for n, c in plan.choices) for plan in plans]
    assert max(e.value for e in expected) - min(e.value for e in expected) > 0.05
    assert len({round(e.high - e.low, 4) for e in expected}) > 20, "no constant"


def test_predictions_before_anything_is_learnt(shown: Shown) -> None:
    plans = [shown.plan({}), *shown.plans(50, known=True)]
    body = "return plans.map(choices => predict(model, choices));"
    found = answer(body, model=shown.model, plans=[sent(plan) for plan in plans])
    for end in ("value", "low", "high"):
        expected = [getattr(predicted(shown, plan, (), None), end) for plan in plans]
        assert [f[end] for f in found] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_losses_of_single_layers_and_what_the_next_step_costs(shown: Shown) -> None:
    points, context = learnt(shown, 3)
    singles = shown.singles(100, seed=3)
    body = """return singles.map(([i, choice]) => [lossAlone(model, model.layers[i], choice),
        ...["bytes", "multiplies"].map(q => exchangeRate(model, model.layers[i], choice, q))]);"""
    exact = [(i, c) for i, c in singles if whole_curves(shown, i, c.method)]
    found = answer(body, model=after(shown, points, context), singles=[(i, board_choice(c)) for i, c in singles])
    sign = 1 if shown.model["metric"]["higher"] else -1
    for (i, choice), (loss, *rates) in zip(singles, found, strict=True):
        layer = shown.layers[i]
        here = predicted(shown, shown.plan({layer.name: choice}), points, None).value
        assert loss == pytest.approx(max(0.0, sign * (shown.model["metric"]["dense"] - here)), rel=1e-6, abs=1e-9)
        if (i, choice) not in exact:
            continue
        top = shown.model["layers"][i]["methods"][choice.method]["top"]
        rank = tuple(max(1, r - max(1, round(t / 20))) for r, t in zip(choice.rank, top, strict=True))
        below = replace(choice, rank=rank)
        lost = here - predicted(shown, shown.plan({layer.name: below}), points, None).value
        costs = layer_cost(layer, choice), layer_cost(layer, below)
        for quantity, rate in zip(("bytes", "multiplies"), rates, strict=True):
            saved = getattr(costs[0], quantity) - getattr(costs[1], quantity)
            assert (rate is None) == (saved <= 0)
            if rate is not None:
                assert rate * saved == pytest.approx(lost, rel=1e-5, abs=1e-8)


def whole_curves(shown: Shown, index: int, method: str) -> bool:
    """Whether the browser knows the error at every rank, so that nothing is interpolated."""
    known = shown.model["layers"][index]["methods"][method]
    return all(set(range(1, top + 1)) <= set(t["ranks"]) for top, t in zip(known["top"], known["tails"], strict=True))


def test_the_rank_at_the_same_price(shown: Shown) -> None:
    asked = []
    for i, choice in shown.singles(60, seed=4):
        other = random.Random(i).choice(list(shown.model["layers"][i]["methods"]))
        free = has_free_ranks(other) and choice.free
        asked.append((i, other, layer_cost(shown.layers[i], choice).multiplies, free))
    body = "return asked.map(([i, m, most, free]) => rankWithin(model.layers[i], m, most, free));"
    found = answer(body, model=shown.model, asked=asked)
    for (i, method, most, free), rank in zip(asked, found, strict=True):
        top = tuple(shown.model["layers"][i]["methods"][method]["top"])
        shares = [rank_at(top, percent / 100) for percent in range(1, 101)]
        fitting = [r for r in shares if layer_cost(shown.layers[i], Choice(method, r, free)).multiplies <= most]
        assert tuple(rank) == (fitting[-1] if fitting else shares[0])


@pytest.mark.parametrize("quantity", ["bytes", "multiplies"])
def test_layers_that_share_a_budget_stay_within_it_and_leave_little(shown: Shown, quantity: str) -> None:
    """By the core's cost; with the next rank up in every layer they are beyond it."""
    profile = shown.workspace.profile
    free = [
        (i, layer, layer.methods[0].name, useful_rank(layer, layer.methods[0].name))
        for i, layer in enumerate(shown.layers)
        if all(useful_rank(layer, layer.methods[0].name)) and getattr(dense_cost(layer), quantity)
    ]

    def cost(ranks: Iterable[Iterable[int]]) -> int:
        choices = [(layer.name, Choice(m, tuple(rank))) for (_, layer, m, _), rank in zip(free, ranks, strict=True)]
        paying = {name: c for name, c in choices if not check_plan(profile, shown.plan({name: c}))}
        return int(getattr(plan_cost(profile, shown.plan(paying)), quantity))

    outside = getattr(plan_cost(profile), quantity) - sum(getattr(dense_cost(one[1]), quantity) for one in free)
    least, most = cost([(1,)] * len(free)), cost([full for *_, full in free])
    budgets = [least + (most - least) * part // 8 for part in range(1, 8)]
    body = """return budgets.map(most => ranksWithin(
        free.map(([i, method, full]) => ({ layer: model.layers[i], method, full })), most, quantity));"""
    found = answer(
        body,
        model=shown.model,
        free=[(i, method, full) for i, _, method, full in free],
        budgets=[budget - outside for budget in budgets],
        quantity=quantity,
    )
    for budget, ranks in zip(budgets, found, strict=True):
        assert cost(ranks) <= budget
        assert (
            cost(
                (min(f, r + 1) for r, f in zip(rank, full, strict=True))
                for rank, (*_, full) in zip(ranks, free, strict=True)
            )
            > budget
        )
