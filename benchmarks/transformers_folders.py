"""Folders of transformers at random weights, of every kind: what is counted, whether it is right, and every command.

    OMP_NUM_THREADS=1 python -m benchmarks.transformers_folders [--only WORD] [--commands]

Each configuration is written with `save_pretrained`, tiny, with the processor files that such folders come with, and
opened by its path. Shown are parameters, multiplies of one sample beside what PyTorch's own FLOP counter says, how many
layers can be compressed, how far the network with every such layer as a chain of full rank answers from the dense one
(of the largest output), which outputs are judged and by what. With --commands each command is run on the folder, at
half of the multiplies: its seconds and what it says of the plan or the file, or why it is refused. Every file is read
back in a fresh process and compared. Fine-tuning and evaluating are given other random samples, in a .npz.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks.architectures import counted
from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.commands import cli
from lowrank_core.compression.self_check import _answers, _apart, _chained
from lowrank_core.layers.data import evaluating
from lowrank_core.plans.cost import dense_cost, plan_cost
from lowrank_core.running.own_process import hush_libraries
from lowrank_core.sources import open_source
from lowrank_core.sources._transformers_inputs import Folder, random_inputs
from lowrank_core.workspace import Workspace

WORDS = 90
"""In the vocabulary of every folder with tokens; the first five are no words."""

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
TOKENS: dict[str, Any] = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL: dict[str, Any] = {
    **TOKENS,
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "max_position_embeddings": 48,
}
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2}
PATCHES: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"image_size": 32, "patch_size": 8},
}
BOTH: dict[str, Any] = {
    **TOKENS,
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2},
    **{"max_position_embeddings": 48, "forced_eos_token_id": None},
}
WAVES: dict[str, Any] = {
    **SMALL,
    **{"conv_dim": [16, 16, 16], "conv_stride": [5, 4, 4], "conv_kernel": [10, 8, 4], "num_feat_extract_layers": 3},
    **{"num_conv_pos_embedding_groups": 4, "num_conv_pos_embeddings": 16},
}
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    # encoders of tokens
    "BertModel": ("BertConfig", SMALL, "text"),
    "BertForMaskedLM": ("BertConfig", SMALL, "text"),
    "BertForSequenceClassification": ("BertConfig", SMALL, "text"),
    "RobertaForSequenceClassification": ("RobertaConfig", {**SMALL, "pad_token_id": 1, "bos_token_id": 0}, "text"),
    "XLMRobertaForQuestionAnswering": ("XLMRobertaConfig", {**SMALL, "pad_token_id": 1, "bos_token_id": 0}, "text"),
    "DistilBertForTokenClassification": (
        "DistilBertConfig",
        {**TOKENS, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 48},
        "text",
    ),
    "AlbertForSequenceClassification": ("AlbertConfig", {**SMALL, "embedding_size": 16}, "text"),
    "ElectraForSequenceClassification": ("ElectraConfig", {**SMALL, "embedding_size": 16}, "text"),
    "DebertaV2ForSequenceClassification": (
        "DebertaV2Config",
        {**SMALL, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
        "text",
    ),
    "MPNetModel": ("MPNetConfig", {**SMALL, "pad_token_id": 1, "bos_token_id": 0}, "text"),
    "ModernBertForMaskedLM": (
        "ModernBertConfig",
        {**SMALL, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8, "global_attn_every_n_layers": 2},
        "text",
    ),
    # causal language models
    "GPT2LMHeadModel": ("GPT2Config", {**TOKENS, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}, "text"),
    "GPT2ForSequenceClassification": (
        "GPT2Config",
        {**TOKENS, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4},
        "text",
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SMALL, "text"),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED, "text"),
    "MistralForCausalLM": ("MistralConfig", {**GROUPED, "sliding_window": 8}, "text"),
    "Qwen3ForCausalLM": ("Qwen3Config", {**GROUPED, "head_dim": 8}, "text"),
    "GemmaForCausalLM": ("GemmaConfig", {**GROUPED, "head_dim": 8}, "text"),
    "PhiForCausalLM": ("PhiConfig", SMALL, "text"),
    "OPTForCausalLM": (
        "OPTConfig",
        {**TOKENS, **{"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}}
        | {"num_attention_heads": 4, "max_position_embeddings": 48},
        "text",
    ),
    "BloomForCausalLM": ("BloomConfig", {**TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "text"),
    "FalconForCausalLM": ("FalconConfig", SMALL, "text"),
    "MixtralForCausalLM": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}, "text"),
    "MambaForCausalLM": ("MambaConfig", {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "text"),
    # encoder and decoder
    "T5ForConditionalGeneration": (
        "T5Config",
        {**TOKENS, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        "text",
    ),
    "BartForConditionalGeneration": ("BartConfig", BOTH, "text"),
    "BartForSequenceClassification": ("BartConfig", BOTH, "text"),
    "MarianMTModel": ("MarianConfig", BOTH, "text"),
    "PegasusForConditionalGeneration": ("PegasusConfig", BOTH, "text"),
    # images
    "ViTForImageClassification": ("ViTConfig", PATCHES, "images"),
    "DeiTForImageClassification": ("DeiTConfig", PATCHES, "images"),
    "BeitForImageClassification": ("BeitConfig", {**PATCHES, "num_hidden_layers": 4}, "images"),
    "SwinForImageClassification": (
        "SwinConfig",
        {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        "images",
    ),
    "Dinov2Model": ("Dinov2Config", {**PATCHES, "mlp_ratio": 2}, "images"),
    "ConvNextForImageClassification": (
        "ConvNextConfig",
        {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "image_size": 32},
        "images",
    ),
    "ResNetForImageClassification": (
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]},
        "images",
    ),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.35, "image_size": 32}, "images"),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig",
        {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32},
        "images",
    ),
    "YolosForObjectDetection": (
        "YolosConfig",
        {**PATCHES, "image_size": [32, 32], "num_detection_tokens": 5},
        "images",
    ),
    "DPTForDepthEstimation": (
        "DPTConfig",
        {**PATCHES, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 16}
        | {"neck_hidden_sizes": [8, 8, 16, 16], "is_hybrid": False},
        "images",
    ),
    # images beside text
    "CLIPModel": (
        "CLIPConfig",
        {
            "text_config": {**TOKENS, **TOWER, "max_position_embeddings": 24},
            "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
            "projection_dim": 16,
        },
        "text images",
    ),
    "SiglipModel": (
        "SiglipConfig",
        {
            "text_config": {**TOKENS, **TOWER, "max_position_embeddings": 24},
            "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
        },
        "text images",
    ),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", {**PATCHES, "projection_dim": 16}, "images"),
    "ViltForQuestionAnswering": ("ViltConfig", {**SMALL, "image_size": 32, "patch_size": 8}, "text images"),
    "VisionEncoderDecoderModel": ("VisionEncoderDecoderConfig", {}, "text images"),
    # sound
    "Wav2Vec2ForCTC": ("Wav2Vec2Config", WAVES, "sound"),
    "HubertForSequenceClassification": ("HubertConfig", WAVES, "sound"),
    "WavLMForSequenceClassification": ("WavLMConfig", WAVES, "sound"),
    "WhisperForConditionalGeneration": (
        "WhisperConfig",
        {**BOTH, "num_mel_bins": 8, "max_source_positions": 50, "max_target_positions": 16},
        "spectrogram",
    ),
    "Speech2TextForConditionalGeneration": (
        "Speech2TextConfig",
        {**BOTH, "input_feat_per_channel": 8, "max_source_positions": 64, "max_target_positions": 16}
        | {"conv_channels": 16},
        "spectrogram",
    ),
    "ASTForAudioClassification": (
        "ASTConfig",
        {**TOWER, "max_length": 32, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
        "spectrogram",
    ),
}
"""Class of the model, of its configuration with what differs from it, and what the folder has processors for."""


def written(name: str, folder: Path) -> Path:
    """The folder with a model at random weights, the same each time, and its processor files."""
    import transformers

    config_name, settings, beside = CONFIGURATIONS[name]
    kind, config_kind = getattr(transformers, name), getattr(transformers, config_name)
    if name == "VisionEncoderDecoderModel":
        encoder = transformers.ViTConfig(**PATCHES)
        decoder = transformers.BertConfig(**SMALL, is_decoder=True, add_cross_attention=True)
        config = config_kind.from_encoder_decoder_configs(encoder, decoder, decoder_start_token_id=1, pad_token_id=0)
    else:
        config = config_kind(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).eval().save_pretrained(folder)
    for part in beside.split():
        PROCESSORS[part](folder, settings)
    return folder


def _tokenizer(folder: Path, settings: dict[str, Any]) -> None:
    """One token for each of some words, which are named by numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    own = settings.get("text_config", settings)
    special = {own.get("pad_token_id", 0): "<pad>", own.get("bos_token_id", 1): "<s>", 2: "</s>", 3: "<unk>"}
    words = {special.get(n, f"w{n}" if n > 4 else SPECIAL[n]): n for n in range(WORDS)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, words[token]) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", ends)
    longest = own.get("max_position_embeddings", 48)
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=min(longest, 24),
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"},
    ).save_pretrained(folder)


def _image_processor(folder: Path, settings: dict[str, Any]) -> None:
    from transformers import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def _waves(folder: Path, settings: dict[str, Any]) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    Wav2Vec2FeatureExtractor(sampling_rate=2000).save_pretrained(folder)


def _spectrogram(folder: Path, settings: dict[str, Any]) -> None:
    from transformers import WhisperFeatureExtractor

    if "num_mel_bins" in settings and "max_source_positions" in settings:
        seconds = 2 * settings["max_source_positions"] * 160 // 16000
        WhisperFeatureExtractor(feature_size=settings["num_mel_bins"], chunk_length=seconds).save_pretrained(folder)


PROCESSORS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "text": _tokenizer,
    "images": _image_processor,
    "sound": _waves,
    "spectrogram": _spectrogram,
}


def _countable(model: nn.Module) -> nn.Module:
    """A copy of which PyTorch's counter sees all: experts one by one, and no gradients of what modules are given."""
    copied = copy.deepcopy(model).requires_grad_(False)
    copied.config._experts_implementation = "eager"
    return copied


def row(name: str, folder: Path) -> list[str]:
    """What is shown of one folder."""
    workspace = Workspace.open(str(folder))
    model, profile, check = workspace.model, workspace.profile, workspace.self_check
    inputs = workspace.opened.example_inputs
    total, own = plan_cost(profile), sum(p.numel() for p in model.parameters())
    share = sum(dense_cost(layer).parameters for layer in profile.layers) / own
    flops = counted(_countable(model), inputs)
    with evaluating(model), evaluating(_chained(model, profile, profile.layers)) as chained:
        apart = _apart(_answers(chained, inputs), _answers(model, inputs)) * torch.finfo(torch.float32).eps
    found = "; ".join(one.detail for one in check.checked if not one.ok) or "none"
    parameters = f"{own:,}" if own == total.parameters else f"{own:,} (shown: {total.parameters:,})"
    beside = f"{total.multiplies / flops - 1:+.2%}" if flops != total.multiplies else "the same"
    given = ", ".join(f"{key} {' x '.join(map(str, value.shape[1:]))}" for key, value in inputs.items())
    judged = f"{', '.join(workspace.judged.names)}: {workspace.metric.name}"
    counts = [parameters, f"{share:.0%}", str(len(profile.layers)), f"{total.multiplies:,}", beside]
    return [name, given, *counts, f"{apart:.0e}", judged, found]


DATA = ("--data", "{folder}/data.npz")
COMMANDS: dict[str, tuple[str, ...]] = {
    "layers": (),
    "check": (),
    "spectra": (),
    "profile": ("--samples", "4", "--no-cache"),
    "search uniform": ("--rule", "uniform", "--multiplies", "0.5", "--out", "{folder}/plan.json"),
    "search budget": ("--rule", "budget", "--multiplies", "0.5", "--out", "{folder}/budget.json"),
    "evaluate": ("--plan", "{folder}/plan.json", *DATA, "--no-cache"),
    "finetune": ("--plan", "{folder}/plan.json", *DATA, "--epochs", "1", "--out", "{folder}/tuned.safetensors"),
    **{
        f"export {kind}": ("--format", kind, "--plan", "{folder}/plan.json", "--out", f"{{folder}}/small.{ending}")
        for kind, ending in (("safetensors", "safetensors"), ("pt2", "pt2"), ("onnx", "onnx"), ("bundle", "zip"))
    },
}


BUNDLED = (
    *("BertForMaskedLM", "GPT2LMHeadModel", "T5ForConditionalGeneration", "ViTForImageClassification", "CLIPModel"),
    *("Wav2Vec2ForCTC", "WhisperForConditionalGeneration"),
)
"""Of which a bundle is written, too: it holds the same files as the other exports."""


def commands(name: str, model: Path, folder: Path) -> list[str]:
    """What each command ends with, and how many seconds it takes."""
    about = Folder.of(model, open_source(str(model)).model)
    samples = random_inputs(about, 1), random_inputs(about, 2)
    arrays = {
        f"{kind}{key}": t.numpy() for kind, part in zip(("", "train_"), samples, strict=True) for key, t in part.items()
    }
    np.savez(folder / "data.npz", **arrays)
    cells = [name]
    for command, words in COMMANDS.items():
        if command == "export bundle" and name not in BUNDLED:
            cells.append("")
            continue
        began = time.perf_counter()
        given = [command.split()[0], str(model), *(word.format(folder=folder) for word in words), "--json"]
        done = CliRunner().invoke(cli, given)
        seconds = time.perf_counter() - began
        if done.exit_code:
            cause = " ".join(done.stderr.split()).rpartition("Error: ")[2] or repr(done.exception)
            cells.append(cause.replace(str(model), name).replace(str(folder), "")[:300])
            continue
        said = json.loads(done.stdout)
        cells.append(" ".join([f"{seconds:.0f} s", *_said(said)]))
    return cells


def _said(said: dict[str, Any]) -> list[str]:
    """Of what a command prints, how far the file answers from the network, or how far the plan is from dense."""
    if (apart := said.get("max_abs_diff")) is not None:
        return [f"{apart:.0e} apart"]
    drop = said.get("drop")
    return [] if not isinstance(drop, float) else [f"drop {drop:.3g}"]


def main() -> None:
    """One table, or with --commands the other."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="folders whose names hold it, or one of several,")
    parser.add_argument("--commands", action="store_true", help="run the commands instead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    hush_libraries(alone=True)
    torch.set_num_threads(1)
    heads = ["network", "inputs of a sample", "parameters", "compressible", "layers", "multiplies"]
    heads += ["by PyTorch's counter", "full rank", "judged", "findings"]
    if options.commands:
        heads = ["network", *COMMANDS]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in CONFIGURATIONS:
        if not any(word in name for word in options.only.split(",")):
            continue
        with tempfile.TemporaryDirectory() as kept:
            try:
                folder = written(name, Path(kept) / name)
                cells = commands(name, folder, Path(kept)) if options.commands else row(name, folder)
            except Exception as error:  # of a network that cannot be opened at all
                cells = [name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
        print(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |", flush=True)


if __name__ == "__main__":
    run_benchmark(main)
