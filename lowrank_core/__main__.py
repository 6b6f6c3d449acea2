"""The command line: `python -m lowrank_core COMMAND`. The only part of the core that prints."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
import platformdirs
from torch import Tensor, nn

from lowrank_core.cache import Cache
from lowrank_core.candidate import Candidate
from lowrank_core.check import SAMPLES
from lowrank_core.check import check as look_over
from lowrank_core.checkpoint import load_checkpoint
from lowrank_core.correct import Correction, load_overlay
from lowrank_core.cost import Cost, break_even, check_plan, dense_cost, layer_cost, plan_cost
from lowrank_core.discover import Layer, Skipped
from lowrank_core.doing import Doing
from lowrank_core.errors import InvalidPlan, LowRankError, UnknownModel
from lowrank_core.evaluate import Score, final_score
from lowrank_core.exports import EXPORTS, Compressed, plain, plan_document, whole_or_nothing
from lowrank_core.finetune import Epoch
from lowrank_core.finetune import told as tuning_of
from lowrank_core.interrupt import as_usual
from lowrank_core.inventory import METHOD, Inventory, measure_speed, remaining
from lowrank_core.latency import (
    RUNTIMES,
    LatencyTable,
    Runtime,
    Timing,
    cpu_name,
    network_latency,
    runtime_version,
    timed,
)
from lowrank_core.ledger import score_key
from lowrank_core.methods import METHODS
from lowrank_core.metrics import METRICS
from lowrank_core.parallel import Workers
from lowrank_core.plan import LARGEST_BYTES, Choice, PlanFile, RankPlan, read_plan
from lowrank_core.selection import RULES, Problem, problem_of
from lowrank_core.selection import make as make_rule
from lowrank_core.selection import search as run_search
from lowrank_core.sensitivity import asked
from lowrank_core.sensitivity import profile as sensitivity_profile
from lowrank_core.spectra import effective_rank, rank_for_energy, stable_rank
from lowrank_core.staircase import as_table, layer_latency, setting_of, staircases
from lowrank_core.storage import Storage
from lowrank_core.sweep import Progress, compressed_score, runs, summary, tidy
from lowrank_core.training import Loss, Settings
from lowrank_core.workspace import Workspace, open_to_look

Answer = tuple[dict[str, Any], str]
"""What a command found: a JSON object, and the same for people to read."""

SHARES = {metric.name for metric in METRICS.values() if metric.share}
"""Metrics that are read in percent."""

COUNTED = (
    "Multiplies and additions are for one sample. Multiplies: all matrix products and convolutions; "
    "additions: of the layers listed, with their biases."
)
CACHE = platformdirs.user_cache_path("rank-explorer")
"""Where factors, measured points and scores are kept, the app's among them."""

DTYPE_NAMES = sorted({dtype for export in EXPORTS.values() for dtype in export.dtypes})
FORMATS = [name for name in EXPORTS if name != "plan"]  # a plan is what these commands start from


class Refused(click.ClickException):
    """An input that exists but is bad, in one line: exit status 1."""

    def __init__(self, error: object) -> None:
        super().__init__(" ".join(str(error).split()))


class NotThere(Refused):
    """A model that nothing goes by: wrong usage."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Look at a network, compress it by a rank plan, measure and export it.

    MODEL is builtin:NAME, path/to/model.py, package.module, a program of torch.export (.pt2; like a Python file it may
    run code), or a folder written by save_pretrained (with transformers installed; offline, none of its code is run).
    layers and spectra also take weights alone: .safetensors, an index or a folder of shards, a state_dict (.pt, .pth).
    Exit status: 0 done, 1 refused, 2 wrong usage.
    """


def command(function: Callable[..., Answer]) -> click.Command:
    """A command with --json; whatever a person's own code prints goes to stderr."""

    @cli.command(function.__name__)
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
    @functools.wraps(function)
    def run(as_json: bool, **options: Any) -> None:
        try:
            with redirect_stdout(sys.stderr):
                document, text = function(**options)
        except UnknownModel as error:
            raise NotThere(error) from error
        except (LowRankError, OSError) as error:
            raise Refused(error) from error
        if as_json:
            text = json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False)
        click.echo(text)
        if document.get("refused"):
            raise Refused("; ".join(document["refused"]))

    return run


def existing(*names: str, **options: Any) -> Callable[..., Any]:
    """An option that names a file which must be there."""
    return click.option(*names, type=click.Path(exists=True, dir_okay=False, path_type=Path), **options)


MODEL = click.argument("model")
PLAN = existing("--plan", required=True, help="Rank plan, a JSON file.")
CORRECT = click.option(
    "--correct/--no-correct", "corrected", default=True, help="Teach the factors the dense answers first; default on."
)
COMPARE = click.option("--compare", is_flag=True, help="Also measure the plan without its correction.")
MULTIPLIES = click.option(
    "--multiplies", type=float, help="At most so many; up to 1: a share of the whole dense network."
)
BYTES = click.option("--bytes", type=float, help="The same of bytes.")
LOCK = click.option(
    "--lock", multiple=True, metavar="LAYER", help="Layer to leave dense, or a pattern with * (repeatable)."
)
CACHED = click.option(
    "--cache/--no-cache",
    "cached",
    default=True,
    help="Keep on disk what is computed and measured, and use what earlier runs kept; default on.",
)
WORKERS = click.option(
    "--workers", type=click.IntRange(1), default=1, help="Processes that measure layers; default 1, this one."
)
DASK = click.option("--dask", metavar="ADDRESS", help="Measure layers on the dask cluster of this scheduler: tcp://...")
OUT = click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write; any name.")


@command
@MODEL
def layers(model: str) -> Answer:
    """List the layers, what can be done with each, and what each costs."""
    workspace = looked_at(model)
    if isinstance(workspace, Inventory):
        return _stock_listed(workspace)
    profile, total = workspace.profile, plan_cost(workspace.profile)
    document = {
        "name": workspace.name,
        "fingerprint": profile.fingerprint,
        **asdict(total),
        "counted": COUNTED,
        "rest": asdict(profile.rest),
        "layers": [
            {
                "name": layer.name,
                "type": layer.type,
                "weight_shape": layer.spec.weight_shape,
                "weights": layer.spec.weights,
                "in_sizes": layer.in_sizes,
                "itemsize": layer.itemsize,
                **asdict(dense_cost(layer)),
                "methods": [
                    {
                        "name": method.name,
                        "max_rank": method.max_rank(layer.spec),
                        "break_even_bytes": break_even(layer, method.name, "bytes"),
                        "break_even_multiplies": break_even(layer, method.name, "multiplies"),
                    }
                    for method in layer.methods
                ],
            }
            for layer in profile.layers
        ],
        "skipped": [asdict(skipped) for skipped in profile.skipped],
    }
    rows = [_layer_row(layer) for layer in profile.layers]
    rest = Cost(profile.rest.parameters, profile.rest.bytes, profile.rest.multiplies)
    rows.append(["everything else", "", "", *figures(rest), ""])
    rows.append(["total", "", "", *figures(total), ""])
    text = [
        f"{workspace.name}, {profile.fingerprint[:19]}...",
        "",
        table(["layer", "type", "weight", "parameters", "bytes", "multiplies", "ranks that pay, up to"], rows),
        "",
        COUNTED,
    ]
    if profile.skipped:
        text += ["", "Left as they are:", table([], [["  " + s.name, s.type, s.reason] for s in profile.skipped])]
    return document, "\n".join(text)


@command
@MODEL
@click.option("--layer", "names", multiple=True, metavar="NAME", help="Only this layer (repeatable).")
@click.option("--method", type=click.Choice(list(METHODS)), help="Decomposition; default: each layer's own.")
@CACHED
def spectra(model: str, names: tuple[str, ...], method: str | None, cached: bool) -> Answer:
    """Show the singular values of each layer."""
    workspace = looked_at(model, cached=cached)
    if isinstance(workspace, Inventory):
        return _stock_spectra(workspace, names, method)
    chosen = [_layer(workspace, name) for name in names] or list(workspace.profile.layers)
    if method is not None:
        fitting = [layer for layer in chosen if METHODS[method].obstacle(layer.spec) is None]
        if names or not fitting:
            for layer in chosen:
                if why := METHODS[method].obstacle(layer.spec):
                    raise InvalidPlan(f"layer {layer.name!r}: {method} does not fit, {why}; choose another method.")
        chosen = fitting
    used = [METHODS[method] if method is not None else layer.methods[0] for layer in chosen]
    return _spectra(
        (layer.name, one.name, list(zip(one.axes, workspace.factors(layer.name, one.name).spectra, strict=True)))
        for layer, one in zip(chosen, used, strict=True)
    )


def _spectra(curves: Iterable[tuple[str, str, list[tuple[str, Tensor]]]]) -> Answer:
    """(layer, method, spectra by axis) as an answer."""
    found, rows = [], []
    for name, method, axes in curves:
        first = axes[0][1]
        found.append(
            {
                "name": name,
                "method": method,
                "spectra": [{"axis": axis, "singular_values": sigma.tolist()} for axis, sigma in axes],
                "effective_rank": effective_rank(first),
                "stable_rank": stable_rank(first),
            }
        )
        for axis, sigma in axes:
            kept = [str(rank_for_energy(sigma, share)) for share in (0.9, 0.99)]
            about = [f"{effective_rank(sigma):.1f}", f"{stable_rank(sigma):.1f}"]
            rows.append([name, method, axis, str(len(sigma)), f"{float(sigma[0]):.4g}", *about, *kept])
    titles = ["layer", "method", "axis", "ranks", "largest", "effective", "stable", "90 % energy", "99 % energy"]
    text = [
        table(titles, rows),
        "",
        "Effective rank: exp of the entropy of the singular values. Stable rank: energy over the largest squared.",
        "The last two columns: smallest rank that keeps this share of the squared singular values.",
    ]
    return {"layers": found}, "\n".join(text)


# ---- weights alone --------------------------------------------------------------------------------------------------


def looked_at(ref: str, *, cached: bool = False) -> Workspace | Inventory:
    """Open a model or weights alone, and say what a person should know about it."""
    found = open_to_look(ref, Cache(CACHE) if cached else None)
    for notice in found.notices if isinstance(found, Inventory) else found.opened.notices:
        say(notice)
    return found


def _stock_listed(stock: Inventory) -> Answer:
    """What `layers` says of weights alone: sizes; what follows from a structure is null."""
    document = {
        "name": stock.weights.name,
        "fingerprint": stock.fingerprint(),
        "parameters": stock.parameters,
        "bytes": stock.bytes,
        "multiplies": None,
        "rest": {**asdict(stock.rest), "multiplies": None},
        "layers": [
            {
                "name": layer.name,
                "type": layer.type,
                "weight_shape": layer.spec.weight_shape,
                "weights": layer.spec.weights,
                "itemsize": layer.itemsize,
                "parameters": dense_cost(layer).parameters,
                "bytes": dense_cost(layer).bytes,
                "multiplies": None,
                "methods": [
                    {
                        "name": METHOD,
                        "max_rank": METHODS[METHOD].max_rank(layer.spec),
                        "break_even_bytes": break_even(layer, METHOD, "bytes"),
                        "break_even_multiplies": None,
                    }
                ],
            }
            for layer in stock.layers
        ],
        "skipped": [asdict(skipped) for skipped in stock.skipped],
    }

    def row(name: str, kind: str, shape: str, parameters: int, stored: int, ranks: str) -> list[str]:
        return [name, kind, shape, f"{parameters:,}", size(stored), "unknown", ranks]

    rows = []
    for layer in stock.layers:
        cost, shape = dense_cost(layer), "x".join(map(str, layer.spec.weight_shape))
        ranks = f"{METHOD}: {_rank(break_even(layer, METHOD, 'bytes'))}"
        rows.append(row(layer.name, layer.type, shape, cost.parameters, cost.bytes, ranks))
    rows.append(row("everything else", "", "", stock.rest.parameters, stock.rest.bytes, ""))
    rows.append(row("total", "", "", stock.parameters, stock.bytes, ""))
    text = [
        f"{stock.weights.name}, weights without a model",
        "",
        table(["layer", "type", "weight", "parameters", "bytes", "multiplies", "ranks that save bytes, up to"], rows),
    ]
    if stock.skipped:
        text += ["", "Left as they are:", table([], [["  " + s.name, s.type, s.reason] for s in stock.skipped])]
    return document, "\n".join(text)


def _stock_spectra(stock: Inventory, names: tuple[str, ...], method: str | None) -> Answer:
    """Spectra of weights alone, with an estimate of the time before, and what is left on the way."""
    if method not in (None, METHOD):
        raise InvalidPlan(f"of weights without a model the spectra are those of {METHOD}; {method} needs a model file.")
    known = [layer.name for layer in stock.layers]
    for name in names:
        if name not in known:
            raise InvalidPlan(_unknown_layer(name, known, stock.skipped))
    wanted = list(dict.fromkeys(names)) or known
    speed, told = measure_speed(), Told()
    whole = remaining(stock, wanted, speed)
    say(f"Spectra of {len(wanted)} of {len(known)} layers: about {duration(whole)} (from a 1024 x 1024 matrix here).")

    def curves() -> Iterator[tuple[str, str, list[tuple[str, Tensor]]]]:
        began = time.monotonic()
        for done, name in enumerate(wanted):
            left = remaining(stock, wanted, speed)
            passed = time.monotonic() - began
            pace = passed / (whole - left) if done and whole > left else 1.0
            told(Doing(f"spectrum {done + 1} of {len(wanted)}, {name}", pace * left))
            yield name, METHOD, [("rank", stock.spectrum(name))]

    return _spectra(curves())


@command
@MODEL
@PLAN
def cost(model: str, plan: Path) -> Answer:
    """What the network costs as it is and under a plan, exactly."""
    workspace = opened(model)
    choices = plan_of(workspace, plan).plan
    dense, compressed = plan_cost(workspace.profile), plan_cost(workspace.profile, choices)
    rows = [["dense", *figures(dense)], ["compressed", *figures(compressed)]]
    share = [f"{new / old:.1%}" if old else "-" for new, old in _pairs(compressed, dense)]
    rows.append(["share", *share])
    text = f"{table(['', 'parameters', 'bytes', 'multiplies'], rows)}\n\nMultiplies are for one sample."
    return {"dense": asdict(dense), "compressed": asdict(compressed), "counted": COUNTED}, text


@command
@MODEL
@existing("--plan", help="Rank plan, a JSON file.")
@existing("--checkpoint", help="Checkpoint of this product, or a state_dict of the network.")
@click.option("--samples", type=click.IntRange(min=1), help="Evaluation samples; default all.")
@CACHED
@CORRECT
@COMPARE
def evaluate(
    model: str,
    plan: Path | None,
    checkpoint: Path | None,
    samples: int | None,
    cached: bool,
    corrected: bool,
    compare: bool,
) -> Answer:
    """Measure the score, paired with the dense network on the same samples.

    With neither --plan nor --checkpoint: the dense network alone. A plan is corrected first, on at most 256 unlabelled
    samples or as its file says; a checkpoint is measured as it is.
    """
    if plan is not None and checkpoint is not None:
        raise click.UsageError("give --plan or --checkpoint, not both.")
    _check_compare(compare, plan, checkpoint)
    workspace = opened(model, with_data=True, cached=cached)
    made = compressed_by(workspace, plan, checkpoint, corrected=corrected)
    score = measured(workspace, made.model, samples)
    found = {**asdict(score), "samples": score.samples or None, "correction": made.correction}
    text = _told(score, alone=made.model is workspace.model)
    return _compared(workspace, made, samples, found, text) if compare else (found, text)


def exporting(function: Callable[..., Answer]) -> click.Command:
    """The options that `apply` and `export` share."""
    return command(MODEL(OUT(CACHED(CORRECT(COMPARE(function))))))


@exporting
@PLAN
def apply(model: str, plan: Path, out: Path, cached: bool, corrected: bool, compare: bool) -> Answer:
    """Compress by a plan, correct, and write a checkpoint (safetensors)."""
    return exported(model, "safetensors", out, plan, None, cached=cached, corrected=corrected, compare=compare)


@exporting
@click.option("--format", "kind", type=click.Choice(FORMATS), required=True, help="Kind of file.")
@existing("--plan", help="Rank plan, a JSON file.")
@existing("--checkpoint", help="Checkpoint to take the weights from; with --plan, both must agree.")
@click.option("--dense", is_flag=True, help="One weight per layer, the product of its factors; alone: uncompressed.")
@click.option("--fold-bias", is_flag=True, help="Every Linear as [W b], its input extended by a one.")
@click.option("--dtype", type=click.Choice(DTYPE_NAMES), help="What weights are stored in; int8 for ONNX alone.")
def export(
    model: str,
    kind: str,
    plan: Path | None,
    checkpoint: Path | None,
    dense: bool,
    fold_bias: bool,
    dtype: str | None,
    out: Path,
    cached: bool,
    corrected: bool,
    compare: bool,
) -> Answer:
    """Write a compressed network to a file, reload it in a fresh process and compare."""
    if not (dense or plan or checkpoint):
        raise click.UsageError("give --plan and/or --checkpoint, or --dense.")
    if dtype is not None and dtype not in EXPORTS[kind].dtypes:
        raise click.UsageError(f"--format {kind} knows --dtype {', '.join(EXPORTS[kind].dtypes)}, but got {dtype}.")
    storage = Storage(dtype, fold_bias, dense and bool(plan or checkpoint))
    return exported(
        model, kind, out, plan, checkpoint, cached=cached, corrected=corrected, compare=compare, storage=storage
    )


def setting(name: str, *names: str) -> Callable[..., Any]:
    """An option for a field of the training settings, with its default, bounds and help."""
    (item,) = (item for item in fields(Settings) if item.name == name)
    about, default = item.metadata, item.default
    if default is False:
        return click.option(*names, name, is_flag=True, help=about["help"])
    if "choices" in about:
        kind: click.ParamType[Any] = click.Choice(list(about["choices"]))
    else:
        kind = (click.IntRange if isinstance(default, int) else click.FloatRange)(about["min"], about["max"])
    return click.option(*names, name, type=kind, default=default, show_default=default is not None, help=about["help"])


@command
@MODEL
@existing("--plan", help="Rank plan, a JSON file; or ask a rule for one with the options below.")
@OUT
@click.option("--rule", help="Rule that finds the ranks first: bisection for --max-drop, budget for the others.")
@click.option("--max-drop", type=float, help="Largest drop of the score that the ranks may cost before training.")
@MULTIPLIES
@BYTES
@LOCK
@setting("epochs", "--epochs")
@setting("learning_rate", "--learning-rate")
@click.option(
    "--distill/--no-distill", default=True, help="Learn from the dense network (default), or from the labels alone."
)
@click.option("--loss", type=click.Choice(["distill", "labels", "both"]), help="The same, or both.")
@setting("train", "--train")
@setting("from_scratch", "--from-scratch")
@setting("augment", "--augment")
@setting("batch", "--batch")
@setting("patience", "--patience")
@setting("seed", "--seed")
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=1, help="Runs, each with the next seed; the best is kept."
)
@click.option("--watch", type=click.IntRange(0), default=0, help="Evaluation samples scored after each epoch.")
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to go on from after a kill; default: in the cache.",
)
@CACHED
@CORRECT
def finetune(
    model: str,
    plan: Path | None,
    out: Path,
    rule: str | None,
    max_drop: float | None,
    multiplies: float | None,
    bytes: float | None,
    lock: tuple[str, ...],
    distill: bool,
    loss: Loss | None,
    seeds: int,
    watch: int,
    state: Path | None,
    cached: bool,
    corrected: bool,
    **options: Any,
) -> Answer:
    """Train the factors of a plan on train_data(), and write a checkpoint (safetensors).

    Without --plan the ranks are found first, by a rule, within --max-drop or a budget: the whole way in one command.
    Learns the dense network's answers, without labels, unless told otherwise. The weights that do best on a tenth of
    the training samples, held back, are kept; the start is one of the candidates.
    """
    if not distill and loss not in (None, "labels"):
        raise click.UsageError(f"--no-distill learns from the labels alone; leave it out, or --loss {loss}.")
    settings = Settings(loss=loss or ("distill" if distill else "labels"), **options)
    workspace = opened(model, with_data=True, cached=cached)
    asked: dict[str, Any] = {"max_drop": max_drop, "multiplies": multiplies, "bytes": bytes}
    wishes = {name: wish for name, wish in asked.items() if wish is not None}
    if (plan is None) != bool(wishes):
        raise click.UsageError("give --plan, or what to search ranks for: --max-drop, --multiplies or --bytes.")
    before = None
    if plan is None:
        problem = problem_of(
            workspace, lock=lock, folder=points_of(workspace), corrected=corrected, tell=Told(), **wishes
        )
        candidate = _found(workspace, rule or ("bisection" if "max_drop" in wishes else "budget"), problem)
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
    step, last, folder = None, -5.0, None if workspace.cache is None else workspace.cache.tuning
    if folder is not None:
        tidy(folder)
    every = range(settings.seed, settings.seed + seeds)
    for step in runs(workspace, candidate, settings, every, state=state, folder=folder, watch=watch):
        if step.epoch.model is not None or time.monotonic() - last > 1:
            last = time.monotonic()
            say(_epoch_line(step))
    assert step is not None
    found = summary(step.finished)
    chosen = step.finished[found.chosen]
    used, end = replace(settings, seed=chosen.seed), chosen.epochs[-1]
    if end.best == 0 and not settings.from_scratch:
        say("Note: no epoch was better than the start, whose weights are kept; try a smaller learning rate.")
    compressed = Compressed(
        chosen.model,
        candidate.plan,
        chosen.score,
        None if candidate.correction is None else candidate.correction.to_dict(),
        tuning_of(workspace, used, candidate.plan, end),
    )
    written = EXPORTS["safetensors"].write(workspace, compressed, out, lambda step: say(f"{step} ..."))
    document = {
        **asdict(written),
        "epochs": [_epoch_document(epoch) for epoch in chosen.epochs],
        "before": before,
        "runs": [
            {"seed": run.seed, "epochs": run.epochs[-1].number, "best_epoch": run.epochs[-1].best, "score": run.score}
            for run in step.finished
        ],
        "summary": found,
        "correction": compressed.correction,
        "tuned": compressed.tuned,
    }
    text = [f"{written.path}: {size(written.bytes)}, weights of epoch {end.best} of {end.number}."]
    if before is not None:
        text.append(f"Before: {_told(before, alone=False)}")
    text.append(f"After: {_told(chosen.score, alone=False)}")
    if found.spread is not None:
        mean, spread, best = (_value(chosen.score, value) for value in (found.mean, found.spread, found.best))
        text.append(f"{seeds} runs: mean {mean}, standard deviation {spread}, best {best}; seed {chosen.seed} is kept.")
    return document, "\n".join(text)


def _found(workspace: Workspace, rule: str, problem: Problem) -> Candidate:
    """The answer of a rule."""
    *_, last = run_search(make_rule(rule, {}), problem)
    note = f": {last.note}" if last.note else ""
    say(f"{rule} found ranks for {_of_dense(workspace, last.cost)}{note}")
    return last.candidate


def _epoch_line(step: Progress) -> str:
    epoch = step.epoch
    learnt = "start" if epoch.train_loss is None else f"loss {epoch.train_loss:.4g}"
    left = "done" if epoch.model is not None else f"{epoch.seconds_left:.0f} s left"
    return (
        f"seed {step.seed}, epoch {epoch.number} of {epoch.epochs}: {learnt}, on samples held back "
        f"loss {epoch.validation_loss:.4g} and score {epoch.validation:.4g}, best epoch {epoch.best}, {left}"
    )


def _epoch_document(epoch: Epoch) -> dict[str, Any]:
    names = ("number", "train_loss", "validation", "validation_loss", "best", "seconds", "score")
    return {name: getattr(epoch, name) for name in names}


@command
@MODEL
@click.option("--rule", default="budget", show_default=True, help=f"One of {', '.join(RULES)}.")
@OUT
@MULTIPLIES
@BYTES
@click.option("--microseconds", type=float, help="The same of the latency in --latency-table.")
@existing("--latency-table", help="CSV with layer, method, rank, microseconds, measured on the device.")
@click.option("--max-drop", type=float, help="The largest drop of the score, in its own unit: 0.01 is one point.")
@click.option("--method", "methods", multiple=True, help="Decomposition that may be used (repeatable).")
@LOCK
@click.option("--multiple-of", type=click.IntRange(1), default=1, help="Every rank is a multiple of this.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the rule (repeatable).")
@click.option("--samples", type=click.IntRange(1), default=1000, help="Evaluation samples for a trial; default 1000.")
@CACHED
@WORKERS
@DASK
@CORRECT
def search(
    model: str,
    rule: str,
    out: Path,
    latency_table: Path | None,
    settings: tuple[str, ...],
    cached: bool,
    workers: int,
    dask: str | None,
    **wishes: Any,
) -> Answer:
    """Let a rule choose the ranks, under budgets or within a largest drop, and write a plan.

    A search that is stopped and started again goes on where it was.
    """
    started = time.monotonic()
    chosen = make_rule(rule, _settings(settings))
    workspace = opened(model, with_data=True, cached=cached)
    table = None if latency_table is None else LatencyTable.from_csv(latency_table.read_bytes())
    folder, where = points_of(workspace), Workers(workers, dask)
    problem = problem_of(workspace, latency=table, folder=folder, workers=where, tell=Told(), **wishes)
    trials = []
    for trial in run_search(chosen, problem):
        trials.append(trial)
        note = f"{trial.note}; " if trial.note else ""
        scored = f"; {_told(trial.score, alone=False)}" if trial.score else ""
        say(f"trial {len(trials)}: {note}{_of_dense(workspace, trial.cost)}{scored}")
    answer = trials[-1].candidate
    score = problem.ledger.remembered(
        score_key(answer, None), lambda: measured(workspace, workspace.compress(answer.plan, answer.correction))
    )
    correction = None if answer.correction is None else answer.correction.to_dict()
    compressed = Compressed(workspace.model, answer.plan, score, correction)
    question = {
        "rule": rule,
        **asdict(chosen),  # type: ignore[call-overload]
        "budgets": dict(problem.budgets),
        "max_drop": problem.max_drop,
        "locked": sorted(problem.locked),
        "multiple_of": problem.multiple_of,
    }
    written = plan_document(workspace, compressed, search=question)
    with whole_or_nothing(out) as temporary:
        temporary.write_text(written, encoding="utf-8", newline="\n")
    compressed_cost, dense = plan_cost(workspace.profile, answer.plan), plan_cost(workspace.profile)
    document = {
        "plan": json.loads(written),
        "path": str(out),
        "dense": asdict(dense),
        "compressed": asdict(compressed_cost),
        "score": score,
        "note": trials[-1].note,
        "trials": [{"note": t.note, **asdict(t.cost), "score": t.score} for t in trials],
        "seconds": time.monotonic() - started,
    }
    note = f"\n{trials[-1].note[:1].upper()}{trials[-1].note[1:]}." if trials[-1].note else ""
    text = (
        f"{out}: {len(answer.plan.choices)} of {len(workspace.profile.layers)} layers compressed, "
        f"{_of_dense(workspace, compressed_cost)}.{note}\n{_told(score, alone=False)}"
    )
    return document, text


def _settings(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes KEY=VALUE, but got {pair!r}.")
        found[key] = value
    return found


def _of_dense(workspace: Workspace, cost: Cost) -> str:
    dense = plan_cost(workspace.profile)
    multiplies, stored = cost.multiplies / max(1, dense.multiplies), cost.bytes / max(1, dense.bytes)
    return f"{multiplies:.1%} of the multiplies, {stored:.1%} of the bytes"


@command
@MODEL
@click.option("--out", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)), help="Only this (repeatable).")
@click.option("--samples", type=click.IntRange(1), default=256, help="Evaluation samples; default 256.")
@CACHED
@WORKERS
@DASK
@CORRECT
def profile(
    model: str,
    out: Path | None,
    methods: tuple[str, ...],
    samples: int,
    cached: bool,
    workers: int,
    dask: str | None,
    corrected: bool,
) -> Answer:
    """Measure what compressing each layer alone does, at a few ranks. Stopped and started again, it goes on."""
    started = time.monotonic()
    workspace = opened(model, with_data=True, cached=cached)
    asks = asked(workspace, methods or None)
    points = sensitivity_profile(
        workspace,
        workspace.correction if corrected else None,
        asks,
        workspace.reference.dataset.pick(slice(0, samples)),
        folder=points_of(workspace),
        workers=Workers(workers, dask),
        tell=Told(),
    )
    by_layer: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rows = []
    for point in points:
        cost = layer_cost(workspace.profile.layer(point.layer), Choice(point.method, point.rank))
        by_layer.setdefault((point.layer, point.method), []).append(
            {
                "rank": point.rank,
                "bytes": cost.bytes,
                "multiplies": cost.multiplies,
                "loss_increase": point.loss,
                "drop": point.drop,
            }
        )
        drop = "-" if point.drop is None else f"{point.drop:.4g}"
        told = [size(cost.bytes), amount(cost.multiplies), f"{point.loss:.3g}", drop]
        rows.append([point.layer, point.method, _rank(point.rank), *told])
    document = {
        "layers": [{"name": name, "method": method, "points": found} for (name, method), found in by_layer.items()],
        "evaluations": len(points),
        "samples": min(samples, len(workspace.reference)),
        "seconds": time.monotonic() - started,
    }
    if out is not None:
        with whole_or_nothing(out) as temporary:
            temporary.write_text(json.dumps(plain(document), indent=2) + "\n", encoding="utf-8")
    titles = ["layer", "method", "rank", "bytes", "multiplies", "loss increase", "drop"]
    by_class = workspace.metric.class_axis is not None
    measure = "mean divergence of the classes, in nats" if by_class else "squared change, relative"
    return document, f"{table(titles, rows)}\n\nLoss increase: {measure}, of that layer alone; needs no labels."


@command
@MODEL
@existing("--plan", help="Rank plan, a JSON file.")
@click.option("--runtime", type=click.Choice(RUNTIMES), default="onnxruntime", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1, 64), default=1, help="Default 1, timed by the CPU time of the thread."
)
@click.option(
    "--table",
    "csv_file",
    type=click.Path(path_type=Path),
    help="Also time each layer at about ten ranks of each method and write a CSV for search --latency-table.",
)
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)), help="For --table (repeatable).")
@CACHED
def latency(
    model: str,
    plan: Path | None,
    runtime: Runtime,
    threads: int,
    csv_file: Path | None,
    methods: tuple[str, ...],
    cached: bool,
) -> Answer:
    """Time the network under a plan beside the dense one, in turn on this machine, whole and layer by layer.

    Only the ratio means anything: the median over rounds, with its interquartile range; above 0.1 it is unstable and no
    number. Unlike the network, a layer is timed alone with random weights; one with fewer multiplies may be slower.
    """
    if plan is None and csv_file is None:
        raise click.UsageError("give --plan, --table or both.")
    workspace, tell = opened(model, cached=cached), Told()
    file = None if plan is None else plan_of(workspace, plan)
    setting = setting_of(workspace, runtime, threads)
    document: dict[str, Any] = {**asdict(setting), "version": runtime_version(runtime), "cpu": cpu_name()}
    text = [f"{document['version']}, {threads} thread{'s' * (threads > 1)}, batch {setting.batch}, {document['cpu']}"]
    if file is not None:
        compressed = workspace.compress(file.plan)
        (whole,) = network_latency(
            workspace.model, [compressed], workspace.opened.example_inputs, runtime=runtime, threads=threads
        )
        parts = layer_latency(workspace.profile, file.plan, setting, tell=tell)
        document |= timed(whole)
        document["layers"] = [{"name": name, **timed(timing)} for name, timing in parts]
        rows = [[name, *_timing(timing)] for name, timing in (("whole network", whole), *parts)]
        text.append(table(["", "dense us", "compressed us", "ratio", "IQR"], rows))
    if csv_file is not None:
        found = list(
            staircases(
                workspace.profile.layers, setting, methods=methods or None, folder=points_of(workspace), tell=tell
            )
        )
        with whole_or_nothing(csv_file) as temporary:
            temporary.write_bytes(as_table(found).to_csv().encode())
        document["table"] = str(csv_file)
        document["staircases"] = [{**asdict(s), "break_even": s.break_even, "dominated": s.dominated} for s in found]
        text.append(f"{csv_file}: {sum(len(s.stable) for s in found)} ranks of {len(workspace.profile.layers)} layers.")
    return document, "\n\n".join(text)


def _timing(timing: Timing) -> list[str]:
    shown = ["-", "unstable"] if timing.unstable else [f"{timing.compressed_us:.1f}", f"{timing.ratio:.3f}"]
    return [f"{timing.dense_us:.1f}", *shown, f"{timing.iqr:.3f}"]


@command
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> Answer:
    """Write a commented model file to fill in."""
    if file.suffix != ".py":
        raise click.UsageError(f"a model file ends in .py, but got {file}.")
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(Path(__file__).with_name("template.py").read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise FileExistsError(f"{file} exists and is not overwritten; give another name.") from error
    following = f"python -m lowrank_core check {file}"
    return {
        "path": str(file),
        "next": following,
    }, f"{file} is written. Fill in what is marked REPLACE, then: {following}"


@command
@MODEL
def check(model: str) -> Answer:
    """Say what a model brings, what is missing and what that costs."""
    report = look_over(opened(model))
    for notice in report.notices:
        say(notice)
    document = {
        "name": report.name,
        "fingerprint": report.fingerprint,
        "functions": [asdict(finding) for finding in report.findings],
        "layers": report.layers,
        "skipped": report.skipped,
        **asdict(report.cost),
        "score": report.score,
        "notices": report.notices,
        "refused": [finding.detail for finding in report.refusals],
    }
    rows = [[f.function, f.state, f.detail] for f in report.findings]
    text = [
        table(["function", "", "what was found, or what its absence costs"], rows),
        "",
        f"{report.layers} layers can be compressed, {report.skipped} are left as they are; "
        f"{report.cost.parameters:,} parameters, {size(report.cost.bytes)}, "
        f"{amount(report.cost.multiplies)} multiplies per sample.",
    ]
    if report.score is not None:
        text.append(f"Dense network, on up to {SAMPLES:,} samples: {_told(report.score, alone=True)}")
    return document, "\n".join(text)


def opened(ref: str, *, with_data: bool = False, cached: bool = False) -> Workspace:
    """Open a model, and say what a person should know about it."""
    workspace = Workspace.open(ref, Cache(CACHE) if cached else None)
    for notice in workspace.notices if with_data else workspace.opened.notices:
        say(notice)
    return workspace


def points_of(workspace: Workspace) -> Path | None:
    """Where what is measured is kept."""
    return None if workspace.cache is None else workspace.cache.points


def plan_of(workspace: Workspace, path: Path) -> PlanFile:
    """Read a plan, check it against the model, and warn of ranks that save nothing."""
    try:
        with path.open("rb") as given:
            file = read_plan(given.read(LARGEST_BYTES + 1))  # one byte more is refused, however many follow
        if file.correction:
            Correction.from_dict(file.correction)
        for warning in check_plan(workspace.profile, file.plan):
            say(f"Note: {warning}.")
    except InvalidPlan as error:
        raise InvalidPlan(f"{path}: {error}") from error
    return file


def compressed_by(workspace: Workspace, plan: Path | None, checkpoint: Path | None, *, corrected: bool) -> Compressed:
    """The network of a checkpoint, or of a plan with its correction, or the dense one itself."""
    file = PlanFile(RankPlan(workspace.profile.fingerprint)) if plan is None else plan_of(workspace, plan)
    if checkpoint is not None:
        loaded = load_checkpoint(workspace.model, checkpoint)
        if plan is not None and loaded.plan != file.plan:
            raise InvalidPlan(f"{checkpoint} was not made by the plan {plan}; give the one or the other.")
        tuned = loaded.provenance.get("tuned")
        return Compressed(loaded.model, loaded.plan or file.plan, correction=loaded.correction, tuned=tuned)
    if not file.plan.choices:
        return Compressed(workspace.model, file.plan)
    network = workspace.compress(file.plan)
    if not corrected or file.correction is None:
        return Compressed(network, file.plan)
    try:
        return _corrected(workspace, file, network)
    except LowRankError as error:
        raise type(error)(f"{str(error).rstrip('.')}. --no-correct goes on without the correction.") from error


def _corrected(workspace: Workspace, file: PlanFile, network: nn.Module) -> Compressed:
    """Correct a compressed copy in place, with a line of progress."""
    correction = workspace.candidate_in(file).correction
    assert correction is not None
    if file.correction and file.correction.get("data") not in ("", None, correction.data):
        say("Note: the plan was corrected on other samples than this model's; it is corrected anew on these.")
    live, last, step = sys.stderr.isatty(), -5.0, None
    for step in workspace.correcting(file.plan, correction):
        if step.done < step.total and (live or time.monotonic() - last > 5):
            last = time.monotonic()
            line = f"correcting layer {step.done + 1} of {step.total}"
            say(f"\r{line}   " if live else line, newline=not live)
    assert step is not None
    done = f"corrected {step.total} of {step.total} layers on {correction.samples} samples, without labels"
    say(f"\r{done}   " if live else done)
    return Compressed(load_overlay(network, step.overlay), file.plan, correction=correction.to_dict())


def _check_compare(compare: bool, plan: Path | None, checkpoint: Path | None) -> None:
    if compare and (plan is None or checkpoint is not None):
        raise click.UsageError("--compare needs --plan alone: only a plan can be measured without its correction.")


def _compared(
    workspace: Workspace, made: Compressed, samples: int | None, document: dict[str, Any], text: str
) -> Answer:
    """An answer with the score that the plan has without its correction."""
    if made.correction is None:
        return document, f"{text}\nThere is no correction to compare with."
    plain_score = measured(workspace, workspace.compress(made.plan), samples)
    told = f"{text}\nWithout the correction: {_told(plain_score, alone=False)}"
    return {**document, "uncorrected": {**asdict(plain_score), "samples": plain_score.samples or None}}, told


def measured(workspace: Workspace, network: Any, samples: int | None = None) -> Score:
    """Measure on all the samples asked for, with a line of progress."""
    return final_score(_shown(workspace, workspace.measure(network, samples=samples), samples))


def _shown(workspace: Workspace, scores: Iterator[Score], samples: int | None) -> Iterator[Score]:
    total = 0 if workspace.opened.evaluate else min(len(workspace.reference), samples or sys.maxsize)
    live, last = sys.stderr.isatty(), time.monotonic()
    for score in scores:
        done = score.samples >= total
        if total and (live or done or time.monotonic() - last > 5):
            last = time.monotonic()
            line = f"{score.samples:,} of {total:,} samples: {_value(score, score.value)}"
            say(f"\r{line}   " if live else line, newline=done or not live)
        yield score


def exported(
    model: str,
    kind: str,
    out: Path,
    plan: Path | None,
    checkpoint: Path | None,
    *,
    cached: bool,
    corrected: bool,
    compare: bool,
    storage: Storage = Storage(),  # noqa: B008
) -> Answer:
    """Compress and correct or load, measure, write, compare."""
    _check_compare(compare, plan, checkpoint)
    workspace = opened(model, with_data=True, cached=cached)
    made = compressed_by(workspace, plan, checkpoint, corrected=corrected)
    if storage.told:
        made = made.stored(workspace, storage)
    score = measured(workspace, made.model)
    compressed = replace(made, score=score)
    found = EXPORTS[kind].write(workspace, compressed, out, lambda step: say(f"{step} ..."))
    text = (
        f"{found.path}: {size(found.bytes)}. Outputs after reloading in a fresh process differ by at most "
        f"{found.max_abs_diff or 0:.3g}.\n{_told(found.score or score, alone=False)}"
    )
    document = {**asdict(found), "correction": compressed.correction}
    return _compared(workspace, compressed, None, document, text) if compare else (document, text)


class Told:
    """Progress: over itself in a terminal, elsewhere every few seconds."""

    def __init__(self) -> None:
        self._last = -5.0

    def __call__(self, text: str) -> None:
        left = getattr(text, "seconds_left", None)
        if left is not None:
            text = f"{text}, about {duration(left)} left"
        live = sys.stderr.isatty()
        if live or time.monotonic() - self._last > 5:
            self._last = time.monotonic()
            say(f"\r{text:<78}" if live else text, newline=not live)


def say(line: str, *, newline: bool = True) -> None:
    """A message or progress, which never mixes with the answer."""
    click.echo(line, err=True, nl=newline)


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Aligned columns; a column of figures is set flush right."""
    lines = [titles, *rows] if titles else rows
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
    right = [all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows) for i in range(len(widths))]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def amount(count: float) -> str:
    """'40.55 M'; counts below 10,000 are written out."""
    if count < 10_000:
        return f"{count:,.0f}"
    for unit in ("k", "M", "G"):
        count /= 1000
        if count < 1000:
            return f"{count:.4g} {unit}"
    return f"{count / 1000:.4g} T"


def size(count: float) -> str:
    """'1.07 MB', decimal units."""
    return f"{amount(count)}B" if count >= 10_000 else f"{count:,.0f} B"


def duration(seconds: float) -> str:
    """'45 s', '23 min', '2.5 h'."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def figures(cost: Cost) -> list[str]:
    """Parameters, bytes and multiplies for people."""
    return [f"{cost.parameters:,}", size(cost.bytes), amount(cost.multiplies)]


def _pairs(a: Cost, b: Cost) -> list[tuple[int, int]]:
    return [(a.parameters, b.parameters), (a.bytes, b.bytes), (a.multiplies, b.multiplies)]


def _layer(workspace: Workspace, name: str) -> Layer:
    try:
        return workspace.profile.layer(name)
    except KeyError as error:
        known = [layer.name for layer in workspace.profile.layers]
        raise InvalidPlan(_unknown_layer(name, known, workspace.profile.skipped)) from error


def _unknown_layer(name: str, known: list[str], skipped: tuple[Skipped, ...]) -> str:
    """Why there is no such layer, and which one may be meant."""
    reasons = {s.name: s.reason for s in skipped}
    if name in reasons:
        return f"layer {name!r} cannot be compressed: {reasons[name]}."
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the layers are {', '.join(known[:8])}."
    return f"the model has no layer {name!r}; {hint}"


def _layer_row(layer: Layer) -> list[str]:
    method = layer.methods[0].name
    by_bytes, by_multiplies = (_rank(break_even(layer, method, quantity)) for quantity in ("bytes", "multiplies"))
    told = by_bytes if by_bytes == by_multiplies else f"{by_bytes} for bytes, {by_multiplies} for multiplies"
    shape = "x".join(map(str, layer.spec.weight_shape))
    return [layer.name, layer.type, shape, *figures(dense_cost(layer)), f"{method}: {told}"]


def _rank(rank: tuple[int, ...]) -> str:
    return "x".join(map(str, rank)) if all(rank) else "none"


def _value(score: Score, value: float) -> str:
    return f"{value:.2%}" if score.metric in SHARES else f"{value:.6g}"


def _told(score: Score, *, alone: bool) -> str:
    """The score in a sentence, with its 95 % interval."""
    samples = f" on {score.samples:,} samples" if score.samples else ""
    if alone:
        bounds = "" if score.low is None or score.high is None else _between(score, score.low, score.high)
        return f"{score.metric} {_value(score, score.value)}{bounds}{samples}"
    bounds = (
        "" if score.drop_low is None or score.drop_high is None else _between(score, score.drop_low, score.drop_high)
    )
    return (
        f"{score.metric} {_value(score, score.value)}{samples}; dense {_value(score, score.dense)}; "
        f"drop {_value(score, score.drop)}{bounds}, paired"
    )


def _between(score: Score, low: float, high: float) -> str:
    return f" (95 % interval {_value(score, low)} to {_value(score, high)})"


if __name__ == "__main__":
    as_usual()
    cli(prog_name="python -m lowrank_core")
