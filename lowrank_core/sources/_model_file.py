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

from torch import Tensor, nn

from lowrank_core.errors import InvalidData, InvalidModel, LowRankError
from lowrank_core.layers.data import Dataset, Inputs, batch_size, run
from lowrank_core.networks.profile import check_finite
from lowrank_core.scoring.metrics import AGREEMENT, METRICS, Metric
from lowrank_core.sources._opened import Opened, as_dataset, default_metric

FUNCTIONS = ("build_model", "example_inputs", "eval_data", "train_data", "metric", "evaluate")


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
        given = named_metric(getattr(module, "metric", None), path)
        if isinstance(given, Metric) and (given.label_free or dataset.targets is not None):
            return given
        if given is None or dataset.targets is None:
            chosen = default_metric(dataset)
            _check_classes(model, dataset, path)
            return chosen

        def value(outputs: Tensor, targets: Tensor) -> float:
            try:
                return float(given(outputs, targets))
            except (Exception, SystemExit) as error:
                raise InvalidData(f"{path}: metric() failed: {_told(error, path)}") from error

        classes = dataset.targets.ndim == 1 and not dataset.targets.is_floating_point()
        name = getattr(given, "__name__", "metric")
        return Metric(name, higher_is_better, value=value, class_axis=1 if classes else None)

    named = named_metric(getattr(module, "metric", None), path)
    inputs = _example_inputs(module, path, eval_data)
    if not hasattr(module, "eval_data") and evaluate is None:
        judged = named if isinstance(named, Metric) and named.label_free else AGREEMENT
        notices.append(f"There is no eval_data(): the score is {judged.name}.")
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
        provides=frozenset(name for name in FUNCTIONS if hasattr(module, name)),
    )


def named_metric(given: Any, path: Path) -> Any:
    """A metric that goes by a name in METRICS, anything else as it is; raises InvalidModel for an unknown name."""
    if not isinstance(given, str):
        return given
    if given not in METRICS:
        raise InvalidModel(
            f"{path}: there is no metric {given!r}; name one of {', '.join(METRICS)}, "
            "or define metric(outputs, targets) -> float."
        )
    return METRICS[given]


def called(function: Callable[[], Any], path: Path) -> Any:
    """Call one of the person's functions; whatever it raises becomes one clear line."""
    try:
        return function()
    except LowRankError:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidModel(f"{path}: {_named(function)} failed: {_told(error, path)}") from error


def _dataset(function: Callable[[], Any], path: Path) -> Dataset:
    try:
        value = function()
        return as_dataset(value, f"{path}: {_named(function)}")
    except LowRankError:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidData(f"{path}: {_named(function)} failed: {_told(error, path)}") from error


def _named(function: object) -> str:
    return f"{getattr(function, '__name__', repr(function))}()"


def _check_classes(model: nn.Module, dataset: Dataset, path: Path) -> None:
    """Outputs must be one number per class, and every label one of these classes."""
    outputs = run(model, dataset.pick(slice(0, 1)))
    if outputs.ndim != 2:
        raise InvalidData(
            f"{path}: outputs must be (N, classes) to be scored by top-1, but for one sample the model returns "
            f"{tuple(outputs.shape)}; define metric(outputs, targets) -> float."
        )
    if dataset.targets is None:
        return
    low, high, classes = int(dataset.targets.min()), int(dataset.targets.max()), outputs.shape[1]
    if low < 0 or high >= classes:
        raise InvalidData(
            f"{path}: labels must be 0..{classes - 1}, one for each of the model's {classes} outputs, "
            f"but eval_data() has {low}..{high}; correct the labels, or define metric(outputs, targets) -> float."
        )


def _example_inputs(module: ModuleType, path: Path, eval_data: Callable[[], Dataset]) -> Inputs:
    if hasattr(module, "example_inputs"):
        inputs = called(module.example_inputs, path)
        if batch_size(inputs) == 0:
            raise InvalidData(f"{path}: example_inputs() has no samples; it must return a batch of at least one.")
        return inputs
    if hasattr(module, "eval_data") or hasattr(module, "train_data"):
        data = eval_data() if hasattr(module, "eval_data") else _dataset(module.train_data, path)
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
