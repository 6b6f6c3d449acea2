"""Folders of `save_pretrained` of transformers, told by their files: what kind they are, and whether one fits here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowrank_core.figures import count
from lowrank_core.running.heap import machine_bytes
from lowrank_core.sources._weights import Weights
from lowrank_core.store.reference import file_and_part

CONFIG = "config.json"

FILES = ("model.safetensors", "model.safetensors.index.json")
"""What `from_pretrained` reads in such a folder: all weights are in one of these, or in what it lists."""

SHARE = 0.5
"""Of a machine's memory that weights may take for their network to be built: work has another one beside it."""


def architecture_in(folder: Path) -> str:
    """The class of transformers whose weights a folder holds; "" where it is no such folder, or needs other code."""
    try:
        config: Any = json.loads((folder / CONFIG).read_bytes())
        named = config["architectures"][0]
    except (ValueError, KeyError, TypeError, IndexError, OSError, RecursionError):
        return ""
    return named if isinstance(named, str) and "auto_map" not in config else ""


def folder_of(weights: Weights) -> Path | None:
    """The folder of `save_pretrained` whose weights these are, all of them; None of any others."""
    path, part = file_and_part(weights.ref)
    folder = path if path.is_dir() else path.parent if path.name in FILES else None
    if folder is None or part or weights.adapter is not None or not architecture_in(folder):
        return None
    return folder


def beyond_memory(folder: Path) -> str:
    """Why the network of a folder is not built here, in one line; "" where its weights leave room beside them."""
    most, stored = machine_bytes(), sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if most is None or stored <= SHARE * most:
        return ""
    return (
        f"{folder.name} is opened as weights alone: they take {count(stored, 'B')}, and this machine has "
        f"{count(most, 'B')} of memory."
    )
