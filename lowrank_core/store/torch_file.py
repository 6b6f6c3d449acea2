"""Files written by `torch.save`, read without trust: weights only, and no more memory than the file is long.

The pickle inside is first walked with inert stand-ins, which shows every tensor it claims; only then PyTorch opens it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lowrank_core.errors import InvalidFile, few

ADVICE = "save the weights alone: torch.save(model.state_dict(), path), or as safetensors"
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "ema_state_dict", "ema")
_PREFIXES = ("module.", "_orig_mod.")
_REBUILDS = {"_rebuild_tensor_v2", "_rebuild_parameter"}
_OPCODES = re.compile(
    "PROTO|STOP|MARK|TUPLE[123]?|EMPTY_(TUPLE|LIST|DICT)|NONE|NEWTRUE|NEWFALSE|BININT[12]?|BINFLOAT|BINUNICODE|"
    "SHORT_BINSTRING|LONG1|BINPERSID|(LONG_)?BIN(GET|PUT)|GLOBAL|REDUCE|BUILD|APPENDS?|SETITEMS?"
)
"""What `torch.save` writes and the weights-only reader of PyTorch understands."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state_dict, or of the one inside a training checkpoint; "module." prefixes are stripped.

    Raises InvalidFile for anything else, above all for pickles that could run code and files that claim more than
    they hold.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a checkpoint, and sentences about what was taken, left out and which prefix was stripped."""
    with path.open("rb") as file:
        if file.read(1) == b"\x80":
            return _state_dict(_legacy(path), path)
    sizes = _member_sizes(path)
    try:
        raw = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    except Exception as error:  # whatever PyTorch's own reader raises
        raise InvalidFile(f"{path} is a zip archive, but not one of torch.save; {ADVICE}.") from error
    _check_globals(path, raw)
    with _named(path):
        _Walk(raw, sizes).load()
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return _state_dict(content, path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of which file a claim cannot be, and whatever PyTorch raises in one line."""
    try:
        yield
    except InvalidFile as error:
        raise InvalidFile(f"{path} {error}; it is damaged or was made to do harm, and was not opened.") from error
    except Exception as error:
        raise InvalidFile(f"{path} cannot be read: {' '.join(str(error).split())[:300]}; save it again.") from error


LEGACY = (0x1950A86A20F9469CFC6C, 1001)
"""What the first two pickles of a file of PyTorch before 1.6 say: what it is, and the version of its form."""


def _legacy(path: Path) -> object:
    """What a file of PyTorch before 1.6 holds: pickles one after the other, then each storage behind its length."""
    with path.open("rb") as file:
        try:
            if tuple(_only_number(file) for _ in LEGACY) != LEGACY:
                raise ValueError("another kind of pickle")
            _skip(file)
            begins = file.tell()
            _skip(file)
            ends = file.tell()
            keys = [str(argument) for opcode, argument, _ in pickletools.genops(file) if opcode.name == "BINUNICODE"]
        except Exception as error:
            raise InvalidFile(
                f"{path} is a plain pickle, which could run code; load it where you trust it and save the weights "
                "again with torch.save(model.state_dict(), path) of PyTorch 1.6 or newer, or as safetensors."
            ) from error
        at, size = file.tell(), path.stat().st_size
        file.seek(begins)
        raw = file.read(ends - begins)
        _check_globals(path, raw, legacy=True)
        with _named(path):
            walk = _LegacyWalk(raw)
            walk.load()
            if sorted(keys) != sorted(walk.claimed):
                raise InvalidFile("names other storages than it holds")
            for key in keys:
                elements, each = walk.claimed[key]
                file.seek(at)
                at += 8 + elements * each
                if int.from_bytes(file.read(8), "little") != elements or at > size:
                    raise InvalidFile(f"claims a storage of {elements} elements that it does not hold")
            return torch.load(path, map_location="cpu", weights_only=True)


def _only_number(file: IO[bytes]) -> int:
    """The number that is all a pickle says."""
    (number,) = [argument for opcode, argument, _ in pickletools.genops(file) if opcode.name not in ("PROTO", "STOP")]
    return int(str(number))


def _skip(file: IO[bytes]) -> None:
    for _ in pickletools.genops(file):
        pass


def _check_globals(path: Path, raw: bytes, *, legacy: bool = False) -> None:
    unsafe = _unsafe_globals(path, raw, legacy=legacy)
    if unsafe:
        raise InvalidFile(f"{path} holds more than tensors ({few(unsafe)}), and loading that could run code; {ADVICE}.")


def _member_sizes(path: Path) -> dict[str, int]:
    """Bytes of each member, refused where one is compressed or all together exceed the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # zipfile's word for an unknown compression
        raise InvalidFile(f"{path} is cut short or damaged ({error}); copy or save it again.") from error
    if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members):
        raise InvalidFile(f"{path} has compressed members, which torch.save never writes; {ADVICE}.")
    size = path.stat().st_size
    claimed = sum(m.file_size for m in members)
    if claimed > size:
        raise InvalidFile(f"{path} claims {claimed:,} bytes of content in a file of {size:,}; it was not opened.")
    return {m.filename.partition("/")[2]: m.file_size for m in members}


def _unsafe_globals(path: Path, raw: bytes, *, legacy: bool) -> list[str]:
    """Every class or function the pickle names that a state_dict has no use for; nothing is imported or called."""
    named = set()
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            if opcode.name == "GLOBAL":
                named.add(str(argument).replace(" ", "."))
            elif not _OPCODES.fullmatch(opcode.name):
                named.add(f"pickle opcode {opcode.name}")
            elif "PUT" in opcode.name and isinstance(argument, int) and argument > len(raw):
                named.add(f"pickle memo {argument}")
        refused_by_torch = set() if legacy else set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:
        if named and not all(map(_harmless, named)):
            return sorted(name for name in named if not _harmless(name))
        raise InvalidFile(
            f"{path} is no file of torch.save ({' '.join(str(error).split())[:200]}); {ADVICE}."
        ) from error
    return sorted({name for name in named if not _harmless(name)} | refused_by_torch)


def _harmless(name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return (
        name == "collections.OrderedDict"
        or (module == "torch" and leaf in _STORAGES)
        or (module == "torch._utils" and leaf in _REBUILDS)
    )


_STORAGES = {
    "BoolStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "ShortStorage": 2,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "IntStorage": 4,
    "FloatStorage": 4,
    "LongStorage": 8,
    "DoubleStorage": 8,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}
"""Bytes of one element."""


@dataclass(frozen=True, slots=True)
class _Storage:
    """What the pickle says about one storage."""

    elements: int


class _Ordered(dict[Any, Any]):
    """Stands in for OrderedDict, in the only way torch.save uses it: empty at first."""

    def __init__(self, *args: object) -> None:
        if args:
            raise InvalidFile("builds a dictionary in a way that torch.save does not")
        super().__init__()

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise InvalidFile("sets attributes that torch.save does not write")


class _Walk(pickle.Unpickler):
    """Walks the pickle with stand-ins for everything it may name, and holds each claim against the file."""

    def __init__(self, raw: bytes, sizes: dict[str, int]) -> None:
        super().__init__(io.BytesIO(raw))
        self._sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a class that a pickle names; anything else is refused."""
        if not _harmless(f"{module}.{name}"):
            raise InvalidFile(f"names {module}.{name}")
        if module == "torch":
            return name
        return {"OrderedDict": _Ordered, "_rebuild_tensor_v2": _check_tensor, "_rebuild_parameter": _first}[name]

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: it must lie in the file with all the bytes it is said to have."""
        kind, storage, key, _, elements = pid
        size = self._sizes.get(f"data/{key}", -1)
        if kind != "storage" or not isinstance(elements, int) or elements * _STORAGES[storage] != size:
            raise InvalidFile(f"claims a storage of {elements} elements where {max(size, 0):,} bytes are held")
        return _Storage(elements)


class _LegacyWalk(_Walk):
    """The same for a file that says only behind the pickle what its storages hold. claimed: elements, bytes of each."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw, {})
        self.claimed: dict[str, tuple[int, int]] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, whole: torch.save writes views of storages for nothing that a state_dict has."""
        kind, storage, key, _, elements, view = pid
        if kind != "storage" or not isinstance(elements, int) or elements < 0 or view is not None:
            raise InvalidFile("claims a storage in a way that torch.save does not")
        claim = (elements, _STORAGES[storage])
        if self.claimed.setdefault(str(key), claim) != claim:
            raise InvalidFile(f"claims the storage {str(key)[:80]!r} twice, with other sizes")
        return _Storage(elements)


def _check_tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> None:
    if not isinstance(storage, _Storage) or any(not isinstance(n, int) or n < 0 for n in (offset, *size, *stride)):
        raise InvalidFile("holds a tensor without a proper shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if prod(size) else -1
    if prod(size) > storage.elements or last >= storage.elements:
        raise InvalidFile(f"claims a tensor of shape {size} in a storage of {storage.elements:,} elements")


def _first(data: object, *_: object) -> object:
    return data


def _state_dict(content: object, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state_dict itself, or the one under the usual key of a training checkpoint, and what there is to say."""
    notices = []
    for _ in _WRAPPERS:  # an "ema" may hold a "state_dict" of its own
        key = next((k for k in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(k), dict)), None)
        if key is None:
            break
        assert isinstance(content, dict)
        left = [str(name) for name in content if name != key]
        notices.append(f"The weights under {key!r} are taken" + (f"; {few(left)} left out." if left else "."))
        content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        what = f"a dict with {few(list(content), repr)}" if isinstance(content, dict) else type(content).__name__
        raise InvalidFile(f"{path} must hold a state_dict (names and tensors), but got {what}; {ADVICE}.")
    state = {str(name): value for name, value in content.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
            notices.append(f"The prefix {prefix!r} of every name is left off.")
    return state, tuple(notices)
