"""Texts as a network takes them, by the tokenizer that lies beside it."""

from __future__ import annotations

from collections.abc import Sequence

from lowrank_core.errors import InvalidData, cut
from lowrank_core.readers._processed import processed
from lowrank_core.samples.limits import counted
from lowrank_core.samples.preparation import Arrays, Preparation

AT_ONCE = 256
"""Texts that the tokenizer is given together."""


def tokens(
    texts: Sequence[str], seconds: Sequence[str] | None, preparation: Preparation, where: object
) -> tuple[Arrays, bool]:
    """(inputs, whether there were more) of texts, or of pairs of texts; raises InvalidData without a tokenizer."""
    tokenizer = preparation.tokens
    if tokenizer is None:
        raise InvalidData(
            f"{where} holds texts, and no tokenizer is known for the network; give it as a folder of save_pretrained "
            "with its tokenizer, or its tokens in a .npz."
        )
    starts = counted(range(0, len(texts), AT_ONCE), "texts, in parts of 256", -(-len(texts) // AT_ONCE))
    parts = (range(at, min(at + AT_ONCE, len(texts))) for at in starts)

    def tokenized(part: range) -> Arrays:
        rows = slice(part.start, part.stop)
        return tokenizer(texts[rows], None if seconds is None else seconds[rows])

    return processed(parts, tokenized, "tokenizer", len(texts), where)


def pair_of(places: Sequence[int], names: Sequence[str], where: object) -> list[int]:
    """The columns of a text, or of a pair of texts; raises InvalidData where there are none, or more."""
    if len(places) > 1:
        called = [place for place in places if names[place].lower().rstrip("12_ab") in NAMED]
        places = called or places
    if 1 <= len(places) <= 2:
        return list(places)
    has = ", ".join(names) or "none"
    raise InvalidData(
        f"{where}: a network of texts takes one column of them or two, but there are {len(places)} besides the target; "
        f"its columns are {cut(has)}: call those text, or text1 and text2, and name the --preprocess target=NAME."
    )


NAMED = ("text", "sentence", "premise", "hypothesis", "question", "context", "review", "content")
"""How a column of texts is called; what is behind it tells the first of a pair from the second."""
