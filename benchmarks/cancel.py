"""How long after it was cancelled a job is over, for every kind of job.

    python -m benchmarks.cancel builtin:digits-cnn builtin:digits-lstm ../shared/data/resnet20_cifar10.py
    python -m benchmarks.cancel builtin:digits-cnn --kind spectra --kind fine-tuning --moments 20

Every job starts from nothing, in a fresh folder, and is cancelled at a random moment (seeded) of the time that it
takes, or of its first seconds. Prints median and longest time from `cancel` to the end of its thread. With
`--stacks` also what the thread was doing, where it took longer than that.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.compression.start import starting_plan
from lowrank_core.layers.data import Dataset
from lowrank_core.measure.measurement import measurement
from lowrank_core.predict.sensitivity import asked, profile
from lowrank_core.predict.survey import survey
from lowrank_core.running.jobs import Job
from lowrank_core.selection import RULES, make
from lowrank_core.sources import open_any
from lowrank_core.sources._inventory import take_stock
from lowrank_core.sources._weights import Weights
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace
from pages.ui import compare, question, tuning
from pages.ui.compare import Column

SIDE = 4096
"""Of the matrices whose spectra are computed: what a model of seven billion parameters has."""

Begun = tuple[Callable[[], None], Callable[[float], bool]]
"""How to cancel it, and how to wait so many seconds for its end (True: it came)."""

Start = Callable[[str, Path], Begun]
"""Begin with a model's reference, and a folder for what is kept on disk."""


def opened(ref: str) -> Workspace:
    """A model that is open and whose data are read: a person's own code cannot be interrupted."""
    workspace = Workspace.open(ref)
    _ = workspace.reference, workspace.calibration_pool
    if workspace.opened.train_data is not None:
        read = workspace.opened.train_data()
        workspace.opened = replace(workspace.opened, train_data=lambda: read)
    return workspace


def searching(rule: str) -> Start:
    """A search by a rule, from a model that is open."""

    def start(ref: str, folder: Path) -> Begun:
        workspace = opened(ref)
        budget = "budget" in RULES[rule].serves  # type: ignore[attr-defined]
        asks: dict[str, Any] = {"budgets": (("multiplies", 0.5),)} if budget else {"max_drop": 0.05}
        if "nothing" in RULES[rule].serves and not budget and "max_drop" not in RULES[rule].serves:  # type: ignore[attr-defined]
            asks = {}
        wanted = question.Question(make(rule, {}), **asks)
        return _begun(Job("search", lambda: question.ask(workspace, wanted, folder)))

    return start


def profiling(ref: str, folder: Path) -> Begun:
    """Every layer at every method and a few ranks, corrected."""
    workspace = opened(ref)

    def work() -> Iterator[Any]:
        samples = Dataset(workspace.reference.dataset.pick(slice(0, 128)).inputs)
        yield profile(workspace, workspace.correction, asked(workspace), samples, folder=folder)

    return _begun(Job("profile", work))


def fine_tuning(ref: str, folder: Path) -> Begun:
    """The starting plan, for three epochs."""
    workspace = opened(ref)
    wanted = tuning.Training(_candidate(workspace), Settings(epochs=3))
    return _begun(Job("train", lambda: tuning.train(workspace, wanted, folder, folder, lambda tuned, epoch: None)))


def sweeping(workers: int) -> Start:
    """Plans at three shares, trained here or in several processes."""

    def start(ref: str, folder: Path) -> Begun:
        workspace = opened(ref)
        wanted = tuning.Sweep((0.3, 0.5, 0.7), "multiplies", make("energy", {}), Settings(epochs=2), workers=workers)
        return _begun(Job("sweep", lambda: tuning.run_sweep(workspace, wanted, folder, folder)))

    return start


def comparing(make_asked: Callable[[Workspace], compare.Wish]) -> Start:
    """A job of the page Compare."""

    def start(ref: str, folder: Path) -> Begun:
        workspace = opened(ref)
        wanted = make_asked(workspace)
        return _begun(Job("compare", lambda: compare.work(workspace, wanted, folder)))

    return start


def spectra(ref: str, folder: Path) -> Begun:
    """Three large matrices, without a model."""
    path = folder / "large.safetensors"
    save_file({f"layers.{n}.weight": torch.randn(SIDE, SIDE) for n in range(3)}, path)
    weights = open_any(str(path))
    assert isinstance(weights, Weights)
    stock = take_stock(weights)

    def work() -> Iterator[str]:
        for layer in stock.layers:
            stock.spectrum(layer.name)
            yield layer.name

    return _begun(Job("spectra", work))


def factorising(ref: str, folder: Path) -> Begun:
    """Every layer by every method."""
    workspace = opened(ref)

    def work() -> Iterator[str]:
        for layer in workspace.profile.layers:
            for method in layer.methods:
                workspace.factors(layer.name, method.name)
                yield layer.name

    return _begun(Job("factorise", work))


def surveying(ref: str, folder: Path) -> Begun:
    """What Ranks learns in the background."""
    workspace = opened(ref)
    return _begun(Job("survey", lambda: survey(workspace, corrected=True, folder=folder), patience_seconds=inf))


def measuring(ref: str, folder: Path) -> Begun:
    """The starting plan, corrected, on all samples."""
    workspace = opened(ref)
    return _begun(measurement(workspace, _candidate(workspace)))


KINDS: dict[str, Start] = {
    "profile": profiling,
    **{f"search by {rule}": searching(rule) for rule in RULES},
    "fine-tuning": fine_tuning,
    "sweep": sweeping(1),
    "sweep in 2 processes": sweeping(2),
    "comparison": comparing(lambda workspace: compare.Scores((Column(_candidate(workspace)),) * 2)),
    "latency of plans": comparing(
        lambda workspace: compare.Races((Column(_candidate(workspace)).timed,), "onnxruntime")
    ),
    "latency of layers": comparing(lambda workspace: compare.Stairs("onnxruntime", ("svd", "tucker2"))),
    "factorising": factorising,
    "survey": surveying,
    "measurement": measuring,
    "spectra": spectra,
}


def _candidate(workspace: Workspace) -> Any:
    return workspace.candidate(starting_plan(workspace.profile, workspace.factors))


def _begun(job: Job[Any]) -> Begun:
    return job.cancel, lambda seconds: job.wait(seconds).over


def cancelled(start: Start, ref: str, after: float, stacks: float | None) -> float | None:
    """Seconds from the call to the end; None where the job was over before."""
    with tempfile.TemporaryDirectory(prefix="rank-explorer-cancel-") as folder:
        before = set(threading.enumerate())
        cancel, over = start(ref, Path(folder))
        if over(after):
            return None
        cancel()
        began = time.monotonic()
        if stacks is not None and not over(stacks):
            show(set(threading.enumerate()) - before)
        while not over(60):
            pass
        return time.monotonic() - began


def show(threads: set[threading.Thread]) -> None:
    """What they are doing."""
    frames = sys._current_frames()
    for thread in threads:
        if thread.ident in frames:
            lines = [
                f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_stack(frames[thread.ident])
            ]
            print(f"      {thread.name}: {' > '.join(lines[-9:])}", flush=True)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    parser.add_argument("--moments", type=int, default=8, help="how often each job is cancelled")
    parser.add_argument("--longest", type=float, default=15.0, help="seconds of a job that are looked at")
    parser.add_argument("--stacks", type=float, help="say what is going on after so many seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for ref in options.models:
        print(f"{ref}: seconds from cancel to over, median and longest")
        for kind in options.kind or KINDS:
            began = time.monotonic()
            waits = [cancelled(KINDS[kind], ref, options.longest, options.stacks)]
            whole = min(options.longest, time.monotonic() - began)
            random = Random(f"{kind} {ref}")
            moments = sorted(random.uniform(0.0, whole) for _ in range(options.moments))
            waits += [cancelled(KINDS[kind], ref, moment, options.stacks) for moment in moments]
            taken = [wait for wait in waits if wait is not None]
            found = f"{statistics.median(taken):6.2f} {max(taken):6.2f}" if taken else "over before"
            print(f"  {kind:32s} {found}   ({len(taken)} times, within {whole:.1f} s)", flush=True)


if __name__ == "__main__":
    run_benchmark(main)
