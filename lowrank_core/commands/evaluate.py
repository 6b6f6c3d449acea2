"""The score of a plan or of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from lowrank_core.commands import Answer, command
from lowrank_core.commands._opening import (
    check_compare,
    compared,
    compressed_by,
    judged_in,
    measured,
    opened,
    with_depth,
)
from lowrank_core.commands._options import AS_FREE, CACHED, COMPARE, CORRECT, DEPTH, MODEL, OUTPUTS, existing
from lowrank_core.commands._terminal import score_line


@command
@MODEL
@existing("--plan", help="Rank plan, a JSON file.")
@existing("--checkpoint", help="Checkpoint of this product, or a state_dict of the network.")
@click.option("--samples", type=click.IntRange(min=1), help="Evaluation samples; default all.")
@OUTPUTS
@CACHED
@CORRECT
@AS_FREE
@COMPARE
@DEPTH
def evaluate(
    model: str,
    plan: Path | None,
    checkpoint: Path | None,
    samples: int | None,
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
    """
    if plan is not None and checkpoint is not None:
        raise click.UsageError("give --plan or --checkpoint, not both.")
    check_compare(compare, plan, checkpoint, depth)
    workspace = opened(model, with_data=True, cached=cached, outputs=outputs, plan=plan)
    made = compressed_by(workspace, plan, checkpoint, corrected=corrected, free=free)
    score = measured(workspace, made.model, samples)
    document = {**asdict(score), "samples": score.samples or None, "correction": made.correction}
    document["judged"] = judged_in(workspace)
    text = score_line(score, alone=made.model is workspace.model)
    document |= {"note": text} if score.not_finite else {}
    if compare:
        document, text = compared(workspace, made, samples, document, text)
    return with_depth(workspace, made, document, text) if depth else (document, text)
