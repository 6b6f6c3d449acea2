"""Packages of a network: installed by version and hash into a folder of their own, and looked into there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


class NotInstalled(Exception):
    """Packages that could not be had, with the last line of what pip says."""


def installed(packages: Iterable[str], folder: Path) -> Path:
    """The folder that holds exactly these packages, without what they depend on; installed when first asked for.

    packages: lines of requirements, each with its version and hashes. Raises NotInstalled.
    """
    wanted = "\n".join(packages) + "\n"
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
