"""An MLP that predicts how far diabetes has come a year later, judged by R2."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from benchmarks.small_networks._trained import Split, split, trained


@cache
def data() -> Split:
    found = load_diabetes()
    target = (found.target - found.target.mean()) / found.target.std()
    return split(found.data, target[:, None])


def network() -> nn.Module:
    """Ten measurements to one number."""
    return nn.Sequential(
        nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1)
    )


def build_model() -> nn.Module:
    inputs, targets, *_ = data()
    return trained(network, inputs, targets, nn.functional.mse_loss, epochs=8)


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 10),)


def train_data() -> tuple[Tensor, Tensor]:
    return data()[0], data()[1]


def eval_data() -> tuple[Tensor, Tensor]:
    return data()[2], data()[3]
