"""Bad input: one clear error each, from the library and on the command line; nothing is run, taken or overwritten."""

import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from lowrank_core import Choice, RankPlan, Workspace, load_checkpoint
from lowrank_core.commands import cli
from lowrank_core.compression.checkpoint import write_checkpoint
from lowrank_core.errors import InvalidFile, LowRankError, UnknownModel
from lowrank_core.scoring.scores import final_score

ROOT = Path(__file__).parents[1]

GOOD = """
import sys
import torch
from torch import nn

def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

def example_inputs():
    return (torch.ones(1, 6),)

def eval_data():
    inputs = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    return inputs, torch.arange(30) % 3
"""

MODELS = {
    "no model file": ("x = 1", "is no model file: it must define build_model"),
    "not Python": ("def build_model(:", r"could not be run: SyntaxError: [^(]*\(line 1: def build_model\(:\)$"),
    "ends at once": ("raise SystemExit(3)", "could not be run: SystemExit"),
    "missing package": ("import not_installed_anywhere", "No module named 'not_installed_anywhere'"),
    "factory raises": (
        GOOD.replace("return nn.Seq", "raise RuntimeError('no\\nluck'); return nn.Seq"),
        r"build_model\(\) failed: RuntimeError: no luck \(line 9: raise RuntimeError\(.*; return nn.Seq",
    ),
    "factory exits": (
        GOOD.replace("return nn.Seq", "sys.exit(5); return nn.Seq"),
        r"build_model\(\) failed: SystemExit",
    ),
    "factory gives no module": (GOOD + "\ndef build_model(): return 5\n", "must return an nn.Module, but got int"),
    "weights that do not fit": (
        GOOD.replace("nn.Linear(8, 3)).eval()", "nn.Linear(8, 3)).load_state_dict({'0.weight': torch.ones(2, 2)})"),
        r"build_model\(\) failed: RuntimeError: .*size mismatch for 0.weight",
    ),
    "NaN weights": (
        GOOD
        + "\nold = build_model\ndef build_model():\n    m = old(); m[2].weight.data[0, 0] = float('nan'); return m\n",
        r"'2\.weight' hold NaN or Inf",
    ),
    "Inf weights": (
        GOOD + "\nold = build_model\ndef build_model():\n    m = old(); m[0].bias.data[0] = float('inf'); return m\n",
        r"'0\.bias' hold NaN or Inf",
    ),
    "example inputs do not fit": (GOOD + "\ndef example_inputs(): return (torch.ones(1, 7),)\n", "forward pass"),
    "example inputs are empty": (GOOD + "\ndef example_inputs(): return (torch.ones(0, 6),)\n", "has no samples"),
    "example inputs are no function": (GOOD + "\nexample_inputs = torch.ones(1, 6)\n", "example|not callable"),
    "no inputs at all": (
        GOOD.replace("def eval_data", "def x").replace("def example_inputs", "def y"),
        "example_inputs",
    ),
}

DATA = {
    "empty": ("return torch.ones(0, 6), torch.ones(0).long()", "is empty"),
    "no batches": ("return iter([])", "is empty"),
    "mismatched": ("return torch.ones(5, 6), torch.ones(4).long()", "5 inputs and 4 targets"),
    "wrong form": ("return 5", "must be .inputs, targets. or an iterable"),
    "wrong size": ("return torch.ones(5, 7), torch.ones(5).long()", "failed on the evaluation inputs"),
    "no classes": ("return torch.ones(5, 6), torch.ones(5)", "must be class indices"),
    "label too large": ("return torch.ones(5, 6), torch.arange(5)", r"labels must be 0\.\.2.*has 0\.\.4"),
    "label below 0": ("return torch.ones(5, 6), torch.arange(5) - 4", r"labels must be 0\.\.2.*has -4\.\.0"),
    "raises": ("raise ValueError('no disk')", r"eval_data\(\) failed: ValueError: no disk"),
}


def refused(*arguments: object, status: int = 1) -> str:
    """Run a command that must be refused: its exit status, nothing on stdout, one line on stderr, which is given."""
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    return errors[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(GOOD)
    return path


@pytest.fixture
def workspace(model: Path) -> Workspace:
    return Workspace.open(str(model))


@pytest.mark.parametrize(("text", "says"), MODELS.values(), ids=MODELS)
def test_model_files(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(text)
    with pytest.raises(LowRankError, match=says):
        Workspace.open(str(path))
    assert re.search(says, refused("layers", path))


def test_a_file_of_another_kind_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.dat"
    path.write_bytes(b"\x00")
    assert "is no model file" in refused("layers", path)
    assert "is no model file" in refused("layers", tmp_path)


@pytest.mark.parametrize("ref", ["builtin:nope", "not/there.py", "nothing", "no_such_package.module"])
def test_a_model_that_is_not_there_is_wrong_usage(ref: str) -> None:
    with pytest.raises(UnknownModel):
        Workspace.open(ref)
    refused("layers", ref, status=2)


@pytest.mark.parametrize(("body", "says"), DATA.values(), ids=DATA)
def test_evaluation_data(body: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(f"{GOOD}\ndef eval_data():\n    {body}\n")
    workspace = Workspace.open(str(path))  # the layers of a model can be seen whatever its data
    with pytest.raises(LowRankError, match=says):
        final_score(workspace.measure(workspace.model))
    assert re.search(says, refused("evaluate", path))


def test_check_reports_bad_data_and_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(f"{GOOD}\ndef eval_data():\n    raise ValueError('no disk')\n")
    result = CliRunner().invoke(cli, ["check", str(path), "--json"])
    assert result.exit_code == 1
    states = {finding["function"]: finding["state"] for finding in json.loads(result.stdout)["functions"]}
    assert (states["build_model"], states["eval_data"], states["train_data"]) == ("there", "refused", "missing")
    assert "no disk" in result.stderr


def test_a_metric_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(GOOD + "\ndef metric(outputs, targets): return outputs.nothing\n")
    assert "metric() failed: AttributeError" in refused("evaluate", path)


def test_sorted_labels_are_shuffled_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(GOOD.replace("torch.arange(30) % 3", "torch.arange(30) // 10"))
    workspace = Workspace.open(str(path))
    first = workspace.reference.dataset.targets[:10]
    assert set(first.tolist()) == {0, 1, 2}
    result = CliRunner().invoke(cli, ["evaluate", str(path), "--samples", "10", "--json"])
    assert "sorted by class; they are shuffled" in result.stderr
    assert json.loads(result.stdout)["samples"] == 10


def plan_text(workspace: Workspace, **changes: object) -> str:
    """A good plan, changed."""
    plan = RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (2,))})
    return json.dumps(json.loads(plan.to_json()) | changes)


PLANS = {
    "another model": ({"model": {"fingerprint": "sha256:0"}}, "made for the model sha256:0"),
    "unknown layer": ({"layers": {"7": {"method": "svd", "rank": [2]}}}, "has no layer '7'"),
    "unknown method": ({"layers": {"0": {"method": "magic", "rank": [2]}}}, "unknown method 'magic'"),
    "rank too large": ({"layers": {"0": {"method": "svd", "rank": [7]}}}, r"rank \[7\] is outside"),
    "rank zero": ({"layers": {"0": {"method": "svd", "rank": [0]}}}, "rank"),
    "too many ranks": ({"layers": {"0": {"method": "svd", "rank": [2, 2]}}}, r"takes 1 rank"),
    "unknown key": ({"color": "red"}, "unknown field `color`"),
    "unknown version": ({"version": 99}, "version must be 1 or 2, but got 99"),
    "not a plan": ({"format": "other"}, "'other'"),
    "correction that is none": ({"correction": {"kind": "magic", "samples": 9}}, "correction is not valid: .*'magic'"),
    "correction with an unknown key": (
        {"correction": {"kind": "bias", "samples": 9, "color": "red"}},
        "unknown field `color`",
    ),
}


@pytest.mark.parametrize(("changes", "says"), PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("command", ["cost", "evaluate"])
def test_plans(command: str, changes: dict[str, object], says: str, workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan_text(workspace, **changes))
    told = refused(command, workspace.opened.ref, "--plan", path)
    assert re.search(says, told)
    assert "plan.json" in told


def test_a_layer_named_twice(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan_text(workspace).replace('"0": {', '"0": {"method": "svd", "rank": [1]}, "0": {'))
    assert "plan.json: the plan file says '0' twice" in refused("cost", workspace.opened.ref, "--plan", path)


def test_training_data_that_fails_stops_the_correction_alone(tmp_path: Path) -> None:
    path, plan = tmp_path / "net.py", tmp_path / "plan.json"
    path.write_text(GOOD + "\ndef train_data():\n    raise ValueError('no disk')\n")
    plan.write_text(plan_text(Workspace.open(str(path))))
    told = refused("evaluate", path, "--plan", plan)
    assert re.search(r"train_data\(\) failed: ValueError: no disk.*--no-correct goes on without the correction", told)
    result = CliRunner().invoke(cli, ["evaluate", str(path), "--plan", str(plan), "--no-correct", "--json"])
    assert json.loads(result.stdout)["samples"] == 30


def test_a_network_whose_path_depends_on_values_is_not_corrected(tmp_path: Path) -> None:
    path, plan = tmp_path / "net.py", tmp_path / "plan.json"
    path.write_text(SWITCHING)
    fingerprint = Workspace.open(str(path)).profile.fingerprint
    plan.write_text(RankPlan.of(fingerprint, {"a": Choice("svd", (1,)), "b": Choice("svd", (1,))}).to_json())
    assert "--no-correct" in refused("evaluate", path, "--plan", plan)


SWITCHING = """
import torch
from torch import nn

class Switching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            for layer in (self.a, self.b):
                layer.weight.copy_(self.exact())

    def forward(self, x):
        y = self.a(x)
        return self.b(y) if torch.equal(y, x @ self.exact().T) else y

    def exact(self):
        return torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))

def build_model():
    return Switching().eval()

def example_inputs():
    return (torch.eye(4),)
"""


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"PK\x03\x04"])
def test_a_file_that_is_no_plan(content: bytes, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    refused("cost", model, "--plan", path)


def test_a_plan_that_is_nested_without_end(workspace: Workspace, tmp_path: Path) -> None:
    """Well-formed, ten thousand deep, where anything may stand."""
    path = tmp_path / "plan.json"
    deep = '{"a":' * 10_000 + "1" + "}" * 10_000
    plan = RankPlan(workspace.profile.fingerprint).to_json(provenance={})
    path.write_text(plan.replace('"provenance": {}', f'"provenance": {deep}'))
    assert "not a valid plan file" in refused("cost", workspace.opened.ref, "--plan", path)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory limits as Linux has them")
def test_a_plan_of_200_mb_is_not_read(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.touch()
    os.truncate(path, 200 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "at most 16 MB" in refused("cost", model, "--plan", path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


def test_a_bundle_is_not_unpacked(workspace: Workspace, tmp_path: Path) -> None:
    """Its members may be called anything; given as a checkpoint it is refused, and no file appears anywhere."""
    folder = tmp_path / "inside"
    folder.mkdir()
    with zipfile.ZipFile(folder / "bundle.zip", "w") as archive:
        for name in ("../escaped", "/tmp/../escaped", "model.safetensors"):
            archive.writestr(name, b"content")
    before = set(tmp_path.rglob("*"))
    told = refused("evaluate", workspace.opened.ref, "--checkpoint", folder / "bundle.zip")
    assert "not one of torch.save" in told
    assert set(tmp_path.rglob("*")) == before


def test_a_refused_plan_writes_nothing(workspace: Workspace, tmp_path: Path) -> None:
    path, out = tmp_path / "plan.json", tmp_path / "out"
    path.write_text(plan_text(workspace, version=3))
    refused("apply", workspace.opened.ref, "--plan", path, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("arguments", [["--layer", "nope"], ["--layer", "0", "--method", "tucker2"]])
def test_spectra_of_what_is_not_there(arguments: list[str], model: Path) -> None:
    refused("spectra", model, *arguments)


# ---- checkpoints ----


def checkpoint(workspace: Workspace, path: Path) -> Path:
    plan = RankPlan.of(workspace.profile.fingerprint, {"0": Choice("svd", (2,))})
    write_checkpoint(
        workspace.compress(plan), workspace.profile, plan, path, plan_document=plan.to_json(), provenance={}
    )
    return path


def with_metadata(change: Callable[[dict[str, object]], object]) -> Callable[[Workspace, Path], None]:
    """A checkpoint whose list of layers is changed."""

    def write(workspace: Workspace, path: Path) -> None:
        raw = checkpoint(workspace, path).read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + length])
        about = json.loads(header["__metadata__"]["lowrank"])
        change(about)
        header["__metadata__"]["lowrank"] = json.dumps(about)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return write


def raw_header(header: object, length: int | None = None) -> Callable[[Workspace, Path], None]:
    """A safetensors file with this header and 16 bytes of data."""
    text = json.dumps(header).encode()

    def write(workspace: Workspace, path: Path) -> None:
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(16))

    return write


def cut(share: float) -> Callable[[Workspace, Path], None]:
    def write(workspace: Workspace, path: Path) -> None:
        raw = checkpoint(workspace, path).read_bytes()
        path.write_bytes(raw[: int(share * len(raw))])

    return write


def cut_torch(workspace: Workspace, path: Path) -> None:
    torch.save(workspace.model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-400])


def first_layer(about: dict[str, object]) -> dict[str, object]:
    return about["layers"][0]  # type: ignore[index]


def first_part(about: dict[str, object]) -> dict[str, object]:
    return first_layer(about)["parts"][0]  # type: ignore[index]


def misshapen(workspace: Workspace, path: Path) -> None:
    state = dict(workspace.model.state_dict())
    state["2.weight"] = torch.ones(3, 9)
    state["extra"] = state.pop("0.bias")
    torch.save(state, path)


def not_finite(workspace: Workspace, path: Path) -> None:
    state = {name: value.clone() for name, value in workspace.model.state_dict().items()}
    state["2.weight"][0, 0] = torch.inf
    save_file(state, path)


CHECKPOINTS: dict[str, tuple[Callable[[Workspace, Path], object], str]] = {
    "cut short": (cut(0.9), "cut short or damaged"),
    "cut in the header": (cut(0.1), "cut short or damaged"),
    "torch file cut short": (cut_torch, "cut short or damaged"),
    "empty": (lambda w, p: p.write_bytes(b""), "neither safetensors nor"),
    "text": (lambda w, p: p.write_text("these are no weights"), "neither safetensors nor"),
    "header longer than the file": (raw_header({"a": 1}, 10**15), "cut short or damaged"),
    "tensor beyond the file": (
        raw_header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        "cut short or damaged",
    ),
    "shape and bytes disagree": (
        raw_header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 16]}}),
        "cut short or damaged",
    ),
    "metadata of another version": (
        with_metadata(lambda about: about.update(format="lowrank-checkpoint/9")),
        "must be 'lowrank-checkpoint/1', but got 'lowrank-checkpoint/9'",
    ),
    "metadata that is not ours": (with_metadata(lambda about: about.clear()), "format must be"),
    "unknown key": (with_metadata(lambda about: about.update(color="red")), "unknown field `color`"),
    "another model": (
        with_metadata(lambda about: about["plan"]["model"].update(fingerprint="sha256:0")),  # type: ignore[index]
        "was made from the model",
    ),
    "unreadable plan": (with_metadata(lambda about: about.update(plan={})), "unreadable plan"),
    "unknown layer in it": (with_metadata(lambda about: first_layer(about).update(name="9")), "'9' cannot be rebuilt"),
    "unknown op": (with_metadata(lambda about: first_part(about).update(op="Evil")), "'0' cannot be rebuilt"),
    "unknown argument": (
        with_metadata(lambda about: first_part(about)["args"].update(x=1)),  # type: ignore[attr-defined]
        "'0' cannot be rebuilt",
    ),
    "argument of another type": (
        with_metadata(lambda about: first_part(about)["args"].update(bias="")),  # type: ignore[attr-defined]
        "'0' cannot be rebuilt",
    ),
    "huge part": (
        with_metadata(lambda about: first_part(about)["args"].update(out_features=2**40)),  # type: ignore[attr-defined]
        "does not fit",
    ),
    "no parts": (with_metadata(lambda about: first_layer(about).update(parts=[])), "'0' is listed, but"),
    "ties to nothing": (with_metadata(lambda about: about.update(ties={"a": "b"})), "ties 'a' to 'b'"),
    "weights do not fit": (
        misshapen,
        r"missing: 0\.bias; unexpected: extra; of another shape or kind: 2\.weight \(3, 9\) for \(3, 8\)",
    ),
    "weights not finite": (not_finite, r"'2\.weight' hold NaN or Inf"),
    "no state_dict": (lambda w, p: torch.save({"loss": 0.5}, p), "must hold a state_dict"),
    "another zip": (lambda w, p: zipfile.ZipFile(p, "w").writestr("a", "b"), "not one of torch.save"),
}


@pytest.mark.parametrize(("write", "says"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints(
    write: Callable[[Workspace, Path], object], says: str, workspace: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "weights.bin"
    write(workspace, path)
    before = path.read_bytes()
    with pytest.raises(InvalidFile, match=says):
        load_checkpoint(workspace.model, path)
    told = refused("evaluate", workspace.opened.ref, "--checkpoint", path)
    assert "weights.bin" in told
    assert path.read_bytes() == before


def test_every_cut_of_a_checkpoint_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    raw = checkpoint(workspace, tmp_path / "c").read_bytes()
    torch.save(workspace.model.state_dict(), tmp_path / "t")
    zipped = (tmp_path / "t").read_bytes()
    short = tmp_path / "short"
    for whole in (raw, zipped):
        for length in range(0, len(whole), 97):
            short.write_bytes(whole[:length])
            with pytest.raises(InvalidFile):
                load_checkpoint(workspace.model, short)


class Attack:
    """Unpickling this writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (f"open({str(self.marker)!r}, 'w').write('run')",)


def test_a_pickle_that_runs_code_is_refused_and_not_run(workspace: Workspace, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    attack = {"state_dict": workspace.model.state_dict(), "extra": Attack(marker)}
    paths = [tmp_path / name for name in ("new.pt", "legacy.pt", "plain.pkl")]
    torch.save(attack, paths[0])
    torch.save(attack, paths[1], _use_new_zipfile_serialization=False)
    paths[2].write_bytes(pickle.dumps(attack))
    torch.load(paths[0], weights_only=False)
    assert marker.exists(), "the attack must work where it is trusted, or this test proves nothing"
    marker.unlink()
    for path, says in zip(paths, ("builtins.exec", "__builtin__.exec", "plain pickle"), strict=True):
        with pytest.raises(InvalidFile, match=says):
            load_checkpoint(workspace.model, path)
        refused("evaluate", workspace.opened.ref, "--checkpoint", path)
    assert not marker.exists()


class Telling(nn.Linear):
    """A layer that tells when it is made again from a pickle."""

    made: ClassVar[list[object]] = []

    def __setstate__(self, state: object) -> None:
        self.made.append(state)
        super().__setstate__(state)


def test_of_a_pickled_module_the_weights_are_read_and_nothing_is_run(tmp_path: Path) -> None:
    network = nn.Sequential(Telling(6, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.save(network, tmp_path / "whole.pt")
    torch.load(tmp_path / "whole.pt", weights_only=False)
    assert Telling.made, "the layer must tell where it is trusted, or this test proves nothing"
    Telling.made.clear()
    empty = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    loaded = load_checkpoint(empty, tmp_path / "whole.pt").model
    assert not Telling.made
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())


def zipped(path: Path, *, member: str, content: bytes, kind: int = zipfile.ZIP_STORED) -> None:
    """A file of torch.save with one float in it, in which one member, told by its ending, has other content."""
    good = io.BytesIO()
    torch.save({"0.weight": torch.ones(1)}, good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", kind) as new:
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename.endswith(member) else old.read(info))


def bomb_expanded(path: Path) -> None:
    torch.save({"0.weight": torch.ones(1).expand(2**34)}, path)


def bomb_compressed(path: Path) -> None:
    zipped(path, member="data/0", content=bytes(2**26), kind=zipfile.ZIP_DEFLATED)


def bomb_claim(path: Path) -> None:
    """A storage said to have more elements than the file holds."""
    zipped(path, member="data.pkl", content=pickle_of(2**34, (0, (2**34,), (1,))))


def bomb_shape(path: Path) -> None:
    """A tensor larger than its storage, which PyTorch would resize."""
    zipped(path, member="data.pkl", content=pickle_of(1, (0, (2**34,), (1,))))


def pickle_of(elements: int, geometry: tuple[object, ...]) -> bytes:
    """{"0.weight": a tensor of this offset, size and stride} in a storage said to have so many elements."""

    class Pickler(pickle._Pickler):  # type: ignore[misc]
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", elements) if value == "STORAGE" else None

    class Claim:
        def __reduce__(self) -> tuple[object, ...]:
            return torch._utils._rebuild_tensor_v2, ("STORAGE", *geometry, False, OrderedDict())

    out = io.BytesIO()
    Pickler(out, protocol=2).dump({"0.weight": Claim()})
    return out.getvalue()


def bomb_called(path: Path) -> None:
    """torch.Tensor(2 ** 17, 2 ** 17): PyTorch's own reader would call it."""

    class Claim:
        def __reduce__(self) -> tuple[object, ...]:
            return torch.Tensor, (2**17, 2**17)

    torch.save({"0.weight": Claim()}, path)


def bomb_copies(path: Path) -> None:
    """One large dictionary, copied into many."""

    class Copy:
        def __reduce__(self) -> tuple[object, ...]:
            return OrderedDict, (pairs,)

    pairs = [[n, n] for n in range(20_000)]
    torch.save({str(n): Copy() for n in range(3_000)}, path)


BOMBS = {
    bomb_expanded: "shape .17179869184,. in a storage of 1 element",
    bomb_compressed: "compressed members",
    bomb_claim: "claims a storage of 17179869184 elements where 4 bytes",
    bomb_shape: "shape .17179869184,. in a storage of 1 element",
    bomb_called: "torch.Tensor",
    bomb_copies: "builds a dictionary in a way",
}

LIMITED = """
import resource, sys
sys.path.insert(0, {root!r})
from torch import nn
from lowrank_core import LowRankError, load_checkpoint
model = nn.Sequential(nn.Linear(6, 8))
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 ** 27, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        load_checkpoint(model, path)
        print("loaded")
    except LowRankError as error:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory limits as Linux has them")
def test_a_tiny_file_that_expands_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """Each one in a process that may take 128 MB more than it has: the refusal is ours, not a failed allocation."""
    paths = []
    for bomb in BOMBS:
        path = tmp_path / f"{bomb.__name__}.pt"
        bomb(path)
        assert path.stat().st_size < 500_000
        paths.append(str(path))
    script = LIMITED.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS), done.stderr
    for line, says in zip(lines, BOMBS.values(), strict=True):
        kilobytes, _, told = line.partition(" ")
        assert re.search(says, told), line
        assert int(kilobytes) < 20_000, line
