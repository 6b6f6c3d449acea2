"""A folder of save_pretrained that is compressed block by block, as values: what is asked, what it takes, what came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod

import torch

from lowrank_core.errors import InvalidModel
from lowrank_core.figures import score_text
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.plan import Choice
from lowrank_core.scoring.scores import Score
from lowrank_core.sources._inventory import Estimate, Inventory
from lowrank_core.streaming.request import CompressedFolder, Outlook, Request, Step
from pages.ui import words

Choices = tuple[tuple[str, Choice], ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """What is asked for. choices: the ranks, by layer, where they do not follow from a share of the bytes, and `bytes`
    what they come to.
    """

    request: Request
    choices: Choices | None = None
    bytes: int | None = None

    @property
    def shared(self) -> Request:
        """The request with a share of the bytes, by which it can be looked at before."""
        return self.request if self.choices is None else replace(self.request, bytes_share=1.0)


# ---- ranks by energy ------------------------------------------------------------------------------------------------


def layers_named(stock: Inventory, names: Iterable[str]) -> dict[str, Layer]:
    """The layers of the files by the names that a network has for them, which may have another beginning.

    Raises InvalidModel for one that is not there.
    """
    own = {layer.name: layer for layer in stock.layers}
    found = {}
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[at:]) for at in range(len(parts)))
        layer = next((own[end] for end in ends if end in own), None)
        layer = layer or next((one for one in stock.layers if one.name.endswith(f".{name}")), None)
        if layer is None:
            raise InvalidModel(f"{stock.weights.name} holds nothing for the layer {name!r}.")
        found[name] = layer
    return found


def ranks_by_energy(stock: Inventory, layers: dict[str, Layer], share: float) -> Choices:
    """Of each layer the smallest rank that keeps this share of its squared singular values.

    layers: whose spectra are known; one that no such rank makes cheaper is left out.
    """
    chosen = []
    for name, layer in layers.items():
        sigma, (rows, columns) = stock.known(layer.name), layer.spec.weight_shape
        assert sigma is not None
        kept = torch.cumsum(sigma.square(), 0)
        rank = min(len(sigma), 1 + int((kept < share * kept[-1]).sum()))
        if rank * (rows + columns) < rows * columns:
            chosen.append((name, Choice("svd", (rank,))))
    return tuple(chosen)


def bytes_with(stock: Inventory, layers: dict[str, Layer], choices: Choices) -> int:
    """Bytes of all weights with these layers factorised, as they will be stored."""
    whole = stock.bytes
    for name, choice in choices:
        rows, columns = layers[name].spec.weight_shape
        whole -= (rows * columns - choice.rank[0] * (rows + columns)) * layers[name].itemsize
    return whole


# ---- what it takes --------------------------------------------------------------------------------------------------

PASSES = 3
"""Passes of all tokens through a block, as long as the sums that a speed is measured by: half, in single precision."""

MOMENTS = 1
"""Sums over all tokens of what a layer reads, for ranks and for factors: layers that read the same share them."""

TAKEN_APART = 4
"""Decompositions of a layer: of what it reads, twice, of its whitened weight, and of what its factors are fitted to."""


def seconds(stock: Inventory, outlook: Outlook, speed: Estimate) -> float:
    """What is left of the work takes here, roughly."""
    tokens, total = (outlook.windows + outlook.held_out) * outlook.tokens, 0.0
    for layer in stock.layers:
        shape = layer.spec.weight_shape
        if layer.spec.table or len(shape) != 2:
            continue
        forward = PASSES * tokens * prod(shape) + MOMENTS * tokens * shape[1] ** 2
        square = replace(layer, spec=replace(layer.spec, in_channels=min(shape), out_channels=min(shape)))
        total += speed.gram * forward + TAKEN_APART * speed.seconds(square)
    return total * (1 - outlook.blocks_done / max(1, outlook.blocks))


def before_it_starts(stock: Inventory, stream: Stream, outlook: Outlook, speed: Estimate) -> Iterator[str]:
    """What a person should know before it starts, in sentences."""
    size = outlook.bytes if stream.choices is None else stream.bytes
    assert size is not None
    least = "" if stream.choices is not None else "at most "
    becomes = f"{words.count(outlook.dense_bytes, 'B')} become {least}{words.count(size, 'B')}"
    yield f"{outlook.architecture}: {outlook.layers} layers in {outlook.blocks} blocks; {becomes}."
    yield (
        f"Takes about {words.duration(max(1.0, seconds(stock, outlook, speed)))} on this machine, at most "
        f"{words.count(outlook.memory_bytes, 'B')} of memory, and {words.count(outlook.disk_bytes, 'B')} of disk "
        "beside the folder."
    )
    yield (
        f"Fitted to {outlook.windows} windows of {outlook.tokens} tokens, scored on {outlook.held_out} others"
        + (" by perplexity." if outlook.causal else ": it is no language model that has a perplexity.")
    )
    if outlook.blocks_done:
        yield f"{outlook.blocks_done} of {outlook.blocks} blocks are kept of an earlier run: it goes on from there."


# ---- what came of it ------------------------------------------------------------------------------------------------


def answer_in(found: Iterable[Step]) -> CompressedFolder | None:
    """What came of all steps; None before the last."""
    return next((step.answer for step in found if step.answer is not None), None)


def fitted_rows(found: Iterable[Step]) -> list[dict[str, object]]:
    """A row for each block that is fitted."""
    return [
        {"Block": step.done, "Error of its outputs, %": 100 * step.error, "Seconds": step.seconds}
        for step in found
        if step.phase == "fitting" and step.error is not None
    ]


def compared(score: Score) -> str:
    """The score before and after on text that nothing was fitted to, with the interval of the difference."""
    before, after = (score_text(value, percent=False) for value in (score.dense, score.value))
    line = f"{before} before, {after} after"
    if score.drop_low is None or score.drop_high is None:
        return f"{line}, on {score.samples:,} windows, too few for an interval"
    sign = -1 if score.higher_is_better else 1
    low, high = sorted((sign * score.drop_low, sign * score.drop_high))
    return f"{line} (95 % interval of the change: {low:+.3g} to {high:+.3g}, on {score.samples:,} windows)".replace(
        "-", "−"
    )
