"""Training the factors of a plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

import click

from lowrank_core.commands import Answer, command
from lowrank_core.commands._log import LOG
from lowrank_core.commands._opening import compressed_by, judged_in, opened, plan_of, points_of
from lowrank_core.commands._options import (
    BYTES,
    CACHED,
    CORRECT,
    LOCK,
    MAX_DROP,
    MODEL,
    MULTIPLIES,
    OUTPUTS,
    existing,
    writing,
)
from lowrank_core.commands._outputs import States
from lowrank_core.commands._terminal import ProgressLine, say, say_step, score_line, score_value, share_text
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.figures import count
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.running.scope import scope
from lowrank_core.selection import Rule, check_wishes
from lowrank_core.selection import make as make_rule
from lowrank_core.selection import search as run_search
from lowrank_core.selection._problem import Problem, problem_of
from lowrank_core.store.kinds import EXPORTED, STATE
from lowrank_core.training.expected import training_effort
from lowrank_core.training.finetune import Epoch, not_mixed
from lowrank_core.training.finetune import provenance as tuning_of
from lowrank_core.training.recipe import Loss, Settings
from lowrank_core.training.sweep import RunEpoch, compressed_score, runs, summary, tidy
from lowrank_core.workspace import Workspace


def setting(name: str, *names: str) -> Callable[..., Any]:
    """An option for a field of the training settings, with its default, bounds and help."""
    (item,) = (item for item in fields(Settings) if item.name == name)
    about, default = item.metadata, item.default
    if default is False:
        return click.option(*names, name, is_flag=True, help=about["help"])
    if default is True:
        (word,) = names
        return click.option(f"{word}/--no-{word[2:]}", name, default=True, show_default=True, help=about["help"])
    if default == ():
        return click.option(
            *names, name, type=click.IntRange(about["min"], about["max"]), multiple=True, help=about["help"]
        )
    if "choices" in about:
        kind: click.ParamType[Any] = click.Choice(list(about["choices"]))
    else:
        kind = (click.IntRange if isinstance(default, int) else click.FloatRange)(about["min"], about["max"])
    return click.option(*names, name, type=kind, default=default, show_default=default is not None, help=about["help"])


@command
@MODEL
@existing("--plan", help="Rank plan, a JSON file; or ask a rule for one with the options below.")
@writing("--out", required=True, kind=EXPORTED["safetensors"], help="File to write; any name.")
@click.option("--rule", help="Rule that finds the ranks first: bisection for --max-drop, budget for the others.")
@MAX_DROP
@MULTIPLIES
@BYTES
@LOCK
@setting("epochs", "--epochs")
@setting("run_on", "--run-on")
@setting("learning_rate", "--learning-rate")
@click.option(
    "--distill/--no-distill", default=True, help="Learn from the dense network (default), or from the labels alone."
)
@click.option("--loss", type=click.Choice(["distill", "labels", "both"]), help="The same, or both.")
@setting("mix", "--mix")
@setting("train", "--train")
@setting("from_scratch", "--from-scratch")
@setting("augment", "--augment")
@setting("optimizer", "--optimizer")
@setting("batch", "--batch")
@setting("patience", "--patience")
@setting("seed", "--seed")
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=1, help="Runs, each with the next seed; the best is kept."
)
@click.option("--watch", type=click.IntRange(0), default=0, help="Evaluation samples scored after each epoch.")
@click.option(
    "--state",
    type=States(STATE),
    help="File to go on from after a kill, to which each seed is added; default: in the cache.",
)
@OUTPUTS
@CACHED
@CORRECT
@LOG
def finetune(
    model: str,
    plan: Path | None,
    out: Path,
    rule: str | None,
    max_drop: str | None,
    multiplies: float | None,
    bytes: float | None,
    lock: tuple[str, ...],
    distill: bool,
    loss: Loss | None,
    seeds: int,
    watch: int,
    state: Path | None,
    outputs: tuple[str, ...],
    cached: bool,
    corrected: bool,
    **options: Any,
) -> Answer:
    """Train the factors of a plan on train_data(), and write a checkpoint (safetensors).

    Without --plan the ranks are found first, by a rule, within --max-drop, which they may cost before training, or a
    budget: the whole way in one command.
    Learns the dense network's answers to mixtures of samples, without labels, unless told otherwise. The weights that
    do best on a tenth of the training samples, held back, are kept; the start is one of the candidates. The same
    command with --run-on goes on from where it stopped.
    """
    if not distill and loss not in (None, "labels"):
        raise click.UsageError(f"--no-distill learns from the labels alone; leave it out, or --loss {loss}.")
    settings = Settings(loss=loss or ("distill" if distill else "labels"), **options)
    asked: dict[str, Any] = {"max_drop": max_drop, "multiplies": multiplies, "bytes": bytes}
    wishes = {name: wish for name, wish in asked.items() if wish is not None}
    if (plan is None) != bool(wishes):
        raise click.UsageError("give --plan, or what to search ranks for: --max-drop, --multiplies or --bytes.")
    finder = make_rule(rule or ("bisection" if "max_drop" in wishes else "budget"), {})
    if plan is None:
        check_wishes(finder, wishes)
    workspace = opened(model, with_data=True, cached=cached, outputs=outputs, plan=plan)
    before = None
    if plan is None:
        problem = problem_of(workspace, lock=lock, folder=points_of(workspace), corrected=corrected, **wishes)
        candidate = _found(workspace, finder, problem)
        if settings.from_scratch:
            candidate = Candidate(candidate.plan)
        else:
            before = compressed_score(workspace, candidate)
    elif settings.from_scratch:
        candidate = Candidate(plan_of(workspace, plan).plan)
    else:
        made = compressed_by(workspace, plan, None, corrected=corrected)
        correction = None if made.correction is None else Correction.from_dict(made.correction)
        candidate = Candidate(made.plan, correction)
        before = compressed_score(workspace, candidate)
    workspace.dense_score()  # a metric that has no value is refused before hours of training
    step, last, folder = None, -5.0, None if workspace.cache is None else workspace.cache.tuning
    if folder is not None:
        tidy(folder)
    expected = training_effort(workspace, settings, seeds)
    if expected.long:
        say(f"Training takes {expected.text} here at most; it can be stopped, and goes on where it was.")
    if as_they_are := not_mixed(workspace, settings):
        say(as_they_are)
    every = range(settings.seed, settings.seed + seeds)
    for step in runs(workspace, candidate, settings, every, state=state, folder=folder, watch=watch):
        if step.epoch.notice:
            say(step.epoch.notice)
        if step.epoch.model is not None or time.monotonic() - last > 1:
            last = time.monotonic()
            say(_epoch_line(workspace, step))
    assert step is not None
    of_seeds = summary(step.finished)
    chosen = step.finished[of_seeds.chosen]
    used, end = replace(settings, seed=chosen.seed), chosen.epochs[-1]
    if end.best == 0 and not settings.from_scratch:
        say("Note: no epoch was better than the start, whose weights are kept; try a smaller learning rate.")
    compressed = Compressed(
        workspace.stored(chosen.model, candidate.plan),
        candidate.plan,
        chosen.score,
        None if candidate.correction is None else candidate.correction.to_dict(),
        tuning_of(workspace, used, candidate.plan, end),
    )
    with scope(report=say_step):
        written = EXPORTS["safetensors"].write(workspace, compressed, out)
    document = {
        **written.told,
        "epochs": [_epoch_document(epoch) for epoch in chosen.epochs],
        "mixed": used.mix and not as_they_are,
        "before": before,
        "judged": judged_in(workspace),
        "runs": [
            {"seed": run.seed, "epochs": run.epochs[-1].number, "best_epoch": run.epochs[-1].best, "score": run.score}
            for run in step.finished
        ],
        "summary": of_seeds,
        "correction": compressed.correction,
        "tuned": compressed.tuned,
    }
    text = [f"{written.path}: {count(written.bytes, 'B')}, weights of epoch {end.best} of {end.number}."]
    if before is not None:
        text.append(f"Before: {score_line(before, alone=False)}")
    text.append(f"After: {score_line(chosen.score, alone=False)}")
    text.append(f"Each pass won, on samples held back: {', '.join(_won(workspace, e) for e in chosen.epochs[1:])}.")
    if of_seeds.spread is not None:
        mean, spread, best = (
            score_value(chosen.score, value) for value in (of_seeds.mean, of_seeds.spread, of_seeds.best)
        )
        text.append(f"{seeds} runs: mean {mean}, standard deviation {spread}, best {best}; seed {chosen.seed} is kept.")
    return document, "\n".join(text)


def _found(workspace: Workspace, rule: Rule, problem: Problem) -> Candidate:
    """The plan that a rule answers with, as a candidate, and a line about it."""
    with scope(report=ProgressLine()):
        *_, last = run_search(rule, problem)
    note = f": {last.note}" if last.note else ""
    say(f"{rule.name} found ranks for {share_text(workspace, last.cost)}{note}")
    return last.candidate


def _won(workspace: Workspace, epoch: Epoch) -> str:
    """What a pass won on the samples held back, in the metric's own unit, with its sign."""
    won = epoch.won or 0.0
    return f"{100 * won:+.2f} points" if workspace.metric.share else f"{won:+.3g}"


def _epoch_line(workspace: Workspace, step: RunEpoch) -> str:
    epoch = step.epoch
    learnt = "start" if epoch.train_loss is None else f"loss {epoch.train_loss:.4g}"
    score = f"score {epoch.validation:.4g}" if isfinite(epoch.validation) else "no score, of which these have none"
    score += "" if epoch.won is None or not isfinite(epoch.validation) else f" ({_won(workspace, epoch)})"
    left = "done" if epoch.model is not None else f"{epoch.seconds_left:.0f} s left"
    return (
        f"seed {step.seed}, epoch {epoch.number} of {epoch.epochs}: {learnt}, on samples held back "
        f"loss {epoch.validation_loss:.4g} and {score}, best epoch {epoch.best}, {left}"
    )


def _epoch_document(epoch: Epoch) -> dict[str, Any]:
    names = ("number", "train_loss", "validation", "won", "validation_loss", "best", "seconds", "score")
    return {name: getattr(epoch, name) for name in names}
