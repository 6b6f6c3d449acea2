"""What a metric says of a few samples: its code cannot be compared, but what it says can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lowrank_core.layers.data import Dataset, data_hash, run
from lowrank_core.scoring.metrics import Metric

NOISE = (0.1, 1.0)
"""Noise that is added to outputs, in their own standard deviations."""


def judgement(metric: Metric, model: nn.Module, samples: Dataset, names: Sequence[str]) -> list[object]:
    """The outputs that are judged, name and direction of the metric, what it is given, and what it says, as JSON.

    It judges the outputs, those of the sample before, and disturbed ones, all samples together and each alone: of the
    dense outputs alone an agreement says 1, whatever it compares. Where it fails, the kind of error is what it says.
    """
    outputs = run(model, samples, names)
    about = [metric.name, metric.higher_is_better, metric.label_free, metric.class_axis, metric.unbounded]
    return [*about, data_hash(outputs), *(_on(metric, name, values, samples) for name, values in outputs.items())]


def _on(metric: Metric, name: str, outputs: Tensor, samples: Dataset) -> list[object]:
    targets = metric.targets_of(outputs, samples.targets)
    said = [_said(metric, given, targets) for given in _disturbed(outputs)]
    alone = [
        _said(metric, given[at : at + 1], targets[at : at + 1])
        for given in _disturbed(outputs)
        for at in range(len(targets))
    ]
    return [name, said, alone]


def _said(metric: Metric, outputs: Tensor, targets: Tensor) -> str:
    try:
        return repr(metric.score(outputs, targets))
    except Exception as error:  # of a person's own metric, which may want more than one sample
        return type(error).__name__


def _disturbed(outputs: Tensor) -> Iterator[Tensor]:
    yield outputs
    yield outputs.roll(1, 0)
    if outputs.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(outputs.shape, generator=generator).to(outputs)
        for share in NOISE:
            yield outputs + share * outputs.std(correction=0) * noise
