"""Memory: bytes stored, bytes moved per inference, and the largest set of activations that live at one time.

A tensor lives from the operation that makes it to the last one that reads it; views share their storage, in-place
operations keep it. That is a lower bound of what a runtime needs: it adds scratch space and copies of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from lowrank_core.graphs.exporting import exporters_turn
from lowrank_core.layers.computed import sharing
from lowrank_core.layers.data import Inputs, cloned, evaluating, tensors

EXPORTED = "torch.export"
RAN = "one run"


@dataclass(frozen=True, slots=True)
class Storage:
    """Memory that one tensor and its views share."""

    bytes: int
    itemsize: int
    is_float: bool

    def bytes_as(self, itemsize: float | None) -> int:
        """Its size where floating-point numbers take `itemsize` bytes; None: as they are."""
        return round(self.bytes * itemsize / self.itemsize) if itemsize and self.is_float else self.bytes


@dataclass(frozen=True, slots=True)
class Op:
    """One operation in order of execution; reads and writes are numbers of storages. Views move nothing: no Op."""

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What one inference reads and writes. weights: parameters and buffers; how: EXPORTED or RAN."""

    ops: tuple[Op, ...]
    storages: dict[int, Storage]
    weights: frozenset[int]
    inputs: frozenset[int]
    outputs: frozenset[int]
    how: str


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest number of activation bytes that live at one time, and the operation during which they do."""

    bytes: int
    node: str


@dataclass(frozen=True, slots=True)
class Memory:
    """flash: parameters and buffers, tied ones once; moved: weights read once, activations whenever they are used."""

    flash_bytes: int
    weight_bytes_read: int
    activation_bytes_moved: int
    peak: Peak
    how: str

    @property
    def moved_bytes(self) -> int:
        """Bytes that one inference reads and writes."""
        return self.weight_bytes_read + self.activation_bytes_moved

    def intensity(self, multiplies: int) -> float:
        """Multiplies per byte moved; multiplies are those of the whole batch that was traced."""
        return multiplies / max(1, self.moved_bytes)


def memory(model: nn.Module, inputs: Inputs, *, itemsize: float | None = None) -> Memory:
    """All of it for one inference on `inputs`; itemsize: bytes of a floating-point number, None as they are."""
    return memory_of(trace(model, inputs), model, itemsize=itemsize)


def memory_of(trace: Trace, model: nn.Module, *, itemsize: float | None = None) -> Memory:
    """Flash, peak of activations and traffic of a network, from a trace of it."""
    size = {number: storage.bytes_as(itemsize) for number, storage in trace.storages.items()}
    moved = sum(size[n] for op in trace.ops for n in (*op.reads, *op.writes) if n not in trace.weights)
    read = {n for op in trace.ops for n in op.reads} & trace.weights
    return Memory(
        flash_bytes(model, itemsize=itemsize),
        sum(size[n] for n in read),
        moved,
        peak(trace, itemsize=itemsize),
        trace.how,
    )


def flash_bytes(model: nn.Module, *, itemsize: float | None = None) -> int:
    """Bytes of all parameters and buffers, tied ones once; floating-point numbers at `itemsize` bytes where given.

    >>> flash_bytes(nn.Linear(10, 4)), flash_bytes(nn.Linear(10, 4), itemsize=1)
    (176, 44)
    """
    each = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return sum(round(t.numel() * (itemsize if itemsize and t.is_floating_point() else t.element_size())) for t in each)


def peak(trace: Trace, *, itemsize: float | None = None) -> Peak:
    """The largest sum of live activations over the operations in order; inputs live until they were last read.

    A Tucker-2 chain of a convolution from 64 to 128 channels with stride 2 on 32 x 32 in int8 whose first factor is as
    wide as the input: 131,072 bytes where the layer itself has 98,304.
    """
    last: dict[int, int] = {}
    first: dict[int, int] = dict.fromkeys(trace.inputs, 0)
    for at, op in enumerate(trace.ops):
        for number in (*op.reads, *op.writes):
            if number not in trace.weights:
                first.setdefault(number, at)
                last[number] = at
    last |= dict.fromkeys(trace.outputs & set(last), len(trace.ops) - 1)
    change = [0] * (len(trace.ops) + 1)
    for number, end in last.items():
        size = trace.storages[number].bytes_as(itemsize)
        change[first[number]] += size
        change[end + 1] -= size
    live, most, node = 0, 0, ""
    for op, step in zip(trace.ops, change, strict=False):
        live += step
        if live > most:
            most, node = live, op.name
    return Peak(most, node)


def trace(model: nn.Module, inputs: Inputs) -> Trace:
    """What one inference reads and writes, from the graph of `torch.export`; the network is not changed.

    A network that cannot be exported is run once, and its operations are noted as they are dispatched; then it counts
    what PyTorch does on this machine, temporary results of its composite operations included.
    """
    try:
        return exported_trace(model, inputs)
    except Exception:  # torch.export raises whatever the person's own code makes it raise
        return run_trace(model, inputs)


def exported_trace(model: nn.Module, inputs: Inputs) -> Trace:
    """The trace of an exported graph; raises whatever `torch.export` raises."""
    args, kwargs = _called_with(inputs)
    with exporters_turn, evaluating(sharing(model)) as own:
        program = torch.export.export(own, args, kwargs)
    given = set(program.graph_signature.user_inputs)
    notes = _Notes()
    weights: set[int] = set()
    fed: set[int] = set()
    made: set[int] = set()
    shared: dict[str, Any] = {}  # what a node is where PyTorch hands its argument back
    for node in program.graph.nodes:
        value = shared.setdefault(node.name, node.meta.get("val"))
        if node.op == "placeholder":
            (fed if node.name in given else weights).update(notes.numbers(value))
        elif node.op == "output":
            made.update(notes.numbers([shared.get(n.name) for n in node.all_input_nodes]))
        elif node.op == "call_function" and node.target is not operator.getitem:
            read = [shared.get(n.name) for n in node.all_input_nodes]
            if node.target is torch.ops.aten.dropout.default and not node.args[2]:
                shared[node.name] = read[0]
                continue
            notes.add(_place(node), node.target, _arguments(node, shared), read, value)
    return notes.trace(weights, fed, made, EXPORTED)


def run_trace(model: nn.Module, inputs: Inputs) -> Trace:
    """The trace of one run, whose operations are noted as PyTorch dispatches them."""
    args, kwargs = _called_with(inputs)
    notes = _Notes()
    with evaluating(model), _noting(notes):
        weights = set(notes.numbers([*model.parameters(), *model.buffers()]))
        fed = set(notes.numbers([args, kwargs]))
        output = model(*args, **kwargs)
        made = set(notes.numbers(output))
    return notes.trace(weights, fed, made, RAN)


def _called_with(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as a model takes them: copies, for inputs may be slices of something larger."""
    own = cloned(inputs)
    if isinstance(own, dict):
        return (), own
    return (tuple(own) if isinstance(own, tuple | list) else (own,)), {}


class _Notes:
    """Operations as they come; a storage goes by the order in which it was first seen."""

    def __init__(self) -> None:
        self._number: dict[int, int] = {}
        self._storages: dict[int, Storage] = {}
        self._kept: list[Any] = []  # or an address could come back as another storage
        self._ops: list[Op] = []

    def numbers(self, value: Any) -> list[int]:
        """The storages of all tensors in a nested structure."""
        numbers = []
        for tensor in tensors(value):
            storage = tensor.untyped_storage()
            if storage.nbytes() == 0:
                continue
            key = storage._cdata
            if key not in self._number:
                self._kept.append(storage)
                self._number[key] = len(self._number)
                floating = tensor.is_floating_point()
                self._storages[self._number[key]] = Storage(storage.nbytes(), tensor.element_size(), floating)
            numbers.append(self._number[key])
        return list(dict.fromkeys(numbers))

    def add(self, name: str, target: Any, arguments: Any, read: Any, value: Any) -> None:
        """One operation; a view, which makes nothing and changes nothing, is left out."""
        reads, result = self.numbers(read), self.numbers(value)
        changed = self.numbers(_changed(target, arguments))
        writes = [n for n in result if n not in reads] + [n for n in changed if n in reads]
        if writes:
            self._ops.append(Op(name, tuple(reads), tuple(writes)))

    def trace(self, weights: set[int], fed: set[int], made: set[int], how: str) -> Trace:
        """Reads, writes and storages of all operations that were noted."""
        return Trace(
            tuple(self._ops),
            self._storages,
            frozenset(weights),
            frozenset(fed - weights),
            frozenset(made - weights),
            how,
        )


@contextmanager
def _noting(notes: _Notes) -> Iterator[None]:
    tracker = ModuleTracker()

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            result = func(*args, **kwargs)
            path = max(tracker.parents - {"Global"}, key=len, default="").partition(".")[2]
            notes.add(_named(path, func), func, (args, kwargs), (args, kwargs), result)
            return result

    with tracker, Mode():  # type: ignore[no-untyped-call]
        yield


def _changed(target: Any, arguments: Any) -> list[Any]:
    """The arguments that an operation writes into, by its schema."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return []
    args, kwargs = arguments
    named = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs}
    return [named.get(a.name) for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def _arguments(node: Any, shared: dict[str, Any]) -> Any:
    return map_arg((node.args, node.kwargs), lambda argument: shared.get(argument.name))


def _place(node: Any) -> str:
    stack: Iterable[Any] = (node.meta.get("nn_module_stack") or {}).values()
    *_, (path, _) = [("", None), *stack]
    return _named(str(path), node.target)


def _named(path: str, target: Any) -> str:
    op = getattr(target, "overloadpacket", target)
    word = str(op).rpartition(".")[2].strip("_")
    return f"{path}: {word}" if path else word
