"""Shards: the files that an index lists, as large checkpoints are written, and JSON that says everything once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lowrank_core.errors import InvalidFile
from lowrank_core.sources._stored import StoredTensor

LARGEST_HEADER = 16 * 2**20
"""Bytes of the header of a safetensors file, or of an index, at most: those of a hundred thousand tensors."""


def index_in(folder: Path, ending: str) -> Path | None:
    """The index in a folder, if there is one; raises InvalidFile for several."""
    indices = sorted(folder.glob(f"*{ending}"))
    if len(indices) > 1:
        raise InvalidFile(f"{folder} has several indices; name one of {', '.join(i.name for i in indices)}.")
    return indices[0] if indices else None


def of_index(path: Path, of_file: Callable[[Path], Iterable[StoredTensor]]) -> list[StoredTensor]:
    """The tensors an index lists, each in the shard that it names; a shard lies beside the index. Raises InvalidFile.

    of_file: the tensors of one shard.
    """
    if path.stat().st_size > LARGEST_HEADER:
        raise InvalidFile(f"{path} is no index: it is larger than {LARGEST_HEADER:,} bytes.")
    listed = read_object(path.read_bytes(), path).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise InvalidFile(f"{path} is no index: it must have a weight_map of tensor names and file names.")
    tensors: list[StoredTensor] = []
    names_in: dict[str, list[str]] = {}
    for name, file in listed.items():
        names_in.setdefault(file, []).append(name)
    for file, names in sorted(names_in.items()):
        if file in ("", ".", "..") or not re.fullmatch(r"[^/\\\0:]+", file):
            raise InvalidFile(f"{path} names a shard {file[:80]!r} that is not beside it; no other place is looked at.")
        shard = path.with_name(file)
        if not shard.is_file():
            raise InvalidFile(f"{path} names a shard {file!r}, which is missing; download it, or all again.")
        in_shard = {tensor.name: tensor for tensor in of_file(shard)}
        if absent := [name for name in names if name not in in_shard]:
            raise InvalidFile(f"{shard} holds no {absent[0]!r}, though {path.name} says so; download both again.")
        tensors += [in_shard[name] for name in names]
    return tensors


def read_object(raw: bytes, path: Path) -> dict[str, Any]:
    """A JSON object that says everything once; raises InvalidFile."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
            raise InvalidFile(f"{path} is damaged or was made to do harm: it lists {twice[:80]!r} twice.")
        return members

    try:
        header = json.loads(raw, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{path} is cut short or damaged: its header is no JSON ({str(error)[:80]}).") from error
    if not isinstance(header, dict):
        raise InvalidFile(f"{path} is damaged: its header must be a JSON object.")
    return header
