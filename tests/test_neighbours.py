"""Model files and what they import from their own folder: each its own, read anew, and nothing left behind."""

import importlib
import inspect
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from lowrank_core.sources import open_source
from lowrank_core.workspace import Workspace

MODEL = """
import torch
{imports}

def build_model():
    torch.manual_seed(0)
    return Net().eval()

def example_inputs():
    return (torch.ones(1, 4),)
"""

NET = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Sizes:
    inputs: int = 4
    outputs: int = {outputs}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(Sizes().inputs, Sizes().outputs)

    def forward(self, x):
        return self.fc(x)
"""

IMPORTS = {
    "a name": ("from net import Net", {"net.py": NET}),
    "the module": ("import net\nNet = net.Net", {"net.py": NET}),
    "under another name": ("import net as mine\nNet = mine.Net", {"net.py": NET}),
    "all": ("from net import *", {"net.py": NET}),
    "in a package": ("from parts.net import Net", {"parts/__init__.py": "", "parts/net.py": NET}),
    "the package": ("import parts.net\nNet = parts.net.Net", {"parts/__init__.py": "", "parts/net.py": NET}),
    "a module of a package": ("from parts import net\nNet = net.Net", {"parts/__init__.py": "", "parts/net.py": NET}),
    "a folder": ("from parts.net import Net", {"parts/net.py": NET}),
    "one that imports another": ("from all import Net", {"all.py": "from net import Net", "net.py": NET}),
    "as its sibling": ("from parts import Net", {"parts/__init__.py": "from .net import Net", "parts/net.py": NET}),
    "relative": ("from .net import Net", {"net.py": NET}),
    "by its name": ("import importlib\nNet = importlib.import_module('net').Net", {"net.py": NET}),
    "from a pickle": ("import pickle\nNet = pickle.loads(b'cnet\\nNet\\n.')", {"net.py": NET}),
    "from a folder above": (
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, str(Path(__file__).parents[1]))\n"
        "from project_of_mine.net import Net",
        {"../project_of_mine/net.py": NET},
    ),
}


def written(folder: Path, imports: str, files: dict[str, str], outputs: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("{outputs}", str(outputs)))
    (folder / "model.py").write_text(MODEL.format(imports=imports))
    return folder / "model.py"


def outputs(path: Path) -> int:
    return int(open_source(str(path)).model.fc.out_features)


@pytest.mark.parametrize("way", IMPORTS)
def test_two_files_have_a_neighbour_each_and_an_edited_one_is_read_anew(way, tmp_path):
    path, modules = list(sys.path), set(sys.modules)
    first, second = (written(tmp_path / str(n) / "folder", *IMPORTS[way], n) for n in (2, 3))
    assert [outputs(file) for file in (first, second, first)] == [2, 3, 2]
    written(first.parent, *IMPORTS[way], 5)  # the same size, maybe within the same tick of the clock
    assert [outputs(file) for file in (first, second)] == [5, 3]
    assert sys.path == path
    assert all(name.startswith("lowrank_model_") for name in set(sys.modules) - modules)


LATE = """
import torch

def build_model():
    from net import Net
    torch.manual_seed(0)
    return Net().eval()

def example_inputs():
    import importlib
    return (torch.ones(1, importlib.import_module("net").Sizes().inputs),)

def evaluate(model):
    import net
    return float(model(torch.ones(1, 4)).detach().sum()) + net.Sizes().outputs
"""


def test_what_is_imported_late_is_the_files_own_in_any_thread(tmp_path):
    opened = {}
    for number in (2, 3):
        path = written(tmp_path / str(number), "", {"net.py": NET}, number)
        path.write_text(LATE)
        opened[number] = open_source(str(path))
    found: dict[int, float] = {}

    def evaluated(number: int) -> None:
        found[number] = opened[number].evaluate(opened[number].model)

    threads = [threading.Thread(target=evaluated, args=(number,)) for number in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, one in opened.items():
        assert round(found[number] - float(one.model(torch.ones(1, 4)).detach().sum()), 4) == number
    assert "net" not in sys.modules


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_neighbour_can_be_looked_at_pickled_and_exported(tmp_path):
    model = open_source(str(written(tmp_path, *IMPORTS["a name"], 2))).model
    kind = type(model)
    assert inspect.getsource(kind).startswith("class Net")
    assert pickle.loads(pickle.dumps(kind)) is kind
    assert type(pickle.loads(pickle.dumps(model))) is kind
    program = torch.export.export(model, (torch.ones(1, 4),), strict=True)
    assert torch.equal(program.module()(torch.ones(1, 4)), model(torch.ones(1, 4)))
    assert torch.equal(torch.jit.script(model)(torch.ones(1, 4)), model(torch.ones(1, 4)))


@pytest.mark.parametrize("name", ["json", "torch", "lowrank_core"])
def test_a_neighbour_shadows_nothing(name, tmp_path):
    path = written(
        tmp_path, f"import {name}\nfrom net import Net", {"net.py": NET, f"{name}.py": "raise ValueError"}, 2
    )
    assert outputs(path) == 2


def test_what_a_host_has_imported_under_that_name_stays_its_own(tmp_path, monkeypatch):
    for folder, value in (("host", 1), ("mine", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twice_there.py").write_text(f"value = {value}")
    monkeypatch.syspath_prepend(str(tmp_path / "host"))
    host = importlib.import_module("twice_there")
    path = written(
        tmp_path / "mine", "from net import Net\nimport twice_there\nassert twice_there.value == 2", {"net.py": NET}, 2
    )
    assert outputs(path) == 2
    assert sys.modules["twice_there"] is host
    assert host.value == 1


def test_a_neighbour_that_cannot_be_run_is_named_and_may_be_mended(tmp_path):
    path = written(tmp_path, *IMPORTS["a name"], 2)
    good = (tmp_path / "net.py").read_text()
    (tmp_path / "net.py").write_text("1 / 0")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        open_source(str(path))
    (tmp_path / "net.py").write_text(good)
    assert outputs(path) == 2


def test_an_edited_module_of_a_package_is_read_anew(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    written(tmp_path / "package_of_mine", "from package_of_mine.net import Net", {"__init__.py": "", "net.py": NET}, 2)
    ref, net = "package_of_mine.model", tmp_path / "package_of_mine" / "net.py"
    first = Workspace.open(ref)
    kept = sys.modules[ref]
    assert Workspace.open(ref).key == first.key
    assert sys.modules[ref] is kept, "nothing was edited"
    net.write_text(NET.replace("{outputs}", "17"))
    assert Workspace.open(ref).model.fc.out_features == 17


@pytest.mark.slow
def test_a_worker_opens_the_same_neighbours(tmp_path):
    """`profile` with two workers, in a folder whose own net.py is another one."""
    path = written(tmp_path / "model", *IMPORTS["a name"], 9)
    (tmp_path / "net.py").write_text("raise ValueError('not this one')")
    command = [sys.executable, "-m", "lowrank_core", "profile", str(path), "--no-cache", "--workers", "2", "--json"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["layers"]
