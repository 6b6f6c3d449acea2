"""Plans to start from: the ranks that spectra suggest, or half the multiplies taken where the weights lose least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank_core.algebra.spectra import bend
from lowrank_core.compression.factors import FactorStore
from lowrank_core.networks.profile import Layer, ModelProfile
from lowrank_core.plans.cost import amounts, dense_cost, layer_cost, plan_cost, rank_at, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan

STEPS = 40

WORTH = 0.1
"""Of an average layer, that a layer of a suggested plan saves at least."""


def suggested_plan(profile: ModelProfile, factors: FactorStore) -> RankPlan:
    """Every layer at the rank that its spectrum suggests (`bend`), where that is worth it; else `starting_plan`.

    Default methods; no network is run. A layer stays dense whose suggested rank is above break-even, or saves less than
    `WORTH` of an average layer in bytes and in multiplies: a classifier of ten classes has no rank to spare. Where all
    stay dense no spectrum says anything, and the plan at half the multiplies is as good a place to begin as any.
    """
    dense, chosen = plan_cost(profile), {}
    average = {q: max(1, getattr(dense, q)) / max(1, len(profile.layers)) for q in ("bytes", "multiplies")}
    for layer in profile.layers:
        method, top = layer.methods[0].name, useful_rank(layer, layer.methods[0].name)
        if not all(top):
            continue
        choice = Choice(method, tuple(map(bend, factors(layer.name, method).spectra)))
        whole, thin = dense_cost(layer), layer_cost(layer, choice)
        saved = max(getattr(whole, q) / one - getattr(thin, q) / one for q, one in average.items())
        if saved >= WORTH:
            chosen[layer.name] = choice
    return RankPlan.of(profile.fingerprint, chosen) if chosen else starting_plan(profile, factors)


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
