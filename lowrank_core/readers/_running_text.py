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

    Documents are the .txt of a folder, or of one file its lines or paragraphs as `preparation.documents` says; where it
    says nothing, paragraphs with blank lines between them. A document that is too long is cut into parts of the length
    that the network takes, each a sample; `documents` of the samples tells which belong together. Raises InvalidData.
    """
    ids = preparation.ids
    if ids is None:
        raise InvalidData(
            f"--text {path} needs a causal language model with its tokenizer: a folder of save_pretrained that holds "
            "both. Give other networks their tokens in a .npz (--data)."
        )
    documents, told_apart, more = _documents(path, preparation.documents)
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
    longest, more = max(len(row) for row, _, _ in rows), more or len(rows) > most
    parts, following, numbers = zip(*rows[:most], strict=True)
    tokens = torch.stack([pad(row, (0, longest - len(row))) for row in parts])
    targets = torch.stack([pad(target, (0, longest - len(target)), value=PADDING) for target in following])
    inputs = {"input_ids" if preparation.tokens is not None else takes[0].name: tokens}
    if preparation.tokens is not None and len({len(row) for row in parts}) > 1:
        inputs["attention_mask"] = torch.stack([pad(torch.ones_like(row), (0, longest - len(row))) for row in parts])
    return Samples(
        inputs,
        targets,
        metric="perplexity",
        more=more,
        documents=torch.tensor(numbers),
        told_apart=told_apart,
    )


def _documents(path: Path, how: str | None) -> tuple[list[str], str, bool]:
    """(documents, how they are told apart in words, whether there was more); raises InvalidData."""
    if path.is_dir():
        files = sorted(file for file in path.glob("*.txt") if file.is_file())
        if not files:
            raise InvalidData(f"--text {path} holds no .txt; give a file, or a folder with a document in each .txt.")
        if how not in (None, "file"):
            raise InvalidData(f"--preprocess documents={how}: in a folder each file is a document; leave it out.")
        found, more, left = [], False, MOST_TEXT
        for file in files:
            text, cut_off = text_of(file)
            size = len(text.encode())
            if more := more or cut_off or size > left:
                break
            left -= size
            found.append(text)
        return [text for text in found if text.strip()], "each file is one", more
    text, more = text_of(path)
    if how == "file":
        parts, told_apart = [text], "the whole file is one"
    elif how == "lines":
        parts, told_apart = text.split("\n"), "each line is one"
    else:
        parts, told_apart = re.split(r"\n\s*\n", text), "blank lines are between them"
    return [part for part in parts if part.strip()], told_apart, more


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


def _rows(documents: Sequence[str], preparation: Preparation, length: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(tokens, the tokens that follow them, number of the document) of each part.

    A last part of one token has nothing to predict.
    """
    assert preparation.ids is not None
    for number, document in enumerate(counted(documents, "documents", len(documents))):
        try:
            found = preparation.ids(document).reshape(-1).long()
        except LowRankError:
            raise
        except Exception as error:  # a tokenizer of whatever kind
            raise InvalidData(f"the network's tokenizer failed ({' '.join(str(error).split())[:200]}).") from error
        for start in range(0, len(found) - 1, length):
            row = found[start : start + length]
            following = found[start + 1 : start + length + 1]
            yield row, pad(following, (0, len(row) - len(following)), value=PADDING), number
