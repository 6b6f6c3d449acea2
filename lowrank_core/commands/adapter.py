"""LoRA adapters at other ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from lowrank_core.commands import Answer, command
from lowrank_core.commands._opening import looked_at
from lowrank_core.commands._options import FILE, writing
from lowrank_core.commands._terminal import table
from lowrank_core.errors import InvalidModel, LowRankError
from lowrank_core.exports._adapter import (
    check_ranks,
    kept_energy,
    ranks_at_most,
    ranks_for_energy,
    ranks_within,
    write_adapter,
)
from lowrank_core.figures import count
from lowrank_core.sources._adapter import Adapter, in_zip
from lowrank_core.sources._inventory import Inventory
from lowrank_core.store.files import scratch, write_whole
from lowrank_core.store.kinds import ADAPTER


@command
@FILE
@writing("--out", kind=ADAPTER, help="Folder (or .zip) that PEFT loads; of kohya's names a .safetensors.")
@click.option("--energy", type=float, metavar="SHARE", help="Of each product keep this share of its energy, as 0.99.")
@click.option("--rank", type=int, help="At most this rank everywhere.")
@click.option("--bytes", "most_bytes", type=int, help="At most so many bytes, where ranks keep the most energy.")
@click.option("--set", "chosen", multiple=True, metavar="NAME=RANK", help="The rank of one module (repeatable).")
def adapter(
    model: str,
    out: Path | None,
    energy: float | None,
    rank: int | None,
    most_bytes: int | None,
    chosen: tuple[str, ...],
) -> Answer:
    """List the modules of a LoRA adapter, choose their ranks, and write it smaller.

    MODEL: a folder of PEFT, a .safetensors of PEFT's or kohya's names, or a .zip of either.
    """
    if sum(rule is not None for rule in (energy, rank, most_bytes)) > 1:
        raise click.UsageError("give one of --energy, --rank and --bytes; --set changes single modules after it.")
    with _unpacked(model) as given:
        stock = looked_at(given)
        held = stock.weights.adapter if isinstance(stock, Inventory) else None
        if held is None:
            raise InvalidModel(
                f"{model} is no LoRA adapter: it holds no pairs lora_A and lora_B, or lora_down and lora_up."
            )
        ranks = held.ranks
        if energy is not None:
            ranks = ranks_for_energy(held, energy)
        elif rank is not None:
            ranks = ranks_at_most(held, rank)
        elif most_bytes is not None:
            ranks = ranks_within(held, most_bytes)
        ranks = check_ranks(held, {**ranks, **dict(map(_named, chosen))})
        return _answer(held, ranks, out)


@contextmanager
def _unpacked(model: str) -> Iterator[str]:
    """Where the adapter lies: in a folder of ours where it was given as a zip, which messages then name."""
    if not model.lower().endswith(".zip"):
        yield model
        return
    with scratch() as folder:
        packed = in_zip(model, model)
        for name, content in packed.items():
            write_whole(folder / name, content)
        try:
            yield str(folder / next(iter(packed)))
        except LowRankError as error:
            raise type(error)(str(error).replace(f"{folder}/", f"{model}: ")) from error


def _named(text: str) -> tuple[str, int]:
    name, _, rank = text.rpartition("=")
    if not name or not rank.isdecimal():
        raise click.UsageError(f"--set must be NAME=RANK, but is {text!r}.")
    return name, int(rank)


def _answer(held: Adapter, ranks: dict[str, int], out: Path | None) -> Answer:
    written = None if out is None else write_adapter(held, ranks, out)
    modules, rows = [], []
    for pair in held.pairs:
        sigma = held.product(pair.name).sigma
        whole = float(sigma.square().sum())
        kept = float(sigma[: ranks[pair.name]].square().sum()) / whole if whole else 1.0
        size = pair.rank_bytes * ranks[pair.name]
        modules.append(
            {
                "name": pair.name,
                "rank": ranks[pair.name],
                "rank_before": pair.rank,
                "scale": pair.scale,
                "bytes": size,
                "energy": kept,
                "singular_values": sigma.tolist(),
            }
        )
        scale = "unknown" if pair.scale is None else f"{pair.scale:.4g}"
        shape = f"{pair.b.shape[0]}x{'x'.join(map(str, pair.a.shape[1:]))}"
        rows.append(
            [pair.name, shape, str(pair.rank), str(ranks[pair.name]), scale, f"{100 * kept:.2f} %", f"{size:,}"]
        )
    before, now, kept = held.bytes_at(held.ranks), held.bytes_at(ranks), kept_energy(held, ranks)
    document = {
        "modules": modules,
        "bytes": now,
        "bytes_before": before,
        "energy": kept,
        "written": None if written is None else asdict(written),
    }
    text = [
        table(["module", "product", "rank", "now", "scale", "energy kept", "bytes"], rows),
        "",
        f"{count(now, 'B')} of {count(before, 'B')}; {100 * kept:.2f} % of what the adapter adds to the weights, as "
        "squared sums, is kept.",
    ]
    if written is not None:
        lost = max(written.lost.values())
        text.append(f"{written.path}: {count(written.bytes, 'B')}. Of one module at most {100 * lost:.3g} % is lost.")
    return document, "\n".join(text)
