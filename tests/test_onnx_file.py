"""Files of ONNX that are damaged, or made to do harm: one line, nothing outside the folder read, memory bounded."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowrank_core import open_source
from lowrank_core.errors import InvalidFile, InvalidModel
from lowrank_core.graphs.reading import read_onnx
from tests.onnx_networks import graph, numbers

NODE = helper.make_node("MatMul", ["x", "w"], ["y"])
WEIGHT = numbers(6, 4)


def made(*, nodes=None, opset=17, **weights):
    return graph(nodes or [NODE], {"w": WEIGHT, **weights}, ("n", 6), opset=opset, answer=("n", "m"))


def written(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def outside(folder: Path, **claims: object) -> Path:
    """A model whose weight lies in another file, with these claims about it."""
    proto = made()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": 0, "length": 96, **claims}.items():
        tensor.external_data.add(key=key, value=str(value))
    return written(proto, folder)


def test_weights_in_a_file_beside_it_are_read(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"head" * 4 + WEIGHT.numpy().tobytes())
    found = read_onnx(outside(tmp_path, offset=16)).model
    np.testing.assert_array_equal(numpy_helper.to_array(found.graph.initializer[0]), WEIGHT)


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/passwd", "sub/../../w.bin", "", "..\\w.bin", "C:\\w.bin", "a\0b", "."]
)
def test_paths_that_lead_outside_are_not_followed(location, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(WEIGHT.numpy().tobytes())
    read = []
    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (read.append(self), plain(self, *a, **k))[1])
    with pytest.raises(InvalidFile, match=r"outside the model's folder|no such file") as refused:
        read_onnx(outside(folder, location=location))
    assert "\n" not in str(refused.value)
    assert {path.name for path in read} <= {"m.onnx"}


@pytest.mark.parametrize("inside", ["w.bin", "sub/w.bin"])
def test_links_are_not_followed(inside, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "w.bin").write_bytes(WEIGHT.numpy().tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    link = folder / inside.split("/")[0]
    link.symlink_to(tmp_path / "secret" / ("" if "/" in inside else "w.bin"))
    with pytest.raises(InvalidFile, match=r"behind the link .* which is not followed"):
        read_onnx(outside(folder, location=inside))


@pytest.mark.parametrize(
    "claims",
    [{"length": 10**15}, {"length": -1}, {"offset": -8}, {"offset": 1}, {"offset": 10**30}, {"length": "many"}],
    ids=str,
)
def test_sizes_that_lie_are_refused(claims, tmp_path):
    (tmp_path / "w.bin").write_bytes(WEIGHT.numpy().tobytes())
    with pytest.raises(InvalidFile, match=r"which cannot be; not opened|which has 96; not opened"):
        read_onnx(outside(tmp_path, **claims))


def test_one_file_is_not_a_hundred_tensors(tmp_path):
    (tmp_path / "w.bin").write_bytes(WEIGHT.numpy().tobytes())
    proto = onnx.load(outside(tmp_path), load_external_data=False)
    for number in range(99):
        again = proto.graph.initializer.add()
        again.CopyFrom(proto.graph.initializer[0])
        again.name = f"w{number}"
    with pytest.raises(InvalidFile, match="claims 9,600 bytes of weights in files of 96"):
        read_onnx(written(proto, tmp_path))


def test_a_constant_outside_is_found_inside_a_node(tmp_path):
    proto = made()
    value = numpy_helper.from_array(WEIGHT.numpy(), "c")
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="/etc/passwd")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=value))
    with pytest.raises(InvalidFile, match="outside the model's folder"):
        read_onnx(written(proto, tmp_path))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04model", b"not a model" * 9, b"\x3a\xff\xff\xff\xff\x7f", made().SerializeToString()[:-30]],
    ids=["empty", "pickle", "text", "long", "cut"],
)
def test_what_is_no_model_is_refused(content, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidFile, match=r"cut short or damaged|holds no graph") as refused:
        open_source(str(path))
    assert "\n" not in str(refused.value)


BOMB = """
import resource, sys
from pathlib import Path
from lowrank_core.graphs.reading import read_onnx
from lowrank_core.errors import InvalidFile
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_onnx(Path(sys.argv[1]))
except InvalidFile as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.slow
def test_a_file_of_millions_of_empty_nodes_takes_no_memory(tmp_path):
    nodes = b"\x0a\x00" * 1_100_000
    length, header = len(nodes), b""
    while length > 127:
        header, length = header + bytes([length & 127 | 128]), length >> 7
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08\x3a" + header + bytes([length]) + nodes)
    done = subprocess.run([sys.executable, "-c", BOMB, path], capture_output=True, text=True, check=True)
    kilobytes, _, told = done.stdout.partition(" ")
    assert "more parts than any network" in told
    assert int(kilobytes) < 100_000


def test_functions_that_double_thirty_times_are_counted_not_written_out(tmp_path):
    proto = made()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    for level in range(30):
        body = [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
        if level:
            body = [helper.make_node(f"f{level - 1}", [a], [b], domain="f") for a, b in ("ab", "bc")]
        proto.functions.append(helper.make_function("f", f"f{level}", ["a"], ["c"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("f", 1))
    proto.graph.node.insert(0, helper.make_node("f29", ["x"], ["z"], domain="f"))
    with pytest.raises(InvalidFile, match="would have 1,073,741,825 nodes once its functions are written out"):
        read_onnx(written(proto, tmp_path))


def test_a_function_that_calls_itself_is_refused(tmp_path):
    proto = made()
    body = [helper.make_node("f", ["a"], ["b"], domain="f")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    proto.functions.append(helper.make_function("f", "f", ["a"], ["b"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("f", 1))
    proto.graph.node.insert(0, helper.make_node("f", ["x"], ["z"], domain="f"))
    with pytest.raises(InvalidFile, match="the function 'f' calls itself"):
        read_onnx(written(proto, tmp_path))


def test_functions_are_written_out(tmp_path):
    body = [helper.make_node("MatMul", ["a", "b"], ["p"]), helper.make_node("Relu", ["p"], ["c"])]
    proto = made(nodes=[helper.make_node("Dense", ["x", "w"], ["y"], domain="mine", name="n")])
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    opsets = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("mine", "Dense", ["a", "b"], ["c"], body, opsets))
    assert [node.op_type for node in read_onnx(written(proto, tmp_path)).model.graph.node] == ["MatMul", "Relu"]


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft"), "com.microsoft.FusedMatMul"),
        (helper.make_node("QuantizeLinear", ["x", "s"], ["y"]), "takes its 2nd input from the data"),
        (helper.make_node("MatMulInteger", ["x", "z"], ["y"]), "takes its 2nd input from the data"),
    ],
    ids=["domain", "quantised", "integers"],
)
def test_what_cannot_be_compressed_is_named(node, told, tmp_path):
    proto = made()
    del proto.graph.node[:]
    proto.graph.node.append(node)
    with pytest.raises(InvalidModel, match=told):
        read_onnx(written(proto, tmp_path))


@pytest.mark.parametrize("opset", [6, 24])
def test_operators_of_other_versions_are_refused(opset, tmp_path):
    with pytest.raises(InvalidModel, match=f"is written in opset {opset}, and 7 to 23 are read"):
        read_onnx(written(made(opset=opset), tmp_path))


@pytest.mark.parametrize("opset", [13, 18, 23])
def test_the_versions_between_are_read(opset, tmp_path):
    read_onnx(written(made(opset=opset), tmp_path))


def test_a_weight_of_another_size_than_its_shape_is_refused(tmp_path):
    proto = made()
    proto.graph.initializer[0].dims[0] = 10**12
    with pytest.raises((InvalidFile, InvalidModel)) as refused:
        open_source(str(written(proto, tmp_path)))
    assert "\n" not in str(refused.value)


def test_a_node_that_fills_memory_is_refused(tmp_path):
    shape = numpy_helper.from_array(np.array([10**7, 10**7]), "s")
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])]
    proto = made(nodes=nodes)
    proto.graph.initializer.append(shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidModel, match="makes 100,000,000,000,000 numbers"):
        open_source(str(written(proto, tmp_path)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    proto = made()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((6, 4), np.nan, np.float32), "w"))
    with pytest.raises(InvalidModel, match="hold NaN or Inf"):
        open_source(str(written(proto, tmp_path)))
