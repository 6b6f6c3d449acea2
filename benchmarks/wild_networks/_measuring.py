"""All that is measured of one network, in a process of its own; what is known by then is written after every step."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from benchmarks.wild_networks._packages import limit_to, place
from lowrank_core.errors import LowRankError
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.layers.data import Dataset, run, tensors
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import dense_cost, plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.scoring.scores import final_score
from lowrank_core.selection import make, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.store.files import write_whole
from lowrank_core.workspace import Workspace

SHARES = (0.5, 0.75, 0.3)
RULES = ("budget", "balf", "uniform")
"""The first search is `budget` at half of the multiplies, so that nothing of it was measured before."""
COMPARED = 32
"""Samples on which onnxruntime's answers are held against those of the network here."""
TIMED = 7
"""Calls of one sample, of which the median counts."""
PEAK = Path("/proc/self/clear_refs")
"""Where Linux can be told to forget how much memory a process once took."""


class Steps:
    """What is found, written to a file after every step, and the processor seconds and peak memory of each."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, dict[str, Any](steps={}, scores={})

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """One step; its name stays behind where it does not end."""
        self.write(now=name)
        if PEAK.exists():
            PEAK.write_text("5")
        began = time.process_time()
        yield
        self.found["steps"][name] = [time.process_time() - began, _peak_megabytes()]
        self.write(now="")

    def write(self, **more: Any) -> None:
        """Add to what is found."""
        self.found.update(more)
        write_whole(self.path, json.dumps(self.found).encode())


def _peak_megabytes() -> float | None:
    """The most memory this process has taken since it was last told to forget; None where it cannot be told."""
    if not PEAK.exists():
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def opened_as(name: str, work: Path) -> str:
    """What is opened of a network: its model file, or its ONNX file with its data beside it."""
    module = import_module(f"benchmarks.wild_networks.{name}")
    if not hasattr(module, "FILE"):
        return module.__name__
    path = work / f"{name}.onnx"
    shutil.copy(place(module.FILE), path)
    np.savez(path.with_suffix(".npz"), **module.data())
    return str(path)


def measure(name: str, work: Path, steps: Steps) -> None:
    """Open, first plan, first figure, every rule at every share, export; the two ONNX files side by side."""
    module = import_module(f"benchmarks.wild_networks.{name}")
    ref = opened_as(name, work)
    with steps("open"):
        workspace = Workspace.open(ref)
        profile = workspace.profile
    total = plan_cost(profile)
    compressible = sum(dense_cost(layer).parameters for layer in profile.layers)
    steps.write(
        layers=len(profile.layers),
        parameters=total.parameters,
        compressible=compressible / total.parameters,
        metric=workspace.metric.name,
        percent=workspace.metric.share or bool(getattr(module, "percent", False)),
    )
    with steps("first plan"):
        model = workspace.compress(uniform_plan(profile, 0.5), workspace.correction)
    with steps("first figure"):
        first = next(workspace.measure(model))
    steps.write(first_samples=first.samples)
    dense, samples = workspace.dense_score()
    nothing = Candidate(RankPlan(profile.fingerprint))
    steps.write(dense=[dense, 0.0, *_also(module, workspace, nothing)], samples=samples)
    plan = uniform_plan(profile, 0.5)
    for share in SHARES:
        for rule in RULES:
            with steps("search" if (share, rule) == (0.5, "budget") else f"{rule} at {share:.0%}"):
                try:
                    problem = problem_of(workspace, multiplies=share, folder=work)
                    *_, answer = search(make(rule, {}), problem)
                    assert answer.score is not None
                    said: Any = [answer.score.value, answer.score.drop, *_also(module, workspace, answer.candidate)]
                    if (share, rule) == (0.5, "budget"):
                        plan = answer.candidate.plan
                except LowRankError as error:
                    said = str(error)
            steps.found["scores"][f"{share} {rule}"] = said
            steps.write()
    correction = workspace.correction
    compressed = workspace.compress(plan, correction)
    small, original = work / "small.onnx", Path(ref) if ref.endswith(".onnx") else work / "dense.onnx"
    with steps("export"):
        score = final_score(workspace.measure(compressed))
        EXPORTS["onnx"].write(workspace, Compressed(compressed, plan, score, correction.to_dict()), small)
    if not original.exists():
        EXPORTS["onnx"].write(workspace, Compressed(workspace.model, RankPlan(profile.fingerprint)), original)
    data = workspace.reference.dataset.pick(slice(0, COMPARED))
    for what, path, network in (("original", original, workspace.model), ("exported", small, compressed)):
        distance, milliseconds = in_runtime(path, data, list(run(network, data).values()))
        steps.write(**{what: [distance, milliseconds, path.stat().st_size]})


def _also(module: ModuleType, workspace: Workspace, candidate: Candidate) -> list[str]:
    """What the network's file says besides of a plan's answers, in words."""
    if not hasattr(module, "also"):
        return []
    model = workspace.compress(candidate.plan, candidate.correction)
    return [module.also(next(iter(run(model, workspace.opened.eval_data()).values())))]


def in_runtime(path: Path, data: Dataset, expected: list[Tensor]) -> tuple[float, float]:
    """(largest distance from the answers expected, for the largest of them; milliseconds of one call) in onnxruntime.

    A call is of one sample, or of the batch that the file fixes.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()
    fixed = given[0].shape[0]
    batch = fixed if isinstance(fixed, int) else 1
    arrays = [tensor.numpy() for tensor in tensors(data.inputs)]
    feeds = [
        {value.name: array[at : at + batch] for value, array in zip(given, arrays, strict=True)}
        for at in range(0, len(data) - batch + 1, batch)
    ]
    answers = [np.concatenate(parts) for parts in zip(*(session.run(None, feed) for feed in feeds), strict=True)]
    distance = max(
        float(np.abs(ours - theirs.numpy()[: len(ours)]).max() / max(1e-30, float(theirs.abs().max())))
        for ours, theirs in zip(answers, expected, strict=True)
    )
    times = []
    for _ in range(TIMED):
        began = time.perf_counter()
        session.run(None, feeds[0])
        times.append(1000 * (time.perf_counter() - began))
    return distance, statistics.median(times)


def main() -> None:
    """NAME WORK SECONDS: measure a network; a reason that the product gives is written, all else ends the process."""
    name, work = sys.argv[1], Path(sys.argv[2])
    limit_to(float(sys.argv[3]))
    warnings.simplefilter("ignore")
    steps = Steps(work / "found.json")
    try:
        measure(name, work, steps)
    except LowRankError as error:
        steps.write(refused=str(error))


if __name__ == "__main__":
    main()
