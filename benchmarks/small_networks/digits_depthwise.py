"""Depthwise separable convolutions on the 8x8 digits."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.small_networks._trained import Split, split, trained


@cache
def data() -> Split:
    digits = load_digits()
    x, y, ex, ey = split(digits.data, digits.target)
    return x.reshape(-1, 1, 8, 8), y, ex.reshape(-1, 1, 8, 8), ey


def separable(channels: int, wider: int, stride: int) -> nn.Module:
    """A depthwise 3x3 and a pointwise convolution."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, wider, 1, bias=False),
        nn.BatchNorm2d(wider),
        nn.ReLU(),
    )


def network() -> nn.Module:
    """Four pairs of convolutions and a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, 1, 1),
        nn.ReLU(),
        separable(24, 48, 1),
        separable(48, 64, 2),
        separable(64, 96, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def build_model() -> nn.Module:
    inputs, targets, *_ = data()
    return trained(network, inputs, targets, epochs=25)


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 1, 8, 8),)


def train_data() -> tuple[Tensor, Tensor]:
    return data()[0], data()[1]


def eval_data() -> tuple[Tensor, Tensor]:
    return data()[2], data()[3]
