"""magika: what kind of file this is, by its first and last bytes; files of this machine, labelled by their endings."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import defaultdict
from itertools import cycle
from pathlib import Path

import numpy as np

from benchmarks.wild_networks._packages import place

PACKAGES = ("magika",)
FILE = "magika/models/standard_v3_3/model.onnx"

KINDS = {
    **{ending: ending for ending in ("css", "go", "gif", "html", "ipynb", "java", "json", "npy", "npz", "pdf", "php")},
    **{ending: ending for ending in ("png", "po", "rst", "sql", "svg", "toml", "ttf", "woff", "woff2", "xml", "yaml")},
    **{"py": "python", "pyc": "pythonbytecode", "js": "javascript", "md": "markdown", "c": "c", "cpp": "cpp"},
    **{"jpg": "jpeg", "sh": "shell", "so": "elf", "pl": "perl", "rb": "ruby", "gz": "gzip", "zip": "zip"},
    **{"ts": "typescript", "bat": "batch", "csv": "csv", "rs": "rust", "f90": "fortran"},
}
"""Endings that leave little doubt, and what the network calls them."""
EACH = 9
"""Files of a kind at most: two of three to judge by, the others to calibrate with."""


def data() -> dict[str, np.ndarray]:
    """Up to 6 files of each kind to judge by and 3 others to calibrate with."""
    labels = json.loads(place("magika/models/standard_v3_3/config.min.json").read_text())["target_labels_space"]
    judged, others = [], []
    for kind, files in sorted(_files().items()):
        for rows, file in zip(cycle((judged, others, judged)), files, strict=False):
            rows.append((_bytes(file), labels.index(kind)))
    inputs, targets = map(np.array, zip(*judged, strict=True))
    return {"bytes": inputs, "targets": targets, "train_bytes": np.array([row for row, _ in others])}


def _files() -> dict[str, list[Path]]:
    """Files of each kind in an order that says nothing of their contents."""
    found: dict[str, list[Path]] = defaultdict(list)
    for root in (Path(sys.prefix), Path(sys.base_prefix, "lib"), Path("/usr/share"), Path("/usr/lib")):
        for folder, _, names in os.walk(root):
            for name in names:
                kind, path = KINDS.get(name.rpartition(".")[2]), Path(folder, name)
                if kind is not None and path.is_file() and not path.is_symlink() and path.stat().st_size >= 64:
                    found[kind].append(path)
    return {kind: sorted(set(paths), key=_drawn)[:EACH] for kind, paths in found.items() if len(paths) >= 4}


def _drawn(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()


def _bytes(path: Path) -> np.ndarray:
    """The first and the last 1024 bytes without white space around them, 256 where there are none (as magika does)."""
    whole = path.read_bytes()
    first, last = whole[:4096].lstrip()[:1024], whole[-4096:].rstrip()[-1024:]
    padded = [*first, *[256] * (1024 - len(first)), *[256] * (1024 - len(last)), *last]
    return np.array(padded, dtype=np.int32)
