"""Context: what layers do to each other in a whole plan, which single layers cannot tell.

A correction refits later layers too, which make good part of what earlier ones lose; and the change of the outputs is
no even noise. Both are measured here: the first without labels, the second as the scores of a few random plans. The
prediction then takes them into account.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil

from torch import Tensor

from lowrank_core.compression.apply import apply
from lowrank_core.compression.correct import load_overlay
from lowrank_core.layers.data import joined, run
from lowrank_core.measure.ledger import Ledger, score_key
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import rank_at, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.prediction import (
    Context,
    Curve,
    NoiseTable,
    Point,
    Repair,
    curves,
    fitted_scale,
    plan_variance,
)
from lowrank_core.predict.sensitivity import BATCH, SAMPLES, change_of, ranks
from lowrank_core.running.scope import give_way
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace

VERSION = 1
"""Of the way contexts are learnt: stored ones of another version are not used."""

JOINT_PLANS = 24
JOINT_SAMPLES = 1024
TOO_FAR = 0.06
"""A random plan that loses clearly more than this share of the dense score is not measured to the end."""


@dataclass(frozen=True, slots=True)
class Joint:
    """A plan of several layers and the score that was measured of it as a whole."""

    plan: RankPlan
    score: float


def repairs(
    workspace: Workspace,
    correction: Correction,
    points: Iterable[Point],
    ledger: Ledger | None = None,
    *,
    samples: int = SAMPLES,
) -> Iterator[Repair]:
    """For each layer at its default method's ranks: what is left of its change when all later layers are refitted.

    The later layers are compressed as little as pays; what that does by itself is taken off. `points` give the change
    of each layer alone, on the same samples. What the ledger holds is not measured again. Raises Cancelled.
    """
    layers, changes = workspace.profile.layers, ledger or Ledger()
    alone = {(p.layer, p.method, p.rank): p.change for p in points}
    lightly = {layer.name: Choice(m := layer.methods[0].name, ranks(layer, m)[-1]) for layer in layers}
    inputs = workspace.reference.dataset.pick(slice(0, samples))
    parts = [inputs.pick(slice(at, at + BATCH)) for at in range(0, len(inputs), BATCH)]
    names = workspace.judged.names
    dense = joined(run(workspace.model, part, names) for part in parts)

    def changed(choices: dict[str, Choice]) -> float:
        give_way()
        candidate = Candidate(RankPlan.of(workspace.profile.fingerprint, choices), correction)

        def measure() -> float:
            compressed = apply(workspace.model, workspace.profile, candidate.plan, workspace.factors)
            load_overlay(compressed, workspace.corrector(candidate.plan, correction))
            return change_of(joined(run(compressed, part, names) for part in parts), dense)

        return changes.remembered(f"change {score_key(candidate, len(inputs))}", measure)

    for number, layer in enumerate(layers[:-1]):
        method = layer.methods[0].name
        later = {other.name: lightly[other.name] for other in layers[number + 1 :]}
        later_change = changed(later)
        for rank in ranks(layer, method)[:-1]:
            change = alone.get((layer.name, method, rank), 0.0)
            if change > 0:
                together = changed({**later, layer.name: Choice(method, rank)})
                yield Repair(layer.name, change, max(0.0, together - later_change) / change)


def joint_plans(workspace: Workspace, methods: Iterable[str], *, seed: int = 0) -> Iterator[RankPlan]:
    """Random plans without end, from light to heavy: a third of the layers or more, methods mixed."""
    rng, allowed, layers = random.Random(seed), set(methods), workspace.profile.layers
    while True:
        least = rng.uniform(0.15, 0.6)
        chosen = {}
        for layer in rng.sample(layers, rng.randint(ceil(len(layers) / 3), len(layers))):
            usable = [m.name for m in layer.methods if m.name in allowed and all(useful_rank(layer, m.name))]
            if usable:
                method = rng.choice(usable)
                top = useful_rank(layer, method)
                chosen[layer.name] = Choice(method, tuple(rank_at((t,), rng.uniform(least, 1))[0] for t in top))
        yield RankPlan.of(workspace.profile.fingerprint, chosen)


def joints(
    workspace: Workspace,
    correction: Correction | None,
    methods: Iterable[str],
    ledger: Ledger | None = None,
    *,
    plans: int = JOINT_PLANS,
    samples: int = JOINT_SAMPLES,
    seed: int = 0,
) -> Iterator[Joint]:
    """Measure random plans; of those drawn, the ones that lose too much are left out. Raises Cancelled.

    What the ledger holds is not measured again.
    """
    taken, scores = 0, ledger or Ledger()
    for drawn, plan in enumerate(joint_plans(workspace, methods, seed=seed)):
        if taken == plans or drawn == 4 * plans:
            return
        give_way()
        candidate = Candidate(plan, correction if plan.choices else None)

        def measure(candidate: Candidate = candidate) -> Score:
            model = workspace.compress(candidate.plan, candidate.correction)
            for score in workspace.measure(model, samples=samples, keep=False):
                if _too_far(score):
                    break
            return score

        joint_score = scores.remembered(f"joint {score_key(candidate, samples)}", measure)
        if not _too_far(joint_score):
            taken += 1
            yield Joint(plan, joint_score.value)


def _too_far(score: Score) -> bool:
    return score.drop_low is not None and score.drop_low > TOO_FAR * abs(score.dense)


def context_of(
    workspace: Workspace,
    points: Iterable[Point],
    table: NoiseTable,
    measured_repairs: Iterable[Repair] = (),
    measured_joints: Iterable[Joint] = (),
) -> Context:
    """The context of a network, which `predict` and the board take into account, from all that is measured."""
    order = tuple(layer.name for layer in workspace.profile.layers)
    measured_curves: dict[tuple[str, str], Curve] = curves(points)
    context = Context(order, tuple(measured_repairs))

    def spectra(layer: str, method: str) -> tuple[Tensor, ...]:
        return workspace.factors(layer, method).spectra

    pairs = [(plan_variance(j.plan, measured_curves, table.rough, spectra, context), j.score) for j in measured_joints]
    return Context(order, context.repairs, fitted_scale(table, pairs))
