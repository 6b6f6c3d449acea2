"""Convolutional network for 8 x 8 handwritten digits."""

from collections import OrderedDict
from functools import cache

from torch import Tensor, nn

from lowrank_core.builtin.samples import Split, digits
from lowrank_core.builtin.stored import load_weights, weights_path

DESCRIPTION = "Reads 8 x 8 pixel handwritten digits with three convolutions and three linear layers."


def untrained() -> nn.Module:
    """(N, 1, 8, 8) grey values in [0, 1] -> (N, 10) logits."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 3, padding=1, bias=False),
            bn2=nn.BatchNorm2d(32),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(32, 64, 3, padding=1, bias=False),
            bn3=nn.BatchNorm2d(64),
            relu3=nn.ReLU(),
            pool3=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(256, 256),
            relu4=nn.ReLU(),
            fc2=nn.Linear(256, 128),
            relu5=nn.ReLU(),
            fc3=nn.Linear(128, 10),
        )
    )


def build_model() -> nn.Module:
    """The trained network in eval mode."""
    return load_weights(untrained(), weights_path(__name__))


@cache
def _split() -> Split:
    return digits(1, 8, 8)


def example_inputs() -> tuple[Tensor, ...]:
    """One image, (1, 1, 8, 8)."""
    return (_split().eval[0][:1],)


def eval_data() -> tuple[Tensor, Tensor]:
    """Held-out images (N, 1, 8, 8) and digits (N,)."""
    return _split().eval


def train_data() -> tuple[Tensor, Tensor]:
    """Training images (1000, 1, 8, 8) and digits (1000,)."""
    return _split().train
