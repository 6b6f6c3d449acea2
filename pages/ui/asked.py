"""What a session has asked for, as a text on disk: a search or a training that a stopped server left is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lowrank_core.errors import LowRankError
from lowrank_core.selection import RULES, Rule
from pages.ui.question import Question
from pages.ui.tuning import Sweep, Training

Asked = Question | Training | Sweep
KINDS: dict[str, type[Asked]] = {kind.__name__: kind for kind in (Question, Training, Sweep)}


def to_json(asked: Sequence[Asked]) -> bytes:
    """Kind, fields and rule of each, in order."""
    return msgspec.json.encode([_document(one) for one in asked])


def from_json(text: bytes) -> tuple[Asked, ...]:
    """Those that can still be asked: a rule may be gone, or have other settings, since the text was written."""
    try:
        documents = msgspec.json.decode(text, type=list[dict[str, Any]])
    except msgspec.DecodeError:
        return ()
    return tuple(one for one in map(_asked, documents) if one is not None)


def _document(one: Asked) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": type(one).__name__, **msgspec.to_builtins(one)}
    if not isinstance(one, Training):
        found["rule"] = {"name": one.rule.name, "settings": found["rule"]}
    return found


def _asked(document: dict[str, Any]) -> Asked | None:
    kind = KINDS.get(str(document.pop("kind", "")))
    if kind is None:
        return None
    try:
        return msgspec.convert(document, kind, dec_hook=_rule)
    except (msgspec.ValidationError, LowRankError, ValueError, TypeError, KeyError):
        return None


def _rule(wanted: type, value: dict[str, Any]) -> Rule:
    if wanted is not Rule:
        raise NotImplementedError(wanted)  # msgspec's word for a type that a hook does not know
    rule: Rule = msgspec.convert(value["settings"], RULES[value["name"]])
    return rule
