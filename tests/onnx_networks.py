"""Networks as files of ONNX, written by PyTorch's exporter or by hand, with all that makes reading them hard."""

import logging
import warnings
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core.layers.data import tensors
from tests.awkward_layers import filled, seeded


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return seeded(shape, seed, dtype=torch.float32)


class Residual(nn.Module):
    """Two convolutions, each with a BatchNorm that has learnt something, and a way around."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 4, (3, 5), padding=(1, 2), bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        inside = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(x + self.bn2(self.conv2(inside))).mean((2, 3)))


class Odd(nn.Module):
    """Every way to convolve, and operators that are easy to get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 8, 4, padding="same", dilation=2)
        self.grouped = nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=2, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 5, groups=8, stride=(2, 1), padding=2)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.reflect = nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect")
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.same(x))
        x = F.max_pool2d(F.hardswish(self.depthwise(x + self.grouped(x))), 2, ceil_mode=True)
        x = F.avg_pool2d(F.silu(self.reflect(self.norm(self.up(x)))), 3, 2, 1)
        x = F.interpolate(F.interpolate(x, scale_factor=2.0), size=(5, 6), mode="bilinear")
        return self.fc(x.mean((2, 3))).softmax(-1)


class Block(nn.Module):
    """An embedding, an encoder layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.head = nn.Linear(16, 30, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.table(tokens))).mean(1)


class Steps(nn.Module):
    """A recurrent layer of each kind, both ways or one."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 4, batch_first=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(self.lstm(x)[0])[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16, bias=False), nn.Tanh(), nn.Linear(16, 4))


TOKENS = torch.randint(30, (32, 7), generator=torch.Generator().manual_seed(0))
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, numbers(32, 12)),
    "residual": (Residual, numbers(32, 4, 6, 7)),
    "odd": (Odd, numbers(32, 3, 12, 10)),
    "attention": (Block, TOKENS),
    "recurrent": (Steps, numbers(32, 6, 5)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """(the network with seeded weights and statistics, 32 inputs)."""
    make, inputs = NETWORKS[name]
    model = filled(make())
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            with torch.no_grad():
                module.weight.copy_(1 + 0.3 * numbers(len(module.weight), seed=number))
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.3 * numbers(len(module.weight), seed=number + 1))
            module.running_var.copy_(numbers(len(module.weight), seed=number + 2).abs() + 0.5)
    return model, inputs


@cache
def exported(name: str) -> onnx.ModelProto:
    """The network as PyTorch's exporters write it: the one that traces shapes, and the older and much faster one.

    The latter keeps BatchNorm as it is.
    """
    model, inputs = network(name)
    logging.disable(logging.WARNING)
    try:
        if name in ("odd", "attention"):
            free = ({0: torch.export.Dim.DYNAMIC},)
            return torch.onnx.export(model, (inputs[:2],), dynamo=True, verbose=False, dynamic_shapes=free).model_proto
        options = {"opset_version": 15, "input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "n"}}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = BytesIO()
            kept = torch.onnx.TrainingMode.PRESERVE
            torch.onnx.export(
                model, (inputs[:2],), file, dynamo=False, training=kept, do_constant_folding=False, **options
            )
        return onnx.load_from_string(file.getvalue())
    finally:
        logging.disable(logging.NOTSET)


def written(folder: Path, name: str) -> Path:
    """The network as a file of ONNX, with its inputs beside it."""
    return saved(exported(name), folder / f"{name}.onnx", network(name)[1])


def saved(proto: onnx.ModelProto, path: Path, inputs: Tensor | None = None) -> Path:
    onnx.save(proto, path)
    if inputs is not None:
        np.savez(path.with_suffix(".npz"), inputs=inputs.numpy())
    return path


def graph(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Tensor],
    shape: tuple[int | str, ...],
    *,
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    answer: tuple[int | str, ...] | None = None,
    answers_kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model by hand: input "x" of that shape, output "y" of the shape `answer`, by default what follows."""
    stored = [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    given = [helper.make_tensor_value_info("x", kind, shape)]
    answers = [helper.make_tensor_value_info("y", answers_kind, answer)]
    made = helper.make_graph(nodes, "by hand", given, answers, stored)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model if answer else onnx.shape_inference.infer_shapes(model)


def in_runtime(proto: onnx.ModelProto | Path, *inputs: Tensor) -> list[Tensor]:
    """What onnxruntime answers."""
    content = str(proto) if isinstance(proto, Path) else proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(found) for found in session.run(None, feed)]


def largest_difference(proto: onnx.ModelProto | Path, model: nn.Module, inputs: Tensor) -> float:
    """Between onnxruntime and a module, over all outputs, in units of the largest."""
    with torch.no_grad():
        ours = tensors(model(*tensors(inputs)))
    theirs = in_runtime(proto, *tensors(inputs))
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    return max(float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for a, b in zip(ours, theirs, strict=True))
