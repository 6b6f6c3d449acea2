"""The plan that keeps the same share of every layer."""

from __future__ import annotations

from collections.abc import Iterable

from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.cost import _last_true, break_even, plan_cost, rank_at, with_free_ranks
from lowrank_core.plans.plan import Choice, RankPlan


def uniform_plan(
    profile: ModelProfile, share: float, quantity: str = "multiplies", locked: Iterable[str] = (), *, free: bool = False
) -> RankPlan:
    """The plan that gives every layer the same share of its break-even rank, so that the whole network keeps about
    `share` of its dense `quantity` ("bytes" or "multiplies") and never more where that can be reached.

    Default methods; layers that no rank makes cheaper, and locked ones, stay dense. free: with free ranks.
    """
    chosen = []
    for layer in profile.layers:
        top = break_even(layer, layer.methods[0].name, quantity, free)
        if layer.name not in set(locked) and all(top):
            chosen.append((layer, top))
    target = share * getattr(plan_cost(profile), quantity)

    def at(step: int) -> RankPlan:
        ranks = {layer.name: Choice(layer.methods[0].name, rank_at(top, step / 1000)) for layer, top in chosen}
        plan = RankPlan.of(profile.fingerprint, ranks)
        return with_free_ranks(plan) if free else plan

    return at(_last_true(lambda step: getattr(plan_cost(profile, at(step)), quantity) <= target, 1000))
