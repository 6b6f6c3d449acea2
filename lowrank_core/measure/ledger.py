"""Ledger: what is measured of whole plans, kept line by line: whatever was stopped or killed goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar, cast

from lowrank_core.plans.candidate import Candidate
from lowrank_core.scoring.scores import Score
from lowrank_core.store.key import named
from lowrank_core.store.lines import append_line, read_lines
from lowrank_core.workspace import Workspace

VERSION = 2
"""Of the way plans are measured: a ledger of another version is not read."""

T = TypeVar("T", Score, float)


class Ledger:
    """Scores, or other numbers, under keys that say all they depend on but the network and its data.

    >>> ledger = Ledger()
    >>> ledger.remembered("two", lambda: 2.0), ledger.remembered("two", lambda: 3.0)
    (2.0, 2.0)
    """

    def __init__(self, path: Path | None = None) -> None:
        """path: the file; None keeps everything in memory."""
        self._path = path
        self._values: dict[str, Score | float] = {}
        if path is not None:
            self._values.update(read_lines(path, tuple[str, Score | float]))

    @classmethod
    def of(cls, workspace: Workspace, folder: Path | None = None) -> Ledger:
        """The ledger of a network on its data: what was measured of another one is not in it.

        folder: where it lies; without one in the workspace's cache, and without that in memory, as that of a network
        from Python always.
        """
        if workspace.opened.ref is None:  # nothing on disk says how it is judged
            return cls()
        if folder is None:
            if workspace.cache is None:
                return cls()
            folder = workspace.cache.points
        return cls(folder / f"scores-{workspace.name_for('scores', VERSION)}.jsonl")

    def get(self, key: str) -> Score | float | None:
        """The number under a key; None where there is none yet."""
        return self._values.get(key)

    def remembered(self, key: str, compute: Callable[[], T]) -> T:
        """The number under a key; where there is none yet, what `compute` gives, which is then kept."""
        if key not in self._values:
            self._values[key] = value = compute()
            if self._path is not None:
                append_line(self._path, (key, value))
        return cast(T, self._values[key])


def score_key(candidate: Candidate, samples: int | None, tolerance: float | None = None) -> str:
    """The key of a candidate's score on so many samples, None for all; tolerance as in `evaluate`.

    Free ranks change no answer, so they are not in it.
    """
    correction = asdict(candidate)["correction"]
    choices = [(name, choice.to_dict()) for name, choice in candidate.plain.plan.choices]
    return named([choices, correction, samples, tolerance])
