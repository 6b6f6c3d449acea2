"""Plain C: flash and RAM of the compiled object, whether it answers as the network, what int8 costs, and its time

    python -m benchmarks.c_export [MODEL ...]

Each network dense and at half of its bytes (uniform ranks, corrected), as a header in float32 and in int8. Flash and
RAM: of the object that this machine's C compiler makes with -Os, beside what the board counts, and, where
`arm-none-eabi-gcc` is installed, of the one for a Cortex-M4F. Difference: the largest of any output from the network
that was measured, in a fresh process; of int8, from the same integer arithmetic in PyTorch. Milliseconds: one sample,
one thread, compiled with -O3 for this machine, as times those of onnxruntime on the dense or compressed network in
float32, in turn; the median of the rounds.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.page import benchmark_parser, run_benchmark, table_of
from lowrank_core import RankPlan, Workspace
from lowrank_core.compression.precision import Storage
from lowrank_core.exports import EXPORTS, Compressed, Exported
from lowrank_core.graphs.c_compiled import CNetwork, size_of
from lowrank_core.graphs.exporting import OnnxNetwork, onnx_program
from lowrank_core.measure.formats import FORMATS, plan_flash_bytes
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.scoring.scores import final_score

ARM = "arm-none-eabi-gcc"
CORTEX_M4F = ("-Os", "-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard")
ROUNDS, SECONDS = 15, 0.05
HEAD = (
    "| network | weights | numbers | flash, B | code in it, B | board's flash, B | RAM, B | Cortex-M4F flash, RAM, B | "
    "difference | score, dense | ms a call | times onnxruntime |\n|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def seconds_each(one: OnnxNetwork | CNetwork, x: torch.Tensor, calls: int) -> float:
    """Seconds of a call, of so many."""
    began = time.perf_counter()
    for _ in range(calls):
        one(x)
    return (time.perf_counter() - began) / calls


def in_turn(one: CNetwork, other: OnnxNetwork, x: torch.Tensor) -> tuple[float, float]:
    """Milliseconds of a call of the first, and the ratio to the second."""
    calls = [max(1, round(SECONDS / seconds_each(each, x, 2))) for each in (one, other)]
    rounds = [(seconds_each(one, x, calls[0]), seconds_each(other, x, calls[1])) for _ in range(ROUNDS)]
    return 1e3 * statistics.median(a for a, _ in rounds), statistics.median(a / b for a, b in rounds)


def arm_size(header: Path) -> str:
    """Flash and RAM for a Cortex-M4F; a dash without its compiler."""
    if shutil.which(ARM) is None:
        return "–"
    taken = size_of(header, command=ARM, options=CORTEX_M4F, size=shutil.which("arm-none-eabi-size") or "")
    return "–" if taken is None else f"{taken.flash_bytes:,}, {taken.ram_bytes:,}"


def row(workspace: Workspace, plan: RankPlan, number: str, exported: Exported, given: Compressed) -> list[str]:
    """What was found of one header."""
    taken, header = exported.compiled, Path(exported.path)
    assert taken is not None
    x = workspace.opened.example_inputs
    x = x[0] if isinstance(x, tuple) else x
    onnx = OnnxNetwork(onnx_program(given.model, x).SerializeToString())
    milliseconds, ratio = in_turn(CNetwork(header), onnx, x)
    score = exported.score
    assert score is not None
    return [
        workspace.name,
        "half the bytes" if plan.choices else "dense",
        number,
        f"{taken.flash_bytes:,}",
        f"{taken.text:,}",
        f"{plan_flash_bytes(workspace.model, workspace.profile, plan, number):,}",
        f"{taken.ram_bytes:,}",
        arm_size(header),
        f"{exported.max_abs_diff or 0:.2g}",
        f"{score.value:.4g}, {score.dense:.4g}",
        f"{milliseconds:.3g}",
        f"{ratio:.1f}",
    ]


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("models", nargs="*", default=["builtin:digits-cnn"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for ref in options.models:
        workspace = Workspace.open(ref)
        for plan in (RankPlan(workspace.profile.fingerprint), uniform_plan(workspace.profile, 0.5, "bytes")):
            model = workspace.compress(plan, workspace.correction) if plan.choices else workspace.model
            given = Compressed(model, plan, final_score(workspace.measure(model, keep=False)))
            for number in ("float32", "int8"):
                assert number in FORMATS
                written = given if number == "float32" else given.stored(workspace, Storage("int8"))
                with TemporaryDirectory() as folder:
                    exported = EXPORTS["c"].write(workspace, written, Path(folder) / "network.h")
                    rows.append(row(workspace, plan, number, exported, given))
    print(table_of(HEAD, rows))
    print("Inputs and outputs are the caller's, and not in the RAM above.")


if __name__ == "__main__":
    run_benchmark(main)
