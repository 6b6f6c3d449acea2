"""Language model of the English text that comes with Python: the help topics in `pydoc_data.topics`, word by word."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.builtin.samples import Split
from lowrank_core.builtin.stored import load_weights, stored_metadata, weights_path

DESCRIPTION = (
    "Predicts the next word of Python's own help texts: an embedding, an LSTM of 128 units and a linear layer over "
    "some 1,500 words; judged by perplexity, where lower is better."
)
metric = "perplexity"
SEED = 0
STEPS = 32
"""Words in a sample."""
HELD_OUT = 6
"""One paragraph of so many is evaluated on."""
OFTEN = 3
"""A word is known if the training text has it so many times."""
SHORTEST = 4
"""Words of the shortest paragraph that is used: what is shorter is a heading or a line of code."""
UNKNOWN, END = "<unknown>", "<end>"
"""Stand for a word outside the vocabulary, and for the end of a paragraph."""
WORD = re.compile(r"[a-z]+|[.,;:()]")


class WordModel(nn.Module):
    """(N, T) numbers of words -> (N, T, words) logits of the word that follows each."""

    def __init__(self, words: int, size: int = 128, dropout: float = 0.5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.rnn = nn.LSTM(size, size, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(size, words)

    def forward(self, words: Tensor) -> Tensor:
        """Each sample starts without memory."""
        states, _ = self.rnn(self.dropout(self.embedding(words)))
        logits: Tensor = self.fc(self.dropout(states))
        return logits


Paragraph = tuple[str, ...]


def paragraphs(texts: Iterable[str]) -> tuple[list[Paragraph], list[Paragraph]]:
    """(train, held out): every paragraph of the texts once, in their order.

    The hash of its words says on which side a paragraph is, so that it is the same one with every version of the text.
    """
    parts = (part for text in texts for part in re.split(r"\n\s*\n", text))
    once = dict.fromkeys(words for part in parts if len(words := tuple(WORD.findall(part.lower()))) >= SHORTEST)
    sides: tuple[list[Paragraph], list[Paragraph]] = [], []
    for words in once:
        digest = hashlib.sha256(" ".join(words).encode()).digest()
        sides[int.from_bytes(digest[:8], "big") % HELD_OUT == 0].append(words)
    return sides


def learnt_vocabulary(train: Iterable[Paragraph]) -> tuple[str, ...]:
    """The words that occur often enough, the most frequent first, behind the two that stand for something else."""
    counts = Counter(word for words in train for word in words)
    known = sorted((word for word, n in counts.items() if n >= OFTEN), key=lambda word: (-counts[word], word))
    return (UNKNOWN, END, *known)


def samples(text: Iterable[Paragraph], words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (N, STEPS) int64 numbers of words each; targets are one word ahead.

    >>> samples([("a", "b") * 20], (UNKNOWN, END, "a"))[0][0, :4]
    tensor([2, 0, 2, 0])
    """
    number = {word: i for i, word in enumerate(words)}
    stream = [number.get(word, 0) for paragraph in text for word in (*paragraph, END)]
    n = (len(stream) - 1) // STEPS
    tokens = torch.tensor(stream[: n * STEPS + 1])
    return tokens[:-1].reshape(n, STEPS), tokens[1:].reshape(n, STEPS)


@cache
def vocabulary() -> tuple[str, ...]:
    """The words that the stored weights know; without weights those of this Python's text."""
    path = weights_path(__name__)
    return tuple(stored_metadata(path)["vocabulary"]) if path.exists() else learnt_vocabulary(_text()[0])


def recorded() -> dict[str, Any]:
    """What is stored beside the weights: the vocabulary, because the text of another Python has other words."""
    return {"vocabulary": vocabulary()}


def untrained() -> nn.Module:
    """(N, T) numbers of words -> (N, T, words) logits."""
    return WordModel(len(vocabulary()))


def build_model() -> nn.Module:
    """The trained network in eval mode."""
    return load_weights(untrained(), weights_path(__name__))


def token_text(numbers: Sequence[int]) -> str:
    """The words of these numbers.

    >>> token_text([1, 0])
    '<end> <unknown>'
    """
    return " ".join(vocabulary()[number] for number in numbers)


@cache
def _text() -> tuple[list[Paragraph], list[Paragraph]]:
    return paragraphs(topics[name] for name in sorted(topics))


@cache
def _split() -> Split:
    train, held_out = _text()
    return Split(samples(train, vocabulary()), samples(held_out, vocabulary()))


def example_inputs() -> tuple[Tensor, ...]:
    """One sample, (1, 32)."""
    return (_split().eval[0][:1],)


def eval_data() -> tuple[Tensor, Tensor]:
    """Held-out text: words (N, 32) and the words that follow them (N, 32)."""
    return _split().eval


def train_data() -> tuple[Tensor, Tensor]:
    """Training text: words (N, 32) and the words that follow them (N, 32)."""
    return _split().train
