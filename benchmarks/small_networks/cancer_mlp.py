"""An MLP that tells malignant from benign cells by thirty measurements."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from benchmarks.small_networks._trained import Split, split, trained


@cache
def data() -> Split:
    cells = load_breast_cancer()
    return split(cells.data, cells.target)


def network() -> nn.Module:
    """Thirty measurements to two classes."""
    return nn.Sequential(
        nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 2)
    )


def build_model() -> nn.Module:
    inputs, targets, *_ = data()
    return trained(network, inputs, targets, epochs=15)


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 30),)


def train_data() -> tuple[Tensor, Tensor]:
    return data()[0], data()[1]


def eval_data() -> tuple[Tensor, Tensor]:
    return data()[2], data()[3]
