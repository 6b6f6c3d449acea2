"""Latency staircases: microseconds of one layer's chain over its ranks, alone, at the size it sees in the network.

What counts for time is the shape of a chain, not its numbers, so the chains are built from specs with random weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from math import floor, prod
from pathlib import Path

import torch

from lowrank_core.errors import InvalidModel
from lowrank_core.graphs.onnx_chain import example_input, onnx_chain
from lowrank_core.layers.spec import LayerSpec, Rank, Size, half_up
from lowrank_core.measure.latency import (
    DENSE,
    OF_ONNX,
    UNSTABLE_IQR,
    LatencyTable,
    Runtime,
    Timing,
    Work,
    cpu_name,
    onnx_work,
    race,
    runtime_version,
)
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer, ModelProfile
from lowrank_core.plans.cost import computed, rank_at, stages_of, useful_rank
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import nobody, report, scope
from lowrank_core.store.key import named
from lowrank_core.store.lines import append_line, read_lines
from lowrank_core.workspace import Workspace

VERSION = 1
"""Of the way chains are timed: stored times of another version are not used."""

RANKS = 10
WIDTH = 16
"""Every other rank is a multiple of the vector width, where the layer is wide enough for that."""

ROUNDS = 7
TURN_SECONDS = 5e-3
NOISE = 0.05
"""Of two ratios, the least difference that means anything: repeated measurements agree within it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How chains are run. dtype: of the network, as "float32"; what runs ONNX runs chains in float32 all the same."""

    runtime: Runtime = "onnxruntime"
    threads: int = 1
    batch: int = 1
    dtype: str = "float32"


def setting_of(workspace: Workspace, runtime: Runtime = "onnxruntime", threads: int = 1) -> Setting:
    """The setting in which a network runs its layers: the batch of its example inputs, its element type."""
    floating = (p.dtype for p in workspace.model.parameters() if p.is_floating_point())
    dtype = "float32" if runtime in OF_ONNX else str(next(floating, torch.float32)).removeprefix("torch.")
    return Setting(runtime, threads, workspace.opened.batch, dtype)


@dataclass(frozen=True, slots=True)
class Rung:
    """Time of a rank as a share of the dense layer's, and the interquartile range of that share."""

    rank: Rank
    ratio: float
    iqr: float

    @property
    def unstable(self) -> bool:
        """Whether the ratio is no number to show."""
        return not self.iqr <= UNSTABLE_IQR


@dataclass(frozen=True, slots=True)
class Staircase:
    """One layer under one method: rungs by ascending rank, unstable ones among them.

    >>> steps = (Rung((16,), 0.4, 0.01), Rung((25,), 0.7, 0.01), Rung((32,), 0.5, 0.01), Rung((40,), 1.1, 0.01))
    >>> stairs = Staircase("fc", "svd", 90.0, steps)
    >>> stairs.dominated, stairs.break_even
    (((25,),), (38,))
    """

    layer: str
    method: str
    dense_us: float
    rungs: tuple[Rung, ...]

    @property
    def stable(self) -> tuple[Rung, ...]:
        """The rungs whose ratio is a number to show."""
        return tuple(rung for rung in self.rungs if not rung.unstable)

    @property
    def dominated(self) -> tuple[Rank, ...]:
        """Ranks that are faster than dense, but slower than a larger one, which is more accurate too."""

        def slower(rung: Rung, other: Rung) -> bool:
            margin = max(NOISE, (rung.iqr + other.iqr) / 2)
            larger = other.rank != rung.rank and all(a >= b for a, b in zip(other.rank, rung.rank, strict=True))
            return larger and other.ratio + margin < rung.ratio

        fast = (rung for rung in self.stable if rung.ratio < 1)
        return tuple(rung.rank for rung in fast if any(slower(rung, other) for other in self.stable))

    @property
    def break_even(self) -> Rank | None:
        """Largest rank faster than the dense layer, between two measured ones on a line; zeros = none is.

        None where too little is stable to tell.
        """
        steps = self.stable
        if len(steps) < 2:
            return None
        fast = [i for i, rung in enumerate(steps) if rung.ratio < 1]
        if not fast:
            return (0,) * len(steps[0].rank)
        below = steps[fast[-1]]
        if below is steps[-1]:
            return below.rank
        above = steps[fast[-1] + 1]
        share = (1 - below.ratio) / (above.ratio - below.ratio)
        return tuple(max(1, floor(a + share * (b - a) - 1e-9)) for a, b in zip(below.rank, above.rank, strict=True))


def ranks(layer: Layer, method: str) -> list[Rank]:
    """At most ten ranks up to the largest that is cheaper in bytes or multiplies, every other one a multiple of 16."""
    top = useful_rank(layer, method)
    if not all(top):
        top = METHODS[method].max_rank(layer.spec)
    longest = max(top)
    chosen = set()
    for number in range(1, RANKS + 1):
        step = number * longest / RANKS
        if number % 2 == 0 and longest >= 2 * WIDTH:
            step = max(WIDTH, round(step / WIDTH) * WIDTH)
        chosen.add(rank_at(top, min(1.0, step / longest)))
    return sorted(chosen)


def staircases(
    layers: Iterable[Layer],
    setting: Setting,
    *,
    methods: Iterable[str] | None = None,
    folder: Path | None = None,
) -> Iterator[Staircase]:
    """Measure layer by layer and method by method; what a folder knows is not measured again, unless it is unstable.

    methods: all but references, unless given by name. What the runtime cannot run is left out.
    Raises Cancelled; what is measured by then is kept.
    """
    layers, allowed = tuple(layers), None if methods is None else set(methods)
    pace = Pace(len(layers))
    for number, layer in enumerate(layers, start=1):
        names = [m.name for m in layer.methods if (not m.reference if allowed is None else m.name in allowed)]
        files = StairFile(folder, layer, setting)
        fresh: dict[str, Staircase] = {}
        for name in names:
            stairs = next((s for method, s in fresh.items() if _alike(layer, method, name)), None)
            if stairs is None:
                stairs = files.load(layer, name)
                if stairs is None or any(rung.unstable for rung in stairs.rungs):
                    words = f"timing layer {number} of {len(layers)}: {layer.name}, {METHODS[name].label}"
                    report(Progress(words, pace(number - 1)))
                    try:
                        stairs = _measured(layer, name, setting)
                    except InvalidModel as error:
                        report(Progress(f"{layer.name} by {METHODS[name].label} is left out: {error}"))
                        continue
                    files.save(stairs)
                    fresh[name] = stairs
            yield replace(stairs, layer=layer.name, method=name)


def _measured(layer: Layer, method: str, setting: Setting) -> Staircase:
    asked = ranks(layer, method)
    chains = [(layer.spec,), *(METHODS[method].stages(layer.spec, rank) for rank in asked)]
    timings = _race(chains, layer, setting)
    rungs = tuple(Rung(rank, t.ratio, t.iqr) for rank, t in zip(asked, timings, strict=True))
    return Staircase(layer.name, method, timings[0].dense_us, rungs)


def stairs_as_stored(folder: Path) -> tuple[int, int]:
    """How many files of staircases a folder holds, and their bytes: changes whenever one is written or added to."""
    sizes = [path.stat().st_size for path in folder.glob("latency-*.jsonl")]
    return len(sizes), sum(sizes)


def known_staircases(
    layers: Iterable[Layer],
    setting: Setting,
    folder: Path,
) -> tuple[Staircase, ...]:
    """What a folder knows of these layers on this machine; measures nothing."""
    stored = []
    for layer in layers:
        files = StairFile(folder, layer, setting)
        stored += [stairs for m in layer.methods if (stairs := files.load(layer, m.name)) is not None]
    return tuple(stored)


def layer_latency(profile: ModelProfile, plan: RankPlan, setting: Setting) -> list[tuple[str, Timing]]:
    """Each layer that a plan factorises, alone, beside its dense form. Raises Cancelled."""
    timings, pace = [], Pace(len(plan.choices))
    for number, (name, choice) in enumerate(plan.choices, start=1):
        report(Progress(f"timing layer {number} of {len(plan.choices)}: {name}", pace(number - 1)))
        layer = profile.layer(name)
        chains = [(layer.spec,), stages_of(layer.spec, choice)]
        try:
            (timing,) = _race(chains, layer, setting)
        except InvalidModel as error:
            report(Progress(f"{name} is left out: {error}"))
            continue
        timings.append((name, timing))
    return timings


def _race(chains: list[tuple[LayerSpec, ...]], layer: Layer, setting: Setting) -> tuple[Timing, ...]:
    dense, *others = [chain_work(chain, layer, setting) for chain in chains]
    with scope(report=nobody):  # layers are counted, not rounds
        return race(dense, others, threads=setting.threads, rounds=ROUNDS, turn_seconds=TURN_SECONDS)


def chain_work(stages: tuple[LayerSpec, ...], layer: Layer, setting: Setting) -> Work:
    """A chain in the layer's place, once for every call in one inference of it and of what shares its weight.

    Where rows are routed it gets as many at once as the batch sends it on average, one at least.
    """
    works: list[tuple[Work, int]] = []
    for (chain, size, batch), calls in calls_of(stages, layer, setting).items():
        value = example_input(chain[0], size, batch)
        if setting.runtime in OF_ONNX:
            content = onnx_chain(chain, size, batch).SerializeToString()
            works.append((onnx_work(content, [value], setting.runtime, setting.threads), calls))
            continue
        dtype = getattr(torch, setting.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = torch.nn.Sequential(*(stage.build() for stage in chain)).to(dtype).eval()
        given = torch.from_numpy(value)
        works.append((_torch_work(module, given if chain[0].table else given.to(dtype)), calls))
    if [calls for _, calls in works] == [1]:
        return works[0][0]

    def work() -> None:
        for one, calls in works:
            for _ in range(calls):
                one()

    return work


Call = tuple[tuple[LayerSpec, ...], Size, int]
"""A chain that is called, on inputs of which extent, and how many at once."""


def calls_of(stages: tuple[LayerSpec, ...], layer: Layer, setting: Setting) -> dict[Call, int]:
    """Which chains are called in one inference where the layer's is this one, on inputs of which extent and batch, and
    how often.
    """
    seen = Counter(computed(stages, layer))
    reached = {work: calls for work, calls in seen.items() if work[2]} or seen
    calls = Counter[Call]()
    for (chain, size, share), many in reached.items():
        calls[chain, size, max(1, half_up(share * setting.batch))] += many
    return calls


def _torch_work(chain: torch.nn.Module, value: torch.Tensor) -> Work:
    def work() -> object:
        with torch.inference_mode():
            return chain(value)

    return work


def as_table(staircases: Iterable[Staircase], fingerprint: str = "") -> LatencyTable:
    """Staircases as the table that a budget of microseconds takes; unstable ranks are left out.

    A layer's dense time is the one of its first staircase; the others' shares are taken of that. fingerprint: of the
    network whose layers they are.
    """
    steps: dict[tuple[str, str], tuple[tuple[Rank, float], ...]] = {}
    for stairs in staircases:
        ((_, dense),) = steps.setdefault((stairs.layer, DENSE), (((), stairs.dense_us),))
        steps[stairs.layer, stairs.method] = tuple((rung.rank, rung.ratio * dense) for rung in stairs.stable)
    return LatencyTable(steps, fingerprint=fingerprint)


class StairFile:
    """Staircases of one shape of layer in a folder; anything measured otherwise is never mixed in.

    What they depend on: the layer's spec and sizes, batch, element type, runtime and its version, threads, processor;
    not the weights, what is made of the answers, or the data.
    """

    def __init__(self, folder: Path | None, layer: Layer, setting: Setting) -> None:
        key = {
            "spec": asdict(layer.spec),
            "sizes": layer.in_sizes,
            **({"shares": list(map(str, layer.shares))} if layer.shares else {}),
            **({"beside": [str(work) for work in computed((layer.spec,), layer)]} if layer.shared else {}),
            **asdict(setting),
            "runtime": runtime_version(setting.runtime),
            "cpu": cpu_name(),
            "version": VERSION,
        }
        self.path = None if folder is None else folder / f"latency-{named(key)}.jsonl"

    def load(self, layer: Layer, method: str) -> Staircase | None:
        """The staircase of a method under the layer's own name; None where it is missing or damaged."""
        for stored, stairs in self._read().items():
            if stored == method or _alike(layer, stored, method):
                return replace(stairs, layer=layer.name, method=method)
        return None

    def save(self, stairs: Staircase) -> None:
        """Append a staircase to the file, beside those of the other methods."""
        if self.path is not None:
            append_line(self.path, stairs)

    def _read(self) -> dict[str, Staircase]:
        """The stored staircases by method; of several the one measured last."""
        lines = () if self.path is None else read_lines(self.path, Staircase)
        return {stairs.method: stairs for stairs in lines if stairs.method in METHODS}


def _alike(layer: Layer, a: str, b: str) -> bool:
    """Whether two methods give the same chains, as a data-aware one and its plain form do."""
    first, second = METHODS[a], METHODS[b]
    if first.axes != second.axes or first.obstacle(layer.spec) or second.obstacle(layer.spec):
        return False
    tops = (first.max_rank(layer.spec), second.max_rank(layer.spec))
    if tops[0] != tops[1] or prod(tops[0]) == 0:
        return False
    ends = (tops[0], (1,) * len(tops[0]))
    return all(first.stages(layer.spec, rank) == second.stages(layer.spec, rank) for rank in ends)
