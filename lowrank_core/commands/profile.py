"""What compressing each layer alone does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from lowrank_core.commands import Answer, command
from lowrank_core.commands._opening import judged_in, opened, points_of
from lowrank_core.commands._options import CACHED, CORRECT, DASK, MODEL, OUTPUTS, WORKERS, writing
from lowrank_core.commands._outputs import write_text
from lowrank_core.commands._terminal import ProgressLine, rank_text, say, table
from lowrank_core.figures import count
from lowrank_core.methods import METHODS
from lowrank_core.plans.cost import layer_cost
from lowrank_core.plans.plan import Choice
from lowrank_core.predict.sensitivity import asked
from lowrank_core.predict.sensitivity import profile as sensitivity_profile
from lowrank_core.running.parallel import Workers
from lowrank_core.running.scope import scope
from lowrank_core.store.as_json import json_text
from lowrank_core.store.kinds import PROFILE


@command
@MODEL
@writing("--out", kind=PROFILE, help="Also write the JSON to this file; - for standard output.")
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)), help="Only this (repeatable).")
@click.option("--samples", type=click.IntRange(1), default=256, help="Evaluation samples; default 256.")
@OUTPUTS
@CACHED
@WORKERS
@DASK
@CORRECT
def profile(
    model: str,
    out: Path | None,
    methods: tuple[str, ...],
    samples: int,
    outputs: tuple[str, ...],
    cached: bool,
    workers: int,
    dask: str | None,
    corrected: bool,
) -> Answer:
    """Measure what compressing each layer alone does, at a few ranks. Stopped and started again, it goes on."""
    started = time.monotonic()
    workspace = opened(model, with_data=True, cached=cached, outputs=outputs)
    asks = asked(workspace, methods or None)
    with scope(report=ProgressLine()):
        points = sensitivity_profile(
            workspace,
            workspace.correction if corrected else None,
            asks,
            workspace.reference.dataset.pick(slice(0, samples)),
            folder=points_of(workspace),
            workers=Workers(workers, dask),
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
                "loss_increase": None if point.not_finite else point.loss,
                "drop": point.drop,
                **({"not_finite": point.not_finite} if point.not_finite else {}),
            }
        )
        drop = "-" if point.drop is None else f"{point.drop:.4g}"
        loss = "not finite" if point.not_finite else f"{point.loss:.3g}"
        told = [count(cost.bytes, "B"), count(cost.multiplies), loss, drop]
        rows.append([point.layer, point.method, rank_text(point.rank), *told])
    broken = [point for point in points if point.not_finite]
    if broken:
        say(
            f"Note: with {len(broken):,} of {len(points):,} points the network answers with NaN or infinity; they have "
            "no loss and no drop, and no rule takes them."
        )
    document = {
        "layers": [{"name": name, "method": method, "points": points} for (name, method), points in by_layer.items()],
        "evaluations": len(points),
        "samples": min(samples, len(workspace.reference)),
        "judged": judged_in(workspace),
        "seconds": time.monotonic() - started,
    }
    if out is not None:
        write_text(out, json_text(document) + "\n")
    titles = ["layer", "method", "rank", "bytes", "multiplies", "loss increase", "drop"]
    by_class = workspace.metric.class_axis is not None
    measure = "mean divergence of the classes, in nats" if by_class else "squared change, relative"
    return document, f"{table(titles, rows)}\n\nLoss increase: {measure}, of that layer alone; needs no labels."
