"""What a network must keep to: `--require "drop<=1%"`, judged one by one, each with how far it is off."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf, isclose, isfinite
from typing import Any, Literal

import click
from torch import nn

from lowrank_core.commands._terminal import SHARES
from lowrank_core.errors import InvalidFile, InvalidSettings, cut, few
from lowrank_core.figures import GIB, KIB, MIB, count, drop_text, how_many, kib, score_text, share
from lowrank_core.graphs.memory import peak, trace
from lowrank_core.measure.formats import AS_IT_IS, FORMATS, dense_flash_bytes, plan_flash_bytes
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.scoring.scores import Score
from lowrank_core.selection._problem import largest_drop
from lowrank_core.workspace import Workspace

Verdict = Literal["holds", "broken", "undecided"]
"""Of a drop or a score "undecided" is what its 95 % interval leaves open; only "holds" passes."""

BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": KIB, "MiB": MIB, "GiB": GIB}
COUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
UNITS: dict[str, dict[str, float]] = {
    "drop": {"": 1, "%": 0.01, "points": 0.01},
    "score": {"": 1, "%": 0.01},
    "bytes": {"": 1, **BYTES, "%": 0},
    "multiplies": {**COUNTS, "%": 0},
    "parameters": {**COUNTS, "%": 0},
    "flash": {"": 1, **BYTES, "%": 0},
    "RAM": {"": 1, **BYTES, "%": 0},
    "microseconds": {"": 1, "us": 1, "ms": 1000, "%": 0},
}
"""What can be required, and in which units: 0 is a share of the dense network's."""

OTHER_NAMES = {
    "accuracy": "score",
    "macs": "multiplies",
    "latency": "microseconds",
    "us": "microseconds",
    "peak ram": "RAM",
}
STORED = ("flash", "RAM")
"""Quantities that are counted in a number format: "flash int8"."""

_REQUIREMENT = re.compile(
    r"\s*(?P<name>[A-Za-z][A-Za-z \-]*?)(?:\s+(?P<number>float32|float16|int8))?\s*(?P<sign><=|>=|≤|≥)\s*"
    r"(?P<limit>[-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(?P<unit>%|[A-Za-z]*)\s*"
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One bound. text: as it was given; number: the format that flash and RAM are counted in; upper: "at most".

    limit: as a share of the dense network's where `of_dense`, else in the quantity's own unit.
    """

    text: str
    quantity: str
    limit: float
    upper: bool
    number: str = AS_IT_IS
    of_dense: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """A requirement beside what is there. low, high: the 95 % interval where there is one; says: all of it in words."""

    require: str
    quantity: str
    number: str | None
    limit: float
    value: float
    low: float | None
    high: float | None
    over: float
    verdict: Verdict
    says: str


def read_requirement(text: str) -> Requirement:
    """A requirement as people state it; raises InvalidSettings in one line for one that says nothing that is known.

    >>> read_requirement("drop <= 1%").limit, read_requirement("flash int8<=64KiB").limit
    (0.01, 65536.0)
    >>> read_requirement("flash<=64kib").limit, read_requirement("multiplies<=2K").limit
    (65536.0, 2000.0)
    >>> read_requirement("multiplies<=50%").of_dense
    True
    """
    found = _REQUIREMENT.fullmatch(text)
    if found is None:
        raise InvalidSettings(
            f"--require takes a quantity, <= or >=, and a number, as drop<=1% or 'flash int8<=64KiB', but got "
            f"{cut(text)!r}."
        )
    named = " ".join(found["name"].split())
    quantity = next((known for known in UNITS if known.lower() == named.lower()), OTHER_NAMES.get(named.lower()))
    if quantity is None:
        raise InvalidSettings(f"--require knows {', '.join(UNITS)}, but got {cut(named)!r} in {cut(text)!r}.")
    if found["number"] and quantity not in STORED:
        raise InvalidSettings(
            f"--require {cut(text)!r}: {quantity} is not counted in a number format; leave {found['number']} out."
        )
    scales = {unit.lower(): scale for unit, scale in UNITS[quantity].items()}
    if found["unit"].lower() not in scales:
        known = ", ".join(filter(None, UNITS[quantity]))
        raise InvalidSettings(f"--require {cut(text)!r}: {quantity} is in {known}, but got {found['unit']!r}.")
    upper = found["sign"] in ("<=", "≤")
    if not upper and quantity != "score":
        raise InvalidSettings(f"--require {cut(text)!r}: {quantity} has a largest value; write {named}<=...")
    try:
        limit = float(found["limit"])
    except ValueError as error:
        raise InvalidSettings(f"--require {cut(text)!r}: {cut(found['limit'])!r} is no number.") from error
    if not isfinite(limit) or (limit < 0 and quantity != "score"):
        raise InvalidSettings(f"--require {cut(text)!r}: the limit must be finite and 0 or more.")
    scale = scales[found["unit"].lower()]
    if scale == 0:
        return Requirement(text, quantity, limit / 100, upper, found["number"] or AS_IT_IS, of_dense=True)
    return Requirement(text, quantity, limit * scale, upper, found["number"] or AS_IT_IS)


class Required(click.ParamType[Requirement]):
    """A requirement, read before anything is opened."""

    name = "requirement"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Requirement:
        """The requirement; wrong usage where it says nothing that is known."""
        try:
            return value if isinstance(value, Requirement) else read_requirement(str(value))
        except InvalidSettings as error:
            raise click.UsageError(str(error), ctx) from error


def check_requirements(
    workspace: Workspace, required: Sequence[Requirement], plan: RankPlan | None, table: LatencyTable | None
) -> None:
    """Raise a LowRankError for one that cannot be judged of this network, before it is measured.

    plan: None where only a checkpoint will say it.
    """
    if table is not None:
        table.check(workspace.profile.fingerprint)
    is_share = workspace.opened.evaluate is None and workspace.metric.share
    for one in required:
        if one.quantity == "drop" and one.text.rstrip().endswith(("%", "points")):
            largest_drop(workspace, f"{100 * one.limit:g}%")
        elif one.quantity == "drop":
            largest_drop(workspace, one.limit)
        elif one.quantity == "score":
            own = workspace.opened.evaluate is not None
            if one.text.strip().lower().startswith("accuracy") and (own or "accuracy" not in workspace.metric.name):
                scored = "the model file scores itself" if own else f"this network is scored by {workspace.metric.name}"
                raise InvalidSettings(f"--require {cut(one.text)!r}: {scored}; write score instead of accuracy.")
            rises = not (workspace.opened.higher_is_better if own else workspace.metric.higher_is_better)
            if one.upper != rises:
                raise InvalidSettings(
                    f"--require {cut(one.text)!r}: {'smaller' if rises else 'larger'} is better of this score; write "
                    f"{'score<=' if rises else 'score>='}..."
                )
            if is_share and one.limit > 1:
                raise InvalidSettings(
                    f"--require {cut(one.text)!r}: {workspace.metric.name} is a share from 0 to 1; write "
                    f"{one.limit / 100:g} or {one.limit:g}%."
                )
            if not is_share and one.text.rstrip().endswith("%"):
                raise InvalidSettings(
                    f"--require {cut(one.text)!r}: this score is no share of the samples; write it in its own unit."
                )
        elif one.quantity == "microseconds":
            if table is None:
                raise InvalidSettings(
                    f"--require {cut(one.text)!r} needs --latency-table, a CSV that `latency` writes."
                )
            if plan is not None:
                _microseconds(workspace, plan, table)


def judge_all(
    workspace: Workspace,
    required: Sequence[Requirement],
    model: nn.Module,
    plan: RankPlan,
    score: Score,
    table: LatencyTable | None,
) -> list[Judged]:
    """Each requirement beside what the network takes and was measured at. model: the compressed network of the plan."""
    judged = []
    for one in required:
        if one.quantity == "drop":
            judged.append(_of_score(one, score, score.drop, (score.drop_low, score.drop_high), drop_text))
        elif one.quantity == "score":
            judged.append(_of_score(one, score, score.value, (score.low, score.high), score_text))
        else:
            now, dense = _taken(workspace, one, model, plan, table)
            judged.append(_of_cost(one, now, dense))
    return judged


def document_of(judged: Sequence[Judged]) -> dict[str, Any]:
    """What JSON says of requirements. broken: the lines that make the exit status 3."""
    return {
        "requirements": [asdict(one) for one in judged],
        "broken": [one.says for one in judged if one.verdict != "holds"],
    }


def _of_score(
    one: Requirement,
    score: Score,
    value: float,
    interval: tuple[float | None, float | None],
    text: Callable[..., str],
) -> Judged:
    """By its interval; where a model file scores itself there is none, and the value alone is judged."""
    percent = score.metric in SHARES and score.samples > 0

    def told(figure: float) -> str:
        return text(figure, percent=percent)

    low, high = interval
    verdict: Verdict
    limit = f"{'at most' if one.upper else 'at least'} {told(one.limit)}"
    sign = 1 if one.upper else -1
    over = inf if score.not_finite else _over(sign * value, sign * one.limit)
    if score.not_finite:
        low, high, verdict, why = None, None, "broken", f"answers are not finite on {score.not_finite:,} samples"
    elif low is None or high is None:
        verdict = "undecided" if score.samples else "holds" if over == 0 else "broken"
        why = f"{told(value)} without an interval" if score.samples == 0 else f"{told(value)}, too few samples"
    else:
        best, worst = (low, high) if one.upper else (high, low)
        shown = _over(sign * worst, sign * one.limit) == 0
        refuted = _over(sign * best, sign * one.limit) > 0
        verdict = "holds" if shown else "broken" if refuted else "undecided"
        why = f"{told(value)} (95 % interval {told(low)} to {told(high)}, {how_many(score.samples, 'sample')})"
    beyond = f", {drop_text(over, percent=percent)} beyond" if verdict == "broken" and isfinite(over) else ""
    if verdict == "undecided" and low is not None and high is not None:
        end = sign * ((high if one.upper else low) - one.limit)
        beyond = f", whose worse end is {drop_text(end, percent=percent)} beyond"
    says = f"{one.text.strip()}: {verdict}; {one.quantity} {why}, {limit} required{beyond}"
    return Judged(one.text, one.quantity, None, one.limit, value, low, high, over, verdict, says)


def _over(value: float, limit: float) -> float:
    """By how much a value is above a limit; 0 where only rounding sets them apart.

    >>> _over(2850.0, 0.57 * 5000), _over(0.95 - 0.94, 0.01), _over(3.0, 2.0)
    (0.0, 0.0, 1.0)
    """
    return 0.0 if isclose(value, limit, rel_tol=1e-9, abs_tol=1e-12) else max(0.0, value - limit)


def _of_cost(one: Requirement, now: float, dense: float) -> Judged:
    limit = one.limit * dense if one.of_dense else one.limit
    over = _over(now, limit)
    verdict: Verdict = "holds" if over == 0 else "broken"

    def told(value: float) -> str:
        if one.quantity == "microseconds":
            return f"{value:.4g} us"
        if one.quantity in ("multiplies", "parameters"):
            return f"{value:,.0f}" if value < 10_000 else count(value)
        if not one.text.rstrip().endswith("iB"):
            return f"{value:,.0f} B" if value < 10_000 else count(value, "B")
        return kib(value)

    number = one.number if one.quantity in STORED else None
    how = f" {number}" if number not in (None, AS_IT_IS) else ""
    of = f", {share(one.limit)} of dense" if one.of_dense else ""
    beyond = f", {told(over)} over" if over else ""
    says = f"{one.text.strip()}: {verdict}; {one.quantity}{how} {told(now)}, at most {told(limit)}{of} required{beyond}"
    return Judged(one.text, one.quantity, number, limit, now, None, None, over, verdict, says)


def _taken(
    workspace: Workspace, one: Requirement, model: nn.Module, plan: RankPlan, table: LatencyTable | None
) -> tuple[float, float]:
    """What the compressed and the dense network take."""
    profile = workspace.profile
    if one.quantity == "flash":
        flash = plan_flash_bytes(workspace.model, profile, plan, one.number)
        return flash, dense_flash_bytes(workspace.model, one.number)
    if one.quantity == "RAM":
        size, inputs = FORMATS[one.number], workspace.opened.example_inputs
        most = peak(trace(model, inputs), itemsize=size).bytes
        return most, peak(trace(workspace.model, inputs), itemsize=size).bytes if one.of_dense else most
    if one.quantity == "microseconds":
        assert table is not None
        return _microseconds(workspace, plan, table), _microseconds(workspace, RankPlan(plan.fingerprint), table)
    now, dense = plan_cost(profile, plan), plan_cost(profile)
    return float(getattr(now, one.quantity)), float(getattr(dense, one.quantity))


def _microseconds(workspace: Workspace, plan: RankPlan, table: LatencyTable) -> float:
    """Of all layers under a plan, added up; raises InvalidFile where the table does not know one of them."""
    taken = {layer.name: table(layer.name, plan.get(layer.name)) for layer in workspace.profile.layers}
    unknown = [name for name, microseconds in taken.items() if microseconds is None]
    if unknown:
        raise InvalidFile(
            f"the latency table has no time of {few(unknown, repr)} as the plan has it; time it with `latency --table`."
        )
    return sum(filter(None, taken.values()))
