"""What the interval of a prediction is worth: `python -m benchmarks.predictions [--only NETWORK ...] [--write]`.

Of every network random plans are predicted and measured: half of them lose under a tenth (10 points of a share, a
tenth of any other dense score), half of them more. They are none of the plans that the prediction learnt from, which
come from another seed. Truth is what a release on the board would measure: the plan with its correction, on all
evaluation samples (of ResNet-20 on the leading 1,000). The interval is stated to hold for 90 % of the plans.

Used to build it, so that constants were chosen by them: the built-in networks and ResNet-20; crepe_tiny and mtcnn,
which were not until their rows showed two faults (losses beyond all noise, and small ones that no noise tells apart);
minilm_l6 and resemblyzer, which were not until their intervals were seen to be three times too wide. Not used, and
named here before anything was measured of them: magika of benchmarks/wild_networks, and all that
benchmarks/small_networks holds.

Points, plans and scores are kept in `--folder` as they come: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import platformdirs
import torch

from benchmarks.page import PAGES, benchmark_parser, renewed, run_benchmark, stamp, table_of
from benchmarks.wild_networks._measuring import opened_as
from benchmarks.wild_networks._packages import installed
from lowrank_core.builtin import BUILTIN, POINTS
from lowrank_core.measure.ledger import Ledger, score_key
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.context import random_keep, random_plan
from lowrank_core.predict.interval import Prediction, much, predict
from lowrank_core.predict.prediction import Context, NoiseTable, Point, curves, noise_table
from lowrank_core.predict.sensitivity import PointFile, asked, measured
from lowrank_core.predict.survey import MIXED, learnt_contexts, stored_contexts
from lowrank_core.scoring.scores import Score
from lowrank_core.store.cache import Cache
from lowrank_core.workspace import Workspace

OURS = {**{name: f"builtin:{name}" for name in BUILTIN}, "resnet20": "../shared/data/resnet20_cifar10.py"}
SMALL = {path.stem: str(path) for path in sorted((Path(__file__).parent / "small_networks").glob("[a-z]*.py"))}
USED = (*OURS, "crepe_tiny", "mtcnn", "minilm_l6", "resemblyzer")
NOT_USED = ("magika", *SMALL)
SAMPLES = {"resnet20": 1000}
"""On which plans are measured, where not on all."""
HEAD = (
    "| network | used to build it | plans | under a tenth | inside, % | of those under a tenth | width, points "
    "| of those under a tenth | mean absolute error | bias | measured to learn | of |\n" + "|---" * 12 + "|"
)
POOLED = "pooled"
T = TypeVar("T", Score, float)


class OutOfTime(Exception):
    """Nothing more is measured in this run."""


class Timed(Ledger):
    """A ledger in which nothing is computed after a moment; then it raises OutOfTime."""

    def __init__(self, path: Path | None, until: float) -> None:
        super().__init__(path)
        self._until = until

    def remembered(self, key: str, compute: Callable[[], T]) -> T:
        if key not in self._values and time.monotonic() > self._until:
            raise OutOfTime
        return super().remembered(key, compute)


@dataclass(frozen=True, slots=True)
class Row:
    """A plan that was predicted and measured, as losses against the dense network in units of a tenth."""

    lost: float
    low: float
    high: float
    predicted: float


def opened(name: str, folder: Path, packages: Path) -> Workspace:
    """A network by its name here."""
    cache = Cache(folder / "cache")
    if name in OURS | SMALL:
        return Workspace.open((OURS | SMALL)[name], cache)
    sys.path.insert(0, str(installed(import_module(f"benchmarks.wild_networks.{name}").PACKAGES, packages)))
    work = folder / f"work-{name}"
    work.mkdir(exist_ok=True)
    return Workspace.open(opened_as(name, work), cache)


def known_points(workspace: Workspace, folder: Path, until: float) -> tuple[Point, ...]:
    """The points of all layers, in the folder or with the built-in network."""
    file, shipped = (
        PointFile(folder, workspace, workspace.correction),
        PointFile.shipped(POINTS, workspace, workspace.correction),
    )
    points = [*shipped.load(), *file.load()]
    for point in measured(workspace, workspace.correction, asks=asked(workspace, MIXED), points=tuple(points)):
        file.add(point)
        points.append(point)
        if time.monotonic() > until:
            break
    return tuple(points)


def learnt(workspace: Workspace, points: tuple[Point, ...], table: NoiseTable, ledger: Ledger, samples: int) -> Context:
    """The context as the survey learns it; of a run without time what is known by then."""
    correction = workspace.correction
    before = next((stored for stored, _ in stored_contexts(PointFile.shipped(POINTS, workspace, correction))), None)
    context = Context(tuple(layer.name for layer in workspace.profile.layers))
    for made_good in (None if before is None else before.repairs, ()):
        try:
            for known in learnt_contexts(workspace, correction, points, ledger, made_good, samples=samples):
                context = known
            return context
        except OutOfTime:
            if context.joints:
                return context
    return context


def measured_score(
    workspace: Workspace, candidate: Candidate, limit: float, samples: int, full: frozenset[bool]
) -> Score:
    """The score of a plan; on fewer samples where it clearly is of a half, heavy or not, that has enough plans."""
    for score in workspace.measure(
        workspace.compress(candidate.plan, candidate.correction), samples=samples, keep=False
    ):
        low, high = score.drop_low, score.drop_high
        if low is not None and high is not None and (low > limit if True in full else False in full and high < limit):
            break
    return score


def truths(
    workspace: Workspace, limit: float, ledger: Ledger, samples: int, plans: int
) -> Iterator[tuple[RankPlan, float]]:
    """Random plans and what they lose, half of them under the limit where so many are; ends early without time."""
    draw, taken = random.Random(1), {True: 0, False: 0}
    for _ in range(5 * plans):
        lighter = taken[True] > taken[False]
        plan = random_plan(workspace.profile, MIXED, draw, random_keep(draw, lighter=lighter))
        if not plan.choices:
            continue
        candidate = workspace.candidate(plan)
        full = frozenset(heavy for heavy, count in taken.items() if count >= plans // 2)
        if len(full) == 2:
            return
        measure = partial(measured_score, workspace, candidate, limit, samples, full)
        try:
            score = ledger.remembered(f"truth {score_key(candidate, samples)}", measure)
        except OutOfTime:
            return
        heavy = score.drop >= limit
        if (
            taken[heavy] < plans // 2
            and score.samples >= min(samples, len(workspace.reference))
            and not score.not_finite
        ):
            taken[heavy] += 1
            yield plan, score.drop


def rows_of(name: str, folder: Path, packages: Path, plans: int, seconds: float) -> tuple[list[Row], int]:
    """Every plan of a network that is measured; and how many the prediction learnt from."""
    until = time.monotonic() + seconds
    workspace = opened(name, folder, packages)
    samples = min(SAMPLES.get(name, len(workspace.reference)), len(workspace.reference))
    path = folder / f"scores-{workspace.name_for('scores', 2)}.jsonl"
    ledger, table = Timed(path, until), noise_table(workspace.reference, samples)
    points = known_points(workspace, folder, until)
    context = learnt(workspace, points, table, ledger, samples)
    found, limit = curves(points), much(table)
    sign = -1 if table.score[-1] > table.score[0] else 1

    def spectra(layer: str, method: str) -> tuple[torch.Tensor, ...]:
        return workspace.factors(layer, method).spectra

    def row(prediction: Prediction, lost: float) -> Row:
        ends = sorted(sign * (table.score[0] - end) / limit for end in (prediction.low, prediction.high))
        return Row(lost / limit, *ends, sign * (table.score[0] - prediction.value) / limit)

    tested = truths(workspace, limit, ledger, samples, plans)
    rows = [row(predict(plan, found, table, spectra, context), lost) for plan, lost in tested]
    return rows, len(context.joints)


def cells(name: str, rows: list[Row], used: str, learnt_from: str) -> list[str]:
    """One line of the table; widths and errors in points, a tenth being ten of them."""
    light = [row for row in rows if row.lost < 1]

    def inside(some: list[Row]) -> str:
        return f"{100 * statistics.mean(row.low <= row.lost <= row.high for row in some):.1f}" if some else ""

    def width(some: list[Row]) -> str:
        return f"{10 * statistics.median(row.high - row.low for row in some):.2f}" if some else ""

    errors = [10 * (row.predicted - row.lost) for row in rows]
    off = [f"{statistics.mean(map(abs, errors)):.2f}", f"{statistics.mean(errors):+.2f}"] if rows else ["", ""]
    shown = [inside(rows), inside(light), width(rows), width(light), *off]
    return [name, used, f"{len(rows)}", f"{len(light)}", *shown, learnt_from, stamp()]


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NETWORK", help="one of them (repeatable)")
    parser.add_argument("--plans", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1e9, help="after which nothing more is measured of a network")
    parser.add_argument("--folder", type=Path, default=Path("build/predictions"), help="keeps all that is measured")
    parser.add_argument("--packages", type=Path, default=platformdirs.user_cache_path("rank-explorer") / "wild")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    new, every, names = [], [], options.only or [*USED, *NOT_USED]
    for name in names:
        rows, learnt_from = rows_of(name, options.folder, options.packages, options.plans, options.seconds)
        every += rows
        new.append(cells(name, rows, "yes" if name in USED else "no", f"{learnt_from} plans"))
        print(new[-1], file=sys.stderr, flush=True)
    kept = renewed(PAGES / "predictions.md" if options.write else None, HEAD, new)
    pooled = [cells(POOLED, every, "", "")] if len(names) > 1 else []
    print(table_of(HEAD, [row for row in kept if row[0] != POOLED or not pooled] + pooled))


if __name__ == "__main__":
    run_benchmark(main, apart=("--only", "--folder", "--packages", "--seconds"))
