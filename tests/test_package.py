"""The wheel: what is in it, what it does where neither the checkout nor an extra is, and what it says then."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from playwright.sync_api import Page, expect

from lowrank_core.commands import cli
from lowrank_core.extras import extra
from lowrank_core.version import __version__
from tests.conftest import is_ready, slow_network

pytestmark = pytest.mark.timeout(1200)  # fresh processes, each of which imports PyTorch

ROOT = Path(__file__).resolve().parents[1]
MODEL = "builtin:iris-mlp"
IN_EXTRAS = {
    "app": ("streamlit", "plotly", "pandas"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "hf": ("transformers",),
    "edge": ("executorch", "torchao"),
    "cluster": ("dask", "distributed"),
    "data": ("PIL", "pyarrow"),
    "audio": ("soundfile",),
    "notebook": ("anywidget", "traitlets"),
    "mlflow": ("mlflow",),
    "optuna": ("optuna",),
}
HIDING = """
import sys
sys.modules.update(dict.fromkeys({hidden!r}))
sys.argv = ["rank-explorer", *{arguments!r}]
from lowrank_core.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without the network: by the tools of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder]
    done = subprocess.run([*map(str, command), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    return built


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel, and a folder to work in; the checkout is on nobody's path."""

    binaries: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        program, *arguments = command
        return subprocess.run(
            [str(self.binaries / program), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "environment", with_pip=False)
    binaries = home / "environment" / "bin"
    python = str(binaries / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (packages,) = (home / "environment").glob("lib/python*/site-packages")
    (packages / "what_the_wheel_needs.pth").write_text(
        "".join(f"{path}\n" for path in sys.path if Path(path).name == "site-packages")
    )
    (home / "work").mkdir()
    return Installed(binaries, home / "work")


def test_the_wheel_holds_library_and_dashboard_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {"lowrank_core", "lowrank_hf", "rank_explorer", f"rank_explorer-{__version__}.dist-info"}
    assert {name.partition("/")[0] for name in names} == tops
    notebook = {f"rank_explorer/{name}" for name in ("__init__.py", "notebook.py", "notebook.js", "notebook.css")}
    assert {name for name in names if name.startswith("rank_explorer/")} == notebook
    assert "lowrank_hf/__init__.py" in names
    known = subprocess.run(["git", "ls-files", "lowrank_core"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    core = known or [str(path.relative_to(ROOT)) for path in (ROOT / "lowrank_core").rglob("*") if path.is_file()]
    assert {name for name in core if "__pycache__" not in name} <= names
    assert {"lowrank_core/py.typed", "lowrank_core/builtin/weights/digits_cnn.safetensors"} <= names
    shown = ["app.py", ".streamlit/config.toml"]
    shown += [str(path.relative_to(ROOT)) for path in (ROOT / "pages").rglob("*") if path.is_file()]
    expected = {f"lowrank_core/dashboard/{name}" for name in shown if "__pycache__" not in name}
    assert {name for name in names if name.startswith("lowrank_core/dashboard/")} == expected
    assert not [name for name in names if re.search(r"(^|/)(tests?|benchmarks|docs|__pycache__)/", name)]


def test_what_is_needed_is_pinned_where_requirements_pin_it_and_bounded_elsewhere(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        about = archive.read(f"rank_explorer-{__version__}.dist-info/METADATA").decode()
    needed = dict(re.findall(r"^Requires-Dist: ([\w-]+)(?:\[[^]]*\])?([^;\n]*)", about, re.MULTILINE))
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    for name in ("torch", "streamlit"):
        assert needed.pop(name) == f"=={pinned[name]}"
    needed.pop("rank-explorer", None)
    assert all(re.fullmatch(r"<\d+,>=[\d.]+", bounds) for bounds in needed.values()), needed
    assert set(pinned) <= {*needed, "torch", "streamlit"}
    assert "Requires-Python: <3.14,>=3.11" in about
    assert set(re.findall(r"^Provides-Extra: (\w+)", about, re.MULTILINE)) == {*IN_EXTRAS, "dev"}


def test_the_command_is_there_and_names_itself(installed: Installed) -> None:
    assert installed.run("rank-explorer", "--version").stdout == f"Rank Explorer {__version__}\n"
    assert installed.run("rank-explorer", "new", "-h").stdout.startswith("Usage: rank-explorer new ")
    by_module = installed.run("python", "-m", "lowrank_core", "new", "-h").stdout
    assert by_module.startswith("Usage: python -m lowrank_core new ")
    where = installed.run("python", "-c", "import lowrank_core; print(lowrank_core.__file__)").stdout
    assert where.startswith(str(installed.binaries.parent))
    taken = "import importlib.util as u; print([n for n in ('app', 'pages', 'tests', 'benchmarks') if u.find_spec(n)])"
    assert installed.run("python", "-c", taken).stdout == "[]\n"


def test_layers_of_a_network_that_comes_along(installed: Installed) -> None:
    done = installed.run("rank-explorer", "layers", "builtin:digits-cnn")
    assert done.returncode == 0, done.stderr
    assert "conv1" in done.stdout


def test_from_nothing_to_a_plan_and_a_checkpoint_without_any_extra(installed: Installed) -> None:
    hidden = ["sklearn", *(name for names in IN_EXTRAS.values() for name in names)]
    search = ("search", MODEL, "--rule", "uniform", "--multiplies", "0.9", "--out", "plan.json", "--no-cache")
    apply = ("apply", MODEL, "--plan", "plan.json", "--out", "model.safetensors", "--no-cache")
    for arguments in (search, apply):
        done = installed.run("python", "-c", HIDING.format(hidden=hidden, arguments=arguments))
        assert done.returncode == 0, done.stderr
    assert (installed.folder / "model.safetensors").is_file()


def test_the_board_for_notebooks_finds_the_dashboards_files_or_says_what_to_install(installed: Installed) -> None:
    script = f"""
from lowrank_core import Workspace
from rank_explorer.notebook import board
shown = board(Workspace.open({MODEL!r}))
print(shown.constants["name"], "RankBoard.mount" in shown._esm, shown.plan == shown._history.plan)
"""
    done = installed.run("python", "-c", script)
    assert (done.returncode, done.stdout) == (0, "iris-mlp True True\n"), done.stderr
    for name in IN_EXTRAS["notebook"]:
        hidden = f"import sys; sys.modules[{name!r}] = None\nimport rank_explorer.notebook"
        says = installed.run("python", "-c", hidden).stderr.splitlines()[-1]
        assert says.endswith("the board in a notebook needs more packages: pip install 'rank-explorer[notebook]'")


def test_without_its_extra_the_dashboard_says_in_one_line_what_to_install(installed: Installed) -> None:
    for hidden in IN_EXTRAS["app"]:
        done = installed.run("python", "-c", HIDING.format(hidden=[hidden], arguments=["app"]))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "Error: the dashboard needs more packages: pip install 'rank-explorer[app]'\n"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("onnx", ("layers", "network.onnx")),
        ("onnx", ("export", MODEL, "--format", "onnx", "--dense", "--out", "written.onnx", "--no-cache")),
        ("onnx", ("latency", MODEL, "--plan", "plan.json", "--no-cache")),
        ("hf", ("layers", "folder")),
        ("edge", ("export", MODEL, "--format", "executorch", "--dense", "--out", "written.onnx", "--no-cache")),
        ("cluster", ("profile", MODEL, "--dask", "tcp://127.0.0.1:9", "--no-cache")),
        ("mlflow", ("evaluate", MODEL, "--log", "mlflow", "--no-cache")),
        ("optuna", ("search", MODEL, "--bytes", "0.9", "--out", "p.json", "--optuna", "s.db", "--no-cache")),
    ],
)
def test_what_needs_an_extra_says_in_one_line_which(
    name: str, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowrank_core import RankPlan, Workspace

    monkeypatch.chdir(tmp_path)
    Path("network.onnx").write_bytes(b"\x08\x0a")
    Path("plan.json").write_text(RankPlan(Workspace.open(MODEL).profile.fingerprint).to_json())
    Path("folder").mkdir()
    Path("folder", "config.json").write_text('{"architectures": ["BertModel"]}')
    Path("folder", "model.safetensors").write_bytes(b"")
    for module in [m for m in sys.modules if m.partition(".")[0] in IN_EXTRAS[name]]:
        monkeypatch.delitem(sys.modules, module)
    for hidden in IN_EXTRAS[name]:
        monkeypatch.setitem(sys.modules, hidden, None)
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1, done.output
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert last.endswith(f" needs more packages: pip install 'rank-explorer[{name}]'")
    assert not Path("written.onnx").exists()


def test_every_extra_that_is_named_exists() -> None:
    named = {
        found
        for package in ("lowrank_core", "rank_explorer")
        for path in (ROOT / package).rglob("*.py")
        for found in re.findall(r'\bextra\("(\w+)"', path.read_text())
    }
    assert named == set(IN_EXTRAS)
    with extra("app", "this"):
        pass


@dataclass(frozen=True)
class Dashboard:
    """A server that `rank-explorer app` started."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path


@pytest.fixture(scope="module")
def dashboard(installed: Installed) -> Iterator[Dashboard]:
    """On a model file that is named as it lies in the folder where the command is given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slow_network(installed.folder, 0.0, 100)
    log = installed.folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [installed.binaries / "rank-explorer", "app", "slow.py", "--port", str(port)],
            cwd=installed.folder,
            env=installed.environment | {"STREAMLIT_SERVER_HEADLESS": "true"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while not is_ready(port):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield Dashboard(process, port, log)
    finally:
        process.kill()
        process.wait()


def test_the_dashboard_answers_this_machine_alone(dashboard: Dashboard) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", dashboard.port)
    connection.request("GET", "/")
    assert b"<title>Streamlit</title>" in connection.getresponse().read()
    connection.close()
    assert f"http://127.0.0.1:{dashboard.port}" in dashboard.log.read_text()
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", dashboard.port), timeout=5):  # noqa: PT011
        pass


@pytest.mark.browser
def test_the_dashboard_opens_the_model_in_its_own_colours(dashboard: Dashboard, page: Page) -> None:
    page.goto(f"http://127.0.0.1:{dashboard.port}")
    expect(page.get_by_role("heading", name="Rank Explorer")).to_be_visible(timeout=600_000)  # imports PyTorch first
    expect(page.get_by_role("radio", name="slow.py")).to_be_checked()
    button = page.get_by_role("button", name="Tune the ranks")
    expect(button).to_have_css("background-color", "rgb(0, 114, 178)")
    button.click()
    expect(page.locator(".rb-row")).to_have_count(2, timeout=600_000)


def test_ctrl_c_ends_the_dashboard_cleanly(dashboard: Dashboard) -> None:
    dashboard.process.send_signal(signal.SIGINT)
    assert dashboard.process.wait() == 0
    assert "Traceback" not in dashboard.log.read_text()
