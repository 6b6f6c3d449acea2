"""What a search is asked, as a value, and what came of it: nothing here knows a session or a screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lowrank_core.errors import InvalidFile
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.plans.cost import plan_cost
from lowrank_core.running.jobs import Snapshot
from lowrank_core.selection import Rule, at_once, search, search_effort
from lowrank_core.selection._compact import compact_note
from lowrank_core.selection._problem import Problem, Quantity, Trial, problem_of
from lowrank_core.workspace import Workspace
from pages.ui import words


@dataclass(frozen=True, slots=True)
class Question:
    """A rule and what it is asked for; budgets are shares of the dense network, latency is the text of a table."""

    rule: Rule
    budgets: tuple[tuple[Quantity, float], ...] = ()
    max_drop: float | None = None
    methods: tuple[str, ...] = ()
    locked: tuple[str, ...] = ()
    multiple_of: int = 1
    corrected: bool = True
    samples: int = 1000
    latency: str = ""


@dataclass(frozen=True, slots=True)
class Search:
    """A question and what is known of its answer."""

    question: Question
    snapshot: Snapshot[Trial]

    @property
    def answer(self) -> Trial | None:
        """The last trial of a search that came to its end."""
        snapshot = self.snapshot
        return snapshot.found[-1] if snapshot.over and not (snapshot.error or snapshot.cancelled) else None

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The plans that were looked at, each once as it was seen last, in the order they came."""
        return tuple({trial.candidate: trial for trial in self.snapshot.found}.values())


def ask(workspace: Workspace, question: Question, folder: Path) -> Iterator[Trial]:
    """The trials of a search. Raises what `search` raises."""
    yield from search(question.rule, problem(workspace, question, folder))


def before_it_starts(workspace: Workspace, question: Question, folder: Path) -> tuple[str, ...]:
    """What a person should know of a search: what it takes at most, which rule answers at once, what will be needed.

    Raises what `search` raises for a question that has no answer.
    """
    asked = problem(workspace, question, folder)
    effort, quick = search_effort(question.rule, asked), at_once(question.rule, asked)
    takes = f"At most {effort.text} on this machine."
    if effort.long and quick is not None:
        takes += f" The rule {quick.label} answers the same at once: it measures nothing on the way."
    return tuple(filter(None, (takes, compact_note(asked))))


def problem(workspace: Workspace, question: Question, folder: Path) -> Problem:
    """The question as rules take it. Raises InvalidSearch, InvalidFile."""
    budgets: dict[str, Any] = dict(question.budgets)
    return problem_of(
        workspace,
        **budgets,
        max_drop=question.max_drop,
        lock=question.locked,
        methods=question.methods,
        multiple_of=question.multiple_of,
        corrected=question.corrected,
        samples=question.samples,
        latency=latency_table(question.latency),
        folder=folder,
    )


def latency_table(text: str, workspace: Workspace | None = None) -> LatencyTable:
    """The table in a text, empty for none; raises InvalidFile, also where it is of another network or has no layer."""
    table = LatencyTable.from_csv(text) if text else LatencyTable()
    if workspace is not None:
        table.check(workspace.profile.fingerprint)
    if text and workspace is not None and not table.layers & {layer.name for layer in workspace.profile.layers}:
        raise InvalidFile("the latency table holds no dense time of any layer of this network; check the layer names.")
    return table


def title(workspace: Workspace, question: Question) -> str:
    """Rule and what it is asked, in one line."""
    return f"{question.rule.label}: {asked_text(workspace, question)}"


def asked_text(workspace: Workspace, question: Question) -> str:
    """What is asked of the rule, in a few words; only what differs from the usual."""
    parts = [f"{words.share(share)} {quantity}" for quantity, share in question.budgets]
    if question.max_drop is not None:
        parts.append(f"{words.loss(workspace)} up to {words.drop(workspace, question.max_drop)}")
    parts += [
        f"{f.name} {getattr(question.rule, f.name)}"
        for f in fields(question.rule)  # type: ignore[arg-type]
        if getattr(question.rule, f.name) != f.default
    ]
    parts += [", ".join(question.methods)] if question.methods else []
    parts += [f"{len(question.locked)} locked"] if question.locked else []
    parts += [f"multiples of {question.multiple_of}"] if question.multiple_of > 1 else []
    parts += [] if question.corrected else ["uncorrected"]
    return ", ".join(parts) or "its own settings"


def comparison(workspace: Workspace, searches: Iterable[Search]) -> list[dict[str, Any]]:
    """Every answered search as a row of plain values, its plan included; shares and scores are fractions of 1."""
    dense = plan_cost(workspace.profile)
    rows = []
    for finished in searches:
        if (answer := finished.answer) is None or (score := answer.score) is None:
            continue
        cost, choices = answer.cost, answer.candidate.plan.choices
        rows.append(
            {
                "rule": finished.question.rule.name,
                "asked": asked_text(workspace, finished.question),
                "multiplies": cost.multiplies,
                "multiplies_share": cost.multiplies / (dense.multiplies or 1),
                "bytes": cost.bytes,
                "bytes_share": cost.bytes / (dense.bytes or 1),
                "parameters": cost.parameters,
                "metric": score.metric,
                "score": score.value,
                "dense_score": score.dense,
                "drop": score.drop,
                "drop_low": score.drop_low,
                "drop_high": score.drop_high,
                "samples": score.samples,
                "max_drop": finished.question.max_drop,
                "within": score.within,
                "corrected": finished.question.corrected,
                "trials": len(finished.trials),
                "seconds": round(finished.snapshot.seconds, 2),
                "plan": "; ".join(
                    f"{name}={c.method}:{'x'.join(map(str, c.rank))}{':free' * c.free}" for name, c in choices
                ),
            }
        )
    return rows
