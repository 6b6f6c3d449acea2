"""A network measured as it is stored: in a number format, or as a file that its runtime runs; int8 is always one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from lowrank_core.compression.precision import DTYPES, Storage, rounded
from lowrank_core.errors import Cancelled, InvalidModel, LowRankError
from lowrank_core.exports import EXPORTS, Compressed, Exported
from lowrank_core.exports._apart import write_anywhere
from lowrank_core.extras import extra
from lowrank_core.figures import count
from lowrank_core.graphs.memory import Memory, Trace, memory_of
from lowrank_core.measure.comparison import Comparison, checkpoint_bytes, compare, traces
from lowrank_core.measure.formats import AS_IT_IS, FORMATS, PLAIN
from lowrank_core.networks.profile import fingerprint
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.store.files import scratch, weights_beside
from lowrank_core.store.lines import append_line, read_lines
from lowrank_core.workspace import Workspace


@dataclass(frozen=True, slots=True)
class AsFile:
    """A file that a network is measured as: written as `export` writes it, and run by its own runtime.

    kind: of `EXPORTS`; label: of the file; package: the runtime, on whose version the answers depend.

    >>> FILES["int8 ONNX without refit"].number, FILES["OpenVINO"].number
    ('int8', 'as it is')
    """

    kind: str
    label: str
    package: str
    storage: Storage = Storage()  # noqa: RUF009 - frozen

    @property
    def number(self) -> str:
        """The number format by which its memory is counted."""
        return "int8" if self.storage.dtype == "int8" else AS_IT_IS

    @property
    def words(self) -> str:
        """With which options it is written, and what runs it; raises MissingExtra."""
        options = f"{self.storage.int8}, {'refitted' if self.storage.refit else 'not refitted'}, "
        with extra(EXTRAS[self.package], self.label):
            return f"{options if self.number == 'int8' else ''}run by {self.package} {version(self.package)}"


EXTRAS = {"onnxruntime": "onnx", "executorch": "edge", "openvino": "edge"}
INT8 = "int8 ONNX"
"""The file that stands for int8 where no other is asked for."""

FILES = {
    INT8: AsFile("onnx", "ONNX", "onnxruntime", Storage("int8")),
    "int8 ONNX without refit": AsFile("onnx", "ONNX", "onnxruntime", Storage("int8", refit=False)),
    "ExecuTorch": AsFile("executorch", "ExecuTorch", "executorch"),
    "ExecuTorch int8": AsFile("executorch", "ExecuTorch", "executorch", Storage("int8")),
    "OpenVINO": AsFile("openvino", "OpenVINO", "openvino"),
}

VERSION = 1
"""Of the way files are measured; what was kept by another version is not used."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a file answered beside the dense network, and how many bytes it takes with those that belong to it."""

    comparison: Comparison
    file_bytes: int


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


def network_in(compressed: Compressed, number: str) -> nn.Module:
    """What a network computes in a number format that PyTorch runs; raises InvalidModel beyond its range."""
    kinds = {"float32": torch.float32, **DTYPES}
    return compressed.model if number == AS_IT_IS else rounded(compressed.model, kinds[number])


def int8_file(workspace: Workspace, compressed: Compressed) -> bytes:
    """The ONNX file of a network in int8; raises InvalidModel where it cannot be one, and what an export raises."""
    with _written(workspace, compressed, FILES[INT8], compared=False) as (path, _):
        return path.read_bytes()


def run_as(workspace: Workspace, compressed: Compressed, asked: AsFile) -> Ran:
    """Write a network as a file in a fresh process and run it there on all evaluation samples, by its own runtime.

    Kept in the workspace's cache under all that it depends on: weights, plan, data, options, versions of runtimes.
    Raises Cancelled, InvalidModel where the file is not what it is called, and what an export raises.
    """
    kept = _kept(workspace, compressed, asked)
    found = None if kept is None else next(iter(read_lines(kept, Ran)), None)
    if found is None:
        with _written(workspace, compressed, asked, compared=True) as (_, written):
            assert written.comparison is not None
            found = Ran(written.comparison, written.bytes)
        if kept is not None:
            append_line(kept, found)
    return found


@contextmanager
def _written(
    workspace: Workspace, compressed: Compressed, asked: AsFile, *, compared: bool
) -> Iterator[tuple[Path, Exported]]:
    export = EXPORTS[asked.kind]
    export.ready(workspace)
    with scratch() as folder:
        path = folder / f"network{export.suffix}"
        network = compressed.stored(workspace, asked.storage)
        try:
            written = write_anywhere(workspace, export, network, path, compared=compared)
        except LowRankError as error:
            if str(path) not in str(error):
                raise
            raise type(error)(str(error).replace(str(path), f"the {asked.label} file")) from error
        if asked.kind == "onnx" and weights_beside(path).exists():
            raise InvalidModel("its ONNX file is larger than 2 GB, which is measured by nothing here.")
        if written.wide:
            raise InvalidModel(f"{written.wide}, in a file of {count(written.bytes, 'B')}.")
        yield path, written


def _kept(workspace: Workspace, compressed: Compressed, asked: AsFile) -> Path | None:
    """Where the answers of a file are kept; nowhere for a network from Python: nothing says how it is judged."""
    if workspace.cache is None or workspace.opened.ref is None:
        return None
    name = workspace.name_for(
        "network run as a file",
        VERSION,
        kind=asked.kind,
        options=asdict(asked.storage),
        plan=[(layer, choice.to_dict()) for layer, choice in compressed.plan.choices],
        weights=fingerprint(compressed.model),
        correction=compressed.correction,
        versions=[torch.__version__, asked.words],
    )
    return workspace.cache.points / f"ran-{name}.jsonl"


def measured(
    workspace: Workspace, compressed: Compressed, number: str, traced: Trace | None = None, file: str = ""
) -> Measured:
    """Measure a network in one number format, all figures of it in that one: answers, file, memory.

    compressed: as it is exported, the dense network with an empty plan. traced: one inference of `plan_in` of its plan,
    traced here where not given. file: one of FILES in that format, whose answers are measured instead of the network's;
    int8 is always a file. A network that cannot be measured is an answer, too. Raises Cancelled.

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
    asked = FILES.get(file or INT8 * (number == "int8"))
    try:
        if asked is not None:
            ran = run_as(workspace, compressed, asked)
            return replace(found, comparison=ran.comparison, kind=asked.label, file_bytes=ran.file_bytes)
        network = network_in(compressed, number)
        comparison = compare(workspace, network)
    except Cancelled:
        raise
    except LowRankError as error:
        return replace(found, refused=str(error))
    size = checkpoint_bytes(network, FORMATS[number])
    return replace(found, comparison=comparison, kind="safetensors", file_bytes=size)
