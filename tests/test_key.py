"""Every figure belongs to what it was measured on: names of stores, and what commands answer after an edit."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from benchmarks import truth
from lowrank_core.commands import _opening, cli
from lowrank_core.errors import LowRankError
from lowrank_core.layers.data import Dataset
from lowrank_core.measure.ledger import Ledger
from lowrank_core.networks.answers import SAMPLES, answers, answers_hash, drawn
from lowrank_core.scoring.judgement import judgement
from lowrank_core.scoring.metrics import METRICS, TOP1, Metric
from lowrank_core.store.key import NetworkKey
from lowrank_core.workspace import Workspace

AWARE, MOMENTS, TRAININGS, STAIRS, PAGES = (
    "data-aware factors",
    "moments",
    "trainings",
    "latency staircases",
    "pages and their jobs",
)
FIGURES = {"points of layers", "context", "scores of plans", TRAININGS}
CODE = {AWARE, MOMENTS, PAGES} | FIGURES

OTHER: dict[str, set[str]] = {
    "weights": {"factors"} | CODE,
    "`forward` in a neighbour": CODE,
    "`forward` from the model file": CODE,
    "metric": FIGURES | {PAGES},
    "direction of the metric": FIGURES | {PAGES},
    "evaluation inputs": FIGURES | {PAGES},
    "evaluation labels": FIGURES | {PAGES},
    "training inputs": CODE,
    "training labels": {TRAININGS, PAGES},
    "batch of the example inputs": {STAIRS, PAGES},
    "a comment in the model file": set(),
    "another file beside it": set(),
    "where it all lies": set(),
    truth.CORRECTION: FIGURES,
    truth.VERSION: set(truth.STORES) - {PAGES},
    truth.OF_ANOTHER: {"factors", AWARE} | FIGURES,
    truth.RELEASE: set(),
    truth.THREADS: {MOMENTS},  # whose last bits they change; the answers that name the network are those of one thread
}
"""The stores that must go by another name once this has changed; all others must not."""


def test_a_store_has_another_name_exactly_where_its_values_depend_on_what_changed():
    found = {label: {store for store, other in row.items() if other} for label, row in truth.table().items()}
    assert found == OTHER


# ---- commands -------------------------------------------------------------------------------------------------------

PLAN = "plan.json"
COMMANDS = {
    "profile": (),
    "search": ("--multiplies", 0.5, "--out", "found.json"),
    "finetune": ("--plan", PLAN, "--epochs", 1, "--watch", 20, "--out", "tuned.safetensors"),
}


def answer(model: Path, command: str, *more: object) -> dict[str, Any]:
    """What a command says in JSON, without what differs from run to run; the checkpoint it writes among it."""
    paths = {PLAN, "found.json", "tuned.safetensors"}
    given = [str(model.parent / str(word)) if word in paths else str(word) for word in COMMANDS[command]]
    result = CliRunner().invoke(cli, [command, str(model), *given, "--json", *map(str, more)])
    assert result.exit_code == 0, result.output
    text = re.sub(r'"seconds[a-z_]*": [0-9.e-]+', "", result.stdout)
    return {"says": re.sub(r"[\s,]+", " ", text)}


@pytest.mark.slow
@pytest.mark.parametrize("change", ["`forward` in a neighbour", "metric", "evaluation labels"])
@pytest.mark.parametrize("command", COMMANDS)
def test_after_an_edit_a_command_answers_with_the_new_networks_figures(command, change, tmp_path, monkeypatch):
    monkeypatch.setattr(_opening, "CACHE", tmp_path / "cache")
    model = truth.written(tmp_path / "model")
    workspace = Workspace.open(str(model))
    (model.parent / PLAN).write_text(workspace.candidate(truth.plan(workspace)).plan.to_json())
    before = answer(model, command)
    truth.INPUTS[change](model.parent)
    kept = answer(model, command)
    assert kept == answer(model, command, "--no-cache")
    assert kept != before


def test_a_search_that_goes_on_under_other_threads_finds_its_points(tmp_path):
    path = truth.written(tmp_path / "model")
    threads, names = torch.get_num_threads(), set()
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            workspace = Workspace.open(str(path))
            names.add((workspace.key, Ledger.of(workspace, tmp_path)._path))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
    assert len(names) == 1


# ---- what a key is made of ------------------------------------------------------------------------------------------


def of(forward, **given) -> NetworkKey:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Any:
            return forward(self.fc(x))

    draw = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(30, 5, generator=draw), torch.randint(4, (30,), generator=draw)
    return Workspace.of(Net().eval(), torch.zeros(1, 5), given.pop("data", (inputs, labels)), **given).key


def changed(a: NetworkKey, b: NetworkKey) -> set[str]:
    return {name for name in ("fingerprint", "answers", "metric", "data") if getattr(a, name) != getattr(b, name)}


def test_an_output_that_is_not_judged_belongs_to_the_answers():
    one = of(lambda y: (y, {"more": y.sin()}))
    assert changed(one, of(lambda y: (y, {"more": y.cos()}))) == {"answers"}
    assert changed(one, of(lambda y: (y, {"more": y.sin()}))) == set()


class Cached:
    """An object of somebody's own in an answer, as the caches of transformers."""

    def __init__(self, *values: Tensor) -> None:
        self.layers, self.itself = list(values), self


def test_all_tensors_of_an_answer_are_found_in_order():
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"b": (x, [x + 1, None]), "a": Cached(x + 2, x + 3), "c": 7}

    found = answers(Nested(), Dataset(torch.zeros(2, 3)))
    assert sorted(float(t[0, 0]) for t in found) == [0, 1, 2, 3]


def test_a_network_is_left_as_it_was_by_its_answers():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    data = Dataset(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))
    assert answers_hash(model, data) == answers_hash(model, data)
    assert all(module.training for module in model.modules())
    assert model[1].num_batches_tracked == 0
    assert len(drawn(data)) == SAMPLES


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (METRICS["top-1"], METRICS["top-5"]),
        (METRICS["agreement"], METRICS["cosine"]),
        (TOP1, replace(TOP1, higher_is_better=False)),
        (
            Metric("metric", value=lambda outputs, targets: float((outputs.argmax(1) == targets).double().mean())),
            Metric("metric", value=lambda outputs, targets: float((outputs.argmin(1) == targets).double().mean())),
        ),
        (  # two that say the same of the dense outputs
            Metric("metric", value=lambda outputs, dense: float((outputs == dense).double().mean()), label_free=True),
            Metric("metric", value=lambda o, d: float((o.argmax(1) == d.argmax(1)).double().mean()), label_free=True),
        ),
        (  # two thresholds
            Metric("metric", value=lambda outputs, targets: float((outputs > 0.5).double().mean())),
            Metric("metric", value=lambda outputs, targets: float((outputs > 0.6).double().mean())),
        ),
    ],
    ids=["another", "another without labels", "direction", "code", "code without labels", "threshold"],
)
def test_another_metric_says_something_else(before, after):
    torch.manual_seed(0)
    model = nn.Linear(5, 6)
    few = Dataset(torch.randn(8, 5), torch.arange(8) % 6)
    assert judgement(before, model, few, ["output"]) == judgement(before, model, few, ["output"])
    assert judgement(before, model, few, ["output"]) != judgement(after, model, few, ["output"])


def test_a_metric_that_cannot_judge_one_sample_has_a_name_all_the_same():
    def fussy(outputs: Tensor, targets: Tensor) -> float:
        if len(outputs) < 2:
            raise ZeroDivisionError
        return 1.0

    few = Dataset(torch.randn(8, 5), torch.arange(8) % 5)
    assert "ZeroDivisionError" in str(judgement(Metric("metric", value=fussy), nn.Linear(5, 5), few, ["output"]))


def test_training_samples_that_are_refused_stand_in_no_uncorrected_searchs_way(tmp_path):
    path = truth.written(tmp_path / "model")
    path.write_text(path.read_text().replace('SAVED["train inputs"], ', "None, "))
    workspace = Workspace.open(str(path))
    with pytest.raises(LowRankError, match="train_data"):
        _ = workspace.calibration
    assert Ledger.of(workspace, tmp_path)._path is not None
    assert workspace.identity


EVALUATES = """
import torch
from torch import nn
from helper import scale

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2)).eval()

def example_inputs():
    return (torch.randn(1, 6),)  # others whenever it is opened

def evaluate(model):
    return scale * float(model(torch.ones(1, 6)).sum())
"""


def test_what_evaluate_does_is_told_by_its_code_and_its_neighbours(tmp_path):
    path, helper = tmp_path / "model.py", tmp_path / "helper.py"
    path.write_text(EVALUATES)
    helper.write_text("scale = 1.0\n")
    first = Workspace.open(str(path)).key
    assert Workspace.open(str(path)).key == first
    assert (first.answers, first.data) == ("", "")
    helper.write_text("scale = 2.0\n")
    second = Workspace.open(str(path)).key
    assert changed(first, second) == {"metric"}
    path.write_text(EVALUATES.replace("scale * float", "float"))
    assert changed(second, Workspace.open(str(path)).key) == {"metric"}


def test_a_key_that_is_handed_over_is_not_computed_again():
    key = NetworkKey("a", "b", "c", "d")
    assert Workspace.open("builtin:iris-mlp", key=key).key is key
    assert key.digest != replace(key, answers="e").digest
