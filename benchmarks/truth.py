"""What every store goes by: each input that may change, and whether the store then has another name or the same.

    python -m benchmarks.truth

A small network is written to a file with a neighbour, weights and data beside it; then one thing is changed at a time.
`other`: what was kept before is not used for the changed network; `same`: it is, for its values do not depend on that.
The second table: what a compressed and corrected network answers, bit by bit, alone in its process and beside others.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.page import ROOT, benchmark_parser, run_benchmark
from lowrank_core import version
from lowrank_core.compression import calibration, correct, factors
from lowrank_core.layers.data import data_hash
from lowrank_core.measure import ledger, staircases
from lowrank_core.measure.ledger import Ledger, score_key
from lowrank_core.measure.staircases import StairFile, setting_of
from lowrank_core.networks.answers import answers
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.predict import context, sensitivity
from lowrank_core.predict.sensitivity import PointFile
from lowrank_core.store.cache import Cache
from lowrank_core.training import finetune
from lowrank_core.training.finetune import run_key
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace

MODEL = """
from pathlib import Path
import torch
from net import Net

SAVED = torch.load(Path(__file__).with_name("saved.pt"))

def build_model():
    model = Net()
    model.load_state_dict(SAVED["weights"])
    return model.eval()

def example_inputs():
    return (torch.zeros(1, 24),)

def eval_data():
    return SAVED["inputs"], SAVED["labels"]

def train_data():
    return SAVED["train inputs"], SAVED["train labels"]

def metric(outputs, targets):
    return float((outputs.argmax(1) == targets).double().mean())
"""

NEIGHBOUR = """
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(24, 32)
        self.second = nn.Linear(32, 6)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))
"""


def written(folder: Path) -> Path:
    """The model file, with all that it reads beside it."""
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (folder / "net.py").write_text(NEIGHBOUR)
    draw = torch.Generator().manual_seed(0)
    shapes = {"first.weight": (32, 24), "first.bias": (32,), "second.weight": (6, 32), "second.bias": (6,)}
    saved = {
        "weights": {name: torch.randn(shape, generator=draw) / 4 for name, shape in shapes.items()},
        "inputs": torch.randn(60, 24, generator=draw),
        "labels": torch.randint(6, (60,), generator=draw),
        "train inputs": torch.randn(60, 24, generator=draw),
        "train labels": torch.randint(6, (60,), generator=draw),
    }
    torch.save(saved, folder / "saved.pt")
    return folder / "model.py"


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


def _change(name: str) -> Callable[[Path], None]:
    """One number in the saved tensors, more or less."""

    def change(folder: Path) -> None:
        saved = torch.load(folder / "saved.pt")
        tensor = saved["weights"]["second.weight"] if name == "weights" else saved[name]
        tensor.view(-1)[7] = tensor.view(-1)[7] + 1 if tensor.is_floating_point() else (tensor.view(-1)[7] + 1) % 6
        torch.save(saved, folder / "saved.pt")

    return change


INPUTS: dict[str, Callable[[Path], None]] = {
    "weights": _change("weights"),
    "`forward` in a neighbour": _edit("net.py", "F.relu(", "F.gelu("),
    "`forward` from the model file": _edit(
        "model.py", "model = Net()", "model = Net(); model.first.register_forward_hook(lambda *a: a[2] + 1)"
    ),
    "metric": _edit("model.py", "== targets).double().mean()", "== targets).double().mean() ** 2"),
    "direction of the metric": _edit("model.py", "def metric", "higher_is_better = False\n\ndef metric"),
    "evaluation inputs": _change("inputs"),
    "evaluation labels": _change("labels"),
    "training inputs": _change("train inputs"),
    "training labels": _change("train labels"),
    "batch of the example inputs": _edit("model.py", "torch.zeros(1, 24)", "torch.zeros(2, 24)"),
    "a comment in the model file": _edit("model.py", "import torch", "import torch  # PyTorch"),
    "another file beside it": lambda folder: (folder / "plan.json").write_text("{}") and None,
    "where it all lies": lambda folder: None,
}
"""What may change in or beside a model file."""

CORRECTION = "correction"
VERSION = "version of the algorithm"
OF_ANOTHER = "version of the factors"
RELEASE = "release of the product"
THREADS = "threads"

Store = Callable[[Workspace, Correction | None], object]
PLAN = {"second": Choice("svd", (2,))}


def plan(workspace: Workspace) -> RankPlan:
    """A plan of the small network."""
    return RankPlan.of(workspace.profile.fingerprint, PLAN)


def _kept(method: str) -> Store:
    """Names of the files that a factorisation leaves in an empty cache."""

    def names(workspace: Workspace, correction: Correction | None) -> object:
        workspace.factors("second", method).spectra  # noqa: B018 - asked for, so computed
        assert workspace.cache is not None
        found = {path.name for path in (workspace.cache.folder / "tensors").iterdir()}
        moments = {
            workspace.cache.path(workspace.moments._about(layer.name)).name for layer in workspace.profile.layers
        }
        return sorted(found - moments)

    return names


def _moments(workspace: Workspace, correction: Correction | None) -> object:
    workspace.moments("second")
    assert workspace.cache is not None
    return sorted(path.name for path in (workspace.cache.folder / "tensors").iterdir())


def _score(workspace: Workspace, correction: Correction | None) -> object:
    candidate = workspace.candidate(plan(workspace), corrected=False)
    return str(Ledger.of(workspace)._path), score_key(replace(candidate, correction=correction), None)


def _training(workspace: Workspace, correction: Correction | None) -> object:
    candidate = workspace.candidate(plan(workspace), corrected=False)
    return run_key(workspace, replace(candidate, correction=correction), Settings())


def _stairs(workspace: Workspace, correction: Correction | None) -> object:
    return StairFile(Path(), workspace.profile.layer("second"), setting_of(workspace)).path


STORES: dict[str, tuple[Store, object]] = {
    "factors": (_kept("svd"), factors),
    "data-aware factors": (_kept("svd_aware"), factors),
    "moments": (_moments, calibration),
    "points of layers": (lambda w, c: PointFile(Path(), w, c).path, sensitivity),
    "context": (lambda w, c: PointFile(Path(), w, c).beside("context", context.VERSION), context),
    "scores of plans": (_score, ledger),
    "trainings": (_training, finetune),
    "latency staircases": (_stairs, staircases),
    "pages and their jobs": (lambda w, c: w.identity, None),
}
"""What names the values of each store, and the module whose VERSION is that of its algorithm."""


def table() -> dict[str, dict[str, bool | None]]:
    """{input: {store: whether another name follows}}; None where a store has no algorithm of its own."""
    with tempfile.TemporaryDirectory() as made:
        begin, places = Path(made), iter(range(10**6))

        def names(path: Path, corrected: bool = True) -> dict[str, object]:
            found: dict[str, object] = {}
            for store, (name, _) in STORES.items():
                cache = begin / "cache"  # the same place for all, empty for each: its path is in some names
                shutil.rmtree(cache, ignore_errors=True)
                workspace = Workspace.open(str(path), Cache(cache))
                found[store] = name(workspace, workspace.correction if corrected else None)
            return found

        def compared(after: dict[str, object]) -> dict[str, bool | None]:
            return {store: after[store] != before[store] for store in STORES}

        first = written(begin / "first")
        before = names(first)
        rows: dict[str, dict[str, bool | None]] = {}
        for label, change in INPUTS.items():
            folder = begin / str(next(places))
            shutil.copytree(first.parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
            change(folder)
            rows[label] = compared(names(folder / "model.py"))
        rows[CORRECTION] = compared(names(first, corrected=False))
        rows[VERSION] = {}
        for store, (_, module) in STORES.items():
            if module is None:
                rows[VERSION][store] = None
                continue
            with patch.object(module, "VERSION", 99):
                rows[VERSION][store] = compared(names(first))[store]
        with patch.object(factors, "VERSION", 99), patch.object(correct, "VERSION", 99):
            rows[OF_ANOTHER] = compared(names(first))
        with patch.object(version, "__version__", "99.0"):
            rows[RELEASE] = compared(names(first))
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        try:
            rows[THREADS] = compared(names(first))
        finally:
            torch.set_num_threads(threads)
        return rows


def bits(address: str) -> str:
    """A hash of all that a network answers to its evaluation samples at half its ranks, corrected."""
    workspace = Workspace.open(address)
    found = uniform_plan(workspace.profile, 0.5)
    model = workspace.compress(found, workspace.correction)
    parts = (part for part, _ in workspace.reference.batches())
    return data_hash([answers(model, part) for part in parts])[7:19]


def beside_others(addresses: Sequence[str]) -> dict[str, dict[str, str]]:
    """{way of running: {address: bits}}: alone, all in one process, in threads at once, in processes at once."""

    def started(address: str) -> subprocess.Popen[str]:
        code = f"from benchmarks.truth import bits; print(bits({address!r}))"
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def ended(process: subprocess.Popen[str]) -> str:
        return process.communicate()[0].strip()

    ways = {"alone, in a process of its own": {address: ended(started(address)) for address in addresses}}
    ways["one after the other in one process"] = {address: bits(address) for address in addresses}
    with ThreadPoolExecutor(len(addresses)) as pool:
        ways["at once, in threads of one process"] = dict(zip(addresses, pool.map(bits, addresses), strict=True))
    processes = {address: started(address) for address in addresses}
    ways["at once, in processes"] = {address: ended(process) for address, process in processes.items()}
    return ways


def main() -> None:
    """Print the tables."""
    benchmark_parser(__doc__).parse_args()
    print(f"| changed | {' | '.join(STORES)} |\n|---|{'---|' * len(STORES)}")
    words = {True: "other", False: "same", None: "–"}
    for label, row in table().items():
        print(f"| {label} | {' | '.join(words[row[store]] for store in STORES)} |")
    with tempfile.TemporaryDirectory() as made:
        first, second = (written(Path(made) / name) for name in ("relu", "gelu"))
        INPUTS["`forward` in a neighbour"](second.parent)
        labels = {str(first): "net.py with relu", str(second): "net.py with gelu"}
        labels |= {f"builtin:{name}": name for name in ("digits-cnn", "digits-lstm")}
        print(f"\n| answers | {' | '.join(labels.values())} |\n|---|{'---|' * len(labels)}", flush=True)
        for way, found in beside_others(list(labels)).items():
            print(f"| {way} | {' | '.join(found[address] for address in labels)} |", flush=True)


if __name__ == "__main__":
    run_benchmark(main)
