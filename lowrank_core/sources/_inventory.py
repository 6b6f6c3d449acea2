"""Inventory: what the names and shapes of weights tell about the layers they belong to, and their spectra."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from lowrank_core.algebra.gram import WHOLE, DeviceGram, GramMatrix, row_blocks
from lowrank_core.algebra.linalg import worth_moving
from lowrank_core.algebra.preview import COLUMNS, ROUNDS, Preview, of_all, preview
from lowrank_core.errors import InvalidModel, cut
from lowrank_core.layers.data import octets
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.profile import Layer, Rest, Skipped
from lowrank_core.sources._adapter import Adapter
from lowrank_core.sources._stored import StoredTensor
from lowrank_core.sources._weights import Weights, content_hash, fingerprint
from lowrank_core.store.cache import Cache

METHOD = "svd"
"""Spectra of weights alone are those of the (out, in * window) matrix: other decompositions follow a structure."""

TOLD_BY_NAME = "Tables (Embedding) are told from Linear layers by their names: embed..., wte, wpe."
NOT_IN_THE_FILE = "Stride, padding and groups of convolutions are not in the file."
VERSION = 1
"""Of the way spectra are computed: what another version kept on disk is not used."""

LONGEST_WINDOW = 64
FINGERPRINTED_BYTES = 2**29
"""Up to this size the fingerprint is computed unasked: about a third of a second."""

_REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_TABLE = re.compile("wte|wpe|.*embed.*")
_SCALE = re.compile(r"(.+?)[._]+(scales?|scale_inv|absmax|zeros?|zero_points?)")
"""What integers or 8-bit floats are multiplied by, or counted from; what is before it tells of which tensor."""

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, slots=True, eq=False)
class Inventory:
    """The layers that weights seem to belong to, in the order of the file.

    layers: never called, so what they multiply is unknown. rest: of its multiplies nothing is known either.
    """

    weights: Weights
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]
    rest: Rest
    notices: tuple[str, ...]
    tensors: dict[str, StoredTensor]
    cache: Cache | None = None
    _kept: dict[str, Tensor] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def fingerprint(self) -> str | None:
        """None above half a gigabyte, where `weights.fingerprint` has to be asked for."""
        readable = all(tensor.dtype is not None for tensor in self.weights.tensors)
        return fingerprint(self.weights) if readable and self.weights.bytes <= FINGERPRINTED_BYTES else None

    @property
    def parameters(self) -> int:
        """Numbers in all tensors that are not buffers."""
        if self.weights.adapter is not None:
            return sum(tensor.elements for tensor in self.weights.tensors)
        return self.rest.parameters + sum(layer.spec.parameters for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes, as stored, of all tensors that are not buffers."""
        if self.weights.adapter is not None:
            return self.weights.bytes
        return self.rest.bytes + sum(layer.spec.parameters * layer.itemsize for layer in self.layers)

    def known(self, name: str) -> Tensor | None:
        """The spectrum of a layer if it was computed before, or is no work, as that of two thin matrices."""
        if self.weights.adapter is not None:
            return self.spectrum(name)
        return self._kept.get(name)

    def spectrum(self, name: str) -> Tensor:
        """(min(out, in * window),) singular values, float64, descending; kept for the next one who asks.

        Takes less than four times the bytes of a large tensor, one layer at a time. Raises InvalidModel for NaN or
        Inf, InvalidFile where the file changed, Cancelled.
        """
        if self.weights.adapter is not None:
            return self.weights.adapter.product(name).sigma
        with self._turn:
            if name not in self._kept:
                try:
                    self._kept[name] = self._computed(self.tensors[name])
                except InvalidModel as error:
                    raise InvalidModel(f"layer {name!r}: {error}") from error
            return self._kept[name]

    def preview(self, name: str) -> Preview:
        """The leading singular values and what they leave open; of a small layer, or of two thin matrices, all of them.

        Takes the memory of the parts that are read and of a few matrices of COLUMNS columns. Raises as `spectrum`.
        """
        if self.weights.adapter is not None or _side(self.tensors[name]) <= WHOLE:
            return of_all(self.spectrum(name))
        try:
            return self._previewed(self.tensors[name])
        except InvalidModel as error:
            raise InvalidModel(f"layer {name!r}: {error}") from error

    def mark(self, name: str) -> str:
        """A hash of a layer's form and of three rows of its weight: that of another checkpoint differs."""
        adapter = self.weights.adapter
        if adapter is None:
            tensors: tuple[StoredTensor, ...] = (self.tensors[name],)
        else:
            pair = next(pair for pair in adapter.pairs if pair.name == name)
            tensors = (pair.b, pair.a)
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(f"{tensor.dtype}|{tensor.shape}|".encode())
            for row in (0, tensor.shape[0] // 2, tensor.shape[0] - 1):
                digest.update(octets(tensor.read(slice(row, row + 1))))
        return digest.hexdigest()

    def _computed(self, tensor: StoredTensor) -> Tensor:
        if self.cache is None:
            return _spectrum(tensor)
        about = _about(tensor, "spectrum of a stored tensor", on_device=worth_moving(_side(tensor)))
        return self.cache.remembered(about, lambda: {"values": _spectrum(tensor)})["values"]

    def _previewed(self, tensor: StoredTensor) -> Preview:
        def computed() -> dict[str, Tensor]:
            rows, columns = tensor.shape[0], prod(tensor.shape[1:])
            seen = preview(
                lambda: (tensor.read(part).reshape(-1, columns) for part in row_blocks(rows, columns)),
                columns,
                _side(tensor),
            )
            return {"found": seen.found, "energy": torch.tensor(seen.energy, dtype=torch.float64)}

        about = {**_about(tensor, "preview of a stored tensor", on_device=False), "columns": [COLUMNS, ROUNDS]}
        kept = computed() if self.cache is None else self.cache.remembered(about, computed)
        return Preview(kept["found"], float(kept["energy"]), _side(tensor))


def _about(tensor: StoredTensor, what: str, *, on_device: bool) -> dict[str, object]:
    """All that what is kept of a tensor depends on."""
    return {
        "what": what,
        "version": [VERSION, torch.__version__],
        "tensor": content_hash(tensor),
        "threads": "cuda" if on_device else torch.get_num_threads(),
    }


def take_stock(weights: Weights, cache: Cache | None = None) -> Inventory:
    """Sort tensors into layers (a matrix or a convolution each, with its bias), what is skipped, and the rest.

    Of an adapter a layer is the product B A of a pair, which is nowhere stored.
    """
    if weights.adapter is not None:
        return _of_adapter(weights, weights.adapter)
    by_name = {tensor.name: tensor for tensor in weights.tensors}
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    taken: dict[str, StoredTensor] = {}
    biases: set[str] = set()
    coded = _coded(weights)
    for tensor in weights.tensors:
        stem = tensor.name.removesuffix(".weight")
        name = tensor.name if stem in taken or stem in by_name else stem
        if reason := _obstacle(tensor) or _scales(tensor, coded):
            kind = f"{'x'.join(map(str, tensor.shape)) or 'scalar'}, {tensor.kind}"
            skipped.append(Skipped(tensor.name, kind, reason))
            continue
        bias = by_name.get(f"{stem}.bias") if stem != tensor.name else None
        spec = _spec(name, tensor.shape, biased=bias is not None and bias.shape == tensor.shape[:1])
        if bias is not None and spec.bias:
            biases.add(bias.name)
        layers.append(Layer(name, spec.op, spec, (), tensor.bytes // tensor.elements))
        taken[name] = tensor
    inside = biases | {tensor.name for tensor in taken.values()}
    buffers = {name for name in by_name if name.rpartition(".")[2] in _BUFFERS}
    placed = inside | buffers
    outside = [tensor for name, tensor in by_name.items() if name not in placed]
    notices = list(weights.notices)
    if any(layer.spec.table for layer in layers):
        notices.append(TOLD_BY_NAME)
    if any(layer.spec.kernel for layer in layers):
        notices.append(NOT_IN_THE_FILE)
    return Inventory(
        weights=weights,
        layers=tuple(layers),
        skipped=tuple(one for one in skipped if one.name not in biases | buffers),
        rest=Rest(
            parameters=sum(tensor.elements for tensor in outside),
            bytes=sum(tensor.bytes for tensor in outside),
            multiplies=0,
            buffer_bytes=sum(by_name[name].bytes for name in buffers),
        ),
        notices=tuple(notices),
        tensors=taken,
        cache=cache,
    )


def _of_adapter(weights: Weights, adapter: Adapter) -> Inventory:
    layers = []
    for pair in adapter.pairs:
        spec = _spec(pair.name, (pair.b.shape[0], *pair.a.shape[1:]), biased=False)
        layers.append(Layer(pair.name, spec.op, spec, (), pair.a.bytes // pair.a.elements))
    others = adapter.others
    rest = Rest(sum(tensor.elements for tensor in others), sum(tensor.bytes for tensor in others), 0, 0)
    return Inventory(weights, tuple(layers), (), rest, weights.notices, {})


def _obstacle(tensor: StoredTensor) -> str | None:
    if tensor.dtype not in _REAL:
        return f"its numbers are {tensor.kind}: only 16, 32 and 64-bit floats are factorised"
    if not tensor.elements:
        return "it is empty"
    if len(tensor.shape) < 2:
        return "a single row of numbers: nothing to factorise"
    if len(tensor.shape) > 5:
        return f"{len(tensor.shape)} axes: neither a matrix nor a convolution"
    if max(tensor.shape[2:], default=0) > LONGEST_WINDOW:
        return f"an axis of {max(tensor.shape[2:])} is no convolution's window; it may be a stack of matrices"
    return None


def _coded(weights: Weights) -> dict[str, StoredTensor]:
    """Matrices and kernels whose numbers are no floats that are factorised, by their names and by what is around them:
    "a.qweight" by "a" too.
    """
    coded = [tensor for tensor in weights.tensors if tensor.dtype not in _REAL and len(tensor.shape) > 1]
    return {tensor.name.rpartition(".")[0]: tensor for tensor in coded} | {tensor.name: tensor for tensor in coded}


def _scales(tensor: StoredTensor, coded: dict[str, StoredTensor]) -> str | None:
    """Whether a tensor says how the numbers of another one are meant, in words."""
    named = _SCALE.fullmatch(tensor.name)
    other = coded.get(named[1]) if named else None
    if other is None or tensor.elements > other.elements:
        return None
    return f"it says what the numbers of {cut(other.name)} ({other.kind}) stand for"


def _spec(name: str, shape: tuple[int, ...], *, biased: bool) -> LayerSpec:
    """Matrices are (out, in), or tables (rows, columns) by their name; convolutions (out, in, window)."""
    if len(shape) == 2 and not biased and _TABLE.fullmatch(name.rpartition(".")[2]):
        return LayerSpec(shape[0], shape[1], bias=False, table=True)
    ones = (1,) * len(shape[2:])
    return LayerSpec(
        in_channels=shape[1],
        out_channels=shape[0],
        kernel=shape[2:],
        stride=ones,
        padding=(0,) * len(ones),
        dilation=ones,
        bias=biased,
    )


def _side(tensor: StoredTensor) -> int:
    """The shorter one of the tensor as a matrix."""
    return min(tensor.shape[0], prod(tensor.shape[1:]))


def _spectrum(tensor: StoredTensor) -> Tensor:
    side = _side(tensor)
    if worth_moving(side):
        with suppress(torch.cuda.OutOfMemoryError):
            return _summed(DeviceGram(side), tensor)
    return _summed(GramMatrix(side), tensor)


def _summed(gram: GramMatrix | DeviceGram, tensor: StoredTensor) -> Tensor:
    rows, columns = tensor.shape[0], prod(tensor.shape[1:])
    if columns <= rows:
        for part in row_blocks(rows, columns):
            gram.add(tensor.read(part).reshape(-1, columns))
    else:
        whole = tensor.read(slice(0, rows)).reshape(rows, columns)
        for part in row_blocks(columns, rows):
            gram.add(whole[:, part].mT)
        del whole
    return gram.singular_values()


# ---- how long it takes ----------------------------------------------------------------------------------------------

PROBE = 1024


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds per multiplication on this machine: of adding up a Gram matrix, and of finding its eigenvalues."""

    gram: float
    eigenvalues: float

    def seconds(self, layer: Layer) -> float:
        """What the spectrum of a layer will take."""
        shape = layer.spec.weight_shape
        long, short = sorted((shape[0], prod(shape[1:])), reverse=True)
        return self.gram * long * short**2 + self.eigenvalues * _steps(short)

    def preview_seconds(self, layer: Layer) -> float:
        """What its preview will take: float32 is twice as fast as float64, which the Gram matrix is added up in."""
        shape = layer.spec.weight_shape
        rows, columns = shape[0], prod(shape[1:])
        if min(rows, columns) <= WHOLE:
            return self.seconds(layer)
        return self.gram * rows * columns * COLUMNS * (2 * ROUNDS + 2)


def _steps(side: int) -> float:
    """Of finding eigenvalues: the reduction to a band is cubic, and its rotations are quadratic but slow."""
    return float(side**2 * (side + 1800))


def measure_speed(clock: Callable[[], float] = time.perf_counter) -> Estimate:
    """Try it with a random 1024 x 1024 matrix, twice: half a second on an idle core."""
    rows = torch.randn(PROBE, PROBE, generator=torch.Generator().manual_seed(0))

    def once(kind: type[DeviceGram | GramMatrix]) -> Estimate:
        began = clock()
        gram = kind(PROBE)
        gram.add(rows)
        added = clock()
        gram.singular_values()
        return Estimate((added - began) / PROBE**3, (clock() - added) / _steps(PROBE))

    def best(kind: type[DeviceGram | GramMatrix]) -> Estimate:
        return min((once(kind) for _ in range(2)), key=lambda one: one.gram + one.eigenvalues)

    if worth_moving(PROBE):
        with suppress(torch.cuda.OutOfMemoryError):
            return best(DeviceGram)
    return best(GramMatrix)


def remaining(inventory: Inventory, names: list[str], speed: Estimate) -> float:
    """Seconds for the spectra of these layers that are not known yet."""
    layers = {layer.name: layer for layer in inventory.layers}
    return sum(speed.seconds(layers[name]) for name in names if inventory.known(name) is None)
