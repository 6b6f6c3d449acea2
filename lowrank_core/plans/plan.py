"""RankPlan: the one currency between sliders, searches, the command line and disk. Immutable, hashable, a file."""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from lowrank_core.errors import MOST_LAYERS, InvalidPlan
from lowrank_core.store.as_json import whole_characters
from lowrank_core.version import versions

FORMAT = "lowrank-plan"
VERSION = 2
"""What is written where a layer has free ranks; other plans are written as version 1, which older programs read."""


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """How one layer is factorised: Choice("tucker2", (16, 12)).

    free: whether its factors are stored with free ranks (`layers.spec.free_form`): the same map, fewer numbers.
    """

    method: str
    rank: tuple[int, ...]
    free: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plan files hold it; free ranks are said only where there are any."""
        return {"method": self.method, "rank": list(self.rank)} | ({"free": True} if self.free else {})


@dataclass(frozen=True, slots=True)
class RankPlan:
    """The choice for each compressed layer of one network; a layer that is absent stays dense.

    >>> plan = RankPlan("sha256:0").with_choice("fc1", Choice("svd", (64,)))
    >>> RankPlan.from_json(plan.to_json()) == plan
    True
    """

    fingerprint: str
    choices: tuple[tuple[str, Choice], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(sorted(self.choices)))

    @classmethod
    def of(cls, fingerprint: str, choices: Mapping[str, Choice]) -> RankPlan:
        """A plan from a mapping of layer names to choices."""
        return cls(fingerprint, tuple(choices.items()))

    def get(self, name: str) -> Choice | None:
        """The choice of a layer, or None where it stays dense."""
        at = bisect_left(self.choices, (name,))
        return self.choices[at][1] if at < len(self.choices) and self.choices[at][0] == name else None

    def with_choice(self, name: str, choice: Choice | None) -> RankPlan:
        """A new plan with another choice for one layer; None makes it dense."""
        choices = dict(self.choices)
        choices.pop(name, None)
        if choice is not None:
            choices[name] = choice
        return RankPlan.of(self.fingerprint, choices)

    @property
    def plain(self) -> RankPlan:
        """The same plan with no free ranks: a network under it answers the same, since they only save numbers."""
        if not any(choice.free for _, choice in self.choices):
            return self
        return RankPlan(self.fingerprint, tuple((name, replace(choice, free=False)) for name, choice in self.choices))

    def to_json(
        self,
        *,
        model_name: str = "",
        correction: dict[str, Any] | UnsetType | None = UNSET,
        provenance: dict[str, Any] | None = None,
    ) -> str:
        """The plan as a file: sorted keys, two spaces, final newline.

        provenance: where it comes from; left out, the versions of Rank Explorer, Python and PyTorch.
        correction: what goes with the plan, None for none; left out, the file says nothing and the reader decides.
        """
        document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION if any(choice.free for _, choice in self.choices) else 1,
            "model": {"name": model_name, "fingerprint": self.fingerprint},
            "layers": {name: choice.to_dict() for name, choice in self.choices},
            "provenance": {"versions": versions()} if provenance is None else provenance,
        }
        if correction is not UNSET:
            document["correction"] = correction
        return whole_characters(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> RankPlan:
        """The plan in a file's text; `read_plan` also gives what goes with it."""
        return read_plan(text).plan


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A plan and what was written beside it. correction: None for none, UNSET where the file does not say."""

    plan: RankPlan
    model_name: str = ""
    correction: dict[str, Any] | UnsetType | None = UNSET
    provenance: dict[str, Any] = field(default_factory=dict)


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    fingerprint: str
    name: str = ""


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    rank: list[int | float] | int | float

    @property
    def free(self) -> bool:
        """Of version 1, which knows of no free ranks."""
        return False

    def choice(self) -> Choice:
        """The choice with whole ranks: other programs write 4 as 4.0, and people the only rank without brackets."""
        ranks = self.rank if isinstance(self.rank, list) else [self.rank]
        if not 1 <= len(ranks) <= 8 or any(rank != rank // 1 or rank < 1 or rank > sys.maxsize for rank in ranks):
            raise ValueError(f"rank must be whole numbers from 1, one for each axis, but got {json.dumps(self.rank)}")
        return Choice(self.method, tuple(map(int, ranks)), self.free)


class _Choice2(_Choice, forbid_unknown_fields=True):
    free: bool = False


class _Header(msgspec.Struct):
    format: str = ""
    version: int = 0


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    model: _Model
    layers: dict[str, msgspec.Raw]
    correction: dict[str, Any] | UnsetType | None = UNSET
    provenance: dict[str, Any] = {}


LARGEST_BYTES = 16 * 10**6
"""Bytes of a plan file, at most."""


def _said_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ: of two equal ones the reader would silently drop the first."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise InvalidPlan(f"the plan file says {name[:80]!r} twice in one place; keep the one that is meant.")
        members[name] = value
    return members


_CHOICES = {1: _Choice, 2: _Choice2}
"""What a layer may say, by the version of the file."""


def _choice(raw: bytes, name: str, text: bytes, version: int) -> Choice:
    """What a plan file says of a layer; a fault is told with the layer and its line, so that it can be put right."""
    try:
        return msgspec.json.decode(text, type=_CHOICES[version]).choice()
    except ValueError as error:
        key = raw.find(json.dumps(name, ensure_ascii=False).encode(), max(0, raw.find(b'"layers"')))
        line = raw.count(b"\n", 0, raw.find(text, max(0, key))) + 1
        raise InvalidPlan(f"not a valid plan file: layer {name!r} (line {line}): {error}; correct it there.") from error


def read_plan(text: str | bytes) -> PlanFile:
    """Read a plan file strictly: unknown keys and versions are refused, with the remedy.

    In UTF-8, UTF-16 or UTF-32, with a byte order mark or without. Raises InvalidPlan that names the layer and the line.
    """
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if len(raw) > LARGEST_BYTES:
        raise InvalidPlan(f"a plan file is at most {LARGEST_BYTES // 10**6} MB, but this is larger; it is no plan.")
    try:
        raw = raw.decode(json.detect_encoding(raw)).encode()
        json.loads(raw, object_pairs_hook=_said_once)
        header = msgspec.json.decode(raw, type=_Header)
        if header.format != FORMAT:
            raise InvalidPlan(
                f'a plan file says "format": "{FORMAT}", but got {header.format!r}; export one from the page Export.'
            )
        if header.version not in _CHOICES:
            raise InvalidPlan(
                f"plan version must be 1 or {VERSION}, but got {header.version}; "
                "open the file with the Rank Explorer that wrote it, or update this one."
            )
        document = msgspec.json.decode(raw, type=_Document)
    except json.JSONDecodeError as error:
        raise InvalidPlan(
            f"not a valid plan file: line {error.lineno}, column {error.colno}: {error.msg}; correct it there, or "
            "export it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidPlan(f"not a valid plan file: {error or type(error).__name__}. Export it again.") from error
    if len(document.layers) > MOST_LAYERS:
        raise InvalidPlan(f"a plan has at most {MOST_LAYERS:,} layers, but this has {len(document.layers):,}.")
    choices = {name: _choice(raw, name, bytes(found), header.version) for name, found in document.layers.items()}
    return PlanFile(
        RankPlan.of(document.model.fingerprint, choices),
        document.model.name,
        document.correction,
        document.provenance,
    )
