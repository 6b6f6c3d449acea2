"""Nothing of the user's is lost: every output of every command, set onto every kind of input and special file.

    python -m benchmarks.nothing_lost                  # outputs times what stands in their place
    python -m benchmarks.nothing_lost --part kills     # kill -9 with the cache, without, and on a disk that fills

Outputs are found in the commands themselves: every option that names a file to write. Each is set onto the inputs of
its run (under their names, through links, and with --force), onto files of other kinds, onto what is no file, onto
names and folders that cannot be written, and onto what may be written. Before and after each run all that lies in its
folder is looked at: type, mode, inode, what a link points to, content. Lost is whatever changed but the one file that
was asked for; left behind is whatever is new but that file. A refusal must be one line that names the option, and all
that does not depend on what a model file reads is refused before the model is opened.

With `--part kills` SIGKILL comes at moments drawn uniformly over the time that an undisturbed run takes (as in
benchmarks.kills); a run that was over before, as on a disk that was full, is made again with a moment drawn over the
time that it took. Then every file that was there must be there and whole: the older file at the final name or the new
one, whole; files beside it; every entry and line of the cache.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from benchmarks import kills
from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.commands import _opening, cli
from lowrank_core.commands._outputs import Output
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.workspace import Workspace

MODEL = '''"""A network that reads its weights from one file, its data from another, and imports a neighbour."""

from pathlib import Path

import numpy
import torch
from neighbour import LAYERS
from safetensors.torch import load_file
from torch import nn

HERE = Path(__file__).parent
(HERE / "opened").touch()


def build_model():
    model = nn.Sequential(*LAYERS)
    model.load_state_dict(load_file(HERE / "weights.safetensors"))
    return model.eval()


def example_inputs():
    return (torch.zeros(1, 8),)


def eval_data():
    data = numpy.load(HERE / "data.npz")
    return torch.from_numpy(data["x"]), torch.from_numpy(data["y"])


def train_data():
    return torch.from_numpy(numpy.load(HERE / "train.npz")["x"])
'''
NEIGHBOUR = "from torch import nn\n\nLAYERS = nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)\n"

COMMANDS = {
    ("search", "--out"): ("search model.py --multiplies 0.8 --no-correct --samples 20 --latency-table table.csv",),
    ("search", "--front"): ("search model.py --multiplies 0.8 --no-correct --samples 20 --out front-plan.json",),
    ("profile", "--out"): ("profile model.py --samples 20",),
    ("latency", "--table"): ("latency model.py --method svd --runtime torch",),
    ("apply", "--out"): ("apply model.py --plan plan.json --no-correct",),
    ("export", "--out"): (
        "export model.py --checkpoint checkpoint.safetensors --format pt2",
        "export model.py --plan plan.json --no-correct --format onnx",
        "export model.py --plan plan.json --no-correct --format bundle",
    ),
    ("finetune", "--out"): ("finetune model.py --plan plan.json --no-correct --epochs 1",),
    ("finetune", "--state"): ("finetune model.py --plan plan.json --no-correct --epochs 1 --out tuned",),
}
"""How each option that writes is tried, with the least work; a new one must be added here."""

ELSEWHERE = {
    *(("report", "--out"), ("export", "--node-data"), ("search", "--optuna"), ("adapter", "--out")),
    *(("latency", "--device-file"), ("compress", "--out")),
}
"""Options that take names of one ending alone, so that most places are wrong usage: tests of their own try them."""


def options_that_write() -> set[tuple[str, str]]:
    """(command, option) of every option that names a file to write."""
    cli.load()
    return {
        (name, param.opts[0])
        for name, command in cli.commands.items()
        for param in command.params
        if isinstance(param, click.Option) and isinstance(param.type, Output)
    }


# ---- what stands where something is to be written --------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What an output is set onto. make(folder): what stands there, and its name.

    may: "refused" before the model is opened, "late" after, "written" or "through" (it stays what it was), or "usage".
    root: what only root can make, and is skipped elsewhere.
    """

    name: str
    make: Callable[[Path], str]
    may: str
    root: bool = False
    force: bool = False


def named(name: str) -> Callable[[Path], str]:
    """Something that is there already, or nothing."""
    return lambda folder: name


def linked(name: str, *, hard: bool) -> Callable[[Path], str]:
    """A link to something that is there already."""

    def make(folder: Path) -> str:
        if hard:
            (folder / "link").hardlink_to(folder / name)
        else:
            (folder / "link").symlink_to(name)
        return "link"

    return make


def holding(content: bytes, mode: int = 0o644) -> Callable[[Path], str]:
    """A file."""

    def make(folder: Path) -> str:
        path = folder / "there"
        path.write_bytes(content)
        path.chmod(mode)
        return "there"

    return make


def node(kind: int, major: int, minor: int) -> Callable[[Path], str]:
    """A device."""

    def make(folder: Path) -> str:
        os.mknod(folder / "node", kind | 0o666, os.makedev(major, minor))
        return "node"

    return make


def pipe(folder: Path) -> str:
    """A pipe that somebody reads to its end."""
    os.mkfifo(folder / "pipe")

    def read() -> None:
        with suppress(OSError):
            (folder / "pipe").read_bytes()

    threading.Thread(target=read, daemon=True).start()
    return "pipe"


def sock(folder: Path) -> str:
    """A socket of a server."""
    here = os.getcwd()
    os.chdir(folder)  # the address must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
    finally:
        os.chdir(here)
    return "socket"


def mounted(options: str) -> Callable[[Path], str]:
    """A file in a disk of its own."""

    def make(folder: Path) -> str:
        (folder / "disk").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder / "disk")]
        subprocess.run(mount, check=True)
        if options == "full":
            with suppress(OSError), (folder / "disk" / "filling").open("wb") as file:
                file.write(bytes(2**17))
        else:
            subprocess.run(["mount", "-o", f"remount,{options}", str(folder / "disk")], check=True)
        return "disk/new"

    return make


def symlink(to: str) -> Callable[[Path], str]:
    """A symbolic link to a name, whether something is there or not."""

    def make(folder: Path) -> str:
        (folder / "link").symlink_to(to)
        return "link"

    return make


def subfolder(folder: Path) -> str:
    """A folder with something in it."""
    (folder / "folder").mkdir()
    (folder / "folder" / "inside").write_text("mine")
    return "folder"


INPUTS = ("model.py", "neighbour.py", "weights.safetensors", "data.npz", "plan.json", "checkpoint.safetensors")
PLACES = (
    *(Place(name, named(name), "refused") for name in (*INPUTS, "table.csv", "train.npz")),
    Place("model.py, hard link", linked("model.py", hard=True), "refused"),
    Place("model.py, symbolic link", linked("model.py", hard=False), "refused"),
    *(Place(f"{name}, --force", named(name), "late", force=True) for name in INPUTS[2:4]),
    Place("train.npz, --force", named("train.npz"), "late", force=True),
    Place("weights, hard link, --force", linked("weights.safetensors", hard=True), "late", force=True),
    Place("neighbour.py, --force", named("neighbour.py"), "late", force=True),
    Place("model.py, --force", named("model.py"), "refused", force=True),
    Place("a text", holding(b"my notes\n"), "refused"),
    Place("JSON of something else", holding(b'{"layers": {}, "mine": 1}'), "refused"),
    Place("an archive of something else", holding(b"PK\5\6" + bytes(18)), "refused"),
    Place("mode 444, empty", holding(b"", 0o444), "refused"),
    Place("a folder", subfolder, "refused"),
    Place("a missing folder", named("missing/new"), "refused"),
    Place("a file taken for a folder", named("model.py/new"), "refused"),
    Place("links in a ring", symlink("link"), "refused"),
    Place("a link into a missing folder", symlink("missing/new"), "refused"),
    Place("a socket", sock, "refused"),
    Place("a disk (block device)", node(stat.S_IFBLK, 7, 250), "refused", root=True),
    Place("a full disk", mounted("full"), "refused", root=True),
    Place("a read-only disk", mounted("ro"), "refused", root=True),
    Place("a name of 256 bytes", named("x" * 256), "refused"),
    Place("a name of 128 letters of two bytes", named("ß" * 128), "refused"),
    Place("an empty name", named(""), "usage"),
    Place("a text, --force", holding(b"my notes\n"), "written", force=True),
    Place("nothing", named("new"), "written"),
    Place("an empty file", holding(b""), "written"),
    Place("a dangling link", symlink("new"), "written"),
    Place("a name of 255 bytes", named("x" * 255), "written"),
    Place("a name of 120 letters of two bytes", named("ß" * 120), "written"),
    Place("a null device", node(stat.S_IFCHR, 1, 3), "through", root=True),
    Place("a pipe", pipe, "through"),
)


def workplace_in(folder: Path) -> None:
    """The inputs of every command."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    (folder / "model.py").write_text(MODEL)
    (folder / "neighbour.py").write_text(NEIGHBOUR)
    save_file(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)).state_dict(), folder / "weights.safetensors")
    x = generator.standard_normal((60, 8), dtype=np.float32)
    np.savez(folder / "data.npz", x=x[:30], y=generator.integers(0, 3, 30))
    np.savez(folder / "train.npz", x=x[30:])
    (folder / "table.csv").write_text("layer,method,rank,microseconds\n0,dense,,9\n0,svd,2,3\n2,dense,,9\n2,svd,1,3\n")
    fingerprint = Workspace.open(str(folder / "model.py")).profile.fingerprint
    (folder / "plan.json").write_text(RankPlan.of(fingerprint, {"0": Choice("svd", (2,))}).to_json())
    words = f"apply {folder}/model.py --plan {folder}/plan.json --no-correct --out {folder}/checkpoint.safetensors"
    made = CliRunner().invoke(cli, words.split())
    assert made.exit_code == 0, made.output
    (folder / "opened").unlink()


def seen(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that lies below a folder: type, mode, inode, and what a file holds or a link points to."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        inside: object = None
        if stat.S_ISREG(about.st_mode):
            inside = path.read_bytes()
        elif stat.S_ISLNK(about.st_mode):
            inside = os.readlink(path)
        found[str(path.relative_to(folder))] = (about.st_mode, about.st_ino, inside)
    return found


@dataclass
class Result:
    """What a run came to: what it did, in a word, and what is wrong with that."""

    did: str
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    left: int = 0


def tried(folder: Path, command: str, option: str, place: Place) -> Result:
    """Set the option onto a place, run the command, and look at all that lies there before and after."""
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    given = place.make(folder)
    target = given
    if option == "--state" and given:  # states are named by their seeds
        given = given[: -1 if given[-1] == "ß" else -2] if len(given) > 100 else given
        target = f"{given}.0"
        stand_as(folder, given, target)
    before, opened = seen(folder), folder / "opened"
    here = os.getcwd()
    os.chdir(folder)
    try:
        words = [*command.split(), option, given, *(["--force"] if place.force else [])]
        ran = CliRunner().invoke(cli, words)
    finally:
        os.chdir(here)
    late = opened.exists()
    opened.unlink(missing_ok=True)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    result = judged(folder, before, target, option, place, ran.exit_code, ran.stderr, late=late)
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        result.wrong.append(f"a traceback: {ran.exception!r}")
    return result


def stand_as(folder: Path, given: str, target: str) -> None:
    """Let what stands at one name stand at another; an input at both."""
    if given in (*INPUTS, "table.csv", "train.npz"):
        (folder / target).hardlink_to(folder / given)
    elif os.path.lexists(folder / given):
        ring = os.path.islink(folder / given) and os.readlink(folder / given) == given
        (folder / given).rename(folder / target)
        if ring:
            (folder / target).unlink()
            (folder / target).symlink_to(target)


def judged(
    folder: Path, before: dict[str, tuple[object, ...]], target: str, option: str, place: Place, status: int, said: str,
    *, late: bool,
) -> Result:  # fmt: skip
    """Hold what lies there now against what lay there before."""
    after = seen(folder)
    did = {0: "written", 2: "usage"}.get(status, "late" if late else "refused")
    wrong = []
    end = os.path.relpath(os.path.realpath(folder / target), folder.resolve()) if target else ""
    asked = {end, "tuned", *(f"{target}.{seed}" for seed in range(1))} if status == 0 else {"tuned"}
    lost = [name for name, old in before.items() if after.get(name) != old and not (name == end and did == "written")]
    left = [name for name in after if name not in before and name not in asked]
    if place.may == "through" and did == "written" and before[target][:2] == after.get(target, ())[:2]:
        did = "through"
    if did == "written" and end not in after:
        wrong.append("there is no file")
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    if status and (len(errors) != 1 or option not in errors[0] or said.rstrip().splitlines()[-1] != errors[0]):
        wrong.append(f"the refusal is not one line that names {option}: {said[-300:]}")
    (folder / "tuned").unlink(missing_ok=True)
    return Result(did, wrong, len(lost), len(left))


@contextmanager
def copy_of(template: Path) -> Iterator[Path]:
    """A copy of the inputs, on a path that is removed again with what was mounted there."""
    folder = Path(tempfile.mkdtemp(prefix="nothing-lost-"))
    shutil.copytree(template, folder, dirs_exist_ok=True)
    try:
        yield folder
    finally:
        if (folder / "disk").is_mount():
            subprocess.run(["umount", str(folder / "disk")], check=True)
        shutil.rmtree(folder)


def may(place: Place, command: str, option: str) -> set[str]:
    """What is right: a file that this very run does not read is none of its inputs."""
    read = place.make is not None and place.name.partition(",")[0]
    if place.name in ("table.csv", "plan.json", "checkpoint.safetensors", "train.npz") and read not in command:
        same_kind = {("latency", "table.csv"), ("search", "plan.json"), ("apply", "checkpoint.safetensors")}
        same_kind |= {("finetune", "checkpoint.safetensors")}
        written = (command.split()[0], place.name) in same_kind and option != "--state"
        return {"written"} if written else {"refused"}
    if option == "--state" and (place.force or place.name in ("an empty file", "a null device", "a pipe")):
        return {"refused"}  # it goes on from what it finds
    return {place.may}


def table(template: Path, onto: tuple[str, ...] = (), of: tuple[str, ...] = ()) -> tuple[int, int, int]:
    """Print a line for each place; (wrong, lost, left behind). onto: kinds of places; of: commands; () for all."""
    assert options_that_write() == {*COMMANDS, *ELSEWHERE}, "an option that writes is not tried here"
    root = os.geteuid() == 0
    cells = [
        (option, command)
        for (name, option), commands in COMMANDS.items()
        for command in commands
        if not of or name in of
    ]
    titles = [f"{c.split()[0]} {c.split()[-1] if c.startswith('export') else o}" for o, c in cells]
    print(f"| set onto | {' | '.join(titles)} |")
    print("|---" * (1 + len(cells)) + "|", flush=True)
    wrong = lost = left = runs = skipped = 0
    for place in PLACES:
        if onto and place.may not in onto:
            continue
        if place.root and not root:
            skipped += 1
            continue
        row = []
        for option, command in cells:
            with copy_of(template) as folder:
                result = tried(folder, command, option, place)
            if result.did not in may(place, command, option):
                result.wrong.append(f"{result.did}, and must be {may(place, command, option)}")
            if result.wrong or result.lost or result.left:
                print(f"{place.name}, {command}: {result}", file=sys.stderr, flush=True)
            runs, wrong, lost, left = runs + 1, wrong + bool(result.wrong), lost + result.lost, left + result.left
            row.append(WORDS[result.did])
        print(f"| {place.name} | {' | '.join(row)} |", flush=True)
    if skipped:
        print(f"{skipped} kinds of places were skipped, which only root can make")
    print("refused: before the model was opened; refused late: after, by what its file had read")
    print(f"{runs} runs: {lost} lost, {left} left behind, {wrong} wrong")
    return wrong, lost, left


WORDS = {
    "refused": "refused",
    "late": "refused late",
    "usage": "wrong usage",
    "written": "written",
    "through": "written through",
}


# ---- kills ----------------------------------------------------------------------------------------------------------

SMALL = "builtin:iris-mlp"
EXPORT = ("export", SMALL, "--plan", "{plan}", "--out", "{out}", "--json", "--format")
KILLED = (
    kills.Kind("spectra", ("spectra", SMALL, "--json")),
    kills.Kind("evaluate", ("evaluate", SMALL, "--plan", "{plan}", "--json")),
    kills.Kind("profile", ("profile", SMALL, "--out", "{out}", "--json")),
    kills.Kind("search", ("search", SMALL, "--multiplies", "0.5", "--set", "refine=4", "--out", "{out}", "--json")),
    kills.Kind("latency", ("latency", SMALL, "--method", "svd", "--table", "{out}", "--json")),
    kills.Kind("fine-tune", ("finetune", SMALL, "--plan", "{plan}", "--epochs", "9", "--out", "{out}", "--json")),
    kills.Kind("apply", ("apply", SMALL, "--plan", "{plan}", "--out", "{out}", "--json")),
    kills.Kind("export pt2", (*EXPORT, "pt2")),
    kills.Kind("export onnx", (*EXPORT, "onnx")),
    kills.Kind("export bundle", (*EXPORT, "bundle")),
)
"""Every command that writes a file, or keeps in the cache what takes time; on the smallest network, for what takes the
time is not its size."""

DISKS = ("with the cache", "without", "on a disk that fills")
LEAST = 2
"""Kills of each command on each disk; of the rest the more go to one, the less time it takes."""

BYSTANDERS = {"notes.txt": b"mine\n" * 100, "written.bak": bytes(range(256)) * 16}


@contextmanager
def disk_of(folder: Path, size: int | None) -> Iterator[Path]:
    """A folder, on a disk of its own of so many kB."""
    folder.mkdir()
    if size is not None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        if size is not None:
            # lazily: a process that the killed one had started may be on its way out
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def killed_once(
    folder: Path, kind: kills.Kind, plan: Path, whole: kills.Undisturbed, older: bytes, moment: float
) -> tuple[list[str], float | None]:
    """Kill a run at a moment; what is wrong with the files then, and how long it took where it was over before."""
    out = folder / "out" / "written"
    out.parent.mkdir()
    out.write_bytes(older)
    for name, content in BYSTANDERS.items():
        (out.parent / name).write_bytes(content)
    process, _ = kills.begun(folder, kind, plan, "journal")
    began = time.monotonic()
    process.join(moment)
    process.kill()
    process.join()
    over = process.exitcode != -signal.SIGKILL
    seconds = time.monotonic() - began
    kills.wait_for_children(folder)
    wrong = list(kills.differences(kills.disk(folder / "cache"), whole.disk))
    if not out.exists():
        wrong.append("the older file is gone")
    elif out.read_bytes() != older and not is_whole(kind, out, whole):
        wrong.append("the file at the final name is neither the older one nor the whole one")
    wrong += [n for n, content in BYSTANDERS.items() if (out.parent / n).read_bytes() != content]
    if over:
        wrong += [f"left behind: {path.name}" for path in out.parent.glob(".*")]
    if over and process.exitcode and not folder.is_mount():
        wrong.append(f"it failed: {(folder / 'log').read_text(errors='replace')[-300:]}")
    if over and process.exitcode and "Traceback" in (folder / "log").read_text(errors="replace"):
        wrong.append(f"a traceback: {(folder / 'log').read_text(errors='replace')[-800:]}")
    return wrong, seconds if over else None


def is_whole(kind: kills.Kind, out: Path, whole: kills.Undisturbed) -> bool:
    """Whether a file is what an undisturbed run writes; times are others each time, but their table has all layers."""
    if kind.name != "latency":
        return bool(kills.said(out) == whole.written)
    content = out.read_bytes()
    return (
        content.endswith(b"\n") and LatencyTable.from_csv(content).layers == LatencyTable.from_csv(whole.written).layers
    )


def shares(seconds: list[float], moments: int) -> list[int]:
    """How often each case is killed, so many times in all; it takes so many seconds undisturbed.

    >>> shares([1.0, 9.0], 14)
    [11, 3]
    """
    rest = moments - LEAST * len(seconds)
    speeds = [1 / each for each in seconds]
    ends = [round(rest * sum(speeds[:number]) / sum(speeds)) for number in range(len(speeds) + 1)]
    return [max(0, LEAST + end - begin) for begin, end in pairwise(ends)]


def kill_all(moments: int, seed: int) -> int:
    """Print a line for each command and disk; the number of what is wrong."""
    draws, total, bad = random.Random(seed), Counter[str](), 0
    modes = DISKS if os.geteuid() == 0 else DISKS[:2]
    print("| command | disk | seconds undisturbed | killed | over before | wrong |")
    print("|---|---|---|---|---|---|", flush=True)
    with kills.workplace() as place:
        plan = kills.plan_in(place, SMALL, {name: Choice("svd", (2,)) for name in ("fc1", "fc2")})
        wholes = {kind.name: kills.undisturbed(place / kind.name, kind, plan) for kind in KILLED}
        cases = [(kind, mode) for kind in KILLED for mode in modes]
        numbers = shares([wholes[kind.name].seconds for kind, _ in cases], moments)
        for (kind, mode), number in zip(cases, numbers, strict=True):
            arguments = kind.arguments if mode != "without" else (*kind.arguments, "--no-cache")
            one = kills.Kind(kind.name, arguments, kind.kept)
            whole, out = wholes[kind.name], place / kind.name / "out" / "written"
            used = sum(p.stat().st_size for p in (place / kind.name).rglob("*") if p.is_file()) // 1000
            older = (out.read_bytes() if out.exists() else b"") + b"older"
            found = Counter[str]()
            for _ in range(number):
                size = int(draws.uniform(0.1, 1.0) * used) + 80 if mode == DISKS[2] else None
                seconds: float | None = whole.seconds
                while seconds is not None:
                    moment = draws.uniform(0, kills.LATEST) * seconds
                    with disk_of(place / "one", size) as folder:
                        wrong, seconds = killed_once(folder, one, plan, whole, older, moment)
                    found["killed" if seconds is None else "over"] += 1
                    found["wrong"] += len(wrong)
                    for text in wrong:
                        print(f"{kind.name}, {mode}: {text}", file=sys.stderr, flush=True)
            total += found
            bad += found["wrong"]
            figures = f"{whole.seconds:.1f} | {found['killed']} | {found['over']} | {found['wrong']}"
            print(f"| {kind.name} | {mode} | {figures} |", flush=True)
    print(f"{total['killed']} kills and {total['over']} runs that were over before: {bad} lost or left behind")
    return bad


def main() -> None:
    """Print the table."""
    options = benchmark_parser(__doc__)
    options.add_argument("--part", choices=["outputs", "kills"], default="outputs")
    options.add_argument("--onto", choices=list(WORDS), action="append", help="only places of which this is right")
    options.add_argument("--of", choices=[name for name, _ in COMMANDS], action="append", help="only this command")
    options.add_argument("--moments", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    if given.part == "kills":
        sys.exit(bool(kill_all(given.moments, given.seed)))
    with tempfile.TemporaryDirectory() as made:
        template = Path(made, "template")
        template.mkdir()
        _opening.CACHE = Path(made, "cache")
        workplace_in(template)
        began = time.monotonic()
        wrong = table(template, tuple(given.onto or ()), tuple(given.of or ()))
        print(f"in {time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(any(wrong))


if __name__ == "__main__":
    run_benchmark(main)
