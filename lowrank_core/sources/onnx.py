"""A network in an `.onnx` file: data, not code. Its data are arrays in a `.npz` of the same name beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_core.errors import InvalidData, InvalidModel, UnknownModel, few
from lowrank_core.graphs.alone import Place, Places
from lowrank_core.graphs.onnx_forms import pools_of_zeros
from lowrank_core.graphs.onnx_network import OnnxGraph, Program, build
from lowrank_core.graphs.operators import Unhandled, dtype_of
from lowrank_core.graphs.reading import read_onnx
from lowrank_core.layers.data import BatchAxes, Dataset, Outputs, call, run, tensors
from lowrank_core.networks.batch_axes import batch_axes
from lowrank_core.networks.profile import check_finite
from lowrank_core.readers._npz import Named, read_named
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.samples import Samples, Taken, classes_said
from lowrank_core.sources import Source, register
from lowrank_core.sources._contract import ModelContract, open_contract
from lowrank_core.sources._given import GivenData
from lowrank_core.sources._npz_data import NpzData
from lowrank_core.sources._opened import COMPARED, Opened
from lowrank_core.sources._stored import StoredTensor
from lowrank_core.sources._weights import Weights

SAMPLES, LEAST = 256, 16
"""Random inputs where there are no data, at most and at least."""

AT_ONCE = 2**26
"""Numbers in all random inputs: of large ones there are fewer."""

MOST_NUMBERS = 2**30
"""Numbers in the inputs of an ONNX network, or in twice the batch that its file fixes, at most."""

EXAMPLES = 2
"""Samples in a batch where the file does not say how many."""


BRANCHES = 16
"""Batches that show whether a network in which values decide what is computed gives the same in larger ones."""


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the graph. sizes: None for what may be anything; axes: what the file calls each, "?" for no name.

    axis: where its samples are, None where it has none; state: what the network itself gave before.
    """

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]
    axes: tuple[str, ...] = ()
    axis: int | None = 0
    state: bool = False

    @property
    def shown(self) -> tuple[str, ...]:
        """Its sizes in words."""
        return tuple(axis if size is None else str(size) for size, axis in zip(self.sizes, self.axes, strict=True))

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.shown)})"


def _open(ref: str, given: GivenData | None = None) -> Opened | Weights:
    path = Path(ref).expanduser()
    if not path.is_file():
        raise UnknownModel(f"there is no file {ref}.")
    path = path.resolve()
    read = read_onnx(path)
    inputs, beside = declared(read.model, path), path.with_suffix(".npz")
    if given is None:
        named = read_named(beside, [value.name for value in inputs]) if beside.is_file() else None
        more, classes = False, tuple[str, ...]()
    else:
        beside = given.path
        named, samples = _named(given, inputs)
        more, classes = samples.more, samples.classes
    held, notices = held_values(read.model, inputs, named, beside)
    if held:
        read = read_onnx(path, held)
    graph = build(read.model, read.packed)
    single = not any(output.type.tensor_type.shape.dim for output in read.model.graph.output)
    changes, pools = read.changes, [node.name or node.output[0] for node in pools_of_zeros(read.own or read.model)]
    del read
    check_finite(graph)
    graph.program = replace(graph.program, held=held)
    inputs = tuple(value for value in inputs if value.name not in held)
    if named is None and (wanting := without_sizes(inputs, beside)):
        return _alone(graph, path, wanting)
    data, said = random_data(graph, inputs, beside) if named is None else given_data(graph, inputs, named, beside)
    notices += said
    axes, said = fitted(graph, inputs, data.eval, bool(held) or single, path)
    notices += said
    examples = 1 if graph.program.loops else _examples(inputs)

    def some() -> Dataset:
        return replace(data.eval, axes=axes).pick(slice(0, examples))

    contract = ModelContract(
        name=path.stem,
        build_model=lambda: graph,
        example_inputs=lambda: some().inputs,
        eval_data=lambda: replace(data.eval, more=more),
        train_data=None if data.train is None else lambda: data.train,
        metric=data.metric,
        outputs=data.outputs,
        description=f"ONNX, opset {graph.program.opset}, {len(graph.program.steps)} steps.",
        ref=str(path),
        path=path,
        axes=axes,
        preparation=Preparation(labels=classes),
    )
    opened = open_contract(contract)
    run(graph, some())  # shows which operators are slow
    if changes:
        notices.append(f"The file was made readable here by {', '.join(changes)}.")
    if pools:
        notices.append(
            f"onnxruntime answers otherwise than this file says: of {few(pools, repr)} it leaves the zeros put around "
            "out of the maximum. Figures are of the network as the file says it; what is exported answers so in "
            "onnxruntime too."
        )
    if graph.program.slow:
        slow = ", ".join(sorted(graph.program.slow))
        notices.append(f"{slow}: computed by ONNX's own reference, which is right and slow.")
    if graph.program.aside:
        notices.append(f"Weights that are left as they are: {'; '.join(graph.program.aside[:5])}.")
    if data.train is None and named is not None:
        lacks = "has no train_inputs" if given is None else "holds no samples for training"
        notices.append(f"{beside.name} {lacks}: calibration uses its inputs, without their targets.")
    return replace(opened, notices=(*notices, *classes_said(classes, beside.name)))


def _named(given: GivenData, inputs: tuple[Input, ...]) -> tuple[Named, Samples]:
    """(data that a person names, as arrays for these inputs, the samples as they were read)."""
    takes = []
    for value in inputs:
        sizes = tuple(size for axis, size in enumerate(value.sizes) if axis != value.axis)
        takes.append(Taken(value.name, sizes, value.dtype, exact=True))
    sampled = [taken for taken, value in zip(takes, inputs, strict=True) if value.axis is not None and not value.state]
    samples = given.read(takes, sampled, Preparation())

    def placed(part: Samples | None) -> dict[str, Tensor]:
        if part is None or part.as_taken:
            return {} if part is None else dict(part.inputs)
        axes = {value.name: value.axis or 0 for value in inputs}
        return {name: array.movedim(0, axes.get(name, 0)) for name, array in part.inputs.items()}

    train = samples.train
    labels = (None, None) if train is None else (train.targets, train.weights)
    named = Named(
        placed(samples),
        placed(train),
        (samples.targets, samples.weights),
        labels,
        samples.held,
        samples.metric,
        samples.outputs,
    )
    return named, samples


def _rows(value: Tensor, rows: slice) -> Tensor:
    return value[rows] if value.ndim else value


def _alone(graph: OnnxGraph, path: Path, wanting: str) -> Weights:
    """The weights of a graph that cannot be run, because nobody has said how large its inputs are."""
    named = graph.named_parameters(remove_duplicate=False)
    names: dict[Tensor, str] = {}
    for name, value in sorted(named, key=lambda each: each[0].startswith("constants.")):
        names.setdefault(value, name)  # one that goes by several names is stored once
    stored = tuple(
        StoredTensor(name, tuple(value.shape), value.dtype, str(value.dtype), value.nbytes, partial(_rows, value.data))
        for value, name in names.items()
    )
    return Weights(str(path), path.stem, f"ONNX, opset {graph.program.opset}.", stored, (wanting,), wanting=wanting)


def _input(value: Any, path: Path) -> Input:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise InvalidModel(f"{path}: the input {value.name!r} must be a tensor with a shape; export it with one.")
    sizes = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)
    fixed = (max(SAMPLES, 2 * (sizes[0] or 1)), *(n or 1 for n in sizes[1:])) if sizes else ()
    if prod(fixed) > MOST_NUMBERS:
        shown = "x".join(str(n or "?") for n in sizes)
        raise InvalidModel(f"{path}: the input {value.name!r} is {shown[:100]}, too large to try; correct its shape.")
    try:
        axes = tuple(d.dim_param[:40] or "?" for d in kind.shape.dim)
        return Input(value.name, dtype_of(kind.elem_type), sizes, axes)
    except Unhandled as error:
        raise InvalidModel(f"{path}: the input {value.name!r} has {error}, which PyTorch has no tensors of.") from error


def declared(model: Any, path: Path) -> tuple[Input, ...]:
    """The inputs that a runtime must be given, each with the axis that its samples lie along."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [_input(value, path) for value in model.graph.input if value.name not in stored]
    if not any(value.sizes for value in inputs):
        raise InvalidModel(f"{path} takes no tensor with an axis for samples; give the network as a Python file.")
    first = next((v for v in inputs if v.sizes and v.sizes[0] is None), next(v for v in inputs if v.sizes))
    return tuple(replace(value, axis=_axis(value, first), state=_is_state(value, first, model)) for value in inputs)


def _axis(value: Input, first: Input) -> int | None:
    """Where the samples of an input lie: on the axis of the same name, or free, or as long as those of the first."""
    if value is first:
        return 0
    batch, name = first.sizes[0], first.axes[0]
    if name != "?" and name in value.axes:
        return value.axes.index(name)
    if batch is None and None in value.sizes:
        return value.sizes.index(None)
    fitting = [axis for axis, size in enumerate(value.sizes) if batch is not None and size == batch]
    if len(value.sizes) == 3 and 1 in fitting and _STATE.search(value.name):
        return 1  # layers, samples, width: as recurrent layers have it
    return fitting[0] if fitting else None


_STATE = re.compile(r"(^|[_.\W])(h|c|hn|cn|hx|cx|h0|c0|h_?in|c_?in)$|state|hidden|cell|cache|past", re.IGNORECASE)


def _is_state(value: Input, first: Input, model: Any) -> bool:
    """Whether an input is what the network gave before: it is called so, or an output has its shape and its name."""
    if value is first or not value.dtype.is_floating_point or not value.sizes:
        return False
    if _STATE.search(value.name):
        return True
    for output in model.graph.output:
        sizes = [d.dim_value or None for d in output.type.tensor_type.shape.dim]
        alike = len(sizes) == len(value.sizes) and all(
            n is None or m is None or n == m for n, m in zip(sizes, value.sizes, strict=True)
        )
        if alike and output.name.lower().startswith(value.name.lower()):
            return True
    return False


def held_values(
    model: Any, inputs: tuple[Input, ...], named: Named | None, beside: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Inputs that are the same for all samples, and what is said of those that nobody has given.

    They are single numbers, or have no axis for samples, or an array `held` beside the model names them.
    """
    held, said = {}, []
    for value in inputs:
        given = None if named is None else named.held.get(value.name)
        if value.axis is None and given is None and named is not None:
            given = named.inputs.pop(value.name, None)
        if given is None and value.axis is not None:
            continue
        if given is not None:
            sizes = value.sizes
            if len(sizes) != given.ndim or any(n not in (None, m) for n, m in zip(sizes, given.shape, strict=True)):
                raise InvalidData(f"{beside}: the network takes {value}, but got {tuple(given.shape)}.")
            held[value.name] = _numpy(value, given)
            continue
        fixed = [n for n in value.sizes if n is not None]
        if len(fixed) < len(value.sizes):
            raise InvalidData(_remedy(value, beside))
        number: float = 0 if value.state else _compared(model, value.name)
        held[value.name] = _numpy(value, torch.full(fixed, number))
        said.append(f"{value.name} at {number:g}")
    if not said:
        return held, []
    return held, [
        f"Inputs that are no samples are the same for all: {', '.join(said)}; "
        f"numpy.savez({beside.name!r}, ..., {said[0].split(' at ')[0]}=...) holds another value."
    ]


_AS_IT_IS = {"Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Gather", "Slice"}
"""Operators that leave a single number what it is."""


def _numpy(value: Input, given: Tensor) -> np.ndarray:
    if value.dtype is torch.bfloat16:
        raise InvalidModel(f"the input {value} is the same for all samples, and bfloat16, which NumPy has none of.")
    return np.asarray(given.to(value.dtype).numpy())


def _compared(model: Any, name: str) -> float:
    """The number that a graph compares an input with, in whatever graph inside it; 1 where it compares it with none."""
    from onnx import numpy_helper

    aliases, numbers, found = {name}, {}, []
    pending = [model.graph]
    while pending:
        graph = pending.pop(0)
        numbers.update({i.name: i for i in graph.initializer})
        for node in graph.node:
            pending += [a.g for a in node.attribute if a.HasField("g")]
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                numbers[node.output[0]] = node.attribute[0].t
            if node.op_type in _AS_IT_IS and node.input[0] in aliases:
                aliases.update(node.output)
            if node.op_type == "Equal":
                found += [name for name in node.input if aliases & set(node.input) and name not in aliases]
    for other in found:
        with suppress(Exception):  # whatever a damaged tensor makes NumPy raise; building the network says which
            return float(numpy_helper.to_array(numbers[other]).reshape(()))
    return 1.0


def without_sizes(inputs: tuple[Input, ...], beside: Path) -> str:
    """What is missing to run the network where nobody has given it anything; "" where nothing is."""
    for value in inputs:
        if any(n is None for axis, n in enumerate(value.sizes) if axis != value.axis):
            return _remedy(value, beside)
    return ""


def _remedy(value: Input, beside: Path) -> str:
    shape = ", ".join("N" if axis == value.axis else name for axis, name in enumerate(value.shown))
    name = value.name if value.name.isidentifier() else "inputs"
    return (
        f"the input {value} has free sizes besides its batch; save inputs as deployed beside the model: "
        f"numpy.savez({beside.name!r}, {name}=array), an array of shape ({shape})."
    )


def _filled(graph: OnnxGraph, value: Input, shape: tuple[int, ...], length: int, generator: torch.Generator) -> Tensor:
    """What an input is given that nobody gave: zeros for a state, ones for a mask, whole lengths, else random."""
    if value.state:
        return torch.zeros(shape, dtype=value.dtype)
    if "mask" in value.name.lower() or value.dtype is torch.bool:
        return torch.ones(shape, dtype=value.dtype)
    if value.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(value.dtype)
    if "len" in value.name.lower() and len(shape) == 1:
        return torch.full(shape, length, dtype=value.dtype)
    return torch.randint(_tokens(graph, value.name), shape, generator=generator).to(value.dtype)


def random_data(graph: OnnxGraph, inputs: tuple[Input, ...], beside: Path) -> tuple[NpzData, list[str]]:
    """Normal numbers, or tokens of the table that an input is looked up in, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    largest = max(prod(n or 1 for n in value.sizes) for value in inputs)
    samples = max(LEAST, min(SAMPLES, AT_ONCE // largest))
    length = max((value.sizes[-1] or 1 for value in inputs if len(value.sizes) > 1), default=1)
    batch = []
    for value in inputs:
        shape = tuple(samples if axis == value.axis else n or 1 for axis, n in enumerate(value.sizes))
        batch.append(_filled(graph, value, shape, length, generator))
    data = Dataset(tuple(batch) if len(batch) > 1 else batch[0])
    notice = (
        f"There is no {beside.name} beside the file: its inputs are {samples} random ones, and the score is "
        f"{COMPARED} on them, which says little about real data. "
        f"numpy.savez({beside.name!r}, inputs=..., targets=...) gives it some."
    )
    return NpzData(data), [notice]


def given_data(graph: OnnxGraph, inputs: tuple[Input, ...], named: Named, beside: Path) -> tuple[NpzData, list[str]]:
    """What lies beside the model, in the types that the graph declares, and a state or a mask that does not."""
    added: set[str] = set()

    def whole(arrays: dict[str, Tensor], labels: tuple[Tensor | None, Tensor | None], prefix: str) -> Dataset:
        first = next(value for value in inputs if value.name in arrays)
        apart = arrays[first.name].ndim == len(first.sizes) + 1  # samples have an axis of their own
        samples = arrays[first.name].shape[0 if apart else first.axis or 0]
        length = arrays[first.name].shape[-1]
        if not samples:
            shape = tuple(arrays[first.name].shape)
            raise InvalidData(f"{beside}: {prefix}{first.name} must hold a sample at least, but got {shape}.")
        batch = []
        for value in inputs:
            if value.name in arrays:
                array = _fitting(value, arrays[value.name], samples, apart, beside)
                _check_tokens(array, _rows_of_table(graph, value.name), f"{beside}: {prefix}{value.name}")
                batch.append(array)
                continue
            sizes = [None if axis == value.axis else n for axis, n in enumerate(value.sizes)]
            usual = value.state or "mask" in value.name.lower() or "len" in value.name.lower()
            if not usual or sizes.count(None) > 1:
                names = ", ".join(each.name for each in inputs)
                raise InvalidData(f"{beside} lacks {prefix}{value.name}; the network takes {names}.")
            added.add(value.name)
            one = tuple(
                (1 if apart else samples) if axis == value.axis else n or 1 for axis, n in enumerate(value.sizes)
            )
            shape = (samples, *one) if apart else one
            batch.append(_filled(graph, value, shape, length, torch.Generator()))
        targets, weights = labels
        return Dataset(tuple(batch) if len(batch) > 1 else batch[0], targets, weights)

    evaluated = whole(named.inputs, named.labels, "")
    trained = whole(named.train_inputs, named.train_labels, "train_") if named.train_inputs else None
    notices = [f"{beside.name} lacks {', '.join(sorted(added))}: zeros for a state, ones for a mask, whole lengths."]
    return NpzData(evaluated, trained, named.metric, named.outputs), notices if added else []


def _fitting(value: Input, array: Tensor, samples: int, apart: bool, beside: Path) -> Tensor:
    """An array as the network takes it, the same for all samples where it is one; raises InvalidData for another."""
    sizes = [None if axis == value.axis else n for axis, n in enumerate(value.sizes)]
    if apart:
        sizes = [None, *value.sizes]
        array = array.unsqueeze(0).expand(samples, *array.shape) if array.ndim == len(value.sizes) else array
    if array.ndim != len(sizes) or any(n not in (None, m) for n, m in zip(sizes, array.shape, strict=True)):
        raise InvalidData(f"{beside}: the network takes {value}, but got {tuple(array.shape)}.")
    if not apart and value.axis and array.shape[value.axis] == 1 < samples:
        array = array.repeat_interleave(samples, value.axis)
    return array.to(value.dtype)


def _check_tokens(array: Tensor, rows: int | None, where: str) -> None:
    """Numbers that are looked up must be those of rows, from the end where they are below 0, as ONNX counts them."""
    if rows is None or not array.numel():
        return
    low, high = array.min().item(), array.max().item()
    if low < -rows or high >= rows:
        raise InvalidData(
            f"{where} must be numbers from 0 to {rows - 1:,}, the rows of its table, but goes from {low:,} to {high:,}."
        )


def _tokens(graph: OnnxGraph, name: str) -> int:
    """What random tokens for an input are below: the rows of its table; 2 where there is none."""
    return _rows_of_table(graph, name) or 2


def _rows_of_table(graph: OnnxGraph, name: str) -> int | None:
    """Rows of the smallest table that an input is looked up in, through casts and the like; None without one."""
    reached, rows = {name}, []
    for step in graph.program.steps:
        if step.site is not None and step.op == "Gather" and step.inputs[0] in reached:
            rows.append(int(step.attributes["rows"]))
        elif (
            step.op in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten") and step.inputs[0] in reached
        ):
            reached.update(step.outputs)
    return min(rows, default=None)


def _examples(inputs: tuple[Input, ...]) -> int:
    """Samples in a batch where the file does not say how many: a number that no other axis has."""
    if all(value.axis == 0 for value in inputs):
        return EXAMPLES
    return next(n for n in (2, 3, 5, 7, 11, 13) if all(n not in value.sizes for value in inputs) or n == 13)


def fitted(
    graph: OnnxGraph, inputs: tuple[Input, ...], data: Dataset, held: bool, path: Path
) -> tuple[BatchAxes | None, list[str]]:
    """Make the network take any batch, and say where the samples are in what it takes and gives, if not first in all.

    A batch that the file fixes is freed where twice of it gives what its halves give, else so many samples are run at a
    time; and one where an output has several rows for each sample. held: whether there are inputs without samples,
    which samples may act on one another by.
    """
    given = tensors(data.inputs)
    axes = tuple(value.axis for value in inputs)
    if given[0].ndim > len(inputs[0].sizes):
        return _one_by_one(graph, tuple(Place(None) for _ in inputs), data, axes), [
            "Samples have an axis of their own in the data: each is run alone, as the file takes it."
        ]
    fixed = {value.sizes[axis] for value, axis in zip(inputs, axes, strict=True) if axis is not None} - {None}
    if len(fixed) > 1:
        raise InvalidModel(
            f"{path} fixes its batch at {' and '.join(map(str, sorted(fixed, key=str)))}; export it again."
        )
    batch = next(iter(fixed), None)
    size, as_given = batch or 1, graph.program
    places = tuple(Place(axis or 0, size) for axis in axes)
    free = batch is None and not held
    found = None if free else _freed(graph, replace(data, axes=BatchAxes(axes, ())), size)
    why = "Several samples would act on one another" if batch is None else "The file fixes its batch at 1"
    if free or found is not None:
        read = _axes_of(graph, data, axes)
        if batch is None and not _in_rows(read):
            return read, []
        if found is not None and (size > 1 or not _in_rows(read)):
            graph.program = replace(graph.program, places=Places(places, found))
            return read, [f"The file fixes its batch at {batch}; here it runs with any, and an exported file keeps it."]
        graph.program, why = as_given, "Several samples would be answered in one row"
    if size > 1:
        raise InvalidModel(
            f"{path} is made for a batch of {batch} and gives something else for others; export it with a free batch "
            "(dynamic_shapes of torch.onnx.export)."
        )
    notice = f"{why}: here each sample is run alone, one after the other, which is slow."
    return _one_by_one(graph, places, data, axes), [notice]


def _in_rows(axes: BatchAxes | None) -> bool:
    """Whether an output has several rows for each sample on the axis of its samples."""
    return axes is not None and any(rows > 1 for rows in axes.rows)


def _one_by_one(graph: OnnxGraph, places: tuple[Place, ...], data: Dataset, axes: tuple[int | None, ...]) -> BatchAxes:
    """Run so many samples at a time, from now on; those of an output are on its first axis of that extent."""
    apart = places[0].axis is None
    first = [place.taken(value, 0) for place, value in zip(places, tensors(data.inputs), strict=True)]
    with torch.no_grad():
        answers = call(graph, tuple(first)).values()
    size = places[0].size
    outputs = tuple(next((i for i, n in enumerate(a.shape) if n == size and not apart), None) for a in answers)
    graph.program = replace(graph.program, places=Places(places, outputs), loops=True)
    given = tuple(0 if apart else axis for axis in axes)
    return BatchAxes(given, tuple(axis or 0 for axis in outputs), rows=(1,) * len(outputs))


def _axes_of(graph: OnnxGraph, data: Dataset, axes: tuple[int | None, ...]) -> BatchAxes | None:
    """Where the samples are in what the network gives; None where it cannot be run so."""
    if all(axis == 0 for axis in axes):
        return batch_axes(graph, data.pick(torch.arange(EXAMPLES) % len(data)).inputs)
    placed = replace(data, axes=BatchAxes(axes, ()))
    few, many = (run(graph, placed.pick(torch.arange(n) % len(placed))) for n in (2, 3))
    outputs, rows = [], []
    for a, b in zip(few.values(), many.values(), strict=True):
        grown = [axis for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m * 3 == n * 2 and m]
        outputs.append(grown[0] if len(grown) == 1 else None)
        rows.append(a.shape[grown[0]] // 2 if len(grown) == 1 else 1)
    return BatchAxes(axes, tuple(outputs), rows=tuple(rows))


def _freed(graph: OnnxGraph, data: Dataset, batch: int) -> tuple[int | None, ...] | None:
    """The axis of each output that the samples are along, if the network runs with any batch, or one does whose shapes
    take what comes where they have the batch; else None.

    Proved on twice the batch, which must give what its halves give; where values decide what is computed, on many.
    """
    proofs = BRANCHES if graph.branches else 1
    twice = [data.pick(torch.arange(at, at + 2 * batch) % len(data)) for at in range(0, 2 * batch * proofs, 2 * batch)]
    halves = [[run(graph, samples.pick(slice(at, at + batch))) for at in (0, batch)] for samples in twice]
    given = graph.program
    for places in ((), (0,), (1,), (0, 1)):
        graph.program = _any_batch(given, batch, places)
        try:
            found = [_joined_along(run(graph, both), *each) for both, each in zip(twice, halves, strict=True)]
        except InvalidData:
            continue
        if None not in found:
            return found[0]
    graph.program = given
    return None


def _joined_along(both: Outputs, first: Outputs, second: Outputs) -> tuple[int | None, ...] | None:
    """The axis along which each output of a batch is what its halves give, None for one that is the same for all; None
    where an output is neither, or all are the same.
    """

    def alike(ours: Tensor, theirs: Tensor) -> bool:
        return ours.shape == theirs.shape and torch.allclose(ours.double(), theirs.double(), 1e-4, 1e-5)

    found: list[int | None] = []
    for name, value in both.items():
        if not value.ndim or alike(value, first[name]):
            found.append(None)
            continue
        halves = first[name], second[name]
        places = (a for a in _axes_to_join(*halves) if alike(value, torch.cat(halves, a)))
        axis = next(places, None)
        if axis is None:
            return None
        found.append(axis)
    return tuple(found) if any(axis is not None for axis in found) else None


def _axes_to_join(one: Tensor, other: Tensor) -> Iterator[int]:
    """The axes along which two tensors can be put one behind the other."""
    if one.ndim == other.ndim:
        apart = [axis for axis, sizes in enumerate(zip(one.shape, other.shape, strict=True)) if len({*sizes}) > 1]
        yield from range(one.ndim) if not apart else apart if len(apart) == 1 else ()


def _any_batch(program: Program, batch: int, places: tuple[int, ...]) -> Program:
    """Reshapes to a constant shape that has the batch at one of these places keep what comes there instead."""
    shapes = {step.inputs[1] for step in program.steps if step.op == "Reshape"}
    others = {n for s in program.steps for i, n in enumerate(s.inputs) if s.op != "Reshape" or i != 1}
    sizes = dict(program.sizes)
    for name in (shapes - others) & sizes.keys():
        shape = sizes[name].tolist()
        place = next((at for at in places if at < len(shape) and shape[at] == batch), None)
        if len(shape) > 1 and place is not None:
            shape[place] = 0 if -1 in shape else -1
            sizes[name] = np.array(shape, dtype=object)
    return replace(program, sizes=sizes)


register(Source("onnx", lambda ref: ref.lower().endswith(".onnx"), _open, "path/to/model.onnx", open_on=_open))
