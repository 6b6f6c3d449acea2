"""What plans are compared by, as values and plain rows: nothing here knows a session or a screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from lowrank_core.compression.correct import reporting
from lowrank_core.compression.precision import Storage
from lowrank_core.errors import Cancelled, InvalidFile, LowRankError, OtherModel
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.exports._in_format import FILES, INT8, Measured, int8_file, measured, network_in, plan_in
from lowrank_core.exports.c import compiled_size
from lowrank_core.figures import how_many, kib
from lowrank_core.graphs.c_compiled import CompiledSize
from lowrank_core.graphs.memory import Trace
from lowrank_core.measure.apart import apart
from lowrank_core.measure.comparison import Comparison, Flip, traces
from lowrank_core.measure.formats import AS_IT_IS
from lowrank_core.measure.latency import (
    OF_ONNX,
    RUNTIMES,
    UNSTABLE_IQR,
    LatencyTable,
    Runtime,
    Timing,
    network_latency,
    turn,
)
from lowrank_core.measure.staircases import Staircase, setting_of, staircases
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import layer_cost, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report, scope, somebody_waits, under
from lowrank_core.training.finetune import Epoch
from lowrank_core.workspace import Workspace
from pages.ui import devices, tuning, words
from pages.ui.devices import Device
from pages.ui.goals import Goals, flash_bytes, floor_judged, own_format
from pages.ui.tuning import Tuned

DENSE, THIS, TUNED, DENSE_INT8 = "Dense", "This plan", "Tuned", "Dense int8"


@dataclass(frozen=True, slots=True)
class Column:
    """A network that stands in a column: a plan with its correction or with trained weights, in one number format.

    file: of FILES, where it is measured as one; int8 without any is measured as INT8.
    """

    candidate: Candidate
    number: str = AS_IT_IS
    tuned: Tuned | None = None
    file: str = ""

    def written_as(self, file: str) -> Column:
        """The same network as one of FILES."""
        return replace(self, number=FILES[file].number, file="" if file == INT8 else file)

    @property
    def kind(self) -> str:
        """The kind of file that it is measured as; "" where PyTorch runs it."""
        file = self.file or INT8 * (self.number == "int8")
        return FILES[file].kind if file else ""

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """Those that time what stands in the column."""
        return {"": RUNTIMES, "onnx": OF_ONNX, "openvino": ("openvino",)}.get(self.kind, ())

    @property
    def plan(self) -> RankPlan:
        """The ranks of it; none where it is the dense network."""
        return self.candidate.plan

    @property
    def timed(self) -> tuple[RankPlan, str]:
        """What its latency depends on: ranks and number format, not what its weights are."""
        return plan_in(self.plan, self.number), self.number

    @property
    def is_reference(self) -> bool:
        """Whether it is the dense network as it is, which all others are compared with."""
        return not self.plan.choices and self.number == AS_IT_IS and not self.file


@dataclass(frozen=True, slots=True)
class Scores:
    """Measure these columns on all samples, each in its number format."""

    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Races:
    """Time these (plan, number format) beside the dense network as it is."""

    entries: tuple[tuple[RankPlan, str], ...]
    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Compiles:
    """Compile these (plan, number format) as plain C, to see what they take."""

    entries: tuple[tuple[RankPlan, str], ...]


@dataclass(frozen=True, slots=True)
class Stairs:
    """Time every layer at some ranks of these methods."""

    runtime: Runtime
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ColumnMeasured:
    """What was measured of a column."""

    column: Column
    measured: Measured


@dataclass(frozen=True, slots=True)
class PlanTiming:
    """How long a plan takes in a number format beside the dense network; timing: None where it cannot be timed."""

    entry: tuple[RankPlan, str]
    runtime: Runtime
    timing: Timing | None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class PlanCompiled:
    """What a plan takes in a number format as a compiled object; taken: None where `refused` says why."""

    entry: tuple[RankPlan, str]
    taken: CompiledSize | None
    refused: str = ""


Arguments = TypeVarTuple("Arguments")
Given = TypeVar("Given")

Wish = Scores | Races | Stairs | Compiles
Result = ColumnMeasured | PlanTiming | Staircase | PlanCompiled
Trained = Callable[[Tuned], Epoch]
"""The network with trained weights; raises InvalidFile where they are gone."""


def label(wish: Wish) -> str:
    """What a job measures for Compare, in two words, for the badge on other pages."""
    return {Scores: "Comparing plans", Races: "Timing plans", Stairs: "Timing layers", Compiles: "Compiling plans"}[
        type(wish)
    ]


# ---- work -----------------------------------------------------------------------------------------------------------


def gone(weights: Tuned) -> Epoch:
    """Where nothing trained is kept; raises InvalidFile."""
    raise InvalidFile("the tuned weights are not here; train the plan again on Fine-tune.")


def work(workspace: Workspace, wish: Wish, folder: Path, trained: Trained = gone) -> Iterator[Result]:
    """What comes of a question, one after the other. Scores give way to whoever waits; all else gives way to timing.

    What exports networks does so in a process of its own, beside who looks at others here; only a model that no other
    process can open is exported here.
    """
    if isinstance(wish, Scores):
        yield from _scores(workspace, wish.columns, trained)
    elif isinstance(wish, Compiles):
        yield from _elsewhere(_compiled, workspace, wish)
    elif isinstance(wish, Stairs):
        with somebody_waits(), turn():
            yield from _elsewhere(_stairs, workspace, wish, folder)
    else:
        with somebody_waits(), turn():
            yield from _elsewhere(_races, workspace, wish)


def _scores(workspace: Workspace, columns: Sequence[Column], trained: Trained) -> Iterator[ColumnMeasured]:
    plans = list(dict.fromkeys(plan_in(column.plan, column.number) for column in columns))
    coming = _elsewhere(traces, workspace, tuple(map(Candidate, plans)))
    traced: dict[RankPlan, Trace] = {}
    for number, column in enumerate(columns, start=1):
        with scope(report=under(f"column {number} of {len(columns)}") if len(columns) > 1 else None):
            plan = plan_in(column.plan, column.number)
            if plan not in traced:
                traced[plan] = next(coming)
            found = _measured(workspace, column, traced[plan], trained)
        if found.comparison is not None and not column.kind and column.number == AS_IT_IS and column.tuned is None:
            workspace.scores[column.candidate.plain] = found.comparison.score
        yield ColumnMeasured(column, found)


def _measured(workspace: Workspace, column: Column, traced: Trace, trained: Trained) -> Measured:
    try:
        network = network_of(workspace, column, trained)
    except Cancelled:
        raise
    except LowRankError as error:  # trained weights that are gone
        return Measured(column.number, None, {}, refused=str(error))
    return measured(workspace, network, column.number, traced, column.file)


def network_of(workspace: Workspace, column: Column, trained: Trained) -> Compressed:
    """What Export writes for a column, before it is stored in a number format. Raises what `trained` raises."""
    plan, correction = column.plan, column.candidate.correction
    if column.tuned is not None:
        report(Progress("loading the trained weights"))
        network = tuning.compressed(workspace, column.tuned, trained(column.tuned))
        return replace(network, score=None)
    model = workspace.compress(plan, correction, each=reporting()) if plan.choices else workspace.model
    return Compressed(model, plan, None, None if correction is None else correction.to_dict())


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


def _compiled(workspace: Workspace, wish: Compiles) -> Iterator[PlanCompiled]:
    for plan, number in wish.entries:
        model = workspace.compress(plan) if plan.choices else workspace.model
        given = Compressed(model, plan)
        try:
            if number == "int8":
                given = given.stored(workspace, Storage("int8"))
            yield PlanCompiled((plan, number), compiled_size(workspace, given))
        except Cancelled:
            raise
        except LowRankError as error:
            yield PlanCompiled((plan, number), None, str(error))


def _races(workspace: Workspace, wish: Races) -> Iterator[PlanTiming]:
    """int8 is timed as its ONNX file; a network that cannot be stored so does not keep others from being timed."""
    racing = []
    for plan, number in wish.entries:
        model = workspace.compress(plan) if plan.choices else workspace.model
        try:
            given = Compressed(model, plan)
            racer = int8_file(workspace, given) if number == "int8" else network_in(given, number)
        except Cancelled:
            raise
        except LowRankError as error:
            yield PlanTiming((plan, number), wish.runtime, None, str(error))
        else:
            racing.append(((plan, number), racer))
    timings = network_latency(
        workspace.model,
        [network for _, network in racing],
        workspace.opened.example_inputs,
        runtime=wish.runtime,
    )
    for (entry, _), timing in zip(racing, timings, strict=True):
        yield PlanTiming(entry, wish.runtime, timing)


# ---- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """What a plan is judged for: the goals, and energy in pJ where it is wanted."""

    goals: Goals = Goals()  # noqa: RUF009 - frozen
    multiply_pj: float | None = None
    byte_pj: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of one column: as text, as a number in the row's unit, and what a person should know of it.

    change: the difference to the dense network; better: whether that is for the better, None where it is neither or may
    be chance. share: of the longest bar of the row, 0 to 1. between: the interval of the difference, on an axis of the
    row from 0 to 1 on which 0.5 is the dense network.
    """

    text: str
    value: float | None = None
    change: str = ""
    better: bool | None = None
    share: float | None = None
    note: str = ""
    between: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of all columns, by their names; unit: that of the values; note: what it counts."""

    label: str
    cells: Mapping[str, Cell]
    unit: str = ""
    note: str = ""


NOTHING = Cell("–")


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was measured of a model so far; busy: what is being measured now, racing: what is being timed."""

    measured: Mapping[Column, Measured]
    timings: Mapping[tuple[tuple[RankPlan, str], Runtime], PlanTiming]
    busy: frozenset[Column] = frozenset()
    racing: frozenset[tuple[tuple[RankPlan, str], Runtime]] = frozenset()
    compiled: Mapping[tuple[RankPlan, str], PlanCompiled] = field(default_factory=dict)


def rows(
    workspace: Workspace, columns: Mapping[str, Column], findings: Findings, target: Target, table: LatencyTable
) -> list[Row]:
    """The rows of the comparison; the first column is the dense network. Every figure is in its column's format."""
    chosen, found = target.goals, {name: findings.measured.get(column) for name, column in columns.items()}
    told = {name: one.comparison for name, one in found.items() if one is not None and one.comparison is not None}
    memory = {name: one.memory[one.number] for name, one in found.items() if one is not None and one.memory}
    costs = {name: plan_cost(workspace.profile, column.plan) for name, column in columns.items()}
    flash = {name: flash_bytes(workspace, column.plan, column.number) for name, column in columns.items()}
    batch, judged_in = workspace.opened.batch, chosen.format

    def size(value: float) -> str:
        return _beside(round(value), chosen)

    made = [_scores_row(workspace, columns, findings)]
    if chosen.floor is not None:
        made.append(Row("Goal", {name: _floor(workspace, chosen, columns[name], one) for name, one in found.items()}))
    if any(comparison.classes for comparison in told.values()):
        made.append(Row("Samples lost, won", {name: _flips(columns[name], told.get(name)) for name in columns}))
    multiplies = {name: float(cost.multiplies) for name, cost in costs.items()}
    made.append(_amounts("Multiplies", multiplies, words.count, note="for one sample"))
    made.append(_amounts("Flash", flash, size, "B", "parameters and buffers"))
    files = {name: None if one is None else one.file_bytes for name, one in found.items()}
    kinds = {name: one.kind for name, one in found.items() if one is not None}
    made.append(_amounts("File", files, size, "B", "as it is written", notes=kinds))
    objects = {name: None if column.file else findings.compiled.get(column.timed) for name, column in columns.items()}
    if any(objects.values()):
        made += _objects(objects, size)
    peaks = {name: memory[name].peak.bytes if name in memory else None for name in columns}
    during = {name: f"during {one.peak.node}" for name, one in memory.items()}
    made.append(_amounts("Peak RAM", peaks, size, "B", "of activations", notes=during))
    moved = {name: memory[name].moved_bytes if name in memory else None for name in columns}
    made.append(_amounts("Bytes moved", moved, size, "B", "in one inference"))
    if (device := chosen.device) is not None:
        fits = {name: _fits(flash[name], peaks[name], device) for name in columns}
        made.append(Row("On the device", fits, note=device.name))
    intensity = {
        name: memory[name].intensity(costs[name].multiplies * batch) if name in memory else None for name in columns
    }
    made.append(_amounts("Multiplies per byte", intensity, "{:.2f}".format, lower_is_better=None))
    for runtime in RUNTIMES:
        times = findings.timings.keys() | findings.racing
        if any(runtime in column.runtimes and (column.timed, runtime) in times for column in columns.values()):
            made.append(_latency(runtime, columns, findings))
    alike = [name for name, column in columns.items() if column.number == judged_in]
    if table.layers:
        taken = {n: _by_table(workspace, c.plan, table) if n in alike else None for n, c in columns.items()}
        made.append(_amounts("Your table", taken, microseconds, "µs", table.device or "layers in it"))
    if target.multiply_pj is not None and target.byte_pj is not None:
        pj, byte_pj = target.multiply_pj, target.byte_pj
        energy = {
            name: (pj * batch * costs[name].multiplies + byte_pj * memory[name].moved_bytes) / 1e6
            if name in memory and name in alike
            else None
            for name in columns
        }
        made.append(_amounts("Energy", energy, "{:.3g} µJ".format, "µJ", "a rough guess"))
    return made


def _objects(objects: Mapping[str, PlanCompiled | None], size: Callable[[float], str]) -> list[Row]:
    """Flash and RAM of each network as a compiled object."""
    known = {name: one.taken for name, one in objects.items() if one is not None and one.taken is not None}
    notes = {name: taken.compiler for name, taken in known.items()}
    amounts: dict[tuple[str, str], dict[str, float | None]] = {
        ("C, flash", "of the compiled object"): {
            name: known[name].flash_bytes if name in known else None for name in objects
        },
        ("C, RAM", "its arena"): {name: known[name].ram_bytes if name in known else None for name in objects},
        ("C, stack", "at most, beside math.h's"): {
            name: known[name].stack_bytes if name in known else None for name in objects
        },
    }
    rows = [_amounts(label, values, size, "B", what, notes=notes) for (label, what), values in amounts.items()]
    refused = {name: one.refused for name, one in objects.items() if one is not None and one.taken is None}
    return [
        replace(row, cells={name: replace(cell, note=refused.get(name, cell.note)) for name, cell in row.cells.items()})
        for row in rows
    ]


def _amounts(
    label: str,
    values: Mapping[str, float | None],
    text: Callable[[float], str],
    unit: str = "",
    note: str = "",
    *,
    notes: Mapping[str, str] | None = None,
    lower_is_better: bool | None = True,
) -> Row:
    """A row of amounts, each beside that of the first column; – where there is none."""
    dense, longest = next(iter(values.values())), max((value or 0.0 for value in values.values()), default=0.0)
    cells = {}
    for at, (name, value) in enumerate(values.items()):
        if value is None:
            cells[name] = NOTHING
            continue
        change, better = "", None
        if at and dense:
            percent = 100 * (value / dense - 1)
            digits = "+,.0f" if abs(percent) >= 999.5 else "+.3g"
            change = "as dense" if abs(percent) < 0.05 else f"{percent:{digits}} %".replace("-", "−")
            if lower_is_better is not None and abs(percent) >= 0.05:
                better = (percent < 0) == lower_is_better
        more = (notes or {}).get(name, "")
        cells[name] = Cell(text(value), value, change, better, value / longest if longest else None, more)
    return Row(label, cells, unit, note)


def _own(workspace: Workspace) -> str:
    """The numbers of the network itself, as they stand in a sentence."""
    own = own_format(workspace)
    return "its own numbers" if own == AS_IT_IS else own


def in_words(workspace: Workspace, number: str) -> str:
    """A number format as it stands over a column."""
    return own_format(workspace) if number == AS_IT_IS else number


def as_measured(workspace: Workspace, column: Column) -> str:
    """The number format of a column, and of a file its options and what runs it."""
    number = in_words(workspace, column.number)
    try:
        return f"{number}, {FILES[column.file or INT8].words}" if column.kind else number
    except LowRankError:  # the runtime is not here, which the score says
        return number


def _how(workspace: Workspace, column: Column) -> str:
    """What it is measured as, in words."""
    return f"as {column.file}" if column.file else f"in {in_words(workspace, column.number)}"


def _scores_row(workspace: Workspace, columns: Mapping[str, Column], findings: Findings) -> Row:
    """The score of each column, its paired difference to the dense network's, and the interval of that."""
    cells = {name: _score(workspace, column, findings) for name, column in columns.items()}
    intervals = {}
    for name, column in columns.items():
        found = findings.measured.get(column)
        score = None if found is None or found.comparison is None or column.is_reference else found.comparison.score
        if score is not None and score.drop_low is not None and score.drop_high is not None and not score.not_finite:
            ends = (score.drop_low, score.drop_high)
            intervals[name] = ends if not score.higher_is_better else (-ends[1], -ends[0])
    widest = 1.05 * max((abs(end) for ends in intervals.values() for end in ends), default=0.0)
    for name, (low, high) in intervals.items() if widest else ():
        cells[name] = replace(cells[name], between=(0.5 + low / widest / 2, 0.5 + high / widest / 2))
    note = f"difference to the dense network in {_own(workspace)}, with its 95 % interval"
    return Row(words.metric(workspace), cells, "%" if words.shares(workspace) else "", note)


def _score(workspace: Workspace, column: Column, findings: Findings) -> Cell:
    found = findings.measured.get(column)
    if found is None:
        return Cell("measuring…" if column in findings.busy else "not measured")
    if found.comparison is None:
        return Cell(f"not measurable {_how(workspace, column)}", note=found.refused)
    score = found.comparison.score
    notes = [how_many(score.samples, "sample")] if score.samples else []
    change, better = "", None
    if not column.is_reference:
        change, _, interval = words.change(workspace, score, "").partition(" (")
        notes = [interval.rstrip(")"), *notes] if interval else notes
        if score.not_finite or (score.drop_low is not None and score.drop_low > 0):
            better = False
        elif score.drop_high is not None and score.drop_high < 0:
            better = True
    if len(score.outputs) > 1:
        notes += [f"{output.name} {words.score(workspace, output.value)}" for output in score.outputs]
    scale = 100 if words.shares(workspace) else 1
    value = None if score.not_finite else scale * score.value
    return Cell(words.score(workspace, score.value), value, change.strip(), better, note=" · ".join(notes))


def _flips(column: Column, comparison: Comparison | None) -> Cell:
    if comparison is None or column.is_reference:
        return NOTHING
    return Cell(f"{comparison.lost:,}, {comparison.won:,}", note=f"{comparison.changed:,} wrong in another way")


def microseconds(value: float) -> str:
    """A time of three digits.

    >>> microseconds(4.123), microseconds(412.3), microseconds(12_345)
    ('4.12 µs', '412 µs', '12,300 µs')
    """
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f} µs" if rounded >= 100 else f"{rounded:g} µs"


def _latency(runtime: Runtime, columns: Mapping[str, Column], findings: Findings) -> Row:
    """Microseconds of one inference beside the dense network's; the ratio is that of rounds that were run in turn."""
    found = {
        name: findings.timings.get((column.timed, runtime)) if runtime in column.runtimes else None
        for name, column in columns.items()
    }
    known = [one.timing for one in found.values() if one is not None and one.timing is not None]
    longest = max((max(timing.dense_us, timing.compressed_us) for timing in known), default=0.0)
    cells = {}
    for name, column in columns.items():
        one = found[name]
        if column.is_reference:
            cells[name] = dense_latency(known[0], longest) if known else NOTHING
        elif runtime not in column.runtimes:
            what = EXPORTS[column.kind].label if column.file else column.number
            by = f"run by {' and '.join(column.runtimes)}" if column.runtimes else "not timed here"
            cells[name] = Cell("–", note=f"{what} is {by}")
        elif (column.timed, runtime) in findings.racing:
            cells[name] = Cell("timing…")
        elif one is None:
            cells[name] = Cell("not timed")
        elif one.timing is None:
            score = findings.measured.get(column)
            as_above = score is not None and score.refused == one.refused
            cells[name] = Cell("–", note="not measurable, as above" if as_above else f"not measurable: {one.refused}")
        else:
            cells[name] = latency(one.timing, longest)
    return Row(f"Latency, {runtime}", cells, "µs", "one inference; the middle half of the rounds")


def dense_latency(timing: Timing, longest: float) -> Cell:
    """The dense network's own time, of the rounds in which another one was timed beside it."""
    return Cell(microseconds(timing.dense_us), timing.dense_us, share=timing.dense_us / longest,
                note=_between(timing.dense_between_us))  # fmt: skip


def latency(timing: Timing, longest: float) -> Cell:
    """A time with the middle half of its rounds and its ratio to dense; an unstable one says why it is no figure.

    >>> sure = latency(Timing(100.0, 50.0, 0.5, 0.02, 11, (99.0, 103.0), (49.0, 52.0)), 100.0)
    >>> sure.text, sure.change, sure.better, sure.share, sure.note
    ('50 µs', '0.50 × dense', True, 0.5, '49 to 52 µs')
    >>> unsure = latency(Timing(100.0, 50.0, 0.5, 0.2, 11, (99.0, 103.0), (40.0, 75.0)), 100.0)
    >>> unsure.text, unsure.value, unsure.note
    ('unstable', None, 'about 50 µs, 40 to 75 µs; ratios to dense spread over 0.20, and at most 0.1 counts')
    """
    between = _between(timing.compressed_between_us)
    if timing.unstable:
        about = ", ".join(filter(None, (f"about {microseconds(timing.compressed_us)}", between)))
        spread = f"ratios to dense spread over {timing.iqr:.2f}, and at most {UNSTABLE_IQR:g} counts"
        return Cell("unstable", note=f"{about}; {spread}")
    half = timing.iqr / 2
    better = True if timing.ratio + half < 1 else False if timing.ratio - half > 1 else None
    return Cell(
        microseconds(timing.compressed_us),
        timing.compressed_us,
        f"{timing.ratio:.2f} × dense",
        better,
        timing.compressed_us / longest,
        between,
    )


def _between(middle_half: tuple[float, float] | None) -> str:
    if middle_half is None:
        return ""
    low, high = map(microseconds, middle_half)
    return f"{low.removesuffix(' µs')} to {high}"


def unstable(columns: Mapping[str, Column], findings: Findings) -> tuple[Runtime, ...]:
    """Runtimes of which a column shows no figure, because its rounds disagree."""
    timed = {(column.timed, runtime) for column in columns.values() for runtime in column.runtimes}
    return tuple(
        dict.fromkeys(
            runtime
            for (entry, runtime), found in findings.timings.items()
            if (entry, runtime) in timed and found.timing is not None and found.timing.unstable
        )
    )


def _beside(need: int, chosen: Goals) -> str:
    """Bytes as text: KiB beside a device, whose maker counts so."""
    return words.count(need, "B") if chosen.device is None else kib(need)


def _floor(workspace: Workspace, chosen: Goals, column: Column, found: Measured | None) -> Cell:
    """The worst score that is allowed, judged in the number format of the column."""
    how = _how(workspace, column)
    if found is None or found.comparison is None:
        return Cell("–", note=f"not measured {how}" if found is None else f"not measurable {how}")
    judged = floor_judged(workspace, chosen, found.comparison.score.value, how)
    return Cell(judged.line, better=judged.kept)


def _fits(need: int, peak: int | None, device: Device) -> Cell:
    if peak is None:
        return NOTHING
    fits, over = devices.verdict(need, peak, device.flash_bytes, device.ram_bytes)
    if fits:
        return Cell("✓ fits", better=True)
    return Cell("✗ does not fit", better=False, note=", ".join(f"{word} {kib(missing)} over" for word, missing in over))


def _by_table(workspace: Workspace, plan: RankPlan, table: LatencyTable) -> float:
    """Microseconds of the layers in a table; a rank it does not know takes as long as the dense layer."""
    choices, total = dict(plan.choices), 0.0
    for name in table.layers & {layer.name for layer in workspace.profile.layers}:
        taken, dense = table(name, choices.get(name)), table(name, None)
        total += taken if taken is not None else dense or 0.0
    return total


# ---- what changed ---------------------------------------------------------------------------------------------------


def class_rows(
    comparison: Comparison, names: Sequence[str] = (), *, like: str = "", only_changed: bool = False
) -> list[dict[str, object]]:
    """One row per class, the largest losses first: samples, what each network gets right, the difference in points.

    names: of the classes, by their numbers, where they have some. like: whole numbers of classes, or part of a name.
    """
    words_given = like.replace(",", " ").split()
    numbers = set(map(int, words_given)) if words_given and all(word.isdecimal() for word in words_given) else None

    def name(label: int) -> str:
        return names[label] if 0 <= label < len(names) else ""

    def is_asked(label: int) -> bool:
        wanted = like.strip().lower() in (name(label) or str(label)).lower()
        return wanted if numbers is None else label in numbers

    return [
        {
            "Class": c.label,
            **({"Name": name(c.label)} if names else {}),
            "Samples": c.samples,
            "Dense": 100 * c.dense_right / c.samples,
            "Plan": 100 * c.right / c.samples,
            "Change": 100 * (c.right - c.dense_right) / c.samples,
        }
        for c in sorted(comparison.classes, key=lambda c: (c.right - c.dense_right) / c.samples)
        if is_asked(c.label) and (not only_changed or c.right != c.dense_right)
    ]


def flip_rows(flipped: Sequence[Flip]) -> list[dict[str, object]]:
    """One row per sample on which the two networks disagree, and which of them is right."""
    return [
        {
            "Sample": flip.sample,
            "Target": flip.target,
            "Dense": flip.dense,
            "Plan": flip.compressed,
            "What": "lost" if flip.dense == flip.target else "won" if flip.compressed == flip.target else "changed",
        }
        for flip in flipped
    ]


# ---- ranks of two plans ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankChange:
    """A layer to which two plans give something else. one, other: as text; shares: of the largest rank, dense 1."""

    layer: str
    one: str
    other: str
    one_share: float
    other_share: float
    one_bytes: int
    other_bytes: int


def rank_changes(layers: Sequence[Layer], one: RankPlan, other: RankPlan) -> list[RankChange]:
    """The layers in which two plans differ, in order of execution."""
    changed = []
    for layer in layers:
        before, after = one.get(layer.name), other.get(layer.name)
        if before != after:
            sides = [(rank_text(side), _share(layer, side), layer_cost(layer, side).bytes) for side in (before, after)]
            changed.append(RankChange(layer.name, *(part for pair in zip(*sides, strict=True) for part in pair)))
    return changed


def rank_text(choice: Choice | None) -> str:
    """A choice as people read it.

    >>> rank_text(Choice("svd", (17,))), rank_text(None)
    ('SVD 17', 'dense')
    """
    if choice is None:
        return "dense"
    return f"{METHODS[choice.method].label} {words.sizes(choice.rank)}{', free ranks' if choice.free else ''}"


def _share(layer: Layer, choice: Choice | None) -> float:
    if choice is None:
        return 1.0
    top = METHODS[choice.method].max_rank(layer.spec)
    return sum(rank / most for rank, most in zip(choice.rank, top, strict=True)) / len(top)


def rank_change_rows(changed: Sequence[RankChange], one: str, other: str) -> list[dict[str, object]]:
    """One row per layer in which two plans differ, as a table."""
    return [
        {
            "Layer": change.layer,
            one: change.one,
            other: change.other,
            "Share of the largest rank, points": round(100 * (change.other_share - change.one_share), 2),
            "Bytes": change.other_bytes - change.one_bytes,
        }
        for change in changed
    ]


# ---- latency of layers ----------------------------------------------------------------------------------------------


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
