"""Folders of transformers of every kind: what they are given, what is judged, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from benchmarks.transformers_folders import written
from lowrank_core import Workspace, open_source
from lowrank_core.errors import InvalidData, InvalidModel
from lowrank_core.graphs.exporting import exported_program
from lowrank_core.layers.data import Dataset, run
from lowrank_core.sources import _transformers_inputs as inputs_of

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = {"input_ids": (8, 16), "attention_mask": (8, 16)}
PAIRS = {**TOKENS, "token_type_ids": (8, 16)}
KINDS: dict[str, tuple[dict[str, tuple[int, ...]], tuple[str, ...], str]] = {
    "BertModel": (PAIRS, ("last_hidden_state", "pooler_output"), "R2"),
    "BertForMaskedLM": (PAIRS, ("logits",), "agreement"),
    "GPT2LMHeadModel": (TOKENS, ("logits",), "agreement"),
    "T5ForConditionalGeneration": ({**TOKENS, "decoder_input_ids": (8, 16)}, ("logits",), "agreement"),
    "BartForSequenceClassification": (TOKENS, ("logits",), "agreement"),
    "YolosForObjectDetection": ({"pixel_values": (8, 3, 32, 32)}, ("logits", "pred_boxes"), "R2"),
    "CLIPModel": ({**TOKENS, "pixel_values": (8, 3, 32, 32)}, ("text_embeds", "image_embeds"), "R2"),
    "Wav2Vec2ForCTC": ({"input_values": (8, 2000)}, ("logits",), "agreement"),
    "WhisperForConditionalGeneration": (
        {"input_features": (8, 8, 100), "decoder_input_ids": (8, 16)},
        ("logits",),
        "agreement",
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("folders")
    return {name: written(name, base / name) for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_is_given_what_it_takes_and_judged_by_what_it_answers(name: str, folders: dict[str, Path]) -> None:
    shapes, judged, metric = KINDS[name]
    workspace = Workspace.open(str(folders[name]))
    inputs = workspace.opened.example_inputs
    assert {key: tuple(value.shape) for key, value in inputs.items()} == shapes
    again = open_source(str(folders[name])).example_inputs
    assert all(torch.equal(inputs[key], again[key]) for key in inputs)
    assert workspace.judged.names == judged
    assert workspace.metric.name.startswith(metric)
    answers = run(workspace.model, Dataset(inputs))
    assert not any("past" in key or "cache" in key for key in answers)
    assert workspace.self_check.ok
    assert workspace.dense_score() == (1.0, 8)


def test_random_tokens_are_words_between_the_begin_and_the_end_that_a_network_looks_for(
    folders: dict[str, Path],
) -> None:
    def given(name: str, key: str = "input_ids") -> torch.Tensor:
        value: torch.Tensor = open_source(str(folders[name])).example_inputs[key]
        return value

    assert int(given("BertForMaskedLM").min()) > 2  # neither padding nor begin nor end
    assert ((given("CLIPModel") == 2).sum(1) == 1).all()
    assert (given("T5ForConditionalGeneration")[:, -1] == 2).all()
    answered = given("T5ForConditionalGeneration", "decoder_input_ids")
    assert (answered[:, 0] == 0).all()
    assert int(answered[:, 1:].min()) > 2


def test_samples_are_prepared_by_the_processors_in_the_folder(folders: dict[str, Path]) -> None:
    prepared = open_source(str(folders["BertForMaskedLM"])).preparation
    assert prepared.tokens is not None
    found = prepared.tokens(["w7 w8", "w9"], ["w10", "w11 w12"])
    assert list(found) == list(PAIRS)
    assert found["input_ids"].tolist() == [[1, 7, 8, 2, 10, 2], [1, 9, 2, 11, 12, 2]]
    assert found["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    padded = prepared.tokens(["w7", "w8 w9"], None)
    assert padded["input_ids"].tolist() == [[1, 7, 2, 0], [1, 8, 9, 2]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert prepared.tokens(["w7 " * 100], None)["input_ids"].shape == (1, 24)  # what its tokenizer says

    prepared = open_source(str(folders["YolosForObjectDetection"])).preparation
    assert prepared.images is not None
    grey = prepared.images([Image.new("L", (50, 40), 255)])["pixel_values"]
    assert torch.allclose(grey, torch.ones(1, 3, 32, 32))

    prepared = open_source(str(folders["WhisperForConditionalGeneration"])).preparation
    assert prepared.waves is not None
    heard = prepared.waves([np.zeros(5000, np.float32)], 16_000)
    assert {key: tuple(value.shape) for key, value in heard.items()} == {
        "input_features": (1, 8, 100),
        "decoder_input_ids": (1, 1),
    }
    with pytest.raises(InvalidData, match="16,000 Hz, but got 8,000 Hz"):
        prepared.waves([np.zeros(5000, np.float32)], 8_000)


def test_perplexity_of_a_text_is_that_of_its_next_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w7 w8 w9 w10 w11\n\nw12 w13 w14\n")
    workspace = Workspace.open(str(folders["GPT2LMHeadModel"]), text=text)
    assert workspace.metric.name == "perplexity"
    losses = []
    for tokens in ([7, 8, 9, 10, 11], [12, 13, 14]):
        with torch.no_grad():
            logits = workspace.model(input_ids=torch.tensor([tokens])).logits[0]
        losses.append(cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="none"))
    assert workspace.dense_score()[0] == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-5)
    with pytest.raises(InvalidData, match="BertForMaskedLM is no causal language model"):
        Workspace.open(str(folders["BertForMaskedLM"]), text=text)


def test_a_program_answers_in_dicts_that_ask_for_no_package(folders: dict[str, Path]) -> None:
    workspace = Workspace.open(str(folders["CLIPModel"]))
    inputs, axes = workspace.opened.example_inputs, workspace.opened.axes
    program = exported_program(workspace.model, inputs, axes)
    answered = program.module()(**inputs)
    assert type(answered) is dict
    assert "CLIP" not in str(program.call_spec.out_spec)
    expected = run(workspace.model, Dataset(inputs))
    assert answered.keys() == expected.keys()
    assert torch.allclose(answered["text_embeds"], expected["text_embeds"], atol=1e-5)


def changed(folder: Path, to: Path, **config: Any) -> str:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    said = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(said | config))
    return str(to)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"vocab_size": 91}, "its weights do not fit BertForMaskedLM: .*word_embeddings.weight.* would be random"),
        ({"num_hidden_layers": 10**9}, "asks for 1,000,000,000 layers"),
        ({"hidden_size": 10**6}, "but its files hold 20,"),
        ({"hidden_size": "many"}, "cannot be built from its files"),
        ({"num_attention_heads": 0}, "cannot be built from its files"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "weights do not fit LlamaForCausalLM"),
    ],
)
def test_a_configuration_that_is_not_of_these_weights_is_refused_in_a_line(
    config: dict[str, Any], reason: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InvalidModel, match=reason) as refused:
        open_source(changed(folders["BertForMaskedLM"], tmp_path / "other", **config))
    assert "\n" not in str(refused.value)


def test_what_is_missing_beside_a_network_is_said_when_it_is_needed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(changed(folders["GPT2LMHeadModel"], tmp_path / "bare"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    opened = open_source(str(folder))
    assert opened.preparation.tokens is not None
    with pytest.raises(InvalidData, match="holds no tokenizer") as refused:
        opened.preparation.tokens(["w7"], None)
    assert "\n" not in str(refused.value)

    clip = open_source(str(folders["CLIPModel"])).preparation
    assert clip.tokens is not None
    with pytest.raises(InvalidData, match="takes texts and images together"):
        clip.tokens(["w7"], None)

    half = changed(folders["YolosForObjectDetection"], tmp_path / "half", dtype="bfloat16")
    assert open_source(half).example_inputs["pixel_values"].dtype == torch.bfloat16

    monkeypatch.setattr(inputs_of, "MOST_NUMBERS", 1000)
    with pytest.raises(InvalidModel, match="a sample has pixel_values of 3 x 32 x 32"):
        open_source(str(folders["YolosForObjectDetection"]))
