"""Whether a file that answers a little otherwise than the network holds another network, or only rounds otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from math import inf, isfinite
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lowrank_core.algebra.linalg import one_thread
from lowrank_core.errors import InvalidData, LowRankError
from lowrank_core.exports._reload import DENSE_ALONE, answer_of
from lowrank_core.layers.data import Dataset, Inputs, batch_size, data_hash, run
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

WriteDense = Callable[[Path], None]


def apart(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The largest distance of two outputs, and the same relative to the largest of ours; infinite where not alike."""
    if ours.shape != theirs.shape or not ours.numel():
        return inf, inf
    distance = float((ours.double() - theirs.double()).abs().max())
    largest = float(ours.double().abs().max())
    if not isfinite(distance):
        return inf, inf
    return distance, distance / largest if largest else inf if distance else 0.0


def own_rounding(network: nn.Module, inputs: Inputs) -> float:
    """What rounding does to a network's answers, relative to the largest: against float64 where it runs in it.

    Else between all samples at once, each alone, and in one thread.
    """
    ours = run(network, Dataset(inputs))
    if ours.dtype != torch.float64:
        try:
            exact = run(copy.deepcopy(network).double(), Dataset(_double(inputs)))
        except Exception:  # whatever its own code says to numbers of another type, or to being copied
            exact = ours
        if exact.dtype == torch.float64:
            return apart(exact, ours)[1]
    single = [run(network, Dataset(inputs).pick(slice(at, at + 1))) for at in range(batch_size(inputs))]
    with one_thread():
        others = run(network, Dataset(inputs))
    return max(apart(ours, other)[1] for other in (torch.cat(single), others))


def _double(inputs: Inputs) -> Inputs:
    return tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, inputs)


def dense_difference(workspace: Workspace, kind: str, inputs: Inputs, write_dense: WriteDense | None) -> float:
    """How far the dense network's own answers are apart between here and what reads files of that kind.

    Relative to the largest; 0 where that cannot be told. Once per network, kind and versions, then from the cache.
    write_dense(path) writes the dense network as a file of that kind; without it a fresh process opens it.
    """
    dense = run(workspace.model, Dataset(inputs))

    def measured() -> float:
        ref = workspace.opened.ref
        if write_dense is None:
            if ref is None:
                return 0.0
            theirs = answer_of(DENSE_ALONE, ref, Path(), inputs)
            return apart(dense, theirs)[1]
        with scratch() as folder:
            write_dense(folder / "dense")
            theirs = answer_of(kind, ref or workspace.model, folder / "dense", inputs)
        return apart(dense, theirs)[1]

    try:
        if workspace.cache is None or write_dense is None:  # what a process opens may change while the key does not
            return measured()
        about = {
            "what": "difference between runtimes",
            "version": [VERSION, torch.__version__, _version("onnxruntime"), torch.get_num_threads()],
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
        dense = workspace.opened.ref or workspace.model
        theirs = answer_of(kind, dense, written, part.inputs)
        targets = part.targets
        if metric.label_free or targets is None:
            targets = run(workspace.model, part)
        ours, other = (metric.score(outputs, targets) for outputs in (run(network, part), theirs))
    except InvalidData:
        return True
    slack = max(SCORES_APART, 1 / len(part)) if metric.share else SCORES_APART * max(abs(ours), abs(other))
    return abs(ours - other) <= slack
