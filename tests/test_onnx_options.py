"""ONNX as tools want it: one batch, one opset, int8 per channel or per weight, and factors refitted for int8."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.commands import cli
from lowrank_core.compression.precision import Int8, Storage
from lowrank_core.compression.quantised import weight_as_int8
from lowrank_core.errors import InvalidModel, InvalidSettings
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.exports.onnx import quantised
from lowrank_core.graphs.exporting import OnnxNetwork, exported_program, onnx_program
from lowrank_core.graphs.onnx_forms import at_opset, at_sizes, checked, opset_of, symbolic
from lowrank_core.layers.data import call, run
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.scoring.scores import final_score

MODEL = "builtin:iris-mlp"


@pytest.fixture(scope="module")
def iris() -> Workspace:
    return Workspace.open(MODEL)


def compressed(workspace: Workspace) -> Compressed:
    plan = uniform_plan(workspace.profile, 0.9)
    return Compressed(workspace.compress(plan), plan)


@pytest.fixture(scope="module")
def written(iris: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With every size free, in the exporter's own opset."""
    path = tmp_path_factory.mktemp("onnx") / "iris.onnx"
    EXPORTS["onnx"].write(iris, compressed(iris), path)
    return path


@pytest.mark.slow
def test_a_batch_fixes_every_size_and_an_opset_is_kept(iris: Workspace, written: Path, tmp_path: Path) -> None:
    free = onnx.load(written)
    assert "input" in symbolic(free)
    asked = Storage(batch=3, opset=15)
    given = compressed(iris).stored(iris, asked)
    found = EXPORTS["onnx"].write(iris, given, tmp_path / "fixed.onnx")
    assert found.verdict == "same"  # 64, 1, 2 and 7 samples, three at a time
    fixed = onnx.load(tmp_path / "fixed.onnx")
    assert symbolic(fixed) == []
    assert [size.dim_value for size in fixed.graph.input[0].type.tensor_type.shape.dim] == [3, 4]
    assert (opset_of(fixed), [each.domain for each in fixed.opset_import]) == (15, [""])
    assert fixed.ir_version < free.ir_version  # who knows opset 15 alone need not know newer files
    (plan,) = [json.loads(entry.value) for entry in fixed.metadata_props if entry.key == "lowrank_plan"]
    assert plan["provenance"]["storage"] == {"batch": 3, "opset": 15}


def test_an_old_opset_whose_operators_differ_by_types_alone(iris: Workspace, written: Path) -> None:
    """onnx's own converter knows no way from Relu of opset 14 to that of 13."""
    old = checked(at_opset(onnx.load(written), 13))
    assert opset_of(old) == 13
    inputs = iris.opened.example_inputs
    answers = [
        list(call(OnnxNetwork(proto.SerializeToString(), ("output",)), inputs).values())
        for proto in (onnx.load(written), old)
    ]
    assert torch.equal(answers[0][0], answers[1][0])


@pytest.mark.slow
def test_a_network_from_an_onnx_file_takes_them_too(written: Path, tmp_path: Path) -> None:
    opened = Workspace.open(str(written))
    plan = RankPlan(opened.profile.fingerprint)
    given = Compressed(opened.model, plan).stored(opened, Storage("int8", int8="per-tensor", batch=2, opset=17))
    EXPORTS["onnx"].write(opened, given, tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx")
    assert (symbolic(again), opset_of(again)) == ([], 17)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in again.graph.node}
    fixed = Workspace.open(str(tmp_path / "again.onnx"))
    other = Compressed(fixed.model, RankPlan(fixed.profile.fingerprint), storage=Storage(batch=5))
    with pytest.raises(InvalidModel, match=r"own file takes 2 samples at a time; give that --batch"):
        EXPORTS["onnx"].write(fixed, other, tmp_path / "five.onnx")
    assert not (tmp_path / "five.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("int8", ["per-channel", "per-tensor"])
def test_int8_has_a_scale_for_each_channel_or_one(iris: Workspace, int8: Int8, tmp_path: Path) -> None:
    arguments = ["export", MODEL, "--format", "onnx", "--int8", int8, "--dense", "--no-cache"]
    done = CliRunner().invoke(cli, [*arguments, "--json", "--out", str(tmp_path / "m.onnx")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["score"]["value"] > 0.9
    graph = onnx.load(tmp_path / "m.onnx").graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    weights = [
        node for node in graph.node if node.op_type == "DequantizeLinear" and len(sizes.get(node.input[0], [])) > 1
    ]
    assert len(weights) == len(iris.profile.layers)
    assert all(bool(sizes[node.input[1]]) == (int8 == "per-channel") for node in weights)


def test_what_does_not_go_together_is_said(tmp_path: Path) -> None:
    def refusal(*options: str) -> str:
        done = CliRunner().invoke(cli, ["export", MODEL, "--dense", "--out", str(tmp_path / "x"), *options])
        assert done.exit_code == 2, done.output
        return done.stderr.strip().splitlines()[-1]

    assert refusal("--format", "pt2", "--batch", "2").endswith("but got pt2.")
    assert "--batch goes with --format executorch, onnx" in refusal("--format", "safetensors", "--batch", "2")
    assert "--int8 is --dtype int8" in refusal("--format", "onnx", "--int8", "per-tensor", "--dtype", "float16")
    assert "--refit goes with" in refusal("--format", "onnx", "--refit")
    assert "--int8 goes with --format executorch, onnx" in refusal("--format", "c", "--int8", "per-tensor")
    assert "7<=x<=23" in refusal("--format", "onnx", "--opset", "6")
    assert not list(tmp_path.iterdir())


def test_a_size_that_depends_on_values_is_refused() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [1, "k"])
    graph = helper.make_graph([helper.make_node("NonZero", ["x"], ["y"])], "g", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(InvalidModel, match="the size of 'y' depends on what is computed"):
        at_sizes(proto, [[4]])
    with pytest.raises(InvalidSettings, match="from 7 to 23, but got 5"):
        at_opset(proto, 5)
    graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(InvalidModel, match="NoSuchOperator"):
        checked(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_operators_take_the_form_that_they_had_before() -> None:
    """Axes that became inputs are attributes again, and what only says the usual is left out."""
    given = torch.randn(3, 1, 6, 5, generator=torch.Generator().manual_seed(0))

    class Few(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.thin = nn.Linear(6, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = nn.functional.max_pool2d(x, 2).squeeze(1).clamp(-0.5, 0.5)
            return torch.softmax(self.thin(pooled.reshape(-1, 6)), dim=-1).unsqueeze(1)

    few = Few().eval()
    written = onnx_program(few, given)
    assert any(node.op_type == "Gemm" and len(node.input) == 2 for node in written.graph.node)
    for opset in (7, 10, 12):
        older = checked(at_opset(written, opset))
        assert opset_of(older) == opset
        found = OnnxNetwork(older.SerializeToString())(given)
        torch.testing.assert_close(found, (few(given),), atol=1e-6, rtol=0)
    spread = onnx_program(nn.Sequential(nn.Softmax(dim=2)).eval(), given)
    with pytest.raises(
        InvalidModel, match="Softmax over another axis than the last is another operator before opset 13"
    ):
        at_opset(spread, 12)


def many_operators(last: str = "Tanh") -> onnx.ModelProto:
    """Of opset 13, of which ONNX's converter knows no way down."""
    numbers = np.random.default_rng(0)
    stored = {"w": numbers.normal(size=(4, 12)), "scale": numbers.normal(size=(1, 4)), "to": [0, 4], "rows": [2, 0, 1]}
    stored |= {"starts": [1], "ends": [3], "axes": [1]}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Flatten", ["t"], ["f"], axis=-2),
        helper.make_node("Gemm", ["f", "w"], ["g"], transB=1),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("Mul", ["s", "scale"], ["m"]),
        helper.make_node("Gather", ["m", "rows"], ["r"], axis=-1),
        helper.make_node("Slice", ["m", "starts", "ends", "axes"], ["c"]),
        helper.make_node(last, ["c"], ["p"]),
        helper.make_node("Concat", ["m", "r", "p"], ["y"], axis=-1),
    ]
    weights = [
        numpy_helper.from_array(np.asarray(value, np.int64 if isinstance(value, list) else np.float32), name)
        for name, value in stored.items()
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])
    graph = helper.make_graph(nodes, "many", [x], [y], weights)
    versions = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]  # as onnxruntime saves files
    return helper.make_model(graph, opset_imports=versions, ir_version=8)


@pytest.mark.parametrize("opset", range(7, 13))
def test_operators_that_differ_by_types_alone_go_down_to_any_opset(opset: int) -> None:
    def answers(proto: onnx.ModelProto) -> np.ndarray:
        return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]

    written, x = many_operators(), np.random.default_rng(1).normal(size=(5, 3, 4)).astype(np.float32)
    older = checked(at_opset(written, opset))
    assert opset_of(older) == opset
    assert opset_of(written) == 13  # which is as it was
    np.testing.assert_allclose(answers(older), answers(written), atol=1e-6)


def test_operators_inside_others_go_down_too() -> None:
    """Axes that are constants of a branch are attributes there."""

    def branch(name: str, op: str) -> onnx.GraphProto:
        axes = helper.make_node("Constant", [], [f"{name}_axes"], value=numpy_helper.from_array(np.array([0])))
        nodes = [
            axes,
            helper.make_node(op, ["x"], [f"{name}_t"]),
            helper.make_node("Unsqueeze", [f"{name}_t", f"{name}_axes"], [f"{name}_y"]),
        ]
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, 3])]
        )

    chosen = helper.make_node("If", ["which"], ["y"], then_branch=branch("a", "Tanh"), else_branch=branch("b", "Neg"))
    given = [
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3]),
    ]
    graph = helper.make_graph([chosen], "g", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])])
    written = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(checked(at_opset(written, 11)).SerializeToString())
    x = np.array([0.5, -1, 2], np.float32)
    for which, expected in ((True, np.tanh(x)), (False, -x)):
        (y,) = session.run(None, {"which": np.array(which), "x": x})
        np.testing.assert_allclose(y, expected[None], rtol=1e-6)


def test_the_lowest_opset_that_does_is_said() -> None:
    with pytest.raises(InvalidModel, match="opset 7: there was no Erf yet; --opset 9 is the lowest that does"):
        at_opset(many_operators("Erf"), 7)


def test_a_name_with_both_kinds_of_quotes_is_in_no_graph() -> None:
    odd = nn.Sequential()
    odd.add_module("""a'b"c""", nn.Linear(4, 3))
    for write in (onnx_program, exported_program):
        with pytest.raises(InvalidModel, match=r"c.weight: no graph of PyTorch .* both kinds of quotes; a checkpoint"):
            write(odd.eval(), torch.zeros(2, 4))


# ---- quantise, then refit --------------------------------------------------------------------------------------------


def test_a_rounded_weight_is_what_rounding_gives_again() -> None:
    spec = LayerSpec(6, 4, kernel=(3,), stride=(1,), padding=(0,), dilation=(1,))
    weight = (
        torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 9, 0, 1e-3])[:, None, None]
    )
    alone = weight_as_int8(spec, weight, "per-tensor")
    each = weight_as_int8(spec, weight, "per-channel")
    torch.testing.assert_close(weight_as_int8(spec, each, "per-channel"), each)
    torch.testing.assert_close(weight_as_int8(spec, alone, "per-tensor"), alone)
    assert (each - weight).square().sum() < (alone - weight).square().sum()
    gain = torch.tensor([9.0, 1.0, 1.0, 1e3])  # a BatchNorm behind evens them out
    evened = weight_as_int8(spec, weight, "per-tensor", gain)
    assert float((evened - weight)[3].abs().max()) < 0.1 * float(weight[3].abs().max())
    assert not alone[3].any()


def crooked(workspace: Workspace) -> Compressed:
    """Factors whose channels are of very different size, which changes nothing in float."""
    plan = RankPlan.of(workspace.profile.fingerprint, {"conv2": Choice("cp3", (12,)), "fc1": Choice("svd", (16,))})
    made = workspace.compress(plan, workspace.correction)
    for name in ("conv2", "fc1"):
        first, second, *_ = made.get_submodule(name)
        size = 10 ** torch.linspace(-2, 2, first.weight.shape[0])
        with torch.no_grad():
            first.weight.mul_(size.view(-1, *[1] * (first.weight.ndim - 1)))
            along = 0 if name == "conv2" else 1  # a factor of one channel each has it first
            second.weight.div_(size.view([-1 if axis == along else 1 for axis in range(second.weight.ndim)]))
    return Compressed(made, plan)


@pytest.mark.slow
@pytest.mark.parametrize("int8", ["per-channel", "per-tensor"])
def test_the_refit_brings_back_what_rounding_loses(int8: Int8) -> None:
    digits = Workspace.open("builtin:digits-cnn")
    given, errors = crooked(digits), []
    before = {name: value.clone() for name, value in given.model.state_dict().items()}
    data = digits.reference.dataset.pick(slice(0, 100))
    (exact,) = run(given.model, data).values()
    for refit in (False, True):
        made = given.stored(digits, Storage("int8", int8=int8, refit=refit))
        (float_answers,) = run(made.model, data).values()
        assert float((float_answers - exact).square().mean() / exact.var()) < 0.02  # still that network
        proto = onnx_program(made.model, digits.opened.example_inputs, digits.opened.axes)
        network = OnnxNetwork(quantised(proto, digits.calibration.inputs, int8).SerializeToString())
        (rounded,) = run(network, data).values()
        assert bool(made.notes) == (int8 == "per-tensor" and not refit)
        assert not made.notes or made.notes[0].startswith(
            "conv2: one int8 scale for all channels of a depthwise factor"
        )
        errors.append(float((rounded - exact).square().mean() / exact.var()))
    assert errors[1] < errors[0] / 2
    for name, value in given.model.state_dict().items():
        assert torch.equal(value, before[name])


class Tied(nn.Module):
    """A table that is looked up and multiplied with, by a layer or by a function."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 30) if layer else nn.Identity()
        if layer:
            self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.head(self.table(tokens).tanh().mean(1))
        return x if x.shape[-1] == 30 else nn.functional.linear(x, self.table.weight)


@pytest.mark.slow
@pytest.mark.parametrize("int8", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("layer", [True, False], ids=["layer", "function"])
def test_a_table_that_is_also_multiplied_with_has_one_scale(layer: bool, int8: Int8) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(30, (40, 5))
    workspace = Workspace.of(Tied(layer), tokens, tokens)
    data = workspace.reference.dataset
    (exact,) = run(workspace.model, data).values()
    proto = onnx_program(workspace.model, workspace.opened.example_inputs, workspace.opened.axes)
    network = OnnxNetwork(quantised(proto, workspace.calibration.inputs, int8).SerializeToString())
    (rounded,) = run(network, data).values()
    assert float((rounded - exact).square().mean() / exact.var()) < 0.01


def test_nothing_is_refitted_that_has_no_factors(iris: Workspace) -> None:
    dense = Compressed(iris.model, RankPlan(iris.profile.fingerprint))
    stored = dense.stored(iris, Storage("int8"))
    assert stored.model is iris.model
    scored = replace(dense, score=final_score(iris.measure(iris.model)))
    assert scored.stored(iris, Storage(batch=2)).score is scored.score  # the same network, so measured once


def test_the_network_itself_may_be_one_layer() -> None:
    workspace = Workspace.of(nn.Linear(12, 12), torch.randn(40, 12, generator=torch.Generator().manual_seed(1)))
    plan = RankPlan.of(workspace.profile.fingerprint, {"Linear": Choice("svd", (3,))})
    made = Compressed(workspace.compress(plan), plan).stored(workspace, Storage("int8"))
    assert tuple(next(made.model.parameters()).shape) == (3, 12)
    (exact,), (fitted,) = (run(each, workspace.calibration).values() for each in (workspace.compress(plan), made.model))
    torch.testing.assert_close(fitted, exact, rtol=0, atol=0.05 * float(exact.abs().max()))
