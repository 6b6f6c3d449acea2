"""Poolings behind a padding: onnxruntime makes one of the two, and of negative numbers other answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import helper

from lowrank_core import Workspace
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.graphs.onnx_forms import padding_apart
from lowrank_core.plans.uniform import uniform_plan
from tests.onnx_networks import graph, in_runtime, numbers

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = """
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 12, 3)
    convolution.bias.data -= 20
    pools = nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2)
    return nn.Sequential(convolution, *pools, nn.Flatten(), nn.Linear(192, 10)).eval()

def eval_data():
    return torch.randn(32, 8, 9, 9, generator=torch.Generator().manual_seed(1)), None
"""
"""A stem as that of BiT and of Keras's ResNetV2: nothing makes its numbers positive before they are padded."""


def stored(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path).graph.node)


def compressed(workspace: Workspace) -> Compressed:
    plan = uniform_plan(workspace.profile, 0.7)
    return Compressed(workspace.compress(plan), plan)


def test_a_network_of_pytorch_answers_in_onnxruntime_as_it_does_here(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    workspace = Workspace.open(str(tmp_path / "net.py"))
    small = compressed(workspace)
    written = EXPORTS["onnx"].write(workspace, small, tmp_path / "small.onnx")
    assert written.verdict == "same"
    assert written.notes == (
        "1 max pooling behind a padding says auto_pad=VALID: else onnxruntime leaves the padding out of the maximum, "
        "and answers otherwise",
    )
    (pool,) = [node for node in stored(tmp_path / "small.onnx") if node.op_type == "MaxPool"]
    assert {a.name: helper.get_attribute_value(a) for a in pool.attribute}["auto_pad"] == b"VALID"


def padded(
    between: str | None = None, value: float | None = None, mode: str = "constant", **said: object
) -> tuple[onnx.ModelProto, torch.Tensor]:
    """A convolution, zeros around what it answers, and a pooling of it."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="conv")]
    if between:
        nodes.append(helper.make_node(between, ["a"], ["b"]))
    nodes += [
        helper.make_node(
            "Pad", ["b" if between else "a", "amounts", "value"][: 2 + (value is not None)], ["p"], mode=mode
        ),
        helper.make_node("MaxPool", ["p"], ["y"], name="pool", kernel_shape=[2, 2], strides=[2, 2], **said),
    ]
    weights = {"w": -numbers(6, 4, 3, 3).abs(), "amounts": torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])}
    if value is not None:
        weights["value"] = torch.tensor(value)
    return graph(nodes, weights, ("n", 4, 8, 8)), numbers(16, 4, 8, 8, seed=1).abs()


def test_a_file_is_written_back_so_that_onnxruntime_pads_with_zeros(tmp_path: Path) -> None:
    model, x = padded()
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    np.savez(tmp_path / "net.npz", inputs=x.numpy())
    workspace = Workspace.open(str(tmp_path / "net.onnx"))
    assert float(in_runtime(model, x)[0].max()) < 0  # as it is found, onnxruntime leaves the zeros out
    assert "onnxruntime answers otherwise than this file says: of 'pool' it" in " ".join(workspace.opened.notices)
    small = compressed(workspace)
    assert EXPORTS["onnx"].write(workspace, small, tmp_path / "small.onnx").verdict == "same"
    with torch.no_grad():
        torch.testing.assert_close(in_runtime(tmp_path / "small.onnx", x)[0], small.model(x), rtol=1e-4, atol=1e-4)
        assert float(small.model(x).max()) == 0


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ({}, 1),
        ({"value": 0.0}, 1),
        ({"between": "Neg", "pads": [0, 0, 0, 0], "auto_pad": "NOTSET"}, 1),
        ({"between": "Relu"}, 0),
        ({"value": float("-inf")}, 0),
        ({"mode": "reflect"}, 0),
        ({"pads": [1, 0, 0, 0]}, 0),
        ({"auto_pad": "SAME_UPPER"}, 0),
        ({"ceil_mode": 1}, 0),
    ],
)
def test_only_a_pooling_that_onnxruntime_joins_is_written_otherwise(said: dict[str, Any], written: int) -> None:
    model, x = padded(**said)
    before = model.SerializeToString()
    assert padding_apart(model) == written
    assert (model.SerializeToString() == before) == (not written)
    onnx.checker.check_model(model)
    exact = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x.numpy()})[0]
    if not said.keys() & {"pads", "auto_pad", "ceil_mode"} or written:
        np.testing.assert_allclose(in_runtime(model, x)[0], exact, atol=1e-5)
