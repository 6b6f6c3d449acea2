"""The check on opening: what it costs as a share of opening a network, and what it finds.

    OMP_NUM_THREADS=1 python -m benchmarks.opening_check [--only WORD]

Opened are the specimens of tests/zoo.py, the built-in networks, and networks of torchvision (where it is installed) and
transformers with random weights from a small config; then networks with planted faults. Opening is `Workspace.open` or
`Workspace.of`, without building the network. The check is the search for the batch axis, which is a part of opening,
and `Workspace.self_check`. The least of three runs each.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks.page import ROOT, benchmark_parser, run_benchmark
from lowrank_core.builtin import BUILTIN
from lowrank_core.compression.self_check import SelfCheck
from lowrank_core.networks.batch_axes import batch_axes
from lowrank_core.workspace import Workspace

sys.path.append(str(ROOT / "tests"))  # where the tests find the zoo

from tests.test_self_check import FAULTS, SOUND, WHOLE, rows, seeded

Network = tuple[nn.Module, Any]
RUNS = 3

IMAGES = (
    *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "squeezenet1_1"),
    *("shufflenet_v2_x0_5", "regnet_y_400mf", "convnext_tiny", "swin_t"),
)
"""Of torchvision; each is given two images of 64 x 64."""

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}

TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99}, "tokens"),
    "LlamaForCausalLM": ("LlamaConfig", {**SMALL, "num_key_value_heads": 2}, "tokens"),
    "MixtralForCausalLM": ("MixtralConfig", {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4}, "tokens"),
    "BertForSequenceClassification": ("BertConfig", SMALL, "tokens"),
    "DistilBertForTokenClassification": (
        "DistilBertConfig",
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 99},
        "tokens",
    ),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 99},
        "both",
    ),
    "ViTForImageClassification": ("ViTConfig", {**SMALL, "image_size": 32, "patch_size": 8}, "images"),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.35, "image_size": 32}, "images"),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig",
        {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32},
        "images",
    ),
    "Wav2Vec2ForCTC": (
        "Wav2Vec2Config",
        {
            **SMALL,
            "conv_dim": (16, 16),
            "conv_stride": (5, 2),
            "conv_kernel": (10, 3),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embedding_groups": 4,
            "num_conv_pos_embeddings": 16,
        },
        "sound",
    ),
}


def networks() -> Iterator[tuple[str, Callable[[], Network]]]:
    """(name, what builds the network and its inputs) of those from outside."""
    if find_spec("torchvision") is None:
        print("torchvision is not installed; its networks are left out.\n")
    else:
        for name in IMAGES:
            yield f"torchvision {name}", partial(_image_network, name)
    for name, (config, settings, kind) in TRANSFORMERS.items():
        yield f"transformers {name}", partial(_transformer, name, config, settings, kind)


def _image_network(name: str) -> Network:
    import_torchvision()
    from torchvision import models

    return seeded(lambda: getattr(models, name)(weights=None)), rows(2, 3, 64, 64)


def import_torchvision() -> None:
    """Import it also where its compiled operators are of another build of PyTorch: no network here uses any."""
    kept = torch.library.register_fake

    def register(op: Any, *args: Any, **kwargs: Any) -> Any:
        return (lambda function: function) if str(op).startswith("torchvision::") else kept(op, *args, **kwargs)

    torch.library.register_fake = register
    try:
        import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = kept


def _transformer(name: str, config: str, settings: dict[str, Any], kind: str) -> Network:
    import transformers

    if find_spec("torchvision") is not None:
        import_torchvision()  # which transformers does by itself
    model = seeded(lambda: getattr(transformers, name)(getattr(transformers, config)(**settings)))
    tokens = torch.arange(24).reshape(2, 12) * 7 % 90 + 1
    inputs = {
        "tokens": {"input_ids": tokens},
        "both": {"input_ids": tokens, "decoder_input_ids": tokens[:, :6]},
        "images": {"pixel_values": rows(2, 3, 32, 32)},
        "sound": {"input_values": rows(2, 800)},
    }[kind]
    return model, inputs


def opened(make: Callable[[], Workspace]) -> tuple[float, float, float, SelfCheck]:
    """(seconds of opening, of these of finding the batch axis, seconds of the check, the check), the least of RUNS."""
    found = []
    for _ in range(RUNS):
        began = time.perf_counter()
        workspace = make()
        open_seconds = time.perf_counter() - began
        began = time.perf_counter()
        batch_axes(workspace.model, workspace.opened.example_inputs)
        axes_seconds = time.perf_counter() - began
        began = time.perf_counter()
        check = workspace.self_check
        found.append((open_seconds, axes_seconds, time.perf_counter() - began))
    return *(min(column) for column in zip(*found, strict=True)), check  # type: ignore[return-value]


def findings(check: SelfCheck) -> str:
    """What was found, in words for a cell of a table."""
    return "; ".join(f"{one.what}: {one.detail}" for one in check.checked if not one.ok).replace("|", "\\|") or "none"


def row(name: str, make: Callable[[], Workspace]) -> tuple[float, float]:
    open_seconds, axes_seconds, check_seconds, check = opened(make)
    spent, whole = axes_seconds + check_seconds, open_seconds + check_seconds
    layers = len(make().profile.layers)
    print(
        f"| {name} | {layers} | {1e3 * open_seconds:.0f} | {1e3 * axes_seconds:.0f} | {1e3 * check_seconds:.0f} | "
        f"{spent / whole:.0%} | {findings(check)} |",
        flush=True,
    )
    return spent, whole


def main() -> None:
    """Two tables: cost and findings of networks as they are, then what was planted and what was found."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="networks whose names hold it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| network | layers | opening, ms | of it the batch axis, ms | check, ms | check of all | findings |")
    print("|---|---|---|---|---|---|---|")
    if options.only in "zoo":
        sound = [specimen for specimen in SOUND if specimen.name != "scripted"]  # refused as a whole, in a line
        totals = [opened(lambda s=s: Workspace.of(s.build(), s.inputs)) for s in sound]
        open_seconds, axes_seconds, check_seconds = (sum(t[i] for t in totals) for i in range(3))
        found = [findings(check) for *_, check in totals if not check.ok]
        share = (axes_seconds + check_seconds) / (open_seconds + check_seconds)
        print(
            f"| {len(sound)} sound specimens of the zoo, together | | {1e3 * open_seconds:.0f} | "
            f"{1e3 * axes_seconds:.0f} | {1e3 * check_seconds:.0f} | {share:.0%} | {'; '.join(found) or 'none'} |"
        )
    for name in BUILTIN:
        if options.only in name:
            row(f"builtin:{name}", lambda name=name: Workspace.open(f"builtin:{name}"))
    for name, build in networks():
        if options.only in name:
            model, inputs = build()
            row(name, lambda model=model, inputs=inputs: Workspace.of(model, inputs))
    print("\n| planted | found |\n|---|---|")
    for fault, (make, *_) in {**FAULTS, **WHOLE}.items():
        if options.only in fault:
            check = Workspace.of(seeded(make), rows(2, 12)).self_check
            print(f"| {fault} | {findings(check)} |", flush=True)


if __name__ == "__main__":
    run_benchmark(main)
