"""What an import does to the program that does it, each in a fresh process."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lowrank_core

ROOT = Path(__file__).resolve().parents[1]

HEAVY = ("torch._dynamo", "torch._inductor", "sklearn", "pandas", "onnx", "onnxruntime", "plotly", "streamlit")

LOOK = """
import json, logging, os, signal, sys, threading, warnings
{before}
def state():
    return {{
        "signals": {{name: repr(signal.getsignal(getattr(signal, name))) for name in ("SIGINT", "SIGTERM")}},
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "handlers": [repr(handler) for handler in logging.root.handlers], "level": logging.root.level,
        "disabled": logging.root.manager.disable, "filters": len(warnings.filters),
        "cwd": os.getcwd(), "path": list(sys.path), "environment": dict(os.environ), {state}
    }}
was = state()
{work}
print(json.dumps({{"was": was, "is": state(), "modules": sorted(sys.modules)}}))
"""


def looked(work: str, *, before: str = "", state: str = "") -> dict[str, Any]:
    """What a fresh process finds out about itself before and after some lines."""
    code = LOOK.format(work=work, before=before, state=state)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_import_of_the_package_imports_nothing_else():
    found = looked("import lowrank_core")
    assert not {"torch", "numpy", "scipy", "tensorly", "joblib", "msgspec", *HEAVY} & set(found["modules"])
    assert found["was"] == found["is"]


def test_a_plan_is_read_without_pytorch():
    found = looked("from lowrank_core import RankPlan, Choice, read_plan; read_plan(RankPlan('sha256:0').to_json())")
    assert not {"torch", "numpy", "tensorly", *HEAVY} & set(found["modules"])
    assert found["was"] == found["is"]


def test_no_public_name_imports_a_compiler_a_screen_or_what_only_some_files_need():
    found = looked(
        "from lowrank_core import *; from lowrank_core import RankPlan, plan_cost",
        before="import scipy.linalg, scipy.optimize, torch",
    )
    assert "lowrank_core.workspace" in found["modules"]
    assert not {*HEAVY, "tensorly", "joblib", "transformers", "dask", "onnxscript"} & set(found["modules"])
    assert found["was"] == found["is"]


def test_the_host_keeps_its_threads_and_its_tensorly():
    settings = "'threads_of_torch': torch.get_num_threads(), 'backend': tensorly.get_backend()"
    work = """
from lowrank_core import LayerSpec, Workspace
from lowrank_core.methods import METHODS
weight, spec = torch.randn(4, 4, 3, 3), LayerSpec(4, 4, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
for name in ("tucker2", "tucker2_hooi", "cp3_parafac"):
    made = METHODS[name].factorize(spec, weight)
    made.reconstruct((2,) * len(METHODS[name].axes))
    backend_of[name] = tensorly.get_backend()
"""
    found = looked(work, before="import tensorly, torch\nbackend_of = {}", state=f"{settings}, 'between': backend_of")
    assert found["is"].pop("between") == dict.fromkeys(("tucker2", "tucker2_hooi", "cp3_parafac"), "numpy")
    assert found["was"].pop("between") is not None
    assert found["was"] == found["is"]
    assert found["is"]["backend"] == "numpy"


def test_every_public_name_is_there_and_nothing_else_is():
    (tree,) = [ast.parse((ROOT / "lowrank_core" / "__init__.py").read_text())]
    told = {
        alias.asname or alias.name: node.module.removeprefix("lowrank_core.")
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert told == lowrank_core._HOMES  # type: ignore[attr-defined]
    assert sorted(told) == sorted(lowrank_core.__all__)
    assert set(lowrank_core.__all__) <= set(dir(lowrank_core))
    for name in lowrank_core.__all__:
        assert getattr(lowrank_core, name).__module__ == f"lowrank_core.{told[name]}" or name == "open_source"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lowrank_core.nothing  # noqa: B018
