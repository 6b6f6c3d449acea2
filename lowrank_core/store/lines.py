"""Lines: values in a file, one a line, added as they come; each is there whole or not at all.

Such a file is named by all that its values depend on, so each line is bound to that name: under another one, as that of
another network, it is not believed. Lines that were written before they were bound to it are.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from lowrank_core.store.files import keep_line

T = TypeVar("T")


def append_line(path: Path, value: object) -> None:
    """Add a value (dataclasses, numbers, texts and tuples of them); folder and file are made if need be.

    One write: of processes that add at once none loses a line, and one that is killed tears its own at most. A line is
    a newline, a checksum over the file's name and the value, and the value as JSON: the newline first, so that what was
    torn before stays alone. Where it cannot be written the work goes on without it, see `files.not_kept`.
    """
    text = json.dumps(msgspec.to_builtins(value)).encode()
    keep_line(path, b"\n%08x %b" % (zlib.crc32(text, _bound_to(path)), text))


def read_lines(path: Path, kind: type[T]) -> Iterator[T]:
    """The values of that type in the order they came; what is torn, damaged or something else is left out.

    >>> list(read_lines(Path("missing"), int))
    []
    """
    try:
        content = path.read_bytes()
    except OSError:
        return
    begins = _bound_to(path), 0  # 0: as lines were written before
    for line in content.split(b"\n"):
        checksum, _, text = line.partition(b" ")
        if checksum not in [b"%08x" % zlib.crc32(text, begin) for begin in begins]:
            continue
        try:
            value = msgspec.convert(json.loads(text), kind)
        except (ValueError, msgspec.ValidationError):
            continue
        yield value


def _bound_to(path: Path) -> int:
    """What the checksums of a file's lines begin with."""
    return zlib.crc32(os.fsencode(path.name))
