"""Sensitivity: what compressing one layer alone, at a few ranks, does to the network's outputs. No labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from lowrank_core.compression.apply import apply
from lowrank_core.compression.correct import load_overlay
from lowrank_core.errors import InvalidData
from lowrank_core.layers.data import Dataset, Outputs, data_hash, joined, run
from lowrank_core.layers.spec import Rank
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import rank_at, tried_rank
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.predict.prediction import DROWNED, Point, closed_form_error
from lowrank_core.running.parallel import HERE, Workers, map_elsewhere
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import give_way, report, scope, under
from lowrank_core.scoring.metrics import Metric, are_shares, divergence_of_scores
from lowrank_core.scoring.prefix import LIMIT_BYTES, PrefixStore
from lowrank_core.scoring.scores import no_number, not_finite, output_scores, worst
from lowrank_core.store.cache import Cache
from lowrank_core.store.key import NetworkKey, named
from lowrank_core.store.lines import append_line, read_lines
from lowrank_core.store.room import Recent, Room
from lowrank_core.workspace import Workspace, opened_once

VERSION = 3
"""Of the way points are measured: stored ones of another version are not used."""

SAMPLES = 128
SHARES = (0.08, 0.25, 0.5, 0.9)
"""Shares of the largest useful rank; the lowest is where the curve is steepest."""

BATCH = 64

MOST_GROUNDS = 2
"""Sets of samples whose dense outputs and prefixes are kept between calls: a search takes turns between two."""

OUTPUT_BYTES = 2**28
"""What the dense outputs of the samples may take, which are held while points are measured; else fewer take part."""

Ask = tuple[str, Choice]


def asked(workspace: Workspace, methods: Iterable[str] | None = None) -> tuple[Ask, ...]:
    """The points to measure, layer by layer: first every layer's default method, then the others.

    methods: all but references and variants that need calibration data, unless given by name.
    """
    usual = {m.name for m in METHODS.values() if not m.reference and not m.data_aware}
    names = usual if methods is None else set(methods)
    first: list[Ask] = []
    rest: list[Ask] = []
    for layer in workspace.profile.layers:
        for position, method in enumerate(m.name for m in layer.methods if m.name in names):
            asks = [(layer.name, Choice(method, rank)) for rank in ranks(layer, method)]
            (first if position == 0 else rest).extend(asks)
    return (*first, *rest)


def ranks(layer: Layer, method: str) -> list[tuple[int, ...]]:
    """The ranks that are measured; of a method that never pays, shares of all it has."""
    top = tried_rank(layer, method)
    if not all(top):
        top = METHODS[method].max_rank(layer.spec)
    return sorted({rank_at(top, share) for share in SHARES})


def measured(
    workspace: Workspace,
    correction: Correction | None = None,
    *,
    asks: Iterable[Ask] | None = None,
    points: Iterable[Point] = (),
    samples: int = SAMPLES,
    data: Dataset | None = None,
    grounds: Grounds | None = None,
) -> Iterator[Point]:
    """Yield each point as it is measured; those in `points` are not measured again.

    Only what comes after the layer is run: on `data`, whose labels, if any, give the drop of the metric; without it on
    the leading evaluation samples, unlabelled. grounds: what earlier calls started from. Reports how far it is; gives
    way and raises Cancelled between points.
    """
    stored = {(p.layer, p.method, p.rank) for p in points}
    asks = asked(workspace) if asks is None else asks
    todo = [(name, choice) for name, choice in asks if (name, choice.method, choice.rank) not in stored]
    if not todo:
        return
    data = _samples(workspace, samples) if data is None else data
    yield from _points(workspace, correction, todo, data, (grounds or Grounds()).of(workspace, data))


@dataclass(frozen=True, slots=True, eq=False)
class _Ground:
    """What all points on the same inputs start from: the dense outputs, and prefixes."""

    dense: Outputs
    store: PrefixStore


class Grounds:
    """What points start from, kept from one call to the next for the samples used lately. Of one workspace."""

    def __init__(self) -> None:
        self._room = Room(LIMIT_BYTES)
        self._kept: Recent[str, _Ground] = Recent(MOST_GROUNDS)

    def of(self, workspace: Workspace, data: Dataset) -> _Ground:
        """The dense outputs on these inputs, and prefixes of copies that run on them."""
        inputs = data_hash(data.inputs)
        if (ground := self._kept.get(inputs)) is None:
            dense = joined(run(workspace.model, part, workspace.judged.names) for part, _ in _parts(data))
            self._kept[inputs] = ground = _Ground(dense, PrefixStore(workspace.cuts, room=self._room))
        return ground


def _parts(data: Dataset) -> list[tuple[Dataset, int]]:
    """Batches, and the number of the first sample of each."""
    return [(data.pick(slice(at, min(at + BATCH, len(data)))), at) for at in range(0, len(data), BATCH)]


def _points(
    workspace: Workspace,
    correction: Correction | None,
    todo: Sequence[Ask],
    data: Dataset,
    ground: _Ground,
) -> Iterator[Point]:
    dense, parts = ground.dense, _parts(data)
    number = {layer.name: i for i, layer in enumerate(ground.store.profile.layers)}
    pace = Pace(len(todo))
    for done, (name, choice) in enumerate(todo, start=1):
        give_way()
        plan = RankPlan.of(workspace.profile.fingerprint, {name: choice})
        compressed = apply(workspace.model, workspace.profile, plan, workspace.factors)
        if correction is not None:
            load_overlay(compressed, workspace.corrector.alone(compressed, plan, correction))
        forward = ground.store.runner(compressed, len(data), record=[number[name]])
        outputs = joined(forward(part, at) for part, at in parts)
        error = closed_form_error(workspace.factors(name, choice.method).spectra, choice.rank)
        report(_far(done, len(todo), pace))
        if broken := _broken(outputs, dense):
            unit = float(next(iter(dense.values())).double().var(correction=0)) or 1.0
            yield Point(name, choice.method, choice.rank, error, DROWNED * unit, DROWNED, None, broken)
            continue
        squares = change_of(outputs, dense)
        loss = divergence(workspace.metric, outputs, dense)
        drop = _drop(workspace.metric, outputs, dense, data)
        yield Point(name, choice.method, choice.rank, error, squares, loss, drop)


def _far(done: int, total: int, pace: Pace) -> Progress:
    return Progress(f"{done} of {total} points", pace(done))


def profile(
    workspace: Workspace,
    correction: Correction | None,
    asks: Iterable[Ask],
    data: Dataset,
    *,
    folder: Path | None = None,
    workers: Workers = HERE,
    grounds: Grounds | None = None,
) -> tuple[Point, ...]:
    """The points asked for, in that order. With a folder they are kept there as they come, and not measured twice.

    grounds: what earlier calls started from. workers: other processes open the model by its reference, and measure the
    same to the last bit as one thread here. Reports how far it is and how long it takes. Raises Cancelled; what is
    measured by then is kept.
    """
    asks = tuple(asks)
    file = None if folder is None else PointFile(folder, workspace, correction, data=data)
    points = _kept(file)
    todo = [ask for ask in asks if (ask[0], ask[1].method, ask[1].rank) not in points]
    with scope(report=under("measuring layers")):
        for point in _measured(workspace, correction, todo, data, workers, grounds):
            points[point.layer, point.method, point.rank] = point
            if file is not None:
                file.add(point)
    return tuple(points[name, choice.method, choice.rank] for name, choice in asks)


def unknown(
    workspace: Workspace, correction: Correction | None, asks: Iterable[Ask], data: Dataset, folder: Path | None
) -> list[Ask]:
    """Of the points asked for those that `profile` would have to measure."""
    points = _kept(None if folder is None else PointFile(folder, workspace, correction, data=data))
    return [ask for ask in asks if (ask[0], ask[1].method, ask[1].rank) not in points]


def _kept(file: PointFile | None) -> dict[tuple[str, str, Rank], Point]:
    return {(p.layer, p.method, p.rank): p for p in (() if file is None else file.load())}


def _measured(
    workspace: Workspace,
    correction: Correction | None,
    todo: list[Ask],
    data: Dataset,
    workers: Workers,
    grounds: Grounds | None,
) -> Iterator[Point]:
    """Each point as it is measured, here or elsewhere; elsewhere a layer is one piece of work."""
    if not workers.elsewhere:
        yield from measured(workspace, correction, asks=todo, data=data, grounds=grounds)
        return
    layers: dict[str, list[Ask]] = {}
    for ask in todo:
        layers.setdefault(ask[0], []).append(ask)
    model = workspace.address, workspace.key, workspace.cache, workspace.opened.outputs
    alone = data.alone()
    pieces = [_Piece(model, correction, tuple(asks), alone) for asks in layers.values()]
    pace, done = Pace(len(todo)), 0
    for _, points in map_elsewhere(_measured_elsewhere, pieces, workers):
        for point in points:
            done += 1
            report(_far(done, len(todo), pace))
            yield point


_Model = tuple[str, NetworkKey, Cache | None, tuple[str | int, ...]]
"""What `opened_once` takes."""


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """What another process measures: points of one layer of a model, which is told as `opened_once` takes it."""

    model: _Model
    correction: Correction | None
    asks: tuple[Ask, ...]
    data: Dataset


def _measured_elsewhere(piece: _Piece) -> tuple[Point, ...]:
    workspace = opened_once(*piece.model)
    ground = _grounds_once(piece.model).of(workspace, piece.data)
    return tuple(_points(workspace, piece.correction, piece.asks, piece.data, ground))


@lru_cache(maxsize=1)
def _grounds_once(model: _Model) -> Grounds:
    """Of the latest model, kept in a process that measures piece after piece."""
    return Grounds()


def _samples(workspace: Workspace, samples: int) -> Dataset:
    fitting = max(1, OUTPUT_BYTES // max(1, workspace.reference.output_bytes))
    return workspace.reference.dataset.pick(slice(0, min(samples, fitting))).unlabelled()


def change_of(outputs: Outputs, dense: Outputs) -> float:
    """The mean squared change of the output that changes most, for its variance; in units of the first output's."""
    unit = next(iter(dense.values())).double().var(correction=0)
    changes = []
    for name, theirs in dense.items():
        squares = (outputs[name].double() - theirs.double()).square().mean()
        variance = theirs.double().var(correction=0)
        changes.append(float(squares * (unit / variance if variance > 0 and unit > 0 else 1.0)))
    return max(changes)


def divergence(metric: Metric, outputs: Outputs, dense: Outputs) -> float:
    """How far the output that is farthest is from the dense network's, without labels.

    Of class scores the mean Kullback-Leibler divergence of the predicted distributions, in nats, whether the network
    answers with these themselves or with their unnormalised logarithms; of other outputs the mean squared difference
    over the variance of the dense ones. Never below 0.
    """
    return max(_divergence(metric, outputs[name].double(), theirs.double()) for name, theirs in dense.items())


def _divergence(metric: Metric, outputs: Tensor, dense: Tensor) -> float:
    axis = metric.axis_of(dense)
    if axis is None:
        variance = float(dense.var(correction=0))
        return float((outputs - dense).square().mean()) / (variance or 1.0)
    if are_shares(dense, axis):
        dense, outputs = (values.clamp_min(torch.finfo(torch.float32).eps).log() for values in (dense, outputs))
    return divergence_of_scores(outputs, dense, axis)


def _broken(outputs: Outputs, dense: Outputs) -> int:
    """How many samples have answers that hold NaN or infinity where the dense network's do not."""
    return int(torch.stack([not_finite(outputs[name], theirs) for name, theirs in dense.items()]).any(0).sum())


def _drop(metric: Metric, outputs: Outputs, dense: Outputs, data: Dataset) -> float | None:
    """How much worse the metric is than the dense network's; None without labels. Raises InvalidData for no number."""
    if data.targets is None:
        return None
    score = worst(output_scores(metric, outputs, dense, data.targets, data.weights))
    if not isfinite(score.drop):
        raise InvalidData(no_number(metric, score.drop if isfinite(score.value) else score.value, data))
    return score.drop


# ---- on disk --------------------------------------------------------------------------------------------------------


class PointFile:
    """Points of one network, data and correction, line by line in a file of a folder that is named by all of them."""

    def __init__(
        self,
        folder: Path,
        workspace: Workspace,
        correction: Correction | None,
        *,
        data: Dataset | None = None,
    ) -> None:
        """data: the samples the points are measured on, as in `measured`."""
        self._name = workspace.name_for("points", VERSION, **_measured_on(workspace, correction, data))
        self.path = folder / f"points-{self._name}.jsonl"

    @classmethod
    def shipped(cls, folder: Path, workspace: Workspace, correction: Correction | None) -> PointFile:
        """The file that comes with a built-in network: so does its code, and any machine must find it."""
        file = cls.__new__(cls)
        about = {**_measured_on(workspace, correction, None), "fingerprint": workspace.profile.fingerprint}
        file._name = named({**about, "version": VERSION})
        file.path = folder / f"points-{file._name}.jsonl"
        return file

    def load(self) -> tuple[Point, ...]:
        """Every stored point, each once; what is damaged counts as missing."""
        read = read_lines(self.path, Point)
        stored = (p for p in read if p.method in METHODS and isfinite(p.change) and isfinite(p.drop or 0.0))
        return tuple({(p.layer, p.method, p.rank): p for p in stored}.values())

    def add(self, point: Point) -> None:
        """Append one more point to the file."""
        append_line(self.path, point)

    def beside(self, what: str, version: int) -> Path:
        """Path of a file for something else that depends on the same; version: of the way that is computed."""
        return self.path.with_name(f"{what}-{named([self._name, version])}.json")


def _measured_on(workspace: Workspace, correction: Correction | None, data: Dataset | None) -> dict[str, object]:
    data = _samples(workspace, SAMPLES) if data is None else data
    about: dict[str, object] = {
        "data": data.hash,
        "correction": None if correction is None else correction.to_dict(),
    }
    return {**about, "shares": True} if _answers_shares(workspace) else about  # once taken for logarithms


def _answers_shares(workspace: Workspace) -> bool:
    """Whether an output that is judged holds probabilities."""
    _, dense = next(workspace.reference.batches(2))
    axes = [(values, workspace.metric.axis_of(values)) for values in dense.values()]
    return any(axis is not None and are_shares(values, axis) for values, axis in axes)
