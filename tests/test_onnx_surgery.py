"""Compressed graphs of ONNX: what the compressed network computes, and nothing else changed."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import helper, numpy_helper

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.commands import cli
from lowrank_core.errors import InvalidFile
from lowrank_core.exports._onnx_surgery import came_from_onnx, compressed_onnx
from lowrank_core.graphs import recurrent
from lowrank_core.plans.cost import with_free_ranks
from tests.onnx_networks import exported, graph, largest_difference, network, numbers, saved, written

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 2e-5


def half(workspace, names=None, method=None):
    """The plan that keeps half of the ranks of all layers that can be written, by their default methods."""
    return RankPlan.of(
        workspace.profile.fingerprint,
        {
            layer.name: Choice(name, tuple(max(1, n // 2) for n in chosen.max_rank(layer.spec)))
            for layer in workspace.profile.layers
            for name, chosen in [next((m.name, m) for m in layer.methods if method in (None, m.name))]
            if not layer.partial and (names is None or layer.name in names)
        },
    )


@pytest.fixture(scope="module", params=["mlp", "residual", "odd", "attention", "recurrent"])
def opened(request, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("onnx"), request.param)
    return path, Workspace.open(str(path)), network(request.param)[1]


@pytest.mark.parametrize("corrected", [False, True])
def test_it_runs_and_gives_the_compressed_networks_outputs(opened, corrected):
    _, workspace, inputs = opened
    plan = half(workspace)
    model = workspace.compress(plan, workspace.correction if corrected else None)
    proto = compressed_onnx(workspace, model, plan)
    for batch in (1, 2, 7):
        assert largest_difference(proto, model, inputs[:batch]) < TOLERANCE
    with torch.no_grad():
        assert not torch.allclose(model(inputs), workspace.model(inputs), atol=1e-3)


def test_nothing_else_changes(opened):
    path, workspace, _ = opened
    plan = half(workspace)
    proto, original = (
        compressed_onnx(workspace, workspace.compress(plan), plan, {"lowrank_plan": "{}"}),
        onnx.load(path),
    )
    replaced = {output for site in workspace.model.program.sites if plan.get(site.module) for output in site.nodes}
    new = [node for node in proto.graph.node if node not in original.graph.node]
    used = {name for node in proto.graph.node for name in node.input} | {value.name for value in proto.graph.output}
    kept = [node for node in original.graph.node if node.output[0] not in replaced and {*node.output} & used]
    assert kept == [node for node in proto.graph.node if node not in new]
    assert {name for node in new for name in node.output} >= {
        site.output for site in workspace.model.program.sites if plan.get(site.module)
    }
    before, after = ({tensor.name: tensor for tensor in p.graph.initializer} for p in (original, proto))
    assert {name: value for name, value in before.items() if name in used} == {
        name: after[name] for name in before.keys() & after.keys()
    }
    assert after.keys() <= used | (before.keys() - {n for node in original.graph.node for n in node.input})
    for field in ("opset_import", "ir_version", "producer_name", "producer_version", "domain"):
        assert getattr(proto, field) == getattr(original, field)
    assert (proto.graph.input, proto.graph.output) == (original.graph.input, original.graph.output)
    props = {entry.key: entry.value for entry in proto.metadata_props}
    assert props == {entry.key: entry.value for entry in original.metadata_props} | {"lowrank_plan": "{}"}


def test_a_plan_of_nothing_is_the_file(opened):
    path, workspace, _ = opened
    empty = RankPlan(workspace.profile.fingerprint)
    assert compressed_onnx(workspace, workspace.compress(empty), empty) == onnx.load(path)


def test_an_offset_goes_into_the_batchnorm_that_follows(tmp_path):
    workspace = Workspace.open(str(written(tmp_path, "residual")))
    plan = half(workspace, ["conv1"])
    model = workspace.compress(plan, workspace.correction)
    original, proto = exported("residual"), compressed_onnx(workspace, model, plan)
    before, after = ({t.name: numpy_helper.to_array(t) for t in p.graph.initializer} for p in (original, proto))
    changed = [name for name in before.keys() & after.keys() if not np.array_equal(before[name], after[name])]
    assert changed == ["bn1.running_mean"]
    np.testing.assert_array_equal(after["bn1.running_mean"], model.bn1.running_mean)


@pytest.mark.parametrize(
    ("method", "free"),
    [("svd", False), ("svd", True), ("spatial_svd", False), ("tucker2", False), ("tucker2", True), ("cp3", False)],
)
@pytest.mark.parametrize(
    "window",
    [
        {"pads": [0, 1, 2, 0], "strides": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "dilations": [2, 1]},
        {"pads": [1, 2, 1, 2], "dilations": [1, 2]},
    ],
    ids=["asymmetric", "same-strided", "same-dilated", "symmetric"],
)
def test_every_window_and_decomposition(method, free, window, tmp_path):
    nodes = [helper.make_node("Conv", ["x", "c.weight", "c.bias"], ["y"], **window)]
    weights = {"c.weight": numbers(8, 6, 3, 4) / 8, "c.bias": numbers(8)}
    path = saved(graph(nodes, weights, ("n", 6, 9, 8)), tmp_path / "m.onnx", numbers(16, 6, 9, 8))
    workspace = Workspace.open(str(path))
    plan = half(workspace, method=method)
    plan = with_free_ranks(plan) if free else plan
    model = workspace.compress(plan)
    assert largest_difference(compressed_onnx(workspace, model, plan), model, numbers(3, 6, 9, 8)) < TOLERANCE


def test_a_layer_at_two_places_is_replaced_at_both(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    path = saved(graph(nodes, {"w": numbers(6, 6)}, ("n", 6)), tmp_path / "m.onnx", numbers(16, 6))
    workspace = Workspace.open(str(path))
    plan = half(workspace)
    model = workspace.compress(plan)
    proto = compressed_onnx(workspace, model, plan)
    assert [len(proto.graph.node), len(proto.graph.initializer)] == [4, 2]
    assert largest_difference(proto, model, numbers(3, 6)) < TOLERANCE


@pytest.mark.parametrize("name", ["residual", "recurrent", "attention"])
def test_trained_weights_of_layers_that_stay_are_written(name, tmp_path):
    workspace = Workspace.open(str(written(tmp_path, name)))
    plan = half(workspace, ["fc" if name != "attention" else "head"])
    model = workspace.compress(plan)
    with torch.no_grad():
        statistics = [value for name, value in model.named_buffers() if "running" in name]
        for number, value in enumerate([*model.parameters(), *statistics]):
            value.mul_(1 + 0.01 * number)
    assert largest_difference(compressed_onnx(workspace, model, plan), model, network(name)[1]) < TOLERANCE


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("gemm", [False, True])
def test_factors_that_a_table_and_its_head_share_are_stored_once(gemm, free, tmp_path):
    head = [
        helper.make_node("Gather", ["emb.weight", "x"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axis"], ["s"], keepdims=0),
        helper.make_node("Transpose", ["emb.weight"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["s", "t"], ["y"]),
    ]
    if gemm:
        head[2:] = [helper.make_node("Gemm", ["s", "emb.weight", "head.bias"], ["y"], transB=1)]
    weights = {"emb.weight": numbers(30, 8), "axis": torch.tensor([1]), "head.bias": numbers(30)}
    tokens = torch.randint(30, (16, 5), generator=torch.Generator().manual_seed(0))
    proto = graph(head, weights, ("n", 5), kind=onnx.TensorProto.INT64)
    workspace = Workspace.open(str(saved(proto, tmp_path / "m.onnx", tokens)))
    plan = with_free_ranks(half(workspace)) if free else half(workspace)
    model = workspace.compress(plan)
    small = compressed_onnx(workspace, model, plan)
    assert largest_difference(small, model, tokens) < TOLERANCE
    stored = sorted(tuple(tensor.dims) for tensor in small.graph.initializer if len(tensor.dims) == 2)
    assert stored == [(4, 4), (30, 4)] if free else [(8, 4), (30, 4)]


def test_names_that_are_taken_are_not_used_again(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "fc.weight"], ["h"], name="fc.0"),
        helper.make_node("Mul", ["h", "fc.0.weight"], ["h.0"]),
        helper.make_node("MatMul", ["h.0", "head.weight"], ["y"]),
    ]
    weights = {"fc.weight": numbers(6, 8), "fc.0.weight": numbers(8), "head.weight": numbers(8, 4)}
    path = saved(graph(nodes, weights, ("n", 6)), tmp_path / "m.onnx", numbers(16, 6))
    workspace = Workspace.open(str(path))
    plan = half(workspace)
    model = workspace.compress(plan)
    assert largest_difference(compressed_onnx(workspace, model, plan), model, numbers(3, 6)) < TOLERANCE


@pytest.mark.parametrize("loops", [False, True], ids=["nodes", "loops"])
def test_weights_inside_recurrent_nodes_are_factorised_in_their_place(tmp_path, monkeypatch, loops):
    """One way of the LSTM, both sides of the GRU; at lengths other than the one that the file was written with."""
    workspace = Workspace.open(str(written(tmp_path, "recurrent")))
    if loops:
        monkeypatch.setattr(recurrent, "SCAN_PAYS", dict.fromkeys(recurrent.SCAN_PAYS, 0))
    choices = {
        "lstm.weight_ih_l0": Choice("svd", (2,)),
        "lstm.weight_hh_l0_reverse": Choice("gate_tucker", (2, 3)),
        "gru.weight_ih_l0": Choice("svd", (3,)),
        "gru.weight_hh_l0": Choice("svd", (2,)),
    }
    plan = RankPlan.of(workspace.profile.fingerprint, choices)
    model = workspace.compress(plan)
    small = compressed_onnx(workspace, model, plan)
    names = Counter(node.op_type for node in small.graph.node)
    assert (names["LSTM"], names["GRU"], names["Scan"]) == ((0, 0, 3) if loops else (2, 1, 0))
    for batch in (1, 3):
        assert largest_difference(small, model, numbers(batch, 6, 5)) < TOLERANCE


def test_a_file_that_has_changed_is_refused(tmp_path):
    path = written(tmp_path, "mlp")
    workspace = Workspace.open(str(path))
    proto = onnx.load(path)
    proto.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(proto.graph.initializer[0]) * 2, proto.graph.initializer[0].name)
    )
    onnx.save(proto, path)
    plan = half(workspace)
    with pytest.raises(InvalidFile, match="has changed since it was opened"):
        compressed_onnx(workspace, workspace.compress(plan), plan)


def test_only_networks_from_onnx_are_written_this_way():
    assert not came_from_onnx(Workspace.open("builtin:iris-mlp"))


def test_the_command_line_takes_a_file(tmp_path):
    path = written(tmp_path, "mlp")
    plan = tmp_path / "plan.json"
    plan.write_text(half(Workspace.open(str(path))).to_json(model_name="mlp", correction={}, provenance={}))
    told = {}
    for command in (["layers"], ["cost", "--plan", str(plan)], ["evaluate", "--plan", str(plan)], ["spectra"]):
        done = CliRunner().invoke(cli, [command[0], str(path), *command[1:], "--json"])
        assert done.exit_code == 0, done.output
        told[command[0]] = json.loads(done.stdout)
    assert [layer["name"] for layer in told["layers"]["layers"]] == ["0", "2", "4"]
    assert told["evaluate"]["metric"] == "agreement with the dense network"
    out = tmp_path / "small.safetensors"
    done = CliRunner().invoke(cli, ["apply", str(path), "--plan", str(plan), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["max_abs_diff"] == 0
