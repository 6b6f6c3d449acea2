"""Model files: a person's Python file or module as a ModelContract."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from lowrank_core.errors import InvalidModel
from lowrank_core.sources._contract import ModelContract, told


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own. This executes code: only for files that the person named."""
    name = f"lowrank_model_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidModel(f"{path} is not a Python file; a model file ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: a model file may import its neighbours, but shadows nothing
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise InvalidModel(f"{path} could not be run: {told(error, path)}") from error
    return module


def contract_of(module: ModuleType, *, ref: str, name: str) -> ModelContract:
    """What a module defines of the contract; raises InvalidModel where there is no build_model()."""
    path = Path(module.__file__ or name)
    build = getattr(module, "build_model", None)
    if not callable(build):
        raise InvalidModel(
            f"{path} is no model file: it must define build_model() -> nn.Module; "
            "`python -m lowrank_core new FILE` writes one to fill in."
        )
    return ModelContract(
        name=name,
        build_model=build,
        example_inputs=getattr(module, "example_inputs", None),
        eval_data=getattr(module, "eval_data", None),
        train_data=getattr(module, "train_data", None),
        metric=getattr(module, "metric", None),
        outputs=getattr(module, "outputs", ()),
        evaluate=getattr(module, "evaluate", None),
        higher_is_better=bool(getattr(module, "higher_is_better", True)),
        description=str(getattr(module, "DESCRIPTION", None) or (module.__doc__ or "").strip().split("\n")[0]),
        ref=ref,
        path=path,
    )
