"""What can go wrong, said once: where, what must hold, what came, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

LISTED = 5
"""Names, samples or faults that a message lists; of all others it says how many there are."""

SHOWN_LETTERS = 80
"""Letters of a name from outside that a message shows, at most."""

MESSAGE_LETTERS = 2_000
"""Letters of a refusal on the command line, at most."""

MOST_LAYERS = 20_000
"""Layers of a network, or of a plan, at most: what has more is a mistake, and its message would have no end."""


NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that act on a terminal or turn what follows around, and halves of characters, which no file can hold."""


def cut(name: object, most: int = SHOWN_LETTERS) -> str:
    """A name or text as a message shows it: its first letters.

    >>> cut("encoder.layers.0", 7)
    'encoder...'
    """
    text = str(name)
    return text if len(text) <= most else f"{text[:most]}..."


def few(names: Sequence[object], show: Callable[[str], str] = str) -> str:
    """The first of many names in a message, each cut and then shown by `show`, and how many more there are.

    >>> few(["a", "b"], repr), few(range(7))
    ("'a', 'b'", '0, 1, 2, 3, 4 and 2 more')
    """
    more = len(names) - LISTED
    return ", ".join(show(cut(name)) for name in names[:LISTED]) + (f" and {more:,} more" if more > 0 else "")


class LowRankError(Exception):
    """A refusal that a person can act on; its text is shown as it is, without a traceback."""


class InvalidModel(LowRankError):
    """The model, its file or its weights cannot be used."""


class OtherModel(InvalidModel):
    """A fresh process that opens the model by its reference finds another network than was opened here."""


class InvalidData(LowRankError):
    """The evaluation or training data cannot be used."""


class InvalidPlan(LowRankError):
    """A rank plan does not fit its model, or is not a plan at all."""


class InvalidFile(LowRankError):
    """A file that exists cannot be read, or must not be."""


class OtherAnswers(InvalidFile):
    """A file was written that does not answer as its network, so it was not saved."""


class InvalidSearch(LowRankError):
    """What is asked of a search cannot be answered."""


class InvalidSettings(LowRankError):
    """A setting is out of its bounds, or does not fit the others."""


class TrainingFailed(LowRankError):
    """Training broke off; the network and its plan are as they were."""


class Cancelled(LowRankError):
    """The work was cancelled before it was done; nothing was changed."""


class UnknownModel(LowRankError):
    """Nothing goes by that name or path."""


class WorkersLost(LowRankError):
    """The processes that work was spread over died, or nobody answers where they should be."""


class MissingExtra(LowRankError):
    """A package that only some files and commands need is not installed."""
