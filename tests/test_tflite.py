"""LiteRT through an environment that a person names: what is asked of it, what it answers, and what is refused."""

import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from lowrank_core import Workspace
from lowrank_core.commands import cli
from lowrank_core.errors import InvalidFile
from lowrank_core.exports import EXPORTS, Compressed, bundle
from lowrank_core.plans.uniform import uniform_plan

IRIS = "builtin:iris-mlp"
HOME = Path(__file__).parents[1] / ".litert"
ANSWERS = """
import sys, torch
from pathlib import Path
folder = Path(sys.argv[-1])
model = torch.export.load(folder / "program.pt2").module(check_guards=False)
samples = torch.load(folder / "inputs.pt", weights_only=True)
(folder / "network.tflite").write_bytes(b"....TFL3" + bytes(8))
torch.save([[model(*sample).detach() + OFFSET] for sample in samples], folder / "outputs.pt")
"""
REFUSES = "raise SystemExit('somewhere\\nNotImplementedError: no lowering of aten.fft')"


@pytest.fixture(scope="module")
def iris() -> Workspace:
    return Workspace.open(IRIS)


@pytest.fixture(scope="module")
def halved(iris: Workspace) -> Compressed:
    plan = uniform_plan(iris.profile, 0.5)
    return Compressed(iris.compress(plan), plan)


def environment(folder: Path, code: str) -> Path:
    """A folder whose Python runs this code, whatever script it is given."""
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (folder / "code.py").write_text(code)
    python.write_text(f'#!/bin/sh\nfor last; do :; done\nexec "{sys.executable}" "{folder / "code.py"}" "$last"\n')
    python.chmod(0o755)
    return folder / "environment"


def export(home: Path | None, out: Path, *more: str) -> tuple[int, str]:
    named = [] if home is None else ["--litert-python", str(home)]
    asked = ["export", IRIS, "--dense", "--format", "tflite", *named, "--out", str(out), "--no-cache", *more]
    result = CliRunner().invoke(cli, asked)
    return result.exit_code, result.output


@pytest.mark.slow
@pytest.mark.skipif(not HOME.is_dir(), reason="no environment in .litert: make litert")
def test_a_real_environment_converts_and_answers(tmp_path: Path) -> None:
    code, said = export(HOME, tmp_path / "net.tflite")
    assert code == 0, said


def test_what_that_environment_wrote_and_answered_is_saved(tmp_path: Path) -> None:
    home = environment(tmp_path, ANSWERS.replace("OFFSET", "1e-6"))
    code, said = export(home, tmp_path / "net.tflite")
    assert code == 0, said
    assert "the file takes one sample at a time" in said
    assert (tmp_path / "net.tflite").read_bytes() == b"....TFL3" + bytes(8)


def test_a_bundle_holds_it_where_the_environment_is_named(
    iris: Workspace, halved: Compressed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bundle, "MEMBERS", {kind: bundle.MEMBERS[kind] for kind in ("safetensors", "tflite", "plan")})
    home = environment(tmp_path, ANSWERS.replace("OFFSET", "0.0"))
    for named in (None, home):
        EXPORTS["bundle"].write(iris, replace(halved, litert_python=named), tmp_path / "b.zip")
        with zipfile.ZipFile(tmp_path / "b.zip") as archive:
            assert ("model.tflite" in archive.namelist()) == (named is not None)
            assert ("model.tflite" in archive.read("README.md").decode()) == (named is not None)


def test_other_answers_are_not_saved_unless_they_are_accepted(tmp_path: Path) -> None:
    home = environment(tmp_path, ANSWERS.replace("OFFSET", "1.0"))
    code, said = export(home, tmp_path / "net.tflite")
    assert code == 1
    assert "was not saved: LiteRT's answers must be those of the measured network, but differ by 1" in said
    assert not (tmp_path / "net.tflite").exists()
    code, said = export(home, tmp_path / "net.tflite", "--accept-difference")
    assert code == 0, said
    assert "more than rounding explains, and was accepted" in said


def test_a_refusal_of_the_converter_is_one_line(tmp_path: Path) -> None:
    code, said = export(environment(tmp_path, REFUSES), tmp_path / "net.tflite")
    assert code == 1
    assert "Error: LiteRT does not take this network: NotImplementedError: no lowering of aten.fft" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code.py", "environment"]


def test_a_place_without_such_an_environment_is_said_before_any_work(tmp_path: Path) -> None:
    for home, said in ((None, "an environment of its own"), (tmp_path, "is no folder with a Python in it")):
        code, output = export(home, tmp_path / "net.tflite")
        assert code == 1
        assert said in output
        assert "`make litert` makes one" in output
    result = CliRunner().invoke(
        cli, ["export", IRIS, "--dense", "--format", "onnx", "--out", "x", "--litert-python", "."]
    )
    assert "--litert-python goes with --format tflite or bundle" in result.output


def test_the_library_refuses_the_same(iris: Workspace, halved: Compressed, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="environment of its own"):
        EXPORTS["tflite"].write(iris, halved, tmp_path / "net.tflite")
    assert [*tmp_path.iterdir()] == []
