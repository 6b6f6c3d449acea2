"""What plans are compared by, as values and plain rows: nothing here knows a session or a screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from lowrank_core.errors import OtherModel
from lowrank_core.measure.apart import apart
from lowrank_core.measure.comparison import Comparison, compare, traces
from lowrank_core.measure.latency import LatencyTable, Runtime, Timing, network_latency, turn
from lowrank_core.measure.staircases import Staircase, setting_of, staircases
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import plan_cost
from lowrank_core.running.scope import scope, somebody_waits, under
from lowrank_core.workspace import Workspace
from pages.ui import devices, words

DENSE = "Dense"


@dataclass(frozen=True, slots=True)
class Scores:
    """Measure these candidates on all samples."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Races:
    """Time these candidates beside the dense network."""

    candidates: tuple[Candidate, ...]
    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Stairs:
    """Time every layer at some ranks of these methods."""

    runtime: Runtime
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlanTiming:
    """How long a candidate takes beside the dense network."""

    candidate: Candidate
    runtime: Runtime
    timing: Timing


Arguments = TypeVarTuple("Arguments")
Given = TypeVar("Given")

Wish = Scores | Races | Stairs
Result = Comparison | PlanTiming | Staircase


def label(wish: Wish) -> str:
    """What a job measures for Compare, in two words, for the badge on other pages."""
    return {Scores: "Comparing plans", Races: "Timing plans", Stairs: "Timing layers"}[type(wish)]


def work(workspace: Workspace, wish: Wish, folder: Path) -> Iterator[Result]:
    """What comes of a question, one after the other. Scores give way to whoever waits; all else gives way to timing.

    What exports networks does so in a process of its own, beside who looks at others here; only a model that no other
    process can open is exported here.
    """
    if isinstance(wish, Scores):
        several = len(wish.candidates) > 1
        traced = _elsewhere(traces, workspace, wish.candidates)
        for number, candidate in enumerate(wish.candidates, start=1):
            with scope(report=under(f"plan {number} of {len(wish.candidates)}") if several else None):
                comparison = compare(workspace, candidate, next(traced))
            yield comparison
    elif isinstance(wish, Stairs):
        with somebody_waits(), turn():
            yield from _elsewhere(_stairs, workspace, wish, folder)
    else:
        with somebody_waits(), turn():
            yield from _elsewhere(_races, workspace, wish)


def _elsewhere(
    given: Callable[[Workspace, *Arguments], Iterator[Given]], workspace: Workspace, *arguments: *Arguments
) -> Iterator[Given]:
    if workspace.opened.ref is not None:
        try:
            yield from apart(given, workspace, *arguments)
        except OtherModel:
            pass
        else:
            return
    yield from given(workspace, *arguments)


def _stairs(workspace: Workspace, wish: Stairs, folder: Path) -> Iterator[Staircase]:
    setting = setting_of(workspace, wish.runtime)
    return staircases(workspace.profile.layers, setting, methods=wish.methods, folder=folder)


def _races(workspace: Workspace, wish: Races) -> Iterator[PlanTiming]:
    timings = network_latency(
        workspace.model,
        [workspace.compress(candidate.plan) for candidate in wish.candidates],
        workspace.opened.example_inputs,
        runtime=wish.runtime,
    )
    for candidate, timing in zip(wish.candidates, timings, strict=True):
        yield PlanTiming(candidate, wish.runtime, timing)


@dataclass(frozen=True, slots=True)
class Target:
    """What a plan is judged for: number format, a device's flash and RAM, and energy in pJ where it is wanted."""

    number: str = "as it is"
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    multiply_pj: float | None = None
    byte_pj: float | None = None


def latency(timing: Timing | None) -> str:
    """A paired ratio; unstable ones are words.

    >>> latency(Timing(100.0, 50.0, 0.5, 0.02, 11)), latency(Timing(100.0, 50.0, 0.5, 0.2, 11)), latency(None)
    ('0.50 × dense, 50 µs', 'unstable', '–')
    """
    if timing is None:
        return "–"
    if timing.unstable:
        return "unstable"
    return f"{timing.ratio:.2f} × dense, {words.count(float(f'{timing.ratio * timing.dense_us:.3g}'))} µs"


def rows(
    workspace: Workspace,
    columns: dict[str, Comparison],
    timings: dict[tuple[Candidate, Runtime], Timing],
    target: Target,
    table: LatencyTable,
) -> dict[str, dict[str, str]]:
    """The cells of the comparison, {row: {plan: cell}}; the first plan is the dense network."""
    made: dict[str, dict[str, str]] = {}

    def row(label: str, cell: Callable[[Comparison], str]) -> None:
        made[label] = {name: cell(comparison) for name, comparison in columns.items()}

    batch, metric = workspace.opened.batch, words.metric(workspace)
    row(metric, lambda c: words.score(workspace, c.score.value))
    row("Against dense", lambda c: _against(workspace, c))
    if any(c.classes for c in columns.values()):
        row("Samples lost, won", lambda c: f"{c.lost:,}, {c.won:,}" if c.candidate.plan.choices else "–")
    costs = {name: plan_cost(workspace.profile, c.candidate.plan) for name, c in columns.items()}
    made["Multiplies"] = {name: words.count(cost.multiplies) for name, cost in costs.items()}
    row("Flash", lambda c: words.count(c.memory[target.number].flash_bytes, "B"))
    row("Peak RAM", lambda c: words.count(c.memory[target.number].peak.bytes, "B"))
    row("… during", lambda c: words.plain(c.memory[target.number].peak.node))
    row("Bytes moved", lambda c: words.count(c.memory[target.number].moved_bytes, "B"))
    made["Multiplies per byte"] = {
        name: f"{columns[name].memory[target.number].intensity(cost.multiplies * batch):.2f}"
        for name, cost in costs.items()
    }
    if target.flash_bytes is not None and target.ram_bytes is not None:
        flash, ram = target.flash_bytes, target.ram_bytes
        row("On the device", lambda c: _fits(c, target.number, flash, ram))
    for runtime in dict.fromkeys(runtime for _, runtime in timings):
        row(f"Latency, {runtime}", lambda c, r=runtime: _relative_latency(c, timings.get((c.candidate, r))))  # type: ignore[misc]
    if table.layers:
        row("Your table", lambda c: _by_table(workspace, c, table))
    row("Checkpoint", lambda c: words.count(c.checkpoint_bytes, "B"))
    if target.multiply_pj is not None and target.byte_pj is not None:
        pj, byte_pj = target.multiply_pj, target.byte_pj

        def energy(comparison: Comparison) -> str:
            multiplies = batch * plan_cost(workspace.profile, comparison.candidate.plan).multiplies
            picojoules = pj * multiplies + byte_pj * comparison.memory[target.number].moved_bytes
            return f"{picojoules / 1e6:.3g} µJ"

        row("Energy, a rough guess", energy)
    return made


def _against(workspace: Workspace, comparison: Comparison) -> str:
    return words.change(workspace, comparison.score, "") if comparison.candidate.plan.choices else "–"


def _relative_latency(comparison: Comparison, timing: Timing | None) -> str:
    return latency(timing) if comparison.candidate.plan.choices else "1"


def _fits(comparison: Comparison, number: str, flash_bytes: int, ram_bytes: int) -> str:
    memory = comparison.memory[number]
    fits, over = devices.verdict(memory.flash_bytes, memory.peak.bytes, flash_bytes, ram_bytes)
    if fits:
        return "✓ fits"
    return "✗ does not fit: " + ", ".join(f"{word} {words.count(missing, 'B')} over" for word, missing in over)


def _by_table(workspace: Workspace, comparison: Comparison, table: LatencyTable) -> str:
    """Microseconds of the layers in a table; a rank it does not know takes as long as the dense layer."""
    choices, total = dict(comparison.candidate.plan.choices), 0.0
    for name in table.layers & {layer.name for layer in workspace.profile.layers}:
        microseconds, dense = table(name, choices.get(name)), table(name, None)
        total += microseconds if microseconds is not None else dense or 0.0
    return f"{words.count(float(f'{total:.4g}'))} µs"


def class_rows(comparison: Comparison) -> list[dict[str, float]]:
    """One row per class: its samples, what each network gets right, and the difference in points."""
    return [
        {
            "Class": c.label,
            "Samples": c.samples,
            "Dense": 100 * c.dense_right / c.samples,
            "Plan": 100 * c.right / c.samples,
            "Change": 100 * (c.right - c.dense_right) / c.samples,
        }
        for c in comparison.classes
    ]


def stair_rows(all_stairs: list[Staircase]) -> list[dict[str, object]]:
    """One row per layer and method: where latency breaks even, and which measured ranks a larger one beats."""
    made: list[dict[str, object]] = []
    for stairs in all_stairs:
        stable = stairs.stable
        even = stairs.break_even
        fastest = min(stable, key=lambda rung: rung.ratio, default=None)
        made.append(
            {
                "Layer": stairs.layer,
                "Method": stairs.method,
                "Dense, µs": round(stairs.dense_us, 1),
                "Break-even": "unstable" if even is None else words.sizes(even) if all(even) else "never",
                "Fastest": "–" if fastest is None else f"{words.sizes(fastest.rank)} at {fastest.ratio:.2f}",
                "Dominated": ", ".join(words.sizes(rank) for rank in stairs.dominated) or "–",
                "Ranks": f"{len(stable)} of {len(stairs.rungs)}",
            }
        )
    return made
