"""Spectra of a model's layers, or of weights alone, computed here or shared out; each process reads what it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from uuid import uuid4

from torch import Tensor

from lowrank_core.algebra.gram import WHOLE, operations
from lowrank_core.algebra.linalg import MatrixFactorization
from lowrank_core.algebra.preview import COLUMNS, ROUNDS, Preview, of_all, of_matrix
from lowrank_core.errors import InvalidModel, WorkersLost, few
from lowrank_core.methods import METHODS, Factorization
from lowrank_core.networks.profile import Layer
from lowrank_core.running.operations import counting
from lowrank_core.running.parallel import Workers, map_elsewhere
from lowrank_core.running.scope import raise_if_cancelled
from lowrank_core.sources._inventory import Inventory
from lowrank_core.store.cache import Cache
from lowrank_core.workspace import Workspace, open_to_look

Looked = Workspace | Inventory
"""A model, or weights alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The singular values of one layer by one method, or a preview of them, for each axis that has ranks.

    operations: additions and multiplications that were done for it, 0 where it was known already.
    """

    layer: str
    method: str
    axes: tuple[tuple[str, Tensor | Preview], ...]
    operations: float


@dataclass(frozen=True, slots=True)
class _Ask:
    """What another process computes. mark: of the weights where the work began; begun: a name of this call alone."""

    begun: str
    ref: str
    mark: str
    cache: Cache | None
    layer: str
    method: str
    preview: bool


def spectra_of(
    looked: Looked, asks: Sequence[tuple[Layer, str]], workers: Workers, *, preview: bool = False
) -> Iterator[tuple[int, Spectrum]]:
    """Yield (position, spectrum) of each (layer, method) as it is done: here in order, elsewhere the largest first.

    Elsewhere every process opens the model or the weights by their reference, reads what it takes, and has one thread:
    the bits are those of one process with one thread. Raises InvalidModel where a worker finds other weights, and
    WorkersLost, which names what was left.
    """
    if not workers.elsewhere:
        for at, (layer, method) in enumerate(asks):
            raise_if_cancelled()
            yield at, _spectrum(looked, layer.name, method, preview=preview)
        return
    begun = uuid4().hex
    ref = looked.weights.ref if isinstance(looked, Inventory) else looked.address
    order = sorted(range(len(asks)), key=lambda at: -work(asks[at][0], preview=preview))
    sent = [
        _Ask(begun, ref, _mark(looked, layer.name), looked.cache, layer.name, method, preview)
        for layer, method in (asks[at] for at in order)
    ]
    left = dict.fromkeys(order)
    try:
        for place, found in map_elsewhere(_elsewhere, sent, workers):
            del left[order[place]]
            yield order[place], found
    except WorkersLost as error:
        names = few([asks[at][0].name for at in left])
        kept = "" if looked.cache is None else " What was computed is kept."
        raise WorkersLost(f"{error} Left over: {names}.{kept}") from error


def work(layer: Layer, *, preview: bool = False) -> float:
    """About how many additions and multiplications the spectrum of a layer, or its preview, takes, by its shape."""
    rows, *others = layer.spec.weight_shape
    columns = prod(others)
    if preview and min(rows, columns) > WHOLE:
        return float(rows * columns * COLUMNS * (4 * ROUNDS + 2))
    return operations(rows, columns)


def _mark(looked: Looked, name: str) -> str:
    """What the weights in a worker must be like: of a model all of them, of weights alone three rows of the matrix."""
    return looked.mark(name) if isinstance(looked, Inventory) else looked.profile.fingerprint


def _spectrum(looked: Looked, name: str, method: str, *, preview: bool) -> Spectrum:
    with counting() as done:
        if isinstance(looked, Inventory):
            axes: tuple[str, ...] = ("rank",)
            found: list[Tensor | Preview] = [looked.preview(name) if preview else looked.spectrum(name)]
        else:
            axes, factorization = METHODS[method].axes, looked.factors(name, method)
            found = list(_previews(factorization) if preview else factorization.spectra)
    return Spectrum(name, method, tuple(zip(axes, found, strict=True)), done.count)


def _previews(factorization: Factorization) -> list[Preview]:
    """Of a single large matrix its preview; where there are several, or small ones, all that is to be known."""
    if isinstance(factorization, MatrixFactorization) and factorization.nested.matrices is not None:
        matrices = factorization.nested.matrices().detach()
        if len(matrices) == 1 and min(matrices.shape[1:]) > WHOLE:
            return [of_matrix(matrices[0])]
    return [of_all(values) for values in factorization.spectra]


def _elsewhere(ask: _Ask) -> Spectrum:
    looked = _opened_once(ask.begun, ask.ref, ask.cache)
    if _mark(looked, ask.layer) != ask.mark:
        raise InvalidModel(
            f"{ask.ref} opened in a worker has other weights, seen at layer {ask.layer!r}, than where the work was "
            "started; it must be the same file everywhere, and build_model() not random."
        )
    return _spectrum(looked, ask.layer, ask.method, preview=ask.preview)


@lru_cache(maxsize=1)
def _opened_once(begun: str, ref: str, cache: Cache | None) -> Looked:
    """What a process works on that takes one layer after the other; of another call nothing is left."""
    return open_to_look(ref, cache)
