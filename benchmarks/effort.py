"""What a search or a training is said to take before it starts, against what it then took, in one process each.

    python -m benchmarks.effort [--models REF ...] [--write]

Rules at half of the multiplies (`bisection`: 2 points lost at most), without a cache: everything is done anew. The
seconds said come from a few passes of the dense network and from counted work; those taken are of the wall clock, so
on a busy machine both grow. Measurements: said, which is the most there can be, and made.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.page import benchmark_parser, run_benchmark

MODELS = ("builtin:digits-cnn", "builtin:digits-attention", "builtin:digits-lstm", "builtin:fft-mlp")
RULES = ("uniform", "balf", "budget", "aimet_greedy", "cross_validation", "bisection")


def one(ref: str, name: str) -> None:
    """Print what one search is said to take and what it took, as JSON."""
    from lowrank_core.scoring.scores import final_score
    from lowrank_core.selection import make, search, search_effort
    from lowrank_core.selection._problem import problem_of
    from lowrank_core.workspace import Workspace

    workspace = Workspace.open(ref)
    workspace.dense_score(64)
    _ = workspace.key
    rule = make(name, {})
    wish = {"max_drop": 0.02} if name == "bisection" else {"multiplies": 0.5}
    problem = problem_of(workspace, **wish)
    said = search_effort(rule, problem)
    began = time.perf_counter()
    *_, last = search(rule, problem)
    final_score(workspace.measure(workspace.compress(last.candidate.plan, last.candidate.correction)))
    seconds = time.perf_counter() - began
    print(json.dumps([said.measurements, said.seconds, seconds]))


def main() -> None:
    """Print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--one", nargs=2)
    given = parser.parse_args()
    if given.one:
        one(*given.one)
        return
    print("| network | rule | measurements | seconds said | seconds taken | said / taken |\n|---|---|---|---|---|---|")
    for ref in given.models:
        for rule in RULES:
            command = [sys.executable, "-m", "benchmarks.effort", "--one", ref, rule]
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode:
                print(f"| {Path(ref).stem} | {rule} | {ended.stderr.strip().splitlines()[-1][:100]} | | | |")
                continue
            measurements, said, taken = json.loads(ended.stdout.splitlines()[-1])
            print(
                f"| {Path(ref).stem} | {rule} | {measurements} | {said:.1f} | {taken:.1f} | {said / taken:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    run_benchmark(main)
