"""LSTM, GRU and RNN nodes of ONNX: what onnxruntime answers, and what they multiply, counted by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.exports import Compressed
from lowrank_core.exports._onnx_surgery import compressed_onnx
from lowrank_core.exports._recurrent import forms_of
from lowrank_core.graphs.onnx_network import build
from lowrank_core.graphs.recurrent import SCAN_PAYS
from lowrank_core.plans.cost import dense_cost
from tests.onnx_networks import in_runtime, numbers

STEPS, BATCH, INPUTS, HIDDEN = 7, 5, 4, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTHS = torch.tensor([7, 0, 3, 1, 4], dtype=torch.int32)
TOLERANCE = 1e-5


def weights(op: str, ways: int) -> dict[str, torch.Tensor]:
    rows = GATES[op] * HIDDEN
    return {
        "w": numbers(ways, rows, INPUTS, seed=1),
        "r": numbers(ways, rows, HIDDEN, seed=2),
        "b": numbers(ways, 2 * rows, seed=3),
        "h": numbers(ways, BATCH, HIDDEN, seed=4),
        "c": numbers(ways, BATCH, HIDDEN, seed=5),
        "p": numbers(ways, 3 * HIDDEN, seed=6),
    }


def network(op: str, inputs: list[str], weights: dict[str, torch.Tensor], **attributes) -> onnx.ModelProto:
    """One recurrent node with all its outputs; inputs: what it is given behind x, "" for nothing."""
    outputs = ["y", "last", "cell"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, ["x", *inputs], outputs, name="reader", hidden_size=HIDDEN, **attributes)
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", "n", INPUTS])]
    if "lengths" in inputs:
        given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["n"]))
    stored = [numpy_helper.from_array(weights[name].numpy(), name) for name in inputs if name in weights]
    shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    made = helper.make_graph([node], "by hand", given, shown, stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check(proto: onnx.ModelProto) -> None:
    """That every output is onnxruntime's."""
    inputs = [numbers(STEPS, BATCH, INPUTS), LENGTHS][: len(proto.graph.input)]
    with torch.no_grad():
        ours = build(proto)(*inputs)
    for name, a, b in zip((o.name for o in proto.graph.output), ours, in_runtime(proto, *inputs), strict=True):
        assert a.shape == b.shape, name
        assert float((a - b).abs().max()) < TOLERANCE, name


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("lengths", ["lengths", ""])
def test_each_way_with_and_without_lengths_and_states(op, direction, states, lengths):
    inputs = ["w", "r", "b", lengths, *(["h", "c"][: 2 if op == "LSTM" else 1] if states else [])]
    check(network(op, inputs, weights(op, 2 if direction == "bidirectional" else 1), direction=direction))


@pytest.mark.parametrize("lengths", ["lengths", ""])
@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("GRU", ["w", "r", "b"], {"linear_before_reset": 1}),
        ("GRU", ["w", "r"], {"linear_before_reset": 1, "direction": "bidirectional"}),
        ("GRU", ["w", "r", "b"], {"activations": ["HardSigmoid", "ScaledTanh"], "activation_alpha": [0.3, 1.5],
                                  "activation_beta": [0.4, 0.6]}),
        ("LSTM", ["w", "r", "b", "", "h", "c", "p"], {}),
        ("LSTM", ["w", "r", "", "", "", "", "p"], {"direction": "bidirectional"}),
        ("LSTM", ["w", "r", "b"], {"input_forget": 1}),
        ("LSTM", ["w", "r", "b"], {"clip": 0.4}),
        ("LSTM", ["w", "r", "b"], {"activations": ["HardSigmoid", "Softsign", "Elu"], "activation_alpha": [0.3, 0.7]}),
        ("LSTM", ["w", "r", "b"], {"activations": ["Sigmoid", "Relu", "Tanh"] * 2, "direction": "bidirectional"}),
        ("RNN", ["w", "r", "b"], {"activations": ["LeakyRelu"], "activation_alpha": [0.2]}),
        ("RNN", ["w", "r", "b"], {"activations": ["Relu", "Tanh"], "direction": "bidirectional", "clip": 0.5}),
    ],
)  # fmt: skip
def test_all_that_a_node_may_say(op, inputs, attributes, lengths):
    given = [*inputs, *[""] * (4 - len(inputs))]
    given[3] = lengths
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    check(network(op, given, weights(op, ways), **attributes))


@pytest.mark.parametrize("op", GATES)
def test_batch_first_is_the_same_turned_round(op):
    """onnxruntime has no layout 1, so what it answers to layout 0 is turned round."""
    inputs, stored = ["w", "r", "b", "lengths", "h"], weights(op, 2)
    turned = stored | {"h": stored["h"].transpose(0, 1).contiguous()}
    x = numbers(STEPS, BATCH, INPUTS)
    theirs = in_runtime(network(op, inputs, stored, direction="bidirectional"), x, LENGTHS)
    with torch.no_grad():
        ours = build(network(op, inputs, turned, direction="bidirectional", layout=1))(x.transpose(0, 1), LENGTHS)
    for a, b, axes in zip(ours, theirs, ((2, 0, 1, 3), (1, 0, 2), (1, 0, 2)), strict=False):
        torch.testing.assert_close(a, b.permute(axes), rtol=0, atol=TOLERANCE)


def opened(proto: onnx.ModelProto, folder: Path, lengths: torch.Tensor | None, samples: int = 20) -> Workspace:
    """The network with its samples first in what it takes and gives, and so many of them with these lengths."""
    (node,), (x, *more) = proto.graph.node, proto.graph.input
    node.input[0], node.output[:] = "turned", ["all"]
    x.type.tensor_type.shape.dim[0].dim_param, x.type.tensor_type.shape.dim[1].dim_param = "n", "t"
    first = helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2])
    last = helper.make_node("Transpose", ["all"], ["y"], perm=[2, 0, 1, 3])
    shown = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "t", None, HIDDEN])]
    made = helper.make_graph([first, node, last], "opened", [x, *more], shown, proto.graph.initializer)
    onnx.save(helper.make_model(made, opset_imports=proto.opset_import, ir_version=8), folder / "net.onnx")
    data = {"x": numbers(samples, STEPS, INPUTS).numpy()} | ({} if lengths is None else {"lengths": lengths.numpy()})
    np.savez(folder / "net.npz", **data)
    return Workspace.open(str(folder / "net.onnx"))


@pytest.mark.parametrize(
    ("op", "lengths", "attributes", "reason"),
    [
        ("GRU", None, {}, "reader (GRU) resets before the product (linear_before_reset 0)"),
        ("LSTM", None, {"direction": "reverse"}, "reader (LSTM) goes through its inputs in the direction 'reverse'"),
        ("RNN", None, {"clip": 2.0}, "reader (RNN) has clip"),
        (
            "LSTM",
            LENGTHS.repeat(4),
            {"activations": ["Sigmoid", "Relu", "Tanh"]},
            "reader (LSTM) has activations of its own",
        ),
        ("GRU", LENGTHS.repeat(4), {}, "reader (GRU) resets before the product"),
    ],
)
def test_one_that_is_no_layer_is_named_with_the_reason_and_counts(op, lengths, attributes, reason, tmp_path):
    inputs = ["w", "r", "b", *([] if lengths is None else ["lengths"])]
    workspace = opened(network(op, inputs, weights(op, 1), **attributes), tmp_path, lengths)
    assert any(reason in notice for notice in workspace.notices), workspace.notices
    steps = STEPS if lengths is None else float(lengths.double().mean())
    products = steps * GATES[op] * HIDDEN * (INPUTS + HIDDEN)
    assert not workspace.profile.layers
    assert workspace.profile.rest.multiplies == round(products)


LONG = torch.tensor([7, 2, 3, 1, 4, 6, 6, 5, 1, 2] * 2, dtype=torch.int32)
PLAIN = {"LSTM": {}, "GRU": {"linear_before_reset": 1}, "RNN": {}}


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_with_lengths_they_are_layers_that_count_the_steps_that_there_are(op, direction, tmp_path):
    ways = 2 if direction == "bidirectional" else 1
    states = ["h", "c"][: 2 if op == "LSTM" else 1]
    proto = network(op, ["w", "r", "b", "lengths"], weights(op, ways), direction=direction, **PLAIN[op])
    with_states = network(op, ["w", "r", "b", "lengths", *states], weights(op, ways), direction=direction, **PLAIN[op])
    for each in (proto, with_states):
        check(each)
        assert build(each).by_lengths
    workspace = opened(proto, tmp_path, LONG)
    costs = {layer.name.rpartition(".")[2]: dense_cost(layer).multiplies for layer in workspace.profile.layers}
    steps, rows = float(LONG.double().mean()), GATES[op] * HIDDEN
    ends = ("", "_reverse")[:ways]
    assert costs == {
        f"weight_{side}_l0{end}": round(steps * rows * columns)
        for end in ends
        for side, columns in (("ih", INPUTS), ("hh", HIDDEN))
    }
    assert workspace.profile.rest.multiplies == 0
    assert not any("left as they are" in notice for notice in workspace.notices)


@pytest.mark.parametrize("op", GATES)
def test_a_compressed_one_is_written_as_a_node_that_keeps_its_lengths(op, tmp_path, monkeypatch):
    """Also where a loop would pay, since it knows no lengths; what is said of the file's multiplies is so too."""
    monkeypatch.setitem(SCAN_PAYS, op, 1)
    proto = network(op, ["w", "r", "b", "lengths"], weights(op, 2), direction="bidirectional", **PLAIN[op])
    workspace = opened(proto, tmp_path, LONG)
    choices = {layer.name: Choice("svd", (1,)) for layer in workspace.profile.layers}
    plan = RankPlan.of(workspace.profile.fingerprint, choices)
    model = workspace.compress(plan, workspace.correction)
    written = compressed_onnx(workspace, model, plan)
    nodes = [node for node in written.graph.node if node.op_type == op]
    assert [node.input[4] for node in nodes] == ["lengths"] * 2
    assert not any(node.op_type == "Scan" for node in written.graph.node)
    forms = forms_of(workspace, Compressed(model, plan))
    assert {each.op for each in forms.weights} == {op}
    steps, ranked = float(LONG.double().mean()), GATES[op] * HIDDEN
    thin = min(ranked * INPUTS, ranked + INPUTS)
    assert forms.multiplies == pytest.approx(2 * steps * (thin + ranked * HIDDEN), abs=4)
    x = numbers(20, STEPS, INPUTS)
    for lengths in (LONG, LENGTHS.repeat(4), torch.full_like(LONG, 7)):
        with torch.no_grad():
            ours = model(x, lengths)
        (theirs,) = in_runtime(written, x, lengths)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
