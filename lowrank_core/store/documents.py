"""Documents: files of one value each, whose first line says what they are, of which version, and a checksum.

A document that is damaged, of another kind or of a newer version is never believed. What a person would miss is set
aside under a name of its own; what can be computed again counts as missing.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowrank_core.errors import InvalidFile
from lowrank_core.store.files import move_aside

Fault = Literal["damaged", "newer", "older", "other"]
"""Damaged, of a newer version, of an older one that is not gone on from, or of another kind."""

_FIRST_LINE = re.compile(rb'\{"kind": "([a-z ]+)", "version": ([1-9]\d{0,8}), "sha256": "([0-9a-f]{64})"\}\n')


class Unfit(InvalidFile):
    """A document that cannot be believed, and why; `fault` is how the file is named that is set aside."""

    def __init__(self, text: str, fault: Fault = "damaged") -> None:
        super().__init__(text)
        self.fault: Fault = fault


@dataclass(frozen=True, slots=True)
class Kind:
    """What documents are of, in lower case, and the version of their format.

    bare: documents without a first line are taken too, as they were written before there was one.
    """

    name: str
    version: int = 1
    bare: bool = False


def sealed(kind: Kind, content: bytes, about: str = "") -> bytes:
    """A document of that content, as it is written to a file.

    about: the name of all that the content depends on, for what is found by it alone; `unsealed` then asks for it.

    >>> unsealed(Kind("note"), sealed(Kind("note"), b"content"))
    b'content'
    """
    checksum = _checksum(kind.name, kind.version, content, about)
    return f'{{"kind": "{kind.name}", "version": {kind.version}, "sha256": "{checksum}"}}\n'.encode() + content


def unsealed(kind: Kind, document: bytes, about: str = "") -> bytes:
    """The content of a document, as it was sealed to the last bit; raises Unfit, for one about something else too.

    One that was sealed about nothing, as all were before they could be, is taken whatever it is asked about.
    A flipped bit in the first line leaves one that is none: a bare document is then taken for what it is not, so its
    reader must refuse what follows such a line, as every reader of one JSON value does.
    """
    match = _FIRST_LINE.match(document)
    if match is None:
        if kind.bare:
            return document
        raise Unfit("damaged: not as written")
    name, version, content = match[1].decode(), int(match[2]), document[match.end() :]
    if name != kind.name:
        raise Unfit(f"of another kind: {name}, not {kind.name}", "other")
    if match[3].decode() not in [_checksum(name, version, content, each) for each in {about, ""}]:
        raise Unfit("damaged: not as written")
    if version > kind.version:
        raise Unfit(f"of version {version}, written by a newer Rank Explorer; this one knows {kind.version}", "newer")
    return content


def set_aside(path: Path, fault: Fault) -> Path:
    """Give a file a name that nothing has yet, `NAME.damaged-1`, and say which; raises OSError."""
    return move_aside(path, fault)


def _checksum(name: str, version: int, content: bytes, about: str) -> str:
    digest = hashlib.sha256(f"{name} {version}{about and ' '}{about}\n".encode())
    digest.update(content)
    return digest.hexdigest()
