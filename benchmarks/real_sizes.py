"""Networks of the sizes that people bring: processor seconds and peak memory of every step from the file to the export.

    OMP_NUM_THREADS=2 python -m benchmarks.real_sizes [--only NAME] [--samples 64] [--write]

ResNet-50 on images of 224 pixels and a MiniLM-L6 on 128 tokens, both at random weights (`benchmarks/real_networks`).
Each step runs in a process of its own, which opens the network first and finds in the cache what the steps above it
left. Seconds are those of the processor, in all threads; passes are the same in dense passes over the same samples;
memory is the most that the process took, its Python, its packages and the network included. `search` is the command
with `--rule uniform` from an empty cache to the plan's file, `again` the same once more with its scores forgotten,
`export` that plan's checkpoint, checked in a fresh process.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.page import ROOT, benchmark_parser, run_benchmark

NETWORKS = ("resnet50", "minilm_l6")
STEPS = (
    *("dense pass", "open", "check", "spectra", "first plan", "factorising", "factorising again", "first figure"),
    *("search", "again", "export"),
)
Figures = tuple[float, float]
"""Processor seconds and peak memory in bytes."""


def main() -> None:
    """Print a table for each network."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--only", choices=NETWORKS, action="append", help="a network (repeatable)")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help="only these")
    parser.add_argument("--here", nargs=3, metavar=("NETWORK", "STEP", "FOLDER"), help="one step, in this process")
    options = parser.parse_args()
    os.environ["SAMPLES"] = str(options.samples)
    if options.here:
        network, step, folder = options.here
        print(json.dumps(in_this_process(network, step, Path(folder))))
        return
    for network in options.only or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {network}, {options.samples} samples | seconds | passes | memory |\n|---|---|---|---|")
            dense = 0.0
            for step in dict.fromkeys(("dense pass", *options.steps)):
                seconds, peak = measured(network, step, Path(folder))
                dense = dense or seconds
                print(f"| {step} | {seconds:.1f} | {seconds / dense:.2f} | {peak / 1e6:,.0f} MB |", flush=True)
            print()


def measured(network: str, step: str, folder: Path) -> Figures:
    """One step in a process of its own; commands with their fresh processes."""
    if step not in COMMANDS:
        command = [sys.executable, "-m", "benchmarks.real_sizes", "--samples", os.environ["SAMPLES"]]
        told = subprocess.run([*command, "--here", network, step, str(folder)], cwd=ROOT, check=True, stdout=-1).stdout
        seconds, peak = json.loads(told)
        return seconds, peak
    if step == "search":
        shutil.rmtree(folder / "rank-explorer", ignore_errors=True)
    if step == "again":
        shutil.rmtree(folder / "rank-explorer" / "points", ignore_errors=True)
    command = [sys.executable, "-m", "lowrank_core", *COMMANDS[step](model_file(network), folder)]
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": str(folder)}, stderr=-1)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}: {child.stderr and child.stderr.read()!r}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


COMMANDS: dict[str, Callable[[str, Path], list[str]]] = {
    "search": lambda ref, folder: ["search", ref, "--rule", "uniform", "--out", str(folder / "plan.json")],
    "again": lambda ref, folder: ["search", ref, "--rule", "uniform", "--out", str(folder / "plan.json")],
    "export": lambda ref, folder: [
        *("export", ref, "--plan", str(folder / "plan.json")),
        *("--format", "safetensors", "--out", str(folder / "small.safetensors")),
    ],
}


def model_file(network: str) -> str:
    """The reference of a network."""
    return str(ROOT / "benchmarks" / "real_networks" / f"{network}.py")


def in_this_process(network: str, step: str, folder: Path) -> Figures:
    """One step of the library in this process, with the cache of the steps before it."""
    from lowrank_core.compression.start import starting_plan
    from lowrank_core.plans.cost import rank_at, useful_rank
    from lowrank_core.plans.plan import Choice, RankPlan
    from lowrank_core.scoring.scores import final_score
    from lowrank_core.store.cache import Cache
    from lowrank_core.workspace import Workspace

    began = time.process_time()
    workspace = Workspace.open(model_file(network), Cache(folder / "steps"))
    opening = time.process_time() - began
    layers = workspace.profile.layers

    def halves() -> RankPlan:
        """Each layer that can be cheaper at half of its largest paying rank, as `uniform` has it."""
        tops = {x.name: (x.methods[0].name, useful_rank(x, x.methods[0].name)) for x in layers}
        choices = {name: Choice(method, rank_at(top, 0.5)) for name, (method, top) in tops.items() if all(top)}
        return RankPlan.of(workspace.profile.fingerprint, choices)

    def dense_pass() -> None:
        for _ in workspace.reference.batches():
            pass

    works: dict[str, Callable[[], object]] = {
        "dense pass": dense_pass,
        "open": lambda: None,
        "check": lambda: workspace.self_check,
        "spectra": lambda: [workspace.factors(x.name, x.methods[0].name).spectra for x in layers],
        "first plan": lambda: starting_plan(workspace.profile, workspace.factors),
        "factorising": lambda: workspace.compress(halves()),
        "factorising again": lambda: workspace.compress(halves()),
        "first figure": lambda: final_score(
            workspace.measure(workspace.compress(halves(), workspace.correction), keep=False)
        ),
    }
    if step in ("dense pass", "first figure"):
        _ = workspace.self_check, workspace.judged, workspace.reference.outputs
    began = time.process_time()
    works[step]()
    seconds = opening if step == "open" else time.process_time() - began
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    run_benchmark(main)
