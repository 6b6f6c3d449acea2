"""OpenVINO: written and run in a fresh process, timed beside the other runtimes, and silent about who uses it."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from lowrank_core import RankPlan, Workspace
from lowrank_core.commands import cli
from lowrank_core.errors import InvalidFile, InvalidModel, MissingExtra, OtherAnswers
from lowrank_core.exports import EXPORTS, Compressed
from lowrank_core.graphs import openvino as runtime
from lowrank_core.graphs.exporting import onnx_program
from lowrank_core.layers.data import Dataset, call, run
from lowrank_core.measure import latency
from lowrank_core.measure.latency import network_latency, runtimes_here
from lowrank_core.measure.staircases import Setting, chain_work, setting_of
from lowrank_core.one_call import check_beside
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.store.files import weights_beside
from lowrank_core.store.kinds import EXPORTED
from tests.test_export_formats import NETWORKS, compressed, workspace_of

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(find_spec("openvino") is None, reason="the extra edge is not installed"),
]

WRITTEN = EXPORTS["openvino"]


@pytest.fixture(scope="module")
def iris() -> Workspace:
    return Workspace.open("builtin:iris-mlp")


@pytest.fixture(scope="module")
def halved(iris: Workspace) -> Compressed:
    plan = uniform_plan(iris.profile, 0.5)
    return Compressed(iris.compress(plan), plan)


@pytest.mark.slow
def test_a_fresh_process_runs_what_was_written(iris: Workspace, halved: Compressed, tmp_path: Path) -> None:
    found = WRITTEN.write(iris, halved, tmp_path / "net.xml")
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["net.bin", "net.xml"]
    assert (found.verdict, found.beside) == ("same", (str(tmp_path / "net.bin"),))
    assert found.bytes == sum(file.stat().st_size for file in files)
    assert EXPORTED["openvino"](tmp_path / "net.xml")
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in files)
    (code, plan) = (snippet.code for snippet in WRITTEN.snippets("builtin:iris-mlp", str(tmp_path / "net.xml")))
    (inputs,), names = iris.opened.example_inputs, {"array": iris.opened.example_inputs[0].numpy()}
    with runtime._untold():
        exec(f"{code}outputs = network([array])", names)
        exec(plan, names)
    assert torch.allclose(torch.from_numpy(names["outputs"][0]), halved.model(inputs), atol=1e-5)
    assert RankPlan.from_json(json.dumps(names["plan"])) == halved.plan
    before = {file: file.read_bytes() for file in files}
    again = replace(halved, model=iris.model)
    WRITTEN.write(iris, again, tmp_path / "net.xml")
    assert before[files[0]] != files[0].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["groups", "transposed", "gru", "attention"])
def test_every_batch_of_every_kind_of_layer(name: str, tmp_path: Path) -> None:
    workspace = workspace_of(name)
    network = compressed(workspace, name).model
    inputs = NETWORKS[name][1]
    model = runtime.from_onnx(onnx_program(network, inputs).SerializeToString())
    runtime.runtime().save_model(model, tmp_path / "net.xml", compress_to_fp16=False)
    read = runtime.OpenVinoNetwork(str(tmp_path / "net.xml"))
    for size in (1, 2, 7):
        (ours,), (theirs,) = run(network, Dataset(inputs[:size])).values(), call(read, inputs[:size]).values()
        assert torch.allclose(ours, theirs, atol=1e-5), size


class ScaledMean(nn.Module):
    """A product with a mean over places, which OpenVINO 2026.4 takes for a product with the places themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, bias=False)
        self.register_buffer("scale", torch.linspace(1, 2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean(-1) * self.scale


@pytest.mark.slow
def test_what_it_computes_otherwise_is_not_saved(tmp_path: Path) -> None:
    inputs = torch.randn(9, 4, 12, generator=torch.Generator().manual_seed(0))
    workspace = Workspace.of(ScaledMean().eval(), inputs, eval_data=lambda: Dataset(inputs))
    given = Compressed(workspace.model, RankPlan(workspace.profile.fingerprint))
    with pytest.raises(OtherAnswers, match="of the largest output, and rounding explains"):
        WRITTEN.write(workspace, given, tmp_path / "net.xml")
    assert [*tmp_path.iterdir()] == []


def test_nothing_is_told_and_nothing_is_written_into_the_home_folder(tmp_path: Path) -> None:
    code = """
import sys
calls = []
sys.addaudithook(lambda event, given: calls.append(event) if event.startswith("socket.") else None)
from lowrank_core.graphs.openvino import runtime
runtime().Core()
print([event for event in calls if event != "socket.gethostname"], "openvino_telemetry" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[] False"
    assert [*tmp_path.iterdir()] == []


def test_networks_chains_and_int8_files_are_timed(iris: Workspace, halved: Compressed) -> None:
    inputs = iris.opened.example_inputs
    content = onnx_program(halved.model, inputs).SerializeToString()
    timings = network_latency(iris.model, [halved.model, content], inputs, runtime="openvino", rounds=1)
    assert [timing.rounds for timing in timings] == [1, 1]
    setting = setting_of(iris, "openvino")
    assert setting == Setting("openvino", 1, iris.opened.batch, "float32")
    layer = iris.profile.layers[0]
    work = chain_work((layer.spec,), layer, setting)
    assert work.__self__.get_output_tensor(0).shape[-1] == layer.spec.out_channels  # type: ignore[attr-defined]
    assert runtimes_here() == ("onnxruntime", "torch", "openvino")


def test_its_work_runs_in_the_thread_whose_clock_is_read(iris: Workspace) -> None:
    layer, seen = max(iris.profile.layers, key=lambda each: each.spec.weights), []
    work = chain_work((layer.spec,), layer, Setting("openvino"))
    for _ in range(3):
        before = latency.time.thread_time(), latency.time.process_time()
        for _ in range(3000):
            work()
        thread = latency.time.thread_time() - before[0]
        process = latency.time.process_time() - before[1]
        seen.append(thread / process)
    assert max(seen) > 0.8, seen


def test_a_name_that_does_not_fit_is_refused(iris: Workspace, halved: Compressed, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"must end in \.xml"):
        WRITTEN.write(iris, halved, tmp_path / "net.onnx")
    assert [*tmp_path.iterdir()] == []
    assert weights_beside(tmp_path / "net.xml") == tmp_path / "net.bin"


def test_weights_are_replaced_where_they_are_of_our_graph_alone(
    iris: Workspace, halved: Compressed, tmp_path: Path
) -> None:
    kind, graph, weights = EXPORTED["openvino"], tmp_path / "net.xml", tmp_path / "net.bin"
    model = runtime.from_onnx(onnx_program(halved.model, iris.opened.example_inputs).SerializeToString())
    model.set_rt_info("{}", "lowrank_plan")
    runtime.save(model, graph)
    assert kind(graph)
    assert kind(weights)
    own, export = weights.read_bytes(), ["export", "builtin:iris-mlp", "--dense", "--format", "openvino", "--out"]
    weights.write_text("precious")
    for _ in range(2):  # beside a graph of ours, and without one
        refused = CliRunner().invoke(cli, [*export, str(graph)])
        assert (refused.exit_code, refused.output.count("\n")) == (1, 1), refused.output
        assert "net.bin is there and holds something else than an OpenVINO model" in refused.output
        with pytest.raises(InvalidFile, match=r"net\.bin, where the weights go, is not of a net\.xml of ours"):
            check_beside("openvino", graph)
        graph.unlink(missing_ok=True)
    assert weights.read_text() == "precious"
    done = CliRunner().invoke(cli, [*export, str(graph), "--force"])
    assert done.exit_code == 0, done.output
    assert kind(graph)
    assert kind(weights)
    assert weights.read_bytes() != own
    check_beside("openvino", graph)


def test_a_full_disk_is_said_as_it_is_of_other_files(
    iris: Workspace, halved: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource", reason="limits of file sizes are of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(model: object, path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            runtime.save(model, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr("lowrank_core.exports.openvino.save", save)
    with pytest.raises(InvalidFile, match=r"net\.bin could not be written: File too large; larger files are not"):
        WRITTEN.write(iris, halved, tmp_path / "net.xml")
    assert [*tmp_path.iterdir()] == []


def test_what_it_has_no_operator_for_is_said_in_one_line() -> None:
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Nowhere", ["x"], ["y"], domain="of.nobody")
    sizes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "g", sizes[:1], sizes[1:])
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("of.nobody", 1)]
    content = helper.make_model(graph, opset_imports=sets).SerializeToString()
    with pytest.raises(InvalidModel, match=r"OpenVINO cannot take this network: .*Nowhere") as found:
        runtime.from_onnx(content)
    assert "\n" not in str(found.value)
    assert onnx.__name__


def test_the_command_says_what_is_missing_or_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    export = ["export", "builtin:iris-mlp", "--dense", "--format", "openvino", "--out"]
    result = CliRunner().invoke(cli, [*export, str(tmp_path / "net.ov")])
    assert result.exit_code == 2
    assert "NAME.xml, and NAME.bin beside it" in result.output
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"rank-explorer\[edge\]"):
        runtime.runtime()
    result = CliRunner().invoke(cli, [*export, str(tmp_path / "net.xml")])
    assert result.exit_code == 1
    assert "pip install 'rank-explorer[edge]'" in result.output
    assert [*tmp_path.iterdir()] == []
