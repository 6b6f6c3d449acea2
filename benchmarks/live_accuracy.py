"""How soon, how cheaply and how well the live figures come. `python -m benchmarks.live_accuracy --model FILE`.

--part timing: release to first figure, time to an interval of one point, full measurement against a plain loop, last
third changed against all changed. --part thumb: a thumb at rest but not let go, on the real page in Chromium: from the
question's sending to the figure on the page, beside idle round trips by both ways, and the share of a slow drag's
positions that got a measured figure, with the panels below the figures folded and open. What predictions are worth:
`python -m benchmarks.predictions`.
Timings are wall-clock seconds of this machine as busy as it is; ratios alternate both sides in one run.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import sync_playwright

from benchmarks.drag_latency import UNFOLD
from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.compression.start import starting_plan
from lowrank_core.layers.data import run
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import useful_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.workspace import Workspace
from tests.conftest import CHROMIUM, CHROMIUM_ARGS, running_app

MODEL = "../shared/data/resnet20_cifar10.py"


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


# ---- a thumb that is held -------------------------------------------------------------------------------------------

BOARD = "document.querySelector('.rb-root').__board"
ANSWERED = """() => {
  window.answers = [];
  document.addEventListener('rank-answered', ({ detail }) => requestAnimationFrame(() => setTimeout(() =>
    window.answers.push({ ...detail, page: performance.now() - detail.asked }))));
}"""
ROUTE = """async secret => {
  const began = performance.now();
  await (await fetch('live', { method: 'POST', body: JSON.stringify({ secret, model: '', choices: {} }) })).text();
  return performance.now() - began;
}"""
RERUN = f"""() => new Promise(done => {{
  const board = {BOARD}, began = performance.now(), update = board.update;
  board.update = function (data) {{
    update.call(this, data);
    if (this.outbox.length) return;
    board.update = update;
    done(performance.now() - began);
  }};
  board.act('nothing');
}})"""


def thumb(model: str, drags: int, *, unfolded: bool) -> None:
    """Print what a person waits for while a thumb is held, as the machine is now."""
    with (
        sync_playwright() as playwright,
        tempfile.TemporaryDirectory() as folder,
        running_app(Path(folder) / "app.log", model) as url,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(600_000)
        if unfolded:
            page.add_init_script(UNFOLD)
        page.goto(f"{url}/Ranks")
        page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]")
        page.wait_for_timeout(1000)
        page.evaluate(ANSWERED)
        secret = page.evaluate(f"{BOARD}.data.secret + '.'")  # none that is known: only the way there and back
        ways = {"route": [page.evaluate(ROUTE, secret) for _ in range(20)]}
        ways["rerun of the fragment"] = [page.evaluate(RERUN) for _ in range(10)]
        waits: list[dict[str, Any]] = []
        shares: list[float] = []
        sliders = page.locator("input[type=range][aria-label$=' rank']")
        for drag in range(drags):
            slider = sliders.nth(drag * sliders.count() // drags)
            slider.scroll_into_view_if_needed()
            box = slider.bounding_box()
            assert box is not None
            x, y = box["x"] + 5, box["y"] + box["height"] / 2
            value, top = int(slider.input_value()), int(slider.get_attribute("max") or 1)
            page.mouse.move(x + (box["width"] - 10) * (value - 1) / max(1, top - 1), y)
            page.mouse.down()
            plan = page.evaluate(f"JSON.stringify({BOARD}.choices())")
            for place in (0.25, 0.35, 0.3, 0.45, 0.2):
                page.evaluate(f"window.answers = []; {BOARD}.answers.clear()")
                page.mouse.move(x + place * (box["width"] - 10), y, steps=4)
                before, plan = plan, page.evaluate(f"JSON.stringify({BOARD}.choices())")
                if plan == before:  # so few ranks that the thumb stands where it stood
                    continue
                slow = f"{BOARD}.tooSlow && {{ slow: {BOARD}.tooSlow }}"
                found = page.wait_for_function(
                    f"plan => window.answers.find(a => a.plan === plan) || {slow}", arg=plan, timeout=60_000
                )
                waits.append(found.json_value())
            passed = set()
            page.evaluate(f"{BOARD}.answers.clear()")
            began = time.perf_counter()
            while (share := (time.perf_counter() - began) / 2) < 1:
                page.mouse.move(x + share * (box["width"] - 10), y)
                passed.add(page.evaluate(f"JSON.stringify({BOARD}.choices())"))
                page.wait_for_timeout(15)
            page.wait_for_timeout(500)
            shares.append(len(passed & set(page.evaluate(f"[...{BOARD}.answers.keys()]"))) / len(passed))
            page.mouse.up()
            page.wait_for_selector("[data-testid=live-accuracy][data-state=measured]", timeout=600_000)
        browser.close()
    figures = [wait for wait in waits if wait.get("score")]
    print(f"\n{model}, a thumb at rest, panels {'open' if unfolded else 'folded'}:")
    print(f"- {drags} layers, {len(waits)} places, load {os.getloadavg()[0]:.1f}")
    for way, took in ways.items():
        print(f"- idle round trip by {way}: {_spread(took)} ms")
    if figures:
        print(f"- question to figure on the page: {_spread([wait['page'] for wait in figures])} ms")
        print(f"- of that measuring: {_spread([wait['milliseconds'] for wait in figures])} ms")
        print(f"- samples: median {statistics.median(wait['score']['samples'] for wait in figures):.0f}")
        complete = sum(not wait["left_out"] for wait in figures)
        print(f"- nothing left out of the correction: {complete} of {len(figures)}")
    print(f"- no figure: {len(waits) - len(figures)} ({', '.join({w['slow'] for w in waits if w.get('slow')}) or '-'})")
    print(f"- positions of a slow drag that got a figure: {100 * statistics.mean(shares):.0f} %")


def _spread(values: list[float]) -> str:
    return f"median {statistics.median(values):.0f}, p95 {statistics.quantiles(values, n=20)[-1]:.0f}"


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--part", choices=("all", "timing", "thumb"), default="all")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--changes", type=int, default=12)
    parser.add_argument("--drags", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.part in ("all", "thumb"):
        for unfolded in (False, True):
            thumb(options.model, options.drags, unfolded=unfolded)
    if options.part == "thumb":
        return
    torch.set_num_threads(options.threads)
    workspace = Workspace.open(options.model)
    samples = min(options.samples, len(workspace.reference))
    workspace.reference.dense_score()
    first_figure(workspace, options.changes)
    full_against_loop(workspace, options.repeats, samples)


if __name__ == "__main__":
    run_benchmark(main)
