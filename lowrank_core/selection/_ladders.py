"""The lowest rank that loses no more than so much: ladders of plans, climbed or halved, layer by layer or all at once.

What brute force and bisection have in common; they differ only in how they find their way on a ladder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from lowrank_core.measure.effort import Measurements
from lowrank_core.plans.cost import rank_at
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import report
from lowrank_core.scoring.scores import Score

if TYPE_CHECKING:  # selection imports its rules, which import this
    from lowrank_core.selection._problem import Problem, Trial

ORDERS = ("alone", "largest first", "together")

ORDER_FORM = {
    "choices": ORDERS,
    "label": "Layers",
    "help": "alone: each may lose the drop by itself; largest first: one after the other, all of them within the drop; "
    "together: one share for all.",
}
"""What a form needs to know of a rule's order."""

SLACK = 1e-9
"""Differences of scores are rounded: a drop of 0.1 may come as 0.1 + 3e-17."""

ROUNDS = 10
"""Halvings of the drop when a budget is to be met."""

NEAR = 0.99
"""A plan that takes this share of a budget is near enough."""

DIPS = 3
"""Places where a score is not monotone that are named."""


@dataclass(slots=True)
class Ladder:
    """The drop on each step of a ladder, measured when first asked for: the cheapest is 0, dense is `count`.

    A step counts as good only where every measured step above it is good too, so what is found never depends on a
    lucky low rank.

    >>> drops = [5.0, 4.0, 1.0, 3.0, 0.5, 0.0]
    >>> ladder = Ladder(6, drops.__getitem__)
    >>> ladder.halved(0.7), ladder.dips()
    (4, [(2, 3)])
    >>> ladder.halved(2.0)       # not 2, which loses only 1.0: step 3 above it loses 3.0
    4
    """

    count: int
    measure: Callable[[int], float]
    drops: dict[int, float] = field(default_factory=dict)

    def __call__(self, step: int) -> float:
        """The drop on a step, measured when first asked for."""
        if step not in self.drops:
            self.drops[step] = self.measure(step)
        return self.drops[step]

    def climbed(self, limit: float) -> int:
        """The first good step from below, one after the other; `count` where none is."""
        return next((s for s in range(self._bad(limit) + 1, self.count) if self(s) <= limit + SLACK), self.count)

    def halved(self, limit: float) -> int:
        """The first good step by binary search; at most ceil(log2(count + 1)) measurements."""
        low = self._bad(limit)
        high = min((step for step in self.drops if step > low), default=self.count)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self(middle) <= limit + SLACK else (middle, high)
        return high

    def dips(self) -> list[tuple[int, int]]:
        """Neighbours among the measured steps where the higher one loses more."""
        return [(a, b) for a, b in pairwise(sorted(self.drops)) if self.drops[b] > self.drops[a] + SLACK]

    def _bad(self, limit: float) -> int:
        return max((step for step, drop in self.drops.items() if drop > limit + SLACK), default=-1)


Find = Callable[[Ladder, float], int]


class Tally:
    """Counts measurements, and reports which comes next and about how long the rest takes at most."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._pace = total, 0, Pace(total)

    def __call__(self, what: str) -> None:
        """Report that the next measurement begins."""
        left = self._pace(self._done) if self._done < self._total else None
        self._done += 1
        report(Progress(f"{what}: measurement {self._done} of at most {max(self._done, self._total)}", left))


def most_measurements(problem: Problem, order: str, most: Callable[[int], int]) -> Iterator[Measurements]:
    """How many plans `lowest` measures at most; under a budget the drop is halved, which seldom asks for new ones."""
    counts = {layer: len(problem.ranks(layer, problem.method_of(layer))) for layer in problem.layers}
    if order == "together":
        yield Measurements(most(max(counts.values())), problem.samples)
    else:
        for layer, count in counts.items():
            alone = (layer.name, problem.method_of(layer)) if order == "alone" else ("", "")
            yield Measurements(most(count), problem.samples, *alone)
    yield Measurements(1, problem.samples)


def lowest(problem: Problem, order: str, find: Find, most: Callable[[int], int]) -> Iterator[Trial]:
    """The lowest ranks whose drop is at most `problem.max_drop`; without one, at most the least that meets the budgets.

    order: "alone" judges each layer with the others dense; "largest first" one after the other, those before it kept
    compressed, the drop shared out by size (in the first budget's quantity, else bytes), so that the whole stays within
    it; "together" one share for all.
    most(n): how many of n steps `find` measures at most. The last trial is the answer.
    """
    walk = _Walk(problem, order, find, most)
    tolerance = problem.max_drop
    if tolerance is None:
        tolerance = walk.tightest()
    yield from walk.trials(tolerance)


class _Walk:
    """Goes through the layers, and remembers each ladder it has been on."""

    def __init__(self, problem: Problem, order: str, find: Find, most: Callable[[int], int]) -> None:
        self.problem, self.order, self.find = problem, order, find
        self.dense = problem.plan({})
        self.ladders: dict[tuple[str, RankPlan], tuple[list[RankPlan], Ladder]] = {}
        quantity = problem.budgets[0][0] if problem.budgets else "bytes"
        self.size = {layer: problem.layer_amount(layer, None, quantity) for layer in problem.layers}
        self.layers = sorted(self.size, key=lambda layer: -self.size[layer])
        counts = [len(problem.ranks(layer, problem.method_of(layer))) for layer in self.layers]
        total = sum(map(most, counts)) if order != "together" else most(max(counts))
        self.count = Tally(total if problem.max_drop is not None else total * (ROUNDS + 2))

    def tightest(self) -> float:
        """About the smallest drop for each layer, or for all, whose plan keeps every budget."""
        problem = self.problem
        low, high = 0.0, 0.0
        while not problem.fits(self._plan(high)):
            low = high
            high = 2 * high or max(problem.drop(self._lowest()), 1e-3)
            if high > 1e12:
                return high
        for _ in range(ROUNDS if high > 0 else 0):
            if any(problem.amount(quantity, self._plan(high)) >= NEAR * limit for quantity, limit in problem.budgets):
                break
            middle = (low + high) / 2
            low, high = (low, middle) if problem.fits(self._plan(middle)) else (middle, high)
        return high

    def trials(self, tolerance: float) -> Iterator[Trial]:
        """Trials of each layer's lowest rank within a drop, and at last of the plan of all of them."""
        problem, plan = self.problem, self.dense
        dips: list[str] = []
        for name, plans, ladder, at, plan in self._walked(tolerance):  # noqa: B007 - the last one is whole
            dips += [self._dip(name, plans, ladder, pair) for pair in ladder.dips()]
            if at < len(plans) and name:
                score = problem.measure(plans[at])
                words = f"{_title(plans, at, name)}: {lost_text(problem, score, tolerance)}"
                note = f"{words}; {len(ladder.drops)} measurements"
                yield problem.trial(plans[at], note, score)
        score = problem.measure(plan)
        spent = sum(len(ladder.drops) for _, ladder in self.ladders.values())
        notes = [saved_text(problem, plan), lost_text(problem, score, tolerance), f"{spent} measurements"]
        if self.order == "alone" and len(plan.choices) > 1:
            notes.append(f"each layer alone was allowed to lose {drop_text(problem, tolerance)}")
        if dips:
            more = f" and {len(dips) - DIPS} more" if len(dips) > DIPS else ""
            notes.append(f"not monotone ({', '.join(dips[:DIPS])}{more}): a rank counts only if all above it are good")
        yield problem.trial(plan, "; ".join(notes), score)

    def _plan(self, tolerance: float) -> RankPlan:
        plan = self.dense
        for *_, plan in self._walked(tolerance):  # noqa: B007 - the last one is whole
            pass
        return plan

    def _walked(self, tolerance: float) -> Iterator[tuple[str, list[RankPlan], Ladder, int, RankPlan]]:
        """(layer, the plans of its ladder, the ladder, the step found, the plan so far), layer by layer."""
        if self.order == "together":
            plans, ladder = self._ladder("", self.dense)
            at = self.find(ladder, tolerance)
            yield "", plans, ladder, at, plans[at] if at < len(plans) else self.dense
            return
        in_turn = self.order == "largest first"
        plan, reached, total = self.dense, 0.0, sum(self.size.values())
        for layer in self.layers:
            reached += self.size[layer]
            plans, ladder = self._ladder(layer.name, plan if in_turn else self.dense)
            at = self.find(ladder, tolerance * (reached / total if total else 1) if in_turn else tolerance)
            if at < len(plans):
                plan = plan.with_choice(layer.name, plans[at].get(layer.name))
            yield layer.name, plans, ladder, at, plan

    def _ladder(self, name: str, base: RankPlan) -> tuple[list[RankPlan], Ladder]:
        """The plans that differ from `base` in one layer, the cheapest first; without a name, in one share for all."""
        if (name, base) not in self.ladders:
            plans = self._ranks(name, base) if name else self._shares()

            def measure(step: int) -> float:
                self.count(_title(plans, step, name))
                return self.problem.drop(plans[step], keep=name or False)

            self.ladders[name, base] = plans, Ladder(len(plans), measure)
        return self.ladders[name, base]

    def _ranks(self, name: str, base: RankPlan) -> list[RankPlan]:
        layer = next(layer for layer in self.layers if layer.name == name)
        method = self.problem.method_of(layer)
        return [base.with_choice(name, Choice(method, rank)) for rank in self.problem.ranks(layer, method)]

    def _shares(self) -> list[RankPlan]:
        problem = self.problem
        methods = {layer: problem.method_of(layer) for layer in self.layers}
        count = max(len(problem.ranks(layer, method)) for layer, method in methods.items())

        def at(share: float) -> RankPlan:
            ranks = {x: rank_at(problem.useful_rank(x, m), share) for x, m in methods.items()}
            return problem.plan({x.name: problem.choice(x, m, ranks[x]) for x, m in methods.items()})

        return list(dict.fromkeys(at(step / count) for step in range(1, count + 1)))

    def _lowest(self) -> RankPlan:
        plan = self.dense
        for layer in self.layers:
            plan = self._ranks(layer.name, plan)[0]
        return plan

    def _dip(self, name: str, plans: Sequence[RankPlan], ladder: Ladder, pair: tuple[int, int]) -> str:
        words = [f"{_title(plans, step, name)} loses {drop_text(self.problem, ladder.drops[step])}" for step in pair]
        return " but ".join(words)


def _title(plans: Sequence[RankPlan], step: int, name: str) -> str:
    choice = plans[step].get(name)
    if choice is None:
        return f"share {step + 1} of {len(plans)}"
    return f"{name} rank {' x '.join(map(str, choice.rank))}"


def saved_text(problem: Problem, plan: RankPlan) -> str:
    """What a plan saves of the whole network, for a note."""
    parts = []
    for quantity in ("bytes", "multiplies"):
        dense = problem.amount(quantity)
        parts.append(f"{1 - problem.amount(quantity, plan) / dense:.1%} of the {quantity}" if dense else "")
    return f"saves {' and '.join(filter(None, parts))}"


def drop_text(problem: Problem, drop: float) -> str:
    """A drop in words: points where the metric is a mean over samples, else its own unit."""
    share = problem.workspace.opened.evaluate is None and problem.workspace.metric.share
    return f"{100 * drop:.2f} points" if share else f"{drop:.4g}"


def lost_text(problem: Problem, score: Score, tolerance: float | None = None) -> str:
    """What a score has lost, for a note; how well that is known where the tolerance is finer than the measurement."""
    if score.not_finite:
        return "answers with NaN or infinity"
    text = f"{'gains' if score.drop < 0 else 'loses'} {drop_text(problem, abs(score.drop))}"
    if tolerance is None or score.drop_low is None or score.drop_high is None:
        return text
    half = (score.drop_high - score.drop_low) / 2
    return f"{text} (the drop is known to ±{drop_text(problem, half)} only)" if half > tolerance else text
