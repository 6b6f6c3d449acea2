"""The time of a plan beside the dense network's, and tables of layers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lowrank_core.commands import Answer, command
from lowrank_core.commands._opening import opened, plan_of, points_of
from lowrank_core.commands._options import AS_FREE, CACHED, MODEL, existing, writing
from lowrank_core.commands._outputs import write_text
from lowrank_core.commands._terminal import ProgressLine, table
from lowrank_core.figures import count
from lowrank_core.measure import on_device
from lowrank_core.measure.latency import RUNTIMES, Runtime, Timing, cpu_name, network_latency, runtime_version, timed
from lowrank_core.measure.staircases import as_table, layer_latency, setting_of, staircases
from lowrank_core.methods import METHODS
from lowrank_core.running.scope import scope
from lowrank_core.store.kinds import DEVICE_FILE, TABLE


@command
@MODEL
@existing("--plan", help="Rank plan, a JSON file.")
@click.option("--runtime", type=click.Choice(RUNTIMES), default="onnxruntime", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1, 64), default=1, help="Default 1, timed by the CPU time of the thread."
)
@writing(
    "--table",
    "csv_file",
    kind=TABLE,
    help="Also time each layer at about ten ranks of each method and write a CSV for search --latency-table; - for "
    "standard output.",
)
@writing(
    "--device-file",
    kind=DEVICE_FILE,
    help="Write a program that takes that table on a device of its own, with numpy and onnxruntime, or with --runtime "
    "torch with that alone: copy it there beside the exported network, python FILE NETWORK.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(list(METHODS)),
    help="For --table and --device-file (repeatable).",
)
@AS_FREE
@CACHED
def latency(
    model: str,
    plan: Path | None,
    runtime: Runtime,
    threads: int,
    csv_file: Path | None,
    device_file: Path | None,
    methods: tuple[str, ...],
    free: bool | None,
    cached: bool,
) -> Answer:
    """Time the network under a plan beside the dense one, in turn on this machine, whole and layer by layer.

    Only the ratio means anything: the median over rounds, with its interquartile range; above 0.1 it is unstable and no
    number. Unlike the network, a layer is timed alone with random weights; one with fewer multiplies may be slower.
    """
    if plan is csv_file is device_file is None:
        raise click.UsageError("give --plan, --table, --device-file or several of them.")
    if device_file is not None and runtime == "openvino":
        raise click.UsageError("--device-file times with --runtime onnxruntime or torch.")
    workspace, hears = opened(model, cached=cached, plan=plan), ProgressLine()
    file = None if plan is None else plan_of(workspace, plan, free=free)
    setting = setting_of(workspace, runtime, threads)
    document: dict[str, Any] = {**asdict(setting), "version": runtime_version(runtime), "cpu": cpu_name()}
    text = [f"{document['version']}, {threads} thread{'s' * (threads > 1)}, batch {setting.batch}, {document['cpu']}"]
    if file is not None:
        compressed = workspace.compress(file.plan)
        (whole,) = network_latency(
            workspace.model, [compressed], workspace.opened.example_inputs, runtime=runtime, threads=threads
        )
        with scope(report=hears):
            parts = layer_latency(workspace.profile, file.plan, setting)
        document |= timed(whole)
        document["layers"] = [{"name": name, **timed(timing)} for name, timing in parts]
        rows = [[name, *_timing(timing)] for name, timing in (("whole network", whole), *parts)]
        text.append(table(["", "dense us", "compressed us", "ratio", "IQR"], rows))
    if csv_file is not None:
        layers, folder = workspace.profile.layers, points_of(workspace)
        with scope(report=hears):
            stairs = list(staircases(layers, setting, methods=methods or None, folder=folder))
        write_text(csv_file, as_table(stairs, workspace.profile.fingerprint).to_csv())
        document["table"] = str(csv_file)
        document["staircases"] = [{**asdict(s), "break_even": s.break_even, "dominated": s.dominated} for s in stairs]
        text.append(
            f"{csv_file}: {sum(len(s.stable) for s in stairs)} ranks of {len(workspace.profile.layers)} layers."
        )
    if device_file is not None:
        program = on_device.device_file(workspace, setting, methods=methods or None)
        write_text(device_file, program)
        document["device_file"] = str(device_file)
        text.append(f"{device_file}: {count(len(program), 'B')}; there: python {device_file.name} NETWORK.")
    return document, "\n\n".join(text)


def _timing(timing: Timing) -> list[str]:
    shown = ["-", "unstable"] if timing.unstable else [f"{timing.compressed_us:.1f}", f"{timing.ratio:.3f}"]
    return [f"{timing.dense_us:.1f}", *shown, f"{timing.iqr:.3f}"]
