"""Whether a file that answers a little otherwise than the network holds another network, or only rounds otherwise."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lowrank_core.errors import InvalidData, LowRankError
from lowrank_core.exports._reload import DENSE_ALONE, answer_of
from lowrank_core.layers.data import BatchAxes, Dataset, Inputs, Outputs, data_hash, distance, joined, run
from lowrank_core.running.threads import one_thread
from lowrank_core.scoring.scores import output_scores
from lowrank_core.store.files import scratch
from lowrank_core.workspace import Workspace

SLACK = 4.0
"""Times its own rounding that a network's answers may differ between two runtimes: both round, and not alike."""

LARGEST = 1e-2
"""Of the largest output; what differs by more is no rounding, whatever else differs as much."""

SCORED = 512
"""Samples on which the scores are compared."""

SCORES_APART = 0.005
"""Of a share, or of the value of another score."""

VERSION = 1
"""Of the way runtimes are compared; what was kept by another version is not used."""

_RUNTIMES = {"executorch": "executorch", "openvino": "openvino"}
"""The package that runs files of a kind, where it is not onnxruntime or PyTorch."""

WriteDense = Callable[[Path], None]


def apart(ours: Outputs, theirs: Outputs) -> tuple[float, float]:
    """The largest distance of outputs, and the same relative to the largest number of that output of ours.

    Of all that hold numbers of floating point, whether they are judged or not, in their order; infinite where they are
    not alike in number or shape.
    """
    difference = difference_of([ours], [theirs])
    return difference.distance, difference.share


@dataclass(frozen=True, slots=True)
class Difference:
    """How far answers to several batches are apart at most. distance: of any; share: relative to the largest number of
    that output in all batches; batch, output: where that share is.
    """

    distance: float = 0.0
    share: float = 0.0
    batch: int = 0
    output: str = ""


def difference_of(ours: Sequence[Outputs], theirs: Iterable[Outputs]) -> Difference:
    """How far answers to the same batches are apart, see `apart`; a batch of small numbers is one among the others."""
    largest = {name: max(map(_largest, (each[name] for each in ours))) for name in ours[0]}
    found = Difference()
    for batch, (mine, others) in enumerate(zip(ours, theirs, strict=True)):
        if len(mine) != len(others):
            return Difference(inf, inf, batch)
        for (name, values), other in zip(mine.items(), others.values(), strict=True):
            if values.is_floating_point():
                far, share = distance(values, other, largest[name])
                there = (share, batch, name) if share > found.share else (found.share, found.batch, found.output)
                found = Difference(max(far, found.distance), *there)
    return found


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def own_rounding(network: nn.Module, inputs: Inputs, axes: BatchAxes | None = None) -> float:
    """What rounding does to a network's answers, relative to the largest: against float64 where it runs in it.

    Else between all samples at once, each alone, and in one thread.
    """
    given = Dataset(inputs, axes=axes)
    ours = run(network, given)
    if not _in_float64(ours):
        try:
            exact = run(copy.deepcopy(network).double(), replace(given, inputs=_double(inputs)))
        except Exception:  # whatever its own code says to numbers of another type, or to being copied
            exact = ours
        if _in_float64(exact):
            return apart(exact, ours)[1]
    samples = len(given)
    by_sample = [name for name, values in ours.items() if values.ndim and len(values) == samples]
    single = joined(run(network, given.pick(slice(at, at + 1)), by_sample) for at in range(samples))
    with one_thread():
        others = run(network, given)
    alone = apart({name: ours[name] for name in by_sample}, single)
    return max(alone[1], apart(ours, others)[1])


def _in_float64(outputs: Outputs) -> bool:
    return all(values.dtype == torch.float64 for values in outputs.values() if values.is_floating_point())


def _double(inputs: Inputs) -> Inputs:
    return tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, inputs)


def dense_difference(workspace: Workspace, kind: str, inputs: Inputs, write_dense: WriteDense | None) -> float:
    """How far the dense network's own answers are apart between here and what reads files of that kind.

    Relative to the largest; 0 where that cannot be told. Once per network, kind and versions, then from the cache.
    write_dense(path) writes the dense network as a file of that kind; without it a fresh process opens it.
    """
    began = time.monotonic()
    dense = run(workspace.model, Dataset(inputs))
    own_seconds = time.monotonic() - began

    def measured() -> float:
        ref = workspace.opened.ref
        if write_dense is None:
            if ref is None:
                return 0.0
            theirs = answer_of(DENSE_ALONE, ref, Path(), inputs, own_seconds)
            return apart(dense, theirs)[1]
        with scratch() as folder:
            write_dense(folder / "dense")
            theirs = answer_of(kind, ref or workspace.model, folder / "dense", inputs, own_seconds)
        return apart(dense, theirs)[1]

    try:
        if workspace.cache is None or write_dense is None:  # what a process opens may change while the key does not
            return measured()
        about = {
            "what": "difference between runtimes",
            "version": [
                VERSION,
                torch.__version__,
                _version(_RUNTIMES.get(kind, "onnxruntime")),
                torch.get_num_threads(),
            ],
            "model": workspace.profile.fingerprint,
            "answers": data_hash(dense),
            "inputs": data_hash(inputs),
            "kind": kind,
        }
        kept = workspace.cache.remembered(about, lambda: {"apart": torch.tensor(measured(), dtype=torch.float64)})
        return float(kept["apart"])
    except LowRankError:
        return 0.0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def scores_agree(workspace: Workspace, kind: str, written: Path, network: nn.Module) -> bool:
    """Whether a file scores as the network does, on at most SCORED samples; true where there is nothing to score by."""
    if workspace.opened.evaluate is not None:
        return True
    try:
        part, metric = workspace.reference.dataset.pick(slice(0, SCORED)), workspace.metric
        began = time.monotonic()
        ours = run(network, part)
        own_seconds = time.monotonic() - began
        answered = answer_of(kind, workspace.opened.ref or workspace.model, written, part.inputs, own_seconds)
        theirs = dict(zip(ours, answered.values(), strict=True))
        dense = run(workspace.model, part, workspace.judged.names)
        values = []
        for outputs in (ours, theirs):
            judged = {name: outputs[name] for name in dense}
            values.append([each.value for each in output_scores(metric, judged, dense, part.targets, part.weights)])
    except InvalidData:
        return True

    def alike(mine: float, other: float) -> bool:
        slack = max(SCORES_APART, 1 / len(part)) if metric.share else SCORES_APART * max(abs(mine), abs(other))
        return abs(mine - other) <= slack

    return all(map(alike, *values))
