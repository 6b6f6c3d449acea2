"""A model in a Python file, or in a module that can be imported."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from lowrank_core.errors import InvalidModel, UnknownModel
from lowrank_core.sources import Source, register
from lowrank_core.sources._contract import open_contract
from lowrank_core.sources._model_file import contract_of, load_file
from lowrank_core.sources._neighbours import INSTALLED
from lowrank_core.sources._opened import Opened

FILES = (".ckpt", ".json", ".onnx", ".pt", ".pt2", ".pth", ".safetensors")
"""Endings of files, which look like the names of modules where there is no such file."""


OURS = __name__.partition(".")[0]

_read: dict[Path, str] = {}
"""Files of packages by their hash when a model in them was last opened."""


def _accepts(ref: str) -> bool:
    named = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", ref) is not None and not ref.endswith(FILES)
    return ref.endswith(".py") or (named and not Path(ref).exists())


def _open(ref: str) -> Opened:
    path = Path(ref).expanduser()
    if path.is_dir():
        raise InvalidModel(f"{ref} is no model file: it is a folder.")
    if path.exists():
        return open_contract(load_file(path))
    if ref.endswith(".py"):
        raise UnknownModel(f"there is no file {ref}; `python -m lowrank_core new {ref}` writes one to fill in.")
    module = _imported(ref)
    return open_contract(contract_of(module, ref=ref, name=ref.rpartition(".")[2], code=_code(ref)))


def _imported(ref: str) -> ModuleType:
    """The module, read anew where a file of its package has been edited since it was last opened."""
    package = ref.partition(".")[0]
    if any(_read.get(path, now) != now for path, now in _code(ref).items()):
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        importlib.invalidate_caches()
    try:
        if importlib.util.find_spec(ref) is None:
            raise UnknownModel(f"there is no file or module {ref!r}.")
        module = importlib.import_module(ref)
        _read.update(_code(ref))
        return module
    except UnknownModel:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{ref}.".startswith(f"{error.name}."):
            raise UnknownModel(f"there is no file or module {ref!r} ({error}).") from error
        raise InvalidModel(f"module {ref} could not be imported: {type(error).__name__}: {error}") from error


def _code(ref: str) -> dict[Path, str]:
    """The hash of each imported source file of the package, as it is now; of installed packages none changes."""
    package = ref.partition(".")[0]
    files = {
        Path(file)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == package and (file := getattr(module, "__file__", None)) is not None
    }
    own = (path for path in files if path.suffix == ".py" and not INSTALLED & set(path.parts))
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in own if path.is_file() and package != OURS}


register(Source("python", _accepts, _open, "path/to/model.py or package.module"))
