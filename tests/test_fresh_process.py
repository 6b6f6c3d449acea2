"""A fresh process ends with its work, its time, its cancelling or its parent, and says why; nothing of it stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank_core.compression.checkpoint import load_checkpoint
from lowrank_core.errors import Cancelled, InvalidFile, OtherAnswers, WorkersLost
from lowrank_core.exports import EXPORTS, Compressed, _reload
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.running.fresh_process import in_fresh_process
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import scope
from lowrank_core.workspace import Workspace

WORK = """
import os, subprocess, sys, threading, time
from lowrank_core.errors import OtherAnswers
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report

def answers(folder):
    print("heard by nobody")
    report(Progress("half done", 2.5))
    report(Progress("done"))
    (folder / "answer").write_text(repr(sys.stdin.read()))

def refuses(folder):
    raise OtherAnswers("it differs\\nby 3")

def fails(folder):
    return {}["x"]

def dies(folder):
    os.kill(os.getpid(), 9)

def starts_a_thread(folder):
    threading.Thread(target=time.sleep, args=(10**6,)).start()
    answers(folder)

def leaves_a_process(folder):
    (folder / "id").write_text(str(subprocess.Popen(["sleep", "1000"]).pid))

def waits(folder):
    child = subprocess.Popen(["sleep", "1000"])
    (folder / "id.part").write_text(f"{os.getpid()} {child.pid}")
    os.replace(folder / "id.part", folder / "id")
    time.sleep(10**6)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the process; the module `work_apart` can be imported there."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "work_apart.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def is_there(process: int) -> bool:
    """Whether it runs; one that has ended and that nobody has looked at counts, but for those whose parent is gone."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def gone(*processes: int) -> bool:
    until = time.monotonic() + 60
    while any(map(is_there, processes)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(is_there, processes))


@pytest.mark.parametrize("function", ["answers", "starts_a_thread"])
def test_what_it_reports_is_heard_and_it_ends_with_its_work(function: str, work: Path) -> None:
    heard: list[Progress] = []
    with scope(report=heard.append):
        in_fresh_process(f"work_apart:{function}", work)
    assert heard == [Progress("half done", 2.5), Progress("done")]
    assert (work / "answer").read_text() == "''"


def test_a_process_that_it_leaves_behind_is_not_waited_for(work: Path) -> None:
    in_fresh_process("work_apart:leaves_a_process", work)
    left = int((work / "id").read_text())
    assert is_there(left)
    os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        ("refuses", OtherAnswers, "^it differs by 3$"),
        ("fails", WorkersLost, "^KeyError: 'x'$"),
        ("dies", WorkersLost, "^it ended with status -9$"),
        ("missing", WorkersLost, "^AttributeError: module 'work_apart' has no attribute 'missing'"),
    ],
)
def test_why_it_failed_is_raised_here(function: str, error: type[Exception], says: str, work: Path) -> None:
    with pytest.raises(error, match=says) as refused:
        in_fresh_process(f"work_apart:{function}", work)
    assert refused.type is error


def test_it_is_ended_after_its_time_with_what_it_started(work: Path) -> None:
    with pytest.raises(WorkersLost, match=r"^it was not done after \d+ s, and was ended$"):
        in_fresh_process("work_apart:waits", work, limit_seconds=3)
    if (work / "id").is_file():
        assert gone(*map(int, (work / "id").read_text().split()))


def test_cancelling_ends_it_with_what_it_started(work: Path) -> None:
    with pytest.raises(Cancelled), scope(cancelled=(work / "id").is_file):
        in_fresh_process("work_apart:waits", work)
    own, started = map(int, (work / "id").read_text().split())
    assert not Path(f"/proc/{own}").exists()  # not even as a zombie
    assert gone(started)


def test_it_ends_with_whoever_began_it(work: Path) -> None:
    code = (
        f"from lowrank_core.running.fresh_process import *; in_fresh_process('work_apart:waits', Path({str(work)!r}))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        while not (work / "id").is_file():
            assert parent.poll() is None
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
    own, started = map(int, (work / "id").read_text().split())
    try:
        assert gone(own)
    finally:
        os.kill(started, signal.SIGKILL)


# ---- a model file that starts a thread, or never comes to an end ----------------------------------------------------

MODEL = """
import sys, threading, time
{first}
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()

def example_inputs():
    return (torch.randn(2, 16),)

def eval_data():
    torch.manual_seed(1)
    x = torch.randn(64, 16)
    return x, build_model()(x).argmax(1)
"""
STARTS_A_THREAD = "threading.Thread(target=time.sleep, args=(10**6,)).start()"
NEVER_OPENS_AGAIN = f"import os; time.sleep(0 if os.getpid() == {os.getpid()} else 10**6)"


def plan_of(model: Path) -> str:
    workspace = Workspace.open(str(model))
    return uniform_plan(workspace.profile, 0.5).to_json()


@pytest.mark.slow
def test_commands_end_on_a_model_file_whose_thread_does_not(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text(MODEL.format(first=""))
    (tmp_path / "plan.json").write_text(plan_of(model))
    model.write_text(MODEL.format(first=STARTS_A_THREAD))
    for arguments in (
        ("layers", "model.py"),
        ("apply", "model.py", "--plan", "plan.json", "--out", "out.safetensors", "--no-cache"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "lowrank_core", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    model.write_text(MODEL.format(first=""))
    assert load_checkpoint(Workspace.open(str(model)).model, tmp_path / "out.safetensors").plan


ENDS_SLOWLY = """
import atexit, threading, time
from lowrank_core.running import own_process

own_process.LINGER_SECONDS = 0.0
begun, late = threading.Event(), threading.Event()

class Late(threading.Timer):
    def run(self):
        begun.wait()
        self.function(*self.args, **self.kwargs)
        late.set()

def ending():
    print("ends", flush=True)
    begun.set()
    late.wait()

with own_process.ending_with_its_work():
    threading.Timer = Late
    atexit.register(ending)
"""


def test_what_is_registered_for_the_end_of_a_command_is_done_once_however_long_it_takes() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS_SLOWLY], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr


@pytest.fixture
def few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reload, "LIMIT_SECONDS", 1.0)


@pytest.mark.usefixtures("few_seconds")
def test_a_reload_that_never_ends_is_ended_and_nothing_is_saved(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text(MODEL.format(first=NEVER_OPENS_AGAIN))
    workspace = Workspace.open(str(model))
    plan = uniform_plan(workspace.profile, 0.5)
    out = tmp_path / "out.safetensors"
    with pytest.raises(InvalidFile, match=r"was not saved: a fresh process .* after 1 s, and was ended"):
        EXPORTS["safetensors"].write(workspace, Compressed(workspace.compress(plan), plan), out)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []


def test_the_limit_grows_with_what_the_batches_took_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def looked_at(work: str, folder: Path, *, limit_seconds: float) -> None:
        limits.append(limit_seconds)
        raise WorkersLost("enough")

    monkeypatch.setattr(_reload, "in_fresh_process", looked_at)
    for seconds in (0.0, 90.0):
        with pytest.raises(InvalidFile):
            _reload.outputs_in_fresh_process("dense", "builtin:iris-mlp", Path(), [], seconds)
    assert limits == [_reload.LIMIT_SECONDS, _reload.LIMIT_SECONDS + 90 * _reload.LIMIT_TIMES]
