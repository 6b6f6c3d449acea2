"""The front: what every budget costs, from one set of curves; a knapsack for each, and a few plans measured."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import hypot, isfinite
from statistics import fmean
from typing import Any

import msgspec

from lowrank_core.errors import InvalidFile, InvalidSearch
from lowrank_core.layers.data import Dataset
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import Cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.prediction import Point
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import give_way, report
from lowrank_core.scoring.scores import Score
from lowrank_core.selection._curves import USUAL, Held, Table, begun, menus_of, no_plan
from lowrank_core.selection._problem import Problem, Quantity

BUDGETS = 40
"""Of a front: evenly from the dense network down to what can be reached."""

NEAR = 1e-3
"""Share of the least loss that a plan of a front may lose more: far below what tells plans apart, and found at once."""

MEASURED = 5
"""Plans of a front that are measured, evenly among what they are thought to lose."""

FORMAT, VERSION = "lowrank-front", 1


@dataclass(frozen=True, slots=True)
class Predicted:
    """The drop that a plan is thought to have, and between what; None where nothing tells."""

    drop: float | None = None
    drop_low: float | None = None
    drop_high: float | None = None


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """The best plan within one budget. share: of the dense network, which `limit` is in the front's quantity.

    loss: what its layers lose alone, added up. score: where it was measured.
    """

    share: float
    limit: float
    candidate: Candidate
    cost: Cost
    loss: float
    predicted: Predicted
    score: Score | None = None


def front(
    problem: Problem,
    *,
    quantity: Quantity | None = None,
    budgets: int = BUDGETS,
    measure: int = MEASURED,
    samples: int = 64,
    points: tuple[Point, ...] | None = None,
    held: Held | None = None,
    within: float = NEAR,
) -> tuple[FrontPoint, ...]:
    """The best plans within so many budgets, from the smallest that can be reached to the dense network.

    quantity: what is budgeted, without it that of the problem's first budget, else multiplies; other budgets of the
    problem hold at every point, and its own budget of the quantity is one of the points. points: the curves, without
    them measured with the quick correction on so many samples, or found in the problem's folder. held: layers that stay
    as they are in every plan. within: a share of the least loss that a plan may lose more, for less time. The score of
    a plan is predicted from what its layers lose, between the plans that are measured with the problem's correction:
    more budget is never predicted to be worse. Raises InvalidSearch where nothing fits, Cancelled.
    """
    if not problem.methods:
        problem = replace(problem, methods=USUAL)
    quick, asked = problem.quick, dict(problem.budgets)
    of: Quantity = quantity if quantity is not None else next(iter(asked), "multiplies")
    if points is None:
        points = begun(quick, _samples(quick, samples))
    menus, dense = menus_of(quick, points, held), problem.amount(of)
    table = Table.of(quick, menus, (of, *(other for other in asked if other != of)))
    limits = {*(dense * number / budgets for number in range(1, budgets + 1)), min(asked.get(of, dense), dense)}
    best: tuple[int, ...] | None = None
    found: list[tuple[float, tuple[int, ...]]] = []
    ascending = sorted(limits)
    for limit, options in zip(ascending, table.best_of_each(of, ascending, asked, within), strict=True):
        give_way()
        if options is None:
            continue
        if best is None or table.loss(options) <= table.loss(best):  # the solver may be GAP from the best
            best = options
        found.append((limit, best))
    if not found:
        raise InvalidSearch(no_plan(quick, menus, table.quantities))
    plans = {limit: table.plan(options) for limit, options in found}
    losses = {limit: table.loss(options) for limit, options in found}
    scores = _measured(problem, plans, _spread(losses, measure))
    predict = prediction([(losses[limit], score) for limit, score in scores.items()])
    trials = {limit: problem.trial(plan, score=scores.get(limit)) for limit, plan in plans.items()}
    return tuple(
        FrontPoint(limit / dense, limit, t.candidate, t.cost, losses[limit], predict(losses[limit]), t.score)
        for limit, t in trials.items()
    )


def prediction(measured_at: Iterable[tuple[float, Score]]) -> Callable[[float], Predicted]:
    """What drop goes with a loss, by the (loss, score) of a few plans: straight lines from no loss and no drop on.

    Scores that chance has put in the wrong order are taken together (isotonic regression; Ayer et al., Annals of
    Mathematical Statistics 26, 1955), so a larger loss never has a smaller drop. The interval is that of the scores,
    and as much wider as the plans miss the line of their neighbours.
    """
    known = sorted((loss, score.drop, _half(score)) for loss, score in measured_at if isfinite(score.drop))
    if not known:
        return lambda loss: Predicted(0.0, 0.0, 0.0) if loss == 0 else Predicted()
    losses, drops, halves = map(list, zip(*known, strict=True))
    drops = _rising([max(0.0, drop) for drop in drops])
    line, width = [(0.0, 0.0), *zip(losses, drops, strict=True)], [(0.0, 0.0), *zip(losses, halves, strict=True)]
    missed = [abs(line[k][1] - _at([*line[:k], *line[k + 1 :]], line[k][0])) for k in range(1, len(line) - 1)]
    apart = max(missed, default=0.0)

    def predicted(loss: float) -> Predicted:
        drop = _at(line, loss)
        if loss == 0:
            return Predicted(0.0, 0.0, 0.0)
        half = hypot(_at(width, loss), apart * min(1.0, drop / (line[-1][1] or 1.0)))
        return Predicted(drop, drop - half, drop + half)

    return predicted


def _half(score: Score) -> float:
    """Half of the width of a drop's interval; 0 where it has none."""
    return 0.0 if score.drop_low is None or score.drop_high is None else (score.drop_high - score.drop_low) / 2


def _rising(values: list[float]) -> list[float]:
    """The nearest values that never fall: neighbours that do are replaced by their mean.

    >>> _rising([1.0, 3.0, 2.0, 4.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [fmean(block) for block in blocks for _ in block]


def _at(line: Sequence[tuple[float, float]], x: float) -> float:
    """The height of a broken line that begins at no x; beyond its end it goes on as the last piece does."""
    (x0, y0), (x1, y1) = next((pair for pair in pairwise(line) if x <= pair[1][0]), (line[-2], line[-1]))
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1


def _samples(problem: Problem, samples: int) -> Dataset:
    return problem.workspace.calibration.pick(slice(0, samples))


def _spread(losses: dict[float, float], count: int) -> list[float]:
    """Budgets whose plans are measured: the lowest, and others so that losses fall by like factors between them."""
    limits = [limit for limit, loss in losses.items() if loss > 0]
    wanted = [losses[limits[0]] / 4**step for step in range(count)] if limits else []
    return list(dict.fromkeys(min(limits, key=lambda limit: abs(losses[limit] - loss)) for loss in wanted))


def _measured(problem: Problem, plans: dict[float, RankPlan], limits: Sequence[float]) -> dict[float, Score]:
    scores, pace = dict[float, Score](), Pace(len(limits))
    for number, limit in enumerate(limits):
        give_way()
        report(Progress(f"measuring the front, {number + 1} of {len(limits)}", pace(number) if number else None))
        scores[limit] = problem.measure(plans[limit])
    return scores


# ---- as a file ------------------------------------------------------------------------------------------------------


def front_json(points: Sequence[FrontPoint], quantity: str, model_name: str = "") -> str:
    """A front as a file, which `read_front` reads."""
    plan = points[0].candidate.plan
    correction = next((p.candidate.correction for p in points if p.candidate.correction is not None), None)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "model": {"name": model_name, "fingerprint": plan.fingerprint},
        "quantity": quantity,
        "correction": None if correction is None else correction.to_dict(),
        "points": [
            {
                "share": point.share,
                "limit": point.limit,
                **asdict(point.cost),
                "loss": point.loss,
                "predicted": asdict(point.predicted),
                "score": None if point.score is None else msgspec.to_builtins(point.score),
                "layers": _layers(point),
            }
            for point in points
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def front_csv(points: Sequence[FrontPoint]) -> str:
    """A front as a table, one row for each budget; what was not measured is left empty, ranks are JSON."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow((*COLUMNS, "layers"))
    for point in points:
        guess, score = point.predicted, point.score
        measured_drop = (None,) * 3 if score is None else (score.drop, score.drop_low, score.drop_high)
        cost = point.cost
        sizes = (point.share, cost.multiplies, cost.bytes, cost.parameters, point.loss)
        row = (*sizes, guess.drop, guess.drop_low, guess.drop_high, *measured_drop)
        writer.writerow((*("" if x is None else repr(x) for x in row), json.dumps(_layers(point), ensure_ascii=False)))
    return table.getvalue()


COLUMNS = (
    "share",
    "multiplies",
    "bytes",
    "parameters",
    "loss",
    "predicted_drop",
    "predicted_drop_low",
    "predicted_drop_high",
    "drop",
    "drop_low",
    "drop_high",
)
"""Of the table, before the ranks."""


def _layers(point: FrontPoint) -> dict[str, Any]:
    return {name: choice.to_dict() for name, choice in point.candidate.plan.choices}


class _Point(msgspec.Struct):
    share: float
    limit: float
    parameters: int
    bytes: int
    multiplies: int
    additions: int
    loss: float
    predicted: Predicted
    score: Score | None
    layers: dict[str, Choice]


class _Model(msgspec.Struct):
    fingerprint: str
    name: str = ""


class _Front(msgspec.Struct):
    format: str
    version: int
    model: _Model
    quantity: str
    correction: Correction | None
    points: tuple[_Point, ...]


def read_front(text: str | bytes) -> tuple[FrontPoint, ...]:
    """The points of a front's JSON file; raises InvalidFile for what is none."""
    try:
        read = msgspec.json.decode(text, type=_Front)
        if (read.format, read.version) != (FORMAT, VERSION):
            raise ValueError(f"it must be {FORMAT} of version {VERSION}, but got {read.format!r} of {read.version}")
    except ValueError as error:
        raise InvalidFile(f"not a front: {error}; write one with `search --front FILE.json`.") from error
    return tuple(
        FrontPoint(
            point.share,
            point.limit,
            Candidate(plan, read.correction if plan.choices else None),
            Cost(point.parameters, point.bytes, point.multiplies, point.additions),
            point.loss,
            point.predicted,
            point.score,
        )
        for point in read.points
        for plan in [RankPlan.of(read.model.fingerprint, point.layers)]
    )
