"""Shared fixtures: the real app on a free port, and pages of real Chromium to use it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: test processes share the cores

import pytest
import torch
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 300
"""What has not happened by then never will: a stop against hanging, and nothing that a busy machine may reach."""
AT_REST = "[data-testid=stApp][data-test-script-state=notRunning]"
"""The app while no script of its runs."""
INSTALL = "install Chromium, on Debian: apt-get install chromium-headless-shell"
REQUIRED = os.environ.get("RANK_EXPLORER_REQUIRE_BROWSER") == "1"
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"))), None
)
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TAKES_LONG = {
    *("test_cli_search", "test_compare_page", "test_export_formats", "test_exports", "test_exports_apart"),
    *("test_finetune", "test_fresh_env"),
    *("test_fuzz", "test_heap", "test_kills", "test_memory", "test_onnx_graph", "test_onnx_program"),
    *("test_onnx_surgery", "test_package", "test_parallel", "test_pretrained", "test_pt2", "test_scale"),
    *("test_search_page", "test_survey", "test_tuning_page"),
}
"""Files of tests that train, export or start processes; elsewhere such tests are marked one by one."""

LEFT_OUT = {
    *("test_apply", "test_attention", "test_bad_input", "test_board_closed_forms", "test_builtin", "test_cache"),
    *("test_calibration", "test_cli", "test_context", "test_correct", "test_cp", "test_docs", "test_embedding"),
    *("test_evaluate", "test_gates", "test_live", "test_onnx_file", "test_pages", "test_prefix", "test_recurrent"),
    *("test_room", "test_selection_budget", "test_selection_measured", "test_sensitivity", "test_start", "test_tied"),
    *("test_transposed", "test_weights_alone", "test_zoo"),
    *("test_door", "test_exports_apart", "test_factor_memory", "test_fresh_process", "test_kept_files", "test_key"),
    *("test_numbers", "test_onnx_as_found", "test_outputs", "test_routed", "test_same_origin", "test_two_tabs"),
}
"""Files that compress or measure whole networks again and again: too much for `make check`, no reason to come first."""

skipped_browser_tests: list[str] = []


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: two more than there are cores, at most 4; much of the time goes to waiting for pages and processes."""
    return min(4, 2 + (os.cpu_count() or 1))


def pytest_configure() -> None:
    if REQUIRED and CHROMIUM is None:
        raise pytest.UsageError(f"the browser tests are required and there is no Chromium: {INSTALL}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a browser; files that take long come first, so that no process is left with one at the end."""
    long: dict[Path, str] = {}
    for item in items:
        if {"browser", "page"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("browser")
        if item.path.stem in TAKES_LONG:
            item.add_marker("slow")
        for kind in ("browser", "slow"):
            if item.get_closest_marker(kind):
                long[item.path] = min(kind, long.get(item.path, kind))
    items.sort(key=lambda item: long.get(item.path, "then the rest"))
    for item in items:
        if item.path.stem in LEFT_OUT:
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Weights that a test leaves to chance are the same in each run."""
    torch.manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if CHROMIUM is None and item.get_closest_marker("browser"):
        pytest.skip(f"browser tests skipped: {INSTALL}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "browser" in report.keywords:
        skipped_browser_tests.append(report.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if REQUIRED and skipped_browser_tests and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if REQUIRED and skipped_browser_tests:
        terminalreporter.write_line(f"FAILED: required browser tests were skipped: {', '.join(skipped_browser_tests)}")


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches and autosaved work of a test run stay out of the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(autouse=True)
def own_main() -> Iterator[None]:
    """AppTest leaves its script behind as `__main__`, and processes that are started later would begin with that."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small matrices: where cores are busy, handing them round takes far longer than the arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unset_is_nan() -> Iterator[None]:
    """Memory that nobody has set holds NaN, as `torch.empty` gives it, and not what happened to lie there."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def is_ready(port: int, address: str = "/_stcore/health") -> bool:
    """Whether the server on this port says it is healthy: at an address where it answers once it is."""
    connection = HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", address)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


SLOW = """
import time, torch
from pathlib import Path
from torch import nn

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        time.sleep(SECONDS if len(x) > 1 and not Path(__file__).with_name("go").exists() else 0)
        return self.fc2(torch.relu(self.fc1(x)))

def build_model():
    torch.manual_seed(0)
    return Slow().eval()

def example_inputs():
    return (torch.zeros(1, 16),)

def data(samples, seed):
    return torch.randn(samples, 16, generator=torch.Generator().manual_seed(seed))

def train_data():
    return data(300, 1)

def eval_data():
    return data(SAMPLES, 2)
"""


def slow_network(folder: Path, seconds: float, samples: int) -> Path:
    """A model file whose batches take that long each, until there is a file "go", with so many evaluation samples."""
    path = folder / "slow.py"
    path.write_text(f"SECONDS, SAMPLES = {seconds}, {samples}\n{SLOW}")
    return path


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and end it where it does not."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running_app(log: Path, *model: str | Path, folder: Path = ROOT) -> Iterator[str]:
    """The app in a process of its own, started in a folder; gives its base URL and always ends the process."""
    with running_server(log, *model, folder=folder) as (url, _):
        yield url


@contextmanager
def running_server(log: Path, *model: str | Path, folder: Path = ROOT) -> Iterator[tuple[str, int]]:
    """The same, with the process's id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.port", str(port)]
    command += ["--server.headless", "true", *(["--", *map(str, model)] if model else [])]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the app did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        end(process)


@contextmanager
def dask_cluster(folder: Path) -> Iterator[str]:
    """The address of a dask scheduler with two workers of one thread, started as a person starts them."""
    from distributed import Client

    told = folder / "scheduler.json"
    usual = ["--scheduler-file", str(told), "--no-dashboard"]
    commands = (["scheduler", "--port", "0", *usual], ["worker", "--nworkers", "2", "--nthreads", "1", *usual])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{command[0]}", *command[1:]],
            env=environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        while not (told.is_file() and told.read_text().rstrip().endswith("}")):
            assert all(one.poll() is None for one in started)
            time.sleep(0.1)
        address = json.loads(told.read_text())["address"]
        with Client(address, timeout=PATIENCE_SECONDS, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=PATIENCE_SECONDS)
        yield address
    finally:
        for one in started[::-1]:
            end(one)


@pytest.fixture(scope="session")
def usual_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a server started as most people start it; what visitors do is theirs alone."""
    with running_app(tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def serve(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """The base URL of `serve()`, the usual server, or of `serve(model_path)`, a fresh one that ends with the module."""
    logs = tmp_path_factory.mktemp("servers")
    with ExitStack() as servers:

        def start(*model: str | Path) -> str:
            if not model:
                return request.getfixturevalue("usual_server")
            log = logs / f"{len(list(logs.iterdir()))}.log"
            return servers.enter_context(running_app(log, *model))

        yield start


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One headless Chromium for all tests."""
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS, headless=True)
        yield chromium
        chromium.close()


def visitor(browser: Browser, **options: Any) -> BrowserContext:
    """A fresh profile, as patient as all tests."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    return context


@contextmanager
def watched_page(browser: Browser) -> Iterator[Page]:
    """A page of a fresh profile; an error if it asked another host for anything or an exception went uncaught."""
    context = visitor(browser, viewport={"width": 1440, "height": 1000})
    foreign: list[str] = []
    errors: list[str] = []

    def check_host(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.hostname not in {"localhost", "127.0.0.1"}:
            foreign.append(url)

    def watch(opened: Page) -> None:
        opened.on("websocket", lambda websocket: check_host(websocket.url))
        opened.on("pageerror", lambda error: errors.append(str(error)))

    context.on("request", lambda request: check_host(request.url))
    context.on("page", watch)
    yield context.new_page()
    context.close()
    assert not foreign, f"requests to other hosts: {foreign}"
    assert not errors, f"uncaught exceptions on the page: {errors}"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a fresh profile for one test, watched."""
    with watched_page(browser) as opened:
        yield opened
