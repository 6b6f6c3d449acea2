"""Budget: the plan that loses least within every budget, or the smallest that loses no more than is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf
from typing import ClassVar

from lowrank_core.errors import Cancelled, InvalidSearch, LowRankError
from lowrank_core.figures import how_many
from lowrank_core.layers.data import Dataset, data_hash
from lowrank_core.measure.effort import Measurements
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.sensitivity import Ask, unknown
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import report
from lowrank_core.scoring.scores import Score
from lowrank_core.scoring.verdict import is_within
from lowrank_core.selection import make, register
from lowrank_core.selection._curves import (
    ROUNDS,
    SHARES,
    USUAL,
    Menus,
    Table,
    asks,
    begun,
    best_plan,
    expected,
    followed,
    least_amount,
    measured,
    menus_of,
    no_plan,
    sharpened,
)
from lowrank_core.selection._problem import Problem, Quantity, Trial, Wish, by_drop, tests_samples
from lowrank_core.selection._refine import refined
from lowrank_core.selection._settings import check_settings
from lowrank_core.selection._whole import FEWEST_HELD_OUT, GLANCE, held_out, judge, mean, scores, with_more_samples

STEPS = 7
"""Of the bisection over the share that is kept: it ends within 1 % of the dense network."""

DEEPER = 4
"""Of so many plans that are judged with the quick correction one more is with the thorough one, which takes longer."""

RIVALS: dict[str, tuple[str, ...]] = {"uniform": (), "balf": ("spatial_svd", "svd")}
"""Rules whose plans are tried, too; with the methods for layers that are too wide for those of the rule."""


@register
@dataclass(frozen=True, slots=True)
class Budget:
    """Loses least within every budget at once, with the best method for each layer; or finds the smallest network
    within a largest drop. Needs no labels.

    The loss of each layer at four ranks per method, and at those that a first plan takes, is measured as the divergence
    of the network's outputs on a few calibration samples, and on as many others where all of training calibrate;
    between them it follows the closed-form error, log against log. Of more than 400 points those of methods that lose
    twice what another one does at the same cost are left out. An exact knapsack then chooses. Its plan is judged as a
    whole beside those of `uniform` and `balf`, then plans near the one that diverges least; the answer is the one that
    scores best on the evaluation samples of a trial; of equals the one that diverges least. Factors are corrected the
    quick way, until the last plans are scored with the correction that the answer has. The curves of the methods in our
    plan are then measured once more with it, and lead to another one, which counts where it diverges less; and the
    answer is corrected on more samples where these bring something.
    """

    name: ClassVar[str] = "budget"
    label: ClassVar[str] = "Budget"
    line: ClassVar[str] = "least loss in a budget"
    source: ClassVar[str] = "Rank Explorer: divergence curves and an exact knapsack"
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "max_drop"})
    methods: ClassVar[tuple[str, ...]] = USUAL
    corrects_its_answer: ClassVar[bool] = True
    tests_its_drop: ClassVar[bool] = True

    samples: int = field(
        default=64,
        metadata={"min": 8, "max": 4096, "label": "Curve samples", "help": "Unlabelled samples for the curves."},
    )
    refine: int = field(
        default=24,
        metadata={
            "min": 0,
            "max": 1000,
            "label": "Refinements",
            "help": "Plans near the answer that are judged as a whole, half of them by depth factors; 0: none.",
        },
    )
    smallest: str = field(
        default="multiplies",
        metadata={
            "choices": ("multiplies", "bytes"),
            "goal": "max_drop",
            "label": "Make smallest",
            "help": "What a largest drop is to be spent on.",
        },
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def measurements(self, problem: Problem) -> Iterator[Measurements]:
        """Points of single layers that are not kept from an earlier search, then whole plans."""
        workspace, quick = problem.workspace, problem.quick
        wanted = expected(quick, self._samples(problem)[0])
        for data in self._samples(problem):
            for name, choice in unknown(workspace, quick.correction, wanted, data, problem.folder):
                yield Measurements(1, len(data), name, choice.method)
            if problem.max_drop is None:
                for layer in problem.layers:
                    yield Measurements(ROUNDS, len(data), layer.name, problem.method_of(layer))
        if problem.max_drop is not None:
            yield Measurements(STEPS, len(workspace.reference))
        else:
            plans = len(self._samples(problem)) + len(RIVALS)
            yield Measurements(2 * plans + self.refine, len(held_out(workspace)))
            for samples in (GLANCE, problem.samples):
                yield Measurements(plans, min(samples, len(workspace.reference)))
            if quick is not problem:
                yield Measurements(plans, len(held_out(workspace)) + min(problem.samples, len(workspace.reference)))
                yield Measurements(self.refine // DEEPER, len(held_out(workspace)))
                for layer in problem.layers if self.refine else ():
                    yield Measurements(len(SHARES) + ROUNDS, self.samples, layer.name, problem.method_of(layer))

    def search(self, problem: Problem) -> Iterator[Trial]:
        """Under budgets each plan that is better than those before; under a largest drop the plans that were judged."""
        if problem.max_drop is None:
            yield from self._whole(problem)
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

    def menus(self, problem: Problem) -> Menus:
        """What each layer of the problem may become and what that loses on calibration samples, by its first points."""
        return menus_of(problem, begun(problem.quick, self._samples(problem)[0]))

    def _whole(self, problem: Problem) -> Iterator[Trial]:
        """Plans judged as a whole: by how far the network diverges, then the best of ours and RIVALS by their score."""
        quick, limits = problem.quick, dict(problem.budgets)
        samples = self._samples(problem)
        losses, judged = dict[RankPlan, float](), judge(quick)
        ours, rivals = dict[RankPlan, str](), dict[RankPlan, str]()
        tables = list[Table]()

        def look(name: str, plan: RankPlan, to: dict[RankPlan, str]) -> Iterator[Trial]:
            if plan not in losses:
                losses[plan] = mean(judged(plan))
                to[plan] = f"{name}: divergence {losses[plan]:.4f}"
                report(Progress(to[plan]))
                if losses[plan] == min(losses.values()):
                    yield quick.trial(plan, to[plan])

        curves = [begun(quick, samples[0])]
        curves += [measured(quick, followed(quick, curves[0]), data) for data in samples[1:]]
        for number, (points, data) in enumerate(zip(curves, samples, strict=True)):
            name = "the curves of other samples" if number else "the curves"
            first = Table.of(quick, menus_of(quick, points), limits)
            if (options := first.best(limits)) is None:
                break
            yield from look(name, first.plan(options), ours)
            sharp = sharpened(quick, points, data)
            tables.append(Table.of(quick, menus_of(quick, sharp), limits))
            if (options := tables[-1].best(limits)) is not None:
                yield from look(f"{name}, sharpened", tables[-1].plan(options), ours)
        for name, plan in self._rivals(problem):
            yield from look(name, plan, rivals)
        if not losses:
            raise InvalidSearch(no_plan(quick, menus_of(quick, curves[0]), limits))
        if ours:
            best = min(ours, key=losses.__getitem__)
            table = next(table for table in tables if table.holds(best))
            for words, plan, loss in refined(table, best, judged, self.refine):
                losses[plan], ours[plan] = loss, words
                yield quick.trial(plan, words)
        first_ones = sorted(ours, key=losses.__getitem__)[: len(samples)]
        deeper = self._deeper(problem, first_ones, losses, samples, set(followed(quick, curves[0])))
        yield from _answered(problem, {plan: ours[plan] for plan in first_ones if not deeper} | rivals, deeper, losses)

    def _deeper(
        self,
        problem: Problem,
        plans: list[RankPlan],
        quick: dict[RankPlan, float],
        samples: list[Dataset],
        asked: set[Ask],
    ) -> dict[RankPlan, str]:
        """The plan of curves with the thorough correction, by the methods that the best of these plans takes, with
        words for it; nothing where it diverges no less than they do with either correction. quick: how far they do;
        asked: the points that its curves begin with.

        The lower a rank, the more a thorough correction wins, so that its curves lead to other ranks.
        """
        if not plans or problem.quick is problem or not self.refine:
            return {}
        judged, found = judge(problem), dict[RankPlan, str]()
        losses = {plan: min(quick[plan], mean(judged(plan))) for plan in plans}
        thorough = replace(problem, methods=tuple(dict.fromkeys(choice.method for _, choice in plans[0].choices)))
        limits, tables = dict(problem.budgets), dict[RankPlan, Table]()
        wanted = [ask for ask in asks(thorough) if ask in asked]
        for data in samples if plans[0].choices else []:
            points = sharpened(thorough, measured(thorough, wanted, data), data)
            table = Table.of(thorough, menus_of(thorough, points), limits)
            if (options := table.best(limits)) is not None and (plan := table.plan(options)) not in losses:
                losses[plan], tables[plan] = mean(judged(plan)), table
                found[plan] = f"the curves of the thorough correction: divergence {losses[plan]:.4f}"
                report(Progress(found[plan]))
        if tables:
            start = min(tables, key=losses.__getitem__)
            for words, plan, loss in refined(tables[start], start, judged, self.refine // DEEPER):
                if plan not in losses:
                    losses[plan], found[plan] = loss, f"the curves of the thorough correction, {words}"
        best = min(losses, key=losses.__getitem__)
        return {best: found[best]} if best in found else {}

    def _rivals(self, problem: Problem) -> Iterator[tuple[str, RankPlan]]:
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
                yield rule.label, last.candidate.plan.plain

    def _smallest(self, problem: Problem, menus: Menus) -> Iterator[Trial]:
        """Bisection over the share that is kept; a plan counts only where the drop is shown to be small enough."""
        assert problem.max_drop is not None
        _check_decidable(problem, problem.max_drop)
        quantity: Quantity = "bytes" if self.smallest == "bytes" else "multiplies"
        dense, limits = problem.amount(quantity), dict(problem.budgets)
        low, high = least_amount(problem, menus, quantity) / dense, min(1.0, limits.get(quantity, inf) / dense)
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


def _answered(
    problem: Problem, plans: dict[RankPlan, str], deeper: dict[RankPlan, str], losses: dict[RankPlan, float]
) -> Iterator[Trial]:
    """The plans as they score, with the words for each, and the best of them at last.

    deeper: plans that were found for the thorough correction, which are scored with it alone.
    losses: their divergences with the quick correction, which a plan keeps where it both scores better and diverges
    less than with the thorough one.
    """
    quick = problem.quick
    tried = {plan: quick.trial(plan, plans[plan], score) for plan, score in scores(quick, list(plans)).items()}
    yield from tried.values()

    def order(plan: RankPlan) -> tuple[bool, float, float]:
        return *by_drop(tried[plan]), losses[plan]

    if quick is not problem:
        judged, losses = judge(problem), dict(losses)
        for plan, before in dict(tried).items():
            loss = mean(judged(plan))
            words = f"{plans[plan]}, {loss:.4f} with the thorough correction"
            yield (thorough := problem.trial(plan, words, problem.measure(plan)))
            if by_drop(thorough) <= by_drop(before) or loss <= losses[plan]:
                tried[plan], losses[plan] = thorough, loss
        for plan, words in deeper.items():
            losses[plan] = mean(judged(plan))
            yield (trial := problem.trial(plan, words, problem.measure(plan)))
            tried[plan] = trial
    plans = plans | deeper
    best = min(tried, key=order)
    ours_to_choose = problem.correct_by is None and tried[best].candidate.correction == problem.correction
    if ours_to_choose and (more := with_more_samples(problem, best)) is not None:
        asked, losses[best] = more
        assert asked.correction is not None
        words = f"{plans[best]}, {losses[best]:.4f} corrected on {how_many(asked.correction.samples, 'sample')}"
        tried[best] = asked.trial(best, words, asked.measure(best))
        yield tried[best]
    told = f"divergence {losses[best]:.4f}"
    if len(losses) > 1:
        score = tried[best].score
        alike = sum(by_drop(trial) == by_drop(tried[best]) for trial in tried.values()) > 1
        samples = f" on {score.samples:,} evaluation samples" if score is not None and score.samples else ""
        by = f"the score{samples}{', then by the divergence' if alike else ''}"
        told = f"{tried[best].note}; the best of {len(losses)} plans by {by}"
    yield replace(tried[best], note=told)


def _check_decidable(problem: Problem, tolerance: float) -> None:
    """Refuse a drop that could not be shown even if not one sample changed."""
    have = len(problem.workspace.reference) if tests_samples(problem.workspace) else 0
    if have and not is_within(0, 0, have, tolerance):
        needed = next((n for n in (2**k for k in range(40)) if is_within(0, 0, n, tolerance)), None)
        more = "" if needed is None else f"; it takes up to {needed:,}"
        raise InvalidSearch(
            f"a drop of at most {tolerance:g} cannot be told from chance on {have:,} evaluation samples{more}. "
            "Allow a larger drop, or bring more samples."
        )


def _is_within(problem: Problem, score: Score, tolerance: float) -> bool:
    """The verdict of the sequential test; of other metrics the upper end of the interval, or the figure itself."""
    if tests_samples(problem.workspace):
        return bool(score.within)
    return (score.drop if score.drop_high is None else score.drop_high) <= tolerance


def _verdict_text(good: bool, score: Score) -> str:
    open_question = score.within is None and score.drop_high is not None and not good
    words = "within the drop" if good else "not shown to be within the drop" if open_question else "more than the drop"
    return words + (f", decided on {how_many(score.samples, 'sample')}" if score.samples else "")
