"""JSON as this product writes it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, is_dataclass
from math import isfinite
from typing import Any

from lowrank_core.version import versions


def plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON knows them; NaN and infinity become null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def json_text(document: dict[str, Any]) -> str:
    """An object as a text to read and to write to a file, with the versions it comes from; no final newline."""
    text = json.dumps(plain({**document, "versions": versions()}), indent=2, ensure_ascii=False, allow_nan=False)
    return whole_characters(text)


def whole_characters(text: str) -> str:
    """JSON in which halves of characters, such as names of files hold that are no UTF-8, are told by their numbers.

    >>> print(whole_characters('{"path": "caf\\udce9"}'))
    {"path": "caf\\\\udce9"}
    """
    return re.sub("[\ud800-\udfff]", lambda half: f"\\\\u{ord(half[0]):x}", text)
