"""Files that visitors drop: taken as data, under safe names, in a folder that only who dropped them can name."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from lowrank_core.errors import InvalidFile, cut, few
from lowrank_core.plans.plan import LARGEST_BYTES as LARGEST_PLAN
from lowrank_core.sources._adapter import in_zip
from lowrank_core.store.files import own_folder, same_file, write_whole
from lowrank_core.store.reference import address_of, with_parts

LARGEST_MB = 500
"""Megabytes of a file that is dropped on Home; browsers count 10^6 or 2^20 bytes for one, this server 2^20."""

MOST_FILES = 40
"""Files of one drop: a network, its data, and the shards of its weights."""

MOST_BYTES_EACH = 4 * 10**9
"""Bytes of what a visitor has dropped; the oldest drops go first, the newest stays."""

MOST_BYTES = 16 * 10**9
"""Bytes of what all visitors have dropped; the oldest drops go first, the newest stays."""

KEPT_SECONDS = 7 * 86400.0
"""Seconds that a drop is kept for, since it was last opened."""

INDEX = ".safetensors.index.json"
WORK, ADAPTER, ZIP = ".jsonl", "adapter_config.json", ".zip"
KINDS = (".onnx.data", ".onnx", ".npz", INDEX, ".safetensors", WORK, ".json")
"""Endings that are taken; a longer one goes before what it ends with."""

CODE = {".py", ".pt2", ".pt", ".pth", ".ckpt", ".bin", ".pkl"}
"""Endings of what is or may run code, so that another line is said."""

STEM_BYTES = 100
"""Of a name, in front of its ending."""

SHORT = "upload:"
"""What the folder of all drops is called in an address."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a drop holds: the reference of a network, a plan or the work on it, or both."""

    network: str | None = None
    plan: Path | None = None


def folder_of_all() -> Path:
    """Where what was dropped is kept, in a folder of each visitor's."""
    return own_folder("state") / "uploads"


# ---- names ----------------------------------------------------------------------------------------------------------


def safe_name(name: str) -> tuple[str, str]:
    """(stem, ending) that a dropped file gets: no part of a path, nothing that acts on a terminal, not too long.

    The same stem for the same stem, so that a network and its data stay together. Raises InvalidFile where no file of
    that ending is taken.

    >>> safe_name("C:/nets/../my net.onnx"), safe_name("net.onnx.data")[1]
    (('my net', '.onnx'), '.onnx.data')
    """
    last = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1].strip())
    ending = next((kind for kind in KINDS if last.lower().endswith(kind)), None)
    if ending is None:
        suffix = Path(last).suffix.lower()
        why = (
            "is code or may run some, so it is never dropped: give its path instead"
            if suffix in CODE
            else "is no file that can be dropped here: .onnx with its .npz or .onnx.data, .safetensors, an adapter "
            "(also as .zip), a plan (.json), a work (.jsonl)"
        )
        raise InvalidFile(f"{_in_a_line(last)!r} {why}.")
    stem = re.sub(r"[^\w .()+=@,\[\]-]", "-", last[: -len(ending)])
    stem = re.sub("-{2,}", "-", stem).lstrip(" .")  # never an option of a reference
    stem = os.fsencode(stem)[:STEM_BYTES].decode(errors="ignore").rstrip(" .")
    return stem or "network", ending


def _in_a_line(name: str) -> str:
    return " ".join(cut(name).split())


# ---- a drop ---------------------------------------------------------------------------------------------------------


def take(session: str, files: Sequence[tuple[str, bytes]], before: str | None = None) -> Dropped:
    """Keep files that were dropped together, and say what they are; raises InvalidFile, and then keeps none.

    before: the network that this visitor dropped last, which files that lie beside one belong to if none comes along.
    """
    named = _named(files)
    networks = _ending(named, ".onnx")
    beside = [name for name in named if name.endswith((".npz", ".onnx.data"))]
    earlier = _parts(before) if before is not None and beside and not networks else []
    if beside and not networks and not earlier:
        raise InvalidFile(f"{few(beside)} lies beside a network: drop its .onnx together with it.")
    if ADAPTER in named and not _ending(named, ".safetensors"):
        raise InvalidFile(f"{ADAPTER} lies beside the weights of an adapter: drop its .safetensors together with it.")
    _check_alone(named)
    folder = folder_of_all() / session / secrets.token_hex(16)
    try:
        folder.mkdir(parents=True, mode=0o700)
        for path in earlier:
            same_file(path, folder / path.name)
        for name, content in named.items():
            write_whole(folder / name, content)
        return _what(folder, earlier, list(named))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        reason = error.strerror or str(error)
        raise InvalidFile(f"{few(list(named))} was not taken: {reason}; make room in {folder_of_all()}.") from error
    finally:
        make_room(folder_of_all(), folder)


def _named(files: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    """Contents by the names they get; a network's data that came alone with it goes by its name."""
    if len(files) > MOST_FILES:
        raise InvalidFile(f"{len(files)} files were dropped at once; drop one network, at most {MOST_FILES} files.")
    named: dict[str, bytes] = {}
    unpacked: list[tuple[str, bytes]] = []
    for name, content in files:
        packed = content and name.lower().endswith(ZIP)
        if not packed:
            unpacked.append((name, content))
            continue
        unpacked += in_zip(BytesIO(content), repr(_in_a_line(name)), LARGEST_MB * 2**20).items()
    for name, content in unpacked:
        stem, ending = safe_name(name)
        if f"{stem}{ending}" in named:
            raise InvalidFile(f"two files are called {stem + ending!r}; drop the one that is meant.")
        if not content:
            raise InvalidFile(f"{stem + ending!r} is empty (0 bytes); drop it once it is written.")
        if len(content) > LARGEST_MB * 2**20:
            raise InvalidFile(f"{stem + ending!r} has {len(content):,} bytes; at most {LARGEST_MB} MB are taken.")
        if ending == ".json" and len(content) > LARGEST_PLAN:
            raise InvalidFile(f"{stem + ending!r} has {len(content):,} bytes, more than any plan; it was not taken.")
        named[f"{stem}{ending}"] = content
    networks, data = _ending(named, ".onnx"), _ending(named, ".npz")
    if len(networks) == len(data) == 1:
        named[networks[0].removesuffix(".onnx") + ".npz"] = named.pop(data[0])
    return named


def _ending(names: dict[str, bytes] | list[str], ending: str) -> list[str]:
    return [name for name in names if name.endswith(ending)]


def _plans(names: list[str]) -> list[str]:
    """Plans, and works, which hold some."""
    others = (INDEX, ADAPTER)
    return [*_ending(names, WORK), *(name for name in _ending(names, ".json") if not name.endswith(others))]


def _check_alone(named: dict[str, bytes]) -> None:
    """One network, one file of data, one plan, weights in one file or with their index."""
    names = list(named)
    plans = _plans(names)
    index, weights = _ending(names, INDEX), _ending(names, ".safetensors")
    for what, several in (
        ("networks", _ending(names, ".onnx")),
        ("files of data", _ending(names, ".npz")),
        ("plans or works", plans),
        ("indexes of weights", index),
        ("files of weights", [] if index else weights),
    ):
        if len(several) > 1:
            raise InvalidFile(f"{len(several)} {what} were dropped at once: {few(several)}; drop one.")


def _what(folder: Path, earlier: list[Path], names: list[str]) -> Dropped:
    plan = next((folder / name for name in _plans(names)), None)
    network = next(iter(_ending([*names, *(path.name for path in earlier)], ".onnx")), None)
    weights = next(iter(_ending(names, INDEX) or _ending(names, ".safetensors")), None)
    if network and earlier and (data := _ending(names, ".npz")):
        (folder / data[0]).replace(folder / f"{network.removesuffix('.onnx')}.npz")
    if network is None:
        return Dropped(None if weights is None else str(folder / weights), plan)
    return Dropped(with_parts(str(folder / network), weights=folder / weights if weights else None), plan)


def _parts(address: str) -> list[Path]:
    """The files of an earlier drop of a network of ONNX, its data left out where new ones may come."""
    network = Path(address_of(address).model)
    if network.suffix != ".onnx" or not network.is_file():
        return []
    return [path for path in sorted(network.parent.iterdir()) if path.name.endswith((".onnx", ".onnx.data", ".npz"))]


# ---- what is kept ---------------------------------------------------------------------------------------------------


def networks_of(session: str) -> list[str]:
    """The networks that a visitor has dropped and that are still there, the newest first."""
    found = []
    for folder in _newest_first(folder_of_all() / session):
        names = [path.name for path in _files(folder)]
        what = _what(folder, [], names)
        if what.network is not None:
            found.append(what.network)
    return found


def use(address: str) -> None:
    """Note that a drop was opened: it is kept for longer."""
    with suppress(OSError, ValueError):
        relative = Path(address_of(address).model).relative_to(folder_of_all())
        os.utime(folder_of_all().joinpath(*relative.parts[:2]))


def make_room(folder: Path, newest: Path, now: float | None = None) -> None:
    """Remove drops that nobody has opened for a week, and the oldest above what a visitor, and all, may keep."""
    now = time.time() if now is None else now
    with suppress(OSError):
        drops = {visitor: list(_newest_first(visitor)) for visitor in folder.iterdir() if visitor.is_dir()}
        kept: list[tuple[float, int, Path]] = []
        for visitor, theirs in drops.items():
            total = 0
            for drop in theirs:
                age, size = now - drop.stat().st_mtime, sum(path.stat().st_size for path in _files(drop))
                total += size
                if drop != newest and (age > KEPT_SECONDS or total > MOST_BYTES_EACH):
                    shutil.rmtree(drop, ignore_errors=True)
                else:
                    kept.append((age, size, drop))
            if not any(visitor.iterdir()):
                visitor.rmdir()
        total = 0
        for _, size, drop in sorted(kept):
            total += size
            if drop != newest and total > MOST_BYTES:
                shutil.rmtree(drop, ignore_errors=True)


def _newest_first(visitor: Path) -> list[Path]:
    try:
        drops = [(path.stat().st_mtime_ns, path) for path in visitor.iterdir() if path.is_dir()]
    except OSError:
        return []
    return [path for _, path in sorted(drops, reverse=True)]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]


# ---- in addresses and messages --------------------------------------------------------------------------------------


def is_dropped(address: str) -> bool:
    """Whether a reference is of files that somebody has dropped."""
    return Path(address_of(address).model).is_relative_to(folder_of_all())


def short(address: str) -> str:
    """A reference as the address of a page has it: where this server keeps what was dropped is nobody's business."""
    return address.replace(f"{folder_of_all()}{os.sep}", SHORT)


def whole(named: str) -> str:
    """The reference again."""
    return named.replace(SHORT, f"{folder_of_all()}{os.sep}")


def without_folders(text: str) -> str:
    """A message with dropped files by their names alone."""
    return re.sub(re.escape(f"{folder_of_all()}{os.sep}") + r"[0-9a-f]+[/\\][0-9a-f]{32}[/\\]", "", text)
