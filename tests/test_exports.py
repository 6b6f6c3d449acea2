"""Checkpoints and plans on disk: written whole or not at all, rebuilt exactly, readable without this package."""

import ast
import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.imports import imported
from lowrank_core import Choice, RankPlan, Workspace, apply, discover, export_checkpoint, load_checkpoint, plan_cost
from lowrank_core.compression.checkpoint import write_checkpoint
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidFile
from lowrank_core.exports import EXPORTS, Compressed, _load_lowrank
from lowrank_core.exports import _reload as reload
from lowrank_core.exports import safetensors as exporter
from lowrank_core.exports._provenance import provenance
from lowrank_core.graphs.c_compiled import COMPILERS
from lowrank_core.layers import parts
from lowrank_core.layers.data import Inputs, Outputs
from lowrank_core.plans.plan import read_plan
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.running.scope import scope
from lowrank_core.scoring.scores import final_score
from lowrank_core.version import versions

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "checkpoint-1.safetensors"

AWKWARD = '''
import torch
from torch import Tensor, nn

class Awkward(nn.Module):
    """A layer under two names, tied tensors, a tuple of outputs, odd convolutions, buffers."""
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding="same", bias=False, padding_mode="reflect")
        self.bn = nn.BatchNorm1d(8)
        self.twice = nn.Linear(8, 8)
        self.again = self.twice
        self.plain = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 12)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.linspace(1, 2, 8))

    def forward(self, tokens: Tensor):
        x = self.bn(self.conv(self.table(tokens).mT)).mean(-1) * self.scale
        return self.head(self.plain(self.again(self.twice(x)).relu())), x

def build_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Awkward().eval()

def example_inputs():
    return (torch.arange(20).reshape(2, 10) % 12,)
'''


@pytest.fixture(scope="module")
def digits() -> Workspace:
    return Workspace.open("builtin:digits-cnn")


@pytest.fixture
def awkward(tmp_path: Path) -> Workspace:
    path = tmp_path / "awkward_net.py"
    path.write_text(AWKWARD)
    return Workspace.open(str(path))


def awkward_plan(workspace: Workspace) -> RankPlan:
    choices = {
        "conv": Choice("spatial_svd", (3,)) if "spatial_svd" in names(workspace, "conv") else Choice("svd", (3,)),
        "twice": Choice("svd", (2,)),
        "plain": Choice("svd", (3,)),
    }
    return RankPlan.of(workspace.profile.fingerprint, choices)


def names(workspace: Workspace, layer: str) -> list[str]:
    return [method.name for method in workspace.profile.layer(layer).methods]


def write(workspace: Workspace, plan: RankPlan, path: Path) -> nn.Module:
    """The checkpoint without the fresh process; gives the compressed copy."""
    model = workspace.compress(plan)
    write_checkpoint(model, workspace.profile, plan, path, plan_document=plan.to_json(), provenance={})
    return model


def output(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        found = model(*inputs)
    return found if isinstance(found, Tensor) else found[0]


def test_export_is_what_was_measured(digits: Workspace, tmp_path: Path) -> None:
    """A corrected network: the weights in the file are the corrected ones."""
    plan, correction = uniform_plan(digits.profile, 0.5), digits.correction
    target, steps = tmp_path / "half", []
    measured = digits.compress(plan, correction)
    score = final_score(digits.measure(measured, samples=64))
    with scope(report=steps.append):
        exported = export_checkpoint(digits, plan, target, correction=correction, score=score)

    assert exported.max_abs_diff == 0
    assert exported.bytes == target.stat().st_size
    assert [progress.words for progress in steps] == ["writing", "reloading in a fresh process"]
    assert [p.name for p in tmp_path.iterdir()] == ["half"]
    other = tmp_path / "other"
    other.touch()
    assert target.stat().st_mode == other.stat().st_mode

    loaded = load_checkpoint(digits.model, target)
    assert loaded.plan == plan
    assert sum(p.numel() for p in loaded.model.parameters()) == plan_cost(digits.profile, plan).parameters
    images = digits.reference.dataset.inputs
    assert torch.equal(output(loaded.model, (images,)), output(measured, (images,)))
    assert not torch.equal(output(measured, (images,)), output(digits.compress(plan), (images,)))
    assert loaded.correction == correction.to_dict()
    assert loaded.provenance["score"]["value"] == score.value
    assert loaded.provenance["data"]["evaluation"].startswith("sha256:")
    assert loaded.provenance["data"]["calibration"] == correction.data

    command = [sys.executable, "-m", "lowrank_core", "evaluate", digits.opened.ref, "--checkpoint", str(target)]
    done = subprocess.run([*command, "--samples", "64", "--json"], cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert (found["value"], found["samples"], found["correction"]) == (score.value, 64, correction.to_dict())
    assert "correct" not in done.stderr


def test_no_path_of_this_machine_is_written(
    awkward: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(kind: str, ref: str, written: Path, batches: list[Inputs], own_seconds: float) -> list[Outputs]:
        return [reload.READERS[kind](ref, str(written))(inputs) for inputs in batches]

    model = awkward.compress(awkward_plan(awkward))
    monkeypatch.setattr(reload, "outputs_in_fresh_process", here)
    for name in EXPORTS.keys() - {"hf", "openvino", "tflite"}:  # tests of their own
        export = EXPORTS[name]
        target = tmp_path / f"out-{name}"
        if name == "c" and not any(map(shutil.which, COMPILERS)):
            continue
        export.write(awkward, Compressed(model, awkward_plan(awkward)), target)
        assert str(tmp_path).encode() not in target.read_bytes()
        assert b"awkward_net.py" in target.read_bytes()
        assert str(ROOT).encode() not in target.read_bytes()


def test_awkward_network_is_rebuilt_exactly(awkward: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    compressed = write(awkward, awkward_plan(awkward), path)
    loaded = load_checkpoint(awkward.model, path).model
    inputs = awkward.opened.example_inputs
    assert torch.equal(output(loaded, inputs), output(compressed, inputs))
    assert loaded.twice is loaded.again
    assert isinstance(loaded.twice, nn.Sequential)
    assert loaded.head.weight is loaded.table.weight
    assert isinstance(awkward.model.twice, nn.Linear)  # the model that was given is not changed
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["lowrank"])
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert about["ties"]["head.weight"] == "table.weight"
    buffers = sum(b.numel() for b in compressed.buffers())
    assert stored == sum(p.numel() for p in compressed.parameters()) + buffers


def test_a_buffer_that_repeats_one_element(tmp_path: Path) -> None:
    """PyTorch cannot copy into an expanded buffer; the copy gets memory of its own."""
    model = formula_net()
    model.register_buffer("mask", torch.full((1,), -torch.inf).expand(3, 3))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "c")
    assert torch.equal(load_checkpoint(model, tmp_path / "c").model.mask, model.mask)


def test_network_that_is_one_layer(tmp_path: Path) -> None:
    model = nn.Linear(6, 5).eval()
    inputs = (torch.ones(2, 6),)
    profile = discover(model, inputs)
    plan = RankPlan.of(profile.fingerprint, {"Linear": Choice("svd", (2,))})
    compressed = apply(model, profile, plan, FactorStore(model, profile))
    path = tmp_path / "c.safetensors"
    write_checkpoint(compressed, profile, plan, path, plan_document=plan.to_json(), provenance={})
    assert torch.equal(output(load_checkpoint(model, path).model, inputs), output(compressed, inputs))


def test_lines_of_code_load_it_in_a_fresh_process(awkward: Workspace, tmp_path: Path) -> None:
    """Both ways that the page shows; the second one with this package forbidden."""
    path = tmp_path / "c.safetensors"
    compressed = write(awkward, awkward_plan(awkward), path)
    expected = output(compressed, awkward.opened.example_inputs)
    use = "\nimport torch, awkward_net\ntorch.save(model(*awkward_net.example_inputs())[0].detach(), 'out.pt')\n"
    start = {
        "with lowrank_core": f"import sys; sys.path.append({str(ROOT)!r})\n",
        "with torch and safetensors alone": "import sys; sys.modules['lowrank_core'] = None\n",
    }
    snippets = EXPORTS["safetensors"].snippets(awkward.opened.ref, path.name)
    assert {snippet.label for snippet in snippets} == set(start)
    for snippet in snippets:
        script = tmp_path / "script.py"
        threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"  # the last bits depend on it
        script.write_text(start[snippet.label] + threads + snippet.code + use)
        subprocess.run([sys.executable, script.name], cwd=tmp_path, check=True)
        assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), expected)
        (tmp_path / "out.pt").unlink()


def test_the_standalone_loader_is_a_file_that_works(digits: Workspace, tmp_path: Path) -> None:
    """Alone for plain plans, and followed by the file of our layers for all; each is what it is in the repository."""
    assert Path(_load_lowrank.__file__).read_text() == exporter.LOADER
    assert Path(parts.__file__).read_text() == exporter.MODULES
    for text, needed in ((exporter.LOADER, {"json", "safetensors", "torch"}), (exporter.MODULES, {"torch"})):
        packages = {name.partition(".")[0] for name, _ in imported(ast.parse(text))}
        assert packages - {"collections", "functools", "typing"} == needed
    path = tmp_path / "plain.safetensors"
    compressed = write(digits, uniform_plan(digits.profile, 0.5), path)
    loaded = _load_lowrank.load_lowrank(copy.deepcopy(digits.model), str(path))
    images = digits.opened.example_inputs
    assert torch.equal(output(loaded, images), output(compressed, images))


def test_standalone_loader_is_short() -> None:
    assert len([line for line in exporter.LOADER.splitlines() if line.strip()]) <= 20


def test_data_that_factors_were_learnt_from_is_named(digits: Workspace) -> None:
    for method, known in (("svd", False), ("svd_aware", True)):
        plan = RankPlan.of(digits.profile.fingerprint, {"fc1": Choice(method, (8,))})
        found = provenance(digits, Compressed(digits.model, plan))
        assert ("data" in found) == known
    assert found["data"] == {"calibration": digits.correction.data}


@pytest.mark.parametrize("corrected", [True, False])
def test_plan_lines_load_it(
    corrected: bool, digits: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = uniform_plan(digits.profile, 0.5)
    correction = digits.correction if corrected else None
    model = digits.compress(plan, correction)
    score = final_score(digits.measure(model, samples=64))
    compressed = Compressed(model, plan, score, correction and correction.to_dict())
    exported = EXPORTS["plan"].write(digits, compressed, tmp_path / "p.json")
    read = read_plan((tmp_path / "p.json").read_bytes())
    assert read.plan == plan
    assert read.correction == compressed.correction
    assert read.provenance["score"]["value"] == exported.score.value
    assert read.provenance["score"]["dense"] == score.dense
    assert set(read.provenance["data"]) == {"evaluation", "calibration"} if corrected else {"evaluation"}
    assert read.provenance["cost"]["compressed"]["bytes"] == plan_cost(digits.profile, plan).bytes
    assert read.provenance["versions"] == versions()
    assert versions()["torch"] == torch.__version__
    monkeypatch.chdir(tmp_path)
    (snippet,) = EXPORTS["plan"].snippets(digits.opened.ref, "p.json")
    found: dict[str, nn.Module] = {}
    exec(snippet.code, {}, found)
    images = digits.opened.example_inputs
    assert torch.equal(output(found["model"], images), output(model, images))


def test_a_plan_that_reads_back_as_another_is_not_saved(
    digits: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, other = uniform_plan(digits.profile, 0.5), uniform_plan(digits.profile, 0.4)
    monkeypatch.setattr("lowrank_core.exports.plan.plan_document", lambda *_: other.to_json())
    with pytest.raises(InvalidFile, match="what was read back is not what was written"):
        EXPORTS["plan"].write(digits, Compressed(digits.model, plan), tmp_path / "p.json")
    assert list(tmp_path.iterdir()) == []


def test_no_assert_guards_what_a_file_says() -> None:
    """`python -O` runs none: what is written and what is read is refused by other means."""
    core = Path(exporter.__file__).parents[1]
    for name in ("exports/plan.py", "exports/_load_lowrank.py", *(f"store/{p.name}" for p in core.glob("store/*.py"))):
        asserts = [node for node in ast.walk(ast.parse((core / name).read_text())) if isinstance(node, ast.Assert)]
        assert {ast.unparse(node.test) for node in asserts} <= {"isinstance(content, dict)"}, name  # for mypy alone


def test_a_failed_export_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    """A build_model() that is random cannot be rebuilt elsewhere; it is found out before anything is replaced."""
    model = tmp_path / "random_net.py"
    model.write_text(
        "import torch\nfrom torch import nn\ndef build_model(): return nn.Sequential(nn.Linear(6, 6)).eval()\n"
        "def example_inputs(): return (torch.ones(1, 6),)\n"
    )
    workspace = Workspace.open(str(model))
    plan = RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (2,))})
    target = tmp_path / "kept"
    target.write_bytes(b"precious")
    with pytest.raises(InvalidFile, match=r"was not saved: a fresh process could not use it: .* this model is"):
        export_checkpoint(workspace, plan, target)
    assert target.read_bytes() == b"precious"
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"kept", "random_net.py"}


@pytest.mark.parametrize("change", [1e-3, float("nan")])
def test_other_outputs_are_refused(
    change: float, digits: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RankPlan.of(digits.profile.fingerprint, {"fc1": Choice("svd", (8,))})

    def differing(kind: str, ref: str, checkpoint: Path, batches: list[Tensor], own_seconds: float) -> list[Tensor]:
        return [output(load_checkpoint(digits.model, checkpoint).model, (inputs,)) + change for inputs in batches]

    monkeypatch.setattr(reload, "outputs_in_fresh_process", differing)
    with pytest.raises(InvalidFile, match="differ by"):
        export_checkpoint(digits, plan, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_sums_in_another_order_are_no_reason_to_refuse(
    digits: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded(kind: str, ref: str, checkpoint: Path, batches: list[Tensor], own_seconds: float) -> list[Outputs]:
        found = [output(load_checkpoint(digits.model, checkpoint).model, (inputs,)) for inputs in batches]
        return [{"output": outputs + 2e-6 * outputs.abs().max()} for outputs in found]

    monkeypatch.setattr(reload, "outputs_in_fresh_process", rounded)
    found = export_checkpoint(digits, RankPlan(digits.profile.fingerprint), tmp_path / "c")
    assert found.max_abs_diff > 0


@pytest.mark.parametrize("target", ["missing/c.safetensors", "."])
def test_a_target_that_cannot_be_written(target: str, digits: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="folder"):
        export_checkpoint(digits, RankPlan(digits.profile.fingerprint), tmp_path / target)


def formula_net() -> nn.Module:
    """4 -> 6 -> 3, weights by formula."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape) % 5 - 2)
    return model.eval()


def test_the_first_format_is_read_for_ever() -> None:
    """`golden/checkpoint-1.safetensors`: layer 0 as 4 -> 2 -> 6 with weights by formula, layer 2 dense."""
    loaded = load_checkpoint(formula_net(), GOLDEN)
    assert loaded.plan == RankPlan.of(loaded.plan.fingerprint, {"0": Choice("svd", (2,))})
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    first, second = loaded.model[0]
    assert first.weight.tolist() == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    hidden = (x @ first.weight.T @ second.weight.T + second.bias).relu()
    assert torch.equal(output(loaded.model, (x,)), output(formula_net()[2], (hidden,)))


def test_state_dicts_are_dense_weights(tmp_path: Path) -> None:
    trained = formula_net()
    with torch.no_grad():
        trained[0].weight.mul_(2)
    state = trained.state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save(state, tmp_path / "plain.pt")
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "betas": (0.9, 0.99)}}}
    torch.save({"epoch": 3, "optimizer": optimizer, "state_dict": wrapped}, tmp_path / "training.pth")
    torch.save({"model": {name: nn.Parameter(value) for name, value in state.items()}}, tmp_path / "parameters")
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "half.pt")
    shared = torch.cat([value.flatten() for value in state.values()])
    pieces = shared.split([value.numel() for value in state.values()])
    views = {name: piece.view(value.shape) for (name, value), piece in zip(state.items(), pieces, strict=True)}
    torch.save(views, tmp_path / "views.pt")
    save_file(state, tmp_path / "plain.safetensors")
    x = torch.ones(1, 4)
    files = [p for p in tmp_path.iterdir() if p.is_file()]
    assert len(files) == 6
    for path in files:
        loaded = load_checkpoint(formula_net(), path)
        assert loaded.plan is None
        assert torch.equal(output(loaded.model, (x,)), output(trained, (x,))), path.name
    assert load_file(tmp_path / "plain.safetensors").keys() == state.keys()


def test_a_checkpoint_says_which_version_wrote_it(tmp_path: Path) -> None:
    model = formula_net()
    profile = discover(model, (torch.ones(1, 4),))
    plan = RankPlan(profile.fingerprint)
    path = tmp_path / "model.safetensors"
    write_checkpoint(model, profile, plan, path, plan_document=plan.to_json(), provenance={})
    assert load_checkpoint(formula_net(), path).provenance["versions"] == versions()
    assert "rank_explorer" not in load_checkpoint(formula_net(), GOLDEN).provenance.get("versions", {})
