"""What each artefact needs where it is used: the script of benchmarks/fresh_env.py with all other packages refused."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks.file_sizes import sizes
from benchmarks.fresh_env import ENVIRONMENTS, Environment, differences, write_artefacts
from lowrank_core import Workspace
from lowrank_core.exports import _reload as reload
from lowrank_core.exports._reload import READERS
from lowrank_core.layers.data import Inputs

REFUSED = ("lowrank_core", "safetensors", "numpy", "torch", "onnx", "onnxscript", "onnxruntime", "msgspec", "sklearn")
BLOCK = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {refused!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """Files are verified here while they are written; these tests start processes of their own."""

    def outputs(kind: str, ref: str, written: Path, batches: list[Inputs], own_seconds: float) -> list[Tensor]:
        return [READERS[kind](ref, str(written))(inputs) for inputs in batches]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload, "outputs_in_fresh_process", outputs)
        yield


@pytest.fixture(scope="module", params=["builtin:digits-cnn", "builtin:digits-lstm"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artefacts")
    write_artefacts(Workspace.open(request.param), "untrained()", 0.5, folder)
    return folder


def skip_without_runtime(environment: Environment) -> None:
    if environment.kind == "c" and not shutil.which("cc"):
        pytest.skip("this machine has no C compiler")
    if environment.kind == "tflite":
        pytest.skip("its packages do not go with ours")
    if environment.kind in ("executorch", "openvino") and find_spec(environment.kind) is None:
        pytest.skip(f"{environment.kind} is not installed")


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=[e.name for e in ENVIRONMENTS])
def test_an_artefact_needs_its_runtime_alone(environment: Environment, written: Path) -> None:
    skip_without_runtime(environment)
    block = BLOCK.format(refused=tuple(set(REFUSED) - set(environment.packages)))
    found = differences(sys.executable, block + environment.script, written)
    assert len(found) == 3
    assert max(found) < 1e-4


@pytest.mark.parametrize("written", ["builtin:digits-cnn"], indirect=True)
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=[e.name for e in ENVIRONMENTS])
def test_it_would_be_noticed_if_it_needed_more(environment: Environment, written: Path) -> None:
    skip_without_runtime(environment)
    block = BLOCK.format(refused=(environment.packages[-1],))
    done = subprocess.run([sys.executable, "-I", "-c", block + environment.script], cwd=written, capture_output=True)
    assert f"No module named '{environment.packages[-1]}'" in done.stderr.decode()


def test_files_are_as_large_as_the_board_says(tmp_path: Path) -> None:
    for size in sizes(Workspace.open("builtin:digits-cnn"), 0.5, tmp_path):
        assert abs(size.difference) < 0.02, size
        assert 0 < size.overhead < 60_000
