"""Two GRU layers that read the digits row by row."""

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
    return x.reshape(-1, 8, 8), y, ex.reshape(-1, 8, 8), ey


class Reader(nn.Module):
    """The classes, by the state after the last row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(8, 48, 2, batch_first=True)
        self.classes = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rows(x)
        classes: Tensor = self.classes(states[:, -1])
        return classes


def build_model() -> nn.Module:
    inputs, targets, *_ = data()
    return trained(Reader, inputs, targets)


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 8, 8),)


def train_data() -> tuple[Tensor, Tensor]:
    return data()[0], data()[1]


def eval_data() -> tuple[Tensor, Tensor]:
    return data()[2], data()[3]
