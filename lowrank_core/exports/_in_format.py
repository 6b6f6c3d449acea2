"""A network measured as it is stored in a number format: int8 as the ONNX file that is written, run by onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import nn

from lowrank_core.compression.precision import DTYPES, Storage, rounded
from lowrank_core.errors import Cancelled, InvalidModel, LowRankError
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.exports._apart import write_anywhere
from lowrank_core.figures import count
from lowrank_core.graphs.exporting import OnnxNetwork
from lowrank_core.graphs.memory import Memory, Trace, memory_of
from lowrank_core.layers.data import Dataset, run
from lowrank_core.measure.comparison import Comparison, checkpoint_bytes, compare, traces
from lowrank_core.measure.formats import AS_IT_IS, FORMATS, PLAIN
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.store.files import scratch, weights_beside
from lowrank_core.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What a network computes once it is stored in a number format. onnx: the file itself, of int8 alone.

    kind: of the file, which takes so many bytes; a checkpoint is counted with its numbers and their names.
    """

    network: nn.Module
    kind: str
    file_bytes: int
    onnx: bytes = b""


@dataclass(frozen=True, slots=True)
class Measured:
    """A network in one number format: its answers beside the dense network's, its file, and memory by format.

    comparison: None where it cannot be measured in that format; `refused` then says why. kind: of the file.
    """

    number: str
    comparison: Comparison | None
    memory: dict[str, Memory]
    kind: str = ""
    file_bytes: int | None = None
    refused: str = ""


def plan_in(plan: RankPlan, number: str) -> RankPlan:
    """The plan as it is stored in a number format: int8 has no free ranks."""
    return plan.plain if number in PLAIN else plan


def stored_in(workspace: Workspace, compressed: Compressed, number: str) -> Stored:
    """What a network computes in a number format of `FORMATS`; int8 is written and tried as Export does.

    Raises InvalidModel where it cannot be stored so, and what `write_anywhere` raises.
    """
    if number == "int8":
        return _quantised(workspace, compressed)
    network, kinds = compressed.model, {"float32": torch.float32, **DTYPES}
    if number != AS_IT_IS:
        network = rounded(network, kinds[number])
    return Stored(network, "safetensors", checkpoint_bytes(network, FORMATS[number]))


def _quantised(workspace: Workspace, compressed: Compressed) -> Stored:
    names = tuple(run(compressed.model, Dataset(workspace.opened.example_inputs)))
    with scratch() as folder:
        path = folder / "network.onnx"
        network = compressed.stored(workspace, Storage("int8"))
        try:
            written = write_anywhere(workspace, EXPORTS["onnx"], network, path)
        except LowRankError as error:
            if str(path) not in str(error):
                raise
            raise type(error)(str(error).replace(str(path), "the ONNX file")) from error
        if weights_beside(path).exists():
            raise InvalidModel("its ONNX file is larger than 2 GB, which is measured by nothing here.")
        content = path.read_bytes()
    _refuse_where_wide(content)
    return Stored(OnnxNetwork(content, names), "ONNX", written.bytes, content)


MOST_WIDE = 0.1
"""Share of the weights that may stay in float32 in a file that is called int8: tables and odd layers, not the bulk."""


def _refuse_where_wide(content: bytes) -> None:
    """Raise InvalidModel where a quantised file holds most of its weights in float32 all the same."""
    import onnx

    wide, users, sizes = set[str](), set[str](), dict[str, int]()
    graphs = [onnx.load_from_string(content).graph]
    for graph in graphs:  # grows by what is inside of its nodes
        for weight in graph.initializer:
            if len(weight.dims) > 1:
                sizes[weight.name] = prod(weight.dims)
                is_wide = weight.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
                wide |= {weight.name} if is_wide else set()
        for node in graph.node:
            users |= {node.op_type} if wide & set(node.input) else set()
            graphs += [part.g for part in node.attribute if part.HasField("g")]
    narrow = sum(size for name, size in sizes.items() if name not in wide)
    left = sum(sizes[name] for name in wide)
    if left > MOST_WIDE * (left + narrow):
        raise InvalidModel(
            f"onnxruntime quantises no {', no '.join(sorted(users))} here: {100 * left / (left + narrow):.0f} % of the "
            f"weights stay in float32, in a file of {count(len(content), 'B')}."
        )


def measured(workspace: Workspace, compressed: Compressed, number: str, traced: Trace | None = None) -> Measured:
    """Measure a network in one number format, all figures of it in that one: answers, file, memory.

    compressed: as it is exported, the dense network with an empty plan. traced: one inference of `plan_in` of its plan,
    traced here where not given. A network that cannot be measured in the format is an answer, too. Raises Cancelled.

    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> dense = Compressed(workspace.model, RankPlan(workspace.profile.fingerprint))
    >>> half = measured(workspace, dense, "float16")
    >>> half.comparison.score.samples, half.kind, half.file_bytes < measured(workspace, dense, "float32").file_bytes
    (74, 'safetensors', True)
    """
    if traced is None:
        (traced,) = traces(workspace, [Candidate(plan_in(compressed.plan, number))])
    plain = compressed.stored(workspace, Storage("int8", refit=False)) if number in PLAIN else compressed
    memory = {name: memory_of(traced, plain.model, itemsize=size) for name, size in FORMATS.items()}
    found = Measured(number, None, memory)
    try:
        stored = stored_in(workspace, compressed, number)
        comparison = compare(workspace, stored.network)
    except Cancelled:
        raise
    except LowRankError as error:
        return replace(found, refused=str(error))
    return replace(found, comparison=comparison, kind=stored.kind, file_bytes=stored.file_bytes)
