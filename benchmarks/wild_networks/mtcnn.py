"""MTCNN's last network (facenet-pytorch): face or not, on crops that come with scikit-image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.wild_networks._images import PACKAGE
from benchmarks.wild_networks._packages import alone, place

PACKAGES = (
    "facenet-pytorch",
    PACKAGE,
)
outputs = (2,)
"""Whether it is a face; the others say where it is."""


def build_model():
    detect = {"detect_face": None, "extract_face": None}
    module = alone("facenet_pytorch/models/mtcnn.py", facenet_pytorch__models__utils__detect_face=detect)
    return module.ONet().eval()


def example_inputs():
    return (torch.zeros(1, 3, 48, 48),)


def eval_data():
    return _crops(0)


def train_data():
    return _crops(1)


def _crops(half: int) -> tuple[Tensor, Tensor]:
    """Every second of the crops, grey, in the size and scale of the network; the first 100 of them are faces."""
    grey = torch.from_numpy(np.load(place("skimage/data/lfw_subset.npy"))).float()[half::2, None]
    images = interpolate(grey, (48, 48), mode="bilinear").expand(-1, 3, -1, -1)
    faces = torch.arange(200)[half::2] < 100
    images = (255 * images - 127.5) / 128
    return torch.cat([images, images.flip(3)]), torch.cat([faces, faces]).long()
