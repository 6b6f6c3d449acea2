"""Packages by version and hash in folders of their own, what lies in them, and processes that look at it."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.page import ROOT

PATIENCE = 20
"""Times its processor time that a process may take on a machine with other work."""


class NotInstalled(Exception):
    """Packages that could not be had, with the last line of what pip says."""


def pinned() -> dict[str, str]:
    """Every line of packages.txt, a requirement with version and hash, by the name of its package."""
    lines = Path(__file__).with_name("packages.txt").read_text(encoding="utf-8").splitlines()
    return {line.partition("==")[0]: line for line in lines if not line.startswith("#")}


def installed(packages: Iterable[str], folder: Path) -> Path:
    """The folder that holds exactly these packages, without what they depend on; installed when first asked for.

    packages: names in packages.txt. Raises NotInstalled.
    """
    lines = pinned()
    wanted = "".join(f"{lines[name]}\n" for name in packages)
    target = folder / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        (work / "wanted.txt").write_text(wanted)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--only-binary", ":all:", "--target", "there", "-r", "wanted.txt"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotInstalled(["", *done.stderr.strip().splitlines()][-1].removeprefix("ERROR: "))
        os.replace(work / "there", target)
    return target


def place(path: str) -> Path:
    """Where a file of the installed packages lies; the folder they are in is on `sys.path`."""
    return next(Path(entry, path) for entry in sys.path if Path(entry, path).exists())


def alone(path: str, **known: dict[str, Any]) -> ModuleType:
    """One file of a package as a module, without the package around it and what that would want to import.

    known: modules that the file imports, by their names (dots as `__`), and what it uses of them.
    """
    before = {name.replace("__", "."): sys.modules.get(name.replace("__", ".")) for name in known}
    for name, content in known.items():
        module = ModuleType(name.replace("__", "."))
        module.__dict__.update(content)
        sys.modules[module.__name__] = module
    try:
        package = path.rpartition("/")[0].replace("/", ".")
        spec = spec_from_file_location(f"{package}.{Path(path).stem}", place(path))
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        for name, module_before in before.items():
            if module_before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module_before


def limit_to(seconds: float) -> None:
    """End this process once it has taken so much processor time."""
    whole = int(seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 5))


def ended_by(command: list[str], environment: dict[str, str], seconds: float) -> str:
    """Run a command that limits itself to so much processor time; what ended it otherwise than well, in a few words."""
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=told, stderr=told, text=True, start_new_session=True
        )
        try:
            code = process.wait(PATIENCE * seconds)
        except subprocess.TimeoutExpired:
            return f"ended after {PATIENCE * seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        told.seek(0)
        last = ["", *told.read().strip().splitlines()][-1]
    return last[:200] if code > 0 else ending(code, seconds)


def ending(code: int, seconds: float) -> str:
    """How a process that was limited to so much processor time has ended, "" for well."""
    if code == -signal.SIGXCPU:
        return f"ended after {seconds:.0f} s of processor time"
    return "" if not code else f"ended with {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


def plain(text: str) -> str:
    """A message as it can stand in a table, without the folders of the machine it came about on.

    >>> plain("/tmp/a/model.onnx is | broken")
    'model.onnx is / broken'
    """
    words = " ".join(str(text).split()).replace("|", "/").split(" ")
    return " ".join(Path(word).name if word.startswith("/") and len(word) > 1 else word for word in words)
