"""Files of compressed networks: `apply` writes a checkpoint, `export` any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    points_of,
    read_table,
)
from lowrank_core.commands._options import (
    ACCEPT,
    AS_FREE,
    CACHED,
    COMPARE,
    CORRECT,
    LATENCY_TABLE,
    MODEL,
    OUTPUTS,
    PLAN,
    TUNED,
    existing,
    writing,
)
from lowrank_core.commands._outputs import NodeData, write_text
from lowrank_core.commands._terminal import say_step, score_line
from lowrank_core.compression.precision import INT8, MOST_SAMPLES, Int8, Storage
from lowrank_core.errors import OtherAnswers
from lowrank_core.exports import EXPORTS, VERDICT_WORDS, Compressed, check_answers
from lowrank_core.exports._node_data import files_of, node_data
from lowrank_core.exports.tflite import interpreter
from lowrank_core.figures import count
from lowrank_core.graphs.onnx_forms import OPSETS
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.measure.ledger import Ledger, score_key
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.running.scope import scope
from lowrank_core.scoring.scores import Score
from lowrank_core.store.kinds import EXPORTED, NODES
from lowrank_core.workspace import Workspace

DTYPE_NAMES = sorted({dtype for export in EXPORTS.values() for dtype in export.dtypes})
FORMATS = [name for name in EXPORTS if name != "plan"]  # a plan is what these commands start from


OUT = writing(
    "--out",
    required=True,
    kind=lambda options: EXPORTED[options.get("kind", "safetensors")],
    help="File to write; any name.",
)


def exporting(function: Callable[..., Answer]) -> click.Command:
    """The options that `apply` and `export` share."""
    return command(MODEL(OUT(OUTPUTS(CACHED(CORRECT(AS_FREE(COMPARE(ACCEPT(LOG(function))))))))))


@exporting
@PLAN
def apply(model: str, plan: Path, out: Path, **how: Any) -> Answer:
    """Compress by a plan, correct, and write a checkpoint (safetensors)."""
    return exported(model, "safetensors", out, plan, None, **how)


@exporting
@click.option("--format", "kind", type=click.Choice(FORMATS), required=True, help="Kind of file.")
@existing("--plan", help="Rank plan, a JSON file.")
@existing("--checkpoint", help="Checkpoint to take the weights from; with --plan, both must agree.")
@TUNED
@click.option("--dense", is_flag=True, help="One weight per layer, the product of its factors; alone: uncompressed.")
@click.option("--fold-bias", is_flag=True, help="Every Linear as [W b], its input extended by a one.")
@click.option(
    "--node-data",
    "nodes",
    type=NodeData(NODES),
    help="With --format pt2: its graph and what each node takes, for Model Explorer; NAME.json becomes "
    "NAME-graph.json, -bytes, -multiplies, -rank, -error and, with --latency-table, -microseconds.",
)
@LATENCY_TABLE
@click.option(
    "--litert-python",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --format tflite or bundle: folder of an environment with litert-torch, as `make litert` makes one.",
)
@click.option("--dtype", type=click.Choice(DTYPE_NAMES), help="What weights are stored in; int8 is per channel.")
@click.option("--int8", type=click.Choice(INT8), help="As --dtype int8, with a scale per output channel or per weight.")
@click.option(
    "--refit/--no-refit",
    "refit",
    default=None,
    help="Fit factors to each other as int8 rounds them; default on.",
)
@click.option(
    "--batch", type=click.IntRange(1, MOST_SAMPLES), help="Samples that the file takes at a time, no size left open."
)
@click.option("--opset", type=click.IntRange(*OPSETS), help="Version of ONNX's operators; default the exporter's own.")
def export(
    model: str,
    kind: str,
    plan: Path | None,
    checkpoint: Path | None,
    tuned: Path | None,
    dense: bool,
    fold_bias: bool,
    dtype: str | None,
    int8: Int8 | None,
    refit: bool | None,
    batch: int | None,
    opset: int | None,
    nodes: Path | None,
    latency_table: Path | None,
    litert_python: Path | None,
    out: Path,
    **how: Any,
) -> Answer:
    """Write a compressed network to a file, reload it in a fresh process and compare."""
    if not (dense or plan or checkpoint):
        raise click.UsageError("give --plan and/or --checkpoint, or --dense.")
    if int8 is not None and dtype not in (None, "int8"):
        raise click.UsageError(f"--int8 is --dtype int8, but got --dtype {dtype}.")
    dtype = "int8" if int8 is not None else dtype
    if refit is not None and dtype != "int8":
        raise click.UsageError("--refit goes with --int8 or --dtype int8.")
    for option, value in (("batch", batch), ("opset", opset), ("int8", int8), ("refit", refit)):
        if value is not None and option not in EXPORTS[kind].options:
            knowing = ", ".join(name for name in FORMATS if option in EXPORTS[name].options)
            raise click.UsageError(f"--{option} goes with --format {knowing}, but got {kind}.")
    if dtype is not None and dtype not in EXPORTS[kind].dtypes:
        raise click.UsageError(
            f"--format {kind} knows --dtype {', '.join(EXPORTS[kind].dtypes) or 'none'}, but got {dtype}."
        )
    if kind == "openvino" and out.suffix != EXPORTS[kind].suffix:
        raise click.UsageError("--format openvino writes NAME.xml, and NAME.bin beside it; give --out such a name.")
    if litert_python is not None and kind not in ("tflite", "bundle"):
        raise click.UsageError("--litert-python goes with --format tflite or bundle.")
    if kind == "tflite" or litert_python is not None:
        interpreter(litert_python)
    if nodes is not None and kind != "pt2":
        raise click.UsageError("--node-data goes with --format pt2, whose nodes it names.")
    if latency_table is not None and nodes is None:
        raise click.UsageError("--latency-table goes with --node-data.")
    table = None if latency_table is None else read_table(latency_table)
    multiplied = dense and bool(plan or checkpoint)
    storage = Storage(dtype, fold_bias, multiplied, int8 or "per-channel", refit is not False, batch, opset)
    return exported(
        model,
        kind,
        out,
        plan,
        checkpoint,
        **how,
        tuned=tuned,
        litert=litert_python,
        storage=storage,
        nodes=nodes,
        table=table,
    )


def exported(
    model: str,
    kind: str,
    out: Path,
    plan: Path | None,
    checkpoint: Path | None,
    *,
    outputs: tuple[str, ...],
    cached: bool,
    corrected: bool,
    free: bool | None,
    compare: bool,
    accepting: bool,
    tuned: Path | None = None,
    litert: Path | None = None,
    storage: Storage = Storage(),  # noqa: B008
    nodes: Path | None = None,
    table: LatencyTable | None = None,
) -> Answer:
    """Compress and correct or load, measure, write, compare."""
    check_tuned(tuned, plan, checkpoint)
    check_compare(compare, plan, tuned or checkpoint)
    workspace = opened(model, with_data=True, cached=cached, outputs=outputs, plan=plan)
    EXPORTS[kind].ready(workspace)
    if table is not None:
        table.check(workspace.profile.fingerprint)
    made = compressed_by(workspace, plan, checkpoint, tuned, corrected=corrected, free=free)
    if storage.told:
        made = made.stored(workspace, storage)
    score = _score_of(workspace, made, named=checkpoint is tuned is None and not storage.rounds)
    check_answers(score, out)
    compressed = replace(made, score=score, accept_difference=accepting, litert_python=litert)
    try:
        with scope(report=say_step):
            file = EXPORTS[kind].write(workspace, compressed, out)
    except OtherAnswers as error:
        raise OtherAnswers(f"{error} --accept-difference saves it all the same.") from error
    text = (
        f"{file.path}: {count(file.bytes, 'B')}. Outputs after reloading in a fresh process differ by at most "
        f"{file.max_abs_diff or 0:.3g}{VERDICT_WORDS[file.verdict]}.\n{score_line(file.score or score, alone=False)}"
    )
    text += "".join(f"\n{one}: its weights." for one in file.beside)
    text += "".join(f"\n{note}." for note in file.notes)
    more: dict[str, Any] = {}
    if nodes is not None:
        more["node_data"] = _write_nodes(workspace, compressed, table, nodes)
        text += f"\n{', '.join(more['node_data'])}: what each node takes."
    document = {**file.told, **more, "judged": judged_in(workspace), "correction": compressed.correction}
    return compared(workspace, compressed, None, document, text) if compare else (document, text)


def _write_nodes(workspace: Workspace, compressed: Compressed, table: LatencyTable | None, path: Path) -> list[str]:
    """The files that were written."""
    files, written = files_of(path), []
    for quantity, text in node_data(workspace, compressed, table).items():
        write_text(files[quantity], text)
        written.append(str(files[quantity]))
    return written


def _score_of(workspace: Workspace, made: Compressed, *, named: bool) -> Score:
    """The score on all samples. named: the plan and its correction say what was measured: that is done once."""
    ledger = Ledger.of(workspace, points_of(workspace)) if named and made.plan.choices else Ledger()
    candidate = Candidate(made.plan, Correction.from_dict(made.correction) if made.correction else None)
    return ledger.remembered(score_key(candidate, None), lambda: measured(workspace, made.model))
