"""Rank rules: each file of this package is one way to choose the ranks of a network.

A rule is a frozen dataclass whose fields are its settings, with bounds and help as metadata, so that the Search page
can draw its form. `search(rule, problem)` yields trials as they are made; the last one is the answer.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import nn

from lowrank_core.compression.correct import Correction, load_overlay
from lowrank_core.errors import Cancelled, InvalidSearch
from lowrank_core.layers.spec import Rank
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.measure.ledger import Ledger, score_key
from lowrank_core.methods import METHODS
from lowrank_core.networks.discover import Layer
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import Cost, layer_cost, plan_cost, rank_at, useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.cancelling import go_on
from lowrank_core.running.parallel import HERE, Workers
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.workspace import Workspace

MOST_RANKS = 128
"""Ranks of one layer and method that are offered; of more, an even choice."""

WIDE = 2048
"""A second moment of so many inputs takes seconds, of four times as many minutes."""

Quantity = Literal["multiplies", "bytes", "microseconds"]
Wish = Literal["budget", "max_drop", "nothing"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan that a search has looked at: what it costs, and its score where it was measured."""

    candidate: Candidate
    cost: Cost
    score: Score | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked of a rule: a network, budgets for the whole of it, and what must not be touched.

    budgets: at most so many multiplies, bytes or microseconds; max_drop: the largest drop of the metric.
    methods: those that may be used, () leaves it to the rule. multiple_of: every rank is a multiple of it.
    corrected: whether plans are measured with the workspace's correction. samples: of one measurement inside a search.
    ledger: scores known already; folder: where points of single layers are kept between runs.
    workers: where points of single layers are measured.
    tell(text) hears what goes on; cancelled() ends it.
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
    tell: Callable[[str], None] = lambda text: None
    cancelled: Callable[[], bool] = lambda: False

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
        wanted = [name for name in self.methods if name in fitting] if self.methods else fitting
        paying = tuple(name for name in wanted if self.ranks(layer, name))
        inputs = prod(layer.spec.weight_shape[1:])
        return tuple(n for n in paying if inputs <= WIDE or not METHODS[n].data_aware) or paying

    def method_of(self, layer: Layer) -> str:
        """The first of them."""
        return self.methods_of(layer)[0]

    def ranks(self, layer: Layer, method: str) -> tuple[Rank, ...]:
        """The ranks that pay and are multiples of `multiple_of`, ascending; two axes keep the same share.

        More than MOST_RANKS are thinned out evenly.
        """
        return _ranks(layer, method, self.multiple_of)

    def choice(self, layer: Layer, method: str, rank: Rank) -> Choice | None:
        """That rank rounded down to what is allowed; None, which is dense, where it does not pay."""
        step, top = self.multiple_of, METHODS[method].max_rank(layer.spec)
        made = Choice(method, tuple(max(step, r // step * step) for r in rank))
        cost, dense = layer_cost(layer, made), layer_cost(layer, None)
        fits = all(r <= t for r, t in zip(made.rank, top, strict=True))
        return made if fits and (cost.bytes < dense.bytes or cost.multiplies < dense.multiplies) else None

    def raised(self, rank: Rank) -> Rank:
        """That rank rounded up to a multiple of `multiple_of`."""
        return tuple(-(-r // self.multiple_of) * self.multiple_of for r in rank)

    def menu(self, layer: Layer, method: str) -> tuple[list[Choice | None], list[float]]:
        """What a layer may become, `ranks` and at last dense, and the squared relative error of each."""
        factorization, ranks = self.workspace.factors(layer.name, method), self.ranks(layer, method)
        return [*(Choice(method, r) for r in ranks), None], [*(factorization.error(r) ** 2 for r in ranks), 0.0]

    def share(self, layer: Layer, choice: Choice | None) -> float:
        """What a layer costs as a share of the dense network, added up over the budgets; without one bytes alone."""
        quantities: tuple[Quantity, ...] = tuple(q for q, _ in self.budgets) or ("bytes",)
        return sum(self.layer_amount(layer, choice, q) / (self.amount(q) or 1.0) for q in quantities)

    def plan(self, choices: dict[str, Choice | None]) -> RankPlan:
        """A plan of this network; None is dense."""
        return RankPlan.of(
            self.workspace.profile.fingerprint, {name: c for name, c in choices.items() if c is not None}
        )

    def amount(self, quantity: Quantity, plan: RankPlan | None = None) -> float:
        """What the whole network costs under a plan, without one dense. Microseconds: of the layers in the table."""
        if quantity != "microseconds":
            return float(getattr(plan_cost(self.workspace.profile, plan), quantity))
        chosen = dict(plan.choices) if plan is not None else {}
        return sum(self.layer_amount(x, chosen.get(x.name), quantity) for x in self.workspace.profile.layers)

    def layer_amount(self, layer: Layer, choice: Choice | None, quantity: Quantity) -> float:
        """The same of one layer; a choice of unknown latency takes as long as the dense layer."""
        if quantity != "microseconds":
            return float(getattr(layer_cost(layer, choice), quantity))
        taken, dense = self.latency(layer.name, choice), self.latency(layer.name, None)
        return taken if taken is not None else dense or 0.0

    def fits(self, plan: RankPlan) -> bool:
        """Whether a plan keeps every budget."""
        return all(self.amount(quantity, plan) <= limit for quantity, limit in self.budgets)

    def trial(self, plan: RankPlan, note: str = "", score: Score | None = None) -> Trial:
        """A plan as a trial."""
        return Trial(self.candidate(plan), plan_cost(self.workspace.profile, plan), score, note)

    def candidate(self, plan: RankPlan) -> Candidate:
        """A plan with the workspace's correction, or without."""
        return self.workspace.candidate(plan, corrected=self.corrected)

    def measure(
        self, plan: RankPlan, *, samples: int | None = None, tolerance: float | None = None, keep: str | bool = False
    ) -> Score:
        """The score of a plan, paired with the dense network; what was measured before is only looked up.

        tolerance: end as soon as the drop is clearly at most that or clearly more. keep: the layer whose ranks are
        being tried, so that what comes before it runs once; the score is the same bit for bit. Raises Cancelled.
        """
        if self.cancelled():
            raise Cancelled("the search was called off; what it has measured is kept.")
        wanted, count = self.candidate(plan), self.samples if samples is None else samples

        def measured() -> Score:
            model = self._compressed(plan, wanted.correction)
            return final_score(
                self.workspace.measure(model, samples=count, tolerance=tolerance, cancelled=self.cancelled, keep=keep)
            )

        return self.ledger.remembered(score_key(wanted, count, tolerance), measured)

    def _compressed(self, plan: RankPlan, correction: Correction | None) -> nn.Module:
        """As `Workspace.compress`; where a single layer is compressed little more than that layer is run."""
        if correction is None or len(plan.choices) != 1:
            return self.workspace.compress(plan, correction)
        model = self.workspace.compress(plan)
        return load_overlay(model, self.workspace.corrector.alone(model, plan, correction))


@lru_cache(maxsize=10_000)
def _ranks(layer: Layer, method: str, step: int) -> tuple[Rank, ...]:
    top = useful_rank(layer, method)
    count = min(max(top) // step, MOST_RANKS) if all(top) else 0
    found = [rank_at(top, position / count) for position in range(1, count + 1)]
    rounded = [tuple(r // step * step for r in rank) for rank in found]
    return tuple(dict.fromkeys(rank for rank in rounded if all(rank)))


def problem_of(
    workspace: Workspace,
    *,
    multiplies: float | None = None,
    bytes: float | None = None,
    microseconds: float | None = None,
    lock: Iterable[str] = (),
    folder: Path | None = None,
    latency: LatencyTable | None = None,
    **wishes: Any,
) -> Problem:
    """A problem as people state it: a budget up to 1 is a share of the whole dense network, above it an amount.

    lock: names of layers, or patterns where they hold a `*`. folder: keeps scores and points. Raises InvalidSearch.
    """
    problem = Problem(workspace, latency=latency or LatencyTable(), folder=folder, **wishes)
    budgets: list[tuple[Quantity, float]] = []
    wanted: tuple[tuple[Quantity, float | None], ...] = (
        ("multiplies", multiplies),
        ("bytes", bytes),
        ("microseconds", microseconds),
    )
    for quantity, limit in wanted:
        if limit is None:
            continue
        if not limit > 0:
            raise InvalidSearch(f"a budget of {quantity} must be above 0, but got {limit:g}.")
        if quantity == "microseconds" and not problem.latency.layers:
            raise InvalidSearch("a budget of microseconds needs a latency table; give one, or another budget.")
        budgets.append((quantity, limit * problem.amount(quantity) if limit <= 1 else limit))
    unknown = [m for m in problem.methods if m not in METHODS]
    if unknown:
        raise InvalidSearch(f"unknown method {unknown[0]!r}; choose among {', '.join(METHODS)}.")
    if problem.max_drop is not None and not problem.max_drop >= 0:
        raise InvalidSearch(f"the largest drop must be 0 or more, but got {problem.max_drop:g}.")
    ledger = Ledger() if folder is None else Ledger.of(workspace, folder)
    return replace(problem, budgets=tuple(budgets), locked=_locked(workspace, lock), ledger=ledger)


def _locked(workspace: Workspace, patterns: Iterable[str]) -> frozenset[str]:
    names = [layer.name for layer in workspace.profile.layers]
    found: set[str] = set()
    for pattern in patterns:
        hits = [n for n in names if (fnmatchcase(n, pattern) if "*" in pattern else n == pattern)]
        if not hits:
            raise InvalidSearch(f"no layer goes by {pattern!r}, so none is locked; the layers are {', '.join(names)}.")
        found.update(hits)
    return frozenset(found)


@runtime_checkable
class Rule(Protocol):
    """One way to choose ranks; a frozen dataclass. Its docstring's first line says what it does."""

    name: ClassVar[str]
    label: ClassVar[str]
    source: ClassVar[str]  # who described it
    serves: ClassVar[frozenset[Wish]]  # what it can be asked for; "nothing": its own settings decide
    methods: ClassVar[tuple[str, ...]]  # decompositions as published; () = those the network's layers use first

    def search(self, problem: Problem) -> Iterator[Trial]:
        """Yield plans as they are tried; the last one is the answer, within the budgets."""


RULES: dict[str, Callable[..., Rule]] = {}


def register(rule: type[Any]) -> type[Any]:
    """Make a rule known by its name."""
    if rule.name in RULES:
        raise ValueError(f"rule {rule.name!r} is registered twice")
    RULES[rule.name] = rule
    return rule


def make(name: str, settings: dict[str, str]) -> Rule:
    """A rule with settings as they were typed; raises InvalidSearch that says which there are and their bounds.

    >>> make("energy", {"keep": "0.8"})
    Energy(keep=0.8)
    """
    if name not in RULES:
        raise InvalidSearch(f"unknown rule {name!r}; choose one of {', '.join(RULES)}.")
    known = {f.name: f for f in fields(RULES[name])}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, text in settings.items():
        if key not in known:
            raise InvalidSearch(f"rule {name!r} has no setting {key!r}; it has {', '.join(known) or 'none'}.")
        try:
            values[key] = read_setting(known[key].default, text)
        except ValueError as error:
            raise InvalidSearch(
                f"rule {name!r}: {key} must be like {known[key].default!r}, but got {text!r}."
            ) from error
    try:
        made: Rule = RULES[name](**values)
        return made
    except ValueError as error:
        raise InvalidSearch(f"rule {name!r}: {error}") from error


def read_setting(default: object, text: str) -> object:
    """A typed setting, of the type of its default; raises ValueError."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "yes", "1")
    if isinstance(default, int):
        return int(text)
    return float(text) if isinstance(default, float) else text


def check_settings(rule: Any) -> None:
    """Hold every field of a rule against the bounds in its metadata; for `__post_init__`. Raises ValueError."""
    for f in fields(rule):
        value, least, most = getattr(rule, f.name), f.metadata.get("min"), f.metadata.get("max")
        choices = f.metadata.get("choices")
        if (least is not None and not value >= least) or (most is not None and not value <= most):
            raise ValueError(f"{f.name} must be from {least} to {most}, but got {value}.")
        if choices is not None and value not in choices:
            raise ValueError(f"{f.name} must be one of {', '.join(map(str, choices))}, but got {value}.")


def search(rule: Rule, problem: Problem) -> Iterator[Trial]:
    """Ask a rule; the last trial is the answer, measured and within every budget.

    Raises InvalidSearch where nothing can be found, Cancelled when called off.
    """
    if not problem.methods:
        problem = replace(problem, methods=rule.methods)
    _check(rule, problem)
    last = None
    for last in rule.search(problem):
        yield last
    if last is None or not problem.fits(last.candidate.plan):
        raise InvalidSearch(f"{rule.label} found no plan within the budget; raise it, or choose another rule.")
    if last.score is None:
        problem.tell("measuring the answer")
        yield replace(last, score=problem.measure(last.candidate.plan))


def _check(rule: Rule, problem: Problem) -> None:
    """Refuse at once what cannot be answered."""
    wishes: set[Wish] = {"budget"} if problem.budgets else set()
    wishes |= {"max_drop"} if problem.max_drop is not None else set()
    wishes = wishes or {"nothing"}
    if not wishes <= rule.serves:
        words = {"budget": "a budget", "max_drop": "a largest drop", "nothing": "its own settings alone"}
        raise InvalidSearch(
            f"{rule.label} works from {' or '.join(words[w] for w in sorted(rule.serves))}, but was asked with "
            f"{' and '.join(words[w] for w in sorted(wishes))}."
        )
    if not problem.layers:
        locked = " that is not locked" if problem.locked else ""
        raise InvalidSearch(
            f"there is no layer{locked} that these methods make cheaper; unlock one or allow more methods."
        )
    for quantity, limit in problem.budgets:
        least = problem.amount(quantity) - sum(
            problem.layer_amount(layer, None, quantity) - min(x for _, x in _amounts(problem, layer, quantity))
            for layer in problem.layers
        )
        if least > limit:
            dense = problem.amount(quantity)
            raise InvalidSearch(
                f"{limit:,.0f} {quantity} cannot be reached: with the lowest ranks everywhere the network still "
                f"takes {least:,.0f} ({least / dense:.1%} of the dense one); raise the budget, unlock layers, or allow "
                "other methods or ranks."
            )


def _amounts(problem: Problem, layer: Layer, quantity: Quantity) -> Iterator[tuple[Choice | None, float]]:
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
        go_on()
        middle = (low + high) / 2
        plan = plan_at(middle)
        if problem.fits(plan):
            low, best = middle, plan
        else:
            high = middle
    return best


for _module in sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")):
    importlib.import_module(f"{__name__}.{_module}")
