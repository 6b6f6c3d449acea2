"""Arrays of NumPy: a .npz, a .npy, or a folder of .npy files called as the arrays of a .npz are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowrank_core.readers import Reader, register
from lowrank_core.readers._folders import holds
from lowrank_core.readers._npz import read_named
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.samples import Samples, Taken


def _accepts(path: Path) -> bool:
    return path.suffix.lower() in (".npz", ".npy") or (holds(path, {".npy"}) and any(path.glob("*.npy")))


def _read(path: Path, takes: Sequence[Taken], preparation: Preparation) -> Samples:
    """The arrays as they are: nothing is prepared."""
    named = read_named(path, [taken.name for taken in takes])
    train = None
    if named.train_inputs:
        train = Samples(named.train_inputs, *named.train_labels, as_taken=True)
    return Samples(
        named.inputs,
        *named.labels,
        metric=named.metric,
        outputs=named.outputs,
        held=named.held,
        train=train,
        as_taken=True,
    )


register(Reader("arrays", _accepts, _read, "a .npz, a .npy, or a folder of inputs.npy and targets.npy"))
