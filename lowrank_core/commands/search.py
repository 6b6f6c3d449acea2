"""Ranks by a rule."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lowrank_core.commands import Answer, command
from lowrank_core.commands._log import LOG
from lowrank_core.commands._opening import judged_in, measured, opened, points_of, read_table
from lowrank_core.commands._options import (
    BYTES,
    CACHED,
    CORRECT,
    DASK,
    FREE,
    LATENCY_TABLE,
    LOCK,
    MAX_DROP,
    MODEL,
    MULTIPLIES,
    OUTPUTS,
    WORKERS,
    Amount,
    writing,
)
from lowrank_core.commands._optuna import check_optuna, write_study
from lowrank_core.commands._outputs import write_text
from lowrank_core.commands._terminal import ProgressLine, say, score_line, share_text
from lowrank_core.exports import Compressed
from lowrank_core.exports._provenance import plan_document
from lowrank_core.measure.ledger import score_key
from lowrank_core.plans.cost import plan_cost
from lowrank_core.running.parallel import Workers
from lowrank_core.running.scope import scope
from lowrank_core.selection import RULES, at_once, check_answer, check_wishes, of_all_samples, search_effort
from lowrank_core.selection import front as find_front
from lowrank_core.selection import make as make_rule
from lowrank_core.selection import search as run_search
from lowrank_core.selection._compact import TUNE, compact_note, needs_tuning
from lowrank_core.selection._front import front_csv, front_json
from lowrank_core.selection._problem import QUANTITIES, Problem, Trial, check_methods, problem_of
from lowrank_core.store.kinds import FRONT, PLAN, STUDY


@command
@MODEL
@click.option("--rule", default="budget", show_default=True, help=f"One of {', '.join(RULES)}.")
@writing("--out", required=True, kind=PLAN, help="File to write the plan to; any name, - for standard output.")
@writing(
    "--front", kind=FRONT, help="Also write the best plans within 40 budgets, a few of them measured; .json or .csv."
)
@writing("--optuna", kind=STUDY, help="Also write the trials as a study of Optuna, which optuna-dashboard opens (.db).")
@MULTIPLIES
@BYTES
@click.option("--microseconds", type=Amount(), help="The same of the latency in --latency-table.")
@LATENCY_TABLE
@MAX_DROP
@click.option("--method", "methods", multiple=True, help="Decomposition that may be used (repeatable).")
@LOCK
@click.option("--multiple-of", type=click.IntRange(1), default=1, help="Every rank is a multiple of this.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the rule (repeatable).")
@click.option("--samples", type=click.IntRange(1), default=1000, help="Evaluation samples for a trial; default 1000.")
@OUTPUTS
@CACHED
@WORKERS
@DASK
@CORRECT
@FREE
@LOG
def search(
    model: str,
    rule: str,
    out: Path,
    front: Path | None,
    optuna: Path | None,
    latency_table: Path | None,
    settings: tuple[str, ...],
    outputs: tuple[str, ...],
    cached: bool,
    workers: int,
    dask: str | None,
    **wishes: Any,
) -> Answer:
    """Let a rule choose the ranks, under budgets or within a largest drop, and write a plan.

    A search that is stopped and started again goes on where it was.
    """
    started = time.monotonic()
    if front is not None and front.suffix.lower() not in (".json", ".csv"):
        raise click.UsageError(f"--front writes .json or .csv, but got {front.name!r}.")
    if optuna is not None:
        check_optuna()
    chosen = make_rule(rule, _settings(settings))
    check_wishes(chosen, {name for name in (*QUANTITIES, "max_drop") if wishes[name] is not None})
    check_methods(wishes["methods"])
    if wishes["microseconds"] is not None and latency_table is None:
        raise click.UsageError("--microseconds needs --latency-table, which says how long each layer takes.")
    table = None if latency_table is None else read_table(latency_table)
    workspace = opened(model, with_data=True, cached=cached, outputs=outputs)
    folder, where = points_of(workspace), Workers(workers, dask)
    problem = problem_of(workspace, latency=table, folder=folder, workers=where, **wishes)
    expected = search_effort(chosen, problem)
    if expected.long:
        quick = at_once(chosen, problem)
        instead = "" if quick is None else f" --rule {quick.name} measures nothing and answers at once."
        say(f"This takes at most {expected.text} here.{instead}")
    if note := compact_note(problem):
        say(f"Note: {note}")
    trials = []
    with scope(report=ProgressLine()):
        for trial in run_search(chosen, problem):
            trials.append(trial)
            note = f"{trial.note}; " if trial.note else ""
            scored = f"; {score_line(trial.score, alone=False)}" if trial.score else ""
            say(f"trial {len(trials)}: {note}{share_text(workspace, trial.cost)}{scored}")
    answer = trials[-1].candidate
    score = problem.ledger.remembered(
        score_key(answer, None),
        lambda: (
            of_all_samples(problem, trials[-1])
            or measured(workspace, workspace.compress(answer.plan, answer.correction))
        ),
    )
    check_answer(score)
    correction = None if answer.correction is None else answer.correction.to_dict()
    compressed = Compressed(workspace.model, answer.plan, score, correction)
    question = {
        "rule": rule,
        **asdict(chosen),  # type: ignore[call-overload]
        "budgets": dict(problem.budgets),
        "max_drop": problem.max_drop,
        "locked": sorted(problem.locked),
        "multiple_of": problem.multiple_of,
        **({"free_ranks": True} if problem.free else {}),
    }
    written = plan_document(workspace, compressed, search=question)
    write_text(out, written)
    if front is not None:
        _write_front(problem, front, workspace.name)
    if optuna is not None:
        say(f"{optuna}: {write_study(problem, rule, trials, score, optuna)} trials.")
    compressed_cost, dense = plan_cost(workspace.profile, answer.plan), plan_cost(workspace.profile)
    document = {
        "plan": json.loads(written),
        "path": str(out),
        "dense": asdict(dense),
        "compressed": asdict(compressed_cost),
        "score": score,
        "judged": judged_in(workspace),
        "note": trials[-1].note,
        "expected": asdict(expected),
        "needs_tuning": needs_tuning(score),
        "trials": [{"note": _note(t), **asdict(t.cost), "score": t.score} for t in trials],
        "seconds": time.monotonic() - started,
    }
    note = f"\n{trials[-1].note[:1].upper()}{trials[-1].note[1:]}." if trials[-1].note else ""
    text = (
        f"{out}: {len(answer.plan.choices)} of {len(workspace.profile.layers)} layers compressed, "
        f"{share_text(workspace, compressed_cost)}.{note}\n{score_line(score, alone=False)}"
    )
    if needs_tuning(score):
        text += f"\n{TUNE} `python -m lowrank_core finetune --help` says how."
    return document, text


def _write_front(problem: Problem, path: Path, name: str) -> None:
    """Find and write the front over the first quantity that was asked for."""
    with scope(report=ProgressLine()):
        points = find_front(problem)
    quantity = next(iter(dict(problem.budgets)), "multiplies")
    write_text(path, front_csv(points) if path.suffix.lower() == ".csv" else front_json(points, quantity, name))
    say(f"{path}: {len(points)} plans, {sum(point.score is not None for point in points)} of them measured.")


def _note(trial: Trial) -> str:
    """What is said of a trial; of one whose score is null why that is."""
    broken = score_line(trial.score, alone=False) if trial.score and trial.score.not_finite else ""
    return "; ".join(filter(None, (trial.note, broken)))


def _settings(pairs: tuple[str, ...]) -> dict[str, str]:
    given = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes KEY=VALUE, but got {pair!r}.")
        given[key] = value
    return given
