"""What a search has tried, as marks on one chart: how far each plan is from the dense network, and the verdict on it.

Every mark stands by its paired change against the dense network on its own samples, so that plans which were measured
on different samples can be compared. Nothing here knows a session or a screen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lowrank_core.figures import how_many
from lowrank_core.plans.cost import Cost, plan_cost
from lowrank_core.scoring.scores import Score
from lowrank_core.selection._problem import Quantity, Trial, tests_samples
from lowrank_core.workspace import Workspace
from pages.ui import goals, question, words
from pages.ui.front import PredictedPlan
from pages.ui.goals import Goals
from pages.ui.question import Question, Search

Verdict = Literal["shown within", "undecided", "refuted"]
"""Of a largest drop: the plan was shown to be within it, the samples cannot tell, or it was shown to lose more."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A plan on the chart. x: share of the dense cost; y: change of the score, points where it is a share, with ends.

    key: what a click on it selects, as the page names it; says: what it is and why it was taken or not.
    """

    key: str
    x: float
    y: float
    low: float | None
    high: float | None
    says: str


# ---- verdicts -------------------------------------------------------------------------------------------------------


def largest_drop(workspace: Workspace, asked: Question, chosen: Goals, dense: float) -> float | None:
    """The drop that plans are judged by: the one that was asked for, else what the goals allow; None for neither."""
    if asked.max_drop is not None or chosen.floor is None:
        return asked.max_drop
    return goals.largest_loss(chosen.floor, dense, rises=words.rises(workspace))


def verdict(workspace: Workspace, asked: Question, score: Score, limit: float | None) -> Verdict | None:
    """Whether a plan was shown to lose at most the limit; None where there is no limit.

    By the test that looked after every batch, where the rule makes one; else by the ends of the 95 % interval.
    """
    if limit is None:
        return None
    if score.not_finite:
        return "refuted"
    if score.within is not None:
        return "shown within" if score.within else "refuted"
    tests = asked.max_drop is not None and getattr(asked.rule, "tests_its_drop", False) and tests_samples(workspace)
    if tests or score.drop_low is None or score.drop_high is None:
        return "undecided"
    return "shown within" if score.drop_high <= limit else "refuted" if score.drop_low > limit else "undecided"


def stopped_early(workspace: Workspace, score: Score) -> bool:
    """Whether a measurement ended with its verdict before all samples: its figure is then no plain score."""
    whole = 0 if workspace.opened.evaluate is not None else len(workspace.reference)
    return score.within is not None and score.samples < whole


def sentence(workspace: Workspace, asked: Question, score: Score, limit: float | None) -> str:
    """A measured score and what it says of the limit, in one or two sentences."""
    judged = verdict(workspace, asked, score, limit)
    if judged is None or limit is None or score.not_finite:
        return words.verdict(workspace, score)
    most, loses = words.drop(workspace, limit), f"{words.loss(workspace)}s by"
    said = {"shown within": f"{loses} at most {most}", "refuted": f"{loses} more than {most}"}.get(judged)
    if said is None:
        figure = words.verdict(workspace, score)
        samples = how_many(score.samples, "sample") if score.samples else "its score"
        return f"{figure}. Undecided: {samples} cannot tell whether it {loses} at most {most}."
    if stopped_early(workspace, score):
        changed = words.change(workspace, score, "on these")
        return f"Decided on {how_many(score.samples, 'sample')}: it {said}; {changed}."
    return f"{words.verdict(workspace, score)}. It is shown that it {said}."


def short(workspace: Workspace, score: Score, judged: Verdict | None) -> str:
    """The same in a few words, for a list of plans."""
    if judged is not None and stopped_early(workspace, score):
        return f"{judged}, decided on {how_many(score.samples, 'sample')}"
    figure = words.score(workspace, score.value)
    return figure if judged is None or score.not_finite else f"{figure}, {judged}"


# ---- marks ----------------------------------------------------------------------------------------------------------


def share(workspace: Workspace, cost: Cost, quantity: str) -> float:
    """A cost as a share of the dense network's."""
    return float(getattr(cost, quantity) / (getattr(plan_cost(workspace.profile), quantity) or 1))


def mark(workspace: Workspace, trial: Trial, quantity: str, key: str, *, says: str = "") -> Mark | None:
    """A measured trial; None where it was not measured, or answers with NaN or infinity."""
    score = trial.score
    if score is None or score.not_finite:
        return None
    ends = [e if e is None else words.moved(workspace, score, e) for e in (score.drop_low, score.drop_high)]
    low, high = (None, None) if None in ends else sorted(e for e in ends if e is not None)
    on = f" on {how_many(score.samples, 'sample')}" if score.samples else ""
    told = ". ".join(filter(None, (says, trial.note, f"{words.change(workspace, score, 'against dense')}{on}")))
    return Mark(key, share(workspace, trial.cost, quantity), words.moved(workspace, score, score.drop), low, high, told)


def key_of(one: Trial | PredictedPlan | Search) -> str:
    """A word for a trial, a plan of the front or a search, by which this process tells it from all others."""
    match one:
        case Trial():
            return f"trial {hash(one.candidate):x}"
        case PredictedPlan():
            return f"front {hash(one.plan):x}"
        case Search():
            return f"search {hash(one.question):x}"


def change_of(workspace: Workspace, one: PredictedPlan) -> tuple[float, float, float]:
    """(predicted change, and the ends between which it lies for 9 plans of 10), as on the chart."""
    scale = 100 if words.shares(workspace) else 1
    value, low, high = (scale * (score - one.dense) for score in (one.score.value, one.score.low, one.score.high))
    return value, low, high


def predicted_text(workspace: Workspace, one: PredictedPlan) -> str:
    """What a plan of the front is predicted to do, in words."""
    unit = " points" if words.shares(workspace) else ""
    value, low, high = (f"{round(x, 2) + 0.0:+.2f}".replace("-", "−") for x in change_of(workspace, one))
    return f"predicted {value}{unit} against dense ({low} to {high} for 9 plans of 10), not measured"


def front_marks(workspace: Workspace, front: Sequence[PredictedPlan], quantity: str) -> list[Mark]:
    """The front, the cheapest plan first, each by what it is predicted to change."""
    return [
        Mark(
            key_of(one),
            share(workspace, one.cost, quantity),
            *change_of(workspace, one),
            f"best within this budget: {predicted_text(workspace, one)}",
        )
        for one in front
    ]


def by_verdict(
    workspace: Workspace, search: Search, trials: Iterable[Trial], quantity: str, limit: float | None
) -> dict[str, list[Mark]]:
    """The trials of a search on the chart, by the words of their verdicts; "tried" where there is no limit."""
    found: dict[str, list[Mark]] = {}
    for trial in trials:
        judged = None if trial.score is None else verdict(workspace, search.question, trial.score, limit)
        one = mark(workspace, trial, quantity, key_of(trial), says=judged or "")
        if one is not None:
            found.setdefault(judged or "tried", []).append(one)
    return found


# ---- which search is shown ------------------------------------------------------------------------------------------


def best(searches: Sequence[Search], quantity: Quantity, keeps: Callable[[Trial], bool]) -> int:
    """The place of the latest search that no other one beats; of those without an answer the latest.

    A search beats another one that has no answer, or whose answer misses a goal that its own keeps, or costs no less
    and loses no less. keeps: whether an answer keeps the goals.
    """

    def figures(search: Search) -> tuple[bool, float, float] | None:
        answer = search.answer
        if answer is None or answer.score is None or answer.score.not_finite:
            return None
        return not keeps(answer), float(getattr(answer.cost, quantity)), answer.score.drop

    known = {place: own for place, search in enumerate(searches) if (own := figures(search)) is not None}

    def beaten(place: int) -> bool:
        missed, cost, drop = known[place]
        return any(
            other[0] < missed
            or (other[0] == missed and other != known[place] and other[1] <= cost and other[2] <= drop)
            for other in known.values()
        )

    return max((place for place in known if not beaten(place)), default=len(searches) - 1)


def rows(
    workspace: Workspace, searches: Iterable[Search], limits: Callable[[Question], float | None]
) -> list[dict[str, Any]]:
    """One row per search: what was asked and, where it came to its end, what the answer costs and what it changes.

    limits: the largest drop that the answer of a question is judged by. A score that is only decided is no figure.
    """
    scale = 100 if words.shares(workspace) else 1
    found = []
    for search in searches:
        answer, rule = search.answer, search.question.rule
        score = None if answer is None else answer.score
        row: dict[str, Any] = {"Rule": rule.label, "Asked": question.asked_text(workspace, search.question)}
        if answer is not None and score is not None:
            row |= {"Multiplies": answer.cost.multiplies, "Bytes": answer.cost.bytes}
            row["Score"] = None if stopped_early(workspace, score) else scale * score.value
            row["Change"] = words.moved(workspace, score, score.drop)
            row["95 %"] = words.interval(workspace, score)
            row["Samples"] = score.samples or None
            row["Verdict"] = verdict(workspace, search.question, score, limits(search.question)) or ""
        snapshot = search.snapshot
        row |= {"Trials": len(search.trials), "Seconds": snapshot.seconds}
        found.append(row | {"Ended": "cancelled" if snapshot.cancelled else "failed" if snapshot.error else "answered"})
    return found
