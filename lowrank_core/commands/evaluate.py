"""The score of a plan or of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from lowrank_core.commands import Answer, command
from lowrank_core.commands._log import LOG
from lowrank_core.commands._opening import (
    check_compare,
    check_tuned,
    compared,
    compressed_by,
    judged_in,
    measured,
    opened,
    read_plan_file,
    read_table,
    with_depth,
)
from lowrank_core.commands._options import (
    AS_FREE,
    CACHED,
    COMPARE,
    CORRECT,
    DEPTH,
    LATENCY_TABLE,
    MODEL,
    OUTPUTS,
    TUNED,
    existing,
)
from lowrank_core.commands._requirements import UNITS, Required, Requirement, check_requirements, document_of, judge_all
from lowrank_core.commands._terminal import score_line


@command
@MODEL
@existing("--plan", help="Rank plan, a JSON file.")
@existing("--checkpoint", help="Checkpoint of this product, or a state_dict of the network.")
@TUNED
@click.option("--samples", type=click.IntRange(min=1), help="Evaluation samples; default all.")
@click.option(
    "--require",
    "required",
    type=Required(),
    multiple=True,
    metavar="BOUND",
    help=f"What must hold, else exit status 3 (repeatable): drop<=1%, score>=98%, 'flash int8<=64KiB', "
    f"multiplies<=50%; of {', '.join(UNITS)}.",
)
@LATENCY_TABLE
@OUTPUTS
@CACHED
@CORRECT
@AS_FREE
@COMPARE
@DEPTH
@LOG
def evaluate(
    model: str,
    plan: Path | None,
    checkpoint: Path | None,
    tuned: Path | None,
    samples: int | None,
    required: tuple[Requirement, ...],
    latency_table: Path | None,
    outputs: tuple[str, ...],
    cached: bool,
    corrected: bool,
    free: bool | None,
    compare: bool,
    depth: bool,
) -> Answer:
    """Measure the score, paired with the dense network on the same samples.

    With neither --plan nor --checkpoint: the dense network alone. A plan is corrected first, on at most 256 unlabelled
    samples or as its file says; a checkpoint is measured as it is.
    With --require the exit status is 3 where one does not hold. A drop or a score holds where the whole of its 95 %
    interval does, is broken where none of it does, and is undecided in between, which does not pass either.
    """
    if plan is not None and checkpoint is not None:
        raise click.UsageError("give --plan or --checkpoint, not both.")
    check_tuned(tuned, plan, checkpoint)
    check_compare(compare, plan, tuned or checkpoint, depth)
    if plan is checkpoint is None and (drops := [one.text for one in required if one.quantity == "drop"]):
        raise click.UsageError(f"--require {drops[0]!r} needs --plan or --checkpoint: dense loses nothing to itself.")
    table = None if latency_table is None else read_table(latency_table)
    workspace = opened(model, with_data=True, cached=cached, outputs=outputs, plan=plan)
    check_requirements(workspace, required, None if plan is None else read_plan_file(plan).plan, table)
    made = compressed_by(workspace, plan, checkpoint, tuned, corrected=corrected, free=free)
    score = measured(workspace, made.model, samples)
    document = {**asdict(score), "samples": score.samples or None, "correction": made.correction}
    document["judged"] = judged_in(workspace)
    text = score_line(score, alone=made.model is workspace.model)
    document |= {"note": text} if score.not_finite else {}
    if compare:
        document, text = compared(workspace, made, samples, document, text)
    if depth:
        document, text = with_depth(workspace, made, document, text)
    if required:
        found = judge_all(workspace, required, made.model, made.plan, score, table)
        document |= document_of(found)
        text = "\n".join([text, "", *(one.says for one in found)])
    return document, text
