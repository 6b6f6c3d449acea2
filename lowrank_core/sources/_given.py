"""Data that a person names beside a model: which files, how they are prepared, and the model judged on them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from lowrank_core.errors import InvalidData, InvalidSettings
from lowrank_core.figures import how_many
from lowrank_core.layers.data import Dataset, Inputs, first_axes, run, tensors
from lowrank_core.networks.batch_axes import batch_axes
from lowrank_core.readers import read
from lowrank_core.readers._running_text import read_text
from lowrank_core.samples.preparation import Preparation
from lowrank_core.samples.preprocess import prepared
from lowrank_core.samples.samples import Samples, Taken, classes_said
from lowrank_core.scoring.intervals import FEWEST
from lowrank_core.scoring.metrics import METRICS
from lowrank_core.sources._opened import Opened, as_dataset, turned
from lowrank_core.store.reference import Address


@dataclass(frozen=True, slots=True)
class GivenData:
    """Where samples come from. data, text: those judged; train: those for training. preprocess: in a few words."""

    data: Path | None = None
    train: Path | None = None
    text: Path | None = None
    preprocess: str = ""

    @property
    def path(self) -> Path:
        """The file or folder that messages name."""
        path = self.data or self.text or self.train
        assert path is not None
        return path

    def read(self, takes: Sequence[Taken], sampled: Sequence[Taken], preparation: Preparation) -> Samples:
        """The samples for a network that takes these inputs, those for training beside them; raises InvalidData.

        sampled: the inputs that differ from sample to sample, which files other than arrays are read for.
        """
        how = prepared(self.preprocess, preparation)

        def samples_of(path: Path) -> Samples:
            arrays = path.suffix.lower() in (".npz", ".npy")
            return read(path, takes if arrays else sampled or takes, how)

        if self.text is not None:
            samples = read_text(self.text, sampled or takes, how)
        elif self.data is not None:
            samples = samples_of(self.data)
        else:
            raise InvalidSettings("--train-data needs --data: samples that the network is judged on.")
        return samples if self.train is None else replace(samples, train=replace(samples_of(self.train), train=None))


def given_by(address: Address) -> GivenData | None:
    """The data of a reference; None where it names none. Raises InvalidSettings for parts that do not go together."""
    data, train, text = (None if p is None else Path(p) for p in (address.data, address.train_data, address.text))
    if data is None and train is None and text is None:
        if address.preprocess is not None:
            raise InvalidSettings(
                "--preprocess says how samples are prepared, and needs --data, a file or folder of them."
            )
        return None
    if data is not None and text is not None:
        raise InvalidSettings("--data and --text are both samples to judge by; give one of them.")
    return GivenData(data, train, text, address.preprocess or "")


def opened_on(opened: Opened, given: GivenData, ref: str) -> Opened:
    """The same model, judged on data that a person names; raises InvalidData where it cannot take them.

    Example inputs are samples where these have other sizes. An own evaluate(model) gives way.
    """
    takes = taken_by(opened)
    samples = given.read(takes, takes, opened.preparation)
    data = _dataset(samples, opened, takes, given.path)
    inputs, axes = opened.example_inputs, opened.axes
    if _sizes(data.inputs) != _sizes(inputs):
        inputs = data.pick(slice(0, min(opened.batch, len(data)))).inputs
        axes = batch_axes(opened.model, inputs)
        data = replace(data, axes=axes)
    run(opened.model, replace(data, axes=axes or first_axes(inputs)).pick(slice(0, 1)), source=str(given.path))
    name = given.path.name
    train, said = opened.train_data, (*classes_said(samples.classes, name), *_documents_said(samples, name))
    if samples.train is not None:
        train = partial(_dataset, samples.train, opened, takes, given.train or given.path)
    elif train is None or inputs is not opened.example_inputs:
        train = None
        said += (f"{name} holds no samples for training: calibration uses its inputs, without their targets.",)
    metric = opened.metric if samples.metric is None else lambda dataset: METRICS[samples.metric or ""]
    return replace(
        opened,
        ref=ref,
        example_inputs=inputs,
        axes=axes,
        eval_data=lambda: data,
        train_data=train,
        metric=metric,
        evaluate=None,
        provides=opened.provides - {"evaluate"} | {"eval_data"},
        outputs=samples.outputs or opened.outputs,
        preparation=replace(opened.preparation, labels=opened.preparation.labels or samples.classes),
        notices=(
            *(notice for notice in opened.notices if notice not in opened.of_own_data),
            *said,
        ),
        of_own_data=(),
    )


def _documents_said(samples: Samples, name: str) -> tuple[str, ...]:
    """What counts as a document, as a notice, where intervals are over them; else nothing."""
    if samples.documents is None:
        return ()
    count = len(set(samples.documents.tolist()))
    enough = "" if count >= FEWEST else f", of which that takes {FEWEST}, so there are none"
    return (
        f"{name}: {how_many(count, 'document')}, {samples.told_apart}. Intervals are over documents{enough}. "
        "--preprocess documents=lines, paragraphs or file tells them apart otherwise.",
    )


def _sizes(inputs: Inputs) -> list[object]:
    """What inputs are called and how large one sample is."""
    names = list(inputs) if isinstance(inputs, dict) else []
    return [*names, *(tuple(value.shape[1:]) for value in tensors(inputs))]


def taken_by(opened: Opened) -> list[Taken]:
    """What a network takes, by its example inputs: their names, sizes of one sample, and types."""
    inputs, given = opened.example_inputs, tensors(opened.example_inputs)
    axes = (opened.axes or first_axes(inputs)).inputs
    names = [key for key, value in inputs.items() if isinstance(value, Tensor)] if isinstance(inputs, dict) else []
    if len(names) != len(given):
        names = _arguments(opened.model, len(given))
    return [
        Taken(name, tuple(n for at, n in enumerate(value.shape) if at != axis), value.dtype)
        for name, value, axis in zip(names, given, axes, strict=True)
    ]


def _arguments(model: nn.Module, count: int) -> list[str]:
    """Names of the first arguments of a network; one alone goes by the name that arrays have."""
    if count == 1:
        return ["inputs"]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, argument in inspect.signature(model.forward).parameters.items() if argument.kind in kinds]
    return names[:count] if len(names) >= count else [f"input_{n}" for n in range(count)]


def _dataset(samples: Samples, opened: Opened, takes: Sequence[Taken], where: Path) -> Dataset:
    """Samples in the form that the network takes its inputs in."""
    for name, value in samples.held.items():
        raise InvalidData(f"{where}: {name} must be samples, (N, ...), but is {tuple(value.shape)}.")
    types = {taken.name: taken.dtype for taken in takes}
    arrays = {name: value.to(types.get(name, value.dtype)) for name, value in samples.inputs.items()}
    inputs: Inputs
    if isinstance(opened.example_inputs, dict):
        inputs = arrays
        if len(arrays) == len(takes) == 1:
            inputs = {takes[0].name: next(iter(arrays.values()))} if "inputs" in arrays else arrays
    else:
        missing = [taken.name for taken in takes if taken.name not in arrays]
        if missing and len(takes) > 1:
            raise InvalidData(
                f"{where} lacks {', '.join(missing)}; the network takes {', '.join(map(str, takes))}: a .npz or a "
                "table holds each by its name."
            )
        listed = tuple(arrays.values()) if len(takes) == 1 else tuple(arrays[taken.name] for taken in takes)
        inputs = listed if len(listed) > 1 else listed[0]
    dataset = Dataset(inputs, samples.targets, samples.weights, more=samples.more, documents=samples.documents)
    if samples.as_taken:
        return as_dataset(dataset, str(where), axes=opened.axes)
    return as_dataset(turned(dataset, opened.axes), str(where))
