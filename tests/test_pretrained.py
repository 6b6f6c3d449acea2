"""Models of `transformers`, which is optional: their layers and folders of save_pretrained."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_core import Choice, RankPlan, Workspace, load_checkpoint, open_source
from lowrank_core.errors import InvalidModel
from lowrank_core.exports import _reload
from lowrank_core.exports.safetensors import export_checkpoint
from lowrank_core.layers.data import Inputs, Outputs
from lowrank_core.methods import METHODS
from lowrank_core.plans.cost import plan_cost

pytestmark = pytest.mark.usefixtures("one_thread")


def small(kind: str) -> nn.Module:
    """A network of transformers with random weights."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "bert":
            config = transformers.BertConfig(
                **sizes, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
            )
            return transformers.BertForSequenceClassification(config).eval()
        if kind == "t5":
            config = transformers.T5Config(
                **sizes, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
            )
            return transformers.T5ForConditionalGeneration(config).eval()
        config = transformers.GPT2Config(**sizes, n_positions=32, n_embd=32, n_layer=2, n_head=4)
        return transformers.GPT2LMHeadModel(config).eval()


LAYERS = {
    "bert": {
        *(f"bert.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")),
        *(f"bert.encoder.layer.{n}.attention.self.{name}" for n in (0, 1) for name in ("query", "key", "value")),
        *(f"bert.encoder.layer.{n}.attention.output.dense" for n in (0, 1)),
        *(f"bert.encoder.layer.{n}.{name}.dense" for n in (0, 1) for name in ("intermediate", "output")),
        "bert.pooler.dense",
        "classifier",
    },
    "gpt2": {
        "transformer.wte",  # with lm_head
        "transformer.wpe",
        *(f"transformer.h.{n}.attn.{name}" for n in (0, 1) for name in ("c_attn", "c_proj")),
        *(f"transformer.h.{n}.mlp.{name}" for n in (0, 1) for name in ("c_fc", "c_proj")),
    },
    "t5": {
        "encoder.embed_tokens",  # with shared, decoder.embed_tokens and lm_head
        *(f"{side}.block.{n}.layer.0.SelfAttention.{name}"
          for side in ("encoder", "decoder") for n in (0, 1) for name in "qkvo"),
        *(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias" for side in ("encoder", "decoder")),
        *(f"decoder.block.{n}.layer.1.EncDecAttention.{name}" for n in (0, 1) for name in "qkvo"),
        *(f"{side}.block.{n}.layer.{last}.DenseReluDense.{name}"
          for side, last in (("encoder", 1), ("decoder", 2)) for n in (0, 1) for name in ("wi", "wo")),
    },
}  # fmt: skip


def saved(kind: str, folder: Path) -> Path:
    small(kind).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", LAYERS)
def test_a_folder_opens_runs_is_compressed_and_reloaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(kind: str, ref: str, written: Path, batches: list[Inputs], own_seconds: float) -> list[Outputs]:
        return [_reload.READERS[kind](ref, str(written))(inputs) for inputs in batches]

    if kind != "bert":  # a fresh process opens the folder as this one does
        monkeypatch.setattr(_reload, "outputs_in_fresh_process", here)
    workspace = Workspace.open(str(saved(kind, tmp_path / "model")))
    profile, inputs = workspace.profile, workspace.opened.example_inputs
    assert {layer.name for layer in profile.layers} == LAYERS[kind]
    assert {s.type for s in profile.skipped} <= {"LayerNorm", "T5LayerNorm"}
    with torch.no_grad():
        dense = small(kind)(**inputs).logits
        assert torch.equal(workspace.model(**inputs).logits, dense)
        tops = {layer.name: METHODS["svd"].max_rank(layer.spec) for layer in profile.layers}
        full = RankPlan.of(profile.fingerprint, {name: Choice("svd", top) for name, top in tops.items()})
        assert torch.allclose(workspace.compress(full)(**inputs).logits, dense, atol=1e-4)
        plan = RankPlan.of(profile.fingerprint, {n: Choice("svd", (max(1, t // 2),)) for n, (t,) in tops.items()})
        path = tmp_path / "small.safetensors"
        assert export_checkpoint(workspace, plan, path).max_abs_diff == 0
        expected = workspace.compress(plan)(**inputs).logits
        assert not torch.allclose(expected, dense, atol=1e-4)
        loaded = load_checkpoint(open_source(str(tmp_path / "model")).model, path).model
        assert torch.equal(loaded(**inputs).logits, expected)
    assert sum(p.numel() for p in loaded.parameters()) == plan_cost(profile, plan).parameters


def test_folders_that_are_refused(tmp_path: Path) -> None:
    folder = saved("bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for change, reason in (
        ({"auto_map": {"AutoModel": "code.Model"}}, "needs code of its own"),
        ({"architectures": None}, "must name its architectures"),
        ({"architectures": ["NoSuchModel"]}, "has no model 'NoSuchModel'"),
        ({"architectures": ["logging"]}, "has no model 'logging'"),
        ({"architectures": ["BertForMaskedLM"]}, "would be random"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InvalidModel, match=reason):
            open_source(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(InvalidModel, match="must name its architectures"):
        open_source(str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(InvalidModel, match="holds no "):
        open_source(str(folder))
