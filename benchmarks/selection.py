"""Every rank rule at the same budgets, in one table: points lost as published, and with our correction.

    python -m benchmarks.selection --model ../shared/data/resnet20_cifar10.py --lock conv1 --lock linear
    python -m benchmarks.selection --part drop        # the smallest network within a point, judged on unseen images
    python -m benchmarks.selection --part better      # `budget` as it is beside what it was; --only NAME ...
    python -m benchmarks.selection --part cost        # CPU seconds of a search and a front, over 10 to 200 layers
    python -m benchmarks.selection --part knapsack    # exactness and speed of the knapsack
    python -m benchmarks.selection --part chosen      # the interval of the best of three plans that are equally good

Shares are of the whole model; the share of the layers that may be compressed stands beside them. "As published" means
the rule's own decomposition and no correction; "corrected" the same ranks with ours; `budget` works with the correction
from the start. Nothing is retrained. Intervals are 95 %, paired with the dense network. What is measured is kept in
`--folder`, so a run that was stopped goes on. "Before" in `--part better` is the rule of commit 998b390, with the quick
correction: points lost as on this page below or as measured then, divergences of the outputs on all evaluation samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.page import benchmark_parser, run_benchmark, stamp
from lowrank_core.algebra.knapsack import cheapest_loss
from lowrank_core.errors import LowRankError
from lowrank_core.layers.data import Dataset, joined, run
from lowrank_core.plans.correction import SAMPLES
from lowrank_core.plans.cost import dense_cost, layer_cost, plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.predict.sensitivity import BATCH, divergence
from lowrank_core.scoring.intervals import paired_interval
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.selection import front, make, search
from lowrank_core.selection._problem import Problem, problem_of
from lowrank_core.store.cache import Cache
from lowrank_core.workspace import Workspace

PARTS = ("table", "drop", "knapsack", "chosen", "better", "cost", "cost-one")
OURS = "budget"
PUBLISHED: tuple[tuple[str, str, dict[str, str], tuple[str, ...]], ...] = (
    ("uniform, SVD", "uniform", {}, ("svd",)),
    ("energy, SVD", "energy", {}, ("svd",)),
    ("energy, spatial SVD", "energy", {}, ("spatial_svd", "svd")),
    ("relative error, spatial SVD", "relative_error", {}, ("spatial_svd", "svd")),
    ("EVBMF, Tucker-2 (MUSCO)", "evbmf", {}, ()),
    ("LC, spatial SVD", "lc", {}, ()),
    ("ALDS", "alds", {}, ()),
    ("BALF, spatial SVD", "balf", {}, ()),
    ("AIMET greedy, spatial SVD", "aimet_greedy", {}, ()),
    ("naive sensitivity, spatial SVD", "naive_sensitivity", {}, ("spatial_svd", "svd")),
    ("cross-validation, spatial SVD", "cross_validation", {}, ("spatial_svd", "svd")),
    ("bisection, spatial SVD", "bisection", {"order": "together"}, ("spatial_svd", "svd")),
)
BUDGETS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("budget, spatial SVD", OURS, ("spatial_svd", "spatial_svd_aware", "svd")),
    ("budget, CP3", OURS, ("cp3", "svd")),
    ("budget, best of all", OURS, ()),
)


def answer(problem: Problem, rule: str, settings: dict[str, str]) -> RankPlan:
    """The plan a rule ends with."""
    made = make(rule, settings)
    *_, last = made.search(dataclasses.replace(problem, methods=problem.methods or made.methods))
    assert problem.fits(last.candidate.plan)
    return last.candidate.plan


def lost(score: Score) -> str:
    """'1.30 (0.92 to 1.68)', in points."""
    assert score.drop_low is not None
    assert score.drop_high is not None
    return f"{100 * score.drop:.2f} ({100 * score.drop_low:.2f} to {100 * score.drop_high:.2f})"


def share_of(problem: Problem, plan: RankPlan, quantity: str) -> str:
    """Share of the whole model, and of the layers that may be compressed."""
    profile = problem.workspace.profile
    whole = getattr(plan_cost(profile, plan), quantity) / getattr(plan_cost(profile), quantity)
    kept = sum(getattr(layer_cost(layer, plan.get(layer.name)), quantity) for layer in problem.layers)
    dense = sum(getattr(dense_cost(layer), quantity) for layer in problem.layers)
    return f"{100 * whole:.1f} ({100 * kept / dense:.1f})"


def table(workspace: Workspace, options: argparse.Namespace) -> None:
    """One Markdown row per rule and budget."""
    folder, rules = Path(options.folder), options.rules.split(",") if options.rules else None
    dense, samples = workspace.dense_score(options.samples)
    print(f"dense {100 * dense:.2f} % on {samples:,} samples; points lost, 95 % intervals\n")
    print("| budget | rule | % kept, whole (free layers) | as published | corrected | search, s |")
    print("|---|---|---|---|---|---|", flush=True)
    for quantity in options.quantities.split(","):
        for share in map(float, options.shares.split(",")):
            for label, rule, settings, methods in PUBLISHED:
                if rules is None or rule in rules:
                    row(workspace, options, folder, quantity, share, label, rule, settings, methods)
            for label, rule, methods in BUDGETS:
                if rules is None or rule in rules:
                    row(workspace, options, folder, quantity, share, label, rule, {}, methods)


def row(
    workspace: Workspace,
    options: argparse.Namespace,
    folder: Path,
    quantity: str,
    share: float,
    label: str,
    rule: str,
    settings: dict[str, str],
    methods: tuple[str, ...],
) -> None:
    """Search, measure, print."""
    asked = {quantity: share}
    problem = problem_of(
        workspace,
        **asked,
        lock=options.lock,
        methods=methods,
        corrected=rule == OURS,
        folder=folder,
        samples=options.trial_samples,
    )
    started = time.monotonic()
    named = f"| {quantity} {share:.0%} | {label} |"
    try:
        plan = answer(problem, rule, settings)
    except LowRankError as error:
        print(f"{named} - | - | - | {error} |", flush=True)
        return
    seconds = time.monotonic() - started
    scores = {
        corrected: dataclasses.replace(problem, corrected=corrected).measure(plan, samples=options.samples)
        for corrected in ((True,) if rule == OURS else (False, True))
    }
    published = lost(scores[False]) if False in scores else "-"
    print(
        f"{named} {share_of(problem, plan, quantity)} | {published} | {lost(scores[True])} | {seconds:.0f} |",
        flush=True,
    )


def drop(options: argparse.Namespace) -> None:
    """Search on one half of the images, judge on the other."""
    whole = Workspace.open(options.model)
    data = whole.reference.dataset
    half = len(data) // 2

    def on(part: Dataset) -> Workspace:
        return Workspace(dataclasses.replace(whole.opened, eval_data=lambda: part))

    searched, unseen = on(data.pick(slice(0, half))), on(data.pick(slice(half, len(data))))
    for methods in (("spatial_svd", "svd"), ("cp3", "svd")):
        problem = problem_of(searched, max_drop=options.max_drop, lock=options.lock, methods=methods)
        trials = list(make(OURS, {}).search(problem))
        answer_ = trials[-1].candidate
        score = final_score(unseen.measure(unseen.compress(answer_.plan, answer_.correction)))
        assert trials[-1].score is not None
        print(
            f"--max-drop {options.max_drop}, {methods[0]}: {share_of(problem, answer_.plan, 'multiplies')} % of the "
            f"multiplies, {len(trials) - 1} trials; the verdict took {trials[-1].score.samples:,} of {half:,} samples; "
            f"on {score.samples:,} unseen images it loses {lost(score)} points"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One question, and what the rule of commit 998b390 answered: points lost and divergence, None where not kept."""

    name: str
    model: str
    quantity: str
    share: float
    lost: float | None
    divergence: float | None = None
    lock: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()


RESNET, ENDS, SPATIAL = "../shared/data/resnet20_cifar10.py", ("conv1", "linear"), BUDGETS[0][2]
CASES = (
    Case("resnet20 50 % multiplies", RESNET, "multiplies", 0.5, 0.1, None, ENDS),
    Case("resnet20 30 % multiplies", RESNET, "multiplies", 0.3, 2.68, 0.126, ENDS),
    Case("resnet20 20 % multiplies", RESNET, "multiplies", 0.2, None, None, ENDS),
    Case("resnet20 30 % bytes", RESNET, "bytes", 0.3, 2.4, None, ENDS),
    Case("resnet20 50 % spatial", RESNET, "multiplies", 0.5, 1.6, None, ENDS, SPATIAL),
    Case("resnet20 30 % spatial", RESNET, "multiplies", 0.3, 9.6, None, ENDS, SPATIAL),
    Case("digits-cnn 10 % bytes", "builtin:digits-cnn", "bytes", 0.1, 2.89, 0.0611),
    Case("digits-attention 10 % bytes", "builtin:digits-attention", "bytes", 0.1, 21.33, 0.6169),
    Case("digits-lstm 10 % bytes", "builtin:digits-lstm", "bytes", 0.1, 49.06, 1.5863),
    Case("fft-mlp 10 % bytes", "builtin:fft-mlp", "bytes", 0.1, 0.06, 0.0001),
)
BETTER = (
    "| network, kept | lost before | lost | divergence before | divergence | correction | CPU s: search | dense pass | "
    "of |\n|---|---|---|---|---|---|---|---|---|"
)


def better(options: argparse.Namespace) -> None:
    """Each case's answer as it is now, beside what it was."""
    print(BETTER)
    for case in CASES:
        if options.only and not any(word in case.name for word in options.only):
            continue
        try:
            row_now = now(case, options)
        except LowRankError as error:
            row_now = ["-", "-", str(error), "", "", "", ""]
        print(f"| {case.name} | {' | '.join(row_now)} |", flush=True)


def now(case: Case, options: argparse.Namespace) -> list[str]:
    """The cells of one case."""
    folder = Path(options.folder)
    workspace = Workspace.open(case.model, Cache(folder / "cache"))
    correction = None  # the rule chooses its samples
    if options.correct:
        asked = dataclasses.replace(workspace.correction, kind=options.correct, samples=options.correct_samples)
        correction = workspace.correction_in(asked)
    problem = problem_of(
        workspace,
        **{case.quantity: case.share},
        lock=case.lock,
        methods=case.methods,
        folder=folder,
        samples=options.trial_samples,
        correct_by=correction,
    )
    began = time.process_time()
    *_, last = search(make(OURS, {}), problem)
    searched = time.process_time() - began
    data, names = workspace.reference.dataset.unlabelled(), workspace.judged.names
    parts = [data.pick(slice(at, at + BATCH)) for at in range(0, len(data), BATCH)]
    began = time.process_time()
    dense = joined(run(workspace.model, part, names) for part in parts)
    passed = time.process_time() - began
    model = workspace.compress(last.candidate.plan, last.candidate.correction)
    diverged = divergence(workspace.metric, joined(run(model, part, names) for part in parts), dense)
    score = final_score(workspace.measure(model))
    before = ["-" if value is None else f"{value:g}" for value in (case.lost, case.divergence)]
    used = last.candidate.correction
    by = "-" if used is None else f"{used.depth}, {used.samples:,}"
    return [before[0], lost(score), before[1], f"{diverged:.4f}", by, f"{searched:.0f}", f"{passed:.1f}", stamp()]


def cost(options: argparse.Namespace) -> None:
    """CPU seconds over the number of layers, each in a process of its own, as the network is made anew."""
    print("| layers | dense pass | quick | thorough | curves | whole search | front | in passes |")
    print("|---|---|---|---|---|---|---|---|")
    for layers in (10, 50, 100, 200):
        command = [sys.executable, "-m", "benchmarks.selection", "--part", "cost-one", "--folder", options.folder]
        ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LAYERS": str(layers)})
        said = (ended.stdout if ended.returncode == 0 else ended.stderr).strip().splitlines()[-1]
        print(f"| {layers} | {said} |", flush=True)


def cost_of_one() -> None:
    """Print what one search of the deep network takes, without anything kept."""
    workspace = Workspace.open(str(Path(__file__).with_name("deep_network.py")))
    problem = problem_of(workspace, multiplies=0.5, methods=("svd",), samples=256)
    data = workspace.calibration

    def taken(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    run(workspace.model, data)
    passed = taken(lambda: run(workspace.model, data))
    menus = [taken(lambda: make(OURS, {}).menus(problem))]
    plan = uniform_plan(workspace.profile, 0.5)
    kinds = ("least_squares", "thorough")
    corrected = [
        taken(lambda k=kind: workspace.compress(plan, dataclasses.replace(workspace.correction, kind=k)))
        for kind in kinds
    ]
    searched = taken(lambda: list(search(make(OURS, {}), problem)))
    front_taken = taken(lambda: front(problem))
    seconds = [passed, *corrected, *menus, searched, front_taken]
    passes = ", ".join(f"{each / passed:,.0f}" for each in seconds[1:])
    print(" | ".join(f"{each:.2f}" for each in seconds), "|", passes)


def knapsack() -> None:
    """Against brute force on small cases, and the time of large ones."""
    rng = np.random.default_rng(0)
    equal = cases = 0
    for _ in range(300):
        budgets = int(rng.integers(1, 4))
        losses = [rng.uniform(0, 1, int(rng.integers(1, 7))) for _ in range(int(rng.integers(1, 6)))]
        costs = [rng.integers(1, 50, (len(group), budgets)).astype(float) for group in losses]
        limits = rng.uniform(0.2, 0.9) * sum(cost.max(0) for cost in costs)
        best = min(
            (
                sum(group[i] for group, i in zip(losses, choice, strict=True))
                for choice in itertools.product(*(range(len(group)) for group in losses))
                if (sum(cost[i] for cost, i in zip(costs, choice, strict=True)) <= limits).all()
            ),
            default=None,
        )
        found = cheapest_loss(losses, costs, limits)
        cases += 1
        if found is None or best is None:
            equal += found is None and best is None
        else:
            equal += abs(sum(group[i] for group, i in zip(losses, found, strict=True)) - best) < 1e-9
    print(f"knapsack: equals brute force in {equal} of {cases} random cases")
    ranks = np.arange(1, 129)
    for budgets in (1, 2):
        losses = [rng.uniform(0.1, 10) * np.exp(-ranks / 128 * rng.uniform(1, 10)) for _ in range(150)]
        costs = [np.stack([ranks * rng.uniform(1, 100) for _ in range(budgets)], 1) for _ in range(150)]
        limits = 0.4 * sum(cost.max(0) for cost in costs)
        started = time.process_time()
        found = cheapest_loss(losses, costs, limits)
        taken = time.process_time() - started
        assert found is not None
        used = sum(cost[i] for cost, i in zip(costs, found, strict=True)) / limits
        print(f"knapsack: 150 layers x 128 ranks, {budgets} budget(s): {taken:.1f} CPU s, {used.max():.5f} of it used")


def chosen() -> None:
    """How often the interval of a drop misses the truth where its samples have chosen the best of three alike plans."""
    rng, times, chances = np.random.default_rng(0), 6000, [0.12, 0.04, 0.84]
    truth = chances[0] - chances[1]
    for samples, shared in itertools.product((100, 200, 1000), (0.0, 0.5)):
        missed = np.zeros((2, 2))
        for _ in range(times):
            drawn = rng.choice([1, -1, 0], (4, samples), p=chances)
            plans = np.where(rng.random(samples) < shared, drawn[3], drawn[:3])
            for way, plan in enumerate((plans[0], plans[plans.sum(1).argmin()])):
                worse, better = int((plan == 1).sum()), int((plan == -1).sum())
                low, high = paired_interval(worse, better, samples - worse - better)
                missed[way] += high < truth, low > truth
        one, best = (
            f"{100 * low / times:.1f} % of times below, {100 * high / times:.1f} % above" for low, high in missed
        )
        print(f"{samples} samples, {shared:.0%} of changes common: one plan {one} the truth; the best of three {best}")


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--part", choices=PARTS, default="table")
    parser.add_argument("--only", nargs="+", default=[], help="cases of --part better whose names hold one of these")
    parser.add_argument("--correct", choices=("thorough", "least_squares"), help="by this and no other")
    parser.add_argument("--correct-samples", type=int, default=SAMPLES)
    parser.add_argument("--model", default="../shared/data/resnet20_cifar10.py")
    parser.add_argument("--lock", action="append", default=[])
    parser.add_argument("--shares", default="0.75,0.5,0.3")
    parser.add_argument("--quantities", default="multiplies,bytes")
    parser.add_argument("--samples", type=int, help="evaluation samples of the table; default all")
    parser.add_argument("--trial-samples", type=int, default=1000, help="those a rule looks at while it searches")
    parser.add_argument("--rules", default="", help="only these, separated by commas")
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--folder", default="/tmp/rank-explorer-selection")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "knapsack":
        knapsack()
    elif options.part == "chosen":
        chosen()
    elif options.part == "better":
        better(options)
    elif options.part == "cost":
        cost(options)
    elif options.part == "cost-one":
        cost_of_one()
    elif options.part == "drop":
        drop(options)
    else:
        workspace = Workspace.open(options.model)
        options.samples = min(options.samples or len(workspace.reference), len(workspace.reference))
        table(workspace, options)


if __name__ == "__main__":
    run_benchmark(main)
