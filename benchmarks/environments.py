"""Clean environments: how long they take to install, how large they are, and whether they do what they are for.

python -m benchmarks.environments [base app onnx all] [--wheel FILE]

For each a virtual environment is made, PyTorch is installed, then this package with the extras; what was typed is
printed with its seconds, and the size of the environment in MB (sum of the files' sizes). In each a plan is made; with
the dashboard its server is started and asked; with ONNX the plan is exported. All of it is removed again.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from http.client import HTTPConnection
from pathlib import Path

from benchmarks.page import benchmark_parser, run_benchmark

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"base": "", "app": "[app]", "onnx": "[onnx]", "all": "[app,onnx,hf,cluster]"}
MODEL = "builtin:digits-cnn"
PLAN = ("search", MODEL, "--multiplies", "0.5", "--out", "plan.json")
USES = {
    "base": (("layers", MODEL), PLAN),
    "app": (PLAN,),
    "onnx": (PLAN, ("export", MODEL, "--format", "onnx", "--plan", "plan.json", "--out", "model.onnx")),
    "all": (PLAN,),
}
"""What is done in each."""


def megabytes(folder: Path) -> float:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def typed(shown: str, command: list[str | Path], folder: Path, environment: dict[str, str]) -> None:
    """Run a command in a folder and print what it was, and its seconds."""
    began = time.monotonic()
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    print(f"  {time.monotonic() - began:7.1f} s  {shown}", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}{done.stderr[-2000:]}")


def dashboard(program: Path, folder: Path, environment: dict[str, str]) -> None:
    """Start the dashboard, wait for its page, and end it as Ctrl-C does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    server = subprocess.Popen(
        [program, "app", "--port", str(port)],
        cwd=folder,
        env=environment | {"STREAMLIT_SERVER_HEADLESS": "true"},
        stdout=subprocess.DEVNULL,
    )
    try:
        while True:
            if server.poll() is not None:
                sys.exit("the server ended by itself")
            connection = HTTPConnection("127.0.0.1", port, timeout=1)
            try:
                connection.request("GET", "/")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.1)
            finally:
                connection.close()
        print(f"  {time.monotonic() - began:7.1f} s  rank-explorer app", flush=True)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def measure(name: str, package: str, folder: Path) -> None:
    """Make one environment, print what that took, and use it."""
    home, work = folder / "environment", folder / "work"
    work.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_DATA_HOME": str(folder / "data")}
    installing = environment | {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))}
    print(f"{name}:")
    began = time.monotonic()
    venv.create(home, with_pip=True)
    print(f"  {time.monotonic() - began:7.1f} s  python -m venv .venv")
    binaries = home / ("Scripts" if sys.platform == "win32" else "bin")
    (torch,) = (line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch=="))
    wanted = f"{package}{EXTRAS[name]}"
    for shown, what in ((torch, torch), (wanted.replace(str(ROOT), "."), wanted)):
        command: list[str | Path] = [binaries / "python", "-m", "pip", "install", "--quiet", what]
        typed(f"pip install {shlex.quote(shown)}", command, work, installing)
        print(f"  {megabytes(home):7.0f} MB")
    for arguments in USES[name]:
        command = [binaries / "rank-explorer", *arguments]
        typed(f"rank-explorer {' '.join(arguments)}", command, work, environment)
    if name in ("app", "all"):
        dashboard(binaries / "rank-explorer", work, environment)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("names", nargs="*", choices=[*EXTRAS, []], metavar="NAME", help=f"of {', '.join(EXTRAS)}")
    parser.add_argument("--wheel", help="install this file instead of the checkout")
    options = parser.parse_args()
    for name in options.names or EXTRAS:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, options.wheel or str(ROOT), Path(folder))


if __name__ == "__main__":
    run_benchmark(main)
