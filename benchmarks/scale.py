"""Cost against work: more layers, more ranks, more samples, more processes.

OMP_NUM_THREADS=1 python -m benchmarks.scale [--part discovery profile tensors drag pages cluster] [--plot scale.html]

discovery: CPU seconds of `discover` for residual networks of 10 to 1,000 Linear layers.
profile: CPU seconds of measuring single layers of one network with 40 layers, without and with correction, over the
number of layers, of ranks each, and of samples; and over deeper networks, where every point runs all layers behind it.
For each: the exponent, the slope of log seconds over log work by least squares. 1 is linear; what is fixed makes it
less. The smallest of three runs in fresh workspaces whose factors are there.
tensors: CPU seconds of the command `layers` on weights of 1,000 to 50,000 tensors, in one file or ten with an index.
drag: a board of 1,000 layers in Chromium: from the input event to the last chart, and between frames; with the budget
locked every other layer gives way at each step.
pages: seconds until each page of 1,000 layers is at rest, and how long the browser was busy with it.
cluster: a profile and a search on a dask cluster of two workers on this machine, against one process with one thread:
the same answers, the ratio of wall seconds, and the same again with one worker killed half way.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from click.testing import CliRunner
from playwright.sync_api import Browser, sync_playwright
from plotly.subplots import make_subplots
from safetensors.torch import save_file

from benchmarks.drag_latency import HEAD, measure, row
from benchmarks.load import IDLE, MEASURED
from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.commands import cli
from lowrank_core.layers.data import Dataset
from lowrank_core.networks.discover import discover
from lowrank_core.plans.cost import rank_at, useful_rank
from lowrank_core.plans.plan import Choice
from lowrank_core.predict.sensitivity import Ask, asked, profile
from lowrank_core.running.parallel import HERE, Workers
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import scope
from lowrank_core.selection import make, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.workspace import Workspace
from tests.conftest import CHROMIUM, CHROMIUM_ARGS, dask_cluster, running_app

DEEP = Path(__file__).parent / "deep_network.py"
Curve = list[tuple[float, float]]  # (work, seconds)


def deep(layers: int) -> Workspace:
    """A residual network of so many Linear layers, its factors made."""
    os.environ["LAYERS"] = str(layers)
    workspace = Workspace.open(str(DEEP))
    for layer in workspace.profile.layers:
        workspace.factors(layer.name, "svd").weights((1,))
    return workspace


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def exponent(curve: Curve) -> float:
    """The slope of log seconds over log work."""
    x, y = ([math.log(value) for value in column] for column in zip(*curve, strict=True))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def show(name: str, curve: Curve) -> None:
    points = ", ".join(f"{work:,.0f}: {taken:.3g} s" for work, taken in curve)
    print(f"| {name} | {points} | {exponent(curve):.2f} |", flush=True)


# ---- one process ----------------------------------------------------------------------------------------------------


def discovery(sizes: Iterable[int]) -> Curve:
    curve = []
    for layers in sizes:
        opened = deep(layers).opened
        curve.append((layers, min(seconds(lambda o=opened: discover(o.model, o.example_inputs)) for _ in range(3))))
    return curve


def asks(workspace: Workspace, layers: int, ranks: int) -> list[Ask]:
    """So many layers, evenly spread, at so many ranks each."""
    every = workspace.profile.layers
    chosen = [every[i * len(every) // layers] for i in range(layers)]
    found = []
    for layer in chosen:
        top = useful_rank(layer, "svd")
        found += [(layer.name, Choice("svd", rank_at(top, (k + 1) / (ranks + 1)))) for k in range(ranks)]
    return found


def samples_of(count: int) -> Dataset:
    return Dataset(torch.randn(count, 96, generator=torch.Generator().manual_seed(2)))


def profiling(corrected: bool) -> dict[str, Curve]:
    def run(depth: int, layers: int, ranks: int, samples: int) -> float:
        def once() -> float:
            workspace = deep(depth)
            correction = workspace.correction if corrected else None
            if correction is not None:
                workspace.corrector.dense_pass(correction)
            return seconds(lambda: profile(workspace, correction, asks(workspace, layers, ranks), samples_of(samples)))

        return min(once() for _ in range(3))

    return {
        "layers measured": [(n, run(40, n, 4, 512)) for n in (5, 10, 20, 40)],
        "ranks of each": [(n, run(40, 10, n, 512)) for n in (2, 4, 8, 16)],
        "samples": [(n, run(40, 10, 4, n)) for n in (1024, 2048, 4096, 8192)],
        "layers of the network, 40 points": [(n, run(n, 10, 4, 512)) for n in (20, 40, 80, 160, 320)],
    }


def plot(curves: dict[str, Curve], path: Path) -> None:
    """All curves, log against log, each with a line of slope 1 through its last point."""
    figure = make_subplots(rows=1, cols=len(curves), subplot_titles=list(curves))
    for column, curve in enumerate(curves.values(), start=1):
        work, taken = zip(*curve, strict=True)
        linear = [taken[-1] * w / work[-1] for w in work]
        figure.add_scatter(x=work, y=taken, mode="lines+markers", row=1, col=column, showlegend=False)
        figure.add_scatter(x=work, y=linear, mode="lines", line_dash="dot", row=1, col=column, showlegend=False)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", title="CPU seconds", col=1)
    figure.update_layout(template="plotly_white", width=320 * len(curves), height=360)
    figure.write_html(path, include_plotlyjs=True)
    print(f"plotted in {path}; dotted: linear")


# ---- the board ------------------------------------------------------------------------------------------------------


@contextmanager
def app(layers: int) -> Iterator[tuple[Browser, str]]:
    """Chromium, and the address of a fresh server with a network of so many layers."""
    os.environ["LAYERS"] = str(layers)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = os.environ["XDG_CACHE_HOME"] = folder
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        with running_app(Path(folder) / "log", DEEP) as url:
            yield browser, url


def drag(layers: int, drags: int) -> None:
    print(HEAD)
    with app(layers) as (browser, url):
        for label, hold in ((f"{layers}", ""), (f"{layers}, multiplies held", "multiplies")):
            page = browser.new_page(viewport={"width": 1440, "height": 1000})
            print(row(label, measure(page, url, drags, hold)), flush=True)
            page.close()


AT_REST = {"Ranks": MEASURED}
"""Where a page goes on listening: the board to the survey."""


def pages(layers: int) -> None:
    """Each page of a network of so many layers, opened by its address for the first and for the second time."""
    print(f"| page, {layers} layers | first: at rest after | browser busy | second: at rest after | browser busy |")
    print("|---|---|---|---|---|")
    with app(layers) as (browser, url):
        for name in ("Ranks", "Model", "Spectra", "Search", "Fine_tune", "Compare", "Export"):
            cells = []
            for _ in range(2):
                page = browser.new_page(viewport={"width": 1440, "height": 1000})
                page.set_default_timeout(300_000)
                session = page.context.new_cdp_session(page)
                session.send("Performance.enable")
                started = time.monotonic()
                page.goto(f"{url}/{name}")
                page.get_by_role("heading", name=name.replace("_", "-"), exact=True).wait_for()
                page.wait_for_selector(AT_REST.get(name, IDLE))
                found = session.send("Performance.getMetrics")["metrics"]
                busy = next(metric["value"] for metric in found if metric["name"] == "TaskDuration")
                cells += [f"{time.monotonic() - started:.1f} s", f"{busy:.1f} s"]
                page.close()
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


# ---- a cluster ------------------------------------------------------------------------------------------------------


POINTS = 100
"""Measured by a profile on a cluster, at most."""


def cluster(ref: str) -> None:
    from distributed import Client

    torch.set_num_threads(1)
    workspace = Workspace.open(ref)  # a worker, too, opens it once and keeps its factors

    def profiled(workers: Workers) -> object:
        data = workspace.reference.dataset.pick(slice(0, 512))
        asks = asked(workspace)
        some = asks[:: -(-len(asks) // POINTS)]
        return profile(workspace, workspace.correction, some, data, workers=workers)

    def searched(workers: Workers) -> object:
        problem = problem_of(workspace, multiplies=0.5, workers=workers)
        *_, answer = search(make("budget", {}), problem)
        return answer.candidate, answer.score

    with tempfile.TemporaryDirectory() as folder, dask_cluster(Path(folder)) as address:
        two = Workers(dask=address)
        for name, work in (("profile", profiled), ("search", searched)):
            for workers in (HERE, two):  # the first time imports, opens and factorises
                work(workers)
            taken, answers = [], []
            for workers in (HERE, two):
                started = time.monotonic()
                answers.append(work(workers))
                taken.append(time.monotonic() - started)
            with Client(address, set_as_default=False) as client:
                victim = sorted(client.run(os.getpid).values())[0]
            killed: list[str] = []

            def kill(progress: Progress, victim: int = victim, killed: list[str] = killed) -> None:
                if not killed and " of " in progress.words:
                    os.kill(victim, signal.SIGKILL)
                    killed.append(progress.words)

            with scope(report=kill):
                answers.append(work(two))
            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=60)
            if not killed or any(answer != answers[0] for answer in answers):
                sys.exit(f"{name}: the answers differ, or no worker was killed")
            print(
                f"{name} of {Path(ref).name}: one process {taken[0]:.1f} s, two dask workers {taken[1]:.1f} s: "
                f"{taken[0] / taken[1]:.2f} times the throughput; equal, also with a worker killed ({killed[0]})",
                flush=True,
            )


# ---- weights alone --------------------------------------------------------------------------------------------------


def tensors(kind: str, sizes: Iterable[int]) -> Curve:
    """CPU seconds of `layers` on weights of so many tensors: one file of safetensors or PyTorch, or an index."""
    curve: Curve = []
    for count in sizes:
        state = {f"blocks.{number}.fc.weight": torch.zeros(4, 3) for number in range(count)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"weights.{kind}"
            if kind == "pth":
                torch.save(state, path)
            elif kind == "safetensors":
                save_file(state, path)
            else:
                path, places = Path(folder), {}
                for shard in range(10):
                    part = dict(list(state.items())[shard::10])
                    save_file(part, path / f"model-{shard}.safetensors")
                    places |= dict.fromkeys(part, f"model-{shard}.safetensors")
                (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
            curve.append((count, seconds(lambda path=path: CliRunner().invoke(cli, ["layers", str(path)]))))
    return curve


PARTS = ("discovery", "profile", "tensors", "drag", "pages", "cluster")


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--part", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--plot", type=Path, help="where to write a picture of the curves (HTML)")
    parser.add_argument("--layers", type=int, default=1000, help="on the board and the pages")
    parser.add_argument("--drags", type=int, default=6)
    parser.add_argument("--model", default="../shared/data/resnet20_cifar10.py", help="for the cluster")
    options = parser.parse_args()
    curves: dict[str, Curve] = {}
    if {"discovery", "profile", "tensors"} & set(options.part):
        print("| work | CPU seconds | exponent |\n|---|---|---|")
    if "discovery" in options.part:
        curves["discovery, layers"] = discovery((10, 30, 100, 300, 1000))
        show("discovery, layers", curves["discovery, layers"])
    if "profile" in options.part:
        for corrected in (False, True):
            for name, curve in profiling(corrected).items():
                label = f"profile{', corrected' if corrected else ''}: {name}"
                curves[label] = curve
                show(label, curve)
    for kind in ("safetensors", "pth", "index") if "tensors" in options.part else ():
        curves[f"layers of weights, {kind}"] = curve = tensors(kind, (1000, 5000, 20_000, 50_000))
        show(f"layers of weights ({kind}), tensors", curve)
    if options.plot and curves:
        plot(curves, options.plot)
    if "drag" in options.part:
        drag(options.layers, options.drags)
    if "pages" in options.part:
        pages(options.layers)
    if "cluster" in options.part:
        cluster(options.model)


if __name__ == "__main__":
    run_benchmark(main)
