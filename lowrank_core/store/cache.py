"""Cache: tensors on disk, named by the sha256 of all that they depend on; whatever is damaged counts as missing."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from lowrank_core.store.files import drop, keep_whole, remove_left
from lowrank_core.store.memo import Compute, Tensors, compact

LIMIT_BYTES = 2 * 10**9
"""What a cache may take on disk, the points and scores beside the tensors included."""

KEPT_SHARE = 0.9
"""Of the limit, after files were removed: it is not reached again at once."""

LOOK_BYTES = 1 / 128
"""Share of the limit from which on an entry makes the cache count its files; of smaller ones one in sixteen does."""

About = dict[str, Any]
"""All that a result depends on, as JSON: weights and data by their hashes, settings, the version of the algorithm."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Tensors in `folder`/tensors, one safetensors file for each result; any number of processes and threads share it.

    The sizes of a moment may exceed `limit_bytes` by an eighth; the least recently used files go first. Nothing here
    raises: a file that cannot be read, or holds anything else than what was written, is dropped and counts as missing;
    one that cannot be written is left out.

    >>> cache = Cache(Path("~/.cache/rank-explorer").expanduser())                          # doctest: +SKIP
    >>> cache.remembered({"what": "squares", "model": fingerprint}, compute)["squares"]     # doctest: +SKIP
    """

    folder: Path
    limit_bytes: int = LIMIT_BYTES

    @property
    def points(self) -> Path:
        """Where measured points of layers and scores of plans are kept."""
        return self.folder / "points"

    @property
    def tuning(self) -> Path:
        """Where trainings keep what they go on from; never removed for room."""
        return self.folder / "tuning"

    def path(self, about: About) -> Path:
        """Where the file of a result lies, whether it is there or not."""
        return self.folder / "tensors" / f"{hashlib.sha256(_text(about).encode()).hexdigest()}.safetensors"

    def remembered(self, about: About, compute: Compute) -> Tensors:
        """What was kept under `about`, else what `compute` gives, which is kept."""
        tensors = self.get(about)
        if tensors is None:
            tensors = compute()
            self.put(about, tensors)
        return tensors

    def get(self, about: About) -> Tensors | None:
        """The tensors kept under `about`, to the last bit, in memory of their own; None where there are none."""
        path = self.path(about)
        try:
            content = path.read_bytes()
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            tensors = load(content)
            if header != _header(about, tensors):
                raise ValueError("not what was written")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError):
            drop(path)
            return None
        with suppress(OSError):
            os.utime(path)
        return compact(tensors)

    def put(self, about: About, tensors: Tensors) -> None:
        """Keep the tensors, whole or not at all; nothing larger than the limit."""
        path, tensors = self.path(about), compact({name: t.cpu() for name, t in tensors.items()})
        size = sum(t.nbytes for t in tensors.values())
        if size > KEPT_SHARE * self.limit_bytes:
            return
        keep_whole(path, save(tensors, _header(about, tensors)))
        with suppress(OSError):
            if size > LOOK_BYTES * self.limit_bytes or path.name[0] == "0":
                self.trim()

    def trim(self) -> None:
        """Remove the least recently used files where all together are over the limit, and what kills left."""
        for folder in (self.folder / "tensors", self.points, self.tuning):
            remove_left(folder)
        files = []
        for folder in (self.folder / "tensors", self.points):
            with suppress(OSError):
                files += [(entry.path, entry.stat()) for entry in os.scandir(folder) if entry.is_file()]
        oldest_first = sorted((max(s.st_atime, s.st_mtime), s.st_size, path) for path, s in files)
        total = sum(size for _, size, _ in oldest_first)
        keep = KEPT_SHARE * self.limit_bytes if total > self.limit_bytes else total
        for _, size, path in oldest_first:
            if total > keep and not path.endswith(".tmp"):  # one that is being written
                drop(Path(path))
                total -= size


def _text(about: About) -> str:
    return json.dumps(about, sort_keys=True, separators=(",", ":"))


def _header(about: About, tensors: Tensors) -> dict[str, str]:
    """What a file says of itself: what it depends on, and a checksum over names, types, shapes and bytes."""
    total = 0
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode(), total)
        total = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, total)
    return {"about": _text(about), "crc32": f"{total:08x}"}
