"""A form drawn from the fields of a frozen dataclass: their metadata holds label, help, bounds and choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, fields
from math import floor, log10
from typing import Any

import streamlit as st


def settings(kind: Callable[..., Any], key: str, only: Iterable[str] | None = None, row: Any = None) -> dict[str, Any]:
    """One widget per field, or for some of them, and what they hold by field name; an empty number is None.

    row: a container that others share.
    """
    values = {}
    chosen_fields = [f for f in fields(kind) if only is None or f.name in only]  # type: ignore[arg-type]
    with row or st.container(horizontal=True, gap="small"):
        for f in chosen_fields:
            with st.container(width=168):
                values[f.name] = _widget(f, f"{key} {f.name}")
    return values


def _widget(f: Field[Any], key: str) -> Any:
    metadata, default = f.metadata, f.default
    label = metadata.get("label", f.name.replace("_", " ").capitalize())
    usual: dict[str, Any] = {"key": key, "help": metadata.get("help"), "persist_state": "session"}
    if "choices" in metadata:
        choices, says = list(metadata["choices"]), metadata["choices"]
        as_text = says.__getitem__ if isinstance(says, Mapping) else str
        return st.selectbox(label, choices, choices.index(default), format_func=as_text, **usual)
    if isinstance(default, bool):
        return st.checkbox(label, default, **usual)
    if isinstance(default, int | float):
        kind = type(default)
        least, most = (None if metadata.get(bound) is None else kind(metadata[bound]) for bound in ("min", "max"))
        if kind is int:
            return st.number_input(label, least, most, default, 1, **usual)
        step = 10.0 ** (floor(log10(abs(default) or 1.0)) - 1)
        return st.number_input(label, least, most, default, step, "%g", **usual)
    if default is None:
        least, most = metadata["min"], metadata["max"]
        return st.number_input(label, least, most, None, 0.001, "%g", placeholder="automatic", **usual)
    return st.text_input(label, str(default), **usual)
