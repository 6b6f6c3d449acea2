"""What plans are compared by, as values and plain rows: nothing here knows a session or a screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from lowrank_core.compression.precision import Storage
from lowrank_core.errors import OtherModel
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.exports._apart import write_anywhere
from lowrank_core.figures import kib
from lowrank_core.measure.apart import apart
from lowrank_core.measure.comparison import Comparison, compare, traces
from lowrank_core.measure.latency import LatencyTable, Runtime, Timing, network_latency, turn
from lowrank_core.measure.staircases import Staircase, setting_of, staircases
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import plan_cost
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report, scope, somebody_waits, under
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.store.files import scratch
from lowrank_core.workspace import Workspace
from pages.ui import devices, words
from pages.ui.devices import Device
from pages.ui.goals import Goals, flash_bytes, floor_judged, in_own_format, own_format

DENSE = "Dense"

NARROWED = ("float16", "int8")
"""Number formats in which a score is another one, and is measured by itself."""


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
class Narrow:
    """Measure these candidates as they are stored in a number format: half precision, or int8 as ONNX quantises it."""

    candidates: tuple[Candidate, ...]
    number: str


@dataclass(frozen=True, slots=True)
class NarrowScore:
    """The score of a candidate as it is stored in a number format; file_bytes: of the file that int8 is run from."""

    candidate: Candidate
    number: str
    score: Score
    file_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PlanTiming:
    """How long a candidate takes beside the dense network."""

    candidate: Candidate
    runtime: Runtime
    timing: Timing


Arguments = TypeVarTuple("Arguments")
Given = TypeVar("Given")

Wish = Scores | Races | Stairs | Narrow
Result = Comparison | PlanTiming | Staircase | NarrowScore


def label(wish: Wish) -> str:
    """What a job measures for Compare, in two words, for the badge on other pages."""
    if isinstance(wish, Narrow):
        return f"Measuring in {wish.number}"
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
    elif isinstance(wish, Narrow):
        yield from _narrow(workspace, wish)
    elif isinstance(wish, Stairs):
        with somebody_waits(), turn():
            yield from _elsewhere(_stairs, workspace, wish, folder)
    else:
        with somebody_waits(), turn():
            yield from _elsewhere(_races, workspace, wish)


def _narrow(workspace: Workspace, wish: Narrow) -> Iterator[NarrowScore]:
    for number, candidate in enumerate(wish.candidates, start=1):
        with scope(report=under(f"plan {number} of {len(wish.candidates)}") if len(wish.candidates) > 1 else None):
            found = _narrowed(workspace, candidate, wish.number)
        yield found


def _narrowed(workspace: Workspace, candidate: Candidate, number: str) -> NarrowScore:
    """As Export writes it and says the score of."""
    plan, correction = candidate.plan, candidate.correction
    model = workspace.compress(plan, correction) if plan.choices else workspace.model
    network = Compressed(model, plan, None, None if correction is None else correction.to_dict())
    network = network.stored(workspace, Storage(number))
    if number != "int8":
        report(Progress("evaluating"))
        return NarrowScore(candidate, number, final_score(workspace.measure(network.model)))
    with scratch() as folder:
        written = write_anywhere(workspace, EXPORTS["onnx"], network, folder / "network.onnx")
    assert written.score is not None
    return NarrowScore(candidate, number, written.score, written.bytes)


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
    """What a plan is judged for: the goals, and energy in pJ where it is wanted."""

    goals: Goals = Goals()  # noqa: RUF009 - frozen
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
    narrow: dict[tuple[Candidate, str], NarrowScore] | None = None,
) -> dict[str, dict[str, str]]:
    """The cells of the comparison, {row: {plan: cell}}; the first plan is the dense network.

    narrow: scores as plans are stored in a number format, where they were measured.
    """
    made: dict[str, dict[str, str]] = {}
    chosen, number = target.goals, target.goals.format
    stored = {key: found for key, found in (narrow or {}).items() if key[1] == number}

    def row(label: str, cell: Callable[[Comparison], str]) -> None:
        made[label] = {name: cell(comparison) for name, comparison in columns.items()}

    batch, metric = workspace.opened.batch, words.metric(workspace)
    own = f" {in_own_format(None, own_format(workspace))}" if chosen.number in NARROWED else ""
    row(f"{metric}{own}", lambda c: words.score(workspace, c.score.value))
    row("Against dense", lambda c: _against(workspace, c))
    if chosen.number in NARROWED:
        row(f"{metric} in {number}", lambda c: _narrow_score(workspace, stored.get((c.candidate, number))))
    if chosen.floor is not None:
        row("Goal", lambda c: _floor(workspace, chosen, c, stored))
    if any(found.file_bytes for found in stored.values()):
        row(f"ONNX file in {number}", lambda c: _file(chosen, stored.get((c.candidate, number))))
    if any(c.classes for c in columns.values()):
        row("Samples lost, won", lambda c: f"{c.lost:,}, {c.won:,}" if c.candidate.plan.choices else "–")
    costs = {name: plan_cost(workspace.profile, c.candidate.plan) for name, c in columns.items()}
    made["Multiplies"] = {name: words.count(cost.multiplies) for name, cost in costs.items()}
    row("Flash", lambda c: _beside(flash_bytes(workspace, c.candidate.plan, number), chosen))
    row("Peak RAM", lambda c: _beside(c.memory[number].peak.bytes, chosen))
    row("… during", lambda c: words.plain(c.memory[number].peak.node))
    row("Bytes moved", lambda c: _beside(c.memory[number].moved_bytes, chosen))
    made["Multiplies per byte"] = {
        name: f"{columns[name].memory[number].intensity(cost.multiplies * batch):.2f}" for name, cost in costs.items()
    }
    if (device := chosen.device) is not None:
        row("On the device", lambda c: _fits(workspace, c, chosen, device))
    for runtime in dict.fromkeys(runtime for _, runtime in timings):
        row(f"Latency, {runtime}", lambda c, r=runtime: _relative_latency(c, timings.get((c.candidate, r))))  # type: ignore[misc]
    if table.layers:
        row("Your table", lambda c: _by_table(workspace, c, table))
    row(f"Checkpoint{own}", lambda c: _beside(c.checkpoint_bytes, chosen))
    if target.multiply_pj is not None and target.byte_pj is not None:
        pj, byte_pj = target.multiply_pj, target.byte_pj

        def energy(comparison: Comparison) -> str:
            multiplies = batch * plan_cost(workspace.profile, comparison.candidate.plan).multiplies
            picojoules = pj * multiplies + byte_pj * comparison.memory[number].moved_bytes
            return f"{picojoules / 1e6:.3g} µJ"

        row("Energy, a rough guess", energy)
    return made


def _against(workspace: Workspace, comparison: Comparison) -> str:
    return words.change(workspace, comparison.score, "") if comparison.candidate.plan.choices else "–"


def _relative_latency(comparison: Comparison, timing: Timing | None) -> str:
    return latency(timing) if comparison.candidate.plan.choices else "1"


def _beside(need: int, chosen: Goals) -> str:
    """Bytes as text: KiB beside a device, whose maker counts so."""
    return words.count(need, "B") if chosen.device is None else kib(need)


def _narrow_score(workspace: Workspace, found: NarrowScore | None) -> str:
    return "not measured" if found is None else words.score(workspace, found.score.value)


def _file(chosen: Goals, found: NarrowScore | None) -> str:
    return "–" if found is None or found.file_bytes is None else _beside(found.file_bytes, chosen)


def _floor(
    workspace: Workspace, chosen: Goals, comparison: Comparison, stored: dict[tuple[Candidate, str], NarrowScore]
) -> str:
    """The worst score that is allowed, judged in the number format where that was measured."""
    found = stored.get((comparison.candidate, chosen.format))
    if found is not None:
        return floor_judged(workspace, chosen, found.score.value, f"in {found.number}").line
    own = in_own_format(None, own_format(workspace))
    how = f"{own}; not measured in {chosen.number}" if chosen.number in NARROWED else ""
    return floor_judged(workspace, chosen, comparison.score.value, how).line


def _fits(workspace: Workspace, comparison: Comparison, chosen: Goals, device: Device) -> str:
    need = flash_bytes(workspace, comparison.candidate.plan, chosen.format)
    peak = comparison.memory[chosen.format].peak.bytes
    fits, over = devices.verdict(need, peak, device.flash_bytes, device.ram_bytes)
    if fits:
        return "✓ fits"
    return "✗ does not fit: " + ", ".join(f"{word} {kib(missing)} over" for word, missing in over)


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
