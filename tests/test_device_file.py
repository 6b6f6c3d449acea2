"""The file that measures on a device: run where nothing of this product is, and what it writes is read as a table."""

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.commands import cli
from lowrank_core.errors import InvalidFile, InvalidModel
from lowrank_core.graphs.exporting import exported_program, onnx_program
from lowrank_core.graphs.onnx_forms import at_sizes
from lowrank_core.measure import on_device
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.measure.on_device import PROGRAM, device_file
from lowrank_core.measure.staircases import Setting, setting_of
from pages.ui import question
from tests.test_export_formats import workspace_of

IRIS = "builtin:iris-mlp"


@pytest.fixture(scope="module")
def iris() -> Workspace:
    return Workspace.open(IRIS)


def on_the_device(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the program where this product is not to be imported, and no network is to be asked."""
    alone = """
import runpy, sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lowrank_core":
            raise ImportError(name)

def hears(event, given):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(event)

sys.meta_path.insert(0, Refuses())
sys.addaudithook(hears)
runpy.run_path("measure_on_device.py", run_name="__main__")
"""
    (folder / "alone.py").write_text(alone)
    return subprocess.run(
        [sys.executable, "-I", "alone.py", *options], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_the_table_of_a_device_is_one_that_a_search_reads(runtime: str, iris: Workspace, tmp_path: Path) -> None:
    inputs = iris.opened.example_inputs
    network = tmp_path / ("net.onnx" if runtime == "onnxruntime" else "net.pt2")
    if runtime == "onnxruntime":
        network.write_bytes(at_sizes(onnx_program(iris.model, inputs), [[5, 4]]).SerializeToString())
    else:
        torch.export.save(exported_program(iris.model, inputs), network)
    to = tmp_path / "measure_on_device.py"
    said = CliRunner().invoke(cli, ["latency", IRIS, "--device-file", str(to), "--runtime", runtime, "--no-cache"])
    assert said.exit_code == 0, said.output
    done = on_the_device(tmp_path, network.name, "--device", "Pi, the small one")
    assert done.returncode == 0, done.stderr
    assert "the network itself: " in done.stderr
    assert ("the network takes input as [5, 4]" in done.stderr) == (runtime == "onnxruntime")
    table = LatencyTable.from_csv((tmp_path / "table.csv").read_bytes())
    assert table.device.startswith(f"Pi, the small one, {runtime} ")
    assert table.network == hashlib.sha256(network.read_bytes()).hexdigest()
    assert table.fingerprint == iris.profile.fingerprint
    assert table.layers == {layer.name for layer in iris.profile.layers}
    assert all(taken > 0 for steps in table.steps.values() for _, taken in steps)
    assert table.steps.keys() >= {(layer.name, "dense") for layer in iris.profile.layers}
    assert (
        LatencyTable.from_csv(table.to_csv()) == table
        or table.to_csv() == LatencyTable.from_csv(table.to_csv()).to_csv()
    )
    out = ["--out", str(tmp_path / "plan.json"), "--no-cache", "--rule", "uniform"]
    asked = ["search", IRIS, "--microseconds", "1", "--latency-table", str(tmp_path / "table.csv"), *out]
    assert "Microseconds are those of Pi, the small one" in CliRunner().invoke(cli, asked).output


@pytest.mark.slow
def test_a_table_that_is_multiplied_with_is_timed_with_both(tmp_path: Path) -> None:
    tied = workspace_of("tied")
    (tmp_path / "measure_on_device.py").write_text(device_file(tied, Setting("onnxruntime")))
    network = tmp_path / "net.onnx"
    network.write_bytes(onnx_program(tied.model, tied.opened.example_inputs).SerializeToString())
    done = on_the_device(tmp_path, network.name, "--device", "here")
    assert done.returncode == 0, done.stderr
    table = LatencyTable.from_csv((tmp_path / "table.csv").read_bytes())
    assert table.layers == {layer.name for layer in tied.profile.layers}
    assert any(layer.tied for layer in tied.profile.layers)


def test_layers_of_one_shape_are_timed_once_and_no_weight_is_in_it(iris: Workspace) -> None:
    wide = workspace_of("wide")
    text = device_file(wide, setting_of(wide))
    assert len(text) - len(PROGRAM) < 20_000 < 4 * sum(p.numel() for p in wide.model.parameters())
    twice = workspace_of("encoder")
    names = [layer.name for layer in twice.profile.layers]
    assert device_file(twice, Setting()) == device_file(twice, Setting())
    assert names


def test_it_is_the_file_of_the_repository_but_for_its_list(iris: Workspace) -> None:
    theirs, ours = device_file(iris, Setting("torch")).splitlines(), PROGRAM.splitlines()
    assert [at for at, (one, other) in enumerate(zip(theirs, ours, strict=True)) if one != other] == [
        ours.index('WORK = ""  # what is timed: JSON, lzma, base64')
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere.onnx"], "nowhere.onnx cannot be read"),
        ([], "the following arguments are required"),
        (["mine.txt", "--threads", "0"], "--threads must be 1 or more, but got 0."),
        (["mine.txt"], "mine.txt is not run: this file times with torch, which takes a network as .pt2."),
        (["mine.pt2"], "mine.pt2 cannot be run by torch "),
        (["mine.pt2", "--out", "mine.pt2"], "mine.pt2 is there and is no table of this file; give --out another name."),
        (["mine.pt2", "--out", "mine.txt"], "mine.txt is there and is no table of this file; give --out another name."),
    ],
)
def test_a_device_that_lacks_something_says_so_in_one_line(
    iris: Workspace, tmp_path: Path, options: list[str], said: str
) -> None:
    (tmp_path / "measure_on_device.py").write_text(device_file(iris, Setting("torch")))
    for name in ("mine.txt", "mine.pt2"):
        (tmp_path / name).write_text("layer,method\n")
    done = on_the_device(tmp_path, *options)
    assert [(tmp_path / name).read_text() for name in ("mine.txt", "mine.pt2")] == 2 * ["layer,method\n"]
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "table.csv").exists()


def test_a_network_of_no_layers_of_torch_is_refused(iris: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "nn", torch.fft)  # which has no layer
    with pytest.raises(InvalidModel, match="no layer of iris-mlp can be timed with torch"):
        device_file(iris, Setting("torch"))


def test_a_table_of_two_devices_is_refused_and_one_goes_round(tmp_path: Path) -> None:
    rows = [["layer", "method", "rank", "microseconds", "device", "network"], ["fc", "dense", "", "9", "Pi", "ab"]]
    text = "\n".join(map(",".join, rows))
    table = LatencyTable.from_csv(text)
    assert (table.device, table.network, table("fc", None)) == ("Pi", "ab", 9.0)
    assert [*csv.reader(table.to_csv().splitlines())] == rows
    assert table("fc", Choice("svd", (1,))) is None
    with pytest.raises(InvalidFile, match="line 3: all times must be of one device and network, but got 'Pi ab'"):
        LatencyTable.from_csv(f"{text}\nfc,svd,3,4,phone,ab\n")


def test_a_table_of_another_network_is_refused_wherever_one_is_given(
    iris: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "layer,method,rank,microseconds,fingerprint\nfc1,dense,,9,{0}\nfc1,svd,2,4,{0}\nfc2,dense,,9,{0}\n"
    ours, theirs, plan = tmp_path / "ours.csv", tmp_path / "theirs.csv", tmp_path / "plan.json"
    ours.write_text(rows.format(iris.profile.fingerprint))
    theirs.write_text(rows.format("sha256:" + "0" * 64))
    plan.write_text(RankPlan.of(iris.profile.fingerprint, {"fc1": Choice("svd", (2,))}).to_json())
    question.latency_table(ours.read_text(), iris)
    with pytest.raises(InvalidFile, match="the latency table was taken of the network sha256:000000000000"):
        question.latency_table(theirs.read_text(), iris)
    asked = [
        ["search", IRIS, "--microseconds", "0.9", "--rule", "uniform", "--samples", "20", "--out", "found.json"],
        ["evaluate", IRIS, "--plan", str(plan), "--require", "microseconds<=90%"],
        ["export", IRIS, "--dense", "--format", "pt2", "--node-data", "n.json", "--out", "net.pt2"],
    ]
    monkeypatch.chdir(tmp_path)
    before = {*tmp_path.iterdir()}
    for command in asked:
        said = CliRunner().invoke(cli, [*command, "--no-cache", "--latency-table", str(theirs)])
        assert said.exit_code == 1, said.output
        assert "the latency table was taken of the network sha256:000000000000..., but this" in said.output
        assert {*tmp_path.iterdir()} == before
    assert CliRunner().invoke(cli, [*asked[0], "--no-cache", "--latency-table", str(ours)]).exit_code == 0


def test_the_command_refuses_what_it_cannot_time(tmp_path: Path) -> None:
    to = tmp_path / "it.py"
    said = CliRunner().invoke(cli, ["latency", IRIS, "--device-file", str(to), "--runtime", "openvino"])
    assert said.exit_code == 2
    assert "--runtime onnxruntime or torch" in said.output
    to.write_text("mine")
    said = CliRunner().invoke(cli, ["latency", IRIS, "--device-file", str(to)])
    assert said.exit_code == 1
    assert "holds something else than a program that measures on a device" in said.output
    assert to.read_text() == "mine"
