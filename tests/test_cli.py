"""The command line: what each command prints, as text and as one JSON object, and its exit status."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import Tensor

from lowrank_core import Choice, RankPlan, Workspace, load_checkpoint, plan_cost
from lowrank_core.algebra.spectra import effective_rank, stable_rank
from lowrank_core.commands import cli
from lowrank_core.exports import _reload as reload
from lowrank_core.figures import count, share
from lowrank_core.layers.data import Outputs, call
from lowrank_core.layers.data import run as run_batch
from lowrank_core.measure.depth import depth_errors
from lowrank_core.methods import METHODS
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.scoring.scores import final_score
from lowrank_core.version import versions

ROOT = Path(__file__).parents[1]
RESNET = ROOT.parent / "shared" / "data" / "resnet20_cifar10.py"
MODEL = "builtin:iris-mlp"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def answer(*arguments: object) -> dict[str, Any]:
    """The JSON object on stdout, which must be everything there."""
    found = json.loads(run(*arguments, "--json").stdout, parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open(MODEL)


@pytest.fixture(scope="module")
def plan(workspace: Workspace) -> RankPlan:
    return RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (2,)), "fc2": Choice("svd", (1,))})


@pytest.fixture
def plan_file(plan: RankPlan, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    return path


def test_layers(workspace: Workspace) -> None:
    found = answer("layers", MODEL)
    dense = plan_cost(workspace.profile)
    assert found["fingerprint"] == workspace.profile.fingerprint
    assert [found[key] for key in ("name", "parameters", "bytes", "multiplies")] == ["iris-mlp", 83, 332, 70]
    assert found["additions"] == dense.additions
    assert found["versions"] == versions()
    assert set(found["rest"]) == {"parameters", "bytes", "multiplies", "buffer_bytes"}
    first = found["layers"][0]
    assert first["weight_shape"] == [10, 4]
    assert (first["parameters"], first["bytes"], first["multiplies"], first["itemsize"]) == (50, 200, 40, 4)
    assert first["in_sizes"] == [[]]
    (svd,) = (m for m in first["methods"] if m["name"] == "svd")
    assert svd == {"name": "svd", "max_rank": [4], "break_even_bytes": [2], "break_even_multiplies": [2]}


def test_layers_tells_the_ranks_of_every_method_and_fits_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in set(map(type, METHODS.values())):
        monkeypatch.setattr(method, "factorize", lambda *args: pytest.fail("layers needs no factors"))
    found = [layer for name in ("digits-cnn", "digits-lstm") for layer in answer("layers", f"builtin:{name}")["layers"]]
    assert {m["name"] for layer in found for m in layer["methods"]} == set(METHODS)
    for layer in found:
        for m in layer["methods"]:
            assert set(m) == {"name", "max_rank", "break_even_bytes", "break_even_multiplies"}
            assert len(m["max_rank"]) == len(METHODS[m["name"]].axes)
            assert all(0 <= rank <= top for rank, top in zip(m["break_even_bytes"], m["max_rank"], strict=True))


def test_layers_as_text() -> None:
    text = run("layers", MODEL).stdout
    assert "for one sample" in text
    assert "fc1" in text
    text = run("layers", "builtin:digits-cnn").stdout
    assert "bn1  BatchNorm2d  normalisation" in text


def test_skipped_layers_have_a_reason() -> None:
    skipped = answer("layers", "builtin:digits-cnn")["skipped"]
    assert {s["name"] for s in skipped} == {"bn1", "bn2", "bn3"}
    assert all(s["reason"] and s["type"] == "BatchNorm2d" for s in skipped)


def test_spectra(workspace: Workspace) -> None:
    found = answer("spectra", MODEL, "--layer", "fc2", "--layer", "fc1")["layers"]
    assert [layer["name"] for layer in found] == ["fc2", "fc1"]
    sigma = workspace.factors("fc1", "svd").spectra[0]
    assert found[1]["spectra"] == [{"axis": "rank", "singular_values": sigma.tolist()}]
    assert found[1]["effective_rank"] == effective_rank(sigma)
    assert found[1]["stable_rank"] == stable_rank(sigma)


def test_spectra_of_one_method_shows_the_layers_it_fits() -> None:
    found = answer("spectra", "builtin:digits-cnn", "--method", "tucker2")["layers"]
    assert [layer["name"] for layer in found if layer["name"].startswith("conv")] == [x["name"] for x in found]
    assert [s["axis"] for s in found[-1]["spectra"]] == ["out", "in"]
    assert "tucker2" in run("spectra", "builtin:digits-cnn", "--method", "tucker2").stdout


def test_cost(workspace: Workspace, plan: RankPlan, plan_file: Path) -> None:
    found = answer("cost", MODEL, "--plan", plan_file)
    for key, expected in (("dense", plan_cost(workspace.profile)), ("compressed", plan_cost(workspace.profile, plan))):
        assert found[key] == {
            name: getattr(expected, name) for name in ("parameters", "bytes", "multiplies", "additions")
        }
    text = run("cost", MODEL, "--plan", plan_file).stdout
    assert share(found["compressed"]["multiplies"] / found["dense"]["multiplies"]) in text


def test_a_rank_that_saves_nothing_is_pointed_out(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (4,))}).to_json())
    result = run("cost", MODEL, "--plan", path, "--json")
    assert "'fc1': rank [4] saves neither bytes nor multiplies" in result.stderr
    assert json.loads(result.stdout)


SCORE = ("metric", "dense", "value", "drop", "drop_low", "drop_high")


def test_evaluate(workspace: Workspace, plan: RankPlan, plan_file: Path) -> None:
    """Corrected on up to 256 training samples, as the pages do it; the score without is there when asked for."""
    result = run("evaluate", MODEL, "--plan", plan_file, "--compare", "--json")
    found = json.loads(result.stdout)
    expected = final_score(workspace.measure(workspace.compress(plan, workspace.correction)))
    uncorrected = final_score(workspace.measure(workspace.compress(plan)))
    assert found["samples"] == len(workspace.reference)
    for key in SCORE:
        assert found[key] == getattr(expected, key)
        assert found["uncorrected"][key] == getattr(uncorrected, key)
    assert found["correction"] == workspace.correction.to_dict()
    assert uncorrected.value < expected.value
    assert "correcting layer 1 of 2\n" in result.stderr
    assert f"{expected.samples} of {expected.samples} samples" in result.stderr
    text = run("evaluate", MODEL, "--plan", plan_file, "--compare").stdout
    assert "95 % interval" in text
    assert text.count("drop") == 2


def test_evaluate_tells_where_the_error_arises(workspace: Workspace, plan: RankPlan, plan_file: Path) -> None:
    run_of = run("evaluate", MODEL, "--plan", plan_file, "--samples", "1", "--depth", "--json")
    found, expected = json.loads(run_of.stdout)["depth"], depth_errors(workspace, Candidate(plan, workspace.correction))
    assert found["samples"] == expected.samples
    for told, layer in zip(found["layers"], expected.layers, strict=True):
        assert told["name"] == layer.name
        assert (told["plain"], told["corrected"]) == pytest.approx((layer.plain, layer.corrected), rel=1e-6)
    assert any(layer.plain for layer in expected.layers)


def test_no_correct(workspace: Workspace, plan: RankPlan, plan_file: Path) -> None:
    result = run("evaluate", MODEL, "--plan", plan_file, "--no-correct", "--json")
    found = json.loads(result.stdout)
    assert found["value"] == final_score(workspace.measure(workspace.compress(plan))).value
    assert found["correction"] is None
    assert "uncorrected" not in found
    assert "correct" not in result.stderr


@pytest.mark.parametrize(
    ("said", "used"),
    [
        (None, None),
        ({"kind": "bias", "samples": 20, "seed": 3}, Correction("bias", 20, 3)),
        ({"kind": "least_squares", "samples": 10_000, "ridge": 0.5}, Correction(ridge=0.5)),
    ],
    ids=["none", "bias", "more samples than there are"],
)
def test_a_plan_says_how_it_is_corrected(
    said: dict[str, Any] | None, used: Correction | None, workspace: Workspace, plan: RankPlan, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json(correction=said))
    found = answer("evaluate", MODEL, "--plan", path)
    assert found["value"] == final_score(workspace.measure(workspace.compress(plan, used))).value
    if used is None:
        assert found["correction"] is None
    else:
        assert found["correction"].pop("data").startswith("sha256:")
        available = len(workspace.opened.train_data())
        expected = {**used.to_dict(), "samples": min(said["samples"], available)}
        assert {**found["correction"], "data": ""} == expected
    assert answer("evaluate", MODEL, "--plan", path, "--no-correct")["correction"] is None


def test_other_calibration_data_is_a_notice(plan: RankPlan, workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for data, told in ((workspace.correction.data, False), ("sha256:other", True)):
        path.write_text(plan.to_json(correction={**workspace.correction.to_dict(), "data": data}))
        result = run("evaluate", MODEL, "--plan", path, "--json")
        assert ("corrected on other samples" in result.stderr) == told
        assert json.loads(result.stdout)["correction"] == workspace.correction.to_dict()


def test_a_dense_plan_needs_no_correction_and_no_second_pass(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(RankPlan(workspace.profile.fingerprint).to_json())
    passes: list[int] = []
    batches = 1 + -(-len(workspace.reference) // workspace.reference.batch)  # the first tells how many fit
    monkeypatch.setattr("lowrank_core.scoring.scores.run", lambda *args: passes.append(1) or run_batch(*args))
    for arguments in ([], ["--plan", path]):
        found = answer("evaluate", MODEL, *arguments)
        assert (found["drop"], found["correction"]) == (0, None)
        assert len(passes) == batches
        passes.clear()


def test_evaluate_dense_alone_on_some_samples() -> None:
    found = answer("evaluate", MODEL, "--samples", 20)
    assert (found["samples"], found["drop"]) == (20, 0)
    assert "drop" not in run("evaluate", MODEL).stdout


@pytest.fixture
def same_process(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to spare a command its fresh process, which test_exports.py and the first `apply` below do start."""

    def outputs(kind: str, ref: str, checkpoint: Path, batches: list[Tensor], own_seconds: float) -> list[Outputs]:
        with torch.no_grad():
            return [call(load_checkpoint(workspace.model, checkpoint).model, inputs) for inputs in batches]

    return lambda: monkeypatch.setattr(reload, "outputs_in_fresh_process", outputs)


def test_apply_and_export_write_the_same_kind_of_checkpoint(
    plan_file: Path, plan: RankPlan, tmp_path: Path, same_process: Callable[[], None]
) -> None:
    """apply --plan, then export --checkpoint with the same plan: the scores are those of the plan itself."""
    first, second = tmp_path / "any name", tmp_path / "b.safetensors"
    applied = answer("apply", MODEL, "--plan", plan_file, "--out", first)
    same_process()
    assert answer("apply", MODEL, "--plan", plan_file, "--out", second)["path"] == str(second)
    assert first.read_bytes() == second.read_bytes()  # the same inputs on one machine give the same file
    again = answer(
        "export", MODEL, "--format", "safetensors", "--plan", plan_file, "--checkpoint", first, "--out", second
    )
    measured = answer("evaluate", MODEL, "--plan", plan_file)
    assert measured["correction"]["kind"] == "least_squares"
    for found, path in ((applied, first), (again, second)):
        assert found["path"] == str(path)
        assert found["bytes"] == path.stat().st_size
        assert found["max_abs_diff"] == 0
        assert found["score"]["value"] == measured["value"]
        assert found["correction"] == measured["correction"]
        assert answer("evaluate", MODEL, "--checkpoint", path) == measured
    assert first.read_bytes() == second.read_bytes()
    plain = answer("apply", MODEL, "--plan", plan_file, "--out", second, "--no-correct")
    assert plain["correction"] is None
    assert plain["score"]["value"] < measured["value"]
    assert answer("evaluate", MODEL, "--checkpoint", second)["correction"] is None

    other = tmp_path / "other.json"
    other.write_text(plan.with_choice("fc1", None).to_json())
    command = ["export", MODEL, "--format", "safetensors", "--plan", other, "--checkpoint", first, "--out", second]
    before = second.read_bytes()
    result = CliRunner().invoke(cli, [*map(str, command)])
    assert result.exit_code == 1
    assert "was not made by the plan" in result.stderr
    assert second.read_bytes() == before


def test_export_of_the_dense_network(tmp_path: Path, same_process: Callable[[], None]) -> None:
    same_process()
    out = tmp_path / "dense"
    found = answer("export", MODEL, "--format", "safetensors", "--dense", "--out", out)
    assert (found["max_abs_diff"], found["score"]["drop"]) == (0, 0)


@pytest.mark.parametrize("options", [["--dtype", "float16"], ["--fold-bias"], ["--dense"]])
def test_evaluate_reads_what_export_stored_otherwise(
    options: list[str], plan_file: Path, tmp_path: Path, same_process: Callable[[], None]
) -> None:
    same_process()
    out = tmp_path / "stored"
    command = ["export", MODEL, "--format", "safetensors", "--plan", plan_file, "--out", out, *options]
    found = answer(*command)
    assert {"path", "bytes", "max_abs_diff", "score"} <= set(found)
    measured = answer("evaluate", MODEL, "--checkpoint", out)
    assert (measured["value"], measured["correction"]) == (found["score"]["value"], found["correction"])


APPLIED = """
import sys
from safetensors.torch import save_file
from lowrank_core import Workspace, read_plan
workspace = Workspace.open(sys.argv[1])
model = workspace.compress(read_plan(open(sys.argv[2], "rb").read()).plan, workspace.correction)
save_file(model.state_dict(), sys.argv[3])
"""


@pytest.mark.slow
def test_a_plan_gives_the_same_tensors_in_any_process(tmp_path: Path) -> None:
    """A fresh process, and this one after it compressed and corrected other plans; what `apply` writes is that."""
    busy = Workspace.open("builtin:digits-cnn")
    plan = uniform_plan(busy.profile, 0.4)
    (tmp_path / "plan.json").write_text(plan.to_json())
    command = [sys.executable, "-c", APPLIED, "builtin:digits-cnn", tmp_path / "plan.json", tmp_path / "fresh"]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True)
    for other in (uniform_plan(busy.profile, 0.3), plan.with_choice("fc1", None)):
        busy.compress(other, busy.correction)
    own, fresh = busy.compress(plan, busy.correction).state_dict(), load_file(tmp_path / "fresh")
    assert fresh.keys() == own.keys()
    assert [name for name, value in fresh.items() if not torch.equal(value, own[name])] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["layers"],
        ["nonsense"],
        ["cost", MODEL],
        ["cost", MODEL, "--plan", "not-there.json"],
        ["evaluate", MODEL, "--samples", "0"],
        ["evaluate", MODEL, "--plan", __file__, "--checkpoint", __file__],
        ["evaluate", MODEL, "--checkpoint", "not-there"],
        ["evaluate", MODEL, "--compare"],
        ["evaluate", MODEL, "--compare", "--checkpoint", __file__],
        ["evaluate", MODEL, "--depth"],
        ["spectra", MODEL, "--method", "magic"],
        ["export", MODEL, "--format", "gif", "--out", "x", "--dense"],
        ["export", MODEL, "--format", "safetensors", "--out", "x"],
        ["export", MODEL, "--format", "safetensors", "--out", "x", "--dense", "--dtype", "int8"],
        ["new", "model.txt"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_new_file_works_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    assert answer("new", path)["path"] == str(path)
    assert path.read_text().count("REPLACE") >= 5
    report = answer("check", path)
    states = {finding["function"]: finding["state"] for finding in report["functions"]}
    there = dict.fromkeys(("build_model", "example_inputs", "eval_data", "train_data"), "there")
    assert states == {**there, "metric": "missing", "evaluate": "missing"}
    assert report["refused"] == []
    assert report["layers"] == 3
    assert report["score"]["samples"] == 200
    assert "4 classes of" in run("check", path).stdout


def test_new_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("precious")
    result = CliRunner().invoke(cli, ["new", str(path)])
    assert result.exit_code == 1
    assert "not overwritten" in result.stderr
    assert path.read_text() == "precious"


BARE = """
import torch
from torch import nn

print("loading")

def build_model():
    print("building")
    return nn.Sequential(nn.Linear(6, 3)).requires_grad_(False).eval()

def example_inputs():
    return (torch.ones(4, 6),)
"""


def test_check_says_what_is_missing_and_what_that_costs(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(BARE)
    report = answer("check", path)
    details = {f["function"]: f["detail"] for f in report["functions"] if f["state"] == "missing"}
    assert set(details) == {"eval_data", "train_data", "metric", "evaluate"}
    assert "agreement with the dense network" in details["eval_data"]
    assert report["score"]["metric"] == "agreement with the dense network"


def test_what_a_model_file_prints_does_not_mix_with_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(BARE)
    result = run("layers", path, "--json")
    assert json.loads(result.stdout)["name"] == "net"
    assert "building" in result.stderr


def test_a_score_of_ones_own(tmp_path: Path) -> None:
    """evaluate(model) instead of data; a figure that is not finite is none."""
    path = tmp_path / "net.py"
    path.write_text(BARE + "\nhigher_is_better = False\ndef evaluate(model): return 0.25\n")
    found = answer("evaluate", path)
    assert (found["value"], found["samples"], found["drop_low"]) == (0.25, None, None)
    for figure in ("inf", "-inf", "nan"):
        path.write_text(f"{BARE}\ndef evaluate(model): return float({figure!r})\n")
        refused = CliRunner().invoke(cli, ["evaluate", str(path), "--json"])
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "evaluate(model) of net gave" in refused.stderr


def test_without_train_data_evaluation_inputs_correct_and_it_is_said(tmp_path: Path) -> None:
    """Here there is no eval_data() either: four example inputs are everything."""
    path, plan = tmp_path / "net.py", tmp_path / "plan.json"
    path.write_text(BARE.replace('print("building")', "torch.manual_seed(0)"))
    plan.write_text(RankPlan.of(Workspace.open(str(path)).profile.fingerprint, {"0": Choice("svd", (1,))}).to_json())
    result = run("evaluate", path, "--plan", plan, "--json")
    assert "calibration uses evaluation inputs, without their labels" in result.stderr
    assert "corrected 1 of 1 layers on 4 samples" in result.stderr
    assert json.loads(result.stdout)["correction"]["samples"] == 4


def test_a_module_from_its_own_folder(tmp_path: Path) -> None:
    """A model file may import what lies beside it."""
    (tmp_path / "neighbour_net.py").write_text("from torch import nn\ndef net(): return nn.Linear(4, 4).eval()\n")
    path = tmp_path / "uses_neighbour.py"
    path.write_text(
        "import torch\nfrom neighbour_net import net as build_model\ndef example_inputs(): return (torch.ones(1, 4),)\n"
    )
    assert answer("layers", path)["multiplies"] == 16


@pytest.mark.slow
def test_the_real_process() -> None:
    """`python -m lowrank_core`: one JSON object, exit status 0; 1 where refused; 2 where nothing is there."""
    command = [sys.executable, "-m", "lowrank_core", "layers"]
    done = subprocess.run([*command, MODEL, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["multiplies"]) == (0, 70)
    bad = subprocess.run([*command, "tests"], cwd=ROOT, capture_output=True, text=True)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (1, "", 1)


@pytest.mark.skipif(not RESNET.exists(), reason="the shared ResNet-20 is not here")
def test_resnet20() -> None:
    found = answer("layers", RESNET)
    assert found["multiplies"] == 40_551_040
    assert sum(layer["weights"] for layer in found["layers"]) == 268_336
    assert "for one sample" in found["counted"]


def test_figures_for_people() -> None:
    assert [count(n) for n in (0, 999, 9_999, 10_000, 40_551_040, 15_470_264_320, 2e12)] == [
        "0",
        "999",
        "9.999 k",
        "10.00 k",
        "40.55 M",
        "15.47 G",
        "2.000 T",
    ]
    assert [count(n, "B") for n in (332, 1_078_888)] == ["332 B", "1.079 MB"]


def test_half_of_everything_is_told(tmp_path: Path) -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    path = tmp_path / "half.json"
    path.write_text(uniform_plan(workspace.profile, 0.5).to_json())
    found = answer("cost", "builtin:digits-cnn", "--plan", path)
    assert 0.4 < found["compressed"]["multiplies"] / found["dense"]["multiplies"] <= 0.5
