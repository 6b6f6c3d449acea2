"""A small MLP-mixer on sixteen patches of the digits."""

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
    return patches(x), y, patches(ex), ey


def patches(x: Tensor) -> Tensor:
    """(N, 64) as (N, 16 patches, 4 pixels)."""
    return x.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)


class Block(nn.Module):
    """Mixes patches, then channels, each beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(32), nn.LayerNorm(32)
        self.patches = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.patches(self.before(x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.channels(self.between(x))
        return mixed


class Mixer(nn.Module):
    """Three blocks and a classifier of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 32), nn.Linear(32, 10)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        classes: Tensor = self.leave(self.blocks(self.enter(x)).mean(1))
        return classes


def build_model() -> nn.Module:
    inputs, targets, *_ = data()
    return trained(Mixer, inputs, targets)


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 16, 4),)


def train_data() -> tuple[Tensor, Tensor]:
    return data()[0], data()[1]


def eval_data() -> tuple[Tensor, Tensor]:
    return data()[2], data()[3]
