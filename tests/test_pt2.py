"""Programs of torch.export: the layers of the network they were made from, compressed and written as those are."""

import io
import json
import logging
import zipfile
from collections.abc import Iterator
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from lowrank_core import Choice, RankPlan, Workspace, load_checkpoint, open_source
from lowrank_core.compression.start import starting_plan
from lowrank_core.errors import InvalidFile, InvalidModel, LowRankError
from lowrank_core.exports.safetensors import export_checkpoint, snippets
from lowrank_core.graphs.exporting import exported_program
from lowrank_core.plans.cost import useful_rank
from tests.test_bad_input import Attack, refused

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


def saved(path: Path, model: nn.Module, *inputs: Tensor, free: bool = True) -> Path:
    shapes = tuple({0: Dim("batch")} for _ in inputs) if free else None
    program = torch.export.export(model.eval(), inputs, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def dense() -> Workspace:
    return Workspace.open("builtin:digits-cnn")


@pytest.fixture(scope="module")
def path(dense: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits CNN as a program."""
    (inputs,) = dense.opened.example_inputs
    return saved(tmp_path_factory.mktemp("pt2") / "digits.pt2", dense.model, inputs.repeat(2, 1, 1, 1))


@pytest.fixture(scope="module")
def program(path: Path) -> Workspace:
    return Workspace.open(str(path))


def test_its_layers_costs_and_fingerprint_are_those_of_the_network(dense: Workspace, program: Workspace) -> None:
    assert program.profile == dense.profile


def test_compressed_and_corrected_it_answers_as_the_compressed_network(dense: Workspace, program: Workspace) -> None:
    plan = starting_plan(dense.profile, dense.factors)
    inputs = dense.reference.dataset.pick(slice(0, 50)).inputs
    for workspace in (dense, program):
        workspace.corrector  # noqa: B018
    correction = program.correction
    assert torch.equal(program.compress(plan)(inputs), dense.compress(plan)(inputs))
    assert program.compress(plan, correction)(inputs).isfinite().all()


def test_written_as_a_checkpoint_and_as_a_program(program: Workspace, path: Path, tmp_path: Path) -> None:
    plan = starting_plan(program.profile, program.factors)
    compressed, inputs = program.compress(plan), torch.rand(7, 1, 8, 8)
    export_checkpoint(program, plan, tmp_path / "small.safetensors")
    loaded = load_checkpoint(open_source(str(path)).model, tmp_path / "small.safetensors").model
    assert torch.equal(loaded(inputs), compressed(inputs))
    (snippet,) = (one for one in snippets(str(path), "small.safetensors") if one.partial is False)
    (tmp_path / path.name).write_bytes(path.read_bytes())
    names: dict[str, Any] = {}
    with chdir(tmp_path):
        exec(snippet.code, names)
    assert torch.equal(names["model"](inputs), compressed(inputs))
    again = Workspace.open(str(saved(tmp_path / "small.pt2", compressed, torch.rand(2, 1, 8, 8))))
    assert torch.equal(again.model(inputs), compressed(inputs))
    assert sum(p.numel() for p in again.model.parameters()) == sum(p.numel() for p in compressed.parameters())


class Awkward(nn.Module):
    """Layers of every kind that is found again, and some that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6, padding_idx=3)
        self.one = nn.Conv1d(6, 8, 3, padding="same", dilation=2, groups=2)
        self.up = nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1, output_padding=1, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.inner = nn.ModuleDict({"twice": nn.Linear(6, 6), "scale": nn.LayerNorm(6)})
        self.two = nn.Conv2d(1, 4, (3, 5), stride=(2, 1), padding=(1, 0))
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.three = nn.Conv3d(4, 2, (1, 2, 2), bias=False)
        self.up3 = nn.ConvTranspose3d(2, 2, (1, 2, 2))
        self.head = nn.Linear(6, 5)
        self.free = nn.Parameter(torch.ones(5, 5))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.up(self.one(self.table(tokens).transpose(1, 2)))).transpose(1, 2)
        x = self.inner["scale"](self.inner["twice"](self.inner["twice"](x)))
        image = self.mirrored(self.two(x.unsqueeze(1)))
        image = self.up3(self.three(image.unsqueeze(2)))
        return self.head(x.mean(1) + image.mean((1, 2, 3, 4)).unsqueeze(1)) @ self.free


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Workspace, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Awkward().eval()
    tokens = torch.randint(20, (3, 10), generator=torch.Generator().manual_seed(1))
    path = saved(tmp_path_factory.mktemp("awkward") / "awkward.pt2", model, tokens)
    return model, Workspace.open(str(path)), tokens


def test_every_kind_of_layer_is_found_again(awkward: tuple[nn.Module, Workspace, Tensor]) -> None:
    model, workspace, tokens = awkward
    assert torch.allclose(workspace.model(tokens), model(tokens), atol=1e-6)
    for name in ("table", "one", "up", "norm", "inner.twice", "inner.scale", "two", "three", "up3", "head"):
        theirs, ours = model.get_submodule(name), workspace.model.get_submodule(name)
        assert type(ours) is type(theirs), name
        assert ours.extra_repr() == theirs.extra_repr(), name
    assert len(workspace.profile.layer("inner.twice").in_sizes) == 2
    reasons = {one.name: one.reason for one in workspace.profile.skipped}
    assert "does more with its weights than one linear map" in reasons["mirrored"]
    assert "does more with its weights than one linear map" in reasons["Program"]


def test_every_layer_of_it_is_compressed(awkward: tuple[nn.Module, Workspace, Tensor]) -> None:
    _, workspace, tokens = awkward
    for layer in workspace.profile.layers:
        method = layer.methods[0]
        top = method.max_rank(layer.spec)
        plan = RankPlan.of(workspace.profile.fingerprint, {layer.name: Choice(method.name, top)})
        assert torch.allclose(workspace.compress(plan)(tokens), workspace.model(tokens), atol=1e-4), layer.name
        if all(useful_rank(layer, method.name)):
            smaller = plan.with_choice(layer.name, Choice(method.name, useful_rank(layer, method.name)))
            assert workspace.compress(smaller)(tokens[:1]).isfinite().all()


def test_a_network_called_with_names(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"sum": self.a(left) + self.b(right)}

    given = {"left": torch.rand(2, 4), "right": torch.rand(2, 5)}
    shapes = {name: {0: Dim("batch")} for name in given}
    model = Named().eval()
    torch.export.save(torch.export.export(model, (), given, dynamic_shapes=shapes), tmp_path / "n.pt2")
    workspace = Workspace.open(str(tmp_path / "n.pt2"))
    assert set(workspace.opened.example_inputs) == set(given)
    assert torch.allclose(workspace.model(**given)["sum"], model(**given)["sum"])
    assert workspace.dense_score() == (1.0, 64)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(12, 4), nn.Linear(4, 12, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x).mean(1))

    workspace = Workspace.open(str(saved(tmp_path / "t.pt2", Tied(), torch.randint(12, (2, 3)))))
    assert workspace.model.get_submodule("table").weight is workspace.model.get_submodule("head").weight
    assert [layer.type for layer in workspace.profile.layers] == ["Embedding with head"]
    assert sum(p.numel() for p in workspace.model.parameters()) == 48


def test_a_program_for_one_batch_size_is_opened_if_it_takes_others(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).reshape(x.shape[0], 3)

    saved(tmp_path / "fixed.pt2", Fixed(), torch.rand(2, 4), free=False)
    with pytest.raises(InvalidModel, match=r"batches of 2 alone; export it with a free batch: torch\.export\.export"):
        Workspace.open(str(tmp_path / "fixed.pt2"))
    saved(tmp_path / "free.pt2", nn.Sequential(nn.Linear(4, 3)), torch.rand(1, 4), free=False)
    assert Workspace.open(str(tmp_path / "free.pt2")).dense_score()[1] == 64


def test_data_beside_it_is_used(path: Path, dense: Workspace, tmp_path: Path) -> None:
    own = tmp_path / "digits.pt2"
    own.write_bytes(path.read_bytes())
    assert any("There is no digits.npz" in notice for notice in Workspace.open(str(own)).notices)
    data = dense.reference.dataset
    assert data.targets is not None
    np.savez(tmp_path / "digits.npz", inputs=data.inputs.numpy(), targets=data.targets.numpy())
    assert Workspace.open(str(own)).dense_score() == dense.dense_score()
    np.savez(tmp_path / "digits.npz", pictures=data.inputs.numpy())
    assert "must hold inputs" in refused("layers", own)
    np.savez(tmp_path / "digits.npz", inputs=np.array([Attack(tmp_path / "marker")], dtype=object))
    assert "holds Python objects, which could run code" in refused("layers", own)
    assert not (tmp_path / "marker").exists()


# ---- files made to do harm ----


def changed(path: Path, out: Path, member: str, content: bytes) -> Path:
    """The archive with other content in the member of this ending."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename.endswith(member) else old.read(info))
    return out


def attack(marker: Path) -> bytes:
    held = io.BytesIO()
    torch.save(((Attack(marker),), {}), held)
    return held.getvalue()


def test_a_program_that_our_own_export_wrote_opens(dense: Workspace, tmp_path: Path) -> None:
    written = tmp_path / "own.pt2"
    torch.export.save(exported_program(dense.model, dense.opened.example_inputs), written)
    own = Workspace.open(str(written))
    assert [layer.spec for layer in own.profile.layers] == [layer.spec for layer in dense.profile.layers]


@pytest.fixture
def quiet() -> Iterator[None]:
    """PyTorch's own warning of the fallback cannot be formatted."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
def test_a_payload_that_can_be_seen_is_refused_and_not_run(path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bad = changed(path, tmp_path / "bad.pt2", "sample_inputs/model.pt", attack(marker))
    with suppress(Exception):
        torch.export.load(bad)
    assert marker.exists(), "the attack must work where it is trusted, or this test proves nothing"
    marker.unlink()
    assert "carries code: data/sample_inputs/model.pt names builtins.exec" in refused("layers", bad)
    with pytest.raises(InvalidFile):
        open_source(str(bad))
    assert not marker.exists()


def test_a_pickled_weight_is_looked_at(path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("model_weights_config.json"))
        config = json.loads(archive.read(name))
    config["config"]["conv1.weight"]["use_pickle"] = True
    half = changed(path, tmp_path / "half.pt2", "model_weights_config.json", json.dumps(config).encode())
    file = config["config"]["conv1.weight"]["path_name"]
    bad = changed(half, tmp_path / "bad.pt2", f"data/weights/{file}", attack(marker))
    assert "names builtins.exec" in refused("layers", bad)
    config["config"]["conv1.weight"]["path_name"] = "custom_obj_0"
    bad = changed(path, tmp_path / "bad.pt2", "model_weights_config.json", json.dumps(config).encode())
    refused("layers", bad)
    assert not marker.exists()


def test_where_weights_are_expected_a_program_is_never_loaded(path: Path, tmp_path: Path) -> None:
    """As a checkpoint, or under another ending: the ways that an upload could take."""
    marker = tmp_path / "marker"
    bad = changed(path, tmp_path / "bad.pt2", "sample_inputs/model.pt", attack(marker))
    model = open_source("builtin:digits-cnn").model
    with pytest.raises(LowRankError):
        load_checkpoint(model, bad)
    for ending in (".pt", ".pth", ".safetensors"):
        (tmp_path / f"renamed{ending}").write_bytes(bad.read_bytes())
        refused("layers", tmp_path / f"renamed{ending}")
    refused("evaluate", "builtin:digits-cnn", "--checkpoint", bad)
    assert not marker.exists()


def test_files_that_are_no_programs(path: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt2"
    raw = path.read_bytes()
    for content in (b"", b"PK\x03\x04", b"text", raw[: len(raw) // 2], raw[:-300]):
        bad.write_bytes(content)
        assert "bad.pt2" in refused("layers", bad)
    torch.save({"a": torch.ones(2)}, bad)
    assert "is no program of torch.export" in refused("layers", bad)
    changed(path, bad, "models/model.json", b"{}")
    assert "cannot be loaded by PyTorch" in refused("layers", bad)
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("m/models/model.json", bytes(2**24))
    assert "claims more than it holds" in refused("layers", bad)
    refused("layers", tmp_path / "absent.pt2", status=2)
