"""The plan to start from: about half the multiplies, and fewer bytes, taken where the weights lose least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank_core.compression.factors import FactorStore
from lowrank_core.networks.profile import Layer, ModelProfile
from lowrank_core.plans.cost import amounts, plan_cost, rank_at, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan

STEPS = 40


def starting_plan(profile: ModelProfile, factors: FactorStore, share: float = 0.5) -> RankPlan:
    """The plan that keeps at most `share` of the multiplies at the least sum of squared relative weight errors.

    Default methods; no network is run. One price on the share of multiplies and half the share of bytes decides every
    layer, found by bisection (Lagrange), so layers that save little stay dense. Where even the cheapest plan keeps
    more, that one.
    """
    dense = plan_cost(profile)
    menus = [_menu(layer) for layer in profile.layers]
    width = max(map(len, menus), default=0)
    errors = np.full((len(menus), width), np.inf)
    multiplies, bytes = np.zeros((len(menus), width)), np.zeros((len(menus), width))
    for row, (layer, menu) in enumerate(zip(profile.layers, menus, strict=True)):
        factorization = factors(layer.name, layer.methods[0].name) if len(menu) > 1 else None
        errors[row, : len(menu)] = [
            factorization.error(choice.rank) ** 2 if factorization and choice else 0.0 for choice in menu
        ]
        multiplies[row, : len(menu)] = amounts(layer, menu, "multiplies")
        bytes[row, : len(menu)] = amounts(layer, menu, "bytes")
    paid = multiplies / max(1, dense.multiplies) + 0.5 * bytes / max(1, dense.bytes)
    rows = np.arange(len(menus))

    def best(price: float) -> NDArray[np.intp]:
        columns: NDArray[np.intp] = np.argmin(errors + price * paid, axis=1)
        return columns

    low, high = 0.0, 1e6
    for _ in range(80 if menus else 0):
        middle = (low + high) / 2
        if multiplies[rows, best(middle)].sum() + profile.rest.multiplies <= share * dense.multiplies:
            high = middle
        else:
            low = middle
    chosen = {}
    if menus:
        chosen = {x.name: menu[at] for x, menu, at in zip(profile.layers, menus, best(high), strict=True)}
    return RankPlan.of(profile.fingerprint, {name: choice for name, choice in chosen.items() if choice is not None})


def _menu(layer: Layer) -> list[Choice | None]:
    """What a layer may become: dense, and ranks of its default method that pay."""
    method = layer.methods[0].name
    top = useful_rank(layer, method)
    ranks = sorted({rank_at(top, step / STEPS) for step in range(1, STEPS + 1)}) if all(top) else []
    return [None, *(Choice(method, rank) for rank in ranks)]
