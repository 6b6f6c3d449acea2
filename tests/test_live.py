"""Live networks: Workspace.of and compress take what a person has in memory, and leave it as it is."""

import logging
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from awkward_layers import filled, seeded
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowrank_core import Choice, LowRankError, RankPlan, Workspace, compress, load_checkpoint
from lowrank_core.errors import InvalidData, InvalidFile, InvalidModel, InvalidSearch
from lowrank_core.exports import EXPORTS, loading
from lowrank_core.layers.data import Dataset, call
from lowrank_core.one_call import Compression
from lowrank_core.predict.sensitivity import profile
from lowrank_core.running.parallel import Workers
from lowrank_core.scoring.scores import final_score
from lowrank_core.selection.budget import Budget
from lowrank_core.sources import _opened
from lowrank_core.store.cache import Cache

ROOT = Path(__file__).resolve().parents[1]


class Cnn(nn.Module):
    """Images (N, 3, 8, 8) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 24, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.norm(self.conv(x)).relu()).relu().mean((2, 3))
        return self.out(self.drop(x))


class Lstm(nn.Module):
    """Sequences (N, 5, 8) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 24, batch_first=True)
        self.out = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Encoder(nn.Module):
    """Sequences (N, 5, 16) -> (N, 4), called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x).mean(1))


class Tied(nn.Module):
    """Tokens (N, 6) of 40 -> the next one (N, 40), by the table that they were looked up in."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 24)
        self.inner = nn.Linear(24, 24)
        self.out = nn.Linear(24, 40, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.inner(self.table(tokens).mean(1)).relu())


def rows(*shape: int) -> Tensor:
    return seeded(shape, dtype=torch.float32)


def mlp() -> nn.Sequential:
    """Rows (N, 8) -> (N, 4)."""
    return nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 4))


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "mlp": (mlp, lambda: rows(60, 8)),
    "cnn": (Cnn, lambda: rows(60, 3, 8, 8)),
    "lstm": (Lstm, lambda: (rows(60, 5, 8),)),
    "encoder": (Encoder, lambda: {"x": rows(60, 5, 16)}),
    "tied": (Tied, lambda: torch.arange(360).reshape(60, 6) % 40),
}


def state_of(model: nn.Module) -> list[Any]:
    """All that a person could see change: weights bit by bit, gradients, modes, flags, hooks, attributes."""
    seen: list[Any] = [(name, value.clone()) for name, value in model.state_dict().items()]
    for name, parameter in model.named_parameters():
        seen.append((name, id(parameter), parameter.requires_grad, parameter.device, parameter._version))
        seen.append((name, id(parameter.grad), None if parameter.grad is None else parameter.grad.clone()))
    for name, module in model.named_modules():
        seen.append((name, id(module), module.training, sorted(vars(module))))
        tables = (table for key, table in sorted(vars(module).items()) if "hooks" in key and table is not None)
        seen.append((name, [list(table) for table in tables]))
    return seen


def same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return torch.equal(before, after)
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(same, before, after))
    return bool(before == after)


def world() -> tuple[Any, ...]:
    """What belongs to the whole process."""
    numbers = np.random.get_state()
    return (
        torch.random.get_rng_state(),
        (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()),
        (torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable),
        (numbers[1].tolist(), numbers[2]),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_live_network_is_compressed_and_left_as_it_is(kind: str) -> None:
    """In training mode, with gradients and a hook of the person; half of it with a mode of its own."""
    build, data = KINDS[kind]
    model, inputs = filled(build()), data()
    model.train()
    list(model.children())[-1].eval()
    calls: list[int] = []
    next(model.children()).register_forward_hook(lambda *_: calls.append(1))
    call(model, inputs)["output"].square().sum().backward()
    next(model.parameters()).requires_grad_(False)
    calls.clear()
    before, everything = state_of(model), world()
    found = compress(model, inputs, inputs, multiplies=0.7)
    assert same(before, state_of(model))
    assert same(everything, world())
    assert found.plan.choices
    assert found.cost.multiplies <= 0.7 * found.dense_cost.multiplies
    assert not found.model.training
    assert found.score.samples == 60
    assert found.score.metric == "agreement with the dense network"
    assert found.score.dense == 1
    theirs = {p.data_ptr() for p in model.parameters()} | {b.data_ptr() for b in model.buffers()}
    assert not theirs & {p.data_ptr() for p in found.model.parameters()}
    changed = [value for name, value in found.model.state_dict().items()]
    assert all(torch.isfinite(value).all() for value in changed)


def test_what_is_done_to_the_network_later_changes_nothing() -> None:
    model, inputs = filled(mlp()), rows(40, 8)
    workspace = Workspace.of(model, inputs[:2], inputs)
    dense, fingerprint = workspace.model(inputs), workspace.profile.fingerprint
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(workspace.model(inputs), dense)
    assert Workspace.of(model, inputs[:2]).profile.fingerprint != fingerprint


def labelled() -> tuple[nn.Module, Tensor, Tensor]:
    """A network and labels of which it gets most right."""
    model, inputs = filled(mlp()).eval(), rows(50, 8)
    with torch.no_grad():
        targets = model(inputs).argmax(1)
    targets[::7] = (targets[::7] + 1) % 4
    return model, inputs, targets


def batches(inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(inputs), 16):
        yield inputs[start : start + 16], targets[start : start + 16]


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "Dataset": Dataset,
    "batches": lambda x, y: list(batches(x, y)),
    "generator": batches,
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=16),
    "torch's Dataset": TensorDataset,
    "pairs": lambda x, y: [(sample, int(label)) for sample, label in zip(x, y, strict=True)],
    "pandas": lambda x, y: (pd.DataFrame(x.numpy()), pd.Series(y.numpy(), index=range(100, 100 + len(y)))),
    "function": lambda x, y: lambda: (x, y),
    "function that generates": lambda x, y: lambda: batches(x, y),
}


@pytest.mark.parametrize("form", FORMS)
def test_data_in_any_form_are_the_same_data(form: str) -> None:
    model, inputs, targets = labelled()
    plain = Workspace.of(model, inputs[:2], (inputs, targets))
    given = FORMS[form](inputs, targets)
    workspace = Workspace.of(model, inputs[:2], given, FORMS[form](inputs, targets))
    assert workspace.reference.hash == plain.reference.hash
    assert workspace.dense_score() == plain.dense_score()
    assert workspace.correction.data == plain.correction.data
    for _ in range(2):  # fine-tuning reads them again
        again = workspace.opened.train_data
        assert again is not None
        assert torch.equal(again().inputs, inputs)
    assert workspace.opened.provides == {"build_model", "example_inputs", "eval_data", "train_data"}


def test_a_dataset_of_pytorch_without_labels_draws_no_random_numbers() -> None:
    model, inputs, _ = labelled()
    before = torch.random.get_rng_state()
    workspace = Workspace.of(model, inputs[:2], TensorDataset(inputs))
    assert torch.equal(workspace.reference.dataset.inputs, Dataset(inputs).shuffled(0).inputs)
    assert torch.equal(before, torch.random.get_rng_state())


def test_without_data_the_example_inputs_are_all_there_is() -> None:
    model, inputs, _ = labelled()
    workspace = Workspace.of(model.train(), inputs)
    assert len(workspace.reference) == 50
    assert workspace.metric.name == "agreement with the dense network"
    assert workspace.notices == (
        "The model is in training mode; the copy that is worked on is in eval mode.",
        "There is no eval_data: the score is agreement with the dense network.",
        "There is no train_data: calibration uses evaluation inputs, without their labels.",
    )
    assert (workspace.name, workspace.opened.ref) == ("Sequential", None)
    assert Workspace.of(model, inputs, name="mine").name == "mine"


def test_data_without_an_end_are_read_to_a_limit_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def for_ever() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield rows(10, 8), torch.zeros(10).long()

    monkeypatch.setattr(_opened, "MOST_SAMPLES", 25)
    workspace = Workspace.of(mlp(), rows(1, 8), for_ever())
    assert len(workspace.reference) == 30
    assert any("more evaluation samples than are read: the first 30" in notice for notice in workspace.notices)
    monkeypatch.setattr(_opened, "MOST_SAMPLES", 10**6)
    monkeypatch.setattr(_opened, "MOST_BYTES", 2000)
    assert len(Workspace.of(mlp(), rows(1, 8), for_ever()).reference) == 50
    ended = Workspace.of(mlp(), rows(1, 8), [(rows(10, 8), torch.zeros(10).long())] * 3)
    assert not any("than are read" in notice for notice in ended.notices)


class Flagged(nn.Module):
    """With a mask that may be None, and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, squeeze: bool = False) -> Tensor:
        y = self.fc(x if mask is None else x * mask)
        return y.sum(1).squeeze() if squeeze else y


def test_none_and_flags_are_arguments_and_no_samples() -> None:
    model = Flagged()
    by_place = Workspace.of(model, (rows(2, 8), None), ((rows(65, 8), None), torch.zeros(65).long()))
    by_name = Workspace.of(
        model, {"x": rows(2, 8), "squeeze": False}, ({"x": rows(65, 8), "squeeze": False}, torch.zeros(65).long())
    )
    scores = [final_score(workspace.measure(workspace.model)) for workspace in (by_place, by_name)]
    assert scores[0] == scores[1]
    assert scores[0].samples == 65


def test_a_batch_of_one_that_is_squeezed_away_is_one_sample() -> None:
    inputs = {"x": rows(65, 8), "squeeze": True}
    workspace = Workspace.of(Flagged(), {"x": rows(4, 8), "squeeze": True}, (inputs, torch.zeros(65)), metric="mse")
    score = final_score(workspace.measure(workspace.model))
    expected = Flagged.forward(workspace.model, **inputs).detach().square().mean()
    assert (score.samples, score.value) == (65, pytest.approx(float(expected)))


def mean_distance(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) - targets).abs().double().mean())


def test_metrics_by_name_by_function_and_of_a_person_s_own() -> None:
    model, inputs, targets = labelled()
    data = inputs, targets
    assert Workspace.of(model, inputs, data).metric.name == "top-1 accuracy"
    assert Workspace.of(model, inputs, data, metric="top-5").dense_score()[0] == 1
    own = Workspace.of(model, inputs, data, metric=mean_distance, higher_is_better=False)
    assert (own.metric.name, own.metric.higher_is_better) == ("mean_distance", False)
    assert own.dense_score()[0] == pytest.approx(mean_distance(model(inputs), targets))
    seen: list[nn.Module] = []

    def evaluate(network: nn.Module) -> float:
        seen.append(network)
        return float((network(inputs).argmax(1) == targets).double().mean())

    found = compress(model, inputs, evaluate=evaluate, bytes=0.7)
    assert model not in seen
    tensors = [*found.model.state_dict().values()]
    assert any(same(tensors, [*network.state_dict().values()]) for network in seen)
    assert found.score.value == evaluate(found.model)
    assert found.score.dense == evaluate(model)
    assert found.score.drop == pytest.approx(found.score.dense - found.score.value)
    assert "evaluate(model)" in str(found)


@pytest.mark.parametrize("wrap", ["compile", "DataParallel"])
def test_wrappers_are_taken_off(wrap: str) -> None:
    model, inputs, _ = labelled()
    wrapped = torch.compile(model) if wrap == "compile" else nn.DataParallel(model)
    workspace = Workspace.of(wrapped, inputs)
    assert [layer.name for layer in workspace.profile.layers] == ["0", "2"]
    assert workspace.profile.fingerprint == Workspace.of(model, inputs).profile.fingerprint


# ---- one call -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compression() -> Compression:
    model, inputs, targets = labelled()
    return compress(model, inputs[:2], (inputs, targets), inputs, multiplies=0.6, name="rows")


def test_figures_are_those_of_the_plan_and_its_network(compression: Compression) -> None:
    workspace, score = compression.workspace, compression.score
    again = workspace.compress(compression.plan, compression.correction)
    (*_, expected) = workspace.measure(again)
    assert (score.value, score.dense, score.drop_low, score.drop_high) == (
        expected.value,
        expected.dense,
        expected.drop_low,
        expected.drop_high,
    )
    assert score.drop_low is not None
    assert compression.correction == workspace.thorough
    assert compression.cost.bytes == sum(p.numel() * 4 for p in compression.model.parameters())
    first, second = str(compression).splitlines()
    share = 100 * compression.cost.multiplies / compression.dense_cost.multiplies
    assert first.startswith(f"rows: {len(compression.plan.choices)} of 2 layers compressed, {share:.3g} % of the mult")
    assert f"top-1 accuracy {100 * score.value:.2f} % on 50 samples; dense {100 * score.dense:.2f} %; drop" in second
    assert f"{100 * score.drop_low:.3g} points to {100 * score.drop_high:.3g} points" in second
    assert str(compression) in repr(compression)


def test_wishes_reach_the_search() -> None:
    model, inputs, targets = labelled()
    data = inputs, targets
    plain = compress(model, inputs, data, multiplies=0.6, correct=False)
    assert plain.correction is None
    locked = compress(model, inputs, data, multiplies=0.9, lock="2", methods="svd", multiple_of=2)
    assert [name for name, _ in locked.plan.choices] == ["0"]
    assert all(choice.method == "svd" and choice.rank[0] % 2 == 0 for _, choice in locked.plan.choices)
    within = compress(model, inputs, data, max_drop=0.5, rule=Budget(samples=8, smallest="bytes"))
    assert within.score.drop <= 0.5
    assert within.cost.bytes < within.dense_cost.bytes
    told: list[str] = []
    compress(model, inputs, data, rule="uniform", multiplies=0.5, report=lambda progress: told.append(progress.words))
    assert told[-1] == "measuring the answer"
    with pytest.raises(LowRankError, match="cancelled"):
        compress(model, inputs, data, multiplies=0.5, cancelled=lambda: True)


def test_threads_that_compress_at_once_find_what_they_find_alone() -> None:
    model, inputs, targets = labelled()
    everything = world()
    alone = compress(model, inputs[:2], (inputs, targets), multiplies=0.6)
    found: list[Compression] = []
    before = state_of(model)
    work = [
        threading.Thread(target=lambda: found.append(compress(model, inputs[:2], (inputs, targets), multiplies=0.6)))
        for _ in range(3)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert [(one.plan, one.score) for one in found] == [(alone.plan, alone.score)] * 3
    assert same(before, state_of(model))
    assert same(everything, world())


def test_scores_of_two_metrics_on_one_cache_do_not_mix(tmp_path: Path) -> None:
    model, inputs, targets = labelled()
    cache = Cache(tmp_path)

    def always(value: float) -> Callable[[Tensor, Tensor], float]:
        return lambda outputs, given: value

    scores = [
        compress(model, inputs, (inputs, targets), metric=always(value), multiplies=0.5, cache=cache).score.value
        for value in (1.0, 2.0)
    ]
    assert scores == [1, 2]


# ---- files ----------------------------------------------------------------------------------------------------------


def test_files_of_a_live_network_are_tried_in_a_fresh_process(compression: Compression, tmp_path: Path) -> None:
    """A checkpoint too, though no other process could open its network by a reference."""
    inputs = rows(50, 8)
    written = compression.export(tmp_path / "net.safetensors")
    assert written.max_abs_diff is not None
    assert written.max_abs_diff <= 1e-5
    model, _, _ = labelled()
    loaded = load_checkpoint(model, written.path)
    assert torch.equal(loaded.model(inputs), compression.model(inputs))
    assert loaded.plan == compression.plan
    assert loaded.provenance["model"]["source"] == {"class": "torch.nn.modules.container.Sequential"}
    assert loaded.provenance["score"]["value"] == compression.score.value
    assert zipfile.is_zipfile(
        compression.export(tmp_path / "all.zip").path
    )  # a bundle; a folder of transformers is asked for
    plan = compression.export(tmp_path / "plan.json")
    assert RankPlan.from_json(Path(plan.path).read_bytes()) == compression.plan
    with pytest.raises(InvalidFile, match=r"net\.bin ends in none of .*\.safetensors.*give format, one of"):
        compression.export(tmp_path / "net.bin")
    assert compression.export(tmp_path / "net.bin", format="plan").bytes == plan.bytes


def test_lines_that_load_a_live_network_work(compression: Compression, tmp_path: Path) -> None:
    compression.export(tmp_path / "net.safetensors")
    compression.export(tmp_path / "plan.json")
    model, inputs, targets = labelled()
    expected = compression.model(inputs)
    start = {"dense": model, "model": model, "example_inputs": inputs[:2], "eval_data": (inputs, targets)}
    for kind, file in (("safetensors", "net.safetensors"), ("plan", "plan.json")):
        snippets = loading(EXPORTS[kind], compression.workspace, compression.plan, str(tmp_path / file))
        for snippet in snippets:
            names = {**start, "dense": labelled()[0]}
            exec(snippet.code, names)
            loaded = names["model"]
            assert isinstance(loaded, nn.Module)
            assert torch.allclose(loaded(inputs), expected, atol=1e-5)


def test_a_class_of_a_script_reaches_the_fresh_process(tmp_path: Path) -> None:
    """No other process can import it: it is sent as it is."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
sys.path.append({str(ROOT)!r})
import torch
from torch import nn
from lowrank_core import compress

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 48), nn.Linear(48, 4)

    def forward(self, x):
        return self.last(self.first(x).relu())

torch.manual_seed(0)
found = compress(Mine(), torch.randn(30, 8), multiplies=0.6, rule="uniform")
print(found.export("mine.safetensors").max_abs_diff <= 1e-5)
"""
    )
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


class Unpicklable(nn.Linear):
    """Copied, but not pickled."""

    def __getstate__(self) -> Any:
        raise TypeError("not to be pickled")

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        made = Unpicklable(self.in_features, self.out_features)
        made.load_state_dict(self.state_dict())
        return made


def test_what_cannot_be_handed_over_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), Unpicklable(48, 4))
    found = compress(filled(model), rows(30, 8), multiplies=0.6, rule="uniform")
    with pytest.raises(InvalidFile, match=r"not to be pickled.*write a model file") as refusal:
        found.export(path)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_other_processes_are_refused_in_a_line(compression: Compression) -> None:
    workspace = compression.workspace
    with pytest.raises(InvalidModel, match="rows came from Python, so no other process can open it"):
        profile(workspace, None, [("0", Choice("svd", (2,)))], Dataset(rows(4, 8)), workers=Workers(2))


# ---- what is refused ------------------------------------------------------------------------------------------------


def holding(value: float) -> nn.Module:
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = value
    return model


def locked() -> nn.Module:
    """A lock alone the copy would share; beside a module it cannot, for the module must be its own."""
    model = mlp()
    model.locked = [threading.Lock(), model[0]]
    return model


def failing() -> Any:
    raise ValueError("no disk")


def broken() -> Iterator[Any]:
    yield torch.ones(4, 8), torch.ones(4).long()
    raise OSError("disk is gone")


X, Y = rows(12, 8), torch.arange(12) % 4

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no module": ({"model": 5}, "^model must be an nn.Module, but got int"),
    "a class": ({"model": nn.Linear}, "^model must be an nn.Module, but got type"),
    "NaN": ({"model": holding(float("nan"))}, r"'2\.weight' hold NaN or Inf"),
    "no shape yet": (
        {"model": nn.Sequential(nn.LazyLinear(4))},
        "no shape yet; run the model once before",
    ),
    "cannot be copied": ({"model": locked()}, "^model cannot be copied .*lock"),
    "no inputs": ({"example_inputs": None, "eval_data": None}, "give example_inputs"),
    "inputs that are none": ({"example_inputs": 5}, "^example_inputs: inputs must hold a tensor.*got int"),
    "empty inputs": ({"example_inputs": X[:0]}, "^example_inputs has no samples; it must be a batch"),
    "other inputs": ({"example_inputs": torch.ones(1, 7)}, "forward pass on the example inputs failed"),
    "inputs that fail": ({"example_inputs": failing}, "^example_inputs failed: ValueError: no disk"),
    "no data": ({"eval_data": 5}, "^eval_data must be .inputs, targets. or an iterable"),
    "empty data": ({"eval_data": (X[:0], Y[:0])}, "^eval_data is empty"),
    "no batches": ({"eval_data": []}, "^eval_data is empty"),
    "mismatched": ({"eval_data": (X, Y[:3])}, "^eval_data: .*12 inputs and 3 targets"),
    "mismatched training data": ({"train_data": (X, Y[:3])}, "^train_data: .*12 inputs and 3 targets"),
    "other data": ({"eval_data": (X[:, :7], Y)}, "failed on the evaluation inputs"),
    "no classes": ({"eval_data": (X, Y.float())}, "must be class indices.*; give metric, a function"),
    "label too large": ({"eval_data": (X, Y + 1)}, r"^labels must be 0\.\.3.*eval_data has 1\.\.4; .*give metric"),
    "data that fail": ({"eval_data": failing}, "^eval_data failed: ValueError: no disk"),
    "batches that fail": ({"eval_data": broken()}, "^eval_data failed: OSError: disk is gone"),
    "unknown metric": (
        {"metric": "best"},
        "^there is no metric 'best'; name one of top-1.*, or give metric, a",
    ),
    "no metric": ({"metric": 5}, "^metric must be a function of outputs and targets or a name.*got int"),
    "metric that fails": ({"metric": lambda a, b: a.nothing}, "^metric failed: AttributeError|the metric .* failed"),
    "no evaluate": ({"evaluate": 5}, "^evaluate must be a function of the model.*got int"),
    "evaluate that fails": ({"evaluate": lambda m: m.nothing}, r"evaluate\(model\) of Sequential failed: Attribute"),
    "no wish": ({"multiplies": None}, "budget or a largest drop"),
    "budget of nothing": ({"multiplies": 0}, "must be a finite number above 0"),
    "out of reach": ({"multiplies": 1e-6}, "cannot be reached"),
    "drop below 0": ({"multiplies": None, "max_drop": -1.0}, "must be 0 or more"),
    "unknown rule": ({"rule": "best"}, "unknown rule 'best'"),
    "unknown method": ({"methods": "svdd"}, "unknown method 'svdd'"),
    "unknown layer": ({"lock": "fc9"}, "no layer goes by 'fc9'"),
    "nothing left": ({"lock": "*"}, "there is no layer that is not locked"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_a_line(case: str) -> None:
    changed, says = BAD[case]
    given = {"model": mlp(), "example_inputs": X, "eval_data": (X, Y), "multiplies": 0.5, **changed}
    with pytest.raises(LowRankError, match=says) as refusal:
        compress(**given)
    assert "\n" not in str(refusal.value)
    assert "model file" not in str(refusal.value)


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(InvalidSearch, match="there is no layer that these methods make cheaper"):
        compress(nn.Flatten(), X, multiplies=0.5)


# ---- refused in a line ----------------------------------------------------------------------------------------------


class Answers(nn.Module):
    """Rows (N, 8) -> whatever `answer` makes of (N, 4)."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.answer = mlp(), answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.inner(x))


def test_weights_without_values_are_refused() -> None:
    with torch.device("meta"):
        model = mlp()
    with pytest.raises(InvalidModel, match=r"'0\.weight', .* meta device"):
        Workspace.of(model, rows(1, 8))


@pytest.mark.parametrize(
    ("answer", "message"),
    [(Tensor.mean, "a batch axis"), (lambda _: sys.exit(3), "SystemExit: 3")],
)
def test_a_network_that_answers_for_no_sample_is_refused(answer: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(LowRankError, match=message):
        compress(Answers(answer), rows(1, 8), rows(60, 8), multiplies=0.5)


def test_the_name_of_a_file_is_no_data() -> None:
    with pytest.raises(InvalidData, match=r"eval_data must be .* got a text"):
        compress(mlp(), rows(1, 8), "data.csv", multiplies=0.5)
