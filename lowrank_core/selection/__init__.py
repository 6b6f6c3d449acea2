"""Rank rules: each file of this package is one way to choose the ranks of a network.

A rule is a frozen dataclass whose fields are its settings, with bounds and help as metadata, so that the Search page
can draw its form. `search(rule, problem)` yields trials as they are made; the last one is the answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from math import isfinite
from typing import Any, ClassVar, Protocol, runtime_checkable

from lowrank_core.errors import InvalidData, InvalidSearch
from lowrank_core.measure.effort import Effort, Measurements, Work, effort
from lowrank_core.registry import enter, register_all
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.scoring.scores import Score
from lowrank_core.selection._front import FrontPoint as FrontPoint
from lowrank_core.selection._front import front as front
from lowrank_core.selection._problem import Problem, Trial, Wish, amounts, by_drop
from lowrank_core.selection._refine import refine as refine
from lowrank_core.selection._settings import read_setting


@runtime_checkable
class Rule(Protocol):
    """One way to choose ranks; a frozen dataclass. Its docstring's first line says what it does."""

    name: ClassVar[str]
    label: ClassVar[str]  # beside it a rule may have `line`, what it does in a few words
    source: ClassVar[str]  # who described it
    serves: ClassVar[frozenset[Wish]]  # what it can be asked for; "nothing": its own settings decide
    methods: ClassVar[tuple[str, ...]]  # decompositions as published; () = those the network's layers use first

    def measurements(self, problem: Problem) -> Iterator[Measurements]:
        """What it measures at most before it answers; nothing where closed forms decide."""

    def search(self, problem: Problem) -> Iterator[Trial]:
        """Yield plans as they are tried; the last one is the answer, within the budgets."""


RULES: dict[str, type[Any]] = {}
"""Name -> class; its instances are rules, its fields their settings."""


CLOSED_FORMS = ("balf", "lc", "energy")
"""Rules that measure nothing, those that lose least first (docs/benchmarks/selection.md)."""

RECOMMENDED = "budget"
"""The rule that loses least at nearly every budget (docs/benchmarks/selection.md)."""


def register(rule: type[Any]) -> type[Any]:
    """Enter a rule in `RULES` under its name; raises ValueError where the name is taken."""
    return enter(RULES, rule, "rule")


def in_order() -> tuple[str, ...]:
    """Names of all rules: the recommended one, the usual search within a drop, closed forms, then all by label.

    >>> in_order()[:3]
    ('budget', 'bisection', 'balf')
    """
    first = [name for name in (RECOMMENDED, "bisection", *CLOSED_FORMS) if name in RULES]
    return (*first, *sorted(RULES.keys() - first, key=lambda name: RULES[name].label))


def line_of(rule: Rule | type[Any]) -> str:
    """What a rule does in a few words: its own `line`, else the first sentence of its docstring.

    >>> line_of(RULES["uniform"])
    'one share of the rank for all layers'
    """
    first = " ".join((inspect.getdoc(rule) or "").split("\n\n")[0].split())
    return str(getattr(rule, "line", "")) or first.partition(". ")[0].rstrip(".")


def make(name: str, settings: dict[str, str]) -> Rule:
    """A rule with settings as they were typed; raises InvalidSearch that says which there are and their bounds.

    >>> make("energy", {"keep": "0.8"})
    Energy(keep=0.8)
    """
    if name not in RULES:
        raise InvalidSearch(f"unknown rule {name!r}; choose one of {', '.join(RULES)}.")
    own = {f.name: f for f in fields(RULES[name])}
    values: dict[str, Any] = {}
    for key, text in settings.items():
        if key not in own:
            raise InvalidSearch(f"rule {name!r} has no setting {key!r}; it has {', '.join(own) or 'none'}.")
        try:
            values[key] = read_setting(own[key].default, text)
        except ValueError as error:
            raise InvalidSearch(f"rule {name!r}: {key} must be like {own[key].default!r}, but got {text!r}.") from error
    try:
        made: Rule = RULES[name](**values)
        return made
    except ValueError as error:
        raise InvalidSearch(f"rule {name!r}: {error}") from error


def search_effort(rule: Rule, problem: Problem) -> Effort:
    """What a search takes here at most, before it starts; what earlier searches have measured is left out where known.

    Its answer is measured on all evaluation samples at last. Raises InvalidSearch for what cannot be asked.
    """
    problem = _made(rule, problem)
    factorised = frozenset((layer.name, problem.method_of(layer)) for layer in problem.layers)
    work = Work(tuple(rule.measurements(_tried(rule, problem))), factorised, answers=1, corrected=problem.corrected)
    return effort(problem.workspace, work)


def at_once(rule: Rule, problem: Problem) -> type[Any] | None:
    """The best rule that answers the same question in closed form, without measuring anything; None where none does, or
    it is this one.
    """
    serving = (RULES[name] for name in CLOSED_FORMS if _serves(RULES[name], _asked(problem)))
    best = next(serving, None)
    return None if best is None or isinstance(rule, best) else best


def search(rule: Rule, problem: Problem) -> Iterator[Trial]:
    """Ask a rule; the last trial is the answer, measured and within every budget.

    Rules try plans with the quick correction. Of an answer within a budget the thorough one is tried at last, and kept
    unless it scores worse; of one to a largest drop what was shown stands. Raises InvalidSearch where nothing can be
    found, InvalidData where the metric has no value, Cancelled.
    """
    problem = _made(rule, problem)
    _check_metric(problem)
    tried = _tried(rule, problem)
    last = None
    for trial in rule.search(tried):
        last = trial if trial.score is not None else problem.trial(trial.candidate.plan, trial.note)
        yield last
    if last is None or not problem.fits(last.candidate.plan):
        raise InvalidSearch(f"{rule.label} found no plan within the budget; raise it, or choose another rule.")
    if last.score is None:
        report(Progress("measuring the answer"))
        last = _measured(problem, last)
        yield last
    elif tried is not problem and problem.max_drop is None and last.candidate.plan.choices:
        report(Progress("the answer with the thorough correction"))
        thorough = _measured(problem, last)
        yield thorough
        if by_drop(thorough) <= by_drop(last):
            last = thorough
        else:
            yield last
    check_answer(last.score)


def _measured(problem: Problem, trial: Trial) -> Trial:
    """The plan of a trial with the problem's own correction, and its score."""
    plan = trial.candidate.plan
    return problem.trial(plan, trial.note, problem.measure(plan))


def _tried(rule: Rule, problem: Problem) -> Problem:
    """The problem as a rule gets it: with the quick correction, but for one that says `corrects_its_answer`."""
    return problem if getattr(rule, "corrects_its_answer", False) else problem.quick


def _made(rule: Rule, problem: Problem) -> Problem:
    """The problem with the rule's own methods where none were named; raises InvalidSearch where it cannot be asked."""
    if not problem.methods:
        problem = replace(problem, methods=rule.methods)
    _check(rule, problem)
    return problem


def check_answer(score: Score | None) -> None:
    """Refuse what a search has found where it answers with NaN or infinity; raises InvalidSearch."""
    if score is not None and not isfinite(score.drop):
        raise InvalidSearch(
            f"the plan that was found answers with NaN or infinity on {score.not_finite:,} of {score.samples:,} "
            "samples, so it is not accepted; ask for less, lock the layer that does it, or use another rule."
        )


def of_all_samples(problem: Problem, trial: Trial) -> Score | None:
    """The score of a trial where it is already that on all samples; None where it was measured on some, or not."""
    score, opened = trial.score, problem.workspace.opened
    if score is None or score.within is not None:
        return None
    return score if score.samples == (0 if opened.evaluate else len(problem.workspace.reference)) else None


LOOKED_AT = 1024
"""Samples on which a metric must have a value before anything is tried."""


def _check_metric(problem: Problem) -> None:
    """Refuse a metric that has no value; the first samples may be of one class, so then it is asked on all of them."""
    try:
        problem.workspace.dense_score(min(problem.samples or LOOKED_AT, LOOKED_AT))
    except InvalidData:
        problem.workspace.dense_score(problem.samples)


def check_wishes(rule: Rule, asked: Iterable[str]) -> None:
    """Refuse what a rule cannot be asked for: names of quantities, and "max_drop"; raises InvalidSearch."""
    names = sorted(asked)
    if not _serves(rule, names):
        words = {"budget": "a budget", "max_drop": "a largest drop", "nothing": "its own settings alone"}
        raise InvalidSearch(
            f"{rule.label} works from {' or '.join(words[w] for w in sorted(rule.serves))}, but was asked with "
            f"{' and '.join(names) or words['nothing']}."
        )


def _asked(problem: Problem) -> list[str]:
    return [quantity for quantity, _ in problem.budgets] + ["max_drop"] * (problem.max_drop is not None)


def _serves(rule: Rule | type[Any], asked: Iterable[str]) -> bool:
    wishes: set[Wish] = {"max_drop" if name == "max_drop" else "budget" for name in asked} or {"nothing"}
    return wishes <= rule.serves


def _check(rule: Rule, problem: Problem) -> None:
    """Refuse a problem that a rule cannot answer, before anything is measured; raises InvalidSearch."""
    check_wishes(rule, _asked(problem))
    if not problem.layers:
        locked = " that is not locked" if problem.locked else ""
        raise InvalidSearch(
            f"there is no layer{locked} that these methods make cheaper; unlock one or allow more methods."
        )
    for quantity, limit in problem.budgets:
        least = problem.amount(quantity) - sum(
            problem.layer_amount(layer, None, quantity) - min(x for _, x in amounts(problem, layer, quantity))
            for layer in problem.layers
        )
        if least > limit:
            dense = problem.amount(quantity)
            raise InvalidSearch(
                f"{limit:,.0f} {quantity} cannot be reached: with the lowest ranks everywhere the network still "
                f"takes {least:,.0f} ({least / dense:.1%} of the dense one); raise the budget, unlock layers, or allow "
                "other methods or ranks."
            )


register_all(__name__, __path__)
