"""Cross-validation: the simplest rank that is as good as the best, judged on samples that nothing was fitted to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, stdev
from typing import ClassVar

import torch

from lowrank_core.compression.apply import apply
from lowrank_core.compression.calibration import MomentStore, calibration_samples
from lowrank_core.compression.correct import Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidSearch
from lowrank_core.layers.data import Dataset, data_hash
from lowrank_core.layers.spec import Rank
from lowrank_core.measure.effort import Measurements
from lowrank_core.methods import METHODS
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.scope import give_way
from lowrank_core.scoring.prefix import PrefixStore
from lowrank_core.scoring.scores import Reference, Score, evaluate, final_score
from lowrank_core.selection import register
from lowrank_core.selection._ladders import Tally, lost_text, saved_text
from lowrank_core.selection._problem import BEYOND, Problem, Trial, Wish, largest
from lowrank_core.selection._settings import check_settings

GRID = 8
"""Ranks of a layer that are tried, evenly spaced."""

Curve = dict[Choice | None, list[float]]
"""The loss of each choice on each fold; None is dense."""


@register
@dataclass(frozen=True, slots=True)
class CrossValidation:
    """For each layer the smallest rank whose loss, on samples that the correction has not seen, is within a standard
    error of the best; under a budget within as few standard errors as it allows.

    The evaluation samples are split into folds; for each the correction is fitted on the inputs of the others. Each
    layer is judged with the others dense.
    """

    name: ClassVar[str] = "cross_validation"
    label: ClassVar[str] = "Cross-validation"
    line: ClassVar[str] = "lowest ranks that hold on unseen samples"
    source: ClassVar[str] = "Breiman, Friedman, Olshen & Stone, Classification and Regression Trees, 1984 (3.4.3)"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "nothing"})
    methods: ClassVar[tuple[str, ...]] = ()

    folds: int = field(default=5, metadata={"min": 2, "max": 20, "label": "Folds", "help": "Parts of the samples."})
    errors: float = field(
        default=1.0,
        metadata={
            "min": 0.0,
            "max": 10.0,
            "label": "Standard errors",
            "help": "How far from the best a rank may be; under a budget this is searched.",
        },
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def measurements(self, problem: Problem) -> Iterator[Measurements]:
        """Every rank of the grid in every fold, then the answer."""
        for layer in problem.layers:
            method = problem.method_of(layer)
            count = self.folds * len(_grid(problem.ranks(layer, method)))
            yield Measurements(count, problem.samples // self.folds, layer.name, method)
        yield Measurements(1, problem.samples)

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One plan; single layers are measured on the way."""
        curves = self._curves(problem)
        means = {name: {choice: fmean(losses) for choice, losses in curve.items()} for name, curve in curves.items()}
        loss_range = max(max(curve.values()) - min(curve.values()) for curve in means.values())
        best, error = {}, {}
        for name, curve in means.items():
            least = min(curve, key=lambda choice: curve[choice])
            best[name] = curve[least]
            error[name] = stdev(curves[name][least]) / sqrt(len(curves[name][least])) or loss_range / 1000 or 1.0

        def at(errors: float) -> RankPlan:
            limits = {name: best[name] + errors * error[name] for name in means}
            return problem.plan(
                {name: next(c for c, mean in curve.items() if mean <= limits[name]) for name, curve in means.items()}
            )

        if problem.budgets:
            most = 1 + max((max(curve.values()) - best[name]) / error[name] for name, curve in means.items())
            plan = largest(problem, lambda t: at(-t), -most, 0.0)
        else:
            plan = at(self.errors)
        score = problem.measure(plan)
        yield problem.trial(plan, f"{saved_text(problem, plan)}; {lost_text(problem, score)}", score)

    def _curves(self, problem: Problem) -> dict[str, Curve]:
        """The losses of each layer's ranks, the cheapest first and dense last, fold by fold."""
        workspace = problem.workspace
        if workspace.opened.evaluate is not None:
            raise InvalidSearch(
                f"{self.label} splits the evaluation samples, but this model scores itself with evaluate(model); "
                "give eval_data() and metric() in its stead, or choose another rule."
            )
        data = workspace.reference.dataset.pick(slice(0, problem.samples))
        if len(data) < 2 * self.folds:
            raise InvalidSearch(
                f"{self.folds} folds need at least {2 * self.folds} samples, but there are {len(data)}; "
                "take fewer folds or more samples."
            )
        asks = [
            (layer.name, Choice(method, rank))
            for layer in problem.layers
            for method in [problem.method_of(layer)]
            for rank in _grid(problem.ranks(layer, method))
        ]
        count = Tally(self.folds * len(asks))
        curves: dict[str, Curve] = {layer.name: {} for layer in problem.layers}
        for fold in range(self.folds):
            part = torch.arange(len(data)) % self.folds == fold
            judge = _Fold(problem, data.pick(part), data.pick(~part).unlabelled(), f"{fold} of {self.folds}")
            for name, choice in asks:
                count(f"fold {fold + 1}, {name} rank {' x '.join(map(str, choice.rank))}")
                score = judge.score(name, choice)
                curves[name].setdefault(choice, []).append(_loss(score, score.value))
            for curve in curves.values():
                dense = curve.pop(None, [])
                curve[None] = [*dense, _loss(score, score.dense)]
        return curves


class _Fold:
    """Scores single layers on one part of the samples, corrected on the others."""

    def __init__(self, problem: Problem, part: Dataset, others: Dataset, title: str) -> None:
        workspace = problem.workspace
        model, profile = workspace.model, workspace.profile
        self.problem, self.title = problem, f"cross-validation, fold {title}, {len(part) + len(others)} samples"
        names = workspace.judged.names
        self.reference = Reference(model, part, workspace.metric, outputs=names)
        self.prefixes = PrefixStore(workspace.cuts)
        fitted = calibration_samples(others)
        self.correction = Correction(samples=len(fitted), data=data_hash(fitted.inputs)) if problem.corrected else None
        self.factors = workspace.factors
        if any(METHODS[problem.method_of(layer)].data_aware for layer in problem.layers):
            moments = MomentStore(model, profile, lambda: fitted)
            self.factors = FactorStore(model, profile, lambda name: moments(name).second)
        self.corrector = Corrector(model, profile, self.factors, lambda: others)

    def score(self, name: str, choice: Choice) -> Score:
        """The score with that layer alone compressed. Raises Cancelled."""
        problem, workspace = self.problem, self.problem.workspace
        give_way()
        correction = None if self.correction is None else self.correction.to_dict()
        key = json.dumps([self.title, name, choice.method, choice.rank, correction])

        def measured() -> Score:
            plan = problem.plan({name: choice})
            model = apply(workspace.model, workspace.profile, plan, self.factors)
            if self.correction is not None:
                load_overlay(model, self.corrector.alone(model, plan, self.correction))
            before = [layer.name for layer in self.prefixes.profile.layers].index(name)
            forward = self.prefixes.runner(model, len(self.reference), record=[before])
            return final_score(evaluate(model, self.reference, forward=forward))

        return problem.ledger.remembered(key, measured)


def _grid(ranks: tuple[Rank, ...]) -> tuple[Rank, ...]:
    count = min(GRID, len(ranks))
    return tuple(ranks[round((n + 1) * len(ranks) / count) - 1] for n in range(count))


def _loss(score: Score, value: float) -> float:
    if score.not_finite and value != score.dense:
        return BEYOND
    return -value if score.higher_is_better else value
