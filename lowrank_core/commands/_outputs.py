"""What a command writes: tried before it works, so that no input is lost and no work is done for nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from lowrank_core.errors import InvalidFile, LowRankError
from lowrank_core.store.files import (
    check_place,
    not_kept,
    scratch,
    try_folder,
    try_place,
    weights_beside,
    whole_or_nothing,
    writing,
)
from lowrank_core.store.kinds import NODE_QUANTITIES, FileKind
from lowrank_core.store.reads import same_file, was_read, watched
from lowrank_core.store.reference import address_of

STANDARD_OUTPUT = Path("-")
"""What an output is that goes to standard output; all others are absolute."""

_KEY = "lowrank_core outputs"

UNHEARD = {".arrow", ".bin", ".db", ".gguf", ".h5", ".hdf5", ".lmdb", ".parquet", ".sqlite"}
"""Endings of data that compiled libraries read, which nobody hears: such a file may be an input."""


class Input(click.Path):
    """A file that is there and read; a model file may change the folder, so it is absolute from the start."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return absolute(self, os.fsdecode(super().convert(value, param, ctx)), param, ctx)


def absolute(kind: click.ParamType[Any], name: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
    """A path from where the person stands, whatever folder a model file changes to later."""
    try:
        return Path(os.path.abspath(name))
    except FileNotFoundError:
        kind.fail(f"{name!r} lies in the current folder, which has been removed; cd to another one.", param, ctx)


class Output(click.ParamType[Path]):
    """A file that is written: a kind, or what tells it by the command's other options."""

    name = "path"

    def __init__(self, kind: FileKind | Callable[[dict[str, Any]], FileKind]) -> None:
        self._kind = kind

    def kind(self, options: dict[str, Any]) -> FileKind:
        """What is written."""
        return self._kind if isinstance(self._kind, FileKind) else self._kind(options)

    def files(self, path: Path, options: dict[str, Any]) -> list[Path]:
        """The files that are written where a person gave this one."""
        return [path, weights_beside(path)] if self.kind(options).beside else [path]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value):
            self.fail("it must name a file, but is empty.", param, ctx)
        if str(value) == "-" or _is_standard_output(value):
            return STANDARD_OUTPUT
        return absolute(self, value, param, ctx)


class States(Output):
    """A file for each of several seeds, named by it. These go on from what they hold, and are no answer to replace."""

    def files(self, path: Path, options: dict[str, Any]) -> list[Path]:
        first = options["seed"]
        return [path.with_name(f"{path.name}.{seed}") for seed in range(first, first + options["seeds"])]


class NodeData(Output):
    """A file for each quantity, named by it."""

    def files(self, path: Path, options: dict[str, Any]) -> list[Path]:
        return [path.with_name(f"{path.stem}-{quantity}{path.suffix or '.json'}") for quantity in NODE_QUANTITIES]


@dataclass(frozen=True, slots=True)
class _Written:
    """One file that a command will write.

    option: as a person gives it. goes_on: it is read first, and written by those who find in it what they wrote.
    """

    option: str
    path: Path
    kind: FileKind
    goes_on: bool

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder that is written, and not a file that holds the same."""
        return self.kind.folder and self.path.suffix.lower() not in (".zip", ".safetensors")


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a command.

    forced: a file may be replaced that holds something else. printed: texts for standard output.
    """

    written: tuple[_Written, ...] = ()
    forced: bool = False
    printed: list[str] = field(default_factory=list)


def has_outputs(function: Any) -> bool:
    """Whether a command that is being made has options that name a file to write."""
    return any(isinstance(param.type, Output) for param in getattr(function, "__click_params__", ()))


@contextmanager
def tried(ctx: click.Context, options: dict[str, Any], *, as_json: bool, force: bool) -> Iterator[Outputs]:
    """Try every output of a command, then watch that no input is among them while it works.

    Raises InvalidFile for what must not be written to, UsageError for `-` where it makes no sense.
    """
    given = {param: options[str(param.name)] for param in ctx.command.params if options.get(str(param.name))}
    outputs = Outputs(
        tuple(
            _Written(param.opts[0], file, param.type.kind(options), isinstance(param.type, States))
            for param, value in given.items()
            if isinstance(param.type, Output)
            for file in _files(param, value, options, as_json=as_json)
        ),
        force,
    )
    inputs = {
        _called(param) + (f" ({number + 1})" if number else ""): Path(one).expanduser()
        for param, value in given.items()
        if isinstance(param.type, Input) or param.name == "model"
        for number, one in enumerate(value if param.multiple else (value,))
    }
    if "the model" in inputs:
        files = address_of(str(options["model"])).files
        inputs["the model"] = files.pop("")
        for option, path in files.items():
            inputs[f"the {'folder' if path.is_dir() else 'file'} of {option}"] = path
    if (model := inputs.get("the model")) is not None and model.suffix in (".onnx", ".pt2"):
        inputs["the data of the model"] = model.with_suffix(".npz")
    for number, output in enumerate(outputs.written):
        for name, path in inputs.items():
            if same_file(output.path, path) or (path.is_dir() and _is_below(output.path, path)):
                raise InvalidFile(_refused(output, f"is {name}, which this command reads"))
            if output.is_folder and path.is_dir() and output.path.resolve().is_relative_to(path.resolve()):
                raise InvalidFile(_refused(output, f"lies in {name}, which this command reads"))
            if output.is_folder and path.exists() and path.resolve().is_relative_to(output.path.resolve()):
                raise InvalidFile(_refused(output, f"holds {name}, which this command reads"))
        for other in outputs.written[:number]:
            if same_file(output.path, other.path):
                raise InvalidFile(_refused(output, f"is the file of {other.option}, too"))
        try:
            there = (try_folder if output.is_folder else try_place)(output.path)
        except InvalidFile as error:
            raise InvalidFile(f"{output.option}: {error}") from error
        if there is not None:
            _may_replace(output, there, force=force)
    if any(not output.kind.text for output in outputs.written):
        with scratch():  # where what was written is read back
            pass
    with watched(path for output in outputs.written for path in (output.path, weights_beside(output.path))):
        ctx.meta[_KEY] = outputs
        yield outputs


def check_unread(*data: Callable[[], Any] | None) -> None:
    """Raise InvalidFile where an output of the command that runs has been read by now, as by a model file.

    data: what would read more of the model's files later; it is asked now where --force lets anything be replaced.
    """
    ctx = click.get_current_context(silent=True)
    outputs: Outputs = Outputs() if ctx is None else ctx.meta.get(_KEY, Outputs())
    if outputs.forced and any(output.path.exists() for output in outputs.written):
        for read in data:
            with suppress(LowRankError):  # whoever needs them will say what is wrong with them
                if read is not None:
                    read()
    for output in outputs.written:
        if was_read(output.path):
            raise InvalidFile(_refused(output, "was read when the model was opened"))


def write_text(path: Path, text: str) -> None:
    """Write a text whole to an output of the command that runs, or to standard output at its end."""
    if path == STANDARD_OUTPUT:
        click.get_current_context().meta[_KEY].printed.append(text)
        return
    with whole_or_nothing(path) as temporary, writing(temporary) as file:
        file.write(text.encode())


def say_not_kept() -> None:
    """Say of each folder of ours that could not be written, once, that what is found is in memory alone."""
    said: set[str] = click.get_current_context().meta.setdefault(f"{_KEY}, not kept", set())
    for line in not_kept():
        if line not in said:
            said.add(line)
            click.echo(line, err=True)


def _files(param: click.Parameter, path: Path, options: dict[str, Any], *, as_json: bool) -> list[Path]:
    """The files of an option; none where it goes to standard output. Raises UsageError where that makes no sense."""
    assert isinstance(param.type, Output)
    if path != STANDARD_OUTPUT:
        return param.type.files(path, options)
    option, kind = param.opts[0], param.type.kind(options)
    if not kind.text:
        raise click.UsageError(f"{option} - is standard output, where {kind.name} cannot go; give the name of a file.")
    if as_json:
        raise click.UsageError(f"{option} - and --json both print to standard output; give the name of a file.")
    return []


def _may_replace(output: _Written, there: os.stat_result, *, force: bool) -> None:
    """Raise InvalidFile where a file that is there holds something else than what is written."""
    if output.is_folder:
        if not output.kind(output.path):
            what = f"holds something else than {output.kind.name}"
            raise InvalidFile(_refused(output, what, "move away what is in it, or give another name"))
        return
    is_file = stat.S_ISREG(there.st_mode)
    if is_file and there.st_size and output.kind(output.path):
        return
    what = f"holds something else than {output.kind.name}"
    if output.goes_on:
        raise InvalidFile(_refused(output, f"is there and {what}", "remove it first, or give another name"))
    if not is_file or not there.st_size:
        return
    if not force:
        raise InvalidFile(_refused(output, f"is there and {what}", "--force replaces it, or give another name"))
    if output.path.suffix.lower() in UNHEARD and not output.kind.beside:
        raise InvalidFile(_refused(output, f"{what}, and may be data that the model reads", "remove it first"))


def _refused(output: _Written, why: str, what_to_do: str = "give another name") -> str:
    return f"{output.option}: {output.path} {why}, so it is not overwritten; {what_to_do}."


def _called(param: click.Parameter) -> str:
    return "the model" if param.name == "model" else f"the file of {param.opts[0]}"


def _is_below(path: Path, folder: Path) -> bool:
    """Whether a file that is there lies in a folder that is the model."""
    place, there = check_place(path) if path.is_file() else (path, None)
    return there is not None and place.is_relative_to(folder.resolve())


def _is_standard_output(name: str) -> bool:
    """Whether a name is of the file or pipe that this process prints to, as /dev/stdout is; the null device is not."""
    try:
        here, there, null = os.fstat(1), os.stat(name), os.stat(os.devnull)
    except (OSError, ValueError):
        return False
    return os.path.samestat(here, there) and not os.path.samestat(here, null)
