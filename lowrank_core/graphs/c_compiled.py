"""A header of `graphs.c_source`, compiled by the C compiler of this machine: run, and measured."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidFile, MissingExtra
from lowrank_core.graphs.alone import Place, Places, at_a_time
from lowrank_core.graphs.c_source import about_in
from lowrank_core.store.files import scratch, write_whole

COMPILERS = ("cc", "gcc", "clang")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
LIMIT_SECONDS = 300.0
CODE, CONSTANTS, DATA, ZEROED = (".text",), (".rodata",), (".data",), (".bss",)
"""Beginnings of the sections of an object file: code, what is constant, what is set at the start, what is zeroed."""


@dataclass(frozen=True, slots=True)
class CompiledSize:
    """Bytes of a compiled object by section, as `size` counts them; compiler: what made it, for which processor.

    stack_bytes: what a call takes of the stack, at most: the frames of all functions, of which none calls itself, but
    for those of math.h. None where the compiler does not say.
    """

    text: int
    rodata: int
    data: int
    bss: int
    compiler: str
    stack_bytes: int | None = None

    @property
    def flash_bytes(self) -> int:
        """What stays when the power is off: code, constants, and what data begin with."""
        return self.text + self.rodata + self.data

    @property
    def ram_bytes(self) -> int:
        """What the object itself takes in RAM; inputs, outputs and the stack are the caller's."""
        return self.data + self.bss


def compiler() -> str:
    """The C compiler of this machine; raises MissingExtra where there is none."""
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise MissingExtra(
            f"plain C is checked by compiling it, and this machine has no C compiler ({', '.join(COMPILERS)}): nothing "
            "was written; install one (Debian: apt-get install gcc; macOS: xcode-select --install)."
        )
    return found


def compiled(header: Path, folder: Path, *, options: Sequence[str], out: str, command: str = "") -> Path:
    """A shared library or object of a header, in a folder; raises InvalidFile with the compiler's first complaint."""
    command = command or compiler()
    prefix = str(about_in(header.read_text(encoding="utf-8"))["prefix"])
    made = folder / out
    write_whole(folder / "network.c", f'#define {prefix.upper()}_IMPLEMENTATION\n#include "{prefix}.h"\n'.encode())
    write_whole(folder / f"{prefix}.h", header.read_bytes())
    asked = [command, *STRICT, *options, "-o", out, "network.c"]
    try:
        done = subprocess.run(
            [*asked, *(["-lm"] if "-shared" in options else [])],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InvalidFile(f"the C compiler was not done after {LIMIT_SECONDS:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise InvalidFile(f"the C compiler refuses it: {lines[0][:200]}")
    return made


def size_of(
    header: Path, *, command: str = "", options: Sequence[str] = ("-Os",), size: str = ""
) -> CompiledSize | None:
    """What the compiled object takes; None where this machine has no `size` that says it section by section.

    command, options, size: those of another processor, as of arm-none-eabi-gcc; by default of this machine.
    """
    command, size = command or compiler(), size or (shutil.which("size") or "")
    if not size:
        return None
    with scratch() as folder:
        made, stack = _object(header, folder, options=(*options, "-c"), command=command)
        told = subprocess.run([size, "-A", str(made)], capture_output=True, text=True, errors="replace", check=False)
        machine = subprocess.run([command, "-dumpmachine"], capture_output=True, text=True, check=False).stdout.strip()
    if told.returncode:
        return None
    sections = [line.split() for line in told.stdout.splitlines()]
    found = {row[0]: int(row[1]) for row in sections if len(row) == 3 and row[0][0] == "." and row[1].isdecimal()}

    def total(names: tuple[str, ...]) -> int:
        return sum(size for name, size in found.items() if name.startswith(names))

    constant = {name for name in found if name.startswith((".rodata", ".data.rel.ro"))}
    data = sum(size for name, size in found.items() if name.startswith(DATA) and name not in constant)
    return CompiledSize(
        total(CODE),
        sum(found[name] for name in constant),
        data,
        total(ZEROED),
        f"{Path(command).name} {' '.join(options)} for {machine}",
        stack,
    )


def _object(header: Path, folder: Path, *, options: Sequence[str], command: str) -> tuple[Path, int | None]:
    """The object of a header, and the bytes of its stack where the compiler tells those of each function."""
    try:
        made = compiled(header, folder, options=(*options, "-fstack-usage"), out="network.o", command=command)
    except InvalidFile:  # it knows no such option, or refuses the header
        return compiled(header, folder, options=options, out="network.o", command=command), None
    told = made.with_suffix(".su")
    frames = [line.split("\t") for line in told.read_text().splitlines()] if told.is_file() else []
    if not frames or any(len(frame) != 3 or frame[2] == "dynamic" for frame in frames):
        return made, None
    return made, sum(int(frame[1]) for frame in frames)


class CNetwork(nn.Module):
    """A header, compiled for this machine and called as the network was that it was made from."""

    def __init__(self, header: Path) -> None:
        super().__init__()
        about = about_in(header.read_text(encoding="utf-8"))
        with scratch() as folder:
            library = ctypes.CDLL(str(compiled(header, folder, options=("-O3", "-shared", "-fPIC"), out="network.so")))
        self._run: Any = library[f"{about['prefix']}_run"]
        self._run.restype = None
        self._taken, self._given = about["inputs"], about["outputs"]
        self.output_names = tuple(port["name"] for port in self._given)
        self._places = Places(
            tuple(Place(port["axis"]) for port in self._taken), tuple(port["axis"] for port in self._given)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> CNetwork:
        """Itself: between two calls it keeps nothing that is read."""
        return self

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        """All outputs, each sample by a call of its own."""
        inputs = list(args) or [kwargs[port["name"]] for port in self._taken]
        return at_a_time(self._one, inputs, self._places)

    def _one(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        types = [torch.int32 if port["integer"] else torch.float32 for port in self._taken]
        flat = [x.detach().to(kind).contiguous() for x, kind in zip(inputs, types, strict=True)]
        for x, port in zip(flat, self._taken, strict=True):
            if list(x.shape) != port["shape"]:
                raise InvalidFile(f"input {port['name']} must be {port['shape']}, but is {list(x.shape)}")
        outputs = [torch.empty(port["shape"]) for port in self._given]
        self._run(*(ctypes.c_void_p(x.data_ptr()) for x in (*flat, *outputs)))
        return tuple(outputs)
