"""A model in a Python file, or in a module that can be imported."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

from lowrank_core.errors import InvalidModel, UnknownModel
from lowrank_core.sources import Source, register
from lowrank_core.sources._contract import open_contract
from lowrank_core.sources._model_file import contract_of, load_file
from lowrank_core.sources._opened import Opened

FILES = (".ckpt", ".json", ".onnx", ".pt", ".pt2", ".pth", ".safetensors")
"""Endings of files, which look like the names of modules where there is no such file."""


def _accepts(ref: str) -> bool:
    named = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", ref) is not None and not ref.endswith(FILES)
    return ref.endswith(".py") or (named and not Path(ref).exists())


def _open(ref: str) -> Opened:
    path = Path(ref).expanduser()
    if path.is_dir():
        raise InvalidModel(f"{ref} is no model file: it is a folder.")
    if path.exists():
        return open_contract(contract_of(load_file(path), ref=str(path.resolve()), name=path.stem))
    if ref.endswith(".py"):
        raise UnknownModel(f"there is no file {ref}; `python -m lowrank_core new {ref}` writes one to fill in.")
    return open_contract(contract_of(_imported(ref), ref=ref, name=ref.rpartition(".")[2]))


def _imported(ref: str) -> ModuleType:
    try:
        if importlib.util.find_spec(ref) is None:
            raise UnknownModel(f"there is no file or module {ref!r}.")
        return importlib.import_module(ref)
    except UnknownModel:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{ref}.".startswith(f"{error.name}."):
            raise UnknownModel(f"there is no file or module {ref!r} ({error}).") from error
        raise InvalidModel(f"module {ref} could not be imported: {type(error).__name__}: {error}") from error


register(Source("python", _accepts, _open, "path/to/model.py or package.module"))
