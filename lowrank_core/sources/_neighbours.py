"""Neighbours: what a model file imports from its own folder, private to it and read anew whenever it is opened.

A model file and the modules beside it run as one package of their own, named by the file's path. Two model files with a
neighbour of the same name have one each, others cannot import it, and `sys.path` stays as it was. Installed packages
and the standard library come first: a neighbour shadows nothing.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.abc import Loader
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PREFIX = "lowrank_model_"
INSTALLED = {"site-packages", "dist-packages"}

_packages: dict[str, Neighbourhood] = {}
_at_work = threading.local()
_turn = threading.Lock()


class Neighbourhood:
    """A model file and its neighbours: the private package that they run as.

    code: the hash of each source file that was run, as it was then; it grows with what is imported later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.package = PREFIX + hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        self.folders = [str(self.path.parent)]
        self.code: dict[Path, str] = {}
        self.namespace = {**vars(builtins), "__import__": self._import}
        self.aliases: set[str] = set()
        self._mine: dict[str, bool] = {}

    def run(self) -> ModuleType:
        """The model file as a module, run anew; so are its neighbours, as soon as they are imported.

        Raises whatever the file raises.
        """
        loader = _Source(self, self.package, str(self.path))
        spec = ModuleSpec(self.package, loader, origin=str(self.path), is_package=True)
        spec.has_location, spec.submodule_search_locations = True, self.folders
        with _turn:
            if _Finder not in sys.meta_path:
                sys.meta_path.insert(0, _Finder)  # knows private names alone, and those of the model that is at work
            self._forget()
            _packages[self.package] = self
            module = sys.modules[self.package] = module_from_spec(spec)
        try:
            with self.at_work(loads=True):
                loader.exec_module(module)
        except BaseException:
            self._forget()
            raise
        return module

    def within(self, function: Any, *, loads: bool) -> Any:
        """A function of the model file that finds the neighbours by any way of importing; what is none as it is.

        loads: as in `at_work`.
        """
        if not callable(function):
            return function

        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self.at_work(loads=loads):
                return function(*args, **kwargs)

        return called

    @contextmanager
    def at_work(self, *, loads: bool) -> Iterator[None]:
        """While this thread runs code of the model: pickles and `import_module` find its neighbours by plain names.

        loads: folders that the code adds to `sys.path` become the model's own, and the path is put back. Not so where a
        model is only judged, which goes on for long while others are opened.
        """
        outer = getattr(_at_work, "model", None), getattr(_at_work, "path", None)
        _at_work.model, _at_work.path = self, list(sys.path) if loads else None
        try:
            yield
        finally:
            added = self._added()
            if added:
                sys.path[:] = [folder for folder in sys.path if folder not in added]
            _at_work.model, _at_work.path = outer
            while self.aliases:
                sys.modules.pop(self.aliases.pop(), None)

    def owns(self, name: str) -> bool:
        """Whether a top-level module of that name is a neighbour."""
        if name not in self._mine:
            beside = any(_stands(folder, name) for folder in self.folders)
            others = name in sys.stdlib_module_names or name == __name__.partition(".")[0]
            self._mine[name] = beside and not (others or _is_installed(name))
        return self._mine[name]

    def spec(self, name: str, folders: Sequence[str] | None) -> ModuleSpec | None:
        """How a module inside the private package is loaded; None where it is not there."""
        leaf = name.rpartition(".")[2]
        for folder in map(Path, folders or ()):
            for file, inside in ((folder / leaf / "__init__.py", [str(folder / leaf)]), (folder / f"{leaf}.py", None)):
                if file.is_file():
                    loader = _Source(self, name, str(file))
                    return spec_from_file_location(name, file, loader=loader, submodule_search_locations=inside)
        return PathFinder.find_spec(name, folders)

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """`import`, as the model file and its neighbours know it."""
        top = name.partition(".")[0]
        if getattr(_at_work, "model", None) is self:
            self._added()
        from_c = isinstance(fromlist, list)  # a pickle, say, which then looks for the plain name: see `_Finder`
        if level or from_c or not self.owns(top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        if fromlist:
            return builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist)
        importlib.import_module(f"{self.package}.{name}")
        return sys.modules[f"{self.package}.{top}"]

    def _added(self) -> set[str]:
        """Folders that the model's code has added to `sys.path` since it is at work; they are its own from now on."""
        before = sys.path if _at_work.path is None else _at_work.path
        added = {folder for folder in sys.path if folder not in before and not _is_of_python(folder)}
        fresh = [folder for folder in sys.path if folder in added and folder not in self.folders]
        if fresh:
            self.folders += fresh
            self._mine.clear()
        return added

    def _forget(self) -> None:
        """Drop the modules of this file as it was opened before."""
        for name in [n for n in sys.modules if n == self.package or n.startswith(f"{self.package}.")]:
            del sys.modules[name]


class _Source(SourceFileLoader):
    """Runs a source file of a model as it is now, whatever was compiled before, with the model's own `import`."""

    def __init__(self, model: Neighbourhood, name: str, path: str) -> None:
        super().__init__(name, path)
        self._model = model

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path)
        self._model.code[Path(self.path)] = hashlib.sha256(source).hexdigest()
        return self.source_to_code(source, self.path)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self._model.namespace
        super().exec_module(module)


class _Alias(Loader):
    """A neighbour under its plain name, while its model is at work."""

    def __init__(self, model: Neighbourhood, name: str) -> None:
        self._model, self._name = model, name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{self._model.package}.{self._name}")
        self._own = module.__spec__
        self._model.aliases.add(self._name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own


class _Finder:
    """In `sys.meta_path`: finds what is private to a model file, and nothing else."""

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        top, _, inside = name.partition(".")
        if top in _packages:
            return _packages[top].spec(name, path) if inside else None
        model: Neighbourhood | None = getattr(_at_work, "model", None)
        if model is not None and model.owns(top):
            return ModuleSpec(name, _Alias(model, name))
        return None


def _stands(folder: str, name: str) -> bool:
    """Whether a module of that name stands in a folder; a folder without code is one where nobody else has the name."""
    base = Path(folder) / name
    if any(base.with_name(f"{name}{ending}").is_file() for ending in (".py", *EXTENSION_SUFFIXES)):
        return True
    if (base / "__init__.py").is_file():
        return True
    if not base.is_dir():
        return False
    other = PathFinder.find_spec(name)
    return other is None or other.origin is None


def _is_installed(name: str) -> bool:
    places = [folder for folder in sys.path if Path(folder).name in INSTALLED]
    spec = PathFinder.find_spec(name, places)
    return spec is not None and spec.origin is not None


def _is_of_python(folder: str) -> bool:
    """Whether a folder in `sys.path` belongs to Python or to an installed package, which may add some of their own."""
    path = Path(folder).resolve()
    return bool(INSTALLED & set(path.parts)) or any(path.is_relative_to(p) for p in (sys.prefix, sys.base_prefix))
