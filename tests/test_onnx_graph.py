"""Graphs of ONNX as networks: the same outputs as onnxruntime, the same layers and multiplies as the original."""

import re

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.errors import InvalidData, InvalidModel, UnknownModel
from lowrank_core.exports._onnx_surgery import compressed_onnx
from lowrank_core.graphs.exporting import exported_program
from lowrank_core.graphs.onnx_network import build
from lowrank_core.graphs.operators import OPERATORS
from lowrank_core.networks.discover import discover
from lowrank_core.plans.cost import plan_cost
from tests.onnx_networks import NETWORKS, graph, in_runtime, largest_difference, network, numbers, saved, written

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=NETWORKS)
def opened(request, tmp_path_factory):
    """(name, path, workspace, original)."""
    path = written(tmp_path_factory.mktemp("onnx"), request.param)
    return request.param, path, Workspace.open(str(path)), network(request.param)


def test_outputs_are_those_of_onnxruntime(opened):
    _, path, workspace, (_, inputs) = opened
    for batch in (1, 2, 7):
        assert largest_difference(path, workspace.model, inputs[:batch]) < TOLERANCE
    assert not workspace.model.program.slow


def test_layers_and_costs_are_those_of_the_original(opened):
    name, _, workspace, (model, inputs) = opened
    original = discover(model, inputs[:2])
    if name == "attention":  # q, k and v are one product in the graph
        qkv = {f"encoder.self_attn.in_proj.{part}" for part in "qkv"}
        wanted = {layer.name: layer.spec.weight_shape for layer in original.layers if layer.name not in qkv}
        wanted["encoder.self_attn.in_proj"] = (48, 16)
    else:
        wanted = {layer.name: layer.spec.weight_shape for layer in original.layers}
    assert {layer.name: layer.spec.weight_shape for layer in workspace.profile.layers} == wanted
    assert plan_cost(workspace.profile).multiplies == plan_cost(original).multiplies
    if name != "recurrent":
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                workspace.model(inputs[:2])
            finally:
                torch.backends.mha.set_fastpath_enabled(True)
        assert counter.get_total_flops() // 4 == plan_cost(workspace.profile).multiplies


def test_full_rank_is_the_network(opened):
    _, _, workspace, (_, inputs) = opened
    plan = RankPlan.of(
        workspace.profile.fingerprint,
        {
            layer.name: Choice(layer.methods[0].name, layer.methods[0].max_rank(layer.spec))
            for layer in workspace.profile.layers
        },
    )
    with torch.no_grad():
        torch.testing.assert_close(workspace.compress(plan)(inputs), workspace.model(inputs), rtol=1e-4, atol=1e-5)


def test_graphs_are_traced_with_a_free_batch(opened):
    name, _, workspace, (_, inputs) = opened
    if name == "recurrent":
        return  # its steps take PyTorch ten seconds
    program = exported_program(workspace.model, inputs[:2])
    with torch.no_grad():
        torch.testing.assert_close(program.module()(inputs[:5]), workspace.model(inputs[:5]))


def test_the_graph_is_not_copied_with_the_network(opened):
    _, _, workspace, _ = opened
    assert workspace.compress(RankPlan(workspace.profile.fingerprint)).program is workspace.model.program


# ---- single operators ------------------------------------------------------------------------------------------------

X = numbers(2, 4, 6, 5)
ROW = {"axes": torch.tensor([2, -1]), "to": torch.tensor([2, 20, -1]), "half": torch.tensor(0.5)}
ROW |= {"pads": torch.tensor([0, 0, 1, 0, 0, 0, 2, 1]), "scale": 1 + 0.1 * numbers(4), "shift": numbers(4, seed=1)}
ROW |= {"begin": torch.tensor([5, -1]), "end": torch.tensor([-9, -6]), "back": torch.tensor([-2, -1])}
ROW |= {"parts": torch.tensor([1, 3]), "index": torch.tensor([[0, -1], [2, 1]]), "times": torch.tensor([1, 2, 1, 3])}
ROW |= {"square": torch.tensor([0, 2, 6, 5]), "slope": numbers(4, 1, 1).abs(), "one": torch.tensor([1])}
ROW |= {"w": numbers(3, 4, 3, 2), "b": numbers(3), "mean": numbers(4, seed=2), "var": numbers(4, seed=3).abs()}
ROW |= {"u": numbers(4, 3, 3, 3), "table": numbers(6, 5), "left": numbers(7, 6), "batch": numbers(4, 5, 3)}
ROW |= {"row": numbers(5), "wide": torch.tensor([1.0, 1.0, 2.0, 3.0]), "none": torch.tensor([], dtype=torch.int64)}
ROW |= {"deep": torch.tensor([[[[0, -1], [2, 1]]]]), "news": numbers(1, 1, 2, 2, seed=5)}
ROW |= {"pairs": torch.tensor([[0, 1], [-1, 2]]), "rows": numbers(2, *X.shape[2:], seed=6)}

CASES: list[tuple[str, list[str], dict]] = [
    *((op, ["x"], {}) for op in ("Abs", "Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Sin", "Cos", "Floor", "Ceil")),
    *((op, ["x"], {}) for op in ("Softplus", "Softsign", "HardSwish", "Round", "Sign", "Identity", "Flatten", "Elu")),
    *((op, ["x"], {}) for op in ("GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "Selu", "Celu", "LogSoftmax")),
    *((op, ["x", "half"], {}) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max")),
    ("LeakyRelu", ["x"], {"alpha": 0.3}),
    ("ThresholdedRelu", ["x"], {"alpha": 0.2}),
    ("PRelu", ["x", "slope"], {}),
    ("Clip", ["x", "", "half"], {}),
    ("Softmax", ["x"], {"axis": 1}),
    ("Flatten", ["x"], {"axis": -2}),
    ("Transpose", ["x"], {}),
    ("Transpose", ["x"], {"perm": [0, 2, 3, 1]}),
    ("Reshape", ["x", "to"], {}),
    ("Slice", ["x", "begin", "end", "axes", "back"], {}),
    ("Gather", ["x", "index"], {"axis": 1}),
    ("Tile", ["x", "times"], {}),
    ("Pad", ["x", "pads", "half"], {}),
    ("Pad", ["x", "pads"], {"mode": "edge"}),
    ("Pad", ["x", "pads"], {"mode": "reflect"}),
    ("ReduceSum", ["x", "axes"], {"keepdims": 0}),
    ("ReduceSum", ["x"], {}),
    ("ReduceMean", ["x"], {"axes": [1, -1]}),
    ("ReduceL2", ["x"], {"axes": [1], "keepdims": 0}),
    ("ReduceMax", ["x"], {"axes": [-1]}),
    ("ReduceLogSumExp", ["x"], {"axes": [1]}),
    ("ReduceProd", ["x"], {"axes": [1, 2]}),
    ("ScatterElements", ["x", "deep", "news"], {"axis": 1}),
    ("ScatterElements", ["x", "deep", "news"], {"axis": -1, "reduction": "add"}),
    ("ScatterElements", ["x", "deep", "news"], {"axis": 2, "reduction": "mul"}),
    ("ScatterElements", ["x", "deep", "news"], {"axis": 2, "reduction": "max"}),
    ("ScatterND", ["x", "pairs", "rows"], {}),
    ("ScatterND", ["x", "pairs", "rows"], {"reduction": "add"}),
    ("ScatterND", ["x", "pairs", "rows"], {"reduction": "min"}),
    ("DepthToSpace", ["x"], {"blocksize": 2}),
    ("DepthToSpace", ["x"], {"blocksize": 2, "mode": "CRD"}),
    ("MaxPool", ["x"], {"kernel_shape": [3, 2], "pads": [0, 1, 1, 0], "strides": [2, 1]}),
    ("MaxPool", ["x"], {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("MaxPool", ["x"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", ["x"], {"kernel_shape": [3, 2], "pads": [0, 1, 1, 0], "strides": [2, 1]}),
    ("AveragePool", ["x"], {"kernel_shape": [3, 2], "pads": [0, 1, 1, 0], "count_include_pad": 1}),
    ("AveragePool", ["x"], {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", ["x", "w", "b"], {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    ("Conv", ["x", "w"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", ["x", "w", "b"], {"auto_pad": "SAME_LOWER"}),
    ("Conv", ["x", "w", "b"], {"auto_pad": "VALID", "dilations": [2, 1]}),
    ("ConvTranspose", ["x", "u", "b"], {"pads": [2, 1, 1, 0], "strides": [2, 2]}),
    ("ConvTranspose", ["x", "u"], {"pads": [0, 0, 1, 2], "strides": [1, 2]}),
    ("ConvTranspose", ["x", "u"], {"output_padding": [1, 0], "strides": [2, 1]}),
    ("ConvTranspose", ["x", "u"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("BatchNormalization", ["x", "scale", "shift", "mean", "var"], {"epsilon": 1e-3}),
    ("InstanceNormalization", ["x", "scale", "shift"], {}),
    ("LayerNormalization", ["x", "row", "row"], {}),
    ("LayerNormalization", ["x", "row"], {"axis": 3}),
    ("MatMul", ["x", "batch"], {}),
    ("MatMul", ["left", "x"], {}),
    ("Resize", ["x", "", "wide"], {"mode": "nearest"}),
    ("Resize", ["x", "", "wide"], {"mode": "linear"}),
    ("Resize", ["x", "", "wide"], {"mode": "cubic"}),
    ("Hardmax", ["x"], {}),
    ("Shrink", ["x"], {"lambd": 0.3}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES, ids=lambda v: v if isinstance(v, str) else None)
def test_an_operator_is_what_onnxruntime_computes(op, inputs, attributes):
    weights = {name: ROW[name] for name in inputs if name in ROW}
    proto = graph([helper.make_node(op, inputs, ["y"], **attributes)], weights, ("n", *X.shape[1:]))
    assert largest_difference(proto, build(proto), X) < TOLERANCE


def test_every_operator_takes_what_onnx_says():
    """Attributes by their names in the standard, and no more inputs than it has."""
    for name, operator in OPERATORS.items():
        schema = onnx.defs.get_schema(name, 23)
        older = {"axes"} if name.startswith("Reduce") else {"Dropout": {"seed"}, "DFT": {"axis"}}.get(name, set())
        assert operator.attributes <= {*schema.attributes, *older, "round_mode"}, name
        assert operator.inputs <= schema.max_input or schema.max_input > 1000, name


def test_what_has_no_function_is_computed_by_the_reference_and_said(tmp_path):
    nodes = [helper.make_node("Hardmax", ["x"], ["z"]), helper.make_node("Conv", ["z", "w"], ["y"], name="stem")]
    path = saved(graph(nodes, {"w": ROW["w"]}, ("n", 4, 6, 5)), tmp_path / "m.onnx", X)
    workspace = Workspace.open(str(path))
    assert [layer.name for layer in workspace.profile.layers] == ["stem"]
    assert any(notice.startswith("Hardmax: computed by ONNX's own reference") for notice in workspace.notices)


def test_an_operator_that_nothing_can_compute_is_named():
    with pytest.raises(InvalidModel, match="nothing here can compute GlobalLpPool"):
        build(graph([helper.make_node("GlobalLpPool", ["x"], ["y"], name="pool")], {}, ("n", 4, 6, 5)))


def test_a_convolution_of_one_axis():
    node = helper.make_node("Conv", ["x", "c.weight"], ["y"], pads=[2, 2], dilations=[2])
    proto = graph([node], {"c.weight": numbers(5, 3, 3)}, ("n", 3, 9))
    model = build(proto)
    assert isinstance(model.c, nn.Conv1d)
    assert largest_difference(proto, model, numbers(2, 3, 9)) < TOLERANCE


def test_constants_are_folded_and_sizes_are_numbers():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "first"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("Mul", ["w", "two"], ["w2"]),
        helper.make_node("MatMul", ["flat", "w2"], ["y"], name="fc"),
    ]
    weights = {"zero": torch.tensor(0), "first": torch.tensor([0]), "rest": torch.tensor([-1])}
    proto = graph(nodes, weights | {"w": numbers(120, 3), "two": torch.tensor(2.0)}, ("n", 4, 6, 5))
    model = build(proto)
    assert isinstance(model.get_submodule("fc"), nn.Linear)
    assert largest_difference(proto, model, X) < TOLERANCE
    assert [step.op for step in model.program.steps] == ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape", "MatMul"]
    assert not list(model.constants.buffers())


# ---- layers ----------------------------------------------------------------------------------------------------------


def linear(nodes: list[onnx.NodeProto], weights: dict[str, Tensor]) -> nn.Module:
    proto = graph(nodes, weights, ("n", 6))
    model = build(proto)
    assert largest_difference(proto, model, numbers(3, 6)) < TOLERANCE
    return model


def test_a_product_takes_the_bias_that_is_added_to_it_alone():
    nodes = [helper.make_node("MatMul", ["x", "a.w"], ["p"]), helper.make_node("Add", ["b", "p"], ["y"])]
    weights = {"a.w": numbers(6, 4), "b": numbers(4)}
    assert build(graph(nodes, weights, ("n", 6))).matmul.bias is not None
    linear(nodes, weights)
    twice = [*nodes[:1], helper.make_node("Add", ["p", "b"], ["q"]), helper.make_node("Mul", ["p", "q"], ["y"])]
    assert linear(twice, weights).matmul.bias is None


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("flip", [0, 1])
def test_a_gemm_is_a_linear_layer_unless_it_scales(alpha, flip):
    weights = {"fc.weight": numbers(4, 6) if flip else numbers(6, 4), "fc.bias": numbers(1)}
    node = helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], transB=flip, alpha=alpha, name="g")
    model = linear([node], weights)
    assert hasattr(model, "fc") == (alpha == 1.0)
    assert ("g (Gemm) is used in a way that is not factorised" in model.program.aside) == (alpha != 1.0)


def test_a_weight_used_twice_in_one_way_is_one_layer_called_twice():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    profile = discover(linear(nodes, {"w": numbers(6, 6)}), numbers(2, 6))
    (layer,) = profile.layers
    assert layer.in_sizes == ((), ())


def test_a_weight_used_in_two_ways_is_one_layer():
    nodes = [
        helper.make_node("Gather", ["emb.weight", "x"], ["e"]),
        helper.make_node("Transpose", ["emb.weight"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "t"], ["y"], name="head"),
    ]
    proto = graph(nodes, {"emb.weight": numbers(30, 8)}, ("n", 5), kind=TensorProto.INT64)
    tokens = torch.randint(-30, 30, (3, 5))
    model = build(proto)
    assert largest_difference(proto, model, tokens) < TOLERANCE
    assert model.emb.weight is model.emb_1.weight
    (layer,) = discover(model, tokens).layers
    assert [layer.name, *(other.name for other in layer.tied)] == ["emb", "emb_1"]


def test_a_weight_that_is_also_computed_with_is_left_alone_with_the_reason():
    nodes = [
        helper.make_node("Gemm", ["x", "a.weight"], ["h"], transB=1),
        helper.make_node("Mul", ["a.weight", "h"], ["y"]),
    ]
    proto = graph(nodes, {"a.weight": numbers(6, 6)}, (6, 6))
    model = build(proto)
    assert largest_difference(proto, model, numbers(6, 6)) < TOLERANCE
    profile = discover(model, numbers(6, 6))
    assert not profile.layers
    assert "shared with 'constants'" in {s.name: s.reason for s in profile.skipped}["a"]


def test_equal_biases_that_are_stored_once_are_not_tied():
    nodes = [
        helper.make_node("Gemm", ["x", "a.weight", "zero"], ["h"]),
        helper.make_node("Gemm", ["h", "b.weight", "zero"], ["y"]),
    ]
    weights = {"a.weight": numbers(6, 4), "b.weight": numbers(4, 4), "zero": torch.zeros(4)}
    assert [layer.name for layer in discover(linear(nodes, weights), numbers(2, 6)).layers] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("train", "train_"),
        ("a//b.weight", "a.b"),
        ("1/2", "1.2"),
        ("program", "program_"),
        ("conv.forward", "conv.forward_"),
        ("net/relu/Relu;net/conv/Conv2D;net/conv", "net.relu.Relu"),
    ],
)
def test_names_become_paths_that_a_module_can_have(name, module):
    weights = {f"{name.removesuffix('.weight')}.weight": numbers(6, 4)}
    (initializer,) = weights
    model = linear([helper.make_node("MatMul", ["x", initializer], ["y"])], weights)
    assert isinstance(model.get_submodule(module), nn.Linear)


def test_a_layer_inside_a_layer_gets_a_name_of_its_own():
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["h"]),
        helper.make_node("MatMul", ["h", "a.b.weight"], ["y"]),
    ]
    model = linear(nodes, {"a.weight": numbers(6, 4), "a.b.weight": numbers(4, 4)})
    assert [layer.name for layer in discover(model, numbers(2, 6)).layers] == ["a", "a_b_1"]


# ---- sources ---------------------------------------------------------------------------------------------------------


def conv_file(folder, shape, inputs=None):
    node = helper.make_node("Conv", ["x", "w"], ["z"])
    nodes = [
        node,
        helper.make_node("Reshape", ["z", "to"], ["f"]),
        helper.make_node("MatMul", ["f", "fc.weight"], ["y"]),
    ]
    to = torch.tensor([1, 60] if shape[0] == 1 else [-1, 60])
    weights = {"w": ROW["w"], "to": to, "fc.weight": numbers(60, 3)}
    return saved(graph(nodes, weights, shape), folder / "m.onnx", inputs)


def test_a_fixed_batch_is_freed_and_said(tmp_path):
    path = conv_file(tmp_path, (1, 4, 6, 6))
    workspace = Workspace.open(str(path))
    assert any(notice.startswith("The file fixes its batch at 1") for notice in workspace.notices)
    inputs = numbers(3, 4, 6, 6)
    with torch.no_grad():
        ours = workspace.model(inputs)
    theirs = torch.cat([in_runtime(path, inputs[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_network_that_mixes_its_samples_is_refused(tmp_path):
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["s"]), helper.make_node("MatMul", ["s", "w"], ["y"])]
    weights = {"axes": torch.tensor([0]), "w": numbers(6, 4)}
    path = saved(graph(nodes, weights, (2, 6)), tmp_path / "m.onnx")
    with pytest.raises(InvalidModel, match="made for a batch of 2 and gives something else"):
        Workspace.open(str(path))


def test_without_data_the_inputs_are_random_and_the_score_is_agreement(tmp_path):
    path = conv_file(tmp_path, ("n", 4, 6, 6))
    workspace, again = (Workspace.open(str(path)) for _ in range(2))
    assert workspace.metric.label_free
    assert any("256 random ones" in notice and "m.npz" in notice for notice in workspace.notices)
    assert len(workspace.reference) == 256
    assert torch.equal(workspace.calibration.inputs, again.calibration.inputs)


def test_tokens_are_drawn_from_the_table_they_are_looked_up_in(tmp_path):
    node = helper.make_node("Gather", ["t.weight", "x"], ["y"])
    path = saved(graph([node], {"t.weight": numbers(9, 4)}, ("n", 5), kind=TensorProto.INT64), tmp_path / "m.onnx")
    inputs = Workspace.open(str(path)).calibration_pool.inputs
    assert (int(inputs.min()), int(inputs.max())) == (0, 8)


def test_free_sizes_want_data(tmp_path):
    with pytest.raises(InvalidData, match=r"the input x \(n, 4, h, 6\) has free sizes besides its batch; save inputs"):
        Workspace.open(str(conv_file(tmp_path, ("n", 4, "h", 6))))
    assert len(Workspace.open(str(conv_file(tmp_path, ("n", 4, "h", 6), numbers(5, 4, 6, 6)))).reference) == 5


def test_data_of_another_shape_are_refused(tmp_path):
    with pytest.raises(InvalidData, match=r"the network takes x \(n, 4, 6, 6\), but got \(5, 4, 6, 7\)"):
        Workspace.open(str(conv_file(tmp_path, ("n", 4, 6, 6), numbers(5, 4, 6, 7))))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UnknownModel, match="there is no file"):
        Workspace.open(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("use", ["one matrix each", "several matrices, turned round first", "added"])
def test_weights_that_are_no_layer_count_all_the_same(use, tmp_path):
    """Products with another matrix for each place; a table that is added."""
    weights = {"w": numbers(12, 8) if use == "added" else numbers(12, 8, 8), "v": numbers(8, 8)}
    turned = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["x", "axis"], ["u"]),
        helper.make_node("MatMul", ["u", "t"], ["p"], name="m"),
        helper.make_node("Squeeze", ["p", "axis"], ["a"]),
    ]
    start = {
        "one matrix each": [helper.make_node("Einsum", ["x", "w"], ["a"], name="m", equation="abc,bcd->abd")],
        "several matrices, turned round first": turned,
        "added": [helper.make_node("Add", ["x", "w"], ["a"])],
    }[use]
    nodes = [*start, helper.make_node("Relu", ["a"], ["b"]), helper.make_node("MatMul", ["b", "v"], ["y"])]
    stored = weights | {"axis": torch.tensor([2])}
    path = saved(graph(nodes, stored, ("n", 12, 8), answer=("n", 12, 8)), tmp_path / "m.onnx", numbers(4, 12, 8))
    workspace = Workspace.open(str(path))
    cost = plan_cost(workspace.profile)
    assert cost.parameters == sum(value.numel() for value in weights.values())
    assert cost.bytes == 4 * cost.parameters
    aside = ", ".join(workspace.model.program.aside)
    assert bool(re.match(r"m \((Einsum|MatMul)\) is used in a way that is not factorised", aside)) == (use != "added")
    assert [skipped.name for skipped in workspace.profile.skipped] == ["constants"]
    plan = RankPlan.of(workspace.profile.fingerprint, {workspace.profile.layers[0].name: Choice("svd", (2,))})
    small = workspace.compress(plan)
    with torch.no_grad():
        next(small.constants.parameters()).mul_(2)  # as training of everything does
    assert largest_difference(compressed_onnx(workspace, small, plan), small, numbers(3, 12, 8)) < TOLERANCE
