"""Programs of ExecuTorch: lowered to XNNPACK, run by ExecuTorch's own runtime in a fresh process, in float and int8."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_core import Workspace
from lowrank_core.compression.precision import Storage
from lowrank_core.errors import InvalidFile
from lowrank_core.exports import EXPORTS, Compressed, loading
from lowrank_core.graphs.executorch_network import ExecutorchNetwork
from lowrank_core.layers.data import Dataset, run
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.store.kinds import EXPORTED

pytest.importorskip("executorch", reason="the extra edge is not installed")
ALONE = """
import logging
from lowrank_core.graphs.executorch_network import available

logging.getLogger("torchao").setLevel(logging.DEBUG)
available()
print(logging.getLogger("torchao").level)
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def iris() -> Workspace:
    return Workspace.open("builtin:iris-mlp")


@pytest.fixture(scope="module")
def compressed(iris: Workspace) -> Compressed:
    plan = uniform_plan(iris.profile, 0.9)
    return Compressed(iris.compress(plan), plan)


def test_a_program_answers_as_the_network_does(iris: Workspace, compressed: Compressed, tmp_path: Path) -> None:
    path = tmp_path / "iris.pte"
    found = EXPORTS["executorch"].write(iris, compressed.stored(iris, Storage(batch=3)), path)
    assert (found.verdict, found.bytes) == ("same", path.stat().st_size)
    assert EXPORTED["executorch"](path)
    snippet, plan = loading(EXPORTS["executorch"], iris, compressed.plan, str(path))
    names: dict[str, object] = {}
    exec(f"{snippet.code}\n{plan.code}", names)
    assert names["plan"]["layers"] == json.loads(compressed.plan.to_json())["layers"]
    assert names["plan"]["provenance"]["storage"] == {"batch": 3}
    assert names["forward"].metadata.input_tensor_meta(0).sizes() == (3, 4)
    (shorter,) = run(ExecutorchNetwork(str(path)), Dataset(iris.calibration.inputs[:4])).values()
    assert shorter.shape == (4, 3)  # the last batch is filled up, and what fills it up is not answered


def test_int8_is_scored_as_it_runs(iris: Workspace, compressed: Compressed, tmp_path: Path) -> None:
    given = compressed.stored(iris, Storage("int8"))
    found = EXPORTS["executorch"].write(iris, given, tmp_path / "iris.pte")
    assert found.max_abs_diff == 0.0  # the file answers here as in the fresh process
    assert found.score is not None
    (rounded,) = run(ExecutorchNetwork(str(tmp_path / "iris.pte")), iris.calibration).values()
    (exact,) = run(compressed.model, iris.calibration).values()
    assert 0 < float((rounded - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_a_file_that_is_no_program_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cut.pte").write_bytes(b"\x1c\0\0\0ET12" + b"\0" * 40)
    with pytest.raises(InvalidFile, match=r"^ExecuTorch cannot open it: "):
        ExecutorchNetwork(str(tmp_path / "cut.pte"))


def test_importing_it_says_nothing_to_a_host_program() -> None:
    ran = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("10\n", "")
