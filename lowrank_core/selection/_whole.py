"""Whole plans judged: by how far the network's outputs diverge, without labels, and by their score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf, isnan

from torch import nn

from lowrank_core.compression.calibration import last_samples
from lowrank_core.layers.data import Dataset, data_hash, joined, run
from lowrank_core.measure.ledger import score_key
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.sensitivity import BATCH, OUTPUT_BYTES, divergence
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import give_way, report
from lowrank_core.scoring.scores import Score
from lowrank_core.selection._problem import Problem
from lowrank_core.workspace import Workspace

FEWEST_HELD_OUT = 32
"""Samples that nothing was fitted to, below which those that factors were fitted to take their place."""

GLANCE = 128
"""Evaluation samples after which a plan whose drop is clearly larger than another's is left out."""

MORE_SAMPLES = 1024
"""That an answer is corrected on where they bring something. ResNet-20 at 20 % of its multiplies, divergence on 1,024
others: 256 samples 0.2331, 512 0.2294, 1,024 0.2135, 2,048 0.2148."""

MOST_JUDGED = 1024
"""That tell whether it brings something."""

LEAST_GAIN = 0.01
"""Of its divergence that an answer must gain by them."""

Judge = Callable[[RankPlan], tuple[float, float]]
"""How far the network diverges under a plan, on one half of the samples and on the other."""


def held_out(workspace: Workspace) -> Dataset:
    """Unlabelled samples that no factor is fitted to: of training, else of evaluation; where there are too few of both
    the calibration samples, to which a correction may have fitted a plan so well that they tell nothing.
    """
    fitted = len(workspace.calibration)
    data = last_samples(workspace.calibration_pool, fitted, beyond=fitted)
    if len(data) < FEWEST_HELD_OUT:
        judged = workspace.reference.dataset.unlabelled()
        unseen = workspace.train_data is not None and len(judged) >= min(FEWEST_HELD_OUT, fitted)
        data = judged.pick(slice(0, fitted)) if unseen else workspace.calibration
    return _leading(workspace, data)


def _leading(workspace: Workspace, data: Dataset) -> Dataset:
    """As many samples as OUTPUT_BYTES hold the outputs of, at least one."""
    return data.pick(slice(0, max(1, OUTPUT_BYTES // max(1, workspace.reference.output_bytes))))


def judge(problem: Problem, samples: Dataset | None = None) -> Judge:
    """How far the network diverges under a plan with the problem's correction, on the halves of `held_out`.

    samples: in their place. inf for what is no number. Remembered as scores are; gives way and raises Cancelled.
    """
    workspace = problem.workspace
    data, names = held_out(workspace) if samples is None else samples, workspace.judged.names
    middle = (len(data) + 1) // 2
    halves = [half for half in (data.pick(slice(0, middle)), data.pick(slice(middle, None))) if len(half)]
    parts = [[half.pick(slice(at, at + BATCH)) for at in range(0, len(half), BATCH)] for half in halves]
    hashes = [data_hash(half.inputs) for half in halves]
    dense = [joined(run(workspace.model, part, names) for part in each) for each in parts]

    def diverges(plan: RankPlan) -> tuple[float, float]:
        give_way()
        candidate, models = problem.candidate(plan).plain, list[nn.Module]()

        def measured(half: int) -> float:
            if not models:
                models.append(workspace.compress(candidate.plan, candidate.correction))
            outputs = joined(run(models[0], part, names) for part in parts[half])
            loss = divergence(workspace.metric, outputs, dense[half])
            return inf if isnan(loss) else loss

        found = [
            problem.ledger.remembered(
                f"divergence {hashed} {score_key(candidate, len(halves[half]))}", partial(measured, half)
            )
            for half, hashed in enumerate(hashes)
        ]
        return found[0], found[-1]

    return diverges


def with_more_samples(problem: Problem, plan: RankPlan) -> tuple[Problem, float] | None:
    """The problem corrected on MORE_SAMPLES, and how far a plan then diverges; None where they gain too little.

    Judged on a quarter of the pool that neither correction is fitted to: on as few as `held_out` chance moves it by as
    much. Gives way and raises Cancelled.
    """
    workspace, pool, correction = problem.workspace, problem.workspace.calibration_pool, problem.correction
    unseen = last_samples(pool, min(MOST_JUDGED, len(pool) // 4), beyond=len(workspace.calibration))
    data = _leading(workspace, unseen)
    most = min(MORE_SAMPLES, len(pool) - len(data))
    if correction is None or most <= correction.samples or len(data) < FEWEST_HELD_OUT:
        return None
    report(Progress(f"the answer, corrected on {most:,} samples"))
    used = workspace.correction_in(replace(correction, samples=most))
    if used.samples <= correction.samples:  # memory holds no more
        return None
    more = replace(problem, correct_by=used)
    before, loss = (mean(judge(each, data)(plan)) for each in (problem, more))
    return (more, loss) if loss <= (1 - LEAST_GAIN) * before else None


def mean(halves: tuple[float, float]) -> float:
    """The divergence on all samples, from that on their halves."""
    return sum(halves) / 2


def both_fall(halves: tuple[float, float], before: tuple[float, float]) -> bool:
    """Whether a plan diverges less on both halves: what chance does on one it seldom does on both."""
    return halves[0] < before[0] and halves[1] < before[1]


def scores(problem: Problem, plans: list[RankPlan]) -> dict[RankPlan, Score]:
    """The scores of plans on the samples of a trial, without those that are clearly worse after GLANCE of them."""
    workspace = problem.workspace
    many = workspace.opened.evaluate is None and min(problem.samples, len(workspace.reference)) > GLANCE
    if many and len(plans) > 1:
        first = {plan: problem.measure(plan, samples=GLANCE) for plan in plans}
        least = min((score.drop_high for score in first.values() if score.drop_high is not None), default=inf)
        plans = [plan for plan, score in first.items() if score.drop_low is None or score.drop_low <= least]
    return {plan: problem.measure(plan) for plan in plans}
