"""Recurrent layers in graphs: one node or loop each, at any batch size and length, whatever of them is factorised."""

from collections import Counter
from functools import partial
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lowrank_core import Choice, RankPlan, Workspace, plan_cost
from lowrank_core.compression.apply import apply
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidModel
from lowrank_core.exports import Compressed
from lowrank_core.exports._recurrent import forms_of
from lowrank_core.exports.onnx import quantised
from lowrank_core.graphs import recurrent
from lowrank_core.graphs.exporting import exported_program, onnx_program
from lowrank_core.layers.parts import Recurrent
from lowrank_core.layers.recurrent import factored
from lowrank_core.networks.discover import discover
from tests.awkward_layers import filled, seeded

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm-first-3": (nn.LSTM, {"batch_first": True, "num_layers": 3, "dropout": 0.5}),
    "lstm-both-ways": (nn.LSTM, {"bidirectional": True, "num_layers": 2, "batch_first": True}),
    "lstm-projected": (nn.LSTM, {"proj_size": 3, "bidirectional": True, "bias": False}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru-both-ways-no-bias": (nn.GRU, {"bidirectional": True, "bias": False}),
    "rnn-tanh": (nn.RNN, {"num_layers": 2, "batch_first": True}),
    "rnn-relu-both-ways": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS)


class Net(nn.Module):
    """Outputs at all steps, and the last states, with the batch first."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, ...]:
        self.rnn.flatten_parameters()
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        start = None
        if hx is not None:
            start = hx.transpose(0, 1).contiguous()
            if isinstance(self.rnn, nn.LSTM) or getattr(self.rnn, "kind", "") == "LSTM":
                start = (start, start + 0.1)
        out, last = self.rnn(x, start)
        last = last if isinstance(last, tuple) else (last,)
        return (out if self.rnn.batch_first else out.transpose(0, 1), *(state.transpose(0, 1) for state in last))


def compressed(model: nn.Module, sides: str, method: str = "svd", inputs: Any = None) -> nn.Module:
    """A copy whose weights of these sides ("ih", "hh", "hr") have two factors, or those of a method for gates."""
    profile = discover(model, seeded((2, 6, 5)).float() if inputs is None else inputs)
    choices = {}
    for layer in profile.layers:
        if any(f"weight_{side}" in layer.name for side in sides.split()):
            names = {each.name: each for each in layer.methods}
            chosen = names.get(method, names["svd"])
            choices[layer.name] = Choice(chosen.name, tuple(min(2, top) for top in chosen.max_rank(layer.spec)))
    return apply(model, profile, RankPlan.of(profile.fingerprint, choices), FactorStore(model, profile, None))


def written(network: nn.Module, states: bool) -> onnx.ModelProto:
    """Its recurrent layers alone, time first, from nodes of no operator, as a traced network has them."""
    rnn: Any = network.rnn
    count = 2 if rnn.kind == "LSTM" else 1
    nodes, x, ways = [], "x", 1 + bool(rnn.bidirectional)
    for layer in range(rnn.num_layers):
        start = [f"s{layer}.{i}" for i in range(count)] if states else []
        ends = [f"y{layer}", *(f"e{layer}.{i}" for i in range(count))]
        nodes.append(helper.make_node("Recurrent", [x, *start], ends, domain=recurrent.DOMAIN, place=0, layer=layer))
        nodes.append(helper.make_node("Transpose", [ends[0]], [f"t{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"t{layer}", "flat"], [f"x{layer}"]))
        x = f"x{layer}"
    named = [name for node in nodes for name in node.input if name.startswith("s")]
    last = [name for node in nodes if node.op_type == "Recurrent" for name in node.output[1:]]
    value = partial(helper.make_tensor_value_info, elem_type=FLOATS[rnn_dtype(rnn)])
    graph = helper.make_graph(
        nodes,
        "steps",
        [value("x", shape=["length", "batch", 5]), *(value(name, shape=[ways, "batch", 7]) for name in named)],
        [value(name, shape=[None] * 3) for name in (x, *last)],
        [numpy_helper.from_array(torch.tensor([0, 0, -1]).numpy(), "flat")],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid(recurrent.DOMAIN, 1)]
    proto = helper.make_model(graph, opset_imports=domains, ir_version=10)
    recurrent.expand(proto, [("rnn", rnn)])
    onnx.checker.check_model(proto, full_check=True)
    return proto


FLOATS = {torch.float32: onnx.TensorProto.FLOAT, torch.float64: onnx.TensorProto.DOUBLE}


def rnn_dtype(rnn: nn.Module) -> torch.dtype:
    return next(rnn.parameters()).dtype


def answers(proto: onnx.ModelProto, inputs: list[Tensor]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    return list(map(torch.from_numpy, found))


def operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


SIZES = [(2, 6), (1, 1), (3, 11)]


def agree(network: nn.Module, states: bool) -> onnx.ModelProto:
    """Compare what is written with the module, at several batches and lengths."""
    rnn: Any = network.rnn
    kind, ways = rnn.kind, 1 + bool(rnn.bidirectional)
    proto = written(network, states)
    for batch, length in SIZES:
        x = seeded((length, batch, 5)).to(rnn_dtype(rnn))
        starts = [seeded((rnn.num_layers * ways, batch, 7), n).to(x.dtype) for n in range(1 + (kind == "LSTM"))]
        hx = None if not states else tuple(starts) if kind == "LSTM" else starts[0]
        with torch.no_grad():
            y, last = rnn(x.transpose(0, 1) if rnn.batch_first else x, hx)
        y = y.transpose(0, 1) if rnn.batch_first else y
        last = last if isinstance(last, tuple) else (last,)
        layers = [state[n * ways : (n + 1) * ways] for n in range(rnn.num_layers) for state in last]
        feed = [state[n * ways : (n + 1) * ways] for n in range(rnn.num_layers) for state in starts]
        found = answers(proto, [x, *(feed if states else ())])
        for ours, theirs in zip((y, *layers), found, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    return proto


@pytest.mark.parametrize("states", [False, True], ids=["", "states"])
@pytest.mark.parametrize(
    ("sides", "method"),
    [("", "svd"), ("ih", "svd"), ("hh", "svd"), ("ih hh hr", "svd"), ("ih hh", "gate_tucker"), ("ih hh", "gate_cp")],
)
@every_kind
def test_nodes_and_loops_compute_what_the_layer_does(kind, options, sides, method, states, monkeypatch):
    projected = "proj_size" in options
    if states and projected:
        return
    model = filled(Net(kind(5, 7, **options))).float().eval()
    network = compressed(model, sides, method) if sides else Net(factored(model.rnn, {})).eval()
    name, layers = kind.__name__, model.rnn.num_layers * (1 + model.rnn.bidirectional)
    found = operators(agree(network, states))
    assert found[name] + found["Scan"] == (layers if sides else model.rnn.num_layers * (1 + projected))
    assert found["Scan"] == (layers if projected else 0)
    monkeypatch.setattr(recurrent, "SCAN_PAYS", dict.fromkeys(recurrent.SCAN_PAYS, 0))
    assert operators(agree(network, states))["Scan"] == layers


def test_a_double_network_is_a_loop_since_runtimes_have_the_nodes_for_floats_alone():
    network = compressed(filled(Net(nn.GRU(5, 7))).double().eval(), "hh", inputs=seeded((2, 6, 5)))
    assert operators(agree(network, False))["Scan"] == 1


def test_the_file_holds_the_factors_and_what_is_said_of_them_is_counted():
    """hh at rank 2 of 28 x 7: the node computes the product; ih at rank 2 of 28 x 5: thin, then 28 x 2."""
    network = compressed(filled(Net(nn.LSTM(5, 7))).float().eval(), "ih hh")
    stored = {weight.name: list(weight.dims) for weight in written(network, False).graph.initializer}
    assert stored["rnn.weight_hh_l0.0.weight"] == [2, 7]
    assert stored["rnn.weight_hh_l0.1.weight"] == [1, 28, 2]
    assert stored["rnn.weight_ih_l0.0.weight"] == [5, 2]
    assert stored["rnn.weight_ih_l0.1.weight"] == [1, 28, 2]
    assert recurrent.forms(network) == (
        recurrent.Written("rnn.weight_ih_l0", "LSTM", "factors", 2 * (5 + 28)),
        recurrent.Written("rnn.weight_hh_l0", "LSTM", "product", 28 * 7),
    )


def test_a_loop_pays_where_each_step_saves_enough():
    """An LSTM of 512 units at rank 128 of the recurrent side, from the measured border; of 256 units at no rank."""
    for hidden, rank, op in ((512, 128, "Scan"), (512, 400, "LSTM"), (256, 8, "LSTM")):
        network = factored(nn.LSTM(4, hidden), {"weight_hh_l0": rank})
        assert {each.op for each in recurrent.forms(network)} == {op}


class Reader(nn.Module):
    """Two layers both ways, batch first, the mean over time into a head; keeps its length free."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 7, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


@pytest.mark.parametrize("make", [onnx_program, exported_program])
def test_a_whole_network_at_other_batches_and_lengths(make):
    """Written with two samples of length 6; as many samples as steps, and one alone, are no constants of the graph.

    A program of `torch.export` keeps the length.
    """
    model = filled(Reader()).float().eval()
    network = compressed(model, "hh ih")
    proto: Any = make(network, seeded((2, 6, 5)).float())
    if make is onnx_program:
        assert [size.dim_param for size in proto.graph.input[0].type.tensor_type.shape.dim] == ["batch", "length", ""]
        assert len(proto.graph.node) < 40
    for batch, length in ((2, 6), (1, 4), (5, 5)) if make is onnx_program else ((2, 6), (1, 6), (6, 6)):
        x = seeded((batch, length, 5)).float()
        with torch.no_grad():
            expected = network(x)
            found = answers(proto, [x])[0] if make is onnx_program else proto.module()(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert type(network.rnn) is Recurrent


class Packs(Reader):
    """Lengths are known where it is written; the last states into the head."""

    def forward(self, x: Tensor) -> Tensor:
        together = pack_padded_sequence(x, torch.tensor([6, 4]), batch_first=True)
        return self.head(self.rnn(together)[1][0][-2:].transpose(0, 1).flatten(1))


def test_packed_sequences_are_refused_in_one_line():
    network = compressed(filled(Reader()).float().eval(), "hh")
    network.__class__ = Packs
    with pytest.raises(InvalidModel, match="cannot be exported as a graph") as caught:
        exported_program(network, seeded((2, 6, 5)).float())
    assert "\n" not in str(caught.value)


def test_int8_leaves_the_factors_of_a_recurrent_side_as_they_are():
    """Quantising optimises the graph, which would put the product of 28 x 2 and 2 x 7 into the file."""
    network = compressed(filled(Net(nn.LSTM(5, 7))).float().eval(), "ih hh")
    x = seeded((6, 2, 5)).float()
    proto = quantised(written(network, False), x, "per-channel")
    assert {"rnn.weight_hh_l0.0.weight", "rnn.weight_hh_l0.1.weight"} <= {i.name for i in proto.graph.initializer}
    with torch.no_grad():
        torch.testing.assert_close(answers(proto, [x])[0], network.rnn(x)[0], rtol=0, atol=0.05)


def test_an_export_says_what_it_does_with_the_factors_and_counts_it():
    """digits-lstm takes 8 rows: thin 8 x 3 x (8 + 256) for the inputs, 8 x 256 x 64 for the state, 640 for the head."""
    digits = Workspace.open("builtin:digits-lstm")
    choices = {"rnn.weight_ih_l0": Choice("svd", (3,)), "rnn.weight_hh_l0": Choice("svd", (16,))}
    plan = RankPlan.of(digits.profile.fingerprint, choices)
    forms = forms_of(digits, Compressed(digits.compress(plan, None), plan))
    assert forms.multiplies == 8 * 3 * (8 + 256) + 8 * 256 * 64 + 640 == forms.provenance["graph"]["multiplies"]
    assert forms.planned == plan_cost(digits.profile, plan).multiplies
    thin, product, total = forms.notes
    assert thin == "rnn.weight_ih_l0: a thin product in front of LSTM"
    assert "holds the factors" in product
    assert f"{forms.multiplies:,} multiplies; the plan counts {forms.planned:,}" in total
    dense = digits.compress(RankPlan(digits.profile.fingerprint), None)
    assert forms_of(digits, Compressed(dense, RankPlan(digits.profile.fingerprint))).provenance == {}
