"""Graphs of ONNX as people have them: old operators, quantised weights, branches; opened, compressed, written back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.commands import cli
from lowrank_core.errors import InvalidFile, InvalidModel
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.graphs.onnx_network import build
from lowrank_core.graphs.reading import read_onnx
from lowrank_core.layers.data import octets
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.uniform import uniform_plan
from tests.onnx_networks import graph, numbers

pytestmark = pytest.mark.usefixtures("one_thread")


def run(path: Path, *given: torch.Tensor) -> np.ndarray:
    """What ONNX's own runtime answers."""
    session = onnxruntime.InferenceSession(str(path))
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})[0]


def opened(path: Path, *given: torch.Tensor) -> np.ndarray:
    """What is opened here answers."""
    with torch.no_grad():
        return build(read_onnx(path).model)(*given).numpy()


def old(opset: int) -> onnx.ModelProto:
    """A small network of operators whose attributes became inputs, or whose meaning changed, since."""
    nodes = [
        helper.make_node("Pad", ["x"], ["p"], mode="constant", pads=[0, 0, 1, 1, 0, 0, 1, 1])
        if opset < 11
        else helper.make_node("Pad", ["x", "amounts"], ["p"], mode="constant"),
        helper.make_node("Conv", ["p", "c"], ["a"], name="conv"),
        helper.make_node("Clip", ["a"], ["b"], min=-1.0, max=1.0)
        if opset < 11
        else helper.make_node("Clip", ["a", "low", "high"], ["b"]),
        helper.make_node("ReduceMean", ["b"], ["m"], axes=[2, 3], keepdims=1),
        helper.make_node("Squeeze", ["m"], ["f"], axes=[2, 3]),
        helper.make_node("Gemm", ["f", "w", "v"], ["g"], name="fc"),
        helper.make_node("Softmax", ["g"], ["y"]),
    ]
    weights = {"c": numbers(6, 4, 3, 3), "w": numbers(6, 5, seed=1), "v": numbers(5, seed=2)}
    if opset >= 11:
        weights |= {
            "amounts": torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]),
            "low": torch.tensor(-1.0),
            "high": torch.tensor(1.0),
        }
    return graph(nodes, weights, ("n", 4, 8, 8), opset=opset, answer=("n", "m"))


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_old_operators_are_converted_and_written_back_as_they_were(opset, tmp_path):
    path, x = tmp_path / "old.onnx", numbers(9, 4, 8, 8, seed=3)
    proto = old(opset)
    if opset < 9:  # as such files are: an older format, every weight among the inputs
        proto.ir_version = 3
        for stored in proto.graph.initializer:
            proto.graph.input.append(helper.make_tensor_value_info(stored.name, stored.data_type, stored.dims))
    path.write_bytes(proto.SerializeToString())
    np.testing.assert_allclose(opened(path, x), run(path, x), atol=1e-6)
    np.savez(tmp_path / "old.npz", inputs=x.numpy())
    workspace = Workspace.open(str(path))
    assert {layer.name for layer in workspace.profile.layers} == {"conv", "fc"}
    assert f"from opset {opset} to 13" in " ".join(workspace.opened.notices)
    plan = tmp_path / "plan.json"
    search = ["search", str(path), "--rule", "uniform", "--multiplies", "0.8", "--no-correct", "--out", str(plan)]
    assert CliRunner().invoke(cli, search).exit_code == 0
    small = tmp_path / "small.onnx"
    export = ["export", str(path), "--plan", str(plan), "--format", "onnx", "--out", str(small), "--json"]
    written = CliRunner().invoke(cli, export)
    assert written.exit_code == 0, written.output
    assert json.loads(written.stdout)["max_abs_diff"] < 1e-5
    assert {o.domain: o.version for o in onnx.load(small).opset_import}[""] == (opset if opset >= 11 else 13)
    assert run(small, x).shape == (9, 5)


def float_network(tmp_path: Path) -> Path:
    """A convolution, a ReLU, a product and one of a sequence: what is quantised most."""
    nodes = [
        helper.make_node("Conv", ["x", "c", "d"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["p"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["g"]),
        helper.make_node("Add", ["g", "v"], ["y"]),
    ]
    weights = {
        "c": numbers(16, 4, 3, 3),
        "d": numbers(16, seed=3),
        "w": numbers(16, 12, seed=1),
        "v": numbers(12, seed=2),
    }
    path = tmp_path / "float.onnx"
    path.write_bytes(graph(nodes, weights, ("n", 4, 8, 8), opset=17, answer=("n", 12)).SerializeToString())
    return path


class Samples(CalibrationDataReader):
    """Eight samples, one after the other."""

    def __init__(self) -> None:
        self.rows = iter(numbers(8, 4, 8, 8, seed=5).split(1))

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"x": row.numpy()}


@pytest.mark.parametrize("form", ["dynamic", "QDQ", "QDQ per channel", "QOperator"])
def test_what_onnxruntime_quantises_opens_as_the_float_network(form, tmp_path):
    """Its layers are those of the float file, its weights within half a step, its answers within the rounding."""
    path, quantised = float_network(tmp_path), tmp_path / "quantised.onnx"
    if form == "dynamic":
        quantize_dynamic(path, quantised, weight_type=QuantType.QUInt8)
    else:
        kind = QuantFormat.QOperator if form == "QOperator" else QuantFormat.QDQ
        quantize_static(path, quantised, Samples(), quant_format=kind, per_channel="channel" in form)
    assert any("Q" in node.op_type or "Integer" in node.op_type for node in onnx.load(quantised).graph.node)
    x = numbers(8, 4, 8, 8, seed=5)
    exact, here, theirs = run(path, x), opened(quantised, x), run(quantised, x)
    rounding = np.abs(exact - theirs).max()
    assert 0 < rounding < 0.1 * np.abs(exact).max()
    assert np.abs(here - exact).max() < 2 * rounding
    np.savez(tmp_path / "quantised.npz", inputs=x.numpy())
    workspace, dense = Workspace.open(str(quantised)), Workspace.open(str(path))
    assert [layer.spec.weight_shape for layer in workspace.profile.layers] == [
        layer.spec.weight_shape for layer in dense.profile.layers
    ]
    assert "quantised weights as floats" in " ".join(workspace.opened.notices)


def test_bounds_that_stand_for_a_relu_are_kept(tmp_path):
    """A quantiser leaves a ReLU out where zero is the lowest integer: the answers must not become negative."""
    scale, zero = numpy_helper.from_array(np.float32(0.02), "s"), numpy_helper.from_array(np.uint8(0), "z")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    proto = graph(nodes, {"w": numbers(6, 4)}, ("n", 6), opset=17, answer=("n", 4))
    proto.graph.initializer.extend([scale, zero])
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    x = numbers(20, 6, seed=4)
    here, theirs = opened(path, x), run(path, x)
    assert (theirs == 0).any()
    assert (theirs == theirs.max()).any()
    assert np.abs(here - theirs).max() <= 0.01 + 1e-6  # half a step


def test_a_scale_that_depends_on_the_data_is_refused(tmp_path):
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0),
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    path = tmp_path / "m.onnx"
    proto = graph(nodes, {"w": numbers(6, 4)}, ("n", 6), opset=17, answer=("n", 4))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel, match=r"takes its 2nd input from the data; .* give the float model"):
        read_onnx(path)


def branches(condition: str) -> onnx.ModelProto:
    """A network that takes one of two ways, by a constant that is computed, or by its input."""

    def way(name: str, op: str) -> onnx.GraphProto:
        answer = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["a"], [f"{name}.y"])], name, [], [answer])

    first = (
        [helper.make_node("Greater", ["three", "two"], ["c"])]
        if condition == "constant"
        else [
            helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
            helper.make_node("Greater", ["top", "two"], ["c"]),
        ]
    )
    nodes = [
        *first,
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("If", ["c"], ["y"], then_branch=way("then", "Relu"), else_branch=way("else", "Neg")),
    ]
    weights = {"w": numbers(6, 4), "two": torch.tensor(2.0), "three": torch.tensor(3.0)}
    return graph(nodes, weights, ("n", 6), opset=17, answer=("n", 4))


def test_a_branch_of_a_constant_condition_is_taken(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(branches("constant").SerializeToString())
    x = numbers(5, 6, seed=4)
    np.testing.assert_allclose(opened(path, x), run(path, x), atol=1e-6)


def test_a_branch_that_the_data_decide_is_taken_when_it_is_run(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(branches("data").SerializeToString())
    low, high = numbers(5, 6, seed=4) * 0.1, numbers(5, 6, seed=4) + 2
    for x in (low, high):
        np.testing.assert_allclose(opened(path, x), run(path, x), atol=1e-5)
    assert (opened(path, high) >= 0).all()
    assert (opened(path, low) < 0).any()


def test_what_is_in_the_way_is_listed_at_once(tmp_path):
    path = tmp_path / "m.onnx"
    nodes = [helper.make_node(op, ["x", "w"], [op], domain="com.microsoft") for op in ("FusedMatMul", "Gelu", "Gelu")]
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = graph([*nodes, product], {"w": numbers(6, 4)}, ("n", 6), answer=("n", 4))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel, match=r"com\.microsoft\.FusedMatMul, com\.microsoft\.Gelu 2 times"):
        read_onnx(path)


def test_a_table_with_a_row_of_minus_infinity_is_left_alone(tmp_path):
    table = numbers(9, 6)
    table[0] = -torch.inf
    nodes = [
        helper.make_node("Gather", ["t", "x"], ["g"]),
        helper.make_node("Max", ["g", "low"], ["m"]),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    weights = {"t": table, "low": torch.tensor(-9.0), "w": numbers(6, 40)}
    path = tmp_path / "m.onnx"
    proto = graph(nodes, weights, ("n", 3), opset=17, answer=("n", 3, 40), kind=TensorProto.INT64)
    path.write_bytes(proto.SerializeToString())
    np.savez(tmp_path / "m.npz", x=np.arange(30).reshape(10, 3) % 9)
    workspace = Workspace.open(str(path))
    assert len(workspace.profile.layers) == 1
    assert "a table that is not finite" in " ".join(workspace.opened.notices)


def test_one_number_at_stride_zero_has_bytes():
    assert octets(torch.zeros(1).as_strided((1,), (0,))) == octets(torch.zeros(1))


REAL = {torch.float16: TensorProto.FLOAT16, torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}


def one_product(
    op: str, sizes: dict[str, tuple[int, ...]], x: tuple, *, dtype: torch.dtype = torch.float32, **said: object
) -> onnx.ModelProto:
    """One node of the input x and of weights."""
    first = sizes.pop("first", ())
    names = ["first", "x", *sizes] if first else ["x", *sizes]
    shapes = ({"first": first} if first else {}) | sizes
    weights = {name: numbers(*shape, seed=3).to(dtype) for name, shape in shapes.items()}
    node = helper.make_node(op, names, ["y"], name="it", **said)
    return graph([node], weights, x, kind=REAL[dtype], answers_kind=REAL[dtype])


E = "equation"
WRITTEN = {
    "keras query": (("n", 7, 8), "Einsum", {"w": (8, 4, 6)}, {E: "abc,cde->abde"}, (8, 24)),
    "heads first": (("n", 7, 8), "Einsum", {"w": (8, 4, 6)}, {E: "abc,cde->adbe"}, (8, 24)),
    "keras output": (("n", 7, 4, 6), "Einsum", {"w": (4, 6, 9)}, {E: "abcd,cde->abe"}, (24, 9)),
    "in another order": (("n", 6, 5, 4), "Einsum", {"w": (9, 4, 6)}, {E: "adcb,ebd -> cae"}, (24, 9)),
    "weight first": (("n", 7, 8), "Einsum", {"first": (6, 8)}, {E: "oi,bti->bto"}, (8, 6)),
    "plain": (("n", 8), "Einsum", {"w": (8, 6)}, {E: "ab,bc->ac"}, (8, 6)),
    "filterbank": (("n", 8, 5), "MatMul", {"first": (6, 8)}, {}, (8, 6)),
    "alpha": (("n", 8), "Gemm", {"w": (8, 6), "b": (6,)}, {"alpha": 0.5}, (8, 6)),
    "both": (("n", 8), "Gemm", {"w": (6, 8), "b": (1, 6)}, {"alpha": 0.5, "beta": 3.0, "transB": 1}, (8, 6)),
    "turned": ((8, "n"), "Gemm", {"w": (8, 6)}, {"transA": 1, "beta": 2.0}, (8, 6)),
    "first": ((8, "n"), "Gemm", {"first": (6, 8)}, {"alpha": 2.0}, (8, 6)),
    "first, turned": (
        ("n", 8),
        "Gemm",
        {"first": (8, 6), "b": (6, 1)},
        {"transA": 1, "transB": 1, "beta": 2.0},
        (8, 6),
    ),
}


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("case", WRITTEN.values(), ids=WRITTEN)
def test_products_that_are_written_otherwise_are_layers(case, dtype, tmp_path):
    """Answers as onnxruntime has them; compressed, the file answers as the network here."""
    x, op, sizes, said, ends = case
    path = tmp_path / "product.onnx"
    path.write_bytes(one_product(op, dict(sizes), x, dtype=dtype, **said).SerializeToString())
    onnx.checker.check_model(onnx.load(path))
    given = numbers(*(16 if size == "n" else size for size in x), seed=9).to(dtype)
    theirs = run(path, given)
    rounding = max(1e-5, 4 * torch.finfo(dtype).eps)
    np.testing.assert_allclose(opened(path, given), theirs, atol=rounding * np.abs(theirs).max())
    if x[0] != "n":
        return
    np.savez(tmp_path / "product.npz", inputs=given.numpy())
    workspace = Workspace.open(str(path))
    (layer,) = workspace.profile.layers
    assert (layer.spec.in_channels, layer.spec.out_channels) == ends
    assert "it" in layer.name
    assert workspace.profile.rest.parameters == workspace.profile.rest.multiplies == 0
    assert plan_cost(workspace.profile).parameters == sum(t.numel() for t in workspace.model.parameters())
    assert "1 product with weights as inputs times a matrix" in " ".join(workspace.opened.notices)
    plan = uniform_plan(workspace.profile, 0.7)
    small = Compressed(workspace.compress(plan), plan)
    written = EXPORTS["onnx"].write(workspace, small, tmp_path / "small.onnx")
    assert written.verdict == ("rounding" if dtype is torch.float16 else "same")
    with torch.no_grad():
        answers = small.model(given)
    largest = float(answers.abs().max())
    np.testing.assert_allclose(run(tmp_path / "small.onnx", given), answers, atol=max(1.0, largest) * rounding)


STAY = {
    "shared batch": (("n", 4, 8), "Einsum", {"w": (4, 8, 6)}, {E: "abc,bcd->abd"}),
    "diagonal": (("n", 8), "Einsum", {"w": (8, 8)}, {E: "ab,bb->ab"}),
    "outer": (("n", 8), "Einsum", {"w": (4, 6)}, {E: "ab,cd->abcd"}),
    "summed away": (("n", 7, 8), "Einsum", {"w": (8, 6)}, {E: "abc,cd->ad"}),
    "offset of all": (("n", 8), "Gemm", {"first": (6, 8), "b": (6, 16)}, {"transB": 1}),
}


@pytest.mark.parametrize("case", STAY.values(), ids=STAY)
def test_products_of_another_kind_stay(case, tmp_path):
    x, op, sizes, said = case
    path = tmp_path / "product.onnx"
    path.write_bytes(one_product(op, dict(sizes), x, **said).SerializeToString())
    given = numbers(*(16 if size == "n" else size for size in x), seed=9)
    np.testing.assert_allclose(opened(path, given), run(path, given), atol=1e-5)
    assert read_onnx(path).changes == ()
    assert not build(read_onnx(path).model).program.sites


@pytest.mark.parametrize("compressed", ["dense", "attention"])
def test_a_product_that_stays_is_written_back_as_it_was(compressed, tmp_path):
    nodes = [
        helper.make_node("Einsum", ["x", "w"], ["a"], name="attention/query", equation="abc,cde->abde"),
        helper.make_node("ReduceMean", ["a"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["m", "v"], ["y"], name="dense/MatMul"),
    ]
    path, x = tmp_path / "two.onnx", numbers(16, 7, 8, seed=9)
    weights = {"w": numbers(8, 4, 6, seed=3), "v": numbers(6, 5, seed=4)}
    path.write_bytes(graph(nodes, weights, ("n", 7, 8), answer=("n", 5)).SerializeToString())
    np.savez(tmp_path / "two.npz", inputs=x.numpy())
    workspace = Workspace.open(str(path))
    assert [layer.name for layer in workspace.profile.layers] == ["attention", "dense"]
    plan = RankPlan.of(workspace.profile.fingerprint, {compressed: Choice("svd", (2,))})
    small = Compressed(workspace.compress(plan), plan)
    EXPORTS["onnx"].write(workspace, small, tmp_path / "small.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node]
    assert operators.count("MatMul") == 2 + (compressed == "attention")
    assert ("Einsum" in operators) == ("Identity" not in operators) == (compressed == "dense")
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "small.onnx", x), small.model(x), atol=1e-4)


@pytest.mark.parametrize(
    "equation", ["a?c,cde->abe", "a.c,cde->abe", "...ac...,cde->abe", "ab-c,cde->abe", "abc,c\xa3e->ab"]
)
def test_an_equation_that_is_none_is_refused_before_anything_looks_at_it(equation, tmp_path):
    """ONNX's own shape inference never ends over these."""
    path = tmp_path / "m.onnx"
    node = helper.make_node("Einsum", ["x", "w"], ["y"], name="it", equation=equation.encode("latin-1"))
    proto = graph([node], {"w": numbers(8, 4, 6)}, ("n", 7, 8), answer=("n", 7, 24))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidFile, match=r"node 'it' \(Einsum\) must have an equation such as 'ab,bc->ac', but has"):
        read_onnx(path)
