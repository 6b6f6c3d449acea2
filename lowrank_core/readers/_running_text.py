"""A running text for a causal language model: each sample's targets are its tokens one place ahead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowrank_core.errors import InvalidData, LowRankError
from lowrank_core.samples.limits import counted, most_of
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.samples import Samples, Taken

LENGTH = 256
"""Tokens of a sample where nobody says how many, and the network takes that many."""

MOST_TEXT = 200_000_000
"""Bytes of a text that are read, at most."""

PADDING = -100
"""As a target: there is none."""


def read_text(path: Path, takes: Sequence[Taken], preparation: Preparation) -> Samples:
    """Tokens (N, T) and the tokens that follow (N, T), judged by perplexity.

    Samples are documents, paragraphs with blank lines between them, where there are several; a document that is too
    long, and a text of one, are cut into parts of the length that the network takes. Raises InvalidData.
    """
    ids = preparation.ids
    if ids is None:
        raise InvalidData(
            f"--text {path} needs a causal language model with its tokenizer: a folder of save_pretrained that holds "
            "both. Give other networks their tokens in a .npz (--data)."
        )
    text, more = text_of(path)
    documents = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if not documents:
        raise InvalidData(f"{path} is empty; it must hold a text.")
    length = preparation.length or _fixed(takes) or min(LENGTH, preparation.context or LENGTH)
    if length < 2 or length > (preparation.context or length):
        raise InvalidData(
            f"--preprocess length={length}: the network takes from 2 to {preparation.context or LENGTH} tokens."
        )
    most = most_of(3 * 8 * length)
    rows = list(islice(_rows(documents, preparation, length), most + 1))
    if not rows:
        raise InvalidData(f"{path} has no two tokens in a row, so nothing can be predicted.")
    longest = max(len(row) for row, _ in rows)
    kept = rows[:most]
    tokens = torch.stack([pad(row, (0, longest - len(row))) for row, _ in kept])
    targets = torch.stack([pad(target, (0, longest - len(target)), value=PADDING) for _, target in kept])
    inputs = {"input_ids" if preparation.tokens is not None else takes[0].name: tokens}
    if preparation.tokens is not None and len({len(row) for row, _ in kept}) > 1:
        inputs["attention_mask"] = torch.stack([pad(torch.ones_like(row), (0, longest - len(row))) for row, _ in kept])
    return Samples(inputs, targets, metric="perplexity", more=more or len(rows) > most)


def text_of(path: Path, option: str = "--text") -> tuple[str, bool]:
    """(the text, whether there was more); raises InvalidData."""
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_TEXT + 1)
        more = len(raw) > MOST_TEXT
        text = raw[:MOST_TEXT].decode("utf-8-sig", errors="ignore" if more else "strict")
    except OSError as error:
        raise InvalidData(f"{option} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path} is no text of UTF-8: {error.reason} at byte {error.start:,}.") from error
    return text.replace("\r\n", "\n"), more


def _fixed(takes: Sequence[Taken]) -> int | None:
    """The length that a file fixes."""
    return takes[0].sizes[0] if takes and takes[0].exact and takes[0].sizes else None


def _rows(documents: Sequence[str], preparation: Preparation, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens, the tokens that follow them) of each part; a last part of one token has nothing to predict."""
    assert preparation.ids is not None
    for document in counted(documents, "documents", len(documents)):
        try:
            found = preparation.ids(document).reshape(-1).long()
        except LowRankError:
            raise
        except Exception as error:  # a tokenizer of whatever kind
            raise InvalidData(f"the network's tokenizer failed ({' '.join(str(error).split())[:200]}).") from error
        for start in range(0, len(found) - 1, length):
            row = found[start : start + length]
            following = found[start + 1 : start + length + 1]
            yield row, pad(following, (0, len(row) - len(following)), value=PADDING)
