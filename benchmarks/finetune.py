"""What fine-tuning wins back. `python -m benchmarks.finetune --part resnet|digits|fft`.

--part resnet: ResNet-20 at 30 % of the multiplies of its blocks (or --plan FILE): points lost before and after
--epochs passes over the training images, mixed in pairs or not (--inputs), with and without labels (--losses), several
seeds, paired 95 % intervals, and what each pass won on the samples held back. With --folder it goes on where it was.
--part digits: the digits CNN at 10 % of its parameters: the score after each epoch, from the plan and from scratch.
--part fft: the spectrum network with rank 8 in its first layer: from scratch (direct), by the weights alone (indirect),
indirect then tuned, and dense from scratch on equal terms; with the time of an epoch.
Evaluation samples choose nothing: settings are the defaults, weights are picked on held-back training samples.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from benchmarks.page import benchmark_parser, run_benchmark
from benchmarks.quality import lost, uniform
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan, read_plan
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.training.recipe import Settings
from lowrank_core.training.sweep import Run, runs, summary
from lowrank_core.workspace import Workspace

RESNET = "../shared/data/resnet20_cifar10.py"
FFT_RANK = 8


def trained(workspace: Workspace, candidate: Candidate, settings: Settings, seeds: int, watch: int = 0) -> list[Run]:
    """One run for each seed."""
    *_, last = runs(workspace, candidate, settings, range(seeds), watch=watch)
    return list(last.finished)


def epoch_seconds(found: Iterable[Run]) -> float:
    """Median over all epochs of all runs, without the start."""
    return statistics.median(epoch.seconds for run in found for epoch in run.epochs[1:])


def percent(values: Iterable[float]) -> str:
    """'98.21 ± 0.13, best 98.40': mean and standard deviation of scores in percent."""
    found = [100 * value for value in values]
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.2f}{spread}, best {max(found):.2f}"


def start(workspace: Workspace, candidate: Candidate) -> Score:
    """The score of the plan as it is, corrected."""
    return final_score(workspace.measure(workspace.compress(candidate.plan, candidate.correction), keep=False))


def resnet(options: argparse.Namespace) -> None:
    """Before and after, with and without labels."""
    workspace = Workspace.open(options.model or RESNET)
    share = options.share or 0.3
    plan = uniform(workspace, workspace.profile.layers[1:-1], options.method or "cp3", "multiplies", share)
    candidate = workspace.candidate(plan)
    if options.plan:
        file = read_plan(options.plan.read_bytes())
        if options.kind:
            file = replace(
                file, correction={**(file.correction or {}), "kind": options.kind, "samples": options.samples}
            )
        candidate = workspace.candidate_in(file)
    cost, dense = plan_cost(workspace.profile, candidate.plan), plan_cost(workspace.profile)
    before = start(workspace, candidate)
    print(
        f"{cost.multiplies:,} of {dense.multiplies:,} multiplies, {cost.parameters:,} of {dense.parameters:,} "
        f"parameters. Dense {before.dense:.2%}; before: {before.value:.2%}, {lost(before)} points lost.\n"
    )
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    columns = ["learns from", "inputs", "seed", "best epoch", "after, %", "points lost", "s per epoch"]
    print(f"| {' | '.join(columns)} | points each pass won, held back |\n|{'---|' * (len(columns) + 1)}")
    for loss, inputs in product(options.losses.split(","), options.inputs.split(",")):
        settings = Settings(
            epochs=options.epochs or Settings().epochs,
            loss=loss,
            mix=inputs == "mixed",
            augment=options.augment,
            train=options.train,
            learning_rate=options.learning_rate,
            optimizer=options.optimizer,
            batch=options.batch,
        )
        found = []
        for step in runs(workspace, candidate, settings, range(options.seeds or 3), folder=options.folder):
            if step.epoch.model is not None:
                run = step.finished[-1]
                found.append(run)
                row = [loss, inputs, run.seed, step.epoch.best, f"{100 * run.score.value:.2f}", lost(run.score)]
                won = ", ".join(f"{100 * (epoch.won or 0):+.1f}" for epoch in run.epochs[1:])
                print(f"| {' | '.join(map(str, row))} | {epoch_seconds([run]):.0f} | {won} |", flush=True)
        scores = percent(run.score.value for run in found)
        print(f"| {loss} | {inputs} | all | | {scores} | | {epoch_seconds(found):.0f} | |")


def digits(options: argparse.Namespace) -> None:
    """The curve over the epochs."""
    workspace = Workspace.open(options.model or "builtin:digits-cnn")
    layers, share = workspace.profile.layers[:-1], options.share or 0.1
    method = options.method or "spatial_svd"
    plan = uniform(workspace, layers, method, "parameters", share, budget_of_layers=False)
    candidate = workspace.candidate(plan)
    if options.plan:
        candidate = workspace.candidate_in(read_plan(options.plan.read_bytes()))
    epochs, seeds = options.epochs or 20, options.seeds or 5
    arms = {
        "from the plan, no labels": Settings(epochs=epochs, patience=epochs),
        "the same, not mixed": Settings(epochs=epochs, patience=epochs, mix=False),
        "from the plan, labels": Settings(epochs=epochs, patience=epochs, loss="labels"),
        "from the plan, both": Settings(epochs=epochs, patience=epochs, loss="both"),
        "random factors, no labels": Settings(epochs=epochs, patience=epochs, from_scratch=True),
    }
    total = len(workspace.reference)
    curves = {arm: trained(workspace, candidate, settings, seeds, total) for arm, settings in arms.items()}
    print(f"Dense {workspace.dense_score()[0]:.2%} on {total} images; mean of {seeds} seeds.\n")
    print(f"| epoch | {' | '.join(curves)} |\n|---{'|---' * len(curves)}|")
    for number in range(epochs + 1):
        means = [
            statistics.fmean(100 * run.epochs[number].score.value for run in found if run.epochs[number].score)
            for found in curves.values()
        ]
        print(f"| {number} | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    kept = [percent(run.score.value for run in found) for found in curves.values()]
    print(f"| kept | {' | '.join(kept)} |")
    print(f"\n{epoch_seconds(curves['from the plan, no labels']):.2f} s an epoch.")


def fft(options: argparse.Namespace) -> None:
    """Direct against indirect against dense."""
    workspace = Workspace.open(options.model or "builtin:fft-mlp")
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (FFT_RANK,))})
    epochs, seeds = options.epochs or 10, options.seeds or 5
    scratch = Settings(epochs=epochs, patience=epochs, batch=50, train="everything", loss="labels", from_scratch=True)
    candidate = workspace.candidate(plan)
    tuning = Settings(epochs=epochs, patience=epochs, batch=50)
    arms = {
        "dense, from scratch": (Candidate(RankPlan(plan.fingerprint)), scratch),
        f"rank {FFT_RANK}, from scratch (direct)": (Candidate(plan), scratch),
        f"rank {FFT_RANK}, from the plan, then tuned": (candidate, tuning),
    }
    indirect = start(workspace, candidate)
    print("| | score, % | parameters | ms per epoch |\n|---|---|---|---|")
    dense, small = plan_cost(workspace.profile), plan_cost(workspace.profile, plan)
    print(f"| dense, as shipped | {100 * indirect.dense:.2f} | {dense.parameters:,} | |")
    print(f"| rank {FFT_RANK}, from the plan (indirect) | {100 * indirect.value:.2f} | {small.parameters:,} | |")
    seconds = []
    for arm, (given, settings) in arms.items():
        found = trained(workspace, given, settings, seeds)
        seconds.append(epoch_seconds(found))
        scores, parameters = summary(found).scores, plan_cost(workspace.profile, given.plan).parameters
        print(f"| {arm} | {percent(scores)} | {parameters:,} | {1000 * seconds[-1]:.0f} |", flush=True)
    print(f"\nA dense epoch takes {seconds[0] / seconds[1]:.1f} times as long as a factorised one.")


def main() -> None:
    """Print the tables of one part."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--part", choices=["resnet", "digits", "fft"], required=True)
    parser.add_argument("--model", help="another model file or builtin:NAME for the part")
    parser.add_argument("--plan", type=Path, help="plan file; default: uniform ranks")
    parser.add_argument("--method", help="of the uniform plan; default cp3 (resnet), spatial_svd (digits)")
    parser.add_argument("--share", type=float, help="kept by the uniform plan; default 0.3 (resnet), 0.1 (digits)")
    parser.add_argument("--kind", help="of the correction of --plan, in place of its own (resnet)")
    parser.add_argument("--samples", type=int, default=1024, help="that --kind is fitted on")
    parser.add_argument("--losses", default="distill", help="distill, labels, both; comma-separated (resnet)")
    parser.add_argument("--inputs", default="mixed", help="mixed, plain; comma-separated (resnet)")
    parser.add_argument("--augment", choices=["none", "shift", "flip"], default="none", help="(resnet)")
    parser.add_argument("--folder", type=Path, help="where trainings keep their states, to go on from (resnet)")
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd", help="(resnet)")
    parser.add_argument("--train", choices=["factors", "everything"], default="factors", help="(resnet)")
    parser.add_argument("--learning-rate", type=float, help="(resnet)")
    parser.add_argument("--batch", type=int, default=Settings().batch, help="(resnet)")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"resnet": resnet, "digits": digits, "fft": fft}[options.part](options)


if __name__ == "__main__":
    run_benchmark(main)
