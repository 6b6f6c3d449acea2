"""The door: every file that the product writes goes through here, whole or not at all, and none takes a wrong place.

A symbolic link keeps pointing: what it points to is written. Folders, sockets, disks and files that are read-only by
their mode are never written; other devices and pipes are written through, not replaced. What killed processes leave
goes once it is old.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EDQUOT, EEXIST, EFBIG, ENOSPC, ENOTDIR, EPERM, EROFS
from glob import escape
from itertools import count
from pathlib import Path
from typing import IO, Any, Literal, cast

import platformdirs
from safetensors import SafetensorError

from lowrank_core.errors import InvalidFile
from lowrank_core.store.reads import was_read

LEFT_SECONDS = 3600.0
"""A temporary file of this age was left by a process that was killed."""

SCRATCH = "rank-explorer-"
"""Beginning of the names of our folders in the system's temporary one."""

SCRATCH_SECONDS = 7 * 86400.0
"""The same of such a folder: a server may keep one for days."""

MARKER, FORMAT = "scratch.json", "rank-explorer-scratch"
"""The file that makes such a folder ours, and what it says it is."""

TRIED_BYTES = 4096
"""Written and removed again to see whether a folder takes anything: one page of a disk that is full does not go in."""

_NAME_BYTES = 200
"""Of a file's own name in that of its temporary one: with what is added it stays below the 255 of file systems."""

MOUNTS = Path("/proc/self/mountinfo")
"""Where Linux tells what is mounted where; elsewhere there is no such file, and no file is mounted by itself."""

_REMEDY = {
    ENOSPC: "make room there, or give another folder",
    EDQUOT: "make room there, or give another folder",
    EFBIG: "larger files are not allowed here; give another folder, or raise the limit (ulimit -f)",
    EEXIST: "move away what stands in its place",
    ENOTDIR: "move away the file that stands in a folder's place",
    EROFS: "give a folder that can be written",
    EACCES: "give a folder that you may write to",
    EPERM: "give a folder that you may write to",
}


# ---- whole files ----------------------------------------------------------------------------------------------------


def temporary_name(path: Path) -> Path:
    """A name beside `path`, another each time, that nothing takes for a finished file: `.NAME.1a2b3c4d.tmp`."""
    return path.with_name(f".{_cut(path.name)}.{secrets.token_hex(4)}.tmp")


def _cut(name: str) -> str:
    """The beginning of a name: file systems count bytes, not letters."""
    return os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, then take the place of `path`; its folder is made if need be. Raises OSError.

    For files of our own, whose older state may always go. Where writing fails, on a full disk say, nothing is left
    behind; only a kill leaves the temporary file.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise OSError(EEXIST, "something that is no file stands in its place", str(path))
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _can_be_kept(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet; raises FileExistsError where something of that name is, a link too.

    Raises InvalidFile where it cannot be written.
    """
    with _named(path, but=FileExistsError), path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:
            path.unlink()
            raise


def append(path: Path, content: bytes) -> None:
    """Add to a file in a single write; folder and file are made if need be. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        if file.write(content) != len(content):
            raise OSError(ENOSPC, os.strerror(ENOSPC), str(path))
    _can_be_kept(path.parent)


class _Patient(io.RawIOBase):
    """A file for libraries that end the process where a write fails, as PyTorch's archives do: it never fails to them.

    failed: the first error; nothing is written after it.
    """

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.failed: OSError | None = None

    def writable(self) -> bool:
        """Yes, for those who ask."""
        return True

    def seekable(self) -> bool:
        """Yes, for those who ask."""
        return True

    def write(self, content: Any) -> int:
        """Write, or do as if."""
        self._patiently(lambda: self._file.write(content))
        return memoryview(content).nbytes

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, or do as if."""
        return self._patiently(lambda: self._file.seek(offset, whence))

    def tell(self) -> int:
        """The place, 0 once a write has failed."""
        return self._patiently(self._file.tell)

    def _patiently(self, do: Callable[[], int]) -> int:
        try:
            return 0 if self.failed is not None else do()
        except OSError as error:
            self.failed = error
            return 0


def weights_beside(path: Path) -> Path:
    """Where an export that is no single file has its weights.

    >>> weights_beside(Path("net.onnx")).name, weights_beside(Path("net.xml")).name
    ('net.onnx.data', 'net.bin')
    """
    if path.suffix == ".xml":  # where OpenVINO looks for them
        return path.with_suffix(".bin")
    return path.with_name(f"{path.name}.data")


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, at a path that `whole_or_nothing` or `scratch` gave; raises at the end if a write failed."""
    with path.open("wb") as file:
        patient = _Patient(file)
        try:
            yield cast(IO[bytes], patient)
        finally:
            if patient.failed is not None:  # the reason, whatever a library made of it
                raise patient.failed


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, which takes the place of `path` at the end; removed where anything fails.

    What a killed process left of an earlier attempt is removed once it is an hour old. A device or pipe gets a copy of
    what was written instead. Raises InvalidFile where something stands at `path` that is not written (see
    `check_place`), where that was read by this run in the meantime, or where writing fails.
    """
    target, there = check_place(path)
    if there is not None and not stat.S_ISREG(there.st_mode):
        with scratch() as folder:
            temporary = folder / target.name
            temporary.touch()
            yield temporary
            with _named(path), temporary.open("rb") as whole, target.open("wb") as through:
                shutil.copyfileobj(whole, through)
        return
    remove_left(target.parent, target.name)
    temporary = temporary_name(target)
    with _named(path):
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode if there is None else there.st_mode
            temporary.chmod(0o600)  # whatever umask forbids is forbidden at the end
            yield temporary
            if was_read(target):
                raise InvalidFile(f"{path} was not saved: this run has read the file of that name; give another name.")
            temporary.chmod(stat.S_IMODE(mode) & 0o777)  # safetensors makes files private
            os.replace(temporary, target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def folder_or_zip(path: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `path` at the end, or whose files are packed there: `NAME.zip`.

    The same files give the same zip. Raises what `whole_folder` and `whole_or_nothing` raise.
    """
    if path.suffix.lower() != ".zip":
        with whole_folder(path) as folder:
            yield folder
        return
    with whole_or_nothing(path) as temporary, scratch() as folder:
        yield folder
        with zipfile.ZipFile(temporary, "w") as archive:
            for file in sorted(folder.iterdir()):
                named = zipfile.ZipInfo(file.name, (1980, 1, 1, 0, 0, 0))
                with file.open("rb") as read, archive.open(named, "w", force_zip64=True) as packed:
                    shutil.copyfileobj(read, packed)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder under a temporary name, which takes the place of the folder `path` at the end.

    What stood there goes once the new one is in its place; where anything fails all is as it was. Raises InvalidFile
    where something else than a folder stands there (see `check_folder`), or where writing fails.
    """
    target, _ = check_folder(path)
    temporary, before = temporary_name(target), target.with_name(f"{target.name}.before-{secrets.token_hex(4)}")
    with _named(path):
        try:
            temporary.mkdir()
            yield temporary
            if target.exists():
                os.replace(target, before)
            try:
                os.replace(temporary, target)
            except OSError:
                if before.exists():
                    os.replace(before, target)
                raise
            shutil.rmtree(before, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """An empty folder under a temporary name beside a file that is to be written, for several that name each other."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{_cut(path.name)}.", suffix=".tmp") as folder:
        yield Path(folder)


def same_file(path: Path, target: Path) -> None:
    """The same file under another name, for what nobody writes to any more; a copy where there are no links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def move(source: Path, temporary: Path) -> None:
    """Move a file to a path that `whole_or_nothing` gave."""
    os.replace(source, temporary)


def move_aside(path: Path, word: str) -> Path:
    """Give a file a name that nothing has yet, `NAME.WORD-1`, and say which; raises OSError."""
    for number in count(1):
        aside = path.with_name(f"{path.name}.{word}-{number}")
        try:
            os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            continue
        try:
            os.replace(path, aside)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        return aside
    raise AssertionError("numbers do not end")


@contextmanager
def _named(path: Path, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Say which file could not be written and why, whatever the library that wrote it says; but: passes as it is."""
    try:
        yield
    except but:
        raise
    except (OSError, SafetensorError) as error:
        raise InvalidFile(f"{path} could not be written: {_why(error)}.") from error


def _why(error: Exception) -> str:
    """What the system says, and what to do about it."""
    said = re.search(r"\(os error (\d+)\)", str(error))  # of a library that is not Python
    number = getattr(error, "errno", None) or (int(said[1]) if said else None)
    if number is None:
        return " ".join(str(error).split())[:200]
    what = getattr(error, "strerror", None) or os.strerror(number)
    return f"{what}; {_REMEDY[number]}" if number in _REMEDY else what


# ---- before any work ------------------------------------------------------------------------------------------------


def check_place(path: Path) -> tuple[Path, os.stat_result | None]:
    """Where a file of that name is written, which is the end of symbolic links, and what is there; None for nothing.

    Raises InvalidFile for a folder, socket or disk, a file that is read-only by its mode or not the user's to write, a
    missing folder, and a name that no file can have.
    """
    try:
        target = Path(os.path.realpath(path))
        there = os.stat(target)
    except FileNotFoundError:
        there = None
    except NotADirectoryError as error:
        raise InvalidFile(f"there is no folder {path.parent}: {error.strerror}; create it first.") from error
    except (OSError, ValueError) as error:  # too long, links in a ring, a zero byte
        raise InvalidFile(f"{_short(path)} is no name for a file: {_why(error)}; give another name.") from error
    shown = path if target == path.absolute() or not path.is_symlink() else f"{path} (a link to {target})"
    if there is None:
        if not target.parent.is_dir():
            raise InvalidFile(f"there is no folder {target.parent}; create it first.")
        return target, None
    if stat.S_ISDIR(there.st_mode):
        raise InvalidFile(f"{shown} is a folder; give the name of a file.")
    if stat.S_ISSOCK(there.st_mode) or stat.S_ISBLK(there.st_mode):
        kind = "socket" if stat.S_ISSOCK(there.st_mode) else "disk"
        raise InvalidFile(f"{shown} is a {kind}, which is never written to; give the name of a file.")
    if stat.S_ISREG(there.st_mode) and _is_mounted(target):
        raise InvalidFile(f"{shown} is mounted by itself and cannot be replaced whole; mount its folder instead.")
    if not there.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise InvalidFile(
            f"{shown} is read-only (mode {stat.S_IMODE(there.st_mode):o}), so it is not replaced; "
            "chmod u+w it, or give another name."
        )
    return target, there


def check_folder(path: Path) -> tuple[Path, os.stat_result | None]:
    """Where a folder of that name is written, which is the end of symbolic links, and what is there; None for nothing.

    Raises InvalidFile where something else than a folder is there, where one is mounted, and for what `check_place`
    refuses of a name.
    """
    target = Path(os.path.realpath(path))
    if not target.is_dir():
        target, there = check_place(path)
        if there is not None:
            raise InvalidFile(f"{path} is a file; give the name of a folder, or a name that ends with .zip.")
        return target, None
    if target.is_mount() or target == Path.cwd() or not os.access(target.parent, os.W_OK):
        raise InvalidFile(
            f"{path} cannot be replaced whole, as it is mounted, or the folder this runs in; give another."
        )
    return target, target.stat()


def try_folder(path: Path) -> os.stat_result | None:
    """See, before any work, whether a folder can be written; gives what is there now, None for nothing.

    Raises InvalidFile as `check_folder` does, and where there is no room beside it.
    """
    target, there = check_folder(path)
    _try(temporary_name(target), path)
    return there


def _is_mounted(file: Path) -> bool:
    """Whether something is mounted at just this file, as containers are given single ones."""
    try:
        places = [line.split(b" ")[4] for line in MOUNTS.read_bytes().splitlines()]
    except (OSError, IndexError):
        return False
    octal = re.compile(rb"\\(\d{3})")
    return os.fsencode(file) in {octal.sub(lambda found: bytes([int(found[1], 8)]), place) for place in places}


def try_place(path: Path) -> os.stat_result | None:
    """See, before any work, whether a file can be written; gives what is there now, None for nothing.

    Raises InvalidFile as `check_place` does, and where the folder is full or read-only: a temporary file is made beside
    it and removed again.
    """
    target, there = check_place(path)
    if there is None or stat.S_ISREG(there.st_mode):
        _try(temporary_name(target), path)
    return there


def _try(temporary: Path, path: Path) -> None:
    with _named(path):
        try_room(temporary, TRIED_BYTES)


def try_room(temporary: Path, size: int) -> None:
    """Write so many bytes and remove them again; raises OSError, which says why they do not fit."""
    try:
        with temporary.open("wb", buffering=0) as file:
            while size > 0:
                size -= file.write(bytes(min(size, 2**20)))
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _short(path: Path) -> str:
    """A path that is too long, cut for a message."""
    text = str(path)
    return text if len(text) <= 100 else f"{text[:60]}... ({len(os.fsencode(text)):,} bytes)"


# ---- what is kept, where it can be ----------------------------------------------------------------------------------


def own_folder(kind: Literal["cache", "state"]) -> Path:
    """Where what is ours of this user is kept; for one without a home at the root, where few may write."""
    find = platformdirs.user_cache_path if kind == "cache" else platformdirs.user_state_path
    try:
        return find("rank-explorer")
    except RuntimeError:  # neither HOME nor an account says where home is
        return Path(os.path.abspath(os.sep), f".{kind}", "rank-explorer")


_not_kept: dict[Path, str] = {}
_noting = threading.Lock()


def keep_whole(path: Path, content: bytes) -> None:
    """Write a file that is kept for later as `write_whole`; where that fails the work goes on, see `not_kept`."""
    _kept(path, lambda: write_whole(path, content))


def keep_line(path: Path, content: bytes) -> None:
    """Add to a file that is kept for later as `append`; where that fails the work goes on, see `not_kept`."""
    _kept(path, lambda: append(path, content))


def try_to_keep(folder: Path) -> None:
    """See whether a folder of ours can be written; where not, `not_kept` says so from then on."""
    path = folder / "tried"

    def tried() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_left(folder)
        temporary = temporary_name(path)
        try:
            temporary.write_bytes(b"\0" * TRIED_BYTES)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    _kept(path, tried)


def not_kept() -> tuple[str, ...]:
    """Which folders of ours could not be written of late, why, and what to do: a sentence for each reason."""
    folders: dict[str, list[str]] = {}
    with _noting:
        for folder, why in _not_kept.items():
            folders.setdefault(why, []).append(str(folder))
    return tuple(
        f"What is found is kept in memory alone: {' and '.join(these)} could not be written: {why}."
        for why, these in folders.items()
    )


def is_not_kept(folder: Path) -> bool:
    """Whether `not_kept` already says so of a folder, or of one that it lies in."""
    with _noting:
        return any(folder.is_relative_to(noted) for noted in _not_kept)


def forget_not_kept() -> None:
    """Begin anew with what `not_kept` says, as a command does."""
    with _noting:
        _not_kept.clear()


def _kept(path: Path, write: Callable[[], None]) -> None:
    folder = path.parent
    try:
        write()
    except OSError as error:
        why = _why(error)
        with _noting:
            if not any(
                folder.is_relative_to(noted) or (noted.parent == folder.parent and reason == why)
                for noted, reason in _not_kept.items()
            ):  # a disk that is full is said once
                _not_kept[folder] = why
    else:
        _can_be_kept(folder)


def _can_be_kept(folder: Path) -> None:
    """Something was written there: what was said of it is true no more."""
    if _not_kept:
        with _noting:
            for noted in [noted for noted in _not_kept if folder.is_relative_to(noted)]:
                del _not_kept[noted]


# ---- scratch --------------------------------------------------------------------------------------------------------


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder in the system's temporary one, removed at the end; what kills left of others goes after a week.

    It lies in a folder of ours, beside a file that says so. Raises InvalidFile where there is no room for it.
    """
    with _as_scratch():
        remove_old_scratch()
        own = Path(tempfile.mkdtemp(prefix=SCRATCH))
        own.chmod(0o700)  # whatever umask says
    try:
        with _as_scratch(own):
            about = {"format": FORMAT, "process": os.getpid(), "host": platform.node()}
            (own / MARKER).write_text(json.dumps(about), encoding="utf-8")
            folder = own / "files"
            folder.mkdir()
            folder.chmod(0o700)
            yield folder
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextmanager
def _as_scratch(own: Path | None = None) -> Iterator[None]:
    """Say that it is the temporary folder that is full, where it is that one."""
    try:
        yield
    except OSError as error:
        if own is not None:
            try:
                _try(temporary_name(own / "tried"), own)
                raise error
            except InvalidFile:
                pass
        raise InvalidFile(
            f"the folder for scratch files{'' if own is None else f', {own.parent},'} could not be written: "
            f"{error.strerror}; make room there, or set TMPDIR to another folder."
        ) from error


def remove_left(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of files of that name; without one of any, which is for folders of our own."""
    pattern = "*.tmp" if name is None else f".{escape(_cut(name))}.????????.tmp"
    for path in _old(folder, pattern, LEFT_SECONDS):
        drop(path)


def remove_old_scratch() -> None:
    """Remove the scratch folders of processes that were killed a week ago: the user's own, by their marker.

    Whatever else has such a name is left alone, and so is the folder of a process that is still there.
    """
    for path in _old(Path(tempfile.gettempdir()), f"{SCRATCH}*", SCRATCH_SECONDS):
        with suppress(OSError, ValueError, RecursionError):
            if _is_dead_scratch(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_dead_scratch(path: Path) -> bool:
    """Whether a folder is scratch of this user's, left by a process that is no more."""
    marker = path / MARKER
    folder, file = path.lstat(), marker.lstat()
    if not (stat.S_ISDIR(folder.st_mode) and stat.S_ISREG(file.st_mode)):
        return False
    if hasattr(os, "getuid") and {folder.st_uid, file.st_uid} != {os.getuid()}:
        return False
    about = json.loads(marker.read_bytes()[:1000])
    if not isinstance(about, dict) or (about.get("format"), about.get("host")) != (FORMAT, platform.node()):
        return False
    if type(about.get("process")) is not int:
        return False
    try:
        os.kill(about["process"], 0)
    except ProcessLookupError:
        return True
    except OverflowError:
        return False
    return False


def _old(folder: Path, pattern: str, seconds: float) -> Iterator[Path]:
    for path in folder.glob(pattern):
        with suppress(OSError):
            if path.lstat().st_mtime < time.time() - seconds:
                yield path


def drop(path: Path) -> None:
    """Remove a file, or a folder that stands in its place; another process may be faster."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
