"""What is kept on disk: flipped bits, cuts, and two writers: nothing damaged is believed, nothing of anybody's is lost.

    python -m benchmarks.kept_files                    # 400 flips of each kind, 1,000 changes in turn and at once
    python -m benchmarks.kept_files --flips 4000 --changes 5000 --seed 7

Each kind of kept file is written once as the product writes it. Then one bit of it is flipped, or its end cut off, and
it is read as the product reads it. "Believed" is an answer that says anything else than what was written: a point, a
score, a plan or a tensor that differs. "Nothing" is an answer that holds nothing of the file, "the rest" one that holds
the other lines of it. What a person would miss must be on disk afterwards, to the last byte, under another name.

Two writers have one history file, as two tabs of one address: ranks of layers of their own and of one that both set,
snapshots taken and removed, locks. In turn: both in one process; at once: each in a process of its own. Afterwards
every snapshot that was taken and not removed must be there with its plan, none that was removed, and every layer and
lock must be as its writer left it; at a collision the other's choice must be among the steps of undo.

Prints one line for each and exits with 1 where anything was believed or lost.
"""

from __future__ import annotations

import io
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.builtin import POINTS
from lowrank_core.errors import LowRankError
from lowrank_core.measure.ledger import Ledger
from lowrank_core.measure.staircases import Rung, Setting, Staircase, StairFile
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict import context as learning
from lowrank_core.predict.prediction import Context, Point, Repair
from lowrank_core.predict.sensitivity import PointFile
from lowrank_core.predict.survey import context_at, read_context, write_context
from lowrank_core.scoring.scores import Score
from lowrank_core.selection import make
from lowrank_core.store.cache import Cache
from lowrank_core.store.documents import sealed
from lowrank_core.store.files import write_whole
from lowrank_core.training.finetune import STATE, read_state
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace
from pages.ui.asked import ASKED, to_json
from pages.ui.history import History
from pages.ui.history_file import Kept, load, save
from pages.ui.note_file import change_notes, read_notes
from pages.ui.question import Question
from pages.ui.tuning import NOTES, Training, Tuned

Statements = frozenset[str]
"""What a file says, each part of it as a text."""

MODEL = "builtin:digits-cnn"

MOST_PAUSE_SECONDS = 0.02
"""Between two changes of one writer, where two write at once."""


@dataclass(frozen=True)
class KeptFile:
    """A file as the product writes it and reads it; persons: whether it must be set aside rather than written over."""

    name: str
    path: Path
    read: Callable[[], Statements]
    persons: bool = False


def kept_files(folder: Path, workspace: Workspace) -> Iterator[KeptFile]:
    """One of each kind, in a folder."""
    profile, layers = workspace.profile, workspace.profile.layers
    points = PointFile(folder, workspace, None)
    for number in range(20):
        points.add(Point(layers[number % 3].name, "svd", (number + 1,), 1 / (number + 3), 0.1 * number, 2.5, None))
    yield KeptFile("points of layers", points.path, lambda: said(points.load()))

    scores = folder / "scores.jsonl"
    ledger = Ledger(scores)
    for number in range(10):
        ledger.remembered(f"number {number}", partial(float, number / 7))
        score = Score("top-1 accuracy", number / 11, 0.9, 1000, True, 0.1, None, 0.9 - number / 11, 0.0, 1.0)
        ledger.remembered(f"score {number}", lambda score=score: score)  # type: ignore[misc]
    yield KeptFile("scores of plans", scores, lambda: said(Ledger(scores)._values.items()))

    stairs = StairFile(folder, layers[0], Setting())
    for method in layers[0].methods:
        rungs = tuple(Rung((rank,) * len(method.axes), rank / 9, 0.01) for rank in (1, 2, 5))
        stairs.save(Staircase(layers[0].name, method.name, 90.5, rungs))
    assert stairs.path is not None
    yield KeptFile("latency of layers", stairs.path, lambda: said(stairs._read().values()))

    write_context(points, Context(tuple(layer.name for layer in layers), (Repair(layers[0].name, 0.3, 0.7),), 1.616))
    context = points.beside("context", learning.VERSION)
    yield KeptFile("context", context, lambda: said(filter(None, [read_context(points)])))

    for shipped in (sorted(POINTS.glob("context-*.json"))[0], sorted(POINTS.glob("points-*.jsonl"))[0]):
        copied = folder / f"shipped-{shipped.name}"
        shutil.copy(shipped, copied)
        file = replaced(points, copied)
        if shipped.suffix == ".json":
            yield KeptFile("context, shipped", copied, partial(shipped_context, copied, shipped.name))
        else:
            yield KeptFile("points, shipped", copied, lambda file=file: said(file.load()))  # type: ignore[misc]

    cache, about = Cache(folder), {"what": "factors", "layer": "fc1"}
    cache.put(
        about, {"left": torch.arange(12.0).reshape(3, 4), "counts": torch.tensor([3, 5]), "half": torch.ones(3).half()}
    )
    yield KeptFile("tensors", cache.path(about), lambda: tensors(cache.get(about) or {}))

    state = folder / "tune.pt"
    weights = {"fc1.0.weight": torch.randn(8, 6), "norm.num_batches_tracked": torch.tensor(3)}
    target = io.BytesIO()
    held = {
        "key": "a run",
        "history": '[{"number": 0}]',
        "weights": weights,
        "best": weights,
        "optimizer": {"rate": 0.1},
    }
    torch.save(held, target)
    write_whole(state, sealed(STATE, target.getvalue()))
    yield KeptFile("training state", state, partial(state_said, state))

    history = folder / "history.json"
    save(history, Kept(History(RankPlan(profile.fingerprint))), sample_history(profile), profile)
    yield KeptFile("history", history, partial(history_said, history, profile), persons=True)

    asked = folder / "asked.json"
    candidate, settings = Candidate(sample_history(profile).plan), Settings(epochs=3)
    wishes = (Question(make("budget", {}), (("multiplies", 0.5),), locked=("conv1",)), Training(candidate, settings))
    change_notes(asked, ASKED, lambda others: (*others, *wishes), to_json)
    yield KeptFile("what was asked", asked, lambda: said(read_notes(asked, ASKED).entries), persons=True)

    trained = folder / "tuned.json"
    weights_of = [Tuned(candidate, settings, 10, 2, 3, loss, score) for loss in (0.5, 0.25)]
    change_notes(trained, NOTES, lambda others: (*others, *weights_of), msgspec.json.encode)
    yield KeptFile("tuned weights", trained, lambda: said(read_notes(trained, NOTES).entries), persons=True)


def replaced(file: PointFile, path: Path) -> PointFile:
    """The same with its points elsewhere."""
    other = PointFile.__new__(PointFile)
    other._name, other.path = file._name, path
    return other


def shipped_context(path: Path, name: str) -> Statements:
    """A context that ships, wherever it lies."""
    return said(filter(None, [context_at(path, name)]))


def said(values: Any) -> Statements:
    """Each of several values as a text."""
    return frozenset(map(repr, values))


def tensors(named: dict[str, torch.Tensor]) -> Statements:
    """Names, types, shapes and numbers."""
    return frozenset(f"{name} {values.dtype} {tuple(values.shape)} {values.tolist()}" for name, values in named.items())


def state_said(path: Path) -> Statements:
    """What is gone on from."""
    try:
        stored = read_state(path)
        return tensors(stored["weights"]) | said([stored["key"], stored["history"], stored["optimizer"]])
    except (LowRankError, KeyError):
        return frozenset()


def history_said(path: Path, profile: ModelProfile) -> Statements:
    """Every plan of a history and what goes with it."""
    kept = load(path, profile).kept
    if kept is None:
        return frozenset()
    one = kept.history
    steps = [one.plan, one.past, one.future, one.branches, one.made]
    return said([*steps, *one.snapshots, one.removed, one.locked, one.rev, one.tolerance, one.corrected])


def sample_history(profile: ModelProfile) -> History:
    """Some of everything."""
    history = History(RankPlan(profile.fingerprint))
    for rank in (40, 20, 10):
        history = history.commit(history.plan.with_choice("fc1", Choice("svd", (rank,)))).keep(f"at {rank}")
    history = history.undo().undo().commit(history.plan.with_choice("fc2", Choice("svd", (5,)))).remove("at 40")
    return history.undo().lock(["conv1"]).tolerate(0.01)


# ---- flips and cuts -------------------------------------------------------------------------------------------------


@dataclass
class Damage:
    """What so many damaged files of a kind came to."""

    files: int = 0
    nothing: int = 0
    rest: int = 0
    whole: int = 0
    believed: int = 0
    overwritten: int = 0


def damage(file: KeptFile, flips: int, cuts: int, draws: random.Random) -> Damage:
    """Flip one bit or cut the end off, read, and compare with what the whole file says."""
    written = file.path.read_bytes()
    whole, found = file.read(), Damage()
    if not whole:
        sys.exit(f"{file.name}: nothing is read of the whole file")
    for number in range(flips + cuts):
        damaged = bytearray(written)
        if number < flips:
            damaged[draws.randrange(len(written))] ^= 1 << draws.randrange(8)
        else:
            del damaged[draws.randrange(len(written)) :]
        file.path.write_bytes(damaged)
        read = file.read()
        found.files += 1
        found.nothing += not read
        found.rest += bool(read) and read < whole
        found.whole += read == whole
        found.believed += not read <= whole
        if file.persons and read != whole:
            asides = list(file.path.parent.glob(f"{file.path.name}.*-1"))
            found.overwritten += [aside.read_bytes() for aside in asides] != [bytes(damaged)]
            for aside in asides:
                aside.unlink()
    file.path.write_bytes(written)
    return found


# ---- two writers ----------------------------------------------------------------------------------------------------


class Writer:
    """One tab: it makes changes, saves each, and knows what must be left of them."""

    def __init__(self, path: Path, profile: ModelProfile, number: int) -> None:
        self.path, self.profile, self.number = path, profile, number
        self.draws = random.Random(number)
        self.kept = Kept(History(RankPlan(profile.fingerprint)))
        names = [layer.name for layer in profile.layers]
        self.own, self.shared = names[number:4:2], names[4]
        self.ranks: dict[str, Choice] = {}
        self.snapshots: dict[RankPlan, str] = {}
        self.removed: set[RankPlan] = set()
        self.locked = False
        self.collisions, self.lost = 0, 0

    def change(self) -> None:
        """One change at random, saved at once."""
        history, what = self.kept.history, self.draws.random()
        mine: RankPlan | None = None
        if what < 0.7:
            layer = self.draws.choice([*self.own, self.shared])
            method = self.profile.layer(layer).methods[0]
            top = method.max_rank(self.profile.layer(layer).spec)
            choice = Choice(method.name, tuple(self.draws.randint(1, most) for most in top))
            self.ranks[layer] = choice
            history = history.commit(history.plan.with_choice(layer, choice))
        elif what < 0.85:
            history, mine = history.keep(f"of {self.number}"), history.plan
            if mine in self.snapshots:
                return
        elif what < 0.9 and self.snapshots:
            plan = self.draws.choice(list(self.snapshots))
            names = [one.name for one in history.snapshots if one.plan == plan and f"of {self.number}" in one.name]
            for name in names:
                history = history.remove(name)
            del self.snapshots[plan]
            self.removed.add(plan)
        else:
            self.locked = not self.locked
            own = {self.own[0]}
            history = history.lock({*history.locked} - own | (own if self.locked else set()))
        saved = save(self.path, self.kept, history, self.profile)
        for conflict in saved.merged.layers:
            self.collisions += 1
            self.lost += all(step.get(conflict.name) != conflict.theirs for step in saved.kept.history.past)
        self.kept = saved.kept
        if mine is not None:
            self.removed.discard(mine)
            self.snapshots[mine] = f"of {self.number}"

    def missing(self, history: History) -> int:
        """How much of what this one has made a history does not hold, and what it holds that was removed."""
        mine = {one.plan for one in history.snapshots if one.name.startswith(f"of {self.number}")}
        wrong = len(self.snapshots.keys() - mine) + len(self.removed & mine)
        wrong += sum(history.plan.get(layer) != self.ranks[layer] for layer in self.own if layer in self.ranks)
        return wrong + ((self.own[0] in history.locked) != self.locked) + self.lost


def in_turn(folder: Path, profile: ModelProfile, changes: int) -> list[Writer]:
    """Two writers in one process, a change of one after a change of the other."""
    writers = [Writer(folder / "in turn.json", profile, number) for number in (0, 1)]
    for number in range(changes):
        writers[number % 2].change()
    return writers


def at_once(folder: Path, profile: ModelProfile, changes: int) -> list[Writer]:
    """Two processes that write when they like."""
    context = multiprocessing.get_context("fork")  # what they import is imported
    barrier, answers = context.Barrier(2), context.Queue()
    arguments = [(folder / "at once.json", profile, number, changes // 2, barrier, answers) for number in (0, 1)]
    processes = [context.Process(target=_write, args=each) for each in arguments]
    for process in processes:
        process.start()
    writers = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return writers


def _write(path: Path, profile: ModelProfile, number: int, changes: int, barrier: Any, answers: Any) -> None:
    writer = Writer(path, profile, number)
    barrier.wait()
    for _ in range(changes):
        writer.change()
        time.sleep(writer.draws.uniform(0, MOST_PAUSE_SECONDS))  # or one would be done before the other's turn
    answers.put(writer)


ROW = "{:18} {:>6} {:>8} {:>9} {:>10} {:>9} {:>5}"


def main() -> None:
    """Damage every kind of file, then let two write."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--flips", type=int, default=400, help="of each kind of file; a quarter as many cuts")
    parser.add_argument("--changes", type=int, default=1000, help="of both writers together")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder, workspace = Path(tempfile.mkdtemp(prefix="kept-files-")), Workspace.open(MODEL)
    draws, wrong = random.Random(asked.seed), 0
    try:
        print(ROW.format("kind of file", "files", "nothing", "the rest", "all of it", "believed", "lost"))
        for file in kept_files(folder, workspace):
            found = damage(file, asked.flips, asked.flips // 4, draws)
            lost = found.overwritten if file.persons else "-"
            figures = (found.files, found.nothing, found.rest, found.whole, found.believed, lost)
            print(ROW.format(file.name, *figures), flush=True)
            wrong += found.believed + found.overwritten
        for words, write in (("in turn", in_turn), ("at once, in two processes", at_once)):
            writers = write(folder, workspace.profile, asked.changes)
            (path,) = {writer.path for writer in writers}
            kept = load(path, workspace.profile).kept
            assert kept is not None
            missing = sum(writer.missing(kept.history) for writer in writers)
            collisions = sum(writer.collisions for writer in writers)
            snapshots = sum(len(writer.snapshots) for writer in writers)
            print(
                f"{asked.changes:,} changes {words}: {collisions} collisions, {snapshots} snapshots left of both, "
                f"{missing or 'nothing'} lost"
            )
            wrong += missing
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    run_benchmark(main)
