"""ModelContract: a model and its data as any source hands them over, checked and opened in one place."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidData, InvalidModel, LowRankError, cut
from lowrank_core.layers.data import BatchAxes, Dataset, Inputs, batch_size, tensors
from lowrank_core.networks.batch_axes import batch_axes
from lowrank_core.networks.profile import check_finite
from lowrank_core.networks.wrappers import made_plain
from lowrank_core.samples.preparation import Preparation
from lowrank_core.scoring.metrics import METRICS, Metric, answers_twice
from lowrank_core.sources._opened import COMPARED, Opened, as_dataset
from lowrank_core.sources._scripted import from_script

FUNCTIONS = ("build_model", "example_inputs", "eval_data", "train_data", "metric", "evaluate")


NAMED_IN_DATA = 'name a metric in the .npz of its data, numpy.savez(..., metric="...")'
"""What to do where none fits and the network is no Python file, which could define one."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelContract:
    """What a source knows of a model: the functions of a model file, none of them called yet, None where there is none.

    name: for people. ref: the reference that opens it again, None for a network that came from Python.
    path: the file or folder it is in, which messages name; None where messages name arguments of `Workspace.of`.
    code: the hash of each source file that was run for it, as it was then; it may grow with what is imported later.
    axes: where the batch is, if that is known already. preparation: how a person's raw samples become its inputs.
    """

    name: str
    build_model: Callable[[], Any]
    example_inputs: Callable[[], Any] | None = None
    eval_data: Callable[[], Any] | None = None
    train_data: Callable[[], Any] | None = None
    metric: Callable[[Tensor, Tensor], Any] | Metric | str | None = None
    outputs: Any = ()
    evaluate: Callable[[nn.Module], Any] | None = None
    higher_is_better: bool = True
    description: str = ""
    ref: str | None = None
    path: Path | None = None
    code: dict[Path, str] = field(default_factory=dict)
    axes: BatchAxes | None = None
    preparation: Preparation = field(default_factory=Preparation)

    def called(self, function: str) -> str:
        """How notices call a part of it: 'eval_data()' of a file, 'eval_data' as an argument."""
        return f"{function}()" if self.path else function.replace("build_model", "model")

    def part(self, function: str) -> str:
        """How refusals call it: 'net.py: eval_data()', or 'eval_data'."""
        return f"{self.path}: {self.called(function)}" if self.path else self.called(function)

    @property
    def begins(self) -> str:
        """What a refusal begins with that is about the whole: 'net.py: ', or nothing."""
        return f"{self.path}: " if self.path else ""

    @property
    def own_metric(self) -> str:
        """What to do where no metric that is known by name fits."""
        signature = "(outputs, targets) -> float"
        if self.path is None:
            return f"give metric, a function {signature}"
        return f"define metric{signature} in the model file" if self.is_code else NAMED_IN_DATA

    @property
    def is_code(self) -> bool:
        """Whether a person's code gives the network, and may give a metric too."""
        return self.path is None or self.path.suffix == ".py"

    @property
    def must(self) -> str:
        """'must return' of functions, 'must be' of arguments."""
        return "must return" if self.path else "must be"


def open_contract(contract: ModelContract) -> Opened:
    """Build the model and check what came with it; data is loaded when first asked for.

    Raises InvalidModel or InvalidData with what is missing, what came and what to do.
    """
    model = _built(contract)
    notices, of_own_data = [], []
    if any(m.training for m in model.modules()):
        model.eval()
        notices.append(
            "build_model() returned a model in training mode; it is used in eval mode."
            if contract.path
            else "The model is in training mode; the copy that is worked on is in eval mode."
        )
    _check_functions(contract)
    train = contract.train_data

    def eval_data() -> Dataset:
        if contract.eval_data is not None:
            return dataset_of(contract, "eval_data", axes)
        return train_data().unlabelled() if train is not None else Dataset(inputs, axes=axes)

    def train_data() -> Dataset:
        return dataset_of(contract, "train_data", axes)

    given = _named_metric(contract)
    inputs = _example_inputs(contract)
    axes = contract.axes or batch_axes(model, inputs)
    if contract.eval_data is None and contract.evaluate is None:
        named = given.name if isinstance(given, Metric) and given.label_free else COMPARED
        of_own_data.append(f"There is no {contract.called('eval_data')}: the score is {named}.")
    if train is None:
        missing = contract.called("train_data")
        of_own_data.append(f"There is no {missing}: calibration uses evaluation inputs, without their labels.")
    return Opened(
        ref=contract.ref,
        name=contract.name,
        description=contract.description,
        model=model,
        example_inputs=inputs,
        axes=axes,
        eval_data=eval_data,
        train_data=train_data if train is not None else None,
        metric=lambda dataset: _metric(contract, dataset),
        evaluate=contract.evaluate,
        higher_is_better=contract.higher_is_better,
        notices=(*notices, *of_own_data),
        of_own_data=tuple(of_own_data),
        code=contract.code,
        provides=frozenset(name for name in FUNCTIONS if getattr(contract, name) is not None),
        outputs=_outputs(contract),
        refused=contract.begins,
        own_metric=contract.own_metric,
        preparation=contract.preparation,
    )


def _built(contract: ModelContract) -> nn.Module:
    model = _call(contract, "build_model", InvalidModel)
    if not isinstance(model, nn.Module):
        raise InvalidModel(
            f"{contract.part('build_model')} {contract.must} an nn.Module, but got {type(model).__name__}."
        )
    try:
        if isinstance(model, torch.jit.ScriptModule):
            model = from_script(model.eval(), _example_inputs(contract))
        model = made_plain(model)
    except InvalidModel as error:
        raise InvalidModel(f"{contract.begins}{error}") from error
    check_finite(model)
    return model


def _check_functions(contract: ModelContract) -> None:
    if contract.evaluate is not None and not callable(contract.evaluate):
        raise InvalidModel(
            f"{contract.begins}evaluate must be a function of the model that gives a number, but got "
            f"{type(contract.evaluate).__name__}."
        )
    if contract.metric is not None and not (callable(contract.metric) or isinstance(contract.metric, Metric | str)):
        raise InvalidModel(
            f"{contract.begins}metric must be a function of outputs and targets or a name, one of "
            f"{', '.join(METRICS)}, but got {type(contract.metric).__name__}."
        )


def _outputs(contract: ModelContract) -> tuple[str | int, ...]:
    """The outputs that a person names, in a list or alone."""
    given = contract.outputs
    listed = (given,) if isinstance(given, str | int) else given
    if not isinstance(listed, list | tuple) or any(isinstance(o, bool) or not isinstance(o, str | int) for o in listed):
        raise InvalidModel(
            f"{contract.begins}outputs must be a list of names or places of the outputs that are judged, but got "
            f"{given!r}."
        )
    return tuple(listed)


def _metric(contract: ModelContract, dataset: Dataset) -> Metric | None:
    """How a person says that outputs are judged on these samples; None where they do not."""
    given = _named_metric(contract)
    if isinstance(given, Metric) and (given.label_free or dataset.targets is not None):
        return given if given in METRICS.values() else answers_twice(given)
    if given is None or isinstance(given, Metric) or dataset.targets is None:
        return None

    axes = dataset.axes

    def value(outputs: Tensor, targets: Tensor) -> float:
        try:
            return float(given(*_as_answered(axes, outputs, targets)))
        except (Exception, SystemExit) as error:
            raise InvalidData(f"{contract.part('metric')} failed: {told(error, contract.path)}") from error

    classes = dataset.targets.ndim == 1 and not dataset.targets.is_floating_point()
    name = getattr(given, "__name__", "metric")
    return answers_twice(Metric(name, contract.higher_is_better, value=value, class_axis=1 if classes else None))


def _as_answered(axes: BatchAxes | None, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets as the network and the person's own data have them: a batch that is not first put back."""
    if axes is None:
        return outputs, targets
    axis = next((axis for axis in axes.outputs if axis is not None), 0)
    return outputs.movedim(0, axis), targets.movedim(0, axes.targets)


def _named_metric(contract: ModelContract) -> Callable[[Tensor, Tensor], Any] | Metric | None:
    """A metric that goes by a name in METRICS, anything else as it is; raises InvalidModel for an unknown name."""
    given = contract.metric
    if not isinstance(given, str):
        return given
    if given not in METRICS:
        raise InvalidModel(
            f"{contract.begins}there is no metric {given!r}; name one of {', '.join(METRICS)}"
            f"{f', or {contract.own_metric}' if contract.is_code else ''}."
        )
    return METRICS[given]


def _call(contract: ModelContract, function: str, kind: type[LowRankError]) -> Any:
    """What one of the person's functions returns; whatever it raises becomes one clear line."""
    try:
        return getattr(contract, function)()
    except LowRankError:
        raise
    except (Exception, SystemExit) as error:
        raise kind(f"{contract.part(function)} failed: {told(error, contract.path)}") from error


def dataset_of(contract: ModelContract, function: str, axes: BatchAxes | None = None) -> Dataset:
    """What eval_data or train_data gives, in memory; raises InvalidData where it cannot be had or read."""
    value = _call(contract, function, InvalidData)
    try:
        return as_dataset(value, contract.part(function), lambda: _inputs_taken(contract), axes)
    except LowRankError:
        raise
    except (Exception, SystemExit) as error:  # of a generator, or of a loader of batches
        raise InvalidData(f"{contract.part(function)} failed: {told(error, contract.path)}") from error


def _inputs_taken(contract: ModelContract) -> int:
    """How many tensors the network takes, as far as example_inputs tells; else one."""
    return 1 if contract.example_inputs is None else len(tensors(_call(contract, "example_inputs", InvalidModel)))


def _example_inputs(contract: ModelContract) -> Inputs:
    if contract.example_inputs is not None:
        inputs = _call(contract, "example_inputs", InvalidModel)
        try:
            samples = batch_size(inputs)
        except InvalidData as error:
            raise InvalidData(f"{contract.part('example_inputs')}: {error}") from error
        if samples == 0:
            raise InvalidData(
                f"{contract.part('example_inputs')} has no samples; it {contract.must} a batch of at least one."
            )
        return inputs
    if contract.eval_data is not None or contract.train_data is not None:
        data = dataset_of(contract, "train_data" if contract.eval_data is None else "eval_data")
        return data.pick(slice(0, 1)).inputs
    raise InvalidModel(
        f"{contract.begins}without inputs no layer can be seen at work; define example_inputs() -> tuple of tensors, "
        "a batch as deployed."
        if contract.path
        else "without inputs no layer can be seen at work; give example_inputs, a batch as deployed."
    )


def told(error: BaseException, path: Path | None) -> str:
    """'ValueError: ... (line 12: x = y[3])', with the last line of the person's own file that was involved."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [(f.lineno, f.line) for f in frames if path is not None and Path(f.filename) == path.resolve()]
    text = str(error)
    if isinstance(error, SyntaxError):
        lines, text = [(error.lineno, error.text)], error.msg or text
    number, code = lines[-1] if lines else (None, None)
    shown = f": {cut(' '.join(code.split()))}" if code and code.strip() else ""
    where = f" (line {number}{shown})" if number else ""
    first = text.strip().split("\n")
    return f"{type(error).__name__}: {' '.join(part.strip() for part in first)[:600]}{where}"
