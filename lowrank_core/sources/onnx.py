"""A network in an `.onnx` file: data, not code. Its data are arrays in a `.npz` of the same name beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_core.errors import InvalidData, InvalidModel, UnknownModel
from lowrank_core.graphs.onnx_network import OnnxGraph, Program, build
from lowrank_core.graphs.operators import Unhandled, dtype_of
from lowrank_core.graphs.reading import read_onnx
from lowrank_core.layers.data import Dataset, Outputs, run, tensors
from lowrank_core.networks.profile import check_finite
from lowrank_core.sources import Source, register
from lowrank_core.sources._contract import ModelContract, open_contract
from lowrank_core.sources._npz_data import NpzData, read_npz
from lowrank_core.sources._opened import COMPARED, Opened

SAMPLES = 256
"""Random inputs where there are no data."""

MOST_NUMBERS = 2**30
"""Numbers in the inputs of an ONNX network, or in twice the batch that its file fixes, at most."""

EXAMPLES = 2
"""Samples in a batch where the file does not say how many."""


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the graph. sizes: None for what may be anything; axes: what the file calls each, "?" for no name."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]
    axes: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = self.axes or ("?",) * len(self.sizes)
        shown = (axis if size is None else str(size) for size, axis in zip(self.sizes, names, strict=True))
        return f"{self.name} ({', '.join(shown)})"


def _open(ref: str) -> Opened:
    path = Path(ref).expanduser()
    if not path.is_file():
        raise UnknownModel(f"there is no file {ref}.")
    path = path.resolve()
    read = read_onnx(path)
    graph = build(read.model)
    inputs = tuple(_input(value, path) for value in read.model.graph.input if value.name in graph.program.inputs)
    changes = read.changes
    del read
    check_finite(graph)
    beside = path.with_suffix(".npz")
    data, notices = (_data(beside, inputs), []) if beside.is_file() else _random(graph, inputs, beside)
    fixed = {value.sizes[0] for value in inputs if value.sizes} - {None}
    if fixed:
        batch = fixed.pop()
        assert batch is not None
        graph = _freed(graph, data.eval, batch, path)
        notices.append(f"The file fixes its batch at {batch}; here it runs with any, and an exported file keeps it.")

    contract = ModelContract(
        name=path.stem,
        build_model=lambda: graph,
        example_inputs=lambda: data.eval.pick(slice(0, EXAMPLES)).inputs,
        eval_data=lambda: data.eval,
        train_data=None if data.train is None else lambda: data.train,
        metric=data.metric,
        outputs=data.outputs,
        description=f"ONNX, opset {graph.program.opset}, {len(graph.program.steps)} steps.",
        ref=str(path),
        path=path,
    )
    opened = open_contract(contract)
    run(graph, data.eval.pick(slice(0, EXAMPLES)))  # shows which operators are slow
    if changes:
        notices.append(f"The file was made readable here by {', '.join(changes)}.")
    if graph.program.slow:
        slow = ", ".join(sorted(graph.program.slow))
        notices.append(f"{slow}: computed by ONNX's own reference, which is right and slow.")
    if graph.program.aside:
        notices.append(f"Weights that are left as they are: {'; '.join(graph.program.aside[:5])}.")
    if data.train is None and beside.is_file():
        notices.append(f"{beside.name} has no train_inputs: calibration uses its inputs, without their targets.")
    return replace(opened, notices=tuple(notices))


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


def _data(path: Path, inputs: tuple[Input, ...]) -> NpzData:
    """What lies beside the model, in the types that the graph declares."""
    npz = read_npz(path, [value.name for value in inputs])

    def fitting(data: Dataset) -> Dataset:
        given = tensors(data.inputs)
        for value, array in zip(inputs, given, strict=True):
            sizes = (None, *value.sizes[1:])
            if array.ndim != len(sizes) or any(n not in (None, m) for n, m in zip(sizes, array.shape, strict=True)):
                raise InvalidData(f"{path}: the network takes {value}, but got {tuple(array.shape)}.")
        cast = tuple(array.to(value.dtype) for value, array in zip(inputs, given, strict=True))
        return replace(data, inputs=cast if len(cast) > 1 else cast[0])

    return NpzData(fitting(npz.eval), None if npz.train is None else fitting(npz.train), npz.metric, npz.outputs)


def _random(graph: OnnxGraph, inputs: tuple[Input, ...], beside: Path) -> tuple[NpzData, list[str]]:
    """Normal numbers, or tokens of the table that an input is looked up in, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for value in inputs:
        if any(n is None for n in value.sizes[1:]) or not value.sizes:
            raise InvalidData(
                f"the input {value} has free sizes besides its batch; save inputs as deployed beside the model: "
                f"numpy.savez({beside.name!r}, {value.name if value.name.isidentifier() else 'inputs'}=array)."
            )
        shape = (SAMPLES, *(n for n in value.sizes[1:] if n is not None))
        if value.dtype.is_floating_point:
            batch.append(torch.randn(shape, generator=generator).to(value.dtype))
        elif value.dtype is torch.bool:
            batch.append(torch.ones(shape, dtype=torch.bool))
        else:
            batch.append(torch.randint(_tokens(graph, value.name), shape, generator=generator).to(value.dtype))
    data = Dataset(tuple(batch) if len(batch) > 1 else batch[0])
    notice = (
        f"There is no {beside.name} beside the file: its inputs are {SAMPLES} random ones, and the score is "
        f"{COMPARED} on them, which says little about real data. "
        f"numpy.savez({beside.name!r}, inputs=..., targets=...) gives it some."
    )
    return NpzData(data), [notice]


def _tokens(graph: OnnxGraph, name: str) -> int:
    """Rows of the smallest table that an input is looked up in, through casts and the like; 2 where there is none."""
    reached, rows = {name}, []
    for step in graph.program.steps:
        if step.site is not None and step.op == "Gather" and step.inputs[0] in reached:
            rows.append(int(step.attributes["rows"]))
        elif (
            step.op in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten") and step.inputs[0] in reached
        ):
            reached.update(step.outputs)
    return min(rows, default=2)


def _freed(graph: OnnxGraph, data: Dataset, batch: int, path: Path) -> OnnxGraph:
    """The network for any batch, where the file fixes one: shapes that begin with it take what comes.

    Proved on twice the batch, which must give what its halves give.
    """
    samples = data.pick(torch.arange(2 * batch) % len(data))
    halves = [run(graph, samples.pick(slice(at, at + batch))) for at in (0, batch)]
    for program in (graph.program, _any_batch(graph.program, batch)):
        graph.program = program
        try:
            both = run(graph, samples)
        except InvalidData:
            continue
        if _is_both(both, *halves):
            return graph
    raise InvalidModel(
        f"{path} is made for a batch of {batch} and gives something else for others; export it with a free batch "
        "(dynamic_shapes of torch.onnx.export)."
    )


def _is_both(both: Outputs, first: Outputs, second: Outputs) -> bool:
    """Whether a batch answers as its halves do, along some axis of every output that is not the same for all."""

    def alike(ours: Tensor, theirs: Tensor) -> bool:
        return ours.shape == theirs.shape and torch.allclose(ours.double(), theirs.double(), 1e-4, 1e-5)

    batched = [name for name, value in both.items() if value.ndim and not alike(value, first[name])]
    return bool(batched) and all(
        any(alike(both[name], torch.cat([first[name], second[name]], axis)) for axis in range(both[name].ndim))
        for name in batched
    )


def _any_batch(program: Program, batch: int) -> Program:
    """Reshapes to a constant shape that begins with the batch keep what comes instead."""
    shapes = {step.inputs[1] for step in program.steps if step.op == "Reshape"}
    others = {n for s in program.steps for i, n in enumerate(s.inputs) if s.op != "Reshape" or i != 1}
    sizes = dict(program.sizes)
    for name in (shapes - others) & sizes.keys():
        shape = sizes[name].tolist()
        if len(shape) > 1 and shape[0] == batch:
            sizes[name] = np.array([0 if -1 in shape else -1, *shape[1:]], dtype=object)
    return replace(program, sizes=sizes)


register(Source("onnx", lambda ref: ref.lower().endswith(".onnx"), _open, "path/to/model.onnx"))
