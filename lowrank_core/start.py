"""The plan to start from: about half the multiplies, and fewer bytes, taken where the weights lose least."""

from __future__ import annotations

from lowrank_core.cost import Cost, layer_cost, plan_cost, rank_at, useful_rank
from lowrank_core.discover import Layer, ModelProfile
from lowrank_core.factors import FactorStore
from lowrank_core.plan import Choice, RankPlan

STEPS = 40


def starting_plan(profile: ModelProfile, factors: FactorStore, share: float = 0.5) -> RankPlan:
    """The plan that keeps at most `share` of the multiplies at the least sum of squared relative weight errors.

    Default methods; no network is run. One price on the share of multiplies and half the share of bytes decides every
    layer, found by bisection (Lagrange), so layers that save little stay dense. Where even the cheapest plan keeps
    more, that one.
    """
    dense = plan_cost(profile)
    budget = share * dense.multiplies
    menus = [(layer, _menu(layer, factors, dense)) for layer in profile.layers]

    def at(price: float) -> RankPlan:
        chosen = {}
        for layer, menu in menus:
            _, _, choice = min(menu, key=lambda option: option[0] + price * option[1])
            if choice is not None:
                chosen[layer.name] = choice
        return RankPlan.of(profile.fingerprint, chosen)

    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        if plan_cost(profile, at(middle)).multiplies <= budget:
            high = middle
        else:
            low = middle
    return at(high)


def _menu(layer: Layer, factors: FactorStore, dense: Cost) -> list[tuple[float, float, Choice | None]]:
    """(squared relative error, what it costs as shares of the dense network, choice): dense, and useful ranks."""

    def price(choice: Choice | None) -> float:
        cost = layer_cost(layer, choice)
        return cost.multiplies / max(1, dense.multiplies) + 0.5 * cost.bytes / max(1, dense.bytes)

    method = layer.methods[0].name
    menu: list[tuple[float, float, Choice | None]] = [(0.0, price(None), None)]
    top = useful_rank(layer, method)
    if all(top):
        found = factors(layer.name, method)
        for rank in sorted({rank_at(top, step / STEPS) for step in range(1, STEPS + 1)}):
            choice = Choice(method, rank)
            menu.append((found.error(rank) ** 2, price(choice), choice))
    return menu
