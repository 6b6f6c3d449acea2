"""ResNet-50 (He et al., arXiv 1512.03385, strides as in torchvision) at random weights; images of 224 pixels."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLES = int(os.environ.get("SAMPLES", "64"))
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width, blocks and stride of each stage."""


class Bottleneck(nn.Module):
    """relu(x + 1x1(3x3(1x1(x)))), each convolution with its BatchNorm."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != 4 * width:
            side = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(side, nn.BatchNorm2d(4 * width))
        nn.init.constant_(self.bn3.weight, 0.3)  # sixteen blocks add up

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        blocks, channels = [], 64
        for width, count, stride in STAGES:
            for number in range(count):
                blocks.append(Bottleneck(channels, width, stride if number == 0 else 1))
                channels = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.avgpool(x).flatten(1))


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return ResNet50().eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (images(1, seed=0),)


def eval_data() -> Tensor:
    return images(SAMPLES, seed=1)


def images(count: int, seed: int) -> Tensor:
    """(count, 3, 224, 224) of blots of all sizes and a little noise, of mean 0 and variance 1."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.3 * torch.randn(count, 3, 224, 224, generator=generator)
    for extent in (4, 14, 56):
        blots = torch.randn(count, 3, extent, extent, generator=generator)
        total += F.interpolate(blots, (224, 224), mode="bilinear")
    return (total - total.mean((1, 2, 3), keepdim=True)) / total.std((1, 2, 3), keepdim=True)
