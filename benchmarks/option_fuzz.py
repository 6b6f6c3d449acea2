"""Option fuzz: every command with every option at the ends of what it takes, alone and in random company.

    python -m benchmarks.option_fuzz [--combinations 2000] [--processes 100] [--seed 0]

Which commands and options there are, and what each takes, is what click knows of them. A line is at fault if it ends in
a traceback, in another status than 0, 1 or 2, in more or less than one line of refusal, in a refusal that names neither
an option nor what was given for it, or in one after a model was opened that is not about that model or its data. First
each value of each option alone, in a line that is right otherwise; then combinations. Outputs are set onto files of
other kinds, onto inputs of the line, and onto what is no file; whatever was there and is none of the files that the
line was asked for must be there, unchanged, and nothing else be new. All of it runs in one process on builtin:iris-mlp,
where writing an artefact is stood in for; the processes are real.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import click
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from benchmarks.page import ROOT, benchmark_parser, run_benchmark
from lowrank_core.commands import cli
from lowrank_core.commands._outputs import Output, States
from lowrank_core.errors import MESSAGE_LETTERS
from lowrank_core.exports import EXPORTS, Compressed, Exported
from lowrank_core.selection import RULES
from lowrank_core.workspace import Workspace

MODEL = "builtin:iris-mlp"

STRANGE = ("", " ", "-", ".", "0", "-1", "inf", "nan", "1e308", str(2**70), "x" * 5_000, "\udce9", "é" * 300, "a\nb")
"""What may be given for anything; halves of characters are what names of files become that are no UTF-8."""

FEW = {"epochs": 2, "seeds": 1, "workers": 1, "threads": 1, "patience": 2}
"""Options whose larger values are right, and take time: no more than this is asked for."""

GOOD: dict[str, tuple[str, ...]] = {
    "model": (MODEL,),
    "plan": ("plan.json",),
    "checkpoint": ("weights.safetensors",),
    "latency_table": ("table.csv",),
    "state": ("state",),
    "names": ("fc1", "fc2"),
    "lock": ("fc1", "fc*"),
    "outputs": ("output", "0"),
    "methods": ("svd", "svd_aware"),
    "method": ("svd",),
    "rule": tuple(RULES),
    "settings": ("keep=0.5",),
    "file": ("new.py",),
    "out": ("out",),
    "csv_file": ("times.csv",),
    "device_file": ("measure.py",),
    "tuned": ("weights.safetensors",),
    "litert_python": ("folder",),
}
"""Values that are right, by the name of the parameter; of others click knows them."""

FILES = ("plan.json", "weights.safetensors", "table.csv", "model.py", "empty", "text", "folder", "missing", "missing/x")
MODELS = (*FILES, "builtin:nope", "builtin:", "package.module", "folder/", "weights.pth")

FULL = "/dev/full"
SPECIAL = ("read-only", "link", "dangling", "ring", "pipe", "directory")
OUTPUTS = (*FILES, *SPECIAL, "link-to-input", "-", os.devnull, FULL, "/dev/stdout", "x" * 300, "\u00e9" * 120)
"""What outputs are set onto; of SPECIAL each is there with the endings of states and model files, too."""

FRESH: dict[Path, bytes] = {}
"""The files of the workplace as they were made."""

ABOUT_MODEL = {"model", "plan", "checkpoint", "tuned", "latency_table", "outputs", "names", "lock", "state", "max_drop"}
ABOUT_MODEL |= {"multiplies", "bytes", "multiple_of", "methods", "method", "augment"}
"""What can be judged only beside a model: its layers, outputs, weights, metric, and files about them."""


@dataclass(frozen=True)
class Line:
    """A command line; lists of (parameter, value) keep what came from where."""

    command: click.Command
    given: tuple[tuple[click.Parameter, str | None], ...]

    @property
    def arguments(self) -> list[str]:
        """The words: options first, what is no option behind `--`, since it may begin with a dash."""
        options, rest = [], []
        for param, value in self.given:
            if isinstance(param, click.Argument):
                rest.append(value or "")
            elif value is None:
                options.append(param.opts[0])
            else:
                options += [param.opts[0], value]
        return [self.command.name or "", *options, *(["--", *rest] if rest else [])]

    @property
    def shown(self) -> str:
        """The line as a report shows it."""
        return " ".join(ascii(word)[1:-1] if len(word) < 40 else f"{ascii(word)[1:30]}..." for word in self.arguments)


@dataclass(frozen=True)
class Ended:
    """How a line ended: exit status, what it printed, whether a model was open by then.

    raised: the traceback. changed: what was lost of other files, or left behind.
    """

    status: int
    out: str
    err: str
    opened: bool
    raised: str = ""
    changed: str = ""


# ---- lines ----------------------------------------------------------------------------------------------------------


def commands() -> list[click.Command]:
    """Every command of the command line."""
    cli.load()
    return [command for _, command in sorted(cli.commands.items())]


def right(param: click.Parameter) -> list[str | None]:
    """Values that the parameter takes."""
    kind = param.type
    if isinstance(param, click.Option) and param.is_flag:
        return [None]
    if param.name in GOOD:
        return [*GOOD[param.name]]
    if isinstance(kind, click.Choice):
        return [*kind.choices]
    if isinstance(kind, click.IntRange | click.FloatRange):
        most = FEW.get(param.name or "", kind.max)
        return [str(end) for end in (kind.min, most) if end is not None] or ["1"]
    numbers: dict[str, list[str | None]] = {"drop": ["0.5", "1%", "0"], "float": ["0.5", "1e-300", "1e308", "40"]}
    return numbers.get(kind.name, ["1"])


def values(param: click.Parameter) -> list[str | None]:
    """Values that the parameter takes, the ends of what it takes, and what nothing takes."""
    found: list[str | None] = right(param)
    if isinstance(param, click.Option) and param.is_flag:
        return found
    kind = param.type
    if isinstance(kind, Output):
        found += OUTPUTS
    if param.name == "file":
        found += [f"{name}.py" for name in OUTPUTS]
    if isinstance(kind, click.IntRange | click.FloatRange):
        ends = [end for end in (kind.min, kind.max) if end is not None]
        found += [str(end + step) for end in ends for step in (-1, 1)]
        most = FEW.get(param.name or "")
        if most is not None:
            found = [
                v for v in found if not (v or "").lstrip("-").isdigit() or int(v or 0) <= most or int(v or 0) > 999
            ]
    if isinstance(kind, click.Path):
        found += FILES
    if param.name == "model":
        found += MODELS
    if param.name == "settings":
        found += ["keep", "=", "keep=", "keep=nan", "nothing=1"]
    if param.name == "dask":
        return ["", "nowhere", "tcp://"]  # others take ten seconds to find nobody
    return [*dict.fromkeys([*found, *STRANGE])]


def plain_line(command: click.Command) -> Line:
    """The shortest line that is right."""
    given = [(param, right(param)[0]) for param in command.params if param.required or param.name in ("model", "file")]
    if command.name == "adapter":
        given = [(param, "adapter.safetensors" if param.name == "model" else value) for param, value in given]
    options = {param.name: param for param in command.params}
    by_command: dict[str, list[tuple[str, str | None]]] = {
        "search": [("multiplies", "0.5")],
        "finetune": [("plan", "plan.json"), ("epochs", "1")],
        "latency": [("plan", "plan.json"), ("runtime", "torch")],
        "export": [("dense", None)],
    }
    for name, value in by_command.get(command.name or "", [("plan", "plan.json")]):
        if name in options and not any(param is options[name] for param, _ in given):
            given.append((options[name], value))
    return Line(command, tuple(given))


def single_faults() -> Iterator[tuple[click.Parameter, Line]]:
    """Each value of each parameter in a line that is right otherwise."""
    for command in commands():
        plain = plain_line(command)
        for param in command.params:
            others = tuple(pair for pair in plain.given if pair[0] is not param)
            for value in values(param):
                yield param, replace(plain, given=(*others, (param, value)))


@st.composite
def lines(draw: st.DrawFn) -> Line:
    """A command with some of its parameters, each with a right value more often than another."""
    command = draw(st.sampled_from(commands()))
    plain = dict(plain_line(command).given)
    given: list[tuple[click.Parameter, str | None]] = []
    for param in command.params:
        if param not in plain and draw(st.integers(0, 3)):
            continue
        for _ in range(draw(st.integers(1, 2)) if getattr(param, "multiple", False) else 1):
            chosen = right(param) if draw(st.integers(0, 4)) else values(param)
            given.append((param, draw(st.sampled_from(chosen))))
    return Line(command, tuple(given))


# ---- running them ---------------------------------------------------------------------------------------------------


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder with the files that lines name, as the current one; nothing outside it is written."""
    with tempfile.TemporaryDirectory(prefix="option-fuzz-") as folder, chdir(folder):
        here = Path(folder)
        workspace = Workspace.open(MODEL)
        fingerprint = workspace.profile.fingerprint
        plan = {"format": "lowrank-plan", "version": 1, "model": {"fingerprint": fingerprint}}
        Path("plan.json").write_text(json.dumps({**plan, "layers": {"fc2": {"method": "svd", "rank": [1]}}}))
        save_file({n: t.clone() for n, t in workspace.model.state_dict().items()}, "weights.safetensors")
        torch.save(workspace.model.state_dict(), "weights.pth")
        sides = {"fc1.lora_down.weight": torch.ones(2, 4), "fc1.lora_up.weight": torch.ones(10, 2)}
        save_file({**sides, "fc1.alpha": torch.tensor(2.0)}, "adapter.safetensors")
        Path("table.csv").write_text("layer,method,rank,microseconds\nfc1,dense,,9\nfc1,svd,1,5\nfc2,dense,,9\n")
        Path("model.py").write_text("x = 1\n")
        Path("empty").touch()
        Path("text").write_text("words\n")
        Path("folder").mkdir()
        FRESH.update({path: path.read_bytes() for path in Path().iterdir() if path.is_file()})
        with draining(stand(here)):
            yield here


def stand(folder: Path) -> list[Path]:
    """Let everything stand in a folder as a line finds it, and nothing else; the pipes among it."""
    pipes = [folder / f"pipe{ending}" for ending in ("", ".0", ".py")]
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path not in pipes:  # somebody reads them
            path.unlink()
    for name, content in FRESH.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    (folder / "link-to-input").symlink_to("plan.json")
    for ending in ("", ".0", ".py"):
        (folder / f"read-only{ending}").touch(0o444)
        (folder / f"link{ending}").symlink_to("text")
        (folder / f"dangling{ending}").symlink_to(f"new{ending}")
        (folder / f"ring{ending}").symlink_to(f"ring{ending}")
        (folder / f"directory{ending}").mkdir()
        if not (folder / f"pipe{ending}").exists():
            os.mkfifo(folder / f"pipe{ending}")
    return pipes


@contextmanager
def draining(pipes: list[Path]) -> Iterator[None]:
    """Read whatever is written to pipes, so that nobody waits for a reader."""
    over = threading.Event()

    def drain(end: int) -> None:
        while not over.is_set():
            os.read(end, 2**16)
        os.close(end)

    ends = [os.open(path, os.O_RDWR) for path in pipes]
    for end in ends:
        threading.Thread(target=drain, args=(end,), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        for end in ends:
            os.write(end, b"over")


def seen(folder: Path) -> dict[str, tuple[object, ...]]:
    """What lies in a folder: type, mode, and what a file holds or a link points to; not what Python compiled."""
    found: dict[str, tuple[object, ...]] = {}
    for path in folder.rglob("*"):
        if "__pycache__" in path.parts:
            continue
        mode = path.lstat().st_mode
        inside = path.read_bytes() if stat.S_ISREG(mode) else os.readlink(path) if stat.S_ISLNK(mode) else b""
        found[str(path.relative_to(folder))] = (mode, inside)
    return found


def changed(line: Line, ended: Ended, folder: Path, before: dict[str, tuple[object, ...]]) -> str:
    """What a line has lost or left behind of files that it was not asked for, of any where it refused; "" for none."""
    after, asked = seen(folder), set()
    for param, value in line.given:
        if value and (isinstance(param.type, Output) or param.name in ("file", "log")) and ended.status == 0:
            endings = [f".{seed}" for seed in range(100)] if isinstance(param.type, States) else [""]
            asked |= {os.path.relpath(os.path.realpath(folder / f"{value}{end}"), folder.resolve()) for end in endings}
    lost = [name for name, old in before.items() if after.get(name) != old and name not in asked]
    left = [name for name in after if name not in before and name not in asked]
    return "; ".join(
        f"{what} {', '.join(map(ascii, names))}" for what, names in (("lost", lost), ("left behind", left)) if names
    )


@contextmanager
def stood_in() -> Iterator[list[int]]:
    """Artefacts are not written and no server starts; the number of models that were opened, in a list."""
    opened = [0]
    begin = Workspace.__init__

    def counted(self: Workspace, *args: Any, **named: Any) -> None:
        begin(self, *args, **named)
        opened[0] += 1

    def write(workspace: Workspace, compressed: Compressed, out: Path) -> Exported:
        return Exported(str(out), 0, 0.0, compressed.score)

    with ExitStack() as stack:
        stack.enter_context(patch.object(Workspace, "__init__", counted))
        stack.enter_context(patch("runpy.run_module"))
        for name, export in list(EXPORTS.items()):
            stack.enter_context(patch.dict(EXPORTS, {name: replace(export, write=write)}))
        yield opened


def invoked(line: Line, opened: list[int]) -> Ended:
    """Run a line in this process."""
    opened[0], argv, here = 0, sys.argv, Path.cwd()
    stand(here)
    before = seen(here)
    arguments = [*line.arguments[:1], *(["--no-cache"] * _caches(line)), *line.arguments[1:]]
    result = CliRunner().invoke(cli, arguments)
    sys.argv = argv
    raised = "" if result.exception is None or isinstance(result.exception, SystemExit) else repr(result.exception)
    ended = Ended(result.exit_code, result.stdout, result.stderr, bool(opened[0]), raised)
    return replace(ended, changed=changed(line, ended, here, before))


def _caches(line: Line) -> bool:
    return any(param.name == "cached" for param in line.command.params)


def processed(line: Line) -> Ended:
    """Run a line as a process of its own, in a copy of the workplace."""
    with tempfile.TemporaryDirectory(prefix="option-fuzz-") as folder:
        with draining(stand(Path(folder))):
            before = seen(Path(folder))
            ended = _processed(line, Path(folder))
        return replace(ended, changed=changed(line, ended, Path(folder), before))


def _processed(line: Line, folder: Path) -> Ended:
    arguments = [*line.arguments[:1], *(["--no-cache"] * _caches(line)), *line.arguments[1:]]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "lowrank_core", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, env=surroundings, check=False, timeout=600)
    out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
    raised = err.strip().splitlines()[-1] if "Traceback (most recent call last)" in err else ""
    return Ended(done.returncode, out, err, False, raised)


def fault(line: Line, ended: Ended) -> str | None:
    """What is wrong with how a line ended; None where nothing is."""
    if ended.raised:
        return f"traceback: {ended.raised[:200]}"
    if ended.status not in (0, 1, 2):
        return f"status {ended.status}"
    if ended.changed:
        return ended.changed
    as_json = "--json" in line.arguments
    if ended.status == 0:
        return None if not as_json or _is_object(ended.out) else "no JSON object"
    refusals = [text for text in ended.err.splitlines() if text.startswith("Error: ")]
    if len(refusals) != 1:
        return f"{len(refusals)} lines of refusal"
    if len(refusals[0]) > MESSAGE_LETTERS + 100:
        return f"a refusal of {len(refusals[0]):,} letters"
    if ended.status == 2 and ended.opened:
        return f"wrong usage, said after a model was opened: {refusals[0][:200]}"
    if not _names(line, refusals[0]):
        return f"names nothing that was given: {refusals[0][:200]}"
    return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _names(line: Line, refusal: str) -> bool:
    """Whether a refusal names a parameter of the command, or what was given for one."""
    words = [
        name
        for param in line.command.params
        for name in (*param.opts, *param.secondary_opts, param.human_readable_name)
    ]
    given = [value.strip()[:40] for _, value in line.given if value]
    escaped = [part for _, value in line.given if value for part in (ascii(value)[1:-1][:40], repr(value))]
    escaped += [repr(value) for _, value in line.given if value == ""]
    return any(word and word in refusal for word in (*words, *given, *escaped, "iris-mlp"))


def late(param: click.Parameter, ended: Ended) -> str | None:
    """Whether one wrong value was refused only after a model was opened, though it is not about a model."""
    if ended.status and ended.opened and param.name not in ABOUT_MODEL and FULL not in ended.err:  # only writing tells
        return f"{param.opts[0]} refused after a model was opened"
    return None


# ---- the report -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--combinations", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    faults: Counter[str] = Counter()
    shown: dict[str, str] = {}
    print("| lines | tried | done | refused | wrong usage | at fault | seconds |\n|---|---|---|---|---|---|---|")

    def tell(name: str, ends: list[tuple[Line, Ended, str | None]], began: float) -> None:
        by_status = Counter(ended.status for _, ended, _ in ends)
        wrong = [(line, what) for line, _, what in ends if what]
        for line, what in wrong:
            faults[what] += 1
            shown.setdefault(what, line.shown)
        counts = " | ".join(f"{by_status[status]:,}" for status in (0, 1, 2))
        print(f"| {name} | {len(ends):,} | {counts} | {len(wrong)} | {time.monotonic() - began:.0f} |", flush=True)

    with workplace():
        with stood_in() as opened:
            began, ends = time.monotonic(), []
            for param, line in single_faults():
                ended = invoked(line, opened)
                ends.append((line, ended, fault(line, ended) or late(param, ended)))
            tell("one value alone", ends, began)
            began, drawn = time.monotonic(), []

            @seed(wanted.seed)
            @settings(
                max_examples=max(1, wanted.combinations),
                phases=[Phase.generate],
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(lines())
            def attempt(line: Line) -> None:
                ended = invoked(line, opened)
                drawn.append((line, ended, fault(line, ended)))

            if wanted.combinations:
                attempt()
            tell("combinations, in one process", drawn, began)
        began = time.monotonic()
        chosen = [line for line, _, _ in Random(wanted.seed).sample(drawn, min(wanted.processes, len(drawn)))]
        chosen = [line for line in chosen if line.command.name != "app"]
        with ThreadPoolExecutor(2) as pool:
            ends = [
                (line, ended, fault(line, ended))
                for line, ended in zip(chosen, pool.map(processed, chosen), strict=True)
            ]
        tell("the same as processes", ends, began)
    if faults:
        print("\n| fault | times | first line |\n|---|---|---|")
        for what, times in faults.most_common():
            print(f"| {what} | {times} | `{shown[what]}` |")
    sys.exit(bool(faults))


if __name__ == "__main__":
    run_benchmark(main)
