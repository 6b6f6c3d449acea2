"""Graphs of ONNX with inputs that are no samples, a batch of one size, and graphs inside their nodes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lowrank_core import Workspace
from lowrank_core.errors import Cancelled, InvalidData, InvalidModel
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.graphs.exporting import exported_program
from lowrank_core.graphs.onnx_network import build
from lowrank_core.graphs.reading import read_onnx
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.scope import scope
from lowrank_core.scoring.scores import final_score
from lowrank_core.sources import onnx as onnx_source
from lowrank_core.sources import open_any
from tests.onnx_networks import numbers

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64}


def model(nodes, weights, inputs, outputs, *, opset=17) -> onnx.ModelProto:
    """A model by hand; inputs: {name: (type, shape)}; outputs: {name: shape}."""
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    given = [helper.make_tensor_value_info(name, *about) for name, about in inputs.items()]
    answers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
    made = helper.make_graph(nodes, "by hand", given, answers, stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(proto: onnx.ModelProto, folder: Path, **arrays) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    if arrays:
        np.savez(folder / "m.npz", **arrays)
    return path


def in_runtime(path: Path, **feed) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(path)).run(None, feed)


def written(workspace: Workspace, folder: Path, rank: int = 2) -> Path:
    """The network with one layer factorised, as the graph that is exported."""
    from lowrank_core.exports._onnx_surgery import compressed_onnx

    plan = RankPlan.of(workspace.profile.fingerprint, {workspace.profile.layers[0].name: Choice("svd", (rank,))})
    path = folder / "small.onnx"
    path.write_bytes(compressed_onnx(workspace, workspace.compress(plan), plan).SerializeToString())
    return path


FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def streaming() -> onnx.ModelProto:
    """A recurrent step whose state has its samples on the second axis, and a rate that decides what is done."""

    def way(name: str, op: str) -> onnx.GraphProto:
        answer = helper.make_tensor_value_info(f"{name}.y", FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["s"], [f"{name}.y"])], name, [], [answer])

    nodes = [
        helper.make_node("Equal", ["rate", "sixteen"], ["fast"]),
        helper.make_node("Squeeze", ["state", "zero"], ["h"]),
        helper.make_node("Concat", ["x", "h"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "w"], ["s"]),
        helper.make_node("If", ["fast"], ["t"], then_branch=way("then", "Tanh"), else_branch=way("else", "Neg")),
        helper.make_node("Unsqueeze", ["t", "zero"], ["stateN"]),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
    ]
    weights = {"w": numbers(11, 5), "v": numbers(5, 3), "zero": np.array([0]), "sixteen": np.array(16_000)}
    inputs = {"x": (FLOAT, ("n", 6)), "state": (FLOAT, (1, None, 5)), "rate": (INT, ())}
    return model(nodes, weights, inputs, {"y": ("n", 3), "stateN": (1, None, 5)})


@pytest.mark.parametrize("given", ["nothing", "samples", "everything"])
def test_state_has_its_own_batch_axis_and_single_numbers_are_held(given, tmp_path):
    x, state = numbers(4, 6).numpy(), 0.3 * numbers(1, 4, 5, seed=3).numpy()
    arrays = {"nothing": {}, "samples": {"x": x}, "everything": {"x": x, "state": state, "rate": 8_000}}[given]
    path = saved(streaming(), tmp_path, **arrays)
    workspace = Workspace.open(str(path))
    axes = workspace.opened.axes
    assert (axes.inputs, axes.outputs) == ((0, 1), (0, 1))
    said = " ".join(workspace.opened.notices)
    assert ("rate at 16000" in said) == (given != "everything")
    assert ("lacks state: zeros" in said) == (given == "samples")
    state = state if given == "everything" else np.zeros_like(state)
    rate = np.array(8_000 if given == "everything" else 16_000)
    theirs = in_runtime(path, x=x, state=state, rate=rate)
    with torch.no_grad():
        ours = workspace.model(torch.tensor(x), torch.tensor(state))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    small = written(workspace, tmp_path, rank=5)  # the whole rank: the same answers, and the rate may still be given
    np.testing.assert_allclose(in_runtime(small, x=x, state=state)[0], theirs[0], atol=1e-5)
    assert "rate" in {value.name for value in onnx.load(small).graph.input}


def test_an_input_that_data_hold_for_all_samples(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "shift"], ["y"])]
    proto = model(nodes, {"w": numbers(6, 4)}, {"x": (FLOAT, ("n", 6)), "shift": (FLOAT, ("n", 4))}, {"y": ("n", 4)})
    x, shift = numbers(5, 6).numpy(), numbers(1, 4, seed=1).numpy()
    workspace = Workspace.open(str(saved(proto, tmp_path, x=x, shift=shift, held=["shift"])))
    with torch.no_grad():
        np.testing.assert_allclose(workspace.model(torch.tensor(x)), x @ numbers(6, 4).numpy() + shift, atol=1e-6)
    with pytest.raises(InvalidData, match="held names other, but the network takes x, shift"):
        Workspace.open(str(saved(proto, tmp_path, x=x, shift=shift, held=["other"])))
    with pytest.raises(InvalidData, match="lacks shift; the network takes x, shift"):
        Workspace.open(str(saved(proto, tmp_path, x=x)))


def through_time() -> onnx.ModelProto:
    """Rows that act on those after them, with a state for one sequence."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["steps"]),
        helper.make_node("RNN", ["steps", "W", "R", "", "", "h"], ["o", "hn"], hidden_size=5),
        helper.make_node("Squeeze", ["o", "both"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    weights = {"W": numbers(1, 5, 6), "R": numbers(1, 5, 5), "v": numbers(5, 3)}
    weights |= {"one": np.array([1]), "both": np.array([1, 2])}
    inputs = {"x": (FLOAT, ("steps", 6)), "h": (FLOAT, (1, 1, 5))}
    return model(nodes, weights, inputs, {"y": ("steps", 3), "hn": (1, 1, 5)})


@pytest.mark.parametrize("batch", [1, "n"])
@pytest.mark.parametrize(("part", "lacks"), [("x", "m.npz: x"), ("train_x", "m.npz: train_x")])
def test_arrays_of_no_samples_are_refused(part, lacks, batch, tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    arrays = {"x": numbers(5, 6).numpy()} | {part: np.zeros((0, 6), np.float32)}
    path = saved(model(nodes, {"w": numbers(6, 4)}, {"x": (FLOAT, (batch, 6))}, {"y": (batch, 4)}), tmp_path, **arrays)
    with pytest.raises(InvalidData, match=rf"{lacks} must hold a sample at least, but got \(0, 6\)"):
        Workspace.open(str(path))


def test_samples_that_act_on_one_another_are_run_alone(tmp_path):
    """Each row alone; or each sequence, where the data have one axis more than the file."""
    x, zeros = numbers(4, 7, 6).numpy(), np.zeros((1, 1, 5), np.float32)
    path = saved(through_time(), tmp_path, x=x)
    workspace = Workspace.open(str(path))
    with torch.no_grad():
        ours = workspace.model(torch.tensor(x))
    theirs = [in_runtime(path, x=one, h=zeros) for one in x]
    np.testing.assert_allclose(ours[0], np.stack([one[0] for one in theirs]), rtol=1e-5, atol=1e-5)
    assert ours[1].shape == (4, 1, 1, 5)
    assert "axis of their own in the data" in " ".join(workspace.opened.notices)
    (tmp_path / "m.npz").unlink()
    rows = Workspace.open(str(path))
    assert "Several samples would act on one another" in " ".join(rows.opened.notices)
    with torch.no_grad():
        alone = rows.model(torch.tensor(x[0]))[0]
    np.testing.assert_allclose(
        alone, [in_runtime(path, x=row[None], h=zeros)[0][0] for row in x[0]], rtol=1e-5, atol=1e-5
    )
    assert plan_cost(rows.profile).multiplies == 6 * 5 + 5 * 5 + 5 * 3


def test_a_batch_of_one_that_cannot_be_freed_is_run_sample_by_sample(tmp_path):
    """And so is the exported file, which keeps its batch."""
    from lowrank_core.graphs.exporting import OnnxNetwork

    nodes = [
        helper.make_node("ReduceSum", ["x", "first"], ["s"], keepdims=1),  # over the batch, as if it were none
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    path = saved(
        model(nodes, {"w": numbers(6, 4), "first": np.array([0])}, {"x": (FLOAT, (1, 6))}, {"y": (1, 4)}), tmp_path
    )
    workspace, x = Workspace.open(str(path)), numbers(3, 6)
    assert "The file fixes its batch at 1: here each sample is run alone" in " ".join(workspace.opened.notices)
    theirs = np.concatenate([in_runtime(path, x=row[None])[0] for row in x.numpy()])
    with torch.no_grad():
        np.testing.assert_allclose(workspace.model(x), theirs, atol=1e-6)
    np.testing.assert_allclose(OnnxNetwork(str(written(workspace, tmp_path, rank=4)))(x)[0], theirs, atol=1e-5)


def states_of_its_own(op: str = "LSTM", **more) -> onnx.ModelProto:
    """A recurrent layer as tf2onnx writes it: zeros for its states, of sizes that are computed with 32 bits."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Cast", ["sizes"], ["short"], to=TensorProto.INT32),
        helper.make_node("Slice", ["short", "from", "to", "from"], ["batch"]),
        helper.make_node("Concat", ["batch", "width"], ["packed"], axis=0),
        helper.make_node("Cast", ["packed"], ["long"], to=TensorProto.INT64),
        helper.make_node("Expand", ["zero", "long"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "from"], ["h"]),
        helper.make_node(op, ["steps", "W", "R", "", "", *["h"] * (2 if op == "LSTM" else 1)], ["", "last"], **more),
        helper.make_node("Squeeze", ["last", "from"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    gates = {"LSTM": 4, "GRU": 3}[op]
    weights = {"W": numbers(1, gates * 5, 6), "R": numbers(1, gates * 5, 5, seed=1), "v": numbers(5, 3)}
    weights |= {"from": np.array([0]), "to": np.array([1]), "width": np.array([5], np.int32)}
    weights |= {"zero": np.zeros(1, np.float32)}
    nodes[8].name = "layer/recurrent"
    return model(nodes, weights, {"x": (FLOAT, ("n", 7, 6))}, {"y": ("n", 3)})


def test_sizes_of_32_bits_leave_the_batch_free_in_a_graph(tmp_path):
    """Nothing is asked of sizes while they are traced; what says them is still among what plans know a network by."""
    path = saved(states_of_its_own(hidden_size=5), tmp_path)
    workspace, x = Workspace.open(str(path)), numbers(4, 7, 6, seed=3)
    program = exported_program(workspace.model, numbers(2, 7, 6)).module()
    with torch.no_grad():
        for ours in (program(x), workspace.model(x)):
            np.testing.assert_allclose(ours, in_runtime(path, x=x.numpy())[0], atol=1e-5)
    assert "constants.width" in workspace.model.state_dict()


def test_a_refused_graph_names_the_node_of_the_file(tmp_path):
    """A Hardmax is no operator of PyTorch's."""
    nodes = [
        helper.make_node("Hardmax", ["x"], ["hard"], name="layer/hard"),
        helper.make_node("MatMul", ["hard", "w"], ["y"]),
    ]
    path = saved(model(nodes, {"w": numbers(6, 4)}, {"x": (FLOAT, ("n", 6))}, {"y": ("n", 4)}), tmp_path)
    workspace, x = Workspace.open(str(path)), numbers(4, 6, seed=3)
    np.testing.assert_allclose(workspace.model(x).detach(), in_runtime(path, x=x.numpy())[0], atol=1e-5)
    with pytest.raises(InvalidModel, match=r"node 'layer/hard' \(Hardmax\) stops: only ONNX's own reference"):
        exported_program(workspace.model, x)


def test_a_node_without_a_name_goes_by_its_first_answer(tmp_path):
    proto = states_of_its_own("GRU", hidden_size=5)
    proto.graph.node[8].name = ""
    assert list(proto.graph.node[8].output) == ["", "last"]
    notices = " ".join(Workspace.open(str(saved(proto, tmp_path))).opened.notices)
    assert "last (GRU) resets before the product" in notices


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_recurrent_nodes_that_are_no_layers_of_pytorch_are_graphs_too(op, tmp_path):
    """A GRU that resets before its product is none of PyTorch's."""
    path = saved(states_of_its_own(op, hidden_size=5), tmp_path)
    workspace, x = Workspace.open(str(path)), numbers(4, 7, 6, seed=3)
    program = exported_program(workspace.model, numbers(2, 7, 6)).module()
    with torch.no_grad():
        for ours in (program(x), workspace.model(x)):
            np.testing.assert_allclose(ours, in_runtime(path, x=x.numpy())[0], atol=1e-5)


@pytest.mark.parametrize("bad", [4, -5])
def test_tokens_beyond_their_table_are_named_with_the_input(bad, tmp_path):
    nodes = [
        helper.make_node("Cast", ["ids"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "whole"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["y"]),
    ]
    made = model(
        nodes, {"table": numbers(4, 6), "w": numbers(6, 3)}, {"ids": (TensorProto.INT64, ("n", 2))}, {"y": ("n", 3)}
    )
    path = saved(made, tmp_path, ids=np.array([[0, 3], [1, -4]]))
    assert len(Workspace.open(str(path)).reference) == 2
    np.savez(tmp_path / "m.npz", ids=np.array([[0, 3], [1, bad]]))
    says = (
        rf"m.npz: ids must be numbers from 0 to 3, the rows of its table, but goes from {min(0, bad)} to {max(3, bad)}"
    )
    with pytest.raises(InvalidData, match=says):
        Workspace.open(str(path))


def test_where_no_metric_fits_those_are_named_that_do(tmp_path):
    """A network that is a file of data has no model file to define one in."""
    made = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": numbers(6, 1)}, {"x": (FLOAT, ("n", 6))}, {"y": ("n", 1)}
    )
    path = saved(made, tmp_path, inputs=numbers(5, 6).numpy(), targets=np.arange(5))
    with pytest.raises(InvalidData) as caught:
        _ = Workspace.open(str(path)).judged
    assert "name a metric in the .npz of its data" in str(caught.value)
    fit = str(caught.value).rpartition("those known by name that fit: ")[2].rstrip(".").split(", ")
    assert {"mse", "mae", "r2"} <= set(fit)
    assert not {"top-1", "perplexity", "agreement", "f1", "auc"} & set(fit)
    for metric in fit:
        np.savez(tmp_path / "m.npz", inputs=numbers(5, 6).numpy(), targets=np.arange(5), metric=metric)
        workspace = Workspace.open(str(path))
        assert final_score(workspace.measure(workspace.model)).samples == 5


def in_one_row(batch: int | str) -> onnx.ModelProto:
    """A number for each token, those of all samples in one row."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["z"]),
        helper.make_node("Reshape", ["z", "row"], ["y"]),
    ]
    weights = {"w": numbers(6, 8), "v": numbers(8, 1), "row": np.array([-1])}
    return model(nodes, weights, {"x": (FLOAT, (batch, "tokens", 6))}, {"y": ("tokens" if batch == 1 else "all",)})


@pytest.mark.parametrize("batch", [1, "n"])
def test_answers_in_one_row_are_those_of_samples_run_alone(batch, tmp_path):
    """Judged by their numbers, as onnxruntime gives them sample by sample; the last axis of one has no classes."""
    x = numbers(40, 5, 6).numpy()
    path = saved(in_one_row(batch), tmp_path, x=x)
    workspace = Workspace.open(str(path))
    assert "in one row: here each sample is run alone" in " ".join(workspace.opened.notices)
    dense = np.stack([in_runtime(path, x=one[None])[0] for one in x])
    with torch.no_grad():
        np.testing.assert_allclose(workspace.model(torch.tensor(x)), dense, rtol=1e-5, atol=1e-5)
    assert [(o.name, o.shape, o.left) for o in workspace.judged.outputs] == [("y", (5,), "")]
    assert plan_cost(workspace.profile).multiplies == 5 * (6 * 8 + 8)
    plan = RankPlan.of(workspace.profile.fingerprint, {workspace.profile.layers[0].name: Choice("svd", (2,))})
    compressed = Compressed(workspace.compress(plan), plan)
    EXPORTS["onnx"].write(workspace, compressed, tmp_path / "small.onnx")
    small = np.stack([in_runtime(tmp_path / "small.onnx", x=one[None])[0] for one in x])
    with torch.no_grad():
        np.testing.assert_allclose(compressed.model(torch.tensor(x)), small, rtol=1e-4, atol=1e-4)
    score = final_score(workspace.measure(compressed.model))
    if batch == 1:
        assert score.metric == "R2 against the dense network"
        spread = ((dense - dense.mean(0)) ** 2).sum()
        assert score.value == pytest.approx(1 - ((small - dense) ** 2).sum() / spread, rel=1e-4)
    else:
        assert score.value == pytest.approx(np.mean(small.argmax(1) == dense.argmax(1)))


def test_a_batch_is_joined_only_from_what_can_be_put_side_by_side():
    def joined(whole, first, second):
        return onnx_source._joined_along(*({"y": torch.ones(*shape)} for shape in (whole, first, second)))

    assert joined((4, 3), (2, 3), (2, 3)) == (0,)
    assert joined((3, 4), (3, 2), (3, 2)) == (1,)
    assert joined((4, 3), (3, 3), (1, 3)) == (0,)
    assert joined((2, 3, 4), (3, 4), (3, 4)) is None
    assert joined((4, 3), (2, 3), (3,)) is None
    assert joined((4, 3), (2, 2), (2, 3)) is None


def test_a_fixed_batch_of_a_recurrent_layer_is_freed(tmp_path):
    """The batch is the second number of a Reshape."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("RNN", ["r", "W", "R"], ["o"], hidden_size=5),
        helper.make_node("Squeeze", ["o", "one"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    weights = {"W": numbers(1, 5, 6), "R": numbers(1, 5, 5), "v": numbers(5, 3)}
    weights |= {"one": np.array([1]), "shape": np.array([7, 1, 6])}
    path = saved(model(nodes, weights, {"x": (FLOAT, (1, 7, 6))}, {"y": (7, 1, 3)}), tmp_path)
    workspace, x = Workspace.open(str(path)), numbers(3, 7, 6)
    assert not workspace.model.program.loops
    assert workspace.opened.axes.outputs == (1,)
    with torch.no_grad():
        ours = workspace.model(x)
    theirs = np.concatenate([in_runtime(path, x=one[None].numpy())[0] for one in x], axis=1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


# ---- sizes that nobody has said --------------------------------------------------------------------------------------


def test_weights_of_a_graph_with_free_sizes_are_there_to_look_at(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "conv.weight"], ["y"])]
    proto = model(
        nodes,
        {"conv.weight": numbers(5, 3, 3, 3)},
        {"x": (FLOAT, ("n", 3, "height", "width"))},
        {"y": ("n", 5, "a", "b")},
    )
    path = saved(proto, tmp_path)
    weights = open_any(str(path))
    assert [(one.name, one.shape) for one in weights.tensors] == [("conv.weight", (5, 3, 3, 3))]
    wanted = r"x \(n, 3, height, width\) has free sizes .*'m\.npz', x=array\), an array of shape \(N, 3, height, w"
    with pytest.raises(InvalidData, match=wanted):
        Workspace.open(str(path))
    with pytest.raises(InvalidModel, match="is a model of its own"):
        Workspace.open("builtin:iris-mlp", weights=path)


# ---- graphs inside nodes ---------------------------------------------------------------------------------------------


def looping(turns: str) -> onnx.ModelProto:
    """x is multiplied by a matrix of the body as often as said, or while it is small; each state is an output."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "inside"], ["m"]),
            helper.make_node("Add", ["m", "outer"], ["h_out"]),
            helper.make_node("ReduceMax", ["h_out"], ["top"], keepdims=0),
            helper.make_node("Less", ["top", "limit"], ["on_out"]),
            helper.make_node("Identity", ["h_out"], ["row"]),
        ],
        "body",
        [info("i", INT, ()), info("on", TensorProto.BOOL, ()), info("h", FLOAT, None)],
        [info("on_out", TensorProto.BOOL, ()), info("h_out", FLOAT, None), info("row", FLOAT, None)],
        [numpy_helper.from_array(numbers(5, 5).numpy(), "inside")],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Loop", ["many", "", "a"], ["last", "rows"], body=body),
        helper.make_node("MatMul", ["last", "v"], ["y"]),
    ]
    weights = {"w": numbers(6, 5), "v": numbers(5, 3), "outer": numbers(5, seed=5), "limit": np.float32(9.0)}
    weights |= {"many": np.array(3 if turns == "constant" else 100)}
    return model(nodes, weights, {"x": (FLOAT, ("n", 6))}, {"y": ("n", 3), "rows": ("turns", "n", 5)})


@pytest.mark.parametrize("turns", ["constant", "until a condition"])
def test_loops_are_run_and_their_weights_left_alone(turns, tmp_path):
    x = numbers(5, 6, seed=2).numpy()
    path = saved(looping(turns), tmp_path, x=x)
    theirs = in_runtime(path, x=x)
    with torch.no_grad():
        ours = build(read_onnx(path).model)(torch.tensor(x))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    workspace = Workspace.open(str(path))
    assert len(workspace.profile.layers) == 2
    assert "those inside last (Loop), which are read at each of its turns" in " ".join(workspace.opened.notices)
    assert plan_cost(workspace.profile).parameters == 30 + 25 + 15
    small = written(workspace, tmp_path, rank=5)
    assert [node.op_type for node in onnx.load(small).graph.node].count("Loop") == 1
    np.testing.assert_allclose(in_runtime(small, x=x)[0], theirs[0], rtol=1e-4, atol=1e-4)


def sharing(how: str) -> onnx.ModelProto:
    """A matrix w that multiplies x and is read once more, by a graph inside a node; a second one, v, is read once."""
    info = helper.make_tensor_value_info
    inside = {"handed on": "k", "by another name": "alias", "turned": "w", "of another shape": "cube"}.get(how, "w")
    product = helper.make_node("MatMul", ["h", inside], ["h_out"])
    first = {
        "by another name": [helper.make_node("Identity", ["w"], ["alias"])],
        "turned": [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0])],
        "of another shape": [helper.make_node("Reshape", ["w", "cubic"], ["cube"])],
    }.get(how, [])
    first.append(helper.make_node("MatMul", ["x", "t" if how == "turned" else "w"], ["a"]))
    if how == "in a branch":
        product.input[0] = "a"
        taken, other = (
            helper.make_graph([node], "branch", [], [info("h_out", FLOAT, None)])
            for node in (product, helper.make_node("Neg", ["a"], ["h_out"]))
        )
        first += [
            helper.make_node("ReduceSum", ["a"], ["sum"], keepdims=0),
            helper.make_node("Less", ["sum", "limit"], ["small"]),
            helper.make_node("If", ["small"], ["last"], then_branch=taken, else_branch=other),
        ]
    else:
        carried = ["k"] if how == "handed on" else []
        body = helper.make_graph(
            [helper.make_node("Identity", ["on"], ["on_out"]), product]
            + [helper.make_node("Identity", ["k"], ["k_out"]) for _ in carried],
            "body",
            [info("i", INT, ()), info("on", TensorProto.BOOL, ()), info("h", FLOAT, None)]
            + [info(name, FLOAT, (5, 5)) for name in carried],
            [info("on_out", TensorProto.BOOL, ()), info("h_out", FLOAT, None)]
            + [info(f"{name}_out", FLOAT, (5, 5)) for name in carried],
        )
        given, made = ["many", "", "a", *["w" for _ in carried]], ["last", *["same" for _ in carried]]
        first.append(helper.make_node("Loop", given, made, body=body))
    shape = [helper.make_node("Reshape", ["last", "rows"], ["flat"]), helper.make_node("MatMul", ["flat", "v"], ["y"])]
    weights = {"w": numbers(5, 5), "v": numbers(5, 3), "limit": np.float32(0), "many": np.array(3)}
    weights |= {"cubic": np.array([1, 5, 5]), "rows": np.array([-1, 5])}
    return model([*first, *shape], weights, {"x": (FLOAT, ("n", 5))}, {"y": ("n", 3)})


@pytest.mark.parametrize(
    "how", ["handed on", "in a body", "in a branch", "by another name", "turned", "of another shape"]
)
def test_a_weight_that_is_read_inside_a_node_too_counts_once_and_stays(how, tmp_path):
    x = numbers(4, 5, seed=2).numpy()
    path = saved(sharing(how), tmp_path, x=x)
    workspace = Workspace.open(str(path))
    (theirs,) = in_runtime(path, x=x)
    with torch.no_grad():
        np.testing.assert_allclose(workspace.model(torch.tensor(x)), theirs, rtol=1e-5, atol=1e-5)
    cost = plan_cost(workspace.profile)
    assert (cost.parameters, cost.bytes) == (25 + 15, 4 * (25 + 15))
    assert [layer.spec.parameters for layer in workspace.profile.layers] == [15]
    assert workspace.profile.rest.parameters == 25
    reasons = [skipped.reason for skipped in workspace.profile.skipped if skipped.type == "Linear"]
    assert reasons == ["its weight is shared with 'constants': factorising one would untie them and store both"]
    small = written(workspace, tmp_path, rank=3)
    np.testing.assert_allclose(in_runtime(small, x=x)[0], theirs, rtol=1e-4, atol=1e-4)
    stored = {
        tensor.name: np.prod(tensor.dims) for tensor in onnx.load(small).graph.initializer if len(tensor.dims) > 1
    }
    assert stored.pop("w") == 25
    assert sum(stored.values()) == 3 * (5 + 3)


@pytest.mark.parametrize("first", [0, 7])
def test_what_a_branch_multiplies_counts_in_the_mean_over_the_samples(first, tmp_path):
    """Whichever sample comes first: 25 for x, 15 for v, 25 more in the branch for those whose sum is below 0."""
    proto = sharing("in a branch")
    for value, shape in ((proto.graph.input[0], (1, 5)), (proto.graph.output[0], (1, 3))):
        value.CopyFrom(helper.make_tensor_value_info(value.name, FLOAT, shape))
    x = np.roll(numbers(20, 5, seed=3).numpy(), first, axis=0)
    taken = np.mean([(row @ numbers(5, 5).numpy()).sum() < 0 for row in x])
    assert 0.2 < taken < 0.8
    workspace = Workspace.open(str(saved(proto, tmp_path, x=x)))
    assert plan_cost(workspace.profile).multiplies == round(25 + 15 + 25 * taken)


def test_what_a_loop_multiplies_counts_in_the_mean_over_the_samples(tmp_path):
    """Its turns are counted by NumPy: until the largest number is not below the limit."""
    proto = looping("until a condition")
    x_info, (y_info, *_) = proto.graph.input[0], proto.graph.output
    x_info.CopyFrom(helper.make_tensor_value_info("x", FLOAT, (1, 6)))
    y_info.CopyFrom(helper.make_tensor_value_info("y", FLOAT, (1, 3)))
    del proto.graph.output[1]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    (inside,) = (numpy_helper.to_array(t) for t in proto.graph.node[1].attribute[0].g.initializer)
    x, turns = numbers(20, 6, seed=3).numpy(), []
    for row in x:
        h, count = row @ stored["w"], 0
        while count < 100 and (not count or h.max() < stored["limit"]):
            h, count = h @ inside + stored["outer"], count + 1
        turns.append(count)
    assert len(set(turns)) > 1
    workspace = Workspace.open(str(saved(proto, tmp_path, x=x)))
    assert plan_cost(workspace.profile).multiplies == pytest.approx(30 + 15 + 25 * np.mean(turns), abs=0.6)


def test_a_weight_that_stays_is_written_once_after_training(tmp_path):
    from lowrank_core.exports._onnx_surgery import compressed_onnx

    x = numbers(4, 5, seed=2).numpy()
    workspace = Workspace.open(str(saved(sharing("handed on"), tmp_path, x=x)))
    plan = RankPlan.of(workspace.profile.fingerprint, {workspace.profile.layers[0].name: Choice("svd", (2,))})
    small = workspace.compress(plan)
    with torch.no_grad():
        next(small.constants.parameters()).mul_(2)
        ours = small(torch.tensor(x))
    path = tmp_path / "small.onnx"
    path.write_bytes(compressed_onnx(workspace, small, plan).SerializeToString())
    np.testing.assert_allclose(in_runtime(path, x=x)[0], ours, rtol=1e-4, atol=1e-4)
    squares = [tensor.name for tensor in onnx.load(path).graph.initializer if list(tensor.dims) == [5, 5]]
    assert squares == ["w"]


def test_a_weight_used_both_ways_round_counts_once_and_stays(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="there"),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w"], ["y"], name="back", transB=1),
    ]
    x = numbers(4, 6, seed=2).numpy()
    path = saved(model(nodes, {"w": numbers(6, 5)}, {"x": (FLOAT, ("n", 6))}, {"y": ("n", 6)}), tmp_path, x=x)
    workspace = Workspace.open(str(path))
    with torch.no_grad():
        np.testing.assert_allclose(workspace.model(torch.tensor(x)), in_runtime(path, x=x)[0], atol=1e-5)
    assert plan_cost(workspace.profile).parameters == 30
    assert plan_cost(workspace.profile).multiplies == 2 * 30
    assert not workspace.profile.layers
    assert "back (Gemm) is used in a way that is not factorised" in " ".join(workspace.notices)


def test_without_sizes_a_weight_of_several_names_is_listed_once(tmp_path):
    """Two products of one matrix, one of them by way of Identity, and a loop that it is handed to."""
    proto = sharing("handed on")
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", FLOAT, ("n", "width")))
    proto.graph.node.insert(0, helper.make_node("Identity", ["w"], ["alias"]))
    proto.graph.node.insert(1, helper.make_node("MatMul", ["x", "alias"], ["b"], name="twin"))
    proto.graph.node.insert(2, helper.make_node("Add", ["b", "beside"], ["c"]))
    proto.graph.node.insert(3, helper.make_node("Tanh", ["c"], ["unread"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(5, np.float32), "beside"))
    weights = open_any(str(saved(proto, tmp_path)))
    matrices = [tensor.shape for tensor in weights.tensors if len(tensor.shape) > 1]
    assert sorted(matrices) == [(3, 5), (5, 5)]
    assert not any(tensor.name.startswith("constants") for tensor in weights.tensors)


def test_a_scan_goes_both_ways(tmp_path):
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["h", "row"], ["s"]),
            helper.make_node("Tanh", ["s"], ["h_out"]),
            helper.make_node("Mul", ["h_out", "two"], ["out"]),
        ],
        "body",
        [info("h", FLOAT, None), info("row", FLOAT, None)],
        [info("h_out", FLOAT, None), info("out", FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceSum", ["a", "one"], ["start"], keepdims=0),
        helper.make_node(
            "Scan", ["start", "a"], ["last", "y"], body=body, num_scan_inputs=1, scan_input_axes=[1],
            scan_input_directions=[1], scan_output_axes=[1], scan_output_directions=[1],
        ),
    ]  # fmt: skip
    weights = {"w": numbers(6, 4), "one": np.array([1]), "two": np.float32(2)}
    path = saved(model(nodes, weights, {"x": (FLOAT, ("n", 5, 6))}, {"y": ("n", 5, 4), "last": ("n", 4)}), tmp_path)
    x = numbers(3, 5, 6, seed=2).numpy()
    with torch.no_grad():
        ours = build(read_onnx(path).model)(torch.tensor(x))
    for a, b in zip(ours, in_runtime(path, x=x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def endless() -> onnx.ModelProto:
    """A loop whose condition never fails and whose count never comes."""
    proto = looping("until a condition")
    for name, value in (("limit", np.float32(np.inf)), ("many", np.array(2**62))):
        next(i for i in proto.graph.initializer if i.name == name).CopyFrom(numpy_helper.from_array(value, name))
    return proto


def test_a_loop_without_an_end_is_ended(tmp_path, monkeypatch):
    from lowrank_core.graphs import control

    monkeypatch.setattr(control, "MOST_TURNS", 50)
    with pytest.raises(InvalidData, match="loops of the network take more than 50 turns"):
        Workspace.open(str(saved(endless(), tmp_path, x=numbers(5, 6).numpy())))


def test_a_loop_can_be_called_off_between_its_turns(tmp_path):
    network = build(read_onnx(saved(endless(), tmp_path)).model)
    asked = itertools.count()
    with scope(cancelled=lambda: next(asked) > 20), pytest.raises(Cancelled), torch.no_grad():
        network(numbers(1, 6))


def test_what_nothing_can_compute_inside_a_loop_is_named(tmp_path):
    proto = looping("constant")
    body = next(node for node in proto.graph.node if node.op_type == "Loop").attribute[0].g
    body.node.append(helper.make_node("GlobalLpPool", ["h"], ["unused"]))
    with pytest.raises(InvalidModel, match="nothing here can compute GlobalLpPool"):
        build(proto)


# ---- bytes as the file has them --------------------------------------------------------------------------------------


def test_integers_behind_cast_and_mul_count_in_their_own_bytes(tmp_path):
    integers = (10 * numbers(40, 30)).numpy().astype(np.int8)
    nodes = [
        helper.make_node("Cast", ["q"], ["c"], to=1),
        helper.make_node("Mul", ["c", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    weights = {"q": integers, "scale": np.full(30, 0.01, np.float32), "v": numbers(30, 3)}
    path = saved(model(nodes, weights, {"x": (FLOAT, ("n", 40))}, {"y": ("n", 3)}), tmp_path)
    profile = Workspace.open(str(path)).profile
    assert plan_cost(profile).bytes == 40 * 30 + 4 * 30 + 4 * 90
    half = RankPlan.of(profile.fingerprint, {profile.layers[0].name: Choice("svd", (8,))})
    assert plan_cost(profile, half).bytes == 4 * 8 * 70 + 4 * 90  # the factors are floats: more than the file has


def test_a_quantised_file_keeps_its_integers(tmp_path):
    """Dense it is written as large as it was; what is factorised becomes floats, and is counted so."""
    from lowrank_core.exports._onnx_surgery import compressed_onnx

    q, r = ((40 * numbers(*shape)).numpy().astype(np.int8) for shape in ((60, 50), (50, 30)))
    scales = (0.01 + numbers(50, seed=4).abs().numpy() / 10).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1),
        helper.make_node("DequantizeLinear", ["r", "t", "z"], ["v"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    weights = {"q": q, "s": scales, "r": r, "t": np.float32(0.02), "z": np.int8(3)}
    path = saved(model(nodes, weights, {"x": (FLOAT, ("n", 60))}, {"y": ("n", 30)}), tmp_path)
    workspace, x = Workspace.open(str(path)), numbers(4, 60)
    profile = workspace.profile
    assert abs(plan_cost(profile).bytes - (q.size + r.size + 4 * 50)) <= 60
    for rank in (None, 5):
        choices = {} if rank is None else {profile.layers[0].name: Choice("svd", (rank,))}
        plan = RankPlan.of(profile.fingerprint, choices)
        network = workspace.compress(plan)
        small = saved(compressed_onnx(workspace, network, plan), tmp_path)
        with torch.no_grad():
            np.testing.assert_allclose(in_runtime(small, x=x.numpy())[0], network(x), rtol=1e-4, atol=1e-4)
        assert abs(small.stat().st_size - plan_cost(profile, plan).bytes) < 1500
        path.write_bytes(model(nodes, weights, {"x": (FLOAT, ("n", 60))}, {"y": ("n", 30)}).SerializeToString())


@pytest.mark.parametrize(
    ("op", "attributes", "inputs"),
    [
        ("STFT", {}, ["x", "step", "window"]),
        ("Pad", {"mode": "reflect"}, ["x", "pads"]),
        ("Pad", {"mode": "edge"}, ["x", "pads"]),
        ("OneHot", {"axis": 1}, ["i", "depth", "values"]),
    ],
    ids=str,
)
def test_operators_of_front_ends_are_what_onnxruntime_computes(op, attributes, inputs, tmp_path):
    stored = {"step": np.array(4), "window": np.hanning(8).astype(np.float32), "pads": np.array([0, 5, 0, -3])}
    stored |= {"depth": np.array(7), "values": np.float32([-1, 2])}
    weights = {name: stored[name] for name in inputs if name in stored}
    x, shape = {
        "STFT": (numbers(3, 32, 1), ("n", "frames", 5, 2)),
        "Pad": (numbers(3, 32), ("n", 34)),
        "OneHot": (torch.tensor([[0, 6, -2], [3, 3, 1]]), ("n", 7, 3)),
    }[op]
    given = {inputs[0]: (KINDS[x.dtype], ("n", *x.shape[1:]))}
    path = saved(model([helper.make_node(op, inputs, ["y"], **attributes)], weights, given, {"y": shape}), tmp_path)
    with torch.no_grad():
        ours = build(read_onnx(path).model)(x)
    np.testing.assert_allclose(ours, in_runtime(path, **{inputs[0]: x.numpy()})[0], atol=1e-5)
