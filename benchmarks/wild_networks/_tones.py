"""Tones as CREPE hears them: 64 ms at 16 kHz, with overtones and noise, and the bin of 20 cents that is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.wild_networks._packages import alone, place

PACKAGES = ("torchcrepe",)

percent = True
"""The score is a share of the tones."""

RATE, LENGTH, BINS = 16_000, 1024, 360
LOWEST_CENTS = 1997.3794084376191
"""Of the first bin, above 10 Hz (Kim et al., CREPE, ICASSP 2018)."""


def crepe(capacity: str) -> nn.Module:
    """The package's network with its weights."""
    model: nn.Module = alone("torchcrepe/model.py", torchcrepe={"PITCH_BINS": BINS}).Crepe(capacity)
    model.load_state_dict(torch.load(place(f"torchcrepe/assets/{capacity}.pth"), weights_only=True))
    return model.eval()


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, 1024) of mean 0 and variance 1, and the bin (N,) of each: 60 to 1,200 Hz, evenly in pitch."""
    draw = np.random.default_rng(seed)
    pitch = 60 * 20 ** draw.random(count)
    time = np.arange(LENGTH) / RATE
    waves = np.zeros((count, LENGTH))
    for overtone in range(1, 9):
        loud = draw.random((count, 1)) / overtone
        phase = draw.random((count, 1))
        audible = (overtone * pitch < RATE / 2)[:, None]
        waves += audible * loud * np.sin(2 * np.pi * (overtone * pitch[:, None] * time + phase))
    waves /= waves.std(1, keepdims=True)
    waves += 0.1 * draw.standard_normal(waves.shape)
    waves = (waves - waves.mean(1, keepdims=True)) / waves.std(1, keepdims=True)
    bins = np.rint((1200 * np.log2(pitch / 10) - LOWEST_CENTS) / 20)
    return torch.from_numpy(waves).float(), torch.from_numpy(bins).long()


def within_a_quarter_tone(outputs: Tensor, targets: Any) -> float:
    """The share of tones whose loudest bin is at most 2 from the right one."""
    return float(((outputs.argmax(1) - targets).abs() <= 2).double().mean())
