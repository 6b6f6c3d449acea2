"""What a session has asked for, as a text on disk: a search or a training that a stopped server left is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lowrank_core.errors import LowRankError
from lowrank_core.selection import RULES, Rule
from lowrank_core.store.documents import Kind
from pages.ui.note_file import Notes
from pages.ui.question import Question
from pages.ui.tuning import Sweep, Training

Wish = Question | Training | Sweep
KINDS: dict[str, type[Wish]] = {kind.__name__: kind for kind in (Question, Training, Sweep)}


def to_json(wishes: Sequence[Wish]) -> bytes:
    """Kind, fields and rule of each, in order."""
    return msgspec.json.encode([_document(wish) for wish in wishes])


def from_json(text: bytes) -> tuple[Wish, ...]:
    """The wishes in a text that can still be asked: a rule may be gone, or have other settings by now."""
    try:
        documents = msgspec.json.decode(text, type=list[Any])
    except (msgspec.DecodeError, RecursionError):
        return ()
    return tuple(wish for wish in map(wish_in, documents) if wish is not None)


def _document(wish: Wish) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": type(wish).__name__, **msgspec.to_builtins(wish)}
    if not isinstance(wish, Training):
        document["rule"] = {"name": wish.rule.name, "settings": document["rule"]}
    return document


def wish_in(document: object) -> Wish | None:
    """The wish in one part of a text; None where it cannot be asked any more."""
    if not isinstance(document, dict):
        return None
    kind = KINDS.get(str(document.get("kind", "")))
    if kind is None:
        return None
    try:
        return msgspec.convert({k: v for k, v in document.items() if k != "kind"}, kind, dec_hook=_rule)
    except (msgspec.ValidationError, LowRankError, ValueError, TypeError, KeyError, OverflowError):
        return None


def _rule(kind: type, value: dict[str, Any]) -> Rule:
    if kind is not Rule:
        raise NotImplementedError(kind)  # msgspec's word for a type that a hook does not know
    rule: Rule = msgspec.convert(value["settings"], RULES[value["name"]])
    return rule


ASKED: Notes[Wish] = Notes(Kind("questions", bare=True), "the searches and trainings that were asked for here", wish_in)
