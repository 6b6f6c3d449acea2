"""Context: what layers do to each other in a whole plan, which single layers cannot tell.

A correction refits later layers too, which make good part of what earlier ones lose; and the change of the outputs is
no even noise. Both are measured here: the first without labels, the second as the scores of random plans. The
prediction then takes them into account, and knows from the latter how far it may be off.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from math import exp, log

from torch import Tensor

from lowrank_core.compression.apply import apply
from lowrank_core.compression.correct import load_overlay
from lowrank_core.layers.data import joined, run
from lowrank_core.measure.ledger import Ledger, score_key
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import rank_at, tried_rank, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.prediction import (
    Context,
    Curve,
    Joint,
    NoiseTable,
    Point,
    Repair,
    curves,
    fitted_scale,
    plan_changes,
)
from lowrank_core.predict.sensitivity import BATCH, SAMPLES, change_of, ranks
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import give_way, report
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.workspace import Workspace

VERSION = 3
"""Of the way contexts are learnt: one of an older version, whose plans had the quick correction or none were measured,
is used until this one's are.
"""

JOINT_PLANS = 48
JOINT_SAMPLES = 1024

LEAST_KEEP = 0.03
"""Share of the useful ranks around which those of the heaviest random plans lie."""


@dataclass(frozen=True, slots=True)
class MeasuredPlan:
    """A plan of several layers and what of the score it loses, measured as a whole."""

    plan: RankPlan
    lost: float


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


def random_plan(profile: ModelProfile, methods: Collection[str], draw: random.Random, keep: float) -> RankPlan:
    """Some layers or all, at ranks around a share of the useful ones; in half of the plans by their default methods."""
    chosen: dict[str, Choice] = {}
    default_only = draw.random() < 0.5
    for layer in draw.sample(profile.layers, draw.randint(1, len(profile.layers))):
        usable = [m.name for m in layer.methods if m.name in methods and all(useful_rank(layer, m.name))]
        share = min(1.0, keep * exp(draw.gauss(0, 0.5)))
        if usable:
            method = usable[0] if default_only else draw.choice(usable)
            chosen[layer.name] = Choice(method, rank_at(tried_rank(layer, method), share))
    return RankPlan.of(profile.fingerprint, chosen)


def random_keep(draw: random.Random, *, lighter: bool) -> float:
    """A share of the useful ranks: of two that are drawn the larger or the smaller one."""
    return (max if lighter else min)(exp(draw.uniform(log(LEAST_KEEP), 0)) for _ in range(2))


def joints(
    workspace: Workspace,
    correction: Correction | None,
    methods: Collection[str],
    much: float,
    ledger: Ledger | None = None,
    *,
    plans: int = JOINT_PLANS,
    samples: int = JOINT_SAMPLES,
    seed: int = 0,
) -> Iterator[MeasuredPlan]:
    """Measure random plans, about as many that lose more than `much` as that lose less. Raises Cancelled.

    What the ledger holds is not measured again. A plan whose answers are not finite tells nothing and is left out.
    """
    scores, draw, pace = ledger or Ledger(), random.Random(seed), Pace(plans)
    taken = heavier = 0
    for _ in range(4 * plans):  # some networks have no rank that pays, and so no plan
        plan = random_plan(workspace.profile, methods, draw, random_keep(draw, lighter=heavier > 0))
        if taken == plans:
            return
        if not plan.choices:
            continue
        give_way()
        report(Progress(f"{taken} of {plans} plans", pace(taken)))
        candidate = Candidate(plan, correction)

        def measure(candidate: Candidate = candidate) -> Score:
            model = workspace.compress(candidate.plan, candidate.correction)
            return final_score(workspace.measure(model, samples=samples, keep=False))

        score = scores.remembered(f"whole {score_key(candidate, samples)}", measure)
        taken += 1
        heavier += 1 if score.drop >= much else -1
        if not score.not_finite:
            yield MeasuredPlan(plan, score.drop)


def context_of(
    workspace: Workspace,
    points: Iterable[Point],
    table: NoiseTable,
    measured_repairs: Iterable[Repair] = (),
    measured_plans: Iterable[MeasuredPlan] = (),
) -> Context:
    """The context of a network, which `predict` and the board take into account, from all that is measured."""
    context = Context(tuple(layer.name for layer in workspace.profile.layers), tuple(measured_repairs))
    known = joints_of(workspace, points, table, context, measured_plans)
    sign = -1 if table.score[-1] > table.score[0] else 1
    pairs = [(sum(joint.changes), table.score[0] - sign * joint.lost) for joint in known]
    return replace(context, scale=fitted_scale(table, pairs), joints=known)


def joints_of(
    workspace: Workspace,
    points: Iterable[Point],
    table: NoiseTable,
    context: Context,
    measured_plans: Iterable[MeasuredPlan],
) -> tuple[Joint, ...]:
    """Measured plans in the numbers that they are predicted by."""
    measured_curves: dict[tuple[str, str], Curve] = curves(points)

    def spectra(layer: str, method: str) -> tuple[Tensor, ...]:
        return workspace.factors(layer, method).spectra

    found = []
    for one in measured_plans:
        changes = plan_changes(one.plan, measured_curves, table.rough, spectra, context)
        found.append(Joint(changes.each, changes.doubt, one.lost))
    return tuple(found)
