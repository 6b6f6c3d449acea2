"""Weights without a model: safetensors, shards, state_dicts. Sizes and spectra; everything else says what is needed."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lowrank_core import Workspace
from lowrank_core.algebra.gram import WHOLE, DeviceGram, GramMatrix, row_blocks
from lowrank_core.commands import cli
from lowrank_core.errors import Cancelled, InvalidFile, InvalidModel, LowRankError, UnknownModel
from lowrank_core.networks.profile import fingerprint
from lowrank_core.running.scope import scope
from lowrank_core.sources import open_any
from lowrank_core.sources._inventory import Inventory, measure_speed, remaining, take_stock
from lowrank_core.sources._weights import Weights
from lowrank_core.sources.safetensors import LARGEST_HEADER
from tests.test_bad_input import BOMBS, Attack, refused

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("one_thread")


def stock(path: Path) -> Inventory:
    found = open_any(str(path))
    assert isinstance(found, Weights)
    return take_stock(found)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


# ---- singular values in little memory ----


@pytest.mark.parametrize("gram_of", [GramMatrix, partial(DeviceGram, device="cpu")], ids=["blocks", "device"])
@pytest.mark.parametrize("side", [1, 5, WHOLE, WHOLE + 1, WHOLE + 70, WHOLE + 130])
def test_planted_singular_values_are_found(side: int, gram_of: Callable[[int], GramMatrix | DeviceGram]) -> None:
    planted = torch.logspace(0, -6, side, dtype=torch.float64)
    left = torch.linalg.qr(random(side + 3, side, dtype=torch.float64)).Q
    right = torch.linalg.qr(random(side, side, dtype=torch.float64)).Q
    rows = left * planted @ right.mT
    gram = gram_of(side)
    for part in (rows[:2], rows[2:]):
        gram.add(part)
    found = gram.singular_values()
    assert (found - planted).abs().max() < 1e-8, "the Gram matrix squares: half of float64's digits are left"
    assert torch.allclose(found[: side // 2], planted[: side // 2], rtol=1e-9)


def test_a_matrix_of_low_rank_and_one_of_zeros() -> None:
    for rank in (0, 3):
        gram = GramMatrix(WHOLE + 100)
        gram.add(random(900, rank, dtype=torch.float64) @ random(rank, WHOLE + 100, dtype=torch.float64))
        found = gram.singular_values()
        assert (found > 1e-6 * max(1.0, float(found[0]))).sum() == rank


def test_row_blocks_cover_every_row_once() -> None:
    for rows, columns in ((1, 1), (7, 10**7), (1000, 5000)):
        assert [row for part in row_blocks(rows, columns) for row in range(rows)[part]] == list(range(rows))


# ---- what names and shapes tell ----


def test_a_state_dict_is_listed_as_its_model_is(tmp_path: Path) -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    state = workspace.model.state_dict()
    save_file(dict(state), tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        found = stock(tmp_path / name)
        for ours, theirs in zip(found.layers, workspace.profile.layers, strict=True):
            assert (ours.name, ours.type, ours.itemsize) == (theirs.name, theirs.type, theirs.itemsize)
            assert ours.spec.weight_shape == theirs.spec.weight_shape
            assert ours.spec.bias == theirs.spec.bias
            expected = torch.linalg.svdvals(state[f"{ours.name}.weight"].double().flatten(1))
            assert torch.allclose(found.spectrum(ours.name), expected, rtol=1e-6)
        assert found.parameters == sum(p.numel() for p in workspace.model.parameters())
        assert found.rest.buffer_bytes == workspace.profile.rest.buffer_bytes
        assert found.fingerprint() == fingerprint(workspace.model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (40, 40), (8, 3, 3, 5)])
def test_spectra_of_every_precision(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    weight = random(*shape, dtype=dtype)
    save_file({"other": torch.ones(3), "a.weight": weight}, tmp_path / "w.safetensors")
    found = stock(tmp_path / "w.safetensors").spectrum("a")
    assert torch.allclose(found, torch.linalg.svdvals(weight.double().flatten(1)), rtol=1e-6)


def test_kinds_are_told_by_shape_and_tables_by_name(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": random(50, 8),
        "wte.weight": random(50, 8),
        "time_embedding.linear.weight": random(8, 4),
        "conv.weight": random(4, 2, 3),
        "conv3.weight": random(4, 2, 3, 3, 3),
        "experts": random(2, 5, 100),
        "norm.weight": random(8),
        "table.weight": torch.ones(3, 3, dtype=torch.int8),
        "empty.weight": torch.ones(0, 3),
        "layers.10.fc.weight": random(4, 4),
        "layers.9.fc.weight": random(4, 4),
        "layers.9.fc.bias": random(4),
    }
    save_file(tensors, tmp_path / "w.safetensors")
    found = stock(tmp_path / "w.safetensors")
    assert {layer.name: layer.type for layer in found.layers} == {
        "conv": "Conv1d",
        "conv3": "Conv3d",
        "layers.9.fc": "Linear",
        "layers.10.fc": "Linear",
        "model.embed_tokens": "Embedding",
        "time_embedding.linear": "Linear",
        "wte": "Embedding",
    }
    names = [layer.name for layer in found.layers]
    assert names.index("layers.9.fc") < names.index("layers.10.fc")
    reasons = {one.name: one.reason for one in found.skipped}
    assert "may be a stack of matrices" in reasons["experts"]
    assert "int8" in reasons["table.weight"].lower() or "I8" in reasons["table.weight"]
    assert set(reasons) == {"experts", "norm.weight", "table.weight", "empty.weight"}
    assert found.bytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert any("told from Linear layers by their names" in notice for notice in found.notices)


@pytest.mark.parametrize(
    ("integers", "scales", "shape"),
    [
        ("a.weight.qweight", "a.weight.scale", (6, 1)),
        ("a.weight", "a.weight_scale", (6, 2)),  # compressed-tensors, in groups
        ("a.qweight", "a.scales", (2, 8)),  # GPTQ
        ("a.weight._data", "a.weight._scale", (6, 1)),  # quanto
    ],
)
def test_scales_of_integers_are_no_layers(integers: str, scales: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Beside a matrix that is called a scale and belongs to no integers."""
    of_integers = torch.arange(48, dtype=torch.int8).reshape(6, 8)
    tensors = {integers: of_integers, scales: random(*shape).abs(), "b.scale": random(5, 4), "b.weight": random(5, 4)}
    save_file(tensors, tmp_path / "m.safetensors")
    found = stock(tmp_path / "m.safetensors")
    assert {layer.name for layer in found.layers} == {"b.scale", "b"}
    assert {one.name: one.reason for one in found.skipped}[scales] == (
        f"it says what the numbers of {integers} (I8) stand for"
    )
    assert found.parameters == 48 + random(*shape).numel() + 2 * 20


def test_an_unknown_layer_is_answered_with_those_that_may_be_meant(tmp_path: Path) -> None:
    save_file({f"blocks.{n}.out.weight": random(4, 5) for n in range(12)}, tmp_path / "m.safetensors")

    def refusal(name: str) -> str:
        done = CliRunner().invoke(cli, ["spectra", str(tmp_path / "m.safetensors"), "--layer", name, "--no-cache"])
        assert done.exit_code == 1
        return done.stderr.strip().splitlines()[-1]

    assert refusal("out").endswith(
        "did you mean 'blocks.0.out', 'blocks.1.out', 'blocks.2.out', 'blocks.3.out', 'blocks.4.out' and 7 more?"
    )
    assert refusal("zzz").endswith("blocks.3.out, blocks.4.out and 7 more.")


def test_not_a_number_is_named_with_its_layer(tmp_path: Path) -> None:
    save_file({"bad.weight": torch.full((4, 4), float("nan"))}, tmp_path / "w.safetensors")
    with pytest.raises(InvalidModel, match="layer 'bad': a weight holds NaN"):
        stock(tmp_path / "w.safetensors").spectrum("bad")


def test_a_spectrum_can_be_cancelled(tmp_path: Path) -> None:
    save_file({"a.weight": random(900, 900)}, tmp_path / "w.safetensors")
    found = stock(tmp_path / "w.safetensors")
    asked = iter([False] * 5)
    with scope(cancelled=lambda: next(asked, True)), pytest.raises(Cancelled):
        found.spectrum("a")
    assert found.known("a") is None
    assert len(found.spectrum("a")) == 900


def test_the_estimate_counts_what_is_missing(tmp_path: Path) -> None:
    save_file({"a.weight": random(30, 20), "b.weight": random(300, 200)}, tmp_path / "w.safetensors")
    found, speed = stock(tmp_path / "w.safetensors"), measure_speed()
    both, b = remaining(found, ["a", "b"], speed), remaining(found, ["b"], speed)
    assert 0 < b < both
    found.spectrum("a")
    assert remaining(found, ["a", "b"], speed) == b


# ---- training checkpoints ----


def test_what_is_taken_from_a_training_checkpoint_is_said(tmp_path: Path) -> None:
    weights = {"module.fc.weight": random(4, 3), "module.fc.bias": random(4)}
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, "model": weights, "ema": weights}, tmp_path / "w.pth")
    found = stock(tmp_path / "w.pth")
    assert [layer.name for layer in found.layers] == ["fc"]
    assert found.notices == (
        "The weights under 'model' are taken; epoch, optimizer, ema left out.",
        "The prefix 'module.' of every name is left off.",
    )
    torch.save({"ema": {"state_dict": {"fc.weight": random(4, 3)}}}, tmp_path / "w.pth")
    assert [layer.name for layer in stock(tmp_path / "w.pth").layers] == ["fc"]


def test_tied_tensors_are_listed_once(tmp_path: Path) -> None:
    weight = random(6, 4)
    torch.save({"embed.weight": weight, "head.weight": weight}, tmp_path / "w.pt")
    found = stock(tmp_path / "w.pt")
    assert [layer.name for layer in found.layers] == ["embed"]
    assert found.bytes == 96
    assert "Tied tensors are listed once: head.weight is embed.weight." in found.notices


def test_a_checkpoint_that_needs_code_names_it_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"model": {"fc.weight": random(2, 2)}, "extra": Attack(marker)}, tmp_path / "w.pt")
    assert "builtins.exec" in refused("layers", tmp_path / "w.pt")
    assert not marker.exists()


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_tiny_file_that_expands_is_refused(bomb: Callable[[Path], None], tmp_path: Path) -> None:
    bomb(tmp_path / "w.pt")
    refused("layers", tmp_path / "w.pt")


# ---- shards ----


def shards(folder: Path, index: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    save_file({"a.weight": random(4, 3)}, folder / "one.safetensors")
    save_file({"b.weight": random(5, 3), "c.weight": random(6, 3)}, folder / "two.safetensors")
    listed = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"} if index is None else index
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    return folder


def test_shards_by_their_index_by_their_folder_and_without_an_index(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    by_index = [layer.name for layer in stock(folder / "model.safetensors.index.json").layers]
    assert by_index == [layer.name for layer in stock(folder).layers] == ["a", "b"]
    (folder / "model.safetensors.index.json").unlink()
    assert [layer.name for layer in stock(folder).layers] == ["a", "b", "c"]
    save_file({"c.weight": random(6, 3)}, folder / "again.safetensors")
    assert "'c.weight' in several files" in refused("layers", folder)


INDICES: dict[str, tuple[Any, str]] = {
    "up and away": ({"weight_map": {"a.weight": "../one.safetensors"}}, "that is not beside it"),
    "absolute": ({"weight_map": {"a.weight": "/etc/passwd"}}, "that is not beside it"),
    "backslashes": ({"weight_map": {"a.weight": "..\\one.safetensors"}}, "that is not beside it"),
    "itself": ({"weight_map": {"a.weight": "."}}, "that is not beside it"),
    "a missing shard": ({"weight_map": {"a.weight": "three.safetensors"}}, "three.safetensors', which is missing"),
    "a missing tensor": ({"weight_map": {"z.weight": "one.safetensors"}}, "holds no 'z.weight'"),
    "no map": ({"metadata": {}}, "must have a weight_map"),
    "numbers for files": ({"weight_map": {"a.weight": 1}}, "must have a weight_map"),
    "a list": ([], "must be a JSON object"),
}


@pytest.mark.parametrize(("index", "says"), INDICES.values(), ids=INDICES)
def test_an_index_that_lies(index: Any, says: str, tmp_path: Path) -> None:
    save_file({"a.weight": random(4, 3)}, tmp_path / "one.safetensors")
    folder = shards(tmp_path / "model", {})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert says in refused("layers", folder)


# ---- crafted headers ----


def crafted(header: object, *, data: int = 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def entry(begin: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TWICE = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no safetensors file, or cut short"),
    "shorter than its length": (crafted({}, length=10**15), "claims 1,000,000,000,000,000 bytes"),
    "length of all ones": (b"\xff" * 8 + b"{}", "cut short"),
    "no JSON": (crafted(b"{"), "no JSON"),
    "deep": (crafted(b"[" * 100_000), "no JSON"),
    "no text": (crafted(b"\xff\xfe{}"), "no JSON"),
    "a list": (crafted([]), "must be a JSON object"),
    "beyond the file": (crafted({"a": entry(0, 2**42, 2**40)}), "but 16 are there"),
    "shape and bytes disagree": (crafted({"a": entry(0, 16, 2**40)}), "bytes from 0 on must hold it"),
    "overflowing shape": (crafted({"a": entry(0, 16, 2**62, 2**62)}), "bytes from 0 on must hold it"),
    "overlapping": (crafted({"a": entry(0, 16, 4), "b": entry(8, 16, 2)}), "of tensor 'b'"),
    "with a gap": (crafted({"a": entry(8, 16, 2)}), "of tensor 'a'"),
    "too short for the file": (crafted({"a": entry(0, 8, 2)}), "take 8 bytes, but 16 are there"),
    "backwards": (crafted({"a": entry(16, 0, 4)}), "where it begins and where it ends"),
    "negative": (crafted({"a": entry(-16, 0, 4)}), "lists of numbers from 0 on"),
    "negative shape": (crafted({"a": entry(0, 16, -4)}), "lists of numbers from 0 on"),
    "fractions": (crafted({"a": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}}), "lists of numbers"),
    "one offset": (crafted({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0]}}), "where it begins"),
    "no dtype": (crafted({"a": {"shape": [4], "data_offsets": [0, 16]}}), "it has no dtype"),
    "no entry": (crafted({"a": 5}), "it has no dtype"),
    "the same name twice": (crafted(TWICE), "lists 'a' twice"),
    "a pickle": (b"\x80\x04K\x01." + bytes(20), "cut short"),
}


@pytest.mark.parametrize(("content", "says"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    assert says in refused("layers", path)
    assert says in refused("spectra", path)


def test_a_header_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 10**8))
        file.truncate(10**8 + 100)
    assert f"at most {LARGEST_HEADER:,} are read" in refused("layers", path)


def test_a_file_that_shrinks_after_it_was_listed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a.weight": random(40, 30)}, path)
    found = stock(path)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(InvalidFile, match="became shorter"):
        found.spectrum("a")


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 400))
def test_a_damaged_file_is_read_or_refused(at: int, byte: int, cut: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_file({"a.weight": torch.ones(3, 4), "b": torch.ones(5)}, path)
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] = byte
    path.write_bytes(raw[: len(raw) - cut % len(raw)] if cut % 3 == 0 else raw)
    try:
        found = stock(path)
        for layer in found.layers:
            found.spectrum(layer.name)
    except LowRankError:
        pass


MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from pathlib import Path
from benchmarks.large_checkpoint import peak_bytes, resident_bytes, stock
from lowrank_core.algebra.gram import GramMatrix
torch.set_num_threads(1)
warm = GramMatrix(900)
warm.add(torch.ones(900, 900))
warm.singular_values()
found = stock(sys.argv[2])
for name in sys.argv[3:]:
    before = resident_bytes()
    found.spectrum(name)
    print((peak_bytes() - before) / found.tensors[name].bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory as Linux tells it")
def test_the_peak_is_below_four_times_the_tensor(tmp_path: Path) -> None:
    """Square in 16 bits is the hardest: its Gram matrix in float64 alone is four times the tensor."""
    save_file({"square.weight": random(2048, 2048, dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    command = [sys.executable, "-c", MEMORY, str(ROOT), str(tmp_path / "w.safetensors"), "square"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4


# ---- commands ----


def test_layers_and_spectra_of_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"fc.weight": random(30, 20), "fc.bias": random(30)}, path)
    listed = CliRunner().invoke(cli, ["layers", str(path), "--json"])
    document = json.loads(listed.stdout)
    assert document["multiplies"] is None
    assert document["layers"][0]["multiplies"] is None
    assert document["layers"][0]["methods"] == [
        {"name": "svd", "max_rank": [20], "break_even_bytes": [11], "break_even_multiplies": None}
    ]
    assert "unknown" in CliRunner().invoke(cli, ["layers", str(path)]).stdout
    shown = CliRunner().invoke(cli, ["spectra", str(path), "--layer", "fc", "--json"])
    (layer,) = json.loads(shown.stdout)["layers"]
    assert len(layer["spectra"][0]["singular_values"]) == 20
    assert "Spectra of 1 of 1 layers: about" in shown.stderr
    assert "no layer 'fb'; the layers are fc" in refused("spectra", path, "--layer", "fb")
    assert "need" in refused("spectra", path, "--method", "tucker2")


def test_other_commands_say_what_is_needed(tmp_path: Path) -> None:
    save_file({"fc.weight": random(3, 2)}, tmp_path / "w.safetensors")
    for command in ("evaluate", "check"):
        assert "sizes and spectra only. Give a Python model file" in refused(command, tmp_path / "w.safetensors")
    with pytest.raises(UnknownModel):
        open_any(str(tmp_path / "absent.safetensors"))
    refused("layers", tmp_path / "absent.pt", status=2)
