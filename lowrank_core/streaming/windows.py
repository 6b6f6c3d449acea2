"""A person's text as windows of tokens: those that factors are fitted to, and those kept apart to be scored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowrank_core.errors import InvalidData
from lowrank_core.readers._running_text import text_of
from lowrank_core.sources._processors import token_ids, tokenizer_of
from lowrank_core.sources._transformers_inputs import Folder
from lowrank_core.streaming.request import HELD_OUT, Request
from lowrank_core.streaming.skeleton import Skeleton

FEWEST = 2
"""Windows to fit to, and to score on, at least."""

TAIL = 10
"""Of a text alone one window of so many is kept apart: those at its end."""

MOST_LETTERS = 4_000_000
"""Of a longer text so many letters are taken, from places evenly spread over it."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Tokens (windows, tokens): fitted to, and held out.

    documents: (windows held out,), the number of the paragraph in the middle of each: parts of one are alike.
    """

    fit: Tensor
    held: Tensor
    documents: Tensor


def windows_of(skeleton: Skeleton, request: Request) -> Windows:
    """Cut the texts into windows without gaps, and take evenly spread ones; raises InvalidData."""
    folder = Folder.of(skeleton.folder, skeleton.model)
    tokenizer = tokenizer_of(folder)
    longest = folder.longest()
    length = min(request.tokens, longest or request.tokens)
    if length < 2:
        raise InvalidData(f"--tokens must be from 2 to {longest or 'as many as the network takes'}, but is {length}.")
    around = _around(skeleton, tokenizer)
    inside = length - 2 if around else length

    def cut(path: Path, option: str) -> tuple[Tensor, Tensor]:
        text = _spread(text_of(path, option)[0])
        ids = token_ids(folder, tokenizer, text) if text.strip() else torch.empty(0, dtype=torch.long)
        count = len(ids) // inside
        rows = ids[: count * inside].long().reshape(count, inside)
        if around:
            first, last = (torch.full((count, 1), one) for one in around)
            rows = torch.cat([first, rows, last], 1)
        return rows, _documents(text, (torch.arange(count) + 0.5) * inside / max(1, len(ids)))

    def too_short(path: Path, option: str, rows: Tensor, needed: int) -> InvalidData:
        return InvalidData(
            f"{option} {path} is too short: it gives {len(rows)} windows of {length} tokens, but at least {needed} are "
            "needed; give a longer text, or fewer tokens to a window (--tokens)."
        )

    rows, documents = cut(request.text, "--text")
    if request.held_out is None:
        apart = max(FEWEST, len(rows) // TAIL)
        if len(rows) < FEWEST + apart:
            raise too_short(request.text, "--text", rows, 2 * FEWEST)
        return Windows(
            _evenly(rows[:-apart], request.windows),
            _evenly(rows[-apart:], HELD_OUT),
            _evenly(documents[-apart:], HELD_OUT),
        )
    if len(rows) < FEWEST:
        raise too_short(request.text, "--text", rows, FEWEST)
    held, documents = cut(request.held_out, "--held-out")
    if len(held) < FEWEST:
        raise too_short(request.held_out, "--held-out", held, FEWEST)
    return Windows(_evenly(rows, request.windows), _evenly(held, HELD_OUT), _evenly(documents, HELD_OUT))


def _around(skeleton: Skeleton, tokenizer: object) -> tuple[int, int] | None:
    """The tokens that an encoder expects at both ends of a text; None of a decoder."""
    if is_decoder(skeleton.architecture):
        return None
    first, last = (getattr(tokenizer, f"{one}_token_id", None) for one in ("cls", "sep"))
    return None if first is None or last is None else (first, last)


def is_decoder(architecture: str) -> bool:
    """Whether a class of transformers is one that tells each next token of a text."""
    return architecture.endswith(("ForCausalLM", "LMHeadModel"))


def _spread(text: str) -> str:
    """The text, or pieces from all over it."""
    if len(text) <= MOST_LETTERS:
        return text
    pieces = 64
    size, step = MOST_LETTERS // pieces, len(text) // pieces
    return "\n".join(text[at * step : at * step + size] for at in range(pieces))


def _documents(text: str, shares: Tensor) -> Tensor:
    """The number of the paragraph, between blank lines, that lies at each of these shares of a text, by its letters.

    >>> _documents("one\\n\\ntwo, longer", torch.tensor([0.0, 0.5, 0.9])).tolist()
    [0, 1, 1]
    """
    begins = torch.tensor([0, *(found.end() for found in re.finditer(r"\n\s*\n", text))])
    return torch.searchsorted(begins, (shares * len(text)).long(), right=True) - 1


def _evenly(rows: Tensor, count: int) -> Tensor:
    """At most so many of the rows, evenly spread, in order."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).round().long()]
