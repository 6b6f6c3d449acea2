"""What a start costs: CPU seconds of fresh processes, user and system, with the threads they start.

python -m benchmarks.start [--runs 5] [--beside PATH]

--beside: another checkout, measured in turn with this one. The median of all runs, and the range they lie in.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.page import benchmark_parser, run_benchmark

ROOT = Path(__file__).resolve().parents[1]

PAGE = """
from streamlit.testing.v1 import AppTest
page = AppTest.from_file("app.py", default_timeout=600).run()
assert page.title[0].value == "Rank Explorer" and not page.exception and not page.error
"""
STARTS = {
    "python, nothing imported": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import lowrank_core": ("-c", "import lowrank_core"),
    "from lowrank_core import RankPlan": ("-c", "from lowrank_core import RankPlan"),
    "from lowrank_core import RankPlan, plan_cost": ("-c", "from lowrank_core import RankPlan, plan_cost"),
    "python -m lowrank_core layers builtin:iris-mlp": ("-m", "lowrank_core", "layers", "builtin:iris-mlp"),
    "import streamlit's test runner": ("-c", "from streamlit.testing.v1 import AppTest"),
    "the first page, run once": ("-c", PAGE),
}


def cpu_seconds(arguments: tuple[str, ...], checkout: Path, home: Path) -> float:
    """User and system time of a fresh Python process in a checkout, and of those that it waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    folders = {f"XDG_{kind}_HOME": str(home / kind) for kind in ("CACHE", "DATA", "STATE", "CONFIG")}
    subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=os.environ | folders | {"PYTHONPATH": str(checkout)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="fresh processes for each figure; default 5")
    parser.add_argument("--beside", type=Path, help="another checkout")
    options = parser.parse_args()
    checkouts = {"here": ROOT} | ({"beside": options.beside.resolve()} if options.beside else {})
    print(f"{'CPU seconds':>50}" + "".join(f"{name:>28}" for name in checkouts))
    with tempfile.TemporaryDirectory() as folder:
        homes = {name: Path(folder, name) for name in checkouts}
        for label, arguments in STARTS.items():
            found: dict[str, list[float]] = {name: [] for name in checkouts}
            for name, checkout in checkouts.items():  # compiles what is not compiled yet, and fills the cache
                cpu_seconds(arguments, checkout, homes[name])
            for _ in range(options.runs):
                for name, checkout in checkouts.items():
                    found[name].append(cpu_seconds(arguments, checkout, homes[name]))
            cells = [f"{median(runs):.2f} ({min(runs):.2f} to {max(runs):.2f})" for runs in found.values()]
            print(f"{label:>50}" + "".join(f"{cell:>28}" for cell in cells), flush=True)


if __name__ == "__main__":
    run_benchmark(main)
