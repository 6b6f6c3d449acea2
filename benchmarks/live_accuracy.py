"""How soon, how cheaply and how well the live figures come. `python -m benchmarks.live_accuracy --model FILE`.

--part timing: release to first figure, time to an interval of one point, full measurement against a plain loop, last
third changed against all changed. --part prediction: predicted against measured drop over random plans.
Timings are wall-clock seconds of this machine as busy as it is; ratios alternate both sides in one run.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from math import ceil
from pathlib import Path

import torch

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.commands._terminal import ProgressLine
from lowrank_core.compression.start import starting_plan
from lowrank_core.layers.data import run
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.context import Joint, context_of, joints, repairs
from lowrank_core.predict.prediction import Context, Point, Repair, curves, noise_table, predict
from lowrank_core.predict.sensitivity import PointFile, asked, measured
from lowrank_core.running.scope import scope
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.workspace import Workspace

MODEL = "../shared/data/resnet20_cifar10.py"
METHODS = ("spatial_svd", "svd", "tucker2", "cp3")
LOW, HIGH = 0.01, 0.06
IN_RANGE = 25 / 60
"""At least this share of the plans has a drop between LOW and HIGH."""


def changed(workspace: Workspace, plan: RankPlan, layer: int, step: int) -> RankPlan:
    """The plan with another rank for one layer, as a person would drag it."""
    found = workspace.profile.layers[layer]
    method = found.methods[0].name
    top = useful_rank(found, method)
    ranks = tuple(max(1, round(t * (0.3 + 0.05 * step))) for t in top)
    return plan.with_choice(found.name, Choice(method, ranks))


def measure(workspace: Workspace, candidate: Candidate) -> Iterator[Score]:
    """What the page does after a release."""
    yield from workspace.measure(workspace.compress(candidate.plan, candidate.correction))


def median(values: list[float]) -> str:
    """To two decimals; "never" of nothing."""
    return f"{statistics.median(values):.2f}" if values else "never"


# ---- timing ---------------------------------------------------------------------------------------------------------


def first_figure(workspace: Workspace, changes: int) -> None:
    """(a) and (b): a first plan is measured whole, then layers all over the network change, one after the other."""
    rng = random.Random(0)
    print("\n| | first figure, s (median, worst) | samples | to ±1 point, s (median) | samples | reached |")
    print("|---|---|---|---|---|---|")
    for corrected in (False, True):
        plan = starting_plan(workspace.profile, workspace.factors)
        final_score(measure(workspace, workspace.candidate(plan, corrected=corrected)))
        first, narrow, samples, first_samples = [], [], [], []
        for step in range(changes):
            plan = changed(workspace, plan, rng.randrange(len(workspace.profile.layers)), step)
            started = time.perf_counter()
            for count, score in enumerate(measure(workspace, workspace.candidate(plan, corrected=corrected))):
                if count == 0:
                    first.append(time.perf_counter() - started)
                    first_samples.append(score.samples)
                if score.drop_high is not None and score.drop_high - score.drop_low <= 0.02:
                    narrow.append(time.perf_counter() - started)
                    samples.append(score.samples)
                    break
        print(
            f"| {'corrected' if corrected else 'uncorrected'} | {statistics.median(first):.2f}, {max(first):.2f} "
            f"| {min(first_samples)} | {median(narrow)} | {median(samples)} | {len(narrow)} of {changes} |",
            flush=True,
        )


def full_against_loop(workspace: Workspace, repeats: int, samples: int) -> None:
    """(c) and (d): batch by batch in turn, so that both sides meet the same load."""
    reference = workspace.reference
    workspace.dense_score(samples)
    plan = starting_plan(workspace.profile, workspace.factors)
    third = len(workspace.profile.layers) * 2 // 3
    loop, full, tail = [], [], []
    for step in range(repeats):
        plan = changed(workspace, plan, 0, step)  # the first layer: nothing can be reused
        model = workspace.compress(plan)
        loop_seconds = full_seconds = 0.0
        scores = workspace.measure(model, samples=samples)
        for start in range(0, samples, reference.batch):
            part = reference.dataset.pick(slice(start, min(start + reference.batch, samples)))
            before = time.perf_counter()
            run(model, part)
            between = time.perf_counter()
            next(scores)
            loop_seconds += between - before
            full_seconds += time.perf_counter() - between
        later = plan
        for layer in range(third, len(workspace.profile.layers)):
            later = changed(workspace, later, layer, step)
        before = time.perf_counter()
        final_score(workspace.measure(workspace.compress(later), samples=samples))
        tail.append(time.perf_counter() - before)
        loop.append(loop_seconds)
        full.append(full_seconds)
    print(f"\nmeasurement of {samples:,} images, {repeats} times:")
    print(f"- a plain loop over the same compressed model: {statistics.median(loop):.2f} s")
    whole = statistics.median(a / b for a, b in zip(full, loop, strict=True))
    cheaper = statistics.median(a / b for a, b in zip(full, tail, strict=True))
    print(f"- the whole network measured, and kept for later: {whole:.3f} x that")
    print(f"- only the last third changed: {cheaper:.2f} x cheaper than the whole")


# ---- prediction -----------------------------------------------------------------------------------------------------


def random_plan(workspace: Workspace, rng: random.Random) -> RankPlan:
    """At least half of the layers, each by a random method at ranks uniform in 10-100 % of the useful rank."""
    layers = workspace.profile.layers
    chosen = {}
    for layer in rng.sample(layers, rng.randint(ceil(len(layers) / 2), len(layers))):
        usable = [m.name for m in layer.methods if m.name in METHODS and all(useful_rank(layer, m.name))]
        if usable:
            method = rng.choice(usable)
            ranks = tuple(max(1, round(rng.uniform(0.1, 1) * top)) for top in useful_rank(layer, method))
            chosen[layer.name] = Choice(method, ranks)
    return RankPlan.of(workspace.profile.fingerprint, chosen)


def measured_plans(workspace: Workspace, plans: int, samples: int, seed: int) -> Iterator[tuple[RankPlan, Score]]:
    """Plans in the order they are drawn; once too many lie outside 1 to 6 points, only those inside are taken.

    From then on a measurement ends as soon as its interval, on 128 samples or more, lies outside.
    """
    rng, outside, taken, drawn = random.Random(seed), 0, 0, 0
    while taken < plans:
        plan = random_plan(workspace, rng)
        drawn += 1
        full = outside >= plans - ceil(IN_RANGE * plans)
        candidate = workspace.candidate(plan)
        model = workspace.compress(plan, candidate.correction)
        for score in workspace.measure(model, samples=samples, keep=False):
            if full and score.samples >= 128 and not (score.drop_low <= HIGH and score.drop_high >= LOW):
                break
        inside = LOW <= score.drop <= HIGH
        if full and not inside:
            continue
        outside += not inside
        taken += 1
        print(f"plan {taken} of {plans} ({drawn} drawn): drop {100 * score.drop:.2f}", file=sys.stderr, flush=True)
        yield plan, score


def prediction(workspace: Workspace, plans: int, samples: int, seed: int, folder: Path) -> None:
    """(e): points are kept in the folder and measured only where they are missing; so are the measured plans."""
    file = PointFile(folder, workspace, workspace.correction)
    known = list(file.load())
    asks = asked(workspace, METHODS)
    with scope(report=ProgressLine()):
        for point in measured(workspace, workspace.correction, asks=asks, points=tuple(known)):
            known.append(point)
            file.add(point)
    context = measured_context(workspace, known, folder / "context.json")
    kept = folder / f"plans-{plans}-{samples}-{seed}.json"
    if kept.exists():
        rows = [(RankPlan.from_json(text), drop) for text, drop, _ in json.loads(kept.read_text())]
    else:
        rows = []
        for plan, score in measured_plans(workspace, plans, samples, seed):
            rows.append((plan, score.drop))
        kept.write_text(json.dumps([(p.to_json(), drop, None) for p, drop in rows]))
    print("\nsingle layers only:")
    report(workspace, known, rows, Context())
    print(f"\nwith {len(context.repairs)} repairs and a scale of {context.scale:.2f} from other random plans:")
    report(workspace, known, rows, context)


def measured_context(workspace: Workspace, points: list[Point], file: Path) -> Context:
    """Kept in the file; none of the plans it learns from is among those of the check."""
    if not file.exists():
        started = time.perf_counter()
        fixed = list(repairs(workspace, workspace.correction, points))
        between = time.perf_counter()
        whole = list(joints(workspace, workspace.correction, METHODS))
        print(f"repairs {between - started:.0f} s, joint plans {time.perf_counter() - between:.0f} s", file=sys.stderr)
        content = [[asdict(r) for r in fixed], [[j.plan.to_json(), j.score] for j in whole]]
        file.write_text(json.dumps(content))
    fixed, whole = json.loads(file.read_text())
    table = noise_table(workspace.reference)
    learnt = [Joint(RankPlan.from_json(text), score) for text, score in whole]
    return context_of(workspace, points, table, [Repair(**r) for r in fixed], learnt)


def report(workspace: Workspace, points: list[Point], rows: list[tuple[RankPlan, float]], context: Context) -> None:
    """Print what the predicted drops are worth."""
    table, found = noise_table(workspace.reference), curves(points)
    dense = workspace.dense_score(1024)[0]

    def spectra(layer: str, method: str) -> tuple[torch.Tensor, ...]:
        return workspace.factors(layer, method).spectra

    pairs = [(100 * (dense - predict(plan, found, table, spectra, context)), 100 * drop) for plan, drop in rows]
    print("\n| measured drop, points | plans | mean absolute error | bias | worst |\n|---|---|---|---|---|")
    edges = [(-100, 1), (1, 3), (3, 6), (-100, 6), (6, 100)]
    for low, high in edges:
        errors = [p - m for p, m in pairs if low <= m < high]
        if errors:
            name = f"{low} to {high}" if low > -100 else f"under {high}"
            mean, bias = statistics.mean(map(abs, errors)), statistics.mean(errors)
            print(f"| {name} | {len(errors)} | {mean:.2f} | {bias:+.2f} | {max(errors, key=abs):+.2f} |")
    beyond = [p for p, m in pairs if m >= 6]
    print(f"of {len(beyond)} plans that lose 6 points or more, {sum(p >= 6 for p in beyond)} are said to")


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--part", choices=("all", "timing", "prediction"), default="all")
    parser.add_argument("--plans", type=int, default=60)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--changes", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--folder", type=Path, default=Path("build/live_accuracy"), help="keeps points and measured plans"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workspace = Workspace.open(options.model)
    samples = min(options.samples, len(workspace.reference))
    if options.part != "prediction":
        workspace.reference.dense_score()
        first_figure(workspace, options.changes)
        full_against_loop(workspace, options.repeats, samples)
    if options.part != "timing":
        options.folder.mkdir(parents=True, exist_ok=True)
        prediction(workspace, options.plans, samples, options.seed, options.folder)


if __name__ == "__main__":
    run_benchmark(main)
