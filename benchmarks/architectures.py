"""Networks of torchvision, timm and transformers at random weights: what of each can be compressed, and whether it is
right.

    OMP_NUM_THREADS=1 python -m benchmarks.architectures [--only WORD] [--commands [--seconds S]] [--packages FOLDER]

The packages are no requirement: they are installed, pinned, into a folder that is removed again, or FOLDER is one into
which `pip install --target` has put them. Shown are the parameters and how many of them are in layers that can be
compressed, how many of these layers are weights that functions are given, multiplies of one sample beside what
PyTorch's own FLOP counter says, and how far the network with every such layer as a chain of full rank answers from the
dense one, of the largest output. With --commands, `layers`, `spectra`, `profile` (SVD, 2 samples, not corrected),
`evaluate`, `apply` and `export --format onnx` are run instead, at half of the multiplies, each in a process of its own
that ends after so many seconds of processor time; shown are these, and how far what is written answers from the network
here. Then a run of some (--only) renews their rows, and networks that no run has reached yet are named.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.opening_check import TRANSFORMERS, import_torchvision
from benchmarks.page import PAGES, ROOT, benchmark_parser, renewed, run_benchmark, stamp, table_of
from benchmarks.wild_networks._packages import ending, limit_to, plain
from lowrank_core.commands import cli
from lowrank_core.compression.self_check import _answers, _apart, _chained
from lowrank_core.layers.data import batch_size, evaluating
from lowrank_core.plans.cost import dense_cost, plan_cost
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.workspace import Workspace

Network = tuple[nn.Module, Any]

PACKAGES = ("torchvision==0.28.0", "timm==1.0.31", "efficientnet_pytorch==0.7.1")

TORCHVISION: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "r3d_18": ((3, 4, 32, 32), {}),
    "mobilenet_v3_small": ((3, 64, 64), {}),
    "efficientnet_b0": ((3, 64, 64), {}),
    "convnext_tiny": ((3, 64, 64), {}),
    "swin_t": ((3, 64, 64), {}),
    "swin_v2_t": ((3, 64, 64), {}),
    "vit_b_16": ((3, 32, 32), {"image_size": 32}),
    "maxvit_t": ((3, 224, 224), {}),
    "regnet_y_400mf": ((3, 64, 64), {}),
    "densenet121": ((3, 64, 64), {}),
    "googlenet": ((3, 64, 64), {"aux_logits": False, "init_weights": False}),
    "inception_v3": ((3, 80, 80), {"aux_logits": False, "init_weights": False}),
    "deeplabv3_mobilenet_v3_large": ((3, 64, 64), {"weights_backbone": None}),
}
TIMM: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "efficientnet_lite0": ((3, 64, 64), {}),
    "tf_efficientnet_b0": ((3, 64, 64), {}),
    "mobilenetv4_conv_small": ((3, 64, 64), {}),
    "mixer_s32_224": ((3, 224, 224), {}),
    "levit_128s": ((3, 224, 224), {}),
    "efficientvit_b0": ((3, 64, 64), {}),
    "beit_base_patch16_224": ((3, 224, 224), {"depth": 2}),
    "resnetv2_50x1_bit": ((3, 64, 64), {}),
}
"""With the shape of one input and what a network is built with."""

_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_BOTH = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 99, **_HEADS}
_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OF_TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "FalconForCausalLM": ("FalconConfig", {**_WIDE, "vocab_size": 99}, "tokens"),
    "BartForConditionalGeneration": ("BartConfig", {**_BOTH, "scale_embedding": True}, "both"),
    "WhisperForConditionalGeneration": (
        "WhisperConfig",
        {
            **_BOTH,
            **{"num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 16, "pad_token_id": 0},
            **{"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        },
        "spectrogram",
    ),
    "T5ForConditionalGeneration": TRANSFORMERS["T5ForConditionalGeneration"],
    "GemmaForCausalLM": (
        "GemmaConfig",
        {**_WIDE, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 99},
        "tokens",
    ),
    "GPT2LMHeadModel": TRANSFORMERS["GPT2LMHeadModel"],
    "SwinForImageClassification": (
        "SwinConfig",
        {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4},
        "images",
    ),
    "BeitForImageClassification": (
        "BeitConfig",
        {**_WIDE, "num_hidden_layers": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
        "images",
    ),
}


def networks() -> dict[str, Callable[[], Network]]:
    """What builds each network and its inputs, two samples."""
    found: dict[str, Callable[[], Network]] = {}
    for name, (shape, settings) in TORCHVISION.items():
        found[f"torchvision {name}"] = partial(_of_torchvision, name, shape, settings)
    for name, (shape, settings) in TIMM.items():
        found[f"timm {name}"] = partial(_of_timm, name, shape, settings)
    found["efficientnet_pytorch efficientnet-b0"] = _of_efficientnet
    for name, about in OF_TRANSFORMERS.items():
        found[f"transformers {name}"] = partial(_of_transformers, name, *about)
    return found


def network(name: str) -> Network:
    """One of them, at the same random weights each time."""
    warnings.simplefilter("ignore")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = networks()[name]()
        return model.eval(), inputs


def _of_torchvision(name: str, shape: tuple[int, ...], settings: dict[str, Any]) -> Network:
    import_torchvision()
    from torchvision import models

    return models.get_model(name, weights=None, **settings), torch.randn(2, *shape)


def _of_timm(name: str, shape: tuple[int, ...], settings: dict[str, Any]) -> Network:
    import_torchvision()
    import timm

    return timm.create_model(name, pretrained=False, **settings), torch.randn(2, *shape)


def _of_efficientnet() -> Network:
    from efficientnet_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-b0"), torch.randn(2, 3, 64, 64)


def _of_transformers(name: str, config: str, settings: dict[str, Any], kind: str) -> Network:
    import_torchvision()  # which transformers does by itself
    import transformers

    model = getattr(transformers, name)(getattr(transformers, config)(**settings))
    tokens = torch.arange(24).reshape(2, 12) * 7 % 90 + 1
    inputs = {
        "tokens": {"input_ids": tokens},
        "both": {"input_ids": tokens, "decoder_input_ids": tokens[:, :6]},
        "images": {"pixel_values": torch.randn(2, 3, 32, 32)},
        "spectrogram": {"input_features": torch.randn(2, 8, 64), "decoder_input_ids": tokens[:, :6]},
    }[kind]
    return model, inputs


def counted(model: nn.Module, inputs: Any) -> int:
    """Multiplies of one sample by PyTorch's own counter, on paths that it sees."""
    visible = sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False)
    with visible[0], visible[1], evaluating(model), FlopCounterMode(display=False) as counter:
        _answers(model, inputs)
    return counter.get_total_flops() // 2 // batch_size(inputs)


def row(name: str) -> str:
    """What is shown of one network."""
    model, inputs = network(name)
    began = time.perf_counter()
    workspace = Workspace.of(model, inputs)
    profile, check = workspace.profile, workspace.self_check
    seconds = time.perf_counter() - began
    total, own = plan_cost(profile), sum(p.numel() for p in model.parameters())
    share = sum(dense_cost(layer).parameters for layer in profile.layers) / own
    read = sum(each.read for layer in profile.layers for each in (layer, *layer.tied))
    flops = counted(model, inputs)
    with evaluating(model), evaluating(_chained(model, profile, profile.layers)) as chained:
        apart = _apart(_answers(chained, inputs), _answers(model, inputs)) * torch.finfo(torch.float32).eps
    found = "; ".join(one.detail for one in check.checked if not one.ok) or "none"
    parameters = f"{own:,}" if own == total.parameters else f"{own:,} (shown: {total.parameters:,})"
    beside = f"{total.multiplies / flops - 1:+.2%}" if flops != total.multiplies else "the same"
    cells = [name, parameters, f"{share:.1%}", len(profile.layers), read, f"{total.multiplies:,}", beside]
    return f"| {' | '.join(map(str, [*cells, f'{apart:.0e}', found, f'{seconds:.1f}']))} |"


MODEL = """import sys

sys.path[:0] = {paths!r}
from benchmarks.architectures import network


def build_model():
    return network({name!r})[0]


def example_inputs():
    return network({name!r})[1]


def eval_data():
    return example_inputs(), None
"""


COMMANDS = (
    "| network | layers | spectra | profile | evaluate | apply | export onnx | of |\n|---|---|---|---|---|---|---|---|"
)
NOT_MEASURED = "not measured"


def commands(name: str, packages: str, folder: Path, seconds: float) -> list[str]:
    """Whether each command ends well on a network, with its seconds of processor time."""
    model = folder / "model.py"
    model.write_text(MODEL.format(paths=[str(ROOT), packages], name=name))
    workspace = Workspace.open(str(model))
    plan = folder / "plan.json"
    plan.write_text(uniform_plan(workspace.profile, 0.5).to_json(model_name=workspace.name))
    cells = [name]
    for words in (
        ("layers",),
        ("spectra",),
        ("profile", "--samples", "2", "--method", "svd", "--no-correct"),
        ("evaluate", "--plan", str(plan), "--no-correct"),
        ("apply", "--plan", str(plan), "--no-correct", "--out", str(folder / "half.safetensors")),
        ("export", "--format", "onnx", "--plan", str(plan), "--out", str(folder / "half.onnx")),
    ):
        cached = ("--no-cache",) if words[0] in ("profile", "evaluate") else ()
        print(f"{name}: {words[0]}", file=sys.stderr, flush=True)
        said = folder / "said.json"
        code, used = in_a_copy(partial(_command, [words[0], str(model), *words[1:], *cached, "--json"], said), seconds)
        if code:
            cells.append(ending(code, seconds))
            continue
        done, told = json.loads(said.read_text())
        far = json.loads(told).get("max_abs_diff") if done else None
        cells.append(f"{used:.0f} s{'' if far is None else f', {far:.0e} apart'}" if done else plain(told)[-200:])
    return [*cells, stamp()]


def _command(words: list[str], said: Path) -> None:
    """Run a command here, and write whether it ended well and what it said."""
    done = CliRunner().invoke(cli, words)
    well = not done.exit_code
    said.write_text(json.dumps([well, done.stdout if well else f"{done.stderr} {done.exception or ''}"]))


def in_a_copy(work: Callable[[], None], seconds: float) -> tuple[int, float]:
    """Work in a copy of this process that ends after so much processor time: (exit code, seconds it took).

    All that was imported is there, so that only the work counts.
    """
    child = os.fork()
    if not child:
        try:
            limit_to(seconds)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def installed(packages: str | None, folder: Path) -> str:
    """The folder with the packages, made where none is given."""
    if packages is None:
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
        subprocess.run(words, check=True)
    return packages or str(folder)


def main() -> None:
    """One table, or with --commands two."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="networks whose names hold it, or one of several,")
    parser.add_argument("--packages", metavar="FOLDER", help="where the packages are")
    parser.add_argument("--commands", action="store_true", help="run the commands instead")
    parser.add_argument("--seconds", type=float, default=600, help="of processor time for one command")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as kept:
        packages = installed(options.packages, Path(kept))
        sys.path.append(packages)
        chosen = [name for name in networks() if any(word in name for word in options.only.split(","))]
        if options.commands:
            rows = [_tried(name, packages, options.seconds) for name in chosen]
            rows = renewed(PAGES / "architectures.md" if options.write else None, COMMANDS, rows)
            there = {row[0]: row for row in rows}
            missing = [NOT_MEASURED, *[""] * 6] if options.write else []
            found = [there.get(name, [name, *missing]) for name in networks() if missing or name in there]
            print(table_of(COMMANDS, found))
            return
        print(
            "| network | parameters | compressible | layers | of them read | multiplies | by PyTorch's counter | "
            "full rank | findings | seconds |\n|---|---|---|---|---|---|---|---|---|---|"
        )
        for name in chosen:
            try:
                print(row(name), flush=True)
            except Exception as error:  # of a network that cannot be opened at all
                print(f"| {name} | {type(error).__name__}: {' '.join(str(error).split())[:200]} |", flush=True)


def _tried(name: str, packages: str, seconds: float) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return commands(name, packages, Path(folder), seconds)
        except Exception as error:  # of a network that cannot be opened at all
            return [name, plain(f"{type(error).__name__}: {error}")[:200], *[""] * 5, stamp()]


if __name__ == "__main__":
    run_benchmark(main, apart=("--only", "--packages", "--seconds") if "--commands" in sys.argv else ())
