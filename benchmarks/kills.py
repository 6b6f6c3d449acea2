"""kill -9 at random moments: nothing half-written is taken for whole, and nothing that was finished is done again.

    python -m benchmarks.kills                   # 56 kills of commands and of the server
    python -m benchmarks.kills --kind search --kills 20 --seed 7

Each kill has a cache and a folder of its own. A command runs in a process of its own (forked from one that has imported
PyTorch, so that kills meet the work), the app as a real server with a browser; both count in a journal what they finish
where it is computed, not where it is saved: points of layers, evaluations of networks, all numbers of whole plans,
epochs, tensors kept in the cache. SIGKILL comes at a moment drawn uniformly over the time that an undisturbed run
takes. Then all that lies on disk is read, what the killed run left is made older, and the same is started again. For
every kill it must hold that

- a file at a final name is absent, as it was before (every other kill begins with an older one in its place), or the
  undisturbed run's; every entry of the cache and every line can be read and says what the undisturbed run's says;
- the run started again answers as the undisturbed one, and what it finishes and what was on disk add up to what the
  undisturbed run finishes;
- at most one result was finished and not on disk yet: the one that was being saved;
- temporary files of the killed run are gone once they are old.

The kind `app` is killed while a handle of the board is held, some releases after the page was opened, and at a random
moment after the last of them: every release that the page had come to rest after must be a step of the history on disk,
in its order, the last one may be, nothing else; and the same address opens with the plan that the history ends with.

Prints one line for each kind and exits with 1 where anything else was found. What was in progress at the moment of the
kill (one point, one evaluation, one epoch, one file) is done again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import operator
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect, sync_playwright

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.commands import _opening, cli
from lowrank_core.measure.ledger import Ledger
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict import sensitivity
from lowrank_core.predict.prediction import Point
from lowrank_core.scoring.scores import Score
from lowrank_core.store.cache import Cache
from lowrank_core.store.lines import read_lines
from lowrank_core.training import finetune
from lowrank_core.workspace import Workspace
from pages.ui import history_file
from tests.conftest import AT_REST, CHROMIUM, CHROMIUM_ARGS, is_ready

COUNTED = ("point", "evaluation", "number", "epoch", "tensor")
OLD_SECONDS = 8 * 86400
IMPORTED = (
    "lowrank_core.commands.finetune",
    "lowrank_core.commands.profile",
    "lowrank_core.builtin.digits_cnn",
    "torch._dynamo",
    "tests.conftest",
)
RUNNING = "[data-testid=stApp][data-test-script-state=running]"
REPLACING = "replacing"
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
METHODS = ("--method", "spatial_svd", "--method", "svd")
SEARCH = ("search", MODEL, "--out", "{out}", "--json")
EXPORT = ("export", MODEL, "--plan", "{plan}", "--out", "{out}", "--json", "--format")
KINDS = (
    Kind("profile", ("profile", MODEL, *METHODS, "--out", "{out}", "--json"), kills=10),
    Kind("search, budget", (*SEARCH, *METHODS, "--multiplies", "0.5", "--set", "refine=8"), kills=10),
    Kind("search, bisection", (*SEARCH, "--max-drop", "0.02", "--rule", "bisection", "--samples", "400"), kills=8),
    Kind(
        "fine-tune",
        ("finetune", MODEL, "--plan", "{plan}", "--epochs", "3", "--seeds", "2", "--out", "{out}", "--json"),
        kills=8,
    ),
    Kind("apply", ("apply", MODEL, "--plan", "{plan}", "--out", "{out}", "--json"), ("tensor",), kills=3),
    Kind("export, pt2", (*EXPORT, "pt2"), ("tensor",), kills=3),
    Kind("export, onnx", (*EXPORT, "onnx"), ("tensor",), kills=3),
    Kind("export, onnx int8", (*EXPORT, "onnx", "--dtype", "int8"), ("tensor",), kills=3),
    Kind("export, bundle", (*EXPORT, "bundle"), ("tensor",), kills=3),
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


def count_in(journal: Path, held: tuple[str, int] | None = None) -> None:
    """Add a word to the journal for everything that is finished from here on, and for files about to be replaced.

    held: a word and how often it is noted before the whole process stands still, to be killed at just that moment.
    """
    noted: Counter[str] = Counter()

    def note(word: str) -> None:
        with journal.open("ab", buffering=0) as file:
            file.write(f"{word}\n".encode())
        noted[word] += 1
        if held == (word, noted[word]):
            os.kill(os.getpid(), signal.SIGSTOP)

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

    def replacing(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(source: Any, target: Any, **rest: Any) -> Any:
            note(f"{REPLACING} {Path(target).name}")
            return function(source, target, **rest)

        return counted

    def computing(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(ledger: Ledger, key: str, compute: Callable[[], Any]) -> Any:
            def computed() -> Any:
                found = compute()
                note("number")
                return found

            return function(ledger, key, computed)

        return counted

    sensitivity.measured = each(sensitivity.measured)
    Workspace.measure = at_end(Workspace.measure)  # type: ignore[method-assign]
    Ledger.remembered = computing(Ledger.remembered)  # type: ignore[method-assign]
    finetune._Training.epoch = after(finetune._Training.epoch)  # type: ignore[method-assign]
    Cache.put = before(Cache.put)  # type: ignore[method-assign]
    os.replace = replacing(os.replace)
    note("began")


def inside(folder: Path, journal: Path, arguments: list[str], held: tuple[str, int] | None) -> None:
    """The process of a command."""
    torch.set_num_threads(1)
    for name, number in (("answer", 1), ("log", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    _opening.CACHE, tempfile.tempdir = folder / "cache", str(folder / "tmp")
    count_in(journal, held)
    cli.main(arguments, prog_name="lowrank_core")


def processes() -> Any:
    """Where processes come from: a server that has imported everything, and forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def begun(
    folder: Path, kind: Kind, plan: Path, journal: str, held: tuple[str, int] | None = None
) -> tuple[BaseProcess, Path]:
    """Start the command in a folder and wait until it has begun."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    names = {"plan": str(plan), "out": str(folder / "out" / "written")}
    arguments = [part.format(**names) for part in kind.arguments]
    if "{out}" in kind.arguments:
        arguments.append("--force")  # over what an earlier run wrote
    process = processes().Process(target=inside, args=(folder, folder / journal, arguments, held))
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
        sizes = {"point": len(self.points), "number": len(self.numbers), "tensor": len(self.tensors)}
        return Counter(evaluation=scores, epoch=epochs, **sizes)


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
            epochs[path.name] = json.loads(finetune.read_state(path)["history"])
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
    """Temporary files and folders; what PyTorch keeps in the temporary folder for later is none."""
    scratch = [path for path in (folder / "tmp").iterdir() if not path.name.startswith("torchinductor")]
    return [*folder.rglob("*.tmp"), *scratch]


def wait_for_children(folder: Path) -> None:
    """Until the processes that a killed one had started, to read back what it wrote, are over."""

    def work_there() -> bool:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if str(folder).encode() in path.read_bytes():
                    return True
        return False

    while work_there():
        time.sleep(0.1)


def timeless(value: Any) -> Any:
    """An answer without the times it took and the folder it was written in."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in ("seconds", "path", "expected")}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def said(path: Path) -> Any:
    """The content of a file, of JSON without times; None where there is none."""
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        return timeless(json.loads(content))
    except ValueError:
        return content


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
    written: Any
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
    answer = timeless(json.loads((folder / "answer").read_text()))
    return Undisturbed(seconds, answer, said(folder / "out" / "written"), disk(folder / "cache"), done(journal))


def kill(
    folder: Path,
    kind: Kind,
    plan: Path,
    whole: Undisturbed,
    now: Callable[[float], bool],
    older: bytes | None = None,
    held: tuple[str, int] | None = None,
) -> Found | float:
    """Kill it once `now(seconds)` says so, look, start it again, compare; the seconds it took where it was over before.

    older: what the file that it writes held before; held: where it waits for that, see `count_in`.
    """
    out = folder / "out" / "written"
    if older is not None:
        out.parent.mkdir(parents=True)
        out.write_bytes(older)
    process, journal = begun(folder, kind, plan, "journal", held)
    began = time.monotonic()
    while (seconds := time.monotonic() - began) >= 0 and process.is_alive() and not now(seconds):
        time.sleep(0.001)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return seconds
    wait_for_children(folder)
    found, at_kill, finished = Found(kills=1), disk(folder / "cache"), done(journal)
    found.wrong += differences(at_kill, whole.disk)
    if out.exists() and out.read_bytes() != older and said(out) != whole.written:
        found.wrong.append("the file at the final name is neither the older one nor the whole one")
    if older is not None and not out.exists():
        found.wrong.append("the older file is gone")
    left = leftovers(folder)
    found.left = len(left)
    for path in left:
        os.utime(path, (time.time() - OLD_SECONDS,) * 2)
    again, journal = begun(folder, kind, plan, "journal-again")
    again.join()
    if again.exitcode != 0:
        found.wrong.append(f"started again it failed: {(folder / 'log').read_text()[-500:]}")
        return found
    redone, at_end = done(journal), disk(folder / "cache")
    found.wrong += differences(at_end, whole.disk)
    if timeless(json.loads((folder / "answer").read_text())) != whole.answer:
        found.wrong.append("started again it answers otherwise")
    if said(out) != whole.written:
        found.wrong.append("started again it writes another file")
    Cache(folder / "cache").trim()
    found.wrong += [f"left for good: {path.relative_to(folder)}" for path in leftovers(folder)]
    add_up(found, kind.kept, whole, at_kill, finished, at_end, redone)
    return found


def add_up(
    found: Found,
    words: tuple[str, ...],
    whole: Undisturbed,
    at_kill: Disk,
    finished: Counter[str],
    at_end: Disk,
    redone: Counter[str],
) -> None:
    """Hold what was on disk and what was done after it against the undisturbed run; nothing stands there twice."""
    for word in words:
        if whole.disk.counts[word] != whole.done[word]:
            found.wrong.append(f"{word}: undisturbed {whole.done[word]} finished, {whole.disk.counts[word]} kept")
        kept, before, after = at_kill.counts[word], finished[word], redone[word]
        found.kept += 0 if word == "evaluation" else kept  # it is among the numbers
        found.repeated += max(0, kept + after - whole.done[word])
        found.saving += before - kept
        if kept + after != whole.done[word]:
            found.wrong.append(f"{word}: {kept} kept and {after} redone, but undisturbed {whole.done[word]}")
        if not 0 <= before - kept <= 1:
            found.wrong.append(f"{word}: {before} finished, but {kept} kept")
    twice = at_end.lines - len(at_end.points) - len(at_end.numbers)
    if twice:
        found.repeated += twice
        found.wrong.append("a line stands twice")


OLDER = b"what an earlier run wrote"


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
    seconds, attempt = whole.seconds, 0
    while total.kills < kills:
        attempt += 1
        one, moment = folder / str(attempt), draws.uniform(0, LATEST) * seconds
        found = kill(one, kind, plan, whole, partial(operator.le, moment), OLDER if attempt % 2 else None)
        shutil.rmtree(one, ignore_errors=True)
        if not isinstance(found, Found):
            seconds = found  # the machine has become faster
            continue
        summed(total, found, f"{kind.name}, at {moment:.2f} of {seconds:.2f} s")
    return total, whole


# ---- the server ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PageKind:
    """A page whose job is killed with the server: the button that starts it, and the one that is there once it is over.

    settings: what is typed into its fields before.
    """

    name: str
    path: str
    start: str
    end: str
    kept: tuple[str, ...]
    settings: tuple[tuple[str, str], ...] = ()
    kills: int = 3


PAGES = (
    PageKind("server, Search", "Search", "Start search", "Adopt this plan", COUNTED),
    PageKind(
        "server, Fine-tune",
        "Fine_tune",
        "Start training",
        "Send to Export",
        ("point", "epoch", "tensor"),  # evaluations after each epoch are part of its state
        (("Epochs", "8"), ("Learning rate", "0.01")),
    ),
)


@contextmanager
def server(folder: Path, journal: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The app with caches of its own, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    own = {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("CACHE", "STATE", "DATA", "CONFIG")}
    command = [sys.executable, "-m", "benchmarks.kills", "--serve", str(port), "--journal", str(journal)]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command, env=os.environ | own | {"TMPDIR": str(folder / "tmp")}, stdout=log, stderr=log
        )
    try:
        while not is_ready(port):
            if process.poll() is not None:
                sys.exit(f"the app did not start:\n{(folder / 'log').read_text()}")
            time.sleep(0.05)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def serve(port: int, journal: Path) -> None:
    """The process of the app."""
    from streamlit.web import cli

    count_in(journal)
    sys.argv = ["streamlit", "run", "app.py", "--server.port", str(port), "--server.headless", "true"]
    cli.main()


def started(page: Page, url: str, kind: PageKind) -> None:
    """Open the page and start its job, or let the one that was asked before go on."""
    page.goto(f"{url}/{kind.path}?w=0123456789abcdef")
    begin = page.get_by_role("button", name=re.compile(kind.start))
    expect(begin).to_be_enabled(timeout=120_000)
    page.wait_for_selector(AT_REST, timeout=120_000)
    before = page.get_by_text("Asked before the server was started anew")
    if before.count():
        before.click()
        begin = page.get_by_role("button", name="Go on")
        expect(begin).to_be_visible()
        page.wait_for_timeout(1000)  # until the expander has opened
        begin.click()
        return
    for label, value in kind.settings:
        box = page.get_by_role("spinbutton", name=label)
        if not box.is_visible():
            page.get_by_text("More settings").click()
        box.fill(value)
        box.press("Enter")
        page.wait_for_selector(AT_REST, timeout=120_000)
    begin.click()


def served(folder: Path, kind: PageKind, browser: Browser, journal: str, moment: float | None) -> float | None:
    """Run the job to its end, and give its seconds; or kill the server at a moment, None. It may be over by then."""
    with server(folder, folder / journal) as (process, url):
        page = browser.new_page()
        try:
            started(page, url, kind)
            began = time.monotonic()
            if moment is None:
                expect(page.get_by_role("button", name=kind.end)).to_be_visible(timeout=300_000)
                page.wait_for_selector(AT_REST, timeout=120_000)
                return time.monotonic() - began
            time.sleep(moment)
            over = page.get_by_role("button", name=kind.end).count() > 0
            process.kill()
            process.wait()
            return time.monotonic() - began if over else None
        finally:
            page.close()


def killed_server(folder: Path, kind: PageKind, browser: Browser, kills: int, seed: int) -> tuple[Found, Undisturbed]:
    """So many kills of the server while a job of a page runs; the same session then lets it go on."""
    own = folder / "undisturbed"
    seconds = served(own, kind, browser, "journal", None) or 0.0
    cache = own / "cache" / "rank-explorer"
    whole, total, draws = (
        Undisturbed(seconds, None, None, disk(cache), done(own / "journal")),
        Found(),
        random.Random(seed),
    )
    attempt = 0
    while total.kills < kills:
        attempt += 1
        own, moment = folder / str(attempt), draws.uniform(0, LATEST) * seconds
        cache = own / "cache" / "rank-explorer"
        over = served(own, kind, browser, "journal", moment)
        if over is not None:
            seconds = over
            continue
        at_kill, finished = disk(cache), done(own / "journal")
        found = Found(kills=1, wrong=list(differences(at_kill, whole.disk)), left=len(leftovers(own)))
        for path in leftovers(own):
            os.utime(path, (time.time() - OLD_SECONDS,) * 2)
        served(own, kind, browser, "journal-again", None)
        at_end, redone = disk(cache), done(own / "journal-again")
        found.wrong += differences(at_end, whole.disk)
        Cache(cache).trim()
        found.wrong += [f"left for good: {path}" for path in own.rglob("*.tmp")]
        add_up(found, kind.kept, whole, at_kill, finished, at_end, redone)
        if at_end.counts != whole.disk.counts:
            found.wrong.append(f"at the end there are {at_end.counts}, undisturbed {whole.disk.counts}")
        summed(total, found, f"{kind.name}, at {moment:.2f} of {seconds:.2f} s")
        shutil.rmtree(own, ignore_errors=True)
    return total, whole


@dataclass(frozen=True)
class DragKind:
    """The board of ranks, killed with the server in the middle of a drag; what a person has released is what counts."""

    name: str = "app"
    layer: str = "fc1"
    most_releases: int = 4
    kills: int = 5


APP = DragKind()


def handle_of(page: Page, url: str, kind: DragKind) -> Locator:
    """Open the board, and wait until it is at rest."""
    page.goto(f"{url}/Ranks?w=0123456789abcdef", timeout=120_000)
    handle = page.get_by_role("slider", name=f"{kind.layer} rank", exact=True)
    expect(handle).to_be_visible(timeout=300_000)
    page.wait_for_selector(AT_REST, timeout=300_000)
    return handle


def hold(page: Page, handle: Locator, rank: int) -> None:
    """Drag a handle to a rank, and hold it there."""
    box, top = handle.bounding_box(), int(handle.get_attribute("max") or 1)
    assert box is not None

    def at(rank: int) -> tuple[float, float]:
        return box["x"] + 5 + (box["width"] - 10) * (rank - 1) / (top - 1), box["y"] + box["height"] / 2

    page.mouse.move(*at(int(handle.input_value())))
    page.mouse.down()
    page.mouse.move(*at(rank), steps=8)


def released(
    folder: Path, kind: DragKind, browser: Browser, ranks: list[int], pause_seconds: float
) -> tuple[list[int], int]:
    """Release the handle at all ranks but the last, hold it there, and kill the server; (ranks released, at rest)."""
    done, rested = [], 0
    with server(folder, folder / "journal") as (process, url):
        page = browser.new_page()
        try:
            handle = handle_of(page, url, kind)
            for number, rank in enumerate(ranks, 1):
                hold(page, handle, rank)
                if number == len(ranks):
                    page.wait_for_timeout(1000 * pause_seconds)
                    process.kill()
                    process.wait()
                page.mouse.up()
                if number < len(ranks):
                    done.append(int(handle.input_value()))
                if number < len(ranks) - 1:
                    with suppress(TimeoutError):  # its run may have come and gone
                        page.wait_for_selector(RUNNING, timeout=2_000)
                    page.wait_for_selector(AT_REST, timeout=300_000)
                    rested = len(done)
        finally:
            page.close()
    return done, rested


def killed_app(folder: Path, kind: DragKind, browser: Browser, kills: int, seed: int) -> Found:
    """So many kills in the middle of a drag."""
    total, draws, profile = Found(), random.Random(seed), Workspace.open(MODEL).profile
    for attempt in range(kills):
        own, pause_seconds = folder / str(attempt), draws.uniform(0, 1)
        ranks = draws.sample(range(2, 60), draws.randint(1, kind.most_releases) + 1)
        done, rested = released(own, kind, browser, ranks, pause_seconds)
        states = own / "state" / "rank-explorer"
        found = Found(kills=1, left=len(list(own.rglob("*.tmp"))))
        loaded = [history_file.load(path, profile) for path in states.glob("0123456789abcdef-*.json")]
        found.wrong += [each.said for each in loaded if each.said]
        kept = [each.kept.history for each in loaded if each.kept is not None]
        plans = [plan for history in kept for plan in (*history.past, history.plan)]
        steps = [choice.rank[0] for plan in plans if (choice := plan.get(kind.layer)) is not None]
        saved = [steps[-n:] == done[:n] for n in range(1, len(done) + 1)]
        found.kept = max((n for n, whole in enumerate(saved, 1) if whole), default=0)
        found.saving = len(done) - found.kept
        if found.kept < rested:
            found.wrong.append(f"released {done}, at rest after {rested} of them, and the history holds {steps}")
        for path in own.rglob("*.tmp"):
            os.utime(path, (time.time() - OLD_SECONDS,) * 2)
        with server(own, own / "journal-again") as (_, url):
            page = browser.new_page()
            handle = handle_of(page, url, kind)
            if steps and int(handle.input_value()) != steps[-1]:
                found.wrong.append(f"the board shows {handle.input_value()}, the history ends with {steps[-1]}")
            page.close()
        found.wrong += [f"left for good: {path.name}" for path in states.rglob("*.tmp")]
        found.wrong += [f"set aside: {path.name}" for path in states.glob("*.json.*")]
        summed(total, found, f"{kind.name}, {len(done)} releases, {pause_seconds:.2f} s after the last")
        shutil.rmtree(own, ignore_errors=True)
    return total


def summed(total: Found, found: Found, where: str) -> None:
    """Add one kill to the others."""
    for name in ("kills", "kept", "repeated", "saving", "left"):
        setattr(total, name, getattr(total, name) + getattr(found, name))
    total.wrong += found.wrong
    for text in found.wrong:
        print(f"{where}: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Print the table."""
    options = benchmark_parser(__doc__)
    options.add_argument("--kind", choices=[k.name for k in (*KINDS, *PAGES, APP)], action="append", help="only this")
    options.add_argument("--kills", type=int, help="of each kind")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.serve:
        serve(given.serve, given.journal)
    total: list[Found] = []
    print("| killed | seconds undisturbed | kills | wrong | kept | repeated | being saved | temporary files left |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    chosen = [kind for kind in (*KINDS, *PAGES, APP) if not given.kind or kind.name in given.kind]
    with workplace() as folder, sync_playwright() as playwright:
        plan, browser = plan_in(folder), playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        for kind in chosen:
            own, kills = folder / kind.name, given.kills or kind.kills
            seconds = "-"  # a person has no time that is undisturbed
            if isinstance(kind, DragKind):
                found = killed_app(own, kind, browser, kills, given.seed)
            elif isinstance(kind, Kind):
                found, whole = killed(own, kind, plan, kills, given.seed)
                seconds = f"{whole.seconds:.1f}"
            else:
                found, whole = killed_server(own, kind, browser, kills, given.seed)
                seconds = f"{whole.seconds:.1f}"
            total.append(found)
            figures = (found.kills, len(found.wrong), found.kept, found.repeated, found.saving, found.left)
            print(f"| {kind.name} | {seconds} | {' | '.join(map(str, figures))} |", flush=True)
    wrong = sum(len(found.wrong) for found in total)
    print(f"{sum(found.kills for found in total)} kills, {wrong} violations")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    run_benchmark(main)
