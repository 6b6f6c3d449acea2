"""How what a command names is opened, and what commands measure of it, with lines of progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from torch import nn

from lowrank_core.commands import Answer
from lowrank_core.commands._log import PLANS_READ
from lowrank_core.commands._outputs import check_unread, say_not_kept
from lowrank_core.commands._terminal import ProgressLine, say, score_line, score_value, table
from lowrank_core.compression.checkpoint import load_checkpoint
from lowrank_core.compression.correct import CorrectedLayer, load_overlay, remarks_text
from lowrank_core.compression.elsewhere import with_weights
from lowrank_core.errors import InvalidFile, InvalidPlan, LowRankError, cut
from lowrank_core.exports import Compressed
from lowrank_core.figures import how_many
from lowrank_core.measure.depth import depth_errors
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import check_plan, with_free_ranks
from lowrank_core.plans.plan import LARGEST_BYTES, PlanFile, RankPlan, read_plan
from lowrank_core.running.scope import scope
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.sources._inventory import Inventory
from lowrank_core.store.cache import Cache
from lowrank_core.store.files import own_folder, try_to_keep
from lowrank_core.store.kinds import MOST_BYTES
from lowrank_core.workspace import Workspace, open_to_look

COUNTED = (
    "Multiplies and additions are for one sample. Multiplies: all matrix products and convolutions; "
    "additions: of the layers listed, with their biases. Where values decide which rows a layer gets, or what is "
    "computed at all, the mean over the evaluation samples counts."
)

CACHE = own_folder("cache")
"""Where factors, measured points and scores are kept, the app's among them."""


def opened(
    ref: str,
    *,
    with_data: bool = False,
    cached: bool = False,
    outputs: tuple[str, ...] = (),
    plan: Path | None = None,
) -> Workspace:
    """Open a model, and say what a person should know about it; with_data where its figures are asked for.

    plan: a file that will be read: one that holds no plan is refused before the model is opened.
    """
    if plan is not None:
        read_plan_file(plan)
    with reading():
        workspace = Workspace.open(ref, _cache() if cached else None, outputs)
    for notice in workspace.notices if with_data else workspace.opened.notices:
        say(notice)
    if with_data:
        workspace.require_figures()
        if workspace.opened.evaluate is None:
            say(f"Judged by {workspace.metric.name}: {workspace.judged}")
    check_unread(workspace.opened.eval_data, workspace.opened.train_data)
    return workspace


@contextmanager
def reading() -> Iterator[None]:
    """While samples are read, a line of progress: in a terminal it is wiped at the end."""
    line = ProgressLine()
    with scope(report=line):
        try:
            yield
        finally:
            line.wipe()


def _cache() -> Cache:
    """The cache, which is read even where it cannot be written; that is said before any work."""
    try_to_keep(CACHE)
    say_not_kept()
    return Cache(CACHE)


def judged_in(workspace: Workspace) -> dict[str, Any] | None:
    """What is judged, for the JSON of a command; None where the model file scores itself."""
    return None if workspace.opened.evaluate is not None else workspace.judged.told


def looked_at(ref: str, *, cached: bool = False) -> Workspace | Inventory:
    """Open a model or weights alone, and say what a person should know about it."""
    with reading():
        opened_or_stock = open_to_look(ref, _cache() if cached else None)
    for notice in opened_or_stock.notices if isinstance(opened_or_stock, Inventory) else opened_or_stock.opened.notices:
        say(notice)
    return opened_or_stock


def points_of(workspace: Workspace) -> Path | None:
    """The folder where measured points and scores are kept; None without a cache."""
    return None if workspace.cache is None else workspace.cache.points


def read_plan_file(path: Path) -> PlanFile:
    """The plan in a file, whatever model it is for; raises InvalidPlan that names the file.

    A command reads it once: a pipe has it once, and it may be edited while a model is opened.
    """
    context = click.get_current_context(silent=True)
    read: dict[Path, PlanFile] = {} if context is None else context.meta.setdefault(PLANS_READ, {})
    if path not in read:
        read[path] = _read_plan_file(path)
    return read[path]


def _read_plan_file(path: Path) -> PlanFile:
    try:
        with path.open("rb") as given:
            file = read_plan(given.read(LARGEST_BYTES + 1))  # one byte more is refused, however many follow
        if file.correction:
            Correction.from_dict(file.correction)
    except InvalidPlan as error:
        raise InvalidPlan(f"{path}: {error}") from error
    return file


def plan_of(workspace: Workspace, path: Path, *, free: bool | None = None) -> PlanFile:
    """Read a plan, check it against the model, and warn of ranks that save nothing.

    free: with free ranks wherever there are such, or without any; None as the file says.
    """
    file = read_plan_file(path)
    if free is not None:
        file = replace(file, plan=with_free_ranks(file.plan) if free else file.plan.plain)
    try:
        for warning in check_plan(workspace.profile, file.plan):
            say(f"Note: {warning}.")
    except InvalidPlan as error:
        raise InvalidPlan(f"{path}: {error}") from error
    return file


def read_table(path: Path) -> LatencyTable:
    """A latency table; raises InvalidFile that names the file."""
    try:
        with path.open("rb") as given:
            content = given.read(MOST_BYTES + 1)  # of a device, that has no end, no more
        if len(content) > MOST_BYTES:
            raise InvalidFile(f"it is larger than {MOST_BYTES // 10**6} MB, and no latency table.")
        table = LatencyTable.from_csv(content)
    except LowRankError as error:
        raise InvalidFile(f"{path}: {error}") from error
    if table.device:
        beside = f", beside the network {cut(table.network)[:12]}..." if table.network else ""
        say(f"Microseconds are those of {cut(table.device)}{beside}.")
    return table


def compressed_by(
    workspace: Workspace,
    plan: Path | None,
    checkpoint: Path | None,
    tuned: Path | None = None,
    *,
    corrected: bool,
    free: bool | None = None,
) -> Compressed:
    """The network of a checkpoint, or of a plan with its correction, or the dense one itself. free: as in `plan_of`.

    tuned: weights for the network of the plan, which then is not corrected.
    """
    if free is not None and (plan is None or checkpoint is not None):
        raise click.UsageError(
            "--free-ranks and --no-free-ranks go with --plan alone: a checkpoint is as it was stored."
        )
    file = PlanFile(RankPlan(workspace.profile.fingerprint)) if plan is None else plan_of(workspace, plan, free=free)
    if checkpoint is not None:
        loaded = load_checkpoint(workspace.model, checkpoint)
        if plan is not None and loaded.plan != file.plan:
            raise InvalidPlan(f"{checkpoint} was not made by the plan {plan}; give the one or the other.")
        tuned = loaded.provenance.get("tuned")
        return Compressed(loaded.model, loaded.plan or file.plan, correction=loaded.correction, tuned=tuned)
    if tuned is not None:
        returned = with_weights(workspace.compress(file.plan), tuned)
        for notice in returned.notices:
            say(f"Note: {notice}")
        return Compressed(returned.model, file.plan, tuned=returned.about)
    if not file.plan.choices:
        return Compressed(workspace.model, file.plan)
    network = workspace.compress(file.plan.plain)
    if not corrected or file.correction is None:
        return Compressed(workspace.stored(network, file.plan), file.plan)
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
    live, last, total, remarks = sys.stderr.isatty(), -5.0, 0, tuple[tuple[str, str], ...]()

    def each(layer: CorrectedLayer) -> None:
        nonlocal last, total, remarks
        total, remarks = layer.total, layer.remarks
        if layer.done < layer.total and (live or time.monotonic() - last > 5):
            last = time.monotonic()
            line = f"correcting layer {layer.done + 1} of {layer.total}"
            say(f"\r{line}   " if live else line, newline=not live)

    overlay = workspace.corrector(file.plan.plain, correction, each=each)
    many = f"{total} of {total} layers" if total else "no layer"
    done = f"corrected {many} on {how_many(correction.samples, 'sample')}, without labels"
    say(f"\r{done}   " if live else done)
    for line in remarks_text(remarks):
        say(f"Note: {line}.")
    made = workspace.stored(load_overlay(network, overlay), file.plan)
    return Compressed(made, file.plan, correction=correction.to_dict())


def measured(workspace: Workspace, network: Any, samples: int | None = None) -> Score:
    """Measure on all the samples asked for, with a line of progress."""
    return final_score(_measured(workspace, workspace.measure(network, samples=samples, keep=False), samples))


def _measured(workspace: Workspace, scores: Iterator[Score], samples: int | None) -> Iterator[Score]:
    total = 0 if workspace.opened.evaluate else min(len(workspace.reference), samples or sys.maxsize)
    live, last = sys.stderr.isatty(), time.monotonic()
    for score in scores:
        done = score.samples >= total
        if total and (live or done or time.monotonic() - last > 5):
            last = time.monotonic()
            line = f"{score.samples:,} of {total:,} samples: {score_value(score, score.value)}"
            say(f"\r{line}   " if live else line, newline=done or not live)
        yield score


def check_compare(compare: bool, plan: Path | None, checkpoint: Path | None, depth: bool = False) -> None:
    """Refuse --compare and --depth where there is nothing to compare with."""
    if depth and (plan is None or checkpoint is not None):
        raise click.UsageError("--depth needs --plan alone: a plan is compared before and after its correction.")
    if compare and (plan is None or checkpoint is not None):
        raise click.UsageError("--compare needs --plan alone: only a plan can be measured without its correction.")


def check_tuned(tuned: Path | None, plan: Path | None, checkpoint: Path | None) -> None:
    """Refuse --tuned where it is not said of which network, or said twice."""
    if tuned is not None and (plan is None or checkpoint is not None):
        raise click.UsageError("--tuned goes with --plan, whose network its weights are of, and without --checkpoint.")


def with_depth(workspace: Workspace, made: Compressed, document: dict[str, Any], text: str) -> Answer:
    """An answer with the error of every layer along the depth; infinite ones are null in JSON."""
    correction = None if made.correction is None else Correction.from_dict(made.correction)
    found = depth_errors(workspace, Candidate(made.plan, correction))

    layers = [asdict(layer) | dict(zip(("plain", "corrected"), layer.finite, strict=True)) for layer in found.layers]
    rows = [
        [layer.name, *("-" if error is None else f"{error:.2%}" for error in (layer.plain, layer.corrected)), layer.why]
        for layer in found.layers
    ]
    lines = [
        text,
        "",
        table(["layer", "before correction", "after", ""], rows),
        "",
        f"Relative error of each layer's output against dense, on {found.samples} calibration samples.",
    ]
    return document | {"depth": {"samples": found.samples, "layers": layers}}, "\n".join(lines)


def compared(
    workspace: Workspace, made: Compressed, samples: int | None, document: dict[str, Any], text: str
) -> Answer:
    """An answer with the score that the plan has without its correction."""
    if made.correction is None:
        return document, f"{text}\nThere is no correction to compare with."
    plain_score = measured(workspace, workspace.compress(made.plan), samples)
    told = f"{text}\nWithout the correction: {score_line(plain_score, alone=False)}"
    return {**document, "uncorrected": {**asdict(plain_score), "samples": plain_score.samples or None}}, told
