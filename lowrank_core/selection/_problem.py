"""What is asked of a rule, and a plan that it has tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from math import inf, isnan, prod
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lowrank_core.compression.correct import load_overlay
from lowrank_core.errors import InvalidSearch, cut, few
from lowrank_core.layers.spec import Rank
from lowrank_core.measure.effort import Measurements
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.measure.ledger import Ledger, score_key
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import SAMPLES, Correction
from lowrank_core.plans.cost import (
    Cost,
    amount,
    freed,
    layer_cost,
    plan_cost,
    rank_at,
    tried_rank,
    useful_rank,
    with_free_ranks,
)
from lowrank_core.plans.cost import amounts as amounts_of
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.sensitivity import Grounds
from lowrank_core.running.parallel import HERE, Workers
from lowrank_core.running.scope import give_way, raise_if_cancelled
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.workspace import Workspace

MOST_RANKS = 128
"""Ranks of one layer and method that are offered; of more, an even choice."""


WIDE = 2048
"""A second moment of so many inputs takes seconds, of four times as many minutes."""


BEYOND = 1e9
"""The drop that rules reckon with for a network whose answers are not finite: more than any that is allowed."""


ROUNDING = 2.0**-23
"""A relative error that single precision cannot tell from none."""


Quantity = Literal["multiplies", "bytes", "microseconds"]


QUANTITIES: tuple[Quantity, ...] = ("multiplies", "bytes", "microseconds")


Wish = Literal["budget", "max_drop", "nothing"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan that a search has looked at: what it costs, and its score where it was measured."""

    candidate: Candidate
    cost: Cost
    score: Score | None = None
    note: str = ""


def by_drop(trial: Trial) -> tuple[bool, float]:
    """What the drops of measured trials are compared by: one that is no number is more than any."""
    assert trial.score is not None
    return isnan(trial.score.drop), trial.score.drop


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked of a rule: a network, budgets for the whole of it, and what must not be touched.

    budgets: at most so many multiplies, bytes or microseconds; max_drop: the largest drop of the metric.
    methods: those that may be used, () leaves it to the rule. multiple_of: every rank is a multiple of it.
    corrected: whether plans are measured with a correction; correct_by: with that one instead of the thorough one.
    samples: of one measurement inside a search.
    free: whether factors are stored with free ranks where a method has them: rules go on saying method and rank, and
    `formed` says what that costs.
    ledger: scores known already; folder: where points of single layers are kept between runs.
    workers: where points of single layers are measured; grounds: what those here start from, one call after another.
    """

    workspace: Workspace
    budgets: tuple[tuple[Quantity, float], ...] = ()
    max_drop: float | None = None
    methods: tuple[str, ...] = ()
    locked: frozenset[str] = frozenset()
    multiple_of: int = 1
    corrected: bool = True
    samples: int = 1000
    latency: LatencyTable = field(default_factory=LatencyTable)
    ledger: Ledger = field(default_factory=Ledger)
    folder: Path | None = None
    workers: Workers = HERE
    correct_by: Correction | None = None
    free: bool = False
    grounds: Grounds = field(default_factory=Grounds, compare=False)

    @property
    def correction(self) -> Correction | None:
        """How plans are corrected; None for not at all."""
        return (self.correct_by or self.workspace.thorough) if self.corrected else None

    @property
    def quick(self) -> Problem:
        """The same with the quick correction in place of the thorough one, for plans that are only tried."""
        correction = self.correction
        if correction is None or correction.quick == correction:
            return self
        asked = replace(correction.quick, samples=min(correction.samples, SAMPLES))
        return replace(self, correct_by=self.workspace.correction_in(asked))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers a rule may compress, in the order of execution."""
        return tuple(x for x in self.workspace.profile.layers if x.name not in self.locked and self.methods_of(x))

    def methods_of(self, layer: Layer) -> tuple[str, ...]:
        """Names of the methods for a layer that have a rank that pays, in the order they were given.

        Data-aware ones are left out where another one is there and the layer has more than WIDE inputs in a window:
        their moments would take longer than the search.
        """
        fitting = [m.name for m in layer.methods if self.methods or not (m.reference or m.data_aware)]
        allowed = [name for name in self.methods if name in fitting] if self.methods else fitting
        paying = tuple(name for name in allowed if self.ranks(layer, name))
        inputs = prod(layer.spec.weight_shape[1:])
        return tuple(n for n in paying if inputs <= WIDE or not METHODS[n].data_aware) or paying

    def method_of(self, layer: Layer) -> str:
        """The first method for a layer that has a rank that pays."""
        return self.methods_of(layer)[0]

    def ranks(self, layer: Layer, method: str) -> tuple[Rank, ...]:
        """The ranks that pay and are multiples of `multiple_of`, ascending; two axes keep the same share.

        None above `tried_rank`. More than MOST_RANKS are thinned out evenly.
        """
        return _ranks(layer, method, self.multiple_of, self.free)

    def useful_rank(self, layer: Layer, method: str) -> Rank:
        """The largest rank that pays, in the form in which factors are stored; zeros where none does."""
        return useful_rank(layer, method, self.free)

    def formed(self, choice: Choice | None) -> Choice | None:
        """A choice in the form in which its factors are stored."""
        return freed(choice) if self.free and choice is not None else choice

    def choice(self, layer: Layer, method: str, rank: Rank) -> Choice | None:
        """A rank rounded down to what is allowed, as a choice; None, which is dense, where it does not pay."""
        step, top = self.multiple_of, METHODS[method].max_rank(layer.spec)
        made = Choice(method, tuple(max(step, r // step * step) for r in rank))
        cost, dense = layer_cost(layer, self.formed(made)), layer_cost(layer, None)
        fits = all(r <= t for r, t in zip(made.rank, top, strict=True))
        return made if fits and (cost.bytes < dense.bytes or cost.multiplies < dense.multiplies) else None

    def raised(self, rank: Rank) -> Rank:
        """A rank rounded up to a multiple of `multiple_of`."""
        return tuple(-(-r // self.multiple_of) * self.multiple_of for r in rank)

    def menu(self, layer: Layer, method: str) -> tuple[list[Choice | None], list[float]]:
        """What a layer may become, `ranks` and at last dense, and the squared relative error of each; 0 below ROUNDING:
        so a layer that is of low rank is not kept larger for what single precision has rounded.
        """
        factorization, ranks = self.workspace.factors(layer.name, method), self.ranks(layer, method)
        errors = [*(factorization.error(rank) for rank in ranks), 0.0]
        return [*(Choice(method, r) for r in ranks), None], [e**2 if e > ROUNDING else 0.0 for e in errors]

    def share(self, layer: Layer, choice: Choice | None) -> float:
        """What a layer costs as a share of the dense network, added up over the budgets; without one bytes alone."""
        quantities: tuple[Quantity, ...] = tuple(q for q, _ in self.budgets) or ("bytes",)
        return sum(self.layer_amount(layer, choice, q) / (self.amount(q) or 1.0) for q in quantities)

    def plan(self, choices: dict[str, Choice | None]) -> RankPlan:
        """A plan of this network; None is dense."""
        formed = {name: c for name, choice in choices.items() if (c := self.formed(choice)) is not None}
        return RankPlan.of(self.workspace.profile.fingerprint, formed)

    def amount(self, quantity: Quantity, plan: RankPlan | None = None) -> float:
        """What the whole network costs under a plan, without one dense. Microseconds: of the layers in the table."""
        if quantity != "microseconds":
            return float(getattr(plan_cost(self.workspace.profile, self._stored(plan)), quantity))
        chosen = dict(plan.choices) if plan is not None else {}
        return sum(self.layer_amount(x, chosen.get(x.name), quantity) for x in self.workspace.profile.layers)

    def layer_amount(self, layer: Layer, choice: Choice | None, quantity: Quantity) -> float:
        """What one layer costs under a choice; one of unknown latency takes as long as the dense layer."""
        if quantity != "microseconds":
            return float(amount(layer, self.formed(choice), quantity))
        taken, dense = self.latency(layer.name, choice), self.latency(layer.name, None)
        return taken if taken is not None else dense or 0.0

    def layer_amounts(self, layer: Layer, choices: Iterable[Choice | None], quantity: Quantity) -> list[float]:
        """What one layer costs under many choices at once, see `layer_amount`."""
        if quantity == "microseconds":
            return [self.layer_amount(layer, choice, quantity) for choice in choices]
        return list(map(float, amounts_of(layer, map(self.formed, choices), quantity)))

    def fits(self, plan: RankPlan) -> bool:
        """Whether a plan keeps every budget of the problem."""
        return all(self.amount(quantity, plan) <= limit for quantity, limit in self.budgets)

    def trial(self, plan: RankPlan, note: str = "", score: Score | None = None) -> Trial:
        """A plan with its cost, and its score and a note where there are such, as a trial."""
        candidate = self.candidate(plan)
        return Trial(candidate, plan_cost(self.workspace.profile, candidate.plan), score, note)

    def candidate(self, plan: RankPlan) -> Candidate:
        """A plan with the problem's correction, or without; one that keeps everything dense needs none."""
        return Candidate(self._stored(plan) or plan, self.correction if plan.choices else None)

    def _stored(self, plan: RankPlan | None) -> RankPlan | None:
        return with_free_ranks(plan) if self.free and plan is not None else plan

    def measure(
        self, plan: RankPlan, *, samples: int | None = None, tolerance: float | None = None, keep: str | bool = False
    ) -> Score:
        """The score of a plan, paired with the dense network; what was measured before is only looked up.

        tolerance: end as soon as the drop is clearly at most that or clearly more. keep: the layer whose ranks are
        being tried, so that what comes before it runs once; the score is the same bit for bit. Raises Cancelled.
        """
        give_way()
        candidate, count = self.candidate(plan), self.samples if samples is None else samples

        def measured() -> Score:
            model = self._compressed(plan, candidate.correction)
            return final_score(self.workspace.measure(model, samples=count, tolerance=tolerance, keep=keep))

        return self.ledger.remembered(score_key(candidate, count, tolerance), measured)

    def drop(self, plan: RankPlan, *, keep: str | bool = False) -> float:
        """The drop of a plan's score as a number to reckon with: BEYOND where the answers are not finite."""
        return min(self.measure(plan, keep=keep).drop, BEYOND)

    def _compressed(self, plan: RankPlan, correction: Correction | None) -> nn.Module:
        """A compressed copy, corrected where asked; of a single layer little more than that layer is run.

        Its factors are plain: free ranks change no answer.
        """
        plan = plan.plain
        if correction is None or len(plan.choices) != 1:
            return self.workspace.compress(plan, correction)
        model = self.workspace.compress(plan)
        return load_overlay(model, self.workspace.corrector.alone(model, plan, correction))


def tests_samples(workspace: Workspace) -> bool:
    """Whether samples are right or wrong one by one, so that a test after every batch can decide on a largest drop."""
    if workspace.opened.evaluate is not None or workspace.reference.dataset.weights is not None:
        return False
    return workspace.judged.right_or_wrong


def in_closed_form(rule: object, problem: Problem) -> Iterator[Measurements]:
    """What a rule measures that decides in closed form: nothing."""
    return iter(())


@lru_cache(maxsize=10_000)
def _ranks(layer: Layer, method: str, step: int, free: bool) -> tuple[Rank, ...]:
    top = tried_rank(layer, method, free)
    count = min(max(top) // step, MOST_RANKS) if all(top) else 0
    spaced = [rank_at(top, position / count) for position in range(1, count + 1)]
    rounded = [tuple(r // step * step for r in rank) for rank in spaced]
    return tuple(dict.fromkeys(rank for rank in rounded if all(rank)))


def problem_of(
    workspace: Workspace,
    *,
    multiplies: float | None = None,
    bytes: float | None = None,
    microseconds: float | None = None,
    max_drop: float | str | None = None,
    lock: Iterable[str] = (),
    folder: Path | None = None,
    latency: LatencyTable | None = None,
    **wishes: Any,
) -> Problem:
    """A problem as people state it: a budget up to 1 is a share of the whole dense network, above it an amount.

    max_drop: see `largest_drop`. lock: names of layers, or patterns where they hold a `*`. folder: keeps scores and
    points. Raises InvalidSearch, and InvalidFile for the latency table of another network.
    """
    workspace.require_figures()
    if latency is not None:
        latency.check(workspace.profile.fingerprint)
    drop = None if max_drop is None else largest_drop(workspace, max_drop)
    problem = Problem(workspace, max_drop=drop, latency=latency or LatencyTable(), folder=folder, **wishes)
    budgets: list[tuple[Quantity, float]] = []
    limits: tuple[tuple[Quantity, float | None], ...] = (
        ("multiplies", multiplies),
        ("bytes", bytes),
        ("microseconds", microseconds),
    )
    for quantity, limit in limits:
        if limit is None:
            continue
        if not 0 < limit < inf:
            raise InvalidSearch(f"a budget of {quantity} must be a finite number above 0, but got {limit:g}.")
        if quantity == "microseconds" and not problem.latency.layers:
            raise InvalidSearch("a budget of microseconds needs a latency table; give one, or another budget.")
        if quantity == "microseconds" and problem.free:
            raise InvalidSearch(
                "a latency table tells what plain factors take, so a budget of microseconds goes without free ranks."
            )
        budgets.append((quantity, limit * problem.amount(quantity) if limit <= 1 else limit))
    check_methods(problem.methods)
    ledger = Ledger() if folder is None else Ledger.of(workspace, folder)
    return replace(problem, budgets=tuple(budgets), locked=_locked(workspace, lock), ledger=ledger)


def largest_drop(workspace: Workspace, wish: float | str) -> float:
    """A largest drop as people state it, in the score's own unit; where that is a share, 0.01 or "1%" is one point.

    Raises InvalidSearch for what is no drop, for a percentage of a score that is no share, and for all of a share.
    """
    drop, percent = read_drop(wish)
    text = str(wish).strip()
    share = workspace.opened.evaluate is None and workspace.metric.share
    if percent and not share:
        raise InvalidSearch(
            f"a percentage is a largest drop of a share of the samples, and this score is none; write it in the "
            f"score's own unit, but got {text}."
        )
    if share and drop >= 1:
        points = f"{drop:g}" if not percent and drop < 100 else "1"
        raise InvalidSearch(
            f"{workspace.metric.name} is a share from 0 to 1, so a largest drop must be below 1, but got {text}; write "
            f"{float(points) / 100:g} or {points}%."
        )
    return drop


def read_drop(wish: float | str) -> tuple[float, bool]:
    """(largest drop, whether it is a percentage) as people state it; raises InvalidSearch for what is no drop.

    >>> read_drop("2%"), read_drop(0.5)
    ((0.02, True), (0.5, False))
    """
    text = str(wish).strip()
    percent = text.endswith("%")
    try:
        drop = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError as error:
        raise InvalidSearch(
            f"the largest drop must be a number or a percentage such as 1%, but got {cut(text)!r}."
        ) from error
    if not 0 <= drop < inf:
        raise InvalidSearch(f"the largest drop must be 0 or more, but got {text}.")
    return drop, percent


def check_methods(names: Iterable[str]) -> None:
    """Raise InvalidSearch for a method that nothing goes by."""
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise InvalidSearch(f"unknown method {cut(unknown[0])!r}; choose among {', '.join(METHODS)}.")


def _locked(workspace: Workspace, patterns: Iterable[str]) -> frozenset[str]:
    names = [layer.name for layer in workspace.profile.layers]
    locked: set[str] = set()
    for pattern in patterns:
        hits = [n for n in names if (fnmatchcase(n, pattern) if "*" in pattern else n == pattern)]
        if not hits:
            raise InvalidSearch(f"no layer goes by {cut(pattern)!r}, so none is locked; the layers are {few(names)}.")
        locked.update(hits)
    return frozenset(locked)


def amounts(problem: Problem, layer: Layer, quantity: Quantity) -> Iterator[tuple[Choice | None, float]]:
    yield None, problem.layer_amount(layer, None, quantity)
    for method in problem.methods_of(layer):
        for rank in problem.ranks(layer, method):
            choice = Choice(method, rank)
            yield choice, problem.layer_amount(layer, choice, quantity)


def largest(
    problem: Problem, plan_at: Callable[[float], RankPlan], low: float, high: float, steps: int = 40
) -> RankPlan:
    """The plan at the largest t that keeps the budgets, where plan_at(t) costs the more the larger t; by bisection.

    The plan at `low` where none does.
    """
    if problem.fits(plan := plan_at(high)):
        return plan
    best = plan_at(low)
    for _ in range(steps):
        raise_if_cancelled()
        middle = (low + high) / 2
        plan = plan_at(middle)
        if problem.fits(plan):
            low, best = middle, plan
        else:
            high = middle
    return best
