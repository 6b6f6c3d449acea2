"""A folder of save_pretrained as weights alone: told from others, ranks by energy, bytes, and the form of its job."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest
from torch import Tensor

from lowrank_core.errors import InvalidFile, InvalidModel
from lowrank_core.scoring.scores import Score
from lowrank_core.sources import SOURCES, _pretrained_folder, open_any, weights_alone
from lowrank_core.sources._inventory import Estimate, take_stock
from lowrank_core.sources._pretrained_folder import folder_of
from lowrank_core.sources._weights import Weights
from lowrank_core.streaming.request import Outlook, Request
from pages.ui import at_start, may_open, streaming, streaming_form
from pages.ui.state import downloads
from pages.ui.streaming import Stream
from tests.conftest import PATIENCE_SECONDS, ROOT

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"


def falling(rows: int, columns: int) -> Tensor:
    """A matrix whose singular values are 1, 1/2, 1/4 and so on."""
    torch.manual_seed(rows)
    left, right = (torch.linalg.qr(torch.randn(size, min(rows, columns)))[0] for size in (rows, columns))
    return left * torch.logspace(0, 1 - min(rows, columns), min(rows, columns), base=2) @ right.mT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with an index, beside the configuration of a class of transformers."""
    made = tmp_path / "net"
    made.mkdir()
    shards = (
        {f"{Q}.weight": falling(24, 24)},
        {f"{DOWN}.weight": falling(24, 40), "model.norm.weight": torch.ones(24)},
    )
    names = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, made / name)
    where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (made / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return made


def weights(ref: Path) -> Weights:
    found = open_any(str(ref))
    assert isinstance(found, Weights)
    return found


# ---- which weights they are -----------------------------------------------------------------------------------------


def test_a_folder_beyond_memory_opens_as_weights_alone_and_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SOURCES["pretrained"].accepts(str(folder))
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    monkeypatch.setattr(_pretrained_folder, "machine_bytes", lambda: 2 * stored - 1)
    found = weights(folder)
    assert found.notices[-1].startswith("net is opened as weights alone: they take ")
    assert folder_of(found) == folder
    assert "lowrank_core compress FOLDER" in weights_alone(found)
    monkeypatch.setattr(_pretrained_folder, "machine_bytes", lambda: 2 * stored)
    assert SOURCES["pretrained"].accepts(str(folder))


def test_only_all_weights_of_such_a_folder_are_its_weights(folder: Path) -> None:
    index = weights(folder / "model.safetensors.index.json")
    assert (index.name, folder_of(index)) == ("net", folder)
    assert folder_of(weights(folder / "model-1-of-2.safetensors")) is None
    (folder / "config.json").write_text(json.dumps({"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}}))
    assert folder_of(weights(folder / "model.safetensors.index.json")) is None
    (folder / "config.json").unlink()
    assert folder_of(weights(folder)) is None


# ---- figures --------------------------------------------------------------------------------------------------------


def test_ranks_by_energy_and_the_bytes_that_they_come_to(folder: Path) -> None:
    stock = take_stock(weights(folder / "model.safetensors.index.json"))
    layers = streaming.layers_named(stock, (Q, DOWN))
    assert layers[Q].name == Q.removeprefix("model."), "a beginning that all names have is no part of them"
    for layer in layers.values():
        stock.spectrum(layer.name)
    choices = dict(streaming.ranks_by_energy(stock, layers, 0.99))
    assert {name: choice.rank for name, choice in choices.items()} == {Q: (4,), DOWN: (4,)}  # 1 - 4 ** -4 > 0.99
    size = streaming.bytes_with(stock, layers, tuple(choices.items()))
    assert size == 4 * (4 * (24 + 24) + 4 * (24 + 40) + 24)
    kept_whole = streaming.ranks_by_energy(stock, layers, 1 - 1e-12)
    assert kept_whole == (), "no rank that keeps so much is cheaper"
    assert streaming.bytes_with(stock, layers, ()) == stock.bytes
    with pytest.raises(InvalidModel, match=r"holds nothing for the layer 'model\.head'"):
        streaming.layers_named(stock, ("model.head",))


def test_what_it_takes_is_said_and_falls_with_what_is_done(folder: Path) -> None:
    stock = take_stock(weights(folder / "model.safetensors.index.json"))
    request = Request(folder, folder / "text", folder / "out")
    about = Outlook("net", "LlamaForCausalLM", 4, 0, 28, 1000, 800, 10, 5, 16, 10**9, 10**6, True, "cpu")
    half = Outlook("net", "LlamaForCausalLM", 4, 2, 28, 1000, 800, 10, 5, 16, 10**9, 10**6, True, "cpu")
    speed = Estimate(1e-6, 1e-6)
    assert streaming.seconds(stock, half, speed) == streaming.seconds(stock, about, speed) / 2 > 0
    lines = list(streaming.before_it_starts(stock, Stream(request), half, speed))
    assert "28 layers in 4 blocks; 1.000 kB become at most 800 B" in lines[0]
    assert "1.000 GB of memory" in lines[1]
    assert lines[-1] == "2 of 4 blocks are kept of an earlier run: it goes on from there."


def test_a_score_is_told_before_and_after_with_its_interval() -> None:
    score = Score("perplexity", 12.0, 10.0, 50, False, None, None, 2.0, 1.5, 2.5)
    assert streaming.compared(score).startswith("10 before, 12 after (95 % interval of the change: +1.5 to +2.5")
    better = Score("similarity", 0.8, 1.0, 50, True, None, None, 0.2, 0.1, 0.3)
    assert "−0.3 to −0.1" in streaming.compared(better)


# ---- the form -------------------------------------------------------------------------------------------------------


def test_texts_and_folders_lie_where_the_server_was_started(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "book.txt").write_text("words")
    assert may_open.text_file("book.txt", start=tmp_path) == tmp_path / "book.txt"
    for name, why in (("none.txt", "there is no file"), ("net", "is no file"), ("/etc/passwd", "lies outside")):
        with pytest.raises(InvalidFile, match=why):
            may_open.text_file(name, start=tmp_path)
    monkeypatch.setattr(at_start, "STARTED_IN", tmp_path)
    monkeypatch.setattr(downloads, "_exports", lambda: tmp_path / "own")
    assert streaming_form.place("net/small") == tmp_path / "net" / "small"
    for name, why in (("..", "cannot be the name of a new folder"), ("../small", "none of the folders")):
        with pytest.raises(InvalidFile, match=why):
            streaming_form.place(name)


def export_page(ref: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr(sys, "argv", ["app.py", str(ref)])
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
    return page.switch_page("pages/7_Export.py").run()


def test_the_page_asks_refuses_in_one_line_and_keeps_to_this_machine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(may_open, "at_home", lambda: True)
    page = export_page(folder / "model.safetensors.index.json", monkeypatch)
    assert not page.exception
    assert not page.error
    fields = {field.label: field for field in page.text_input}
    assert next(button for button in page.button if button.label == "Compress the folder").disabled
    fields["Folder to write"].set_value("../away").run()
    fields["Text that layers are fitted to"].set_value("none.txt").run()
    assert len(page.error) == 1
    assert "there is no file" in page.error[0].value
    assert "\n" not in page.error[0].value
    monkeypatch.setattr(may_open, "at_home", lambda: False)
    page.run()
    assert not page.text_input
    assert any("answers other machines" in info.value for info in page.info)
    assert "compress" in page.code[0].value


def test_other_weights_need_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = export_page(folder / "model-1-of-2.safetensors", monkeypatch)
    assert not page.exception
    assert any("weights without a model" in info.value for info in page.info)
    assert not page.text_input
