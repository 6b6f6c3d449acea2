"""Model files: the contract between a person's Python file and this product, read and checked in one place."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lowrank_core.data import Dataset, Inputs
from lowrank_core.discover import check_finite
from lowrank_core.errors import InvalidData, InvalidModel, LowRankError
from lowrank_core.metrics import Metric
from lowrank_core.sources import Opened, as_dataset, default_metric

FUNCTIONS = ("build_model", "example_inputs", "eval_data", "train_data", "metric", "evaluate")


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own. This executes code: only for files that the person named."""
    name = f"lowrank_model_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidModel(f"{path} is not a Python file; a model file ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise InvalidModel(f"{path} could not be run: {_told(error, path)}") from error
    return module


def open_module(module: ModuleType, *, ref: str, name: str) -> Opened:
    """Check a module against the contract and open it.

    Raises InvalidModel or InvalidData with what is missing, what came and what to do.
    """
    path = Path(module.__file__ or name)
    build = getattr(module, "build_model", None)
    if not callable(build):
        raise InvalidModel(
            f"{path} is no model file: it must define build_model() -> nn.Module; "
            "`python -m lowrank_core new FILE` writes one to fill in."
        )
    model = called(build, path)
    if not isinstance(model, nn.Module):
        raise InvalidModel(f"{path}: build_model() must return an nn.Module, but got {type(model).__name__}.")
    check_finite(model)
    notices = []
    if any(m.training for m in model.modules()):
        model.eval()
        notices.append("build_model() returned a model in training mode; it is used in eval mode.")

    evaluate = getattr(module, "evaluate", None)
    train = getattr(module, "train_data", None)
    higher_is_better = bool(getattr(module, "higher_is_better", True))

    def eval_data() -> Dataset:
        if hasattr(module, "eval_data"):
            return _dataset(module.eval_data, path)
        source = train_data() if train is not None else Dataset(inputs)
        return Dataset(source.inputs)

    def train_data() -> Dataset:
        return _dataset(module.train_data, path)

    def metric(dataset: Dataset) -> Metric:
        given = getattr(module, "metric", None)
        if given is None or dataset.targets is None:
            return default_metric(dataset)
        return Metric(getattr(given, "__name__", "metric"), higher_is_better, value=given)

    inputs = _example_inputs(module, path, eval_data)
    if not hasattr(module, "eval_data") and evaluate is None:
        notices.append("There is no eval_data(): the score is agreement with the dense network.")
    if train is None:
        notices.append("There is no train_data(): calibration uses evaluation inputs, without their labels.")
    description = getattr(module, "DESCRIPTION", None) or (module.__doc__ or "").strip().split("\n")[0]
    return Opened(
        ref=ref,
        name=name,
        description=str(description),
        model=model,
        example_inputs=inputs,
        eval_data=eval_data,
        train_data=train_data if train is not None else None,
        metric=metric,
        evaluate=evaluate,
        higher_is_better=higher_is_better,
        notices=tuple(notices),
    )


def called(function: Callable[[], Any], path: Path) -> Any:
    """Call one of the person's functions; whatever it raises becomes one clear line."""
    try:
        return function()
    except LowRankError:
        raise
    except Exception as error:
        raise InvalidModel(f"{path}: {function.__name__}() failed: {_told(error, path)}") from error


def _dataset(function: Callable[[], Any], path: Path) -> Dataset:
    try:
        value = function()
        return as_dataset(value, f"{path}: {function.__name__}()")
    except LowRankError:
        raise
    except Exception as error:
        raise InvalidData(f"{path}: {function.__name__}() failed: {_told(error, path)}") from error


def _example_inputs(module: ModuleType, path: Path, eval_data: Callable[[], Dataset]) -> Inputs:
    if hasattr(module, "example_inputs"):
        return called(module.example_inputs, path)
    if hasattr(module, "eval_data") or hasattr(module, "train_data"):
        data = eval_data() if hasattr(module, "eval_data") else as_dataset(module.train_data(), "train_data()")
        return data.pick(slice(0, 1)).inputs
    raise InvalidModel(
        f"{path}: without inputs no layer can be seen at work; define example_inputs() -> tuple of tensors, "
        "a batch as deployed."
    )


def _told(error: BaseException, path: Path) -> str:
    """'ValueError: ... (line 12)', with the last line of the person's own file that was involved."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.resolve()]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    where = f" (line {lines[-1]})" if lines and lines[-1] else ""
    first = str(error).strip().split("\n")
    return f"{type(error).__name__}: {' '.join(part.strip() for part in first)[:600]}{where}"
