"""Many people at once: real browsers on several models, the server's memory, its log, and whose plan is whose.

    python -m benchmarks.load [--minutes 10] [--sessions 8] [--model ../shared/data/resnet20_cifar10.py]

Every session follows a seeded script, first each step once and then whatever comes: drags ranks, reads the live
figures, undoes, switches pages, searches, compares, trains, exports, downloads its plan, reloads. It knows which ranks
it has set; whenever a page shows them, and in every file, they must be these and no others, and bytes and multiplies
must be those of this plan. Afterwards accuracies that were shown are measured again here, with the correction
that they were shown with. A step is unanswered where what it waits for does not come, or the page, while it works, says
nothing new for 300 s. Printed: what was done and how long it took, the load of the machine, the curve of the server's
resident memory, and all that went wrong: foreign plans, alerts, time-outs, errors in a
browser's console, exceptions in the server's log. The exit status is 1 if anything did, or if memory still grows: after
the warm-up, a line through the curve must rise by less than 0.5 % of its median per minute (or by nothing that differs
from zero), and the last third of the run must have at most 2 % more than the third before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from playwright.async_api import Browser, Locator, Page, async_playwright, expect
from playwright.async_api import Error as BrowserError
from playwright.async_api import TimeoutError as BrowserTimeout
from scipy.stats import linregress, t

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan, read_plan
from lowrank_core.scoring.scores import final_score
from lowrank_core.workspace import Workspace
from tests.conftest import AT_REST, CHROMIUM, CHROMIUM_ARGS, running_server

MODELS = ("builtin:digits-cnn", "builtin:digits-attention", "builtin:fft-mlp")
WAIT = 300_000
"""Milliseconds: eight renderers and the server share few cores."""

SAMPLE_SECONDS = 5.0
RECOMPUTED = 5
"""Measured accuracies that are measured again, for each model."""

RANKS = """() => Object.fromEntries([...document.querySelectorAll('.rb-row')].map(
    row => [row.dataset.layer, row.querySelector('.rb-entry').value]))"""
BOARD = """() => {
    const board = (document.querySelector('.rb-root') || {}).__board;
    const app = document.querySelector('[data-testid=stApp]');
    return { script: app && app.dataset.testScriptState, ...(board && {
        rev: board.rev, python: board.data.rev, scored: board.scoreRev, measuring: board.measuring, doing: board.doing,
        dragging: board.dragging, unheard: board.outbox.length, status: board.status.textContent }) };
}"""
FIGURE = """() => [document.querySelector('[data-testid=live-accuracy]').innerText,
    document.querySelector('.rb-root').__board.depth]"""
"""What is shown, and the correction that it was measured with: the quick one is there sooner."""

FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
FRESH = "[data-testid=live-accuracy]:is([data-state=measuring], [data-state=measured])"
MAIN = "[data-testid=stMain]"
MEASURED = "[data-testid=live-accuracy][data-state=measured]"
WRONG = re.compile(r"Traceback|Uncaught|Exception|\bERROR\b|\bCRITICAL\b")

Curve = list[tuple[float, float]]
"""(minutes, MB) of the server."""

Ranks = dict[str, str]
"""{layer: what the board writes beside its slider: "dense", "12" or "16, 12"}"""


def plan_of(workspace: Workspace, ranks: Ranks) -> RankPlan:
    """The plan that the board shows as these ranks; the script leaves every layer's method alone."""
    chosen = {
        name: Choice(workspace.profile.layer(name).methods[0].name, tuple(map(int, text.split(","))))
        for name, text in ranks.items()
        if text != "dense"
    }
    return RankPlan.of(workspace.profile.fingerprint, chosen)


def amount(text: str) -> float:
    """A figure of the board.

    >>> amount("40.55 M"), amount("698.6 kB"), amount("12 B")
    (40550000.0, 698600.0, 12.0)
    """
    number, unit = re.fullmatch(r"([\d.]+)\s*([kMGT]?)B?", text.strip()).groups()
    return float(number) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]


@dataclass
class Visitor:
    """One session: what it must see, what it does, and what it has found."""

    number: int
    page: Page
    url: str
    workspace: Workspace
    draw: random.Random
    ranks: Ranks = field(default_factory=dict)
    past: list[Ranks] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unanswered: int = 0
    measured: dict[tuple[tuple[str, str], ...], tuple[str, str]] = field(default_factory=dict)  # figure, correction
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def small(self) -> bool:
        """Whether the model trains and exports in seconds."""
        return self.workspace.opened.ref.startswith("builtin:")

    async def stay(self, until: float) -> None:
        """Do one thing after the other until it is time."""
        self.page.set_default_timeout(WAIT)
        self.page.on("pageerror", lambda error: self.say(f"exception in the browser: {error}"))
        self.page.on("console", lambda told: told.type == "error" and self.console(told.text, told.location["url"]))
        await self.attempt("arrive", self.arrive)
        often = {
            self.drag: 10, self.undo: 2, self.measure: 3, self.reload: 2, self.spectra: 1, self.model: 1,
            self.export: 2, self.compare: 1, self.search: 1, self.write: self.small, self.tune: self.small,
        }  # fmt: skip
        left = [step for step, weight in often.items() if weight]  # once each: what is loaded late is there then
        self.draw.shuffle(left)
        while time.monotonic() < until:
            await asyncio.sleep(self.draw.uniform(0.3, 1))
            (step,) = [left.pop()] if left else self.draw.choices(list(often), list(often.values()))
            await self.attempt(step.__name__, step)

    async def attempt(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        """One step; what goes wrong is noted, and the session begins again where the address leads."""
        began = time.monotonic()
        try:
            await step()
            self.seconds.setdefault(name, []).append(time.monotonic() - began)
        except (BrowserError, AssertionError) as error:
            self.unanswered += isinstance(error, BrowserError)
            self.say(f"{name}: {str(error).strip()[:300]}")
            with suppress(BrowserError):
                print(f"session {self.number}: {await self.page.evaluate(BOARD)}", flush=True)
                print((await self.page.inner_text(MAIN))[:2000], flush=True)
                await self.page.goto(re.sub(r":(\d+)/\w*", r":\1/Ranks", self.page.url))
                await self.until(FRESH)
                self.ranks = await self.shown()

    def say(self, what: str) -> None:
        """Note what went wrong."""
        self.wrong.append(f"session {self.number} ({self.workspace.name}): {' '.join(what.split())}")
        print(self.wrong[-1], flush=True)

    def console(self, text: str, url: str) -> None:
        """An error in the console.

        Streamlit looks for its own address below the page's first, and finds nothing. And it asks for the file of a
        download button as soon as it draws one: by then a run that followed may have brought another file.
        """
        expected = re.search(r"/\w+/_stcore/(health|host-config)$|/media/\w+(\.\w+)?$", url)
        if not expected and "Download Button source error" not in text:
            self.say(f"console: {text} {url}")

    # ---- Ranks ----

    async def arrive(self) -> None:
        """Open the model for the first time and set ranks that nobody else has."""
        await self.page.goto(f"{self.url}/Ranks?model={self.workspace.opened.ref}")
        await self.until(FRESH)
        self.ranks = await self.shown()
        for name in self.draw.sample(list(self.ranks), min(len(self.ranks), 4)):
            entry = self.page.get_by_label(f"{name} exact rank", exact=True)
            top = self.workspace.profile.layer(name).methods[0].max_rank(self.workspace.profile.layer(name).spec)
            await entry.fill(", ".join(str(self.draw.randint(1, max(1, rank // 2))) for rank in top))
            await entry.press("Enter")
            await self.until(FRESH)
            self.past.append(self.ranks)
            self.ranks = await self.shown()

    async def shown(self) -> Ranks:
        """What the board shows."""
        found: Ranks = await self.page.evaluate(RANKS)
        return found

    async def see(self, *, wait: bool) -> None:
        """The board must show this session's plan, with its bytes and multiplies."""
        await self.until(FRESH)
        if wait and await self.shown() != self.ranks:  # the board may still be adopting them
            wanted = json.dumps(self.ranks, separators=(",", ":"))
            await self.page.wait_for_function(f"wanted => JSON.stringify(({RANKS})()) === wanted", arg=wanted)
        found = await self.shown()
        assert found == self.ranks, f"the board shows {found}, not {self.ranks}"
        cost = plan_cost(self.workspace.profile, plan_of(self.workspace, self.ranks))
        for kind, exact in (("bytes", cost.bytes), ("multiplies", cost.multiplies)):
            text = await self.page.inner_text(f"[data-testid=live-{kind}]")
            assert abs(amount(text) - exact) <= max(0.005, 6e-4 * exact), f"{kind}: {text} shown, {exact} in truth"

    async def drag(self) -> None:
        """Drag the thumb of some layer by mouse; nothing else may move."""
        await self.on_ranks()
        handles = self.page.locator("input[type=range][aria-label*=' rank']")
        handle = handles.nth(self.draw.randrange(await handles.count()))
        name = str(await handle.get_attribute("aria-label")).split(" rank")[0]
        before = await self.shown()
        await handle.scroll_into_view_if_needed()
        if self.draw.random() < 0.25:
            await handle.press(self.draw.choice(["ArrowLeft", "ArrowRight", "PageDown", "PageUp"]))
        else:
            await self.by_mouse(handle)
        await self.page.evaluate(FRAMES)  # figures and entries are drawn once per frame
        after = await self.shown()
        moved = {layer for layer in after if after[layer] != before.get(layer)}
        assert moved <= {name}, f"{name} was dragged, {moved} moved"
        if moved:
            self.past.append(self.ranks)
            self.ranks = after
        await self.see(wait=False)

    async def by_mouse(self, handle: Locator) -> None:
        """Press, move in some steps, look at the live figures, let go."""
        box = await handle.bounding_box()
        assert box is not None
        top, rank = int(await handle.get_attribute("max") or 1), int(await handle.input_value())
        mouse, middle = self.page.mouse, box["y"] + box["height"] / 2

        def at(place: float) -> float:
            return box["x"] + 5 + (box["width"] - 10) * place

        await mouse.move(at((rank - 1) / max(1, top - 1)), middle)
        await mouse.down()
        await mouse.move(at(self.draw.random()), middle, steps=self.draw.randint(4, 12))
        await self.page.wait_for_timeout(50)
        await mouse.up()

    async def undo(self) -> None:
        """One step back."""
        await self.on_ranks()
        if not self.past:
            return
        self.ranks = self.past.pop()
        await self.page.get_by_role("button", name="Undo").click()
        await self.see(wait=True)

    async def measure(self) -> None:
        """Wait for the accuracy of the plan."""
        await self.on_ranks()
        await self.until(MEASURED)
        await self.see(wait=False)
        text, depth = await self.page.evaluate(FIGURE)
        self.measured[tuple(self.ranks.items())] = text, depth

    async def reload(self) -> None:
        """The address brings everything back."""
        await self.on_ranks()
        await self.page.reload()
        await self.see(wait=True)

    async def on_ranks(self) -> None:
        """Be on Ranks, with the own plan."""
        if "/Ranks" not in self.page.url:
            await self.go("Ranks")
            await self.see(wait=True)

    # ---- other pages ----

    async def go(self, title: str) -> None:
        """Switch to a page as people do."""
        if "/Ranks" in self.page.url:
            await self.until(FRESH)  # what was let go of has arrived
        await self.page.get_by_test_id("stSidebar").get_by_role("link", name=title, exact=True).click()
        await self.page.get_by_role("heading", name=title, exact=True).wait_for()

    async def until(self, selector: str) -> None:
        """Wait for it as long as the page says something new within WAIT: a person who sees it work waits, too."""
        said, since = "", time.monotonic()
        while not await self.page.locator(selector).count():
            now = await self.page.inner_text(MAIN)
            if now != said:
                said, since = now, time.monotonic()
            if time.monotonic() - since > WAIT / 1000:
                raise BrowserTimeout(f"nothing new was said for {WAIT / 1000:.0f} s: {selector}")
            await asyncio.sleep(0.2)

    async def at_rest(self) -> None:
        """The page is whole, and complains of nothing."""
        await self.until(AT_REST)
        alerts = await self.page.locator(
            "[data-testid=stException], [data-testid=stAlertContentError]"
        ).all_inner_texts()
        assert not alerts, f"the page says {alerts}"

    async def model(self) -> None:
        """Look at the layers."""
        await self.go("Model")
        await self.at_rest()

    async def spectra(self) -> None:
        """Look at the spectra."""
        await self.go("Spectra")
        await self.page.get_by_role("link", name="Choose the ranks").wait_for()
        await self.at_rest()

    async def compare(self) -> None:
        """Wait for the table: its bytes must be those of the own plan."""
        await self.go("Compare")
        table = self.page.get_by_role("region", name="Comparison")
        await table.get_by_role("columnheader", name="This plan").wait_for()
        await self.at_rest()
        cost = plan_cost(self.workspace.profile, plan_of(self.workspace, self.ranks))
        row = table.get_by_role("row").filter(has_text="Multiplies").first
        shown = amount(await row.locator(".value").nth(1).inner_text())
        assert abs(shown - cost.multiplies) <= 6e-4 * cost.multiplies, f"Compare shows {shown}, not {cost.multiplies}"

    async def export(self) -> None:
        """Download the plan: it must be the own one."""
        await self.go("Export")
        async with self.page.expect_download() as download:
            await self.page.get_by_role("button", name="Download the plan").click()
        found = read_plan((await (await download.value).path()).read_bytes()).plan
        assert found == plan_of(self.workspace, self.ranks), f"the file holds {found.choices}, not {self.ranks}"
        await self.at_rest()

    async def write(self) -> None:
        """Write a checkpoint, tried in a fresh process."""
        await self.go("Export")
        await self.page.get_by_role("button", name="Write the checkpoint").click()
        written = self.page.get_by_role("button", name="Download the checkpoint")
        await expect(written).to_have_count(0)  # one written before goes
        async with self.page.expect_download() as download:
            await written.click()
        await (await download.value).path()
        await self.at_rest()

    async def search(self) -> None:
        """Ask a rule that is quick."""
        await self.go("Search")
        start = self.page.get_by_role("button", name="Start search")
        await expect(start).to_be_enabled(timeout=WAIT)
        await self.at_rest()
        box = self.page.get_by_role("combobox", name="Rule")
        await box.click()
        await box.fill("Uniform")
        await self.page.get_by_role("option", name=re.compile("^Uniform:")).click()
        await self.page.get_by_text("The same share of the largest paying rank").wait_for()
        await self.at_rest()
        budget = self.page.get_by_role("slider", name="Multiplies budget")
        for _ in range(self.draw.randrange(5)):
            await budget.press("ArrowRight")
        await self.at_rest()
        await start.click()
        await self.at_rest()
        await self.page.get_by_text(re.compile("Adopt this plan|This is the plan now")).first.wait_for()

    async def tune(self) -> None:
        """Train for one epoch."""
        await self.go("Fine-tune")
        start = self.page.get_by_role("button", name=re.compile("Start training"))
        await expect(start).to_be_enabled(timeout=WAIT)
        await self.at_rest()
        epochs = self.page.get_by_role("spinbutton", name="Epochs", exact=True)
        if not await epochs.is_visible():
            await self.page.get_by_text("More settings").click()
        await epochs.fill("1")
        await epochs.press("Enter")
        await self.at_rest()
        await start.click()
        await self.page.get_by_role("button", name="Send to Export").first.wait_for()
        await self.at_rest()


# ---- the server -----------------------------------------------------------------------------------------------------


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def sampled(pid: int, until: float, curve: Curve) -> None:
    """Note (minutes, MB) every few seconds."""
    began = time.monotonic()
    while time.monotonic() < until:
        curve.append(((time.monotonic() - began) / 60, resident_bytes(pid) / 1e6))
        await asyncio.sleep(SAMPLE_SECONDS)


def flat(curve: Curve, minutes: float, warm_up: float) -> bool:
    """Print the curve, and whether it still rises after the warm-up."""
    print("\n| minute | MB, smallest | median | largest |\n|---|---|---|---|")
    for minute in range(int(-(-minutes // 1))):
        part = [mb for at, mb in curve if minute <= at < minute + 1]
        if part:
            print(f"| {minute + 1} | {min(part):.0f} | {median(part):.0f} | {max(part):.0f} |")
    halves = [
        (half / 2, median(part))
        for half in range(int(2 * warm_up), int(2 * minutes))
        if (part := [mb for at, mb in curve if half / 2 <= at < (half + 1) / 2])
    ]
    if len(halves) < 4:
        print("too short to say whether memory is flat")
        return False
    line = linregress(*zip(*halves, strict=True))
    half_width = float(t.ppf(0.975, len(halves) - 2) * line.stderr)
    usual = median(mb for _, mb in halves)
    thirds = [[mb for at, mb in curve if part / 3 <= at / minutes < (part + 1) / 3] for part in range(3)]
    ratio = median(thirds[2]) / median(thirds[1])
    print(
        f"\nafter {warm_up:g} minutes: {line.slope:+.1f} MB per minute (95 %: {line.slope - half_width:+.1f} to "
        f"{line.slope + half_width:+.1f}) of {usual:.0f} MB; last third against the middle: {100 * (ratio - 1):+.1f} %"
    )
    return (line.slope - half_width <= 0 or line.slope < 0.005 * usual) and ratio <= 1.02


def measured_again(workspace: Workspace, visitors: list[Visitor], draw: random.Random) -> list[str]:
    """Accuracies that were shown, measured here: those that differ."""
    shown = sorted({item for visitor in visitors for item in visitor.measured.items()})
    chosen = draw.sample(shown, min(len(shown), RECOMPUTED))
    wrong = []
    for ranks, (text, depth) in chosen:
        plan = plan_of(workspace, dict(ranks))
        asked = workspace.candidate(plan)
        asked = workspace.quick(asked) if depth == "quick" else asked
        model = workspace.compress(plan, asked.correction)
        value = final_score(workspace.measure(model)).value
        if abs(100 * value - float(text.split()[0])) > 0.0051:
            wrong.append(
                f"{workspace.name}: {text} ({depth}) shown for {dict(ranks)}, {100 * value:.2f} % measured here"
            )
    print(f"{workspace.name}: {len(chosen) - len(wrong)} of {len(chosen)} accuracies are the same measured again here")
    return wrong


def tell_steps(visitors: list[Visitor]) -> None:
    """Print how often each step was done and how long it took, and how many were not answered."""
    took: dict[str, list[float]] = {}
    for visitor in visitors:
        for step, seconds in visitor.seconds.items():
            took.setdefault(step, []).extend(seconds)
    print("\n| step | times | median, s | longest, s |\n|---|---|---|---|")
    for step, seconds in sorted(took.items(), key=lambda item: -len(item[1])):
        print(f"| {step} | {len(seconds)} | {median(seconds):.1f} | {max(seconds):.1f} |")
    unanswered = sum(visitor.unanswered for visitor in visitors)
    print(f"\n{unanswered} of {unanswered + sum(map(len, took.values()))} steps unanswered")


async def crowd(browser: Browser, url: str, options: argparse.Namespace, workspaces: list[Workspace]) -> list[Visitor]:
    """The sessions, one context each; they arrive half a second apart."""
    visitors = []
    for number in range(options.sessions):
        context = await browser.new_context(viewport={"width": 1280, "height": 900})
        workspace = workspaces[number % len(workspaces)]
        visitors.append(Visitor(number, await context.new_page(), url, workspace, random.Random(options.seed + number)))
    return visitors


async def use(
    url: str, pid: int, options: argparse.Namespace, workspaces: list[Workspace]
) -> tuple[list[Visitor], Curve]:
    """All sessions at once until the time is over."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        visitors = await crowd(browser, url, options, workspaces)
        until, curve = time.monotonic() + 60 * options.minutes, Curve()
        await asyncio.gather(sampled(pid, until, curve), *(visitor.stay(until) for visitor in visitors))
        await browser.close()
    return visitors, curve


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--warm-up", type=float, default=3, help="minutes after which memory must be flat")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="../shared/data/resnet20_cifar10.py", help="beside two built-in ones")
    parser.add_argument("--memory-mb", default="", help="what the server may keep of results; by default 1,074")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["RANK_EXPLORER_MEMORY_MB"] = options.memory_mb
    given = [options.model] if Path(options.model).exists() else []
    refs = [*given, *MODELS][: len(MODELS)]
    workspaces = [Workspace.open(ref) for ref in refs]
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("CACHE", "STATE", "DATA", "CONFIG"):
            os.environ[f"XDG_{name}_HOME"] = f"{temporary}/{name}"
        log = Path(temporary) / "log"
        with running_server(log, *given) as (url, pid):
            visitors, curve = asyncio.run(use(url, pid, options, workspaces))
        told = log.read_text(errors="replace")
    wrong = [problem for visitor in visitors for problem in visitor.wrong]
    wrong += [f"log: {line}" for line in told.splitlines() if WRONG.search(line)]
    tell_steps(visitors)
    print(f"\n{len(visitors)} sessions on {', '.join(w.name for w in workspaces)}, {options.minutes:g} minutes")
    for workspace in workspaces:
        mine = [visitor for visitor in visitors if visitor.workspace is workspace]
        wrong += measured_again(workspace, mine, random.Random(options.seed))
    print(f"load of the machine: {os.getloadavg()[2]:.1f} processes wished to run, averaged over the last 15 minutes")
    is_flat = flat(curve, options.minutes, options.warm_up)
    print(f"memory is {'flat' if is_flat else 'NOT flat'}; {len(wrong)} things went wrong")
    print("\n".join(wrong))
    sys.exit(bool(wrong) or not is_flat)


if __name__ == "__main__":
    run_benchmark(main)
