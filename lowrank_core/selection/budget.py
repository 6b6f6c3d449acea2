"""Budget: the plan that loses least within every budget, or the smallest that loses no more than is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf, isnan, log
from typing import ClassVar

import numpy as np

from lowrank_core.algebra.knapsack import cheapest_loss
from lowrank_core.compression.calibration import calibration_samples
from lowrank_core.errors import Cancelled, InvalidSearch, LowRankError
from lowrank_core.layers.data import Dataset, data_hash, joined, run
from lowrank_core.layers.spec import Rank
from lowrank_core.measure.effort import Measurements
from lowrank_core.measure.ledger import score_key
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.prediction import Point, change, closed_form_error
from lowrank_core.predict.sensitivity import BATCH, OUTPUT_BYTES, Ask, divergence, profile, unknown
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import give_way, report
from lowrank_core.scoring.scores import Score
from lowrank_core.scoring.verdict import is_within
from lowrank_core.selection import make, register
from lowrank_core.selection._problem import Problem, Quantity, Trial, Wish
from lowrank_core.selection._settings import check_settings
from lowrank_core.workspace import Workspace

STEPS = 7
"""Of the bisection over the share that is kept: it ends within 1 % of the dense network."""

SHARES = (0.08, 0.3, 0.8)
"""Of the largest paying rank; the lowest is where the curve is steepest, and no rank below it is ever chosen."""

RIVALS: dict[str, tuple[str, ...]] = {"uniform": (), "balf": ("spatial_svd", "svd")}
"""Rules whose plans are tried, too; with the methods for layers that are too wide for those of the rule."""

FEWEST_HELD_OUT = 32
"""Samples that nothing was fitted to, below which those that factors were fitted to take their place."""

GLANCE = 128
"""Evaluation samples after which a plan whose drop is clearly larger than another's is left out."""

Option = tuple[Choice | None, float]
"""A choice for one layer and what it loses."""


@register
@dataclass(frozen=True, slots=True)
class Budget:
    """Loses least within every budget at once, with the best method for each layer; or finds the smallest network
    within a largest drop. Needs no labels.

    The loss of each layer at three ranks per method is measured as the divergence of the network's outputs on a few
    calibration samples, and on as many others where all of training calibrate; between them it follows the closed-form
    error, log against log. An exact knapsack then chooses. Its plan is tried as a whole beside those of `uniform` and
    `balf`, and the answer is the one that scores best on the evaluation samples of a trial; of equals the one that
    diverges least.
    """

    name: ClassVar[str] = "budget"
    label: ClassVar[str] = "Budget"
    source: ClassVar[str] = "Rank Explorer: divergence curves and an exact knapsack"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "max_drop"})
    methods: ClassVar[tuple[str, ...]] = (
        "spatial_svd",
        "spatial_svd_aware",
        "svd",
        "svd_aware",
        "tucker2_aware",
        "cp3",
        "gate_tucker",
        "gate_cp",
    )

    samples: int = field(
        default=64,
        metadata={"min": 8, "max": 4096, "label": "Samples", "help": "Unlabelled samples for the curves."},
    )
    refine: int = field(
        default=0,
        metadata={
            "min": 0,
            "max": 1000,
            "label": "Refinements",
            "help": "Plans near the answer that are tried as a whole; about a second each.",
        },
    )
    smallest: str = field(
        default="multiplies",
        metadata={
            "choices": ("multiplies", "bytes"),
            "label": "Make smallest",
            "help": "What a largest drop is to be spent on.",
        },
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def measurements(self, problem: Problem) -> Iterator[Measurements]:
        """Points of single layers that are not kept from an earlier search, then whole plans."""
        workspace = problem.workspace
        correction = workspace.correction if problem.corrected else None
        for data in self._samples(problem):
            for name, choice in unknown(workspace, correction, asks(problem), data, problem.folder):
                yield Measurements(1, len(data), name, choice.method)
        if problem.max_drop is not None:
            yield Measurements(STEPS, len(workspace.reference))
        else:
            plans = len(self._samples(problem)) + len(RIVALS)
            yield Measurements(plans + self.refine, len(held_out(workspace)))
            for samples in (GLANCE, problem.samples):
                yield Measurements(plans, min(samples, len(workspace.reference)))

    def search(self, problem: Problem) -> Iterator[Trial]:
        """Under budgets each plan that is better than those before; under a largest drop the plans that were judged."""
        if problem.max_drop is None:
            yield from self._whole(problem, [self.menus(problem, data) for data in self._samples(problem)])
        else:
            yield from self._smallest(problem, self.menus(problem))

    def _samples(self, problem: Problem) -> list[Dataset]:
        """What curves are measured on: samples that factors were fitted to, and where all of training are, others."""
        workspace = problem.workspace
        few = len(workspace.calibration_pool) - len(workspace.calibration) < FEWEST_HELD_OUT
        both = [workspace.calibration]
        if few and problem.max_drop is None:
            both.append(held_out(workspace))
        picked = [data.pick(slice(0, self.samples)) for data in both]
        return list({data_hash(data.inputs): data for data in picked}.values())

    def menus(self, problem: Problem, data: Dataset | None = None) -> list[list[Option]]:
        """What each layer of the problem may become and what that loses; dense, which loses nothing, comes first.

        data: the samples on which the loss is measured, without it calibration samples.
        """
        workspace, points = problem.workspace, dict[tuple[str, str], list[Point]]()
        for point in profile(
            workspace,
            workspace.correction if problem.corrected else None,
            asks(problem),
            workspace.calibration.pick(slice(0, self.samples)) if data is None else data,
            folder=problem.folder,
            workers=problem.workers,
        ):
            points.setdefault((point.layer, point.method), []).append(point)
        menus = []
        for layer in problem.layers:
            menu: list[Option] = [(None, 0.0)]
            for method in problem.methods_of(layer):
                measured = points[layer.name, method]
                least = min(point.rank for point in measured)
                spectra = workspace.factors(layer.name, method).spectra
                curve = tuple(sorted((log(p.error), log(p.loss)) for p in measured if p.error > 0 and p.loss > 0))
                for rank in problem.ranks(layer, method):
                    if all(r >= lowest for r, lowest in zip(rank, least, strict=True)):
                        menu.append((Choice(method, rank), change(closed_form_error(spectra, rank), curve, 0.0)))
            menus.append(menu)
        return menus

    def _whole(self, problem: Problem, menus: list[list[list[Option]]]) -> Iterator[Trial]:
        """Plans tried as a whole: by how far the network diverges, then the best of ours and RIVALS by their score."""
        losses, judged, ours = dict[RankPlan, float](), _judge(problem), dict[RankPlan, str]()
        finalists: dict[RankPlan, str] = {}
        pace = Pace(len(menus) + len(RIVALS) + self.refine)
        for number, (name, plan, rival) in enumerate(self._plans(problem, menus)):
            if plan in losses:
                continue
            give_way()
            losses[plan] = judged(plan)
            words = f"{name}: divergence {losses[plan]:.4f}"
            report(Progress(words, pace(number + 1)))
            (finalists if rival else ours)[plan] = words
            if losses[plan] == min(losses.values()):
                yield problem.trial(plan, words)
        if ours:
            finalists = {plan: ours[plan] for plan in sorted(ours, key=losses.__getitem__)[: len(menus)]} | finalists
        scores = _scores(problem, list(finalists))
        for plan, score in scores.items():
            yield problem.trial(plan, finalists[plan], score)
        best = min(scores, key=lambda plan: (*_drop(scores[plan]), losses[plan]))
        told = f"divergence {losses[best]:.4f}"
        if len(losses) > 1:
            alike = sum(_drop(score) == _drop(scores[best]) for score in scores.values()) > 1
            samples = f" on {scores[best].samples:,} evaluation samples" if scores[best].samples else ""
            by = f"the score{samples}{', then by the divergence' if alike else ''}"
            told = f"{finalists[best]}; the best of {len(losses)} plans by {by}"
        yield problem.trial(best, told, scores[best])

    def _plans(self, problem: Problem, menus: list[list[list[Option]]]) -> Iterator[tuple[str, RankPlan, bool]]:
        """The plan of the curves, those of RIVALS, and some for losses that are off by a random factor per layer.

        With a name for each, and whether it is another rule's.
        """
        limits = dict(problem.budgets)
        try:
            for number, menu in enumerate(menus):
                yield "the curves of other samples" if number else "the curves", best_plan(problem, menu, limits), False
        except InvalidSearch:
            rivals = list(self._rivals(problem))
            if not rivals:
                raise
            yield from rivals
            return
        yield from self._rivals(problem)
        generator = np.random.default_rng(0)
        for number in range(self.refine):
            factors = generator.lognormal(0.0, 0.5, len(menus[-1]))
            shifted = [[(c, loss * f) for c, loss in menu] for menu, f in zip(menus[-1], factors, strict=True)]
            yield f"refining, {number + 1} of {self.refine}", best_plan(problem, shifted, limits), False

    def _rivals(self, problem: Problem) -> Iterator[tuple[str, RankPlan, bool]]:
        """What RIVALS answer, with the methods that were asked for where some were."""
        for name, plain in RIVALS.items():
            rule = make(name, {})
            methods = rule.methods + plain
            if problem.methods != self.methods:
                methods = tuple(m for m in methods if m in problem.methods) if methods else problem.methods
            asked = replace(problem, methods=methods)
            if not asked.layers or (not methods and rule.methods):
                continue
            try:
                *_, last = rule.search(asked)
            except Cancelled:
                raise
            except LowRankError:
                continue  # it has no plan that keeps every budget, or needs more memory than there is
            if problem.fits(last.candidate.plan):
                yield rule.label, last.candidate.plan, True

    def _smallest(self, problem: Problem, menus: list[list[Option]]) -> Iterator[Trial]:
        """Bisection over the share that is kept; a plan counts only where the drop is shown to be small enough."""
        assert problem.max_drop is not None
        _check_decidable(problem, problem.max_drop)
        quantity: Quantity = "bytes" if self.smallest == "bytes" else "multiplies"
        dense, limits = problem.amount(quantity), dict(problem.budgets)
        low, high = _least(problem, menus, quantity) / dense, min(1.0, limits.get(quantity, inf) / dense)
        best: Trial | None = None
        pace = Pace(STEPS)
        for step in range(STEPS):
            share = high if best is None and step == 1 and high < 1 else (low + high) / 2
            report(Progress(f"step {step + 1} of {STEPS}: {share:.1%} of the {quantity}", pace(step)))
            plan = best_plan(problem, menus, limits | {quantity: share * dense})
            score = problem.measure(plan, samples=len(problem.workspace.reference), tolerance=problem.max_drop)
            good = _is_within(problem, score, problem.max_drop)
            trial = problem.trial(plan, f"{share:.1%} of the {quantity} kept: {_verdict_text(good, score)}", score)
            yield trial
            if good:
                high, best = share, trial
            else:
                low = share
        if best is None:
            raise InvalidSearch(
                f"no plan was shown to lose at most {problem.max_drop:g}; allow a larger drop or bring more samples."
            )
        yield best


def held_out(workspace: Workspace) -> Dataset:
    """Unlabelled samples that no factor is fitted to: of training, else of evaluation; where there are too few of both
    the calibration samples, to which a correction may have fitted a plan so well that they tell nothing.
    """
    fitted = len(workspace.calibration)
    data = calibration_samples(workspace.calibration_pool, 2 * fitted).pick(slice(fitted, None))
    if len(data) < FEWEST_HELD_OUT:
        judged = workspace.reference.dataset.unlabelled()
        unseen = workspace.train_data is not None and len(judged) >= min(FEWEST_HELD_OUT, fitted)
        data = judged.pick(slice(0, fitted)) if unseen else workspace.calibration
    return data.pick(slice(0, max(1, OUTPUT_BYTES // max(1, workspace.reference.output_bytes))))


def _scores(problem: Problem, plans: list[RankPlan]) -> dict[RankPlan, Score]:
    """The scores of plans on the samples of a trial, without those that are clearly worse after GLANCE of them."""
    workspace = problem.workspace
    many = workspace.opened.evaluate is None and min(problem.samples, len(workspace.reference)) > GLANCE
    if many and len(plans) > 1:
        first = {plan: problem.measure(plan, samples=GLANCE) for plan in plans}
        least = min((score.drop_high for score in first.values() if score.drop_high is not None), default=inf)
        plans = [plan for plan, score in first.items() if score.drop_low is None or score.drop_low <= least]
    return {plan: problem.measure(plan) for plan in plans}


def _drop(score: Score) -> tuple[bool, float]:
    """A drop to compare by: what is no number is more than any."""
    return isnan(score.drop), score.drop


def _judge(problem: Problem) -> Callable[[RankPlan], float]:
    """How far the network diverges under a plan, on `held_out`; remembered as scores are. inf for what is no number."""
    workspace = problem.workspace
    data, names = held_out(workspace), workspace.judged.names
    parts = [data.pick(slice(at, at + BATCH)) for at in range(0, len(data), BATCH)]
    dense = joined(run(workspace.model, part, names) for part in parts)

    def diverges(plan: RankPlan) -> float:
        candidate = problem.candidate(plan)

        def measured() -> float:
            model = workspace.compress(candidate.plan, candidate.correction)
            loss = divergence(workspace.metric, joined(run(model, part, names) for part in parts), dense)
            return inf if isnan(loss) else loss

        key = f"divergence {data_hash(data.inputs)} {score_key(candidate, len(data))}"
        return problem.ledger.remembered(key, measured)

    return diverges


def best_plan(problem: Problem, menus: list[list[Option]], limits: dict[Quantity, float]) -> RankPlan:
    """The plan that loses least within the limits of the whole network; raises InvalidSearch where none fits."""
    layers = problem.layers
    costs = [
        np.array([[problem.layer_amount(layer, c, q) for q in limits] for c, _ in menu]).reshape(len(menu), len(limits))
        for layer, menu in zip(layers, menus, strict=True)
    ]
    rest = [problem.amount(q) - sum(problem.layer_amount(layer, None, q) for layer in layers) for q in limits]
    left = np.array([limit - fixed for limit, fixed in zip(limits.values(), rest, strict=True)])
    chosen = cheapest_loss([np.array([loss for _, loss in menu]) for menu in menus], costs, left)
    if chosen is None:
        least = ", ".join(f"{_least(problem, menus, q):,.0f} {q}" for q in limits)
        raise InvalidSearch(
            f"no plan keeps all budgets together; the least there is, one at a time: {least}. Raise a budget, or "
            "unlock layers. Ranks below the lowest measured ones are never used."
        )
    picked = zip(layers, menus, chosen, strict=True)
    return problem.plan({layer.name: menu[option][0] for layer, menu, option in picked})


def _least(problem: Problem, menus: list[list[Option]], quantity: Quantity) -> float:
    """The amount of a quantity that the cheapest plan of the menus takes."""
    saved = 0.0
    for layer, menu in zip(problem.layers, menus, strict=True):
        amounts = [problem.layer_amount(layer, choice, quantity) for choice, _ in menu]
        saved += amounts[0] - min(amounts)
    return problem.amount(quantity) - saved


def asks(problem: Problem) -> tuple[Ask, ...]:
    """The points that the curves are measured at: every layer and method at SHARES of its ranks."""
    return tuple(
        (layer.name, Choice(method, rank))
        for layer in problem.layers
        for method in problem.methods_of(layer)
        for rank in _few(problem.ranks(layer, method))
    )


def _few(ranks: tuple[Rank, ...]) -> tuple[Rank, ...]:
    """Of ascending ranks those at SHARES of their number, each once."""
    return tuple(dict.fromkeys(ranks[max(0, round(share * len(ranks)) - 1)] for share in SHARES))


def _sequential(problem: Problem) -> bool:
    """Whether samples are right or wrong one by one, so that the sequential test decides."""
    workspace = problem.workspace
    if workspace.opened.evaluate is not None or workspace.reference.dataset.weights is not None:
        return False
    return workspace.judged.right_or_wrong


def _check_decidable(problem: Problem, tolerance: float) -> None:
    """Refuse a drop that could not be shown even if not one sample changed."""
    have = len(problem.workspace.reference) if _sequential(problem) else 0
    if have and not is_within(0, 0, have, tolerance):
        needed = next((n for n in (2**k for k in range(40)) if is_within(0, 0, n, tolerance)), None)
        more = "" if needed is None else f"; it takes up to {needed:,}"
        raise InvalidSearch(
            f"a drop of at most {tolerance:g} cannot be told from chance on {have:,} evaluation samples{more}. "
            "Allow a larger drop, or bring more samples."
        )


def _is_within(problem: Problem, score: Score, tolerance: float) -> bool:
    """The verdict of the sequential test; of other metrics the upper end of the interval, or the figure itself."""
    if _sequential(problem):
        return bool(score.within)
    return (score.drop if score.drop_high is None else score.drop_high) <= tolerance


def _verdict_text(good: bool, score: Score) -> str:
    open_question = score.within is None and score.drop_high is not None and not good
    words = "within the drop" if good else "not shown to be within the drop" if open_question else "more than the drop"
    return words + (f", decided on {score.samples:,} samples" if score.samples else "")
