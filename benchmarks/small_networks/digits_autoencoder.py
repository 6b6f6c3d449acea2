"""An autoencoder of the digits, judged by the share of their variance that it gives back."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.small_networks._trained import Split, split, trained


@cache
def data() -> Split:
    x, _, ex, _ = split(load_digits().data, load_digits().target)
    return x, x, ex, ex


def network() -> nn.Module:
    """64 pixels through 16 numbers and back."""
    return nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 16),
        nn.Linear(16, 128),
        nn.ReLU(),
        nn.Linear(128, 96),
        nn.ReLU(),
        nn.Linear(96, 64),
    )


def build_model() -> nn.Module:
    inputs, targets, *_ = data()
    return trained(network, inputs, targets, nn.functional.mse_loss)


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 64),)


def train_data() -> tuple[Tensor, Tensor]:
    return data()[0], data()[1]


def eval_data() -> tuple[Tensor, Tensor]:
    return data()[2], data()[3]
