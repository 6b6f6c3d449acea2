"""Fuzzing of what reads files: coverage-guided inputs, none of which may end in anything but one of our own errors.

    pip install atheris
    python benchmarks/fuzz.py plan checkpoint --seconds 600
    python benchmarks/fuzz.py weights torch onnx npz pt2 index table --seconds 180

Half of the inputs are bytes as atheris makes them. The other half are changed where they stay well-formed, so that
they come further than the first check: a value or key of the JSON (also of JSON in a text of JSON), a field of the
protobuf, a member of the archive, with lengths and checksums that fit. Prints how many inputs were tried by which
reader. An input that fails in a way that none did before is kept in the folder it names.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.page import benchmark_parser, run_benchmark  # noqa: E402

Flip = Callable[[bytes], bytes]
"""Changes bytes without knowing what they are."""

Change = Callable[[bytes, Random, Flip], bytes]
"""Changes a file in one place, so that it stays well-formed where it was."""

STRANGE: tuple[Any, ...] = (None, True, -1, 0, 1, 2, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"))
STRANGE += ("", "\0", "a.b", "é" * 40, "Linear", [], {}, [[]], [0] * 70, {"": {}})
"""What may stand in the place of any value."""


@dataclass(frozen=True)
class Reader:
    """What reads a file's bytes, files to begin with, and how one is changed."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    change: Change


# ---- changes --------------------------------------------------------------------------------------------------------


def flipped(data: bytes, random: Random) -> bytes:
    """One byte set, taken out or put in, a stretch repeated, or the end cut off: a `Flip` that needs no atheris."""
    at, kind = random.randrange(len(data) + 1), random.randrange(5)
    if kind == 0:
        return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[at + random.randint(1, 8) :]
    if kind == 2:
        return data[:at] + random.randbytes(random.randint(1, 8)) + data[at:]
    if kind == 3:
        return data[:at] + data[random.randrange(len(data) + 1) :][: random.randint(1, 64)] + data[at:]
    return data[:at]


def unformed(data: bytes, random: Random, flip: Flip) -> bytes:
    """Bytes or text of no form that is known here."""
    return flip(data)


def changed_json(data: bytes, random: Random, flip: Flip) -> bytes:
    """One value or key of a JSON document, or of a document in one of its texts."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return flip(data)
    places = list(_places(document))
    if not places:
        return flip(data)
    holder, key = random.choice(places)
    value, kind = holder[key], random.randrange(8)
    if isinstance(value, str) and value[:1] in ("{", "[") and random.random() < 0.9:
        holder[key] = changed_json(value.encode(errors="surrogatepass"), random, flip).decode(errors="replace")
    elif kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(value))
    elif kind == 1:
        holder[f"{key}{random.choice(('', '.0', 'x'))}"] = copy.deepcopy(value)
    elif kind == 2 and isinstance(value, str):
        holder[key] = flip(value.encode(errors="surrogatepass")).decode(errors="replace")
    elif kind == 3 and isinstance(value, int):
        holder[key] = value + random.choice((-1, 1, value, -2 * value))
    elif kind in (4, 5):
        other, at = random.choice(places)
        holder[key] = copy.deepcopy(other[at]) if at in (other if isinstance(other, dict) else range(len(other))) else 0
    else:
        holder[key] = copy.deepcopy(random.choice(STRANGE))
    return json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass")


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (list or dict, index or key) in it."""
    pending = [document]
    while pending:
        holder = pending.pop()
        if isinstance(holder, list | dict):
            for key in range(len(holder)) if isinstance(holder, list) else list(holder):
                yield holder, key
                pending.append(holder[key])


def changed_safetensors(data: bytes, random: Random, flip: Flip) -> bytes:
    """The header, with its length, or what follows it."""
    length = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or length > len(data) - 8:
        return changed_zip(data, random, flip)
    header, rest = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.1:
        return data[: 8 + length] + flip(rest)
    header = changed_json(header, random, flip)
    return len(header).to_bytes(8, "little") + header + rest


def changed_zip(data: bytes, random: Random, flip: Flip) -> bytes:
    """A member of an archive, with its checksum: its content, its name, once more, or none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    except Exception:  # whatever zipfile says of damaged bytes
        return flip(data)
    if not members:
        return flip(data)
    # a pickle or a text says more than numbers do
    weights = [8 if name.endswith((".pkl", ".json", ".pt")) else 1 for name, _ in members]
    at = random.choices(range(len(members)), weights)[0]
    name, content = members[at]
    kind = random.randrange(12)
    if kind == 0:
        del members[at]
    elif kind == 1:
        members.append(members[at])
    elif kind == 2:
        members[at] = random.choice(members)[0], content
    elif name.endswith(".json"):
        members[at] = name, changed_json(content, random, flip)
    elif content[:2] == b"PK":
        members[at] = name, changed_zip(content, random, flip)
    else:
        members[at] = name, flip(content)
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        warnings.simplefilter("ignore")  # names that occur twice
        for name, content in members:
            archive.writestr(name, content)
    return target.getvalue()


def changed_onnx(data: bytes, random: Random, flip: Flip) -> bytes:
    """A field anywhere in a model."""
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # whatever protobuf says of damaged bytes
        return flip(data)
    places = list(_fields(model))
    if not places:
        return flip(data)
    message, field, value = random.choice(places)
    with contextlib.suppress(Exception):  # a value of a kind that the field does not take
        if random.random() < 0.15:
            message.ClearField(field.name)
        elif not isinstance(value, str | bytes | int | float | bool) and hasattr(value, "__len__"):
            _change_list(value, random, flip)
        elif hasattr(value, "DESCRIPTOR"):
            _, _, other = random.choice(places)
            value.CopyFrom(type(other).FromString(other.SerializeToString()))  # which may lie inside itself
        else:
            setattr(message, field.name, _other(value, places, random, flip))
    return model.SerializeToString()


def _fields(message: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(message, field, value) of every field that is set."""
    pending = [message]
    while pending:
        one = pending.pop()
        for field, value in one.ListFields():
            yield one, field, value
            if field.message_type is not None:
                pending += [value] if hasattr(value, "DESCRIPTOR") else list(value)


def _change_list(values: Any, random: Random, flip: Flip) -> None:
    at, kind = random.randrange(len(values)), random.randrange(4)
    if kind == 0:
        del values[at]
    elif hasattr(values[at], "DESCRIPTOR"):
        values.add().CopyFrom(values[at])
    elif kind == 1:
        values.append(values[at])
    else:
        values[at] = _other(values[at], [], random, flip)


def _other(value: Any, places: list[tuple[Any, Any, Any]], random: Random, flip: Flip) -> Any:
    """Another value of the same kind."""
    alike = [other for _, _, other in places if type(other) is type(value)]
    if alike and random.random() < 0.6:
        return random.choice(alike)
    if isinstance(value, str):
        return flip(value.encode()).decode(errors="replace")
    if isinstance(value, bytes):
        return flip(value)
    return random.choice((-1, 0, 1, 2, 3, 16, value + 1, 2 * value, 2**31 - 1, 2**63 - 1))


# ---- readers --------------------------------------------------------------------------------------------------------


def plan_reader() -> Reader:
    """`read_plan`, and every golden file."""
    from lowrank_core.plans.plan import read_plan

    golden = ROOT / "tests" / "golden"
    return Reader(read_plan, tuple(path.read_bytes() for path in sorted(golden.glob("plan-*.json"))), changed_json)


def checkpoint_reader() -> Reader:
    """`load_checkpoint` on a network with all kinds of layers: checkpoints of ours, dense ones, and torch.save's."""
    import torch
    from safetensors.torch import save

    from lowrank_core import Choice, RankPlan, Workspace, load_checkpoint
    from lowrank_core.compression.checkpoint import write_checkpoint
    from lowrank_core.compression.precision import Storage
    from lowrank_core.exports import Compressed
    from lowrank_core.exports._provenance import plan_document, provenance

    path = _file("checkpoint")
    workspace = Workspace.open(_model_file(path.parent))
    one, two = Choice("svd", (1,)), Choice("svd", (2,))
    plans = [
        {"words": one, "conv": two, "rnn.weight_hh_l0": two, "att.in_proj.q": two, "fc": one},
        {"rnn.weight_hh_l0": Choice("gate_tucker", (3, 3)), "att.out_proj": two},
    ]
    seeds = []
    for number, choices in enumerate((*plans, plans[0])):
        plan = RankPlan.of(workspace.profile.fingerprint, choices)
        made = Compressed(workspace.compress(plan), plan).stored(workspace, Storage(fold_bias=number == 2))
        about = {"plan_document": plan_document(workspace, made), "provenance": provenance(workspace, made)}
        write_checkpoint(made.model, workspace.profile, plan, path, **about)
        seeds.append(path.read_bytes())
    dense = workspace.model.state_dict()
    saved = io.BytesIO()
    torch.save(dense, saved)
    seeds += [saved.getvalue(), save({name: value.contiguous() for name, value in dense.items()})]

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return load_checkpoint(workspace.model, path)

    return Reader(read, tuple(seeds), changed_safetensors)


MODEL = '''
"""A network with every kind of layer that a checkpoint lists."""
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.rnn = nn.LSTM(6, 8, batch_first=True)
        self.att = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.norm(self.conv(self.words(tokens).mT)).mT
        x, _ = self.rnn(x)
        x, _ = self.att(x, x, x)
        return self.fc(x[:, -1])


def build_model():
    torch.manual_seed(0)
    return Small().eval()


def example_inputs():
    return (torch.arange(10).reshape(2, 5) % 9,)
'''


def _model_file(folder: Path) -> str:
    path = folder / "small.py"
    path.write_text(MODEL, encoding="utf-8")
    return str(path)


def _file(name: str) -> Path:
    """A place for the bytes at hand, in memory where there is such a place."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="rank-explorer-fuzz-", dir=memory if memory.is_dir() else None)) / name


def _opening(name: str, seeds: tuple[bytes, ...], change: Change, folder: Path | None = None) -> Reader:
    """What opens a file by its path: a model, or weights with the list of their layers and the first row of each."""
    from lowrank_core.sources import open_any
    from lowrank_core.sources._inventory import take_stock
    from lowrank_core.sources._weights import Weights

    path = (folder or _file("")) / name

    def read(data: bytes) -> object:
        path.write_bytes(data)
        found = open_any(str(path))
        if isinstance(found, Weights):
            take_stock(found)
            for tensor in found.tensors:
                if tensor.dtype is not None:
                    tensor.read(slice(0, 1))
        return found

    return Reader(read, seeds, change)


def _state() -> dict[str, Any]:
    """Tensors of several kinds, two of them tied."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator)
    state = {"embed.weight": weight, "head.weight": weight, "conv.weight": torch.randn(4, 2, 3, 3, generator=generator)}
    return state | {"conv.bias": torch.zeros(4), "half": weight.half(), "norm.num_batches_tracked": torch.tensor(3)}


def weights_reader() -> Reader:
    """Weights alone in safetensors."""
    from safetensors.torch import save

    plain = {name: value.clone() for name, value in _state().items()}
    return _opening("fuzzed.safetensors", (save(plain), save(plain, {"format": "pt"})), changed_safetensors)


def index_reader() -> Reader:
    """The index of shards that lie beside it."""
    from safetensors.torch import save

    state = {name: value.clone() for name, value in _state().items()}
    shards = {"a-1.safetensors": list(state)[:3], "a-2.safetensors": list(state)[3:]}
    listed = {name: shard for shard, names in shards.items() for name in names}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}).encode()
    folder = _file("")
    for file, names in shards.items():
        (folder / file).write_bytes(save({name: state[name] for name in names}))
    return _opening("fuzzed.safetensors.index.json", (index,), changed_json, folder)


def torch_reader() -> Reader:
    """A state_dict, and a training checkpoint, of torch.save."""
    import torch

    seeds = []
    for held in (_state(), {"state_dict": {f"module.{n}": v for n, v in _state().items()}, "epoch": 3, "lr": [0.1]}):
        saved = io.BytesIO()
        torch.save(held, saved)
        seeds.append(saved.getvalue())
    return _opening("fuzzed.pt", tuple(seeds), changed_zip)


def onnx_reader() -> Reader:
    """A model as it is opened and run once on random inputs: layers, functions, and what files of others have."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from lowrank_core.graphs import control

    generator = np.random.default_rng(0)

    def held(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)

    def model(inputs: Any, nodes: list[Any], weights: list[Any], functions: tuple[Any, ...] = ()) -> bytes:
        answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "classes"])
        graph = helper.make_graph(nodes, "small", [inputs], [answer], weights)
        opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid("own", 1)] if functions else [])]
        made = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
        return bytes(made.SerializeToString())

    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 6, 6])
    shape = numpy_helper.from_array(np.array([0, -1]), "shape")
    picture = model(
        image,
        [
            helper.make_node("Conv", ["x", "k", "b"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3], strides=[2, 2]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
            helper.make_node("Reshape", ["p", "shape"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "v"], ["g"], transB=1),
            helper.make_node("Softmax", ["g"], ["y"], axis=-1),
        ],
        [held("k", 3, 2, 3, 3), held("b", 3), held("w", 4, 27), held("v", 4), shape],
    )
    tokens = helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 5])
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    text = model(
        tokens,
        [
            helper.make_node("Gather", ["table", "x"], ["e"]),
            helper.make_node("Transpose", ["e"], ["t"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["t", "W", "R", "B"], ["", "h"], hidden_size=3),
            helper.make_node("Squeeze", ["h", "first"], ["s"]),
            helper.make_node("MatMul", ["s", "w"], ["m"]),
            helper.make_node("Twice", ["m"], ["y"], domain="own"),
        ],
        [
            held("table", 7, 4),
            held("W", 1, 12, 4),
            held("R", 1, 12, 3),
            held("B", 1, 24),
            held("w", 3, 2),
            numpy_helper.from_array(np.array([0]), "first"),
        ],
        (twice,),
    )
    control.MOST_TURNS = 1_000  # a loop of as many as are taken otherwise runs for seconds
    return _opening("fuzzed.onnx", (picture, text, *_as_found()), changed_onnx)


def _as_found() -> Iterator[bytes]:
    """Models with what files of others have: products as Keras has them; If, Loop and Scan, a state and a rate;
    recurrent nodes with lengths; QDQ and integer products.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    generator, info = np.random.default_rng(1), helper.make_tensor_value_info

    def stored(**arrays: Any) -> list[Any]:
        return [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()]

    def floats(*shape: int) -> Any:
        return generator.standard_normal(shape).astype(np.float32)

    def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> bytes:
        graph = helper.make_graph(nodes, "small", inputs, outputs, weights)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())

    real, whole, truth = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    yield model(
        [
            helper.make_node("Einsum", ["x", "query"], ["q"], equation="abc,cde->abde"),
            helper.make_node("Einsum", ["q", "out"], ["o"], equation="abcd,cde->aeb"),
            helper.make_node("MatMul", ["bank", "o"], ["m"]),
            helper.make_node("ReduceMean", ["m"], ["p"], axes=[2], keepdims=0),
            helper.make_node("Gemm", ["p", "w", "b"], ["g"], alpha=0.5, beta=2.0),
            helper.make_node("Gemm", ["v", "g"], ["t"], transB=1, alpha=3.0),
            helper.make_node("Gemm", ["t", "u"], ["y"], transA=1),
        ],
        [info("x", real, ["N", 5, 6])],
        [info("y", real, ["N", 2])],
        stored(
            query=floats(6, 2, 3),
            out=floats(2, 3, 4),
            bank=floats(3, 4),
            w=floats(3, 5),
            b=floats(5),
            v=floats(4, 5),
            u=floats(4, 2),
        ),
    )
    loop = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "inside"], ["m"]),
            helper.make_node("Tanh", ["m"], ["out"]),
            helper.make_node("ReduceMax", ["out"], ["top"], keepdims=0),
            helper.make_node("Less", ["top", "limit"], ["go"]),
            helper.make_node("Identity", ["out"], ["row"]),
        ],
        "loop",
        [info("i", whole, ()), info("on", truth, ()), info("h", real, None)],
        [info("go", truth, ()), info("out", real, None), info("row", real, None)],
        stored(inside=floats(4, 4)),
    )
    scan = helper.make_graph(
        [helper.make_node("Add", ["c", "r"], ["c_out"]), helper.make_node("Mul", ["c_out", "r"], ["made"])],
        "scan",
        [info("c", real, None), info("r", real, None)],
        [info("c_out", real, None), info("made", real, None)],
    )
    ways = [
        helper.make_graph([helper.make_node(op, ["a"], [f"{op}.y"])], op, [], [info(f"{op}.y", real, None)])
        for op in ("Relu", "Neg")
    ]
    yield model(
        [
            helper.make_node("Equal", ["rate", "fast"], ["is"]),
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("If", ["is"], ["b"], then_branch=ways[0], else_branch=ways[1]),
            helper.make_node("Loop", ["many", "", "b"], ["l", "rows"], body=loop),
            helper.make_node("Squeeze", ["state", "first"], ["s"]),
            helper.make_node("Scan", ["s", "rows"], ["n", "ys"], body=scan, num_scan_inputs=1),
            helper.make_node("Unsqueeze", ["n", "first"], ["stateN"]),
            helper.make_node("ReduceSum", ["ys", "first"], ["t"], keepdims=0),
            helper.make_node("MatMul", ["t", "v"], ["y"]),
        ],
        [info("x", real, ["N", 6]), info("state", real, [1, None, 4]), info("rate", whole, [])],
        [info("y", real, ["N", 3]), info("stateN", real, [1, None, 4])],
        stored(w=floats(6, 4), v=floats(4, 3), many=3, limit=np.float32(9), fast=16_000, first=np.array([0], np.int64)),
    )
    yield model(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["t", "W", "R", "B", "lengths"], ["a"], hidden_size=3, direction="bidirectional"),
            helper.make_node("Transpose", ["a"], ["u"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["u", "joined"], ["j"]),
            helper.make_node(
                "GRU", ["j", "V", "S", "", "lengths"], ["", "h"], activations=["Elu", "Softsign"], clip=1.0
            ),
            helper.make_node("Squeeze", ["h", "first"], ["s"]),
            helper.make_node("Unsqueeze", ["s", "first"], ["e"]),
            helper.make_node("Pad", ["e", "amounts"], ["p"]),
            helper.make_node("MaxPool", ["p"], ["m"], kernel_shape=[2], strides=[2]),
            helper.make_node("Squeeze", ["m", "first"], ["f"]),
            helper.make_node("Flatten", ["f"], ["g"], axis=-1),
            helper.make_node("MatMul", ["g", "w"], ["y"]),
        ],
        [info("x", real, ["N", 5, 4]), info("lengths", TensorProto.INT32, ["N"])],
        [info("y", real, ["N", 2])],
        stored(
            W=floats(2, 12, 4),
            R=floats(2, 12, 3),
            B=floats(2, 24),
            V=floats(1, 12, 6),
            S=floats(1, 12, 4),
            w=floats(3, 2),
            joined=np.array([0, 0, 6]),
            first=np.array([0]),
            amounts=np.array([0, 0, 1, 0, 0, 1]),
        ),
    )
    integers = generator.integers(-100, 100, (6, 4)).astype(np.int8)
    scales = {"s": np.float32(0.02), "z": np.int8(1), "t": np.float32([0.1, 0.2, 0.1, 0.3])}
    yield model(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "t"], ["f"], axis=1),
            helper.make_node("MatMul", ["d", "f"], ["a"]),
            helper.make_node("Cast", ["w"], ["c"], to=1),
            helper.make_node("Mul", ["c", "t"], ["g"]),
            helper.make_node("MatMul", ["x", "g"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        [info("x", real, [1, 6])],
        [info("y", real, [1, 4])],
        stored(w=integers, **scales),
    )
    yield model(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
            helper.make_node("MatMulInteger", ["q", "w", "qz", "z"], ["i"]),
            helper.make_node("Cast", ["i"], ["c"], to=1),
            helper.make_node("Mul", ["qs", "s"], ["scale"]),
            helper.make_node("Mul", ["c", "scale"], ["y"]),
        ],
        [info("x", real, ["N", 6])],
        [info("y", real, ["N", 4])],
        stored(w=integers, s=scales["s"], z=scales["z"]),
    )


def npz_reader() -> Reader:
    """Data beside a model, of one input and of two."""
    import numpy as np

    from lowrank_core.sources._npz_data import read_npz

    images, labels = np.zeros((4, 3), np.float32), np.arange(4)
    seeds = []
    for save, arrays in (
        (np.savez, {"inputs": images, "targets": labels, "metric": "top-1"}),
        (np.savez_compressed, {"inputs": images, "train_inputs": images, "train_targets": labels}),
        (np.savez, {"a": images, "b": labels.astype(np.uint16), "targets": labels}),
    ):
        target = io.BytesIO()
        save(target, **arrays)
        seeds.append(target.getvalue())
    path = _file("data.npz")

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_npz(path, ("a", "b") if b"a.npy" in data else ())

    return Reader(read, tuple(seeds), changed_zip)


def pt2_reader() -> Reader:
    """A program of torch.export, to the network that it becomes."""
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv1d(2, 3, 3), nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return self.fc(self.conv(x).mean(-1))

    torch.manual_seed(0)
    inputs = (torch.randn(2, 2, 5),)
    program = torch.export.export(Small().eval(), inputs, dynamic_shapes=({0: torch.export.Dim("batch")},))
    target = io.BytesIO()
    torch.export.save(program, target)
    return _opening("fuzzed.pt2", (target.getvalue(),), changed_zip)


def table_reader() -> Reader:
    """A table of microseconds."""
    from lowrank_core.measure.latency import LatencyTable

    plain = b"layer,method,rank,microseconds\nfc,dense,,90\nfc,svd,16,30.5\nconv,tucker2,16x12,1e2\n"
    return Reader(LatencyTable.from_csv, (plain, b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n")), unformed)


READERS = {
    "plan": plan_reader,
    "checkpoint": checkpoint_reader,
    "weights": weights_reader,
    "index": index_reader,
    "torch": torch_reader,
    "onnx": onnx_reader,
    "npz": npz_reader,
    "pt2": pt2_reader,
    "table": table_reader,
}

SLOWEST_SECONDS = 20
"""For one input."""


def fuzz(name: str, corpus: Path, options: list[str]) -> None:
    """One fuzzing process; atheris ends it."""
    import atheris

    with atheris.instrument_imports(include=["lowrank_core"], enable_loader_override=False):
        from lowrank_core.errors import LowRankError

        reader = READERS[name]()
    for number, seed in enumerate(reader.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    longest = 2 * max(map(len, reader.seeds))

    failed: set[str] = set()

    def one(data: bytes) -> None:
        try:
            reader.read(data)
        except LowRankError:
            pass
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "lowrank_core" in frame.filename]
            where = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
            if where not in failed:
                failed.add(where)
                kept = corpus.with_name(f"failed-{len(failed)}")
                kept.write_bytes(data)
                print(f"FAILED {where} ({str(error)[:200]!r}): {kept}", file=sys.stderr, flush=True)

    def changed(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)

        def flip(part: bytes) -> bytes:
            return bytes(atheris.Mutate(part, max(len(part) + 8, 16)))

        if random.random() < 0.5:
            return flip(data)[:most]
        for _ in range(random.randint(1, 3)):
            data = reader.change(data, random, flip)
        return data[:most]

    limits = [f"-max_len={longest}", "-rss_limit_mb=6144", f"-timeout={SLOWEST_SECONDS}"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *options], one, custom_mutator=changed)
    atheris.Fuzz()


def main() -> None:
    """Fuzz each reader in a process of its own and say how it ended."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("readers", nargs="+", choices=list(READERS))
    parser.add_argument("--seconds", type=int, default=600, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        fuzz(asked.readers[0], asked.inside, [f"-max_total_time={asked.seconds}", f"-seed={asked.seed}"])
    total, failures = 0, []
    for name in asked.readers:
        folder = Path(tempfile.mkdtemp(prefix=f"rank-explorer-{name}-"))
        (folder / "corpus").mkdir()
        again = [sys.executable, __file__, name, "--seconds", str(asked.seconds), "--seed", str(asked.seed)]
        with (folder / "log").open("w+", errors="replace") as log:
            ended = subprocess.run([*again, "--inside", str(folder / "corpus")], stdout=log, stderr=log, cwd=folder)
            log.seek(0)
            told = log.read()
        failed = re.findall(r"^FAILED .*", told, re.MULTILINE)
        done = re.search(r"Done (\d+) runs in (\d+) second", told)
        if done is None or ended.returncode:
            failed.append(f"FAILED: the process ended (see {folder}/log): {' '.join(told.splitlines()[-4:])}")
        failures += failed
        total += int(done[1]) if done else 0
        runs = f"{int(done[1]):,} inputs in {done[2]} s" if done else "no end"
        print("\n".join([f"{name}: {runs}, {len(failed) or 'none'} failed", *failed]), flush=True)
    print(f"{total:,} inputs in all")
    sys.exit(bool(failures))


if __name__ == "__main__":
    run_benchmark(main)
