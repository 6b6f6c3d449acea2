"""Fuzzing of what reads files: coverage-guided inputs, none of which may end in anything but one of our own errors.

    pip install atheris
    python benchmarks/fuzz.py plan --seconds 600
    python benchmarks/fuzz.py checkpoint --seconds 600

Prints how many inputs were tried. An input that fails is kept in the folder it names.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def plan_reader() -> tuple[Callable[[bytes], object], list[bytes]]:
    """`read_plan`, and plans to begin with: every golden file and one that names many methods."""
    from lowrank_core.plan import read_plan

    golden = Path(__file__).resolve().parents[1] / "tests" / "golden"
    return read_plan, [path.read_bytes() for path in sorted(golden.glob("*.json"))]


def checkpoint_reader() -> tuple[Callable[[bytes], object], list[bytes]]:
    """`load_checkpoint` on a small network: a checkpoint of ours, dense safetensors and a file of torch.save."""
    import torch
    from safetensors.torch import save

    from lowrank_core import Workspace, export_checkpoint, load_checkpoint
    from lowrank_core.plan import Choice, RankPlan

    workspace = Workspace.open("builtin:iris-mlp")
    folder = Path(tempfile.mkdtemp(prefix="rank-explorer-fuzz-"))
    path = folder / "fuzzed"
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (2,))})
    export_checkpoint(workspace, plan, folder / "ours.safetensors")
    torch.save(workspace.model.state_dict(), folder / "dense.pt")
    dense = save({name: value.contiguous() for name, value in workspace.model.state_dict().items()})

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return load_checkpoint(workspace.model, path)

    return read, [(folder / "ours.safetensors").read_bytes(), (folder / "dense.pt").read_bytes(), dense]


READERS = {"plan": plan_reader, "checkpoint": checkpoint_reader}


def fuzz(reader: str, corpus: Path, options: list[str]) -> None:
    """One fuzzing process; atheris ends it."""
    import atheris

    with atheris.instrument_imports(include=["lowrank_core"], enable_loader_override=False):
        from lowrank_core.errors import LowRankError

        read, seeds = READERS[reader]()
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        with contextlib.suppress(LowRankError):
            read(data)

    longest = 2 * max(map(len, seeds))
    atheris.Setup([sys.argv[0], str(corpus), f"-max_len={longest}", "-rss_limit_mb=4096", *options], one)
    atheris.Fuzz()


def main() -> None:
    """Fuzz in a process of its own and say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=list(READERS))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        fuzz(asked.reader, asked.inside, [f"-max_total_time={asked.seconds}", f"-seed={asked.seed}"])
    folder = Path(tempfile.mkdtemp(prefix=f"rank-explorer-{asked.reader}-"))
    again = [sys.executable, __file__, asked.reader, "--seconds", str(asked.seconds), "--seed", str(asked.seed)]
    ended = subprocess.run([*again, "--inside", str(folder)], stderr=subprocess.PIPE, text=True, cwd=folder)
    done = re.search(r"Done (\d+) runs in (\d+) second", ended.stderr)
    if done is None or ended.returncode:
        print("\n".join(ended.stderr.splitlines()[-40:]))
        sys.exit(f"{asked.reader}: an input failed; it lies in {folder}")
    print(f"{asked.reader}: {int(done[1]):,} inputs in {done[2]} s, nothing but refusals ({folder} holds the corpus)")


if __name__ == "__main__":
    main()
