"""kill -9 at random moments: nothing half-written is taken for whole, and nothing that was finished is done again.

    python -m benchmarks.kills                   # 56 kills of commands and of the server
    python -m benchmarks.kills --kind search --kills 20 --seed 7

Each kill has a cache and a folder of its own. A command runs in a process of its own (forked from one that has imported
PyTorch, so that kills meet the work), the app as a real server with a browser; both count in a journal what they finish
where it is computed, not where it is saved: points of layers, evaluations, epochs, tensors kept in the cache. SIGKILL
comes at a moment drawn uniformly over the time an undisturbed run takes. Then all that lies on disk is read, half of the
leftovers' age is counted as past, and the same is started again. For every kill it must hold that

- a file at a final name is absent, as it was before (every other kill begins with an older one in its place), or the
  undisturbed run's; every entry of the cache and every line can be read and says what the undisturbed run's says;
- the run started again answers as the undisturbed one, and what it finishes and what was on disk add up to what the
  undisturbed run finishes;
- at most one result was finished and not on disk yet: the one that was being saved;
- temporary files of the killed run are gone once they are old.

Prints one line for each kind and exits with 1 where anything else was found. What was in progress at the moment of the
kill (one point, one evaluation, one epoch, one file) is done again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lowrank_core import __main__ as command_line
from lowrank_core import finetune, selection, sensitivity
from lowrank_core.cache import Cache
from lowrank_core.evaluate import Score
from lowrank_core.lines import read_lines
from lowrank_core.plan import Choice, RankPlan
from lowrank_core.predict import Point
from lowrank_core.workspace import Workspace

COUNTED = ("point", "evaluation", "epoch", "tensor")
OLD_SECONDS = 8 * 86400
LATEST = 0.97
"""Share of an undisturbed run up to which kills come: runs differ in length, and one that is over cannot be killed."""


@dataclass(frozen=True)
class Kind:
    """A command that is killed. Its arguments may hold {plan} and {out}.

    kept: what of COUNTED is on disk once it is finished; the rest belongs to the file that is written at the end.
    """

    name: str
    arguments: tuple[str, ...]
    kept: tuple[str, ...] = COUNTED
    kills: int = 5


MODEL = "builtin:digits-cnn"
SEARCH = ("search", MODEL, "--out", "{out}", "--json")
EXPORT = ("export", MODEL, "--plan", "{plan}", "--out", "{out}", "--json", "--format")
KINDS = (
    Kind("profile", ("profile", MODEL, "--out", "{out}", "--json"), kills=10),
    Kind("search, budget", (*SEARCH, "--multiplies", "0.5", "--set", "refine=8"), kills=8),
    Kind("search, bisection", (*SEARCH, "--max-drop", "0.02", "--rule", "bisection"), kills=6),
    Kind(
        "fine-tune",
        ("finetune", MODEL, "--plan", "{plan}", "--epochs", "4", "--seeds", "2", "--out", "{out}", "--json"),
        kills=8,
    ),
    Kind("apply", ("apply", MODEL, "--plan", "{plan}", "--out", "{out}", "--json"), ("tensor",), kills=4),
    Kind("export, pt2", (*EXPORT, "pt2"), ("tensor",), kills=4),
    Kind("export, onnx", (*EXPORT, "onnx"), ("tensor",), kills=4),
    Kind("export, onnx int8", (*EXPORT, "onnx", "--dtype", "int8"), ("tensor",), kills=4),
    Kind("export, bundle", (*EXPORT, "bundle"), ("tensor",), kills=4),
)


@dataclass
class Found:
    """What a kind came to."""

    kills: int = 0
    kept: int = 0
    repeated: int = 0
    saving: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)


# ---- inside the process that is killed ------------------------------------------------------------------------------


def count_in(journal: Path) -> None:
    """Add a word to the journal for everything that is finished from here on."""

    def note(word: str) -> None:
        with journal.open("ab", buffering=0) as file:
            file.write(f"{word}\n".encode())

    def each(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def counted(*args: Any, **rest: Any) -> Iterator[Any]:
            for item in function(*args, **rest):
                note("point")
                yield item

        return counted

    def at_end(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def counted(*args: Any, **rest: Any) -> Iterator[Any]:
            yield from function(*args, **rest)
            note("evaluation")

        return counted

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            found = function(*args)
            note("epoch")
            return found

        return counted

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            note("tensor")
            return function(*args)

        return counted

    sensitivity.measured = each(sensitivity.measured)
    Workspace.measure = at_end(Workspace.measure)  # type: ignore[method-assign]
    finetune._Training.epoch = after(finetune._Training.epoch)  # type: ignore[method-assign]
    Cache.put = before(Cache.put)  # type: ignore[method-assign]
    note("began")


def inside(folder: Path, journal: Path, arguments: list[str]) -> None:
    """The process of a command."""
    torch.set_num_threads(1)
    for name, number in (("answer", 1), ("log", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    command_line.CACHE, tempfile.tempdir = folder / "cache", str(folder / "tmp")
    count_in(journal)
    command_line.cli.main(arguments, prog_name="lowrank_core")


def processes() -> Any:
    """Where processes come from: a server that has imported everything, and forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.kills"])
    return context


def begun(folder: Path, kind: Kind, plan: Path, journal: str) -> tuple[BaseProcess, Path]:
    """Start the command in a folder and wait until it has begun."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    names = {"plan": str(plan), "out": str(folder / "out" / "written")}
    process = processes().Process(
        target=inside, args=(folder, folder / journal, [part.format(**names) for part in kind.arguments])
    )
    process.start()
    while process.is_alive() and not (folder / journal).exists():
        time.sleep(0.001)
    return process, folder / journal


# ---- what lies on disk ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    """What a folder holds; each as its own reader reads it."""

    points: dict[tuple[Any, ...], Point]
    numbers: dict[str, Score | float]
    epochs: dict[str, list[Any]]
    tensors: frozenset[str]
    lines: int
    wrong: tuple[str, ...]

    @property
    def counts(self) -> Counter[str]:
        """In the words of the journal; the start of a training is no epoch."""
        scores = sum(isinstance(value, Score) for value in self.numbers.values())
        epochs = sum(len(history) - 1 for history in self.epochs.values())
        return Counter(point=len(self.points), evaluation=scores, epoch=epochs, tensor=len(self.tensors))


def disk(cache: Path) -> Disk:
    """Read everything that a cache folder holds at final names."""
    wrong, points, numbers, lines = [], {}, {}, 0
    for path in sorted((cache / "points").glob("points-*.jsonl")):
        for point in read_lines(path, Point):
            points[path.name, point.layer, point.method, point.rank] = point
            lines += 1
    for path in sorted((cache / "points").glob("scores-*.jsonl")):
        for key, value in read_lines(path, tuple[str, Score | float]):
            numbers[key] = value
            lines += 1
    for path in sorted((cache / "tensors").glob("*.safetensors")):
        content = path.read_bytes()
        try:
            about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["about"]
            whole = Cache(cache).path(json.loads(about)) == path and Cache(cache).get(json.loads(about)) is not None
        except (ValueError, KeyError):
            whole = False
        if not whole:
            wrong.append(f"{path.name} is damaged")
    epochs = {}
    for path in sorted((cache / "tuning").glob("*.pt")):
        try:
            epochs[path.name] = json.loads(torch.load(path, weights_only=True)["history"])
        except Exception as error:
            wrong.append(f"{path.name} is damaged: {error}")
    tensors = frozenset(path.name for path in (cache / "tensors").glob("*.safetensors"))
    return Disk(points, numbers, epochs, tensors, lines, tuple(wrong))


def differences(found: Disk, whole: Disk) -> Iterator[str]:
    """Where a folder says something else than the undisturbed run's."""
    yield from found.wrong
    yield from (f"another point: {key}" for key, point in found.points.items() if whole.points.get(key) != point)
    yield from (f"another number: {key}" for key, value in found.numbers.items() if whole.numbers.get(key) != value)
    yield from (f"a tensor of nothing: {name}" for name in found.tensors - whole.tensors)
    for name, history in found.epochs.items():
        if timeless(history) != timeless(whole.epochs.get(name, [])[: len(history)]):
            yield f"another training: {name}"


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders."""
    return [*folder.rglob("*.tmp"), *(folder / "tmp").iterdir()]


def timeless(value: Any) -> Any:
    """An answer without the times it took and the folder it was written in."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in ("seconds", "path")}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def done(journal: Path) -> Counter[str]:
    """What a run has finished."""
    words = Counter(journal.read_text().split())
    return Counter({word: words[word] for word in COUNTED})


# ---- kills ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody killed."""

    seconds: float
    answer: Any
    written: bytes
    disk: Disk
    done: Counter[str]


def undisturbed(folder: Path, kind: Kind, plan: Path) -> Undisturbed:
    """Run it to its end; raises SystemExit where it fails."""
    process, journal = begun(folder, kind, plan, "journal")
    began = time.monotonic()
    process.join()
    seconds = time.monotonic() - began
    if process.exitcode != 0:
        sys.exit(f"{kind.name} failed:\n{(folder / 'log').read_text()}")
    answer, written = timeless(json.loads((folder / "answer").read_text())), (folder / "out" / "written").read_bytes()
    return Undisturbed(seconds, answer, written, disk(folder / "cache"), done(journal))


def kill(folder: Path, kind: Kind, plan: Path, whole: Undisturbed, moment: float, older: bytes | None) -> Found | None:
    """Kill it at a moment in seconds, look, start it again, compare; None where it was over by then."""
    out = folder / "out" / "written"
    if older is not None:
        out.parent.mkdir(parents=True)
        out.write_bytes(older)
    process, journal = begun(folder, kind, plan, "journal")
    process.join(moment)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return None
    found, at_kill, finished = Found(kills=1), disk(folder / "cache"), done(journal)
    found.wrong += differences(at_kill, whole.disk)
    if (out.read_bytes() if out.exists() else None) not in (older, whole.written):
        found.wrong.append("the file at the final name is neither the older one nor the whole one")
    left = leftovers(folder)
    found.left = len(left)
    for path in left:
        os.utime(path, (time.time() - OLD_SECONDS,) * 2)
    again, journal = begun(folder, kind, plan, "journal-again")
    again.join()
    if again.exitcode != 0:
        found.wrong.append(f"started again it failed: {(folder / 'log').read_text()[-500:]}")
        return found
    redone, now = done(journal), disk(folder / "cache")
    found.wrong += differences(now, whole.disk)
    if timeless(json.loads((folder / "answer").read_text())) != whole.answer:
        found.wrong.append("started again it answers otherwise")
    if out.read_bytes() != whole.written:
        found.wrong.append("started again it writes another file")
    Cache(folder / "cache").trim()
    found.wrong += [f"left for good: {path.relative_to(folder)}" for path in leftovers(folder)]
    for word in kind.kept:
        kept, before, after = at_kill.counts[word], finished[word], redone[word]
        found.kept += kept
        found.repeated += max(0, kept + after - whole.done[word])
        found.saving += before - kept
        if kept + after != whole.done[word]:
            found.wrong.append(f"{word}: {kept} kept and {after} redone, but undisturbed {whole.done[word]}")
        if not 0 <= before - kept <= 1:
            found.wrong.append(f"{word}: {before} finished, but {kept} kept")
    if now.lines != len(now.points) + len(now.numbers):
        found.repeated += now.lines - len(now.points) - len(now.numbers)
        found.wrong.append("a line stands twice")
    return found


def older_file(kind: Kind) -> bytes:
    """Something whole that was there before."""
    return f"{kind.name}, of an earlier run\n".encode()


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for all of it."""
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def plan_in(folder: Path, model: str = MODEL, ranks: dict[str, Choice] | None = None) -> Path:
    """The plan that is trained and exported, with layers of several methods."""
    chosen = ranks or {
        "conv2": Choice("tucker2", (12, 16)),
        "conv3": Choice("cp3", (24,)),
        "fc1": Choice("svd", (16,)),
    }
    path, profile = folder / "plan.json", Workspace.open(model).profile
    path.write_text(RankPlan.of(profile.fingerprint, chosen).to_json())
    return path


def killed(folder: Path, kind: Kind, plan: Path, kills: int, seed: int) -> tuple[Found, Undisturbed]:
    """So many kills of a kind at random moments."""
    whole, total, draws = undisturbed(folder / "undisturbed", kind, plan), Found(), random.Random(seed)
    for attempt in range(3 * kills):
        if total.kills == kills:
            break
        one, moment = folder / str(attempt), draws.uniform(0, LATEST) * whole.seconds
        found = kill(one, kind, plan, whole, moment, older_file(kind) if attempt % 2 else None)
        shutil.rmtree(one, ignore_errors=True)
        if found is None:
            continue
        for name in ("kills", "kept", "repeated", "saving", "left"):
            setattr(total, name, getattr(total, name) + getattr(found, name))
        total.wrong += [f"{kind.name}, at {moment:.2f} of {whole.seconds:.2f} s: {text}" for text in found.wrong]
    return total, whole


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kind", choices=[kind.name for kind in KINDS], action="append", help="only this")
    options.add_argument("--kills", type=int, help="of each kind")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    wrong: list[str] = []
    print("| killed | seconds undisturbed | kills | wrong | kept | repeated | being saved | temporary files left |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with workplace() as folder:
        plan = plan_in(folder)
        for kind in KINDS:
            if given.kind and kind.name not in given.kind:
                continue
            found, whole = killed(folder / kind.name, kind, plan, given.kills or kind.kills, given.seed)
            wrong += found.wrong
            figures = (found.kills, len(found.wrong), found.kept, found.repeated, found.saving, found.left)
            print(f"| {kind.name} | {whole.seconds:.1f} | {' | '.join(map(str, figures))} |", flush=True)
    print(*wrong, sep="\n", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
