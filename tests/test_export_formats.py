"""Every kind of file for every kind of layer: compressed, written, read again, the same answers at any batch size."""

import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch import Tensor, nn

from lowrank_core import Choice, RankPlan, Workspace, load_checkpoint, plan_cost
from lowrank_core.commands import cli
from lowrank_core.compression.precision import Storage
from lowrank_core.errors import InvalidFile, InvalidModel, InvalidSettings
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.exports import _reload as reload
from lowrank_core.exports import onnx as onnx_export
from lowrank_core.exports._reload import READERS
from lowrank_core.graphs.c_compiled import COMPILERS
from lowrank_core.layers.data import Dataset, Inputs
from lowrank_core.plans.plan import read_plan
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.scoring.metrics import AGREEMENT
from lowrank_core.scoring.scores import final_score
from lowrank_core.sources._opened import Opened
from tests.awkward_layers import filled

ROOT = Path(__file__).parents[1]


class LastStep(nn.Module):
    """A recurrent layer, and a head on its last outputs."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Tied(nn.Module):
    """One table for tokens and answers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 6)
        self.twice = self.inner
        self.head = nn.Linear(6, 11)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.twice(self.inner(self.table(tokens)).relu()).mean(1))


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def images(*channels: int) -> Tensor:
    return torch.randn(9, *channels, 6, 6, generator=torch.Generator().manual_seed(1))


def rows(*shape: int) -> Tensor:
    return torch.randn(9, *shape, generator=torch.Generator().manual_seed(2))


TOKENS = torch.arange(9 * 4).reshape(9, 4) * 7 % 11
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Inputs, dict[str, str]]] = {
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding="same"), nn.Flatten()
        ),
        images(4),
        {"0": "spatial_svd", "3": "tucker2"},
    ),
    "cp": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3)), images(4), {"0": "cp3", "1": "cp4"}),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 6, 3)),
        images(8),
        {"0": "svd", "1": "svd_g2"},
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4)), rows(7), {"0": "svd", "2": "svd"}),
    "one layer": (lambda: nn.Linear(7, 5), rows(7), {"Linear": "svd"}),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 5, 3, 2, 1, 1), nn.ConvTranspose2d(5, 4, 2)),
        images(4),
        {"0": "spatial_svd", "1": "svd"},
    ),
    "lstm": (
        lambda: LastStep(nn.LSTM(5, 3, batch_first=True, bidirectional=True)),
        rows(3, 5),
        {"recurrent.weight_ih_l0": "svd", "recurrent.weight_hh_l0_reverse": "svd"},
    ),
    "gru": (lambda: LastStep(nn.GRU(5, 6, batch_first=True)), rows(3, 5), {"recurrent.weight_hh_l0": "svd"}),
    "tied": (Tied, TOKENS, {"inner": "svd"}),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(24, 3)),
        TOKENS,
        {"0": "svd", "2": "svd"},
    ),
    "attention": (Attends, rows(3, 8), {"layer.self_attn.in_proj.q": "svd", "layer.self_attn.out_proj": "svd"}),
    "encoder": (Attends, rows(3, 8), {"layer.linear1": "svd"}),
}
WIDE = lambda: nn.Sequential(nn.Linear(90, 300), nn.ReLU(), nn.Linear(300, 70)), rows(90), {}
"""More weights than what stands beside them in a file."""
FOLDED = Storage(fold_bias=True)
DENSE = Storage(dense=True)


@pytest.fixture(scope="module")
def digits() -> Workspace:
    return Workspace.open("builtin:digits-cnn")


def workspace_of(name: str) -> Workspace:
    build, inputs, _ = WIDE if name == "wide" else NETWORKS[name]
    data = Dataset(inputs)
    return Workspace(
        Opened(name, name, "", filled(build()).float(), inputs, lambda: data, None, lambda dataset: AGREEMENT)
    )


def compressed(workspace: Workspace, name: str) -> Compressed:
    choices = {layer: Choice(method, (2,) * (1 + (method == "tucker2"))) for layer, method in NETWORKS[name][2].items()}
    plan = RankPlan.of(workspace.profile.fingerprint, choices)
    return Compressed(workspace.compress(plan), plan)


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Workspace], None]:
    """Reads files here, as the fresh process does; test_a_fresh_process... and test_exports.py start real ones."""

    def set_up(workspace: Workspace) -> None:
        def outputs(kind: str, ref: str, written: Path, batches: list[Inputs], own_seconds: float) -> list[Tensor]:
            if kind == "safetensors":
                model = load_checkpoint(workspace.model, written).model
                return [reload.run(model, Dataset(inputs)) for inputs in batches]
            return [READERS[kind](ref, str(written))(inputs) for inputs in batches]

        monkeypatch.setattr(reload, "outputs_in_fresh_process", outputs)

    return set_up


@pytest.mark.parametrize("kind", ["safetensors", "pt2", "onnx"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_in_every_kind_of_file(
    name: str, kind: str, tmp_path: Path, same_process: Callable[[Workspace], None]
) -> None:
    """`write` compares the outputs of all samples, and of batches of 1, 2 and 7, with those of the network."""
    workspace = workspace_of(name)
    same_process(workspace)
    found = EXPORTS[kind].write(workspace, compressed(workspace, name), tmp_path / "file")
    assert found.max_abs_diff is not None
    assert found.max_abs_diff < (1e-6 if kind != "onnx" else 1e-5)
    assert found.bytes == (tmp_path / "file").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("storage", [FOLDED, DENSE, replace(FOLDED, dense=True)], ids=["fold", "dense", "both"])
@pytest.mark.parametrize("name", NETWORKS)
def test_other_forms_answer_the_same(
    name: str, storage: Storage, tmp_path: Path, same_process: Callable[[Workspace], None]
) -> None:
    workspace = workspace_of(name)
    same_process(workspace)
    given = compressed(workspace, name)
    inputs = workspace.opened.example_inputs
    if storage.fold_bias and not any(isinstance(module, nn.Linear) for module in workspace.model.modules()):
        with pytest.raises(InvalidSettings, match="no Linear layer"):
            given.stored(workspace, storage)
        return
    stored = given.stored(workspace, storage)
    expected = reload.run(given.model, Dataset(inputs))
    torch.testing.assert_close(reload.run(stored.model, Dataset(inputs)), expected, rtol=1e-5, atol=1e-6)
    shapes = {name: value.shape for name, value in workspace.model.state_dict().items()}
    if storage == DENSE:
        assert {name: value.shape for name, value in stored.model.state_dict().items()} == shapes
    if storage.fold_bias:
        linears = [module for module in stored.model.modules() if type(module) is nn.Linear]
        assert [module.bias for module in linears if module.bias is not None] == (
            [stored.model.head.bias] if name == "tied" else []
        )
    EXPORTS["safetensors"].write(workspace, stored, tmp_path / "file")
    with safe_open(tmp_path / "file", "pt") as file:
        about = json.loads(file.metadata()["lowrank"])
    assert about["provenance"]["storage"] == storage.told
    read: dict[str, Any] = {}
    snippets = EXPORTS["safetensors"].snippets("x", "y")
    exec(next(s.loader for s in snippets if s.partial), read)  # with torch and safetensors alone
    loaded = read["load_lowrank"](workspace_of(name).model, str(tmp_path / "file"))
    torch.testing.assert_close(reload.run(loaded, Dataset(inputs)), expected, rtol=1e-5, atol=1e-6)


def test_tied_layers_are_multiplied_out_together() -> None:
    """The table and the answers share factors, and after that one weight; each keeps its own bias."""
    model = filled(Tied()).float()
    workspace = Workspace(
        Opened("tied", "tied", "", model, TOKENS, lambda: Dataset(TOKENS), None, lambda dataset: AGREEMENT)
    )
    plan = RankPlan.of(workspace.profile.fingerprint, {"table": Choice("svd", (3,))})
    given = Compressed(workspace.compress(plan), plan)
    stored = given.stored(workspace, DENSE).model
    assert stored.head.weight is stored.table.weight
    torch.testing.assert_close(
        reload.run(stored, Dataset(TOKENS)), reload.run(given.model, Dataset(TOKENS)), rtol=1e-5, atol=1e-6
    )


def test_a_weight_that_is_computed_has_no_place_for_a_product() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(7, 5)), nn.Linear(5, 4)).eval()
    inputs = rows(7)
    workspace = Workspace(
        Opened("normed", "normed", "", model, inputs, lambda: Dataset(inputs), None, lambda dataset: AGREEMENT)
    )
    plan = RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (2,))})
    with pytest.raises(InvalidModel, match="layer '0' computes its weight from others"):
        Compressed(workspace.compress(plan), plan).stored(workspace, DENSE)


@pytest.mark.parametrize("kind", ["safetensors", "pt2", "onnx"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_the_bytes(dtype: str, kind: str, tmp_path: Path, same_process: Callable[[Workspace], None]) -> None:
    """What is measured is what is stored: rounded once, then exactly that in the file."""
    workspace = workspace_of("wide")
    same_process(workspace)
    plan = uniform_plan(workspace.profile, 0.5)
    whole = Compressed(workspace.compress(plan), plan)
    half = whole.stored(workspace, Storage(dtype))
    name, value = next(iter(half.model.named_parameters()))
    original = whole.model.get_parameter(name)
    assert not torch.equal(value, original)
    assert torch.equal(value, original.to(getattr(torch, dtype)).float())
    sizes = []
    for one in (whole, half):
        size = EXPORTS[kind].write(workspace, one, tmp_path / "file").bytes
        if kind == "pt2":  # widening the weights again makes its graph longer
            with zipfile.ZipFile(tmp_path / "file") as archive:
                size = sum(m.file_size for m in archive.infolist() if "/weights/weight_" in m.filename)
        sizes.append(size)
    weights = plan_cost(workspace.profile, plan).bytes
    assert sizes[0] - sizes[1] == pytest.approx(weights / 2, rel=0.1)


def test_weights_that_half_precision_cannot_hold(digits: Workspace) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    nn.init.constant_(model[0].bias, 1e6)
    given = Compressed(model, RankPlan(""))
    with pytest.raises(InvalidModel, match=r"'0\.bias' holds weights beyond the range of torch\.float16; bfloat16"):
        given.stored(digits, Storage("float16"))
    assert given.stored(digits, Storage("bfloat16")).storage.dtype == "bfloat16"


def test_int8_is_measured_as_it_runs(
    digits: Workspace, tmp_path: Path, same_process: Callable[[Workspace], None]
) -> None:
    same_process(digits)
    plan = uniform_plan(digits.profile, 0.6)
    given = Compressed(digits.compress(plan, digits.correction), plan).stored(digits, Storage("int8"))
    whole = EXPORTS["onnx"].write(digits, replace(given, storage=Storage()), tmp_path / "whole")
    found = EXPORTS["onnx"].write(digits, given, tmp_path / "file")
    assert found.bytes < 0.45 * whole.bytes
    assert found.max_abs_diff == 0
    images = digits.reference.dataset
    session = onnxruntime.InferenceSession(tmp_path / "file")
    answers = torch.from_numpy(session.run(None, {"input": images.inputs.numpy()})[0])
    assert found.score.value == pytest.approx(float((answers.argmax(1) == images.targets).double().mean()))
    inside = read_plan(session.get_modelmeta().custom_metadata_map["lowrank_plan"])
    assert inside.provenance["score"]["value"] == found.score.value
    kinds = {node.op_type for node in onnx.load(tmp_path / "file").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def test_plan_and_provenance_are_in_each_file(tmp_path: Path, same_process: Callable[[Workspace], None]) -> None:
    workspace = workspace_of("linear")
    same_process(workspace)
    plan = uniform_plan(workspace.profile, 0.5)
    model = workspace.compress(plan)
    given = Compressed(model, plan, final_score(workspace.measure(model, samples=64)))
    for kind in ("pt2", "onnx"):
        EXPORTS[kind].write(workspace, given, tmp_path / kind)
    inside = {"plan.json": ""}
    with (tmp_path / "pt2").open("rb") as file:
        torch.export.load(file, extra_files=inside)
    properties = onnxruntime.InferenceSession(tmp_path / "onnx").get_modelmeta().custom_metadata_map
    for text in (inside["plan.json"], properties["lowrank_plan"]):
        read = read_plan(text)
        assert read.plan == plan
        assert read.provenance["score"]["value"] == given.score.value
    assert torch.export.load(str(tmp_path / "pt2")).example_inputs is None  # no sample of anybody's data


def test_a_bundle_holds_everything_and_says_what_it_cannot(
    tmp_path: Path, same_process: Callable[[Workspace], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_of("linear")
    same_process(workspace)
    plan = uniform_plan(workspace.profile, 0.5)
    given = Compressed(workspace.compress(plan), plan)

    def refuses(*_: object, **__: object) -> None:
        raise InvalidModel("no operator for it.")

    monkeypatch.setattr(onnx_export, "onnx_program", refuses)
    found = EXPORTS["bundle"].write(workspace, given, tmp_path / "b.zip")
    assert found.bytes == (tmp_path / "b.zip").stat().st_size
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
        names = set(archive.namelist())
    usual = {"README.md", "load_lowrank.py", "measure_on_device.py", "model.pt2", "model.safetensors", "plan.json"}
    usual |= {"SHA256SUMS"}
    programs = {"model.pte"} if find_spec("executorch") else set()
    programs |= {"model.xml", "model.bin"} if find_spec("openvino") else set()
    headers = {"model.h"} if any(map(shutil.which, COMPILERS)) else set()
    assert names == usual | programs | headers
    text = (tmp_path / "unpacked" / "README.md").read_text()
    assert "There is no `model.onnx`: no operator for it." in text
    sums = dict(line.split("  ")[::-1] for line in (tmp_path / "unpacked" / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == names - {"SHA256SUMS"}
    for name, found_hash in sums.items():
        content = (tmp_path / "unpacked" / name).read_bytes()
        assert found_hash == hashlib.sha256(content).hexdigest()
        assert name == "README.md" or f"| `{name}` | {len(content):,} | `{found_hash}` |" in text
    again = EXPORTS["bundle"].write(workspace, given, tmp_path / "c.zip")
    assert again.bytes == found.bytes


def test_large_weights_lie_beside_the_graph(
    tmp_path: Path, same_process: Callable[[Workspace], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_of("linear")
    same_process(workspace)
    monkeypatch.setattr(onnx_export, "LARGEST_BYTES", 10)
    wide = nn.Sequential(nn.Linear(7, 400), nn.Linear(400, 4)).eval()
    given = Compressed(wide, RankPlan(workspace.profile.fingerprint))
    found = EXPORTS["onnx"].write(workspace, given, tmp_path / "m.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    x = rows(7)
    answers = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"input": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(answers), wide(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_file_that_answers_otherwise_is_not_saved(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_of("linear")

    def otherwise(kind: str, ref: str, written: Path, batches: list[Inputs], own_seconds: float) -> list[Tensor]:
        found = [READERS[kind](ref, str(written))(inputs) for inputs in batches]
        if written.name != "dense":
            found[-1]["output"][-1] += 1e-2  # the last sample of the batch of seven
        return found

    monkeypatch.setattr(reload, "outputs_in_fresh_process", otherwise)
    with pytest.raises(InvalidFile, match=r"differ by 0\.01 in a batch of 7"):
        EXPORTS[kind].write(workspace, Compressed(workspace.model, RankPlan("")), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "missing", "says"),
    [
        ("onnx", "onnxruntime", "ONNX needs more packages: pip install 'rank-explorer[onnx]'"),
        ("openvino", "openvino", "OpenVINO needs more packages: pip install 'rank-explorer[edge]'"),
        ("executorch", "executorch", "ExecuTorch needs more packages: pip install 'rank-explorer[edge]'"),
        ("c", "", "no C compiler"),
        ("hf", "", "iris-mlp did not come from a folder of save_pretrained"),
    ],
)
def test_what_cannot_be_written_here_is_said_before_any_work(
    kind: str, missing: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowrank_core.commands.export.compressed_by", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    out = tmp_path / f"net{EXPORTS[kind].suffix}"
    said = CliRunner().invoke(cli, ["export", "builtin:iris-mlp", "--dense", "--format", kind, "--out", str(out)])
    assert says in said.output
    assert said.exit_code == 1
    assert not out.exists()
