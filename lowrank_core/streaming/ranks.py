"""Ranks of all layers within one budget of bytes, from what truncation loses of each layer's outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from lowrank_core.algebra.knapsack import cheapest_losses
from lowrank_core.errors import InvalidSearch
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.cost import amounts, break_even, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.streaming.fit import METHOD

WITHIN = 0.001
"""Share of the least loss that ranks may lose more, so that hundreds of layers take seconds."""


def check_reachable(profile: ModelProfile, asked: float) -> None:
    """Raise InvalidSearch where even with all ranks 1 a network takes more than that share of its bytes."""
    smallest = {layer.name: Choice(METHOD, (1,)) for layer in profile.layers if break_even(layer, METHOD, "bytes")[0]}
    least = plan_cost(profile, RankPlan.of(profile.fingerprint, smallest)).bytes / plan_cost(profile).bytes
    if asked < least:
        raise InvalidSearch(
            f"--bytes {asked:g} cannot be reached: with every rank 1 the blocks, and what is outside of them, take "
            f"{least:.4f} of the bytes; ask for more."
        )


def ranks_within(profile: ModelProfile, energies: Mapping[str, Tensor], limit: float) -> RankPlan:
    """The plan of at most `limit` bytes whose layers lose least of what their outputs carry: the sum of squared shares.

    Squared, so that none is taken far while others stay dense: what one layer loses, the next ones see.

    energies: (k,) of each layer's directions, strongest first. The limit can be reached (`check_reachable`).
    """
    names = [layer.name for layer in profile.layers if layer.name in energies]
    options: list[list[Choice | None]] = []
    losses, costs = [], []
    for name in names:
        layer = profile.layer(name)
        (top,) = break_even(layer, METHOD, "bytes")
        kept = np.concatenate([[0.0], np.cumsum(energies[name].numpy())])
        lost = np.maximum(0.0, 1 - kept / max(kept[-1], 1e-300)) ** 2
        options.append([None, *(Choice(METHOD, (rank,)) for rank in range(1, top + 1))])
        losses.append(np.concatenate([[0.0], lost[1 : top + 1]]))
        costs.append(np.array(amounts(layer, options[-1], "bytes")))
    dense = plan_cost(profile).bytes
    beside = dense - sum(int(cost[0]) for cost in costs)
    (found,) = cheapest_losses(losses, costs, [limit - beside], WITHIN)
    assert found is not None
    choices = {name: chosen[at] for name, chosen, at in zip(names, options, found, strict=True)}
    return RankPlan.of(profile.fingerprint, {name: choice for name, choice in choices.items() if choice is not None})
