"""Weights as training leaves them: prefixes, keys, averages, shards, whole networks, TorchScript; alone, filled in."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank_core import Choice, RankPlan, Workspace, load_checkpoint
from lowrank_core.errors import InvalidFile, InvalidModel, LowRankError, UnknownModel
from lowrank_core.networks.profile import fingerprint
from lowrank_core.sources import open_any
from lowrank_core.sources._inventory import Inventory, take_stock
from lowrank_core.sources._weights import Weights
from lowrank_core.store.reference import with_parts
from tests.test_bad_input import refused

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = """
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()

def example_inputs():
    return (torch.ones(2, 6),)
"""


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


def state(seed: int = 0, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in network(seed).state_dict().items()}


def optimizer() -> dict[str, Any]:
    trained = network()
    adam = torch.optim.Adam(trained.parameters())
    trained(torch.ones(2, 6)).sum().backward()
    adam.step()
    return adam.state_dict()


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    return str(path)


class Callback:
    """A class that is not there where the file is read."""

    def __init__(self) -> None:
        self.best, self.seen = torch.ones(3), {1, 2}


CHECKPOINTS: dict[str, tuple[Callable[[], object], str]] = {
    "DataParallel": (lambda: state(prefix="module."), "The prefix 'module.' of names is left off."),
    "torch.compile": (lambda: state(prefix="_orig_mod."), "_orig_mod. in names is left off."),
    "both": (lambda: state(prefix="_orig_mod.module."), "The prefix 'module.' of names is left off."),
    "compiled inside": (lambda: {"net._orig_mod.0.weight": 0, **state(prefix="net._orig_mod.")}, "'net.'"),
    "AveragedModel": (lambda: {"n_averaged": torch.tensor(3), **state(prefix="module.")}, "n_averaged left out"),
    "Lightning": (
        lambda: {
            "epoch": 3,
            "pytorch-lightning_version": "2.6",
            "state_dict": {**state(prefix="model."), "loss.weight": torch.ones(3)},
            "callbacks": {"Callback": Callback()},
            "optimizer_states": [optimizer()],
            "hyper_parameters": {"lr": 0.1, "config": Namespace(width=8)},
            "hparams_name": Namespace(a=1),
        },
        "The prefix 'model.' of names is left off; loss.weight left out.",
    ),
    "timm": (
        lambda: {"epoch": 1, "arch": "x", "state_dict": state(), "optimizer": optimizer(), "state_dict_ema": state(1)},
        "weights.pt#state_dict_ema",
    ),
    "ultralytics": (lambda: {"model": network(), "ema": network(1), "updates": 3}, "weights.pt#ema"),
    "a GAN": (
        lambda: {"discriminator": {"a.weight": torch.ones(90, 90)}, "generator": state()},
        "'generator' are taken",
    ),
    "a module that holds an average": (
        lambda: {"state_dict": state(prefix="model.") | state(1, "ema_model.module.")},
        "weights.pt#state_dict.ema_model.module",
    ),
    "counted and old": (
        lambda: {n: v for n, v in state().items() if "num_batches" not in n} | {"0.total_ops": torch.zeros(1)},
        "",
    ),
    "saved whole": (network, "The file is a whole network (torch.nn.modules.container.Sequential)"),
    "scripted": (lambda: torch.jit.script(network()), "a program of TorchScript"),
    "traced": (lambda: torch.jit.trace(network(), torch.ones(2, 6)), "a program of TorchScript"),
}


def written(content: object, path: Path) -> Path:
    if isinstance(content, torch.jit.ScriptModule):
        content.save(str(path))
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(("content", "says"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_model_gets_the_weights_that_fit_it(
    content: Callable[[], object], says: str, model: str, tmp_path: Path
) -> None:
    path = written(content(), tmp_path / "weights.pt")
    workspace = Workspace.open(model, weights=path)
    assert all(torch.equal(value, state()[name]) for name, value in workspace.model.state_dict().items())
    assert says in " ".join(workspace.opened.notices)
    again = Workspace.open(str(workspace.opened.ref))
    assert again.profile.fingerprint == workspace.profile.fingerprint
    loaded = load_checkpoint(network(7), path).model
    assert fingerprint(loaded) == fingerprint(workspace.model)


@pytest.mark.parametrize("kind", ["Lightning", "timm", "AveragedModel", "both", "saved whole", "scripted", "traced"])
def test_alone_they_are_listed_under_the_names_of_the_network(kind: str, tmp_path: Path) -> None:
    content = CHECKPOINTS[kind][0]()
    if kind == "Lightning":
        del content["state_dict"]["loss.weight"]  # type: ignore[index]
    stock = alone(written(content, tmp_path / "weights.pt"))
    assert [layer.name for layer in stock.layers] == ["0", "3"]
    assert torch.allclose(stock.spectrum("3"), torch.linalg.svdvals(network()[3].weight.double()))
    assert stock.fingerprint() == fingerprint(network())


def alone(path: Path | str) -> Inventory:
    weights = open_any(str(path))
    assert isinstance(weights, Weights)
    return take_stock(weights)


def test_what_is_not_loaded_of_a_checkpoint_is_said(tmp_path: Path) -> None:
    stock = alone(written(CHECKPOINTS["Lightning"][0](), tmp_path / "run.ckpt"))
    assert any("hparams_name (argparse.Namespace)" in notice for notice in stock.notices)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("timm", "state_dict_ema"),
        ("ultralytics", "ema"),
        ("a module that holds an average", "state_dict.ema_model.module"),
        ("a module that holds an average", "ema_model"),
    ],
)
def test_the_average_is_taken_where_a_person_asks_for_it(kind: str, part: str, model: str, tmp_path: Path) -> None:
    path = written(CHECKPOINTS[kind][0](), tmp_path / "weights.pt")
    workspace = Workspace.open(model, weights=f"{path}#{part}")
    assert all(torch.equal(value, state(1)[name]) for name, value in workspace.model.state_dict().items())
    assert fingerprint(network(1)) == alone(f"{path}#{part}").fingerprint()
    with pytest.raises(InvalidFile, match="no weights under 'emma'; there are"):
        Workspace.open(model, weights=f"{path}#emma")


def test_an_average_without_names_is_that_of_the_parameters_in_their_order(model: str, tmp_path: Path) -> None:
    content = {"model": state(), "ema": {"decay": 0.9, "shadow_params": list(network(1).parameters())}}
    path = written(content, tmp_path / "weights.pt")
    got = Workspace.open(model, weights=f"{path}#ema.shadow_params").model
    assert torch.equal(got.get_parameter("3.weight"), network(1)[3].weight)
    assert torch.equal(got.get_parameter("1.bias"), network(1)[1].bias)


def test_a_network_that_holds_the_trained_one_gets_its_weights(tmp_path: Path) -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = network(3)

    torch.save(state(), tmp_path / "weights.pt")
    loaded = load_checkpoint(Holding(), tmp_path / "weights.pt").model
    assert torch.equal(loaded.get_parameter("backbone.3.weight"), network()[3].weight)


def test_tied_weights_that_a_file_holds_once(tmp_path: Path) -> None:
    tied = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    tied["head"].weight = tied["embed"].weight
    other = deepcopy(tied)
    nn.init.ones_(other["head"].weight)
    save_file({"embed.weight": tied["embed"].weight.detach()}, tmp_path / "w.safetensors")
    assert torch.equal(
        load_checkpoint(other, tmp_path / "w.safetensors").model.get_parameter("head.weight"), tied["head"].weight
    )


def test_a_refusal_lists_few_names_and_the_prefix_that_was_tried(model: str, tmp_path: Path) -> None:
    wrong = state(prefix="model.") | {f"model.more.{n}": torch.ones(2) for n in range(9)}
    del wrong["model.3.bias"]
    path = written({"state_dict": wrong}, tmp_path / "w.pt")
    said = refused("layers", model, "--weights", path)
    assert "does not fit the model (prefix 'model.' left off): missing: 3.bias; unexpected: more.0, more.1" in said
    assert "and 6 more" in said
    assert len(said) < 600


def test_what_is_no_file_of_weights(model: str, tmp_path: Path) -> None:
    path = written(state(), tmp_path / "w.pt")
    assert "sizes and spectra only" in refused("layers", path, "--weights", path)
    with pytest.raises(InvalidModel, match="is a model of its own"):
        Workspace.open(model, weights=model)
    with pytest.raises(UnknownModel):
        Workspace.open(model, weights=tmp_path / "absent.pt")
    said = refused("search", model, "--weights", path, "--rule", "uniform", "--multiplies", "0.5", "--out", path)
    assert "is the file of --weights, which this command reads" in said


# ---- folders and other files ----


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_shards_are_read_by_their_index_and_in_their_folder(ending: str, model: str, tmp_path: Path) -> None:
    folder, parts = tmp_path / "model", [dict(list(state().items())[:3]), dict(list(state().items())[3:])]
    folder.mkdir()
    files = [f"diffusion_pytorch_model-0000{n}-of-00002{ending}" for n in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        save_file(part, folder / file) if ending == ".safetensors" else torch.save(part, folder / file)
    index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (folder / f"diffusion_pytorch_model{ending}.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet"}))
    torch.save(optimizer(), folder / "optimizer.bin")
    for given in (folder, folder / f"diffusion_pytorch_model{ending}.index.json"):
        workspace = Workspace.open(with_parts(model, weights=given))
        assert all(torch.equal(value, state()[name]) for name, value in workspace.model.state_dict().items())


def test_a_folder_with_one_file_of_weights_and_those_of_training(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "pytorch_model.bin")
    torch.save(optimizer(), tmp_path / "optimizer.bin")
    assert alone(tmp_path).fingerprint() == fingerprint(network())


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "zero_to_fp32.py"])
def test_a_folder_of_a_distributed_run_is_refused_with_the_remedy(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"")
    assert "put them together first: python " in refused("layers", tmp_path)


def test_any_suffix_and_none(tmp_path: Path) -> None:
    for name in ("weights", "weights.model", "run.ckpt-3"):
        assert alone(written(state(), tmp_path / name)).fingerprint() == fingerprint(network())
        torch.save(state(), tmp_path / name, _use_new_zipfile_serialization=False)
        assert alone(tmp_path / name).fingerprint() == fingerprint(network())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("net.t7", b"\x04\x00\x00\x00\x01\x00\x00\x00", "as files of Lua Torch do"),
        ("net.tar", bytes(257) + b"ustar\x00" + bytes(300), "is a tar archive; unpack it"),
        ("net.pkl", b"\x80\x04}\x94.", "is a plain pickle"),
        ("net.pt", b"hello", "is no file of torch.save"),
    ],
)
def test_other_files_are_refused_with_the_reason(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert says in refused("layers", tmp_path / name)


def test_a_program_of_torch_export_under_another_name(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(network(), (torch.ones(2, 6),)), tmp_path / "net.pt2")
    (tmp_path / "net.pt2").rename(tmp_path / "net.pt")
    assert "give it a name that ends in .pt2" in refused("layers", tmp_path / "net.pt")


def test_a_frozen_program_gives_its_constants(tmp_path: Path) -> None:
    torch.jit.freeze(torch.jit.script(network())).save(str(tmp_path / "net.pt"))
    assert {layer.spec.weight_shape for layer in alone(tmp_path / "net.pt").layers} == {(8, 6), (3, 8)}


def test_quantised_weights_are_left_out_and_named(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8)
    stock = alone(written({"a.weight": torch.ones(3, 4), "b.weight": quantised}, tmp_path / "w.pt"))
    assert [layer.name for layer in stock.layers] == ["a"]
    assert any("b.weight (torch._utils._rebuild_qtensor)" in notice for notice in stock.notices)


class Harmless:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("run",)


def test_nothing_is_called_whatever_the_pickle_names(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written({"model": state(), "hook": Harmless(), "config": Callback()}, tmp_path / "w.pt")
    assert alone(path).fingerprint() == fingerprint(network())
    assert not capfd.readouterr().out


@pytest.mark.parametrize("kind", ["Lightning", "ultralytics", "scripted"])
def test_every_cut_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    whole = written(CHECKPOINTS[kind][0](), tmp_path / "w.pt").read_bytes()
    for length in range(0, len(whole), len(whole) // 60):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(LowRankError):
            open_any(str(tmp_path / "cut.pt"))


# ---- TorchScript and compiled networks ----


class Branching(nn.Module):
    """Refuses other inputs by an `if`, which a traced program has no longer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels")
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("way", ["script", "trace", "compile"])
def test_a_network_of_torchscript_or_torch_compile_opens_with_its_layers(way: str) -> None:
    net, images = Branching().eval(), torch.randn(2, 3, 8, 8)
    made = {
        "script": lambda: torch.jit.script(net),
        "trace": lambda: torch.jit.trace(net, images),
        "compile": lambda: torch.compile(net),
    }[way]()
    workspace = Workspace.of(made, images, torch.randn(5, 3, 8, 8))
    assert [layer.name for layer in workspace.profile.layers] == ["body.0", "head"]
    assert torch.allclose(workspace.model(images), net(images), atol=1e-6)
    assert workspace.profile.fingerprint == fingerprint(net)
    assert not workspace.self_check.refusal
    plan = RankPlan(workspace.profile.fingerprint).with_choice("head", Choice("svd", (1,)))
    assert workspace.compress(plan)(images).shape == (2, 4)


def test_torchscript_that_cannot_be_opened_is_refused_in_one_line() -> None:
    with pytest.raises(InvalidModel, match="the module '0' is a program of TorchScript"):
        Workspace.of(nn.Sequential(torch.jit.script(nn.Linear(2, 2))), torch.ones(1, 2))

    class Looping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            while bool(x.sum() < 100):
                x = x * 2
            return x

    with pytest.raises(InvalidModel, match=r"cannot be made one of plain layers.*--weights FILE") as told:
        Workspace.of(torch.jit.script(Looping()), torch.ones(1, 2))
    assert "\n" not in str(told.value)
