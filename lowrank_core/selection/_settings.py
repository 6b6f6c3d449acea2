"""A rule's settings: read as typed, held against their bounds."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def read_setting(default: object, text: str) -> object:
    """A typed setting, of the type of its default; raises ValueError."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "yes", "1")
    if isinstance(default, int):
        return int(text)
    return float(text) if isinstance(default, float) else text


def check_settings(rule: Any) -> None:
    """Hold every field of a rule against the bounds in its metadata; for `__post_init__`. Raises ValueError."""
    for f in fields(rule):
        value, least, most = getattr(rule, f.name), f.metadata.get("min"), f.metadata.get("max")
        choices = f.metadata.get("choices")
        if (least is not None and not value >= least) or (most is not None and not value <= most):
            raise ValueError(f"{f.name} must be from {least} to {most}, but got {value}.")
        if choices is not None and value not in choices:
            raise ValueError(f"{f.name} must be one of {', '.join(map(str, choices))}, but got {value}.")
