"""Files written by `torch.save` and `torch.jit.save`, read without trust: no code is run, no claim goes unchecked.

The pickle inside is walked with inert stand-ins for everything it names, whatever it is: tensors are views of the bytes
of the file, objects of other classes are kept as what the pickle says of them, and nothing is imported or called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lowrank_core.errors import InvalidFile, cut, few

ADVICE = "save the weights alone: torch.save(model.state_dict(), path), or as safetensors"
MOST_NAMES = 10_000
"""Classes and functions that a pickle names, at most."""

_OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|INT|LONG|TUPLE[123]?|EMPTY_(TUPLE|LIST|DICT|SET)|NONE|NEWTRUE|NEWFALSE|BININT[12]?|BINFLOAT|"
    "(SHORT_)?BINUNICODE|(SHORT_)?BIN(STRING|BYTES)|LONG[14]|BINPERSID|(LONG_)?BIN(GET|PUT)|MEMOIZE|(STACK_)?GLOBAL|"
    "REDUCE|BUILD|NEWOBJ(_EX)?|APPENDS?|SETITEMS?|ADDITEMS|FROZENSET|POP|POP_MARK|DUP"
)
"""What pickles of protocol 2 to 4 are made of; none of it takes more memory than a few times its bytes."""

_HARM = {
    *("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "pty", "runpy", "ctypes", "webbrowser"),
    *("importlib", "multiprocessing", "asyncio", "pip", "bdb", "pdb", "cffi"),
}
"""Modules whose names no training leaves in a file: who writes them wants them called."""

_BUILTINS = {
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list", "object"),
    *("range", "set", "slice", "str", "tuple", "type", "print", "long", "unicode", "super", "property"),
    *("Ellipsis", "NotImplemented", "max", "min", "sum", "len", "abs", "round", "sorted", "Exception", "ValueError"),
}
"""What is named of Python's own functions by files that mean no harm."""

_STORAGES = {
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "IntStorage": torch.int32,
    "FloatStorage": torch.float32,
    "LongStorage": torch.int64,
    "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class Inert(dict[Any, Any]):
    """An object of a class that is not loaded: its items, what it was made with, and its state; it does nothing.

    kind: the full name of the class or function that the pickle names.
    """

    __slots__ = ("given", "state")
    kind = ""
    given: tuple[Any, ...]
    state: object

    def __new__(cls, *args: object, **rest: object) -> Inert:
        made = super().__new__(cls)
        made.given, made.state = args, None
        return made

    def __init__(self, *args: object, **rest: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        self.state = state

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]

    def append(self, item: object) -> None:
        """As a list is filled; what it holds is of no use."""

    extend = add = append

    @property
    def attributes(self) -> dict[Any, Any]:
        """Its attributes by name, as far as the pickle tells them."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, dict) else {}


def read_content(path: Path) -> object:
    """What a file of `torch.save` or `torch.jit.save` holds: tensors as they are, other objects as `Inert` ones.

    Raises InvalidFile for anything else, for a pickle that names what could only do harm, and for files that claim more
    than they hold.
    """
    with path.open("rb") as file:
        head = file.read(264)
    if head[:1] == b"\x80":
        return _legacy(path)
    if head[257:262] == b"ustar":
        raise InvalidFile(f"{path} is a tar archive; unpack it, and give the file of weights in it.")
    if head[:2] != b"PK":
        raise InvalidFile(
            f"{path} is no file of torch.save: it begins with {cut(head[:8].hex(' '))}"
            f"{', as files of Lua Torch do' if path.suffix == '.t7' else ''}; {ADVICE}."
        )
    return _zipped(path)


def _zipped(path: Path) -> object:
    sizes = _member_sizes(path)
    if "data.pkl" not in sizes:
        program = any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in sizes)
        raise InvalidFile(
            f"{path} is a program of torch.export; give it a name that ends in .pt2."
            if program
            else f"{path} is a zip archive, but not one of torch.save; {ADVICE}."
        )
    try:
        archive = torch._C.PyTorchFileReader(str(path))
        if "byteorder" in sizes and archive.get_record("byteorder") != b"little":
            raise InvalidFile(f"{path} was written with the bytes of numbers turned around; save it again here.")
        mapped = _mapped(path)
        content = _walked(path, archive.get_record("data.pkl"), _Members(path, archive, sizes, mapped, "data"))
        if "constants.pkl" in sizes and isinstance(content, Inert):
            members = _Members(path, archive, sizes, mapped, "constants")
            content.given = (_walked(path, archive.get_record("constants.pkl"), members),)
    except InvalidFile:
        raise
    except Exception as error:  # whatever PyTorch's own reader raises
        raise InvalidFile(f"{path} is a zip archive, but not one of torch.save; {ADVICE}.") from error
    return content


def _nothing() -> torch.UntypedStorage:
    return torch.empty(0, dtype=torch.uint8).untyped_storage()


def _mapped(path: Path) -> torch.UntypedStorage:
    """The bytes of a file, read where they are looked at; what is written to them stays in memory."""
    whole: torch.UntypedStorage = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)  # type: ignore[assignment]
    return whole


@dataclass(frozen=True, slots=True)
class _Members:
    """The storages of an archive: members under a folder."""

    path: Path
    archive: Any
    sizes: dict[str, int]
    mapped: torch.UntypedStorage
    folder: str

    def __call__(self, key: str, elements: int, itemsize: int) -> torch.UntypedStorage:
        """The bytes of a storage; raises InvalidFile where it does not have as many as are claimed."""
        name = f"{self.folder}/{key}"
        size = self.sizes.get(name, -1)
        if elements * itemsize != size:
            raise InvalidFile(f"claims a storage of {elements} elements where {max(size, 0):,} bytes are held")
        if not size:
            return _nothing()
        begin = self.archive.get_record_offset(name)
        if begin + size > len(self.mapped):
            raise InvalidFile(f"claims a storage of {elements} elements beyond its end")
        piece: torch.UntypedStorage = self.mapped[begin : begin + size]
        return (
            piece
            if begin % itemsize == 0
            else torch.tensor([], dtype=torch.uint8).set_(piece).clone().untyped_storage()
        )


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
            keys = [str(argument) for opcode, argument, _ in pickletools.genops(file) if opcode.name in _TEXTS]
        except Exception as error:
            raise InvalidFile(
                f"{path} is a plain pickle, which could run code; load it where you trust it and save the weights "
                "again with torch.save(model.state_dict(), path) of PyTorch 1.6 or newer, or as safetensors."
            ) from error
        at = file.tell()
        file.seek(begins)
        raw = file.read(ends - begins)
    claims = _Claims()
    _walked(path, raw, claims)
    with _named(path):
        if sorted(keys) != sorted(claims.claimed):
            raise InvalidFile("names other storages than it holds")
        places = claims.held(path, keys, at)
    return _walked(path, raw, _Behind(path, places))


class _Claims:
    """The storages that a pickle claims, whose bytes come behind it: none has any yet."""

    def __init__(self) -> None:
        self.claimed: dict[str, tuple[int, int]] = {}

    def __call__(self, key: str, elements: int, itemsize: int) -> None:
        """Note a storage; raises InvalidFile where it was claimed with other sizes."""
        if self.claimed.setdefault(key, (elements, itemsize)) != (elements, itemsize):
            raise InvalidFile(f"claims the storage {key[:80]!r} twice, with other sizes")

    def held(self, path: Path, keys: list[str], at: int) -> dict[str, tuple[int, int]]:
        """Where each storage begins and how many bytes it has, held against the file."""
        places, size = {}, path.stat().st_size
        with path.open("rb") as file:
            for key in keys:
                elements, itemsize = self.claimed[key]
                file.seek(at)
                places[key] = at + 8, elements * itemsize
                at += 8 + elements * itemsize
                if int.from_bytes(file.read(8), "little") != elements or at > size:
                    raise InvalidFile(f"claims a storage of {elements} elements that it does not hold")
        return places


@dataclass(frozen=True, slots=True)
class _Behind:
    """The storages behind a pickle, by their places."""

    path: Path
    places: dict[str, tuple[int, int]]

    def __call__(self, key: str, elements: int, itemsize: int) -> torch.UntypedStorage:
        """The bytes of a storage, in memory: they lie anywhere, and numbers must not."""
        begin, size = self.places[key]
        if not size:
            return _nothing()
        with self.path.open("rb") as file:
            file.seek(begin)
            return torch.frombuffer(bytearray(file.read(size)), dtype=torch.uint8).untyped_storage()


_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING")
"""What texts are in a pickle: the last two in one of Python 2."""


def _only_number(file: IO[bytes]) -> int:
    """The number that is all a pickle says."""
    (number,) = [argument for opcode, argument, _ in pickletools.genops(file) if opcode.name not in ("PROTO", "STOP")]
    return int(str(number))


def _skip(file: IO[bytes]) -> None:
    for _ in pickletools.genops(file):
        pass


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of which file a claim cannot be, and whatever is raised besides in one line."""
    try:
        yield
    except InvalidFile as error:
        raise InvalidFile(f"{path} {error}; it is damaged or was made to do harm, and was not opened.") from error
    except Exception as error:
        raise InvalidFile(f"{path} cannot be read: {' '.join(str(error).split())[:300]}; save it again.") from error


def _member_sizes(path: Path) -> dict[str, int]:
    """Bytes of each member, refused where one is compressed or all together exceed the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # zipfile's word for an unknown compression
        raise InvalidFile(f"{path} is cut short or damaged ({error}); copy or save it again.") from error
    stored = [m for m in members if "/code/" not in m.filename and "/extra/" not in m.filename]
    if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in stored):
        raise InvalidFile(f"{path} has compressed members, which torch.save never writes; {ADVICE}.")
    size = path.stat().st_size
    claimed = sum(m.file_size for m in stored)
    if claimed > size:
        raise InvalidFile(f"{path} claims {claimed:,} bytes of content in a file of {size:,}; it was not opened.")
    return {m.filename.partition("/")[2]: m.file_size for m in stored}


def _walked(path: Path, raw: bytes, storage: Callable[[str, int, int], torch.UntypedStorage | None]) -> object:
    """What a pickle says, after a look at what it is made of. storage(key, elements, itemsize): the bytes of one."""
    harm = _harm(path, raw)
    if harm:
        raise InvalidFile(f"{path} holds more than tensors ({few(harm)}), and loading that could run code; {ADVICE}.")
    with _named(path):
        return _Walk(raw, storage).load()


def _harm(path: Path, raw: bytes) -> list[str]:
    """What a pickle names that could only do harm, or is made of that `torch.save` never writes; nothing is called."""
    names: set[str] = set()
    texts: list[str] = ["", ""]
    others = set()
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            if opcode.name == "GLOBAL":
                names.add(".".join(str(argument).split(" ")))
            elif opcode.name == "STACK_GLOBAL":
                names.add(".".join(texts))
            elif not _OPCODES.fullmatch(opcode.name):
                others.add(f"pickle opcode {opcode.name}")
            elif "PUT" in opcode.name and isinstance(argument, int) and argument > len(raw):
                others.add(f"pickle memo {argument}")
            elif "UNICODE" in opcode.name:
                texts = [texts[1], str(argument)]
    except Exception as error:
        raise InvalidFile(
            f"{path} is no file of torch.save ({' '.join(str(error).split())[:200]}); {ADVICE}."
        ) from error
    if len(names) > MOST_NAMES:
        others.add(f"{len(names):,} classes")
    return sorted(others | {_said(name) for name in names if _is_harm(name)})


def _said(name: str) -> str:
    """A name as people know it; pickles have those of Python 2."""
    return name.replace("__builtin__", "builtins") + f" ({name})" * name.startswith("__builtin__")


def _is_harm(name: str) -> bool:
    root, _, rest = name.partition(".")
    return rest not in _BUILTINS if root in ("builtins", "__builtin__") else root in _HARM


class _Ordered(dict[Any, Any]):
    """Stands in for OrderedDict; its attributes, such as the _metadata of a state_dict, tell nothing of its tensors."""

    def __setstate__(self, state: object) -> None:
        pass


Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Storage:
    """What the pickle says about one storage. content: None where its bytes are not read yet."""

    elements: int
    dtype: torch.dtype
    content: torch.UntypedStorage | None


class _Walk(pickle.Unpickler):
    """Walks a pickle with stand-ins for everything it may name, and holds each claim against the file."""

    def __init__(self, raw: bytes, storage: Callable[[str, int, int], torch.UntypedStorage | None]) -> None:
        super().__init__(io.BytesIO(raw), encoding="latin1")
        self._storage = storage
        self._storages: dict[str, _Storage] = {}
        self._kinds: dict[str, type[Inert]] = {}
        self._pairs_left = len(raw)

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for what a pickle names: nothing is imported."""
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return self._ordered
        known = _KNOWN.get(f"{module}.{name}")
        if known is not None:
            return known
        full = f"{module}.{name}"
        if _is_harm(full):
            raise InvalidFile(f"names {full}")
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if full not in self._kinds:
            self._kinds[full] = type("Inert", (Inert,), {"kind": full, "__slots__": ()})
        return self._kinds[full]

    def _ordered(self, pairs: object = ()) -> _Ordered:
        """A dictionary, empty at first as a rule; under Python 2 it was made of pairs, which the pickle holds once."""
        if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            raise InvalidFile("builds a dictionary in a way that torch.save does not")
        self._pairs_left -= len(pairs)
        if self._pairs_left < 0:
            raise InvalidFile("builds a dictionary in a way that torch.save does not")
        made = _Ordered()
        made.update(pairs)
        return made

    def persistent_load(self, pid: Any) -> Any:
        """A storage: it must lie in the file with all the bytes it is said to have."""
        if pid[0] == "module" and len(pid) == 4:  # a class with its source, as PyTorch before 1.6 writes it
            return pid[1]
        what, kind, key, _, elements, *view = pid
        if what != "storage" or type(elements) is not int or elements < 0 or view not in ([], [None]):
            raise InvalidFile("claims a storage in a way that torch.save does not")
        if not isinstance(kind, str):  # of numbers that are no plain ones
            return Inert()
        dtype, key = _STORAGES[kind], str(key)
        known = self._storages.get(key)
        if known is None or (known.elements, known.dtype) != (elements, dtype):
            content = self._storage(key, elements, dtype.itemsize)
            known = self._storages[key] = _Storage(elements, dtype, content)
        return known


def _tensor(storage: _Storage, offset: int, size: Sizes, stride: Sizes, *_: object) -> Tensor | None:
    if not isinstance(storage, _Storage):
        raise InvalidFile("holds a tensor without a storage")
    return _placed(storage, offset, size, stride, storage.dtype, storage.elements)


def _tensor_of_bytes(
    storage: _Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    grad: object,
    hooks: object,
    dtype: torch.dtype,
    *_: object,
) -> Tensor | None:
    """A tensor of a dtype that has no storage of its own, in one of bytes."""
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        raise InvalidFile("holds a tensor without a proper dtype")
    return _placed(storage, offset, size, stride, dtype, storage.elements * storage.dtype.itemsize // dtype.itemsize)


def _placed(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, elements: int
) -> Tensor | None:
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise InvalidFile("holds a tensor without a proper shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if prod(size) else -1
    if prod(size) > elements or last >= elements:
        raise InvalidFile(f"claims a tensor of shape {tuple(size)} in a storage of {elements:,} elements")
    if storage.content is None:
        return None
    return torch.empty(0, dtype=dtype).set_(storage.content, offset, tuple(size), tuple(stride))


def _first(first: object, *_: object) -> object:
    return first


_KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.Size": _first,
    "torch.storage.UntypedStorage": "UntypedStorage",
    "torch.jit._pickle.restore_type_tag": _first,
}
"""What is understood of a pickle's names; tensors that are sparse, quantised or shared out stay `Inert`."""
