"""Machine diagnosis from a vibration spectrum: one first layer holds 99 % of the weights.

Each sample is the spectrum of one second of vibration sampled at 16,384 Hz: 8192 coefficients, 1 Hz apart. A machine
turns at about 25 Hz and hums at its shaft and gear-mesh orders; seven faults add their own tones. The tones are placed
straight into the spectrum (a tone between two bins leaks into its neighbours as sinc), the noise is white.
"""

from collections import OrderedDict
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank_core.builtin.stored import load_weights, weights_path

DESCRIPTION = (
    "Recognises eight machine states by 8192 FFT coefficients of synthetic vibration; its first layer dominates."
)
BINS = 8192
SHAFT = 25.0
"""Shaft speed in Hz; samples differ from it by at most `SPEED_SPREAD`, relative."""
SPEED_SPREAD = 0.005
LEAKAGE = 4
"""Bins on each side of a tone that receive a part of it."""
MESH = 23
"""Teeth of the gear: its mesh frequency in shaft orders."""
SIGNAL = 14.0
"""Mean FFT magnitude of a tone, where the noise has 1 in each of its real and imaginary parts."""


def comb(spacing: float, count: int) -> tuple[float, ...]:
    """The first `count` harmonics of an order: its multiples from 1."""
    return tuple(spacing * k for k in range(1, count + 1))


def with_sidebands(carriers: Iterable[float], spacing: float, pairs: int) -> tuple[float, ...]:
    """Each order and its modulation sidebands."""
    return tuple(carrier + spacing * k for carrier in carriers for k in range(-pairs, pairs + 1))


BASE = (1.0, 2.0, *comb(MESH, 6))
"""Shaft orders heard in every state."""
FAULTS: dict[str, tuple[float, ...]] = {
    "healthy": (),
    "misalignment": comb(2.0, 10),
    "looseness": comb(0.5, 15),
    "blade pass": comb(7.0, 10),
    "outer race": comb(3.58, 10),
    "inner race": with_sidebands(comb(5.42, 5), 1.0, 1),
    "rolling element": with_sidebands(comb(4.71, 5), 0.4, 1),
    "worn gear": with_sidebands(comb(MESH, 3), 1.0, 2),
}
"""Shaft orders a fault adds."""


def untrained() -> nn.Module:
    """(N, 8192) scaled magnitudes -> (N, 8) logits."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(BINS, 128),
            relu1=nn.ReLU(),
            fc2=nn.Linear(128, 64),
            relu2=nn.ReLU(),
            fc3=nn.Linear(64, len(FAULTS)),
        )
    )


def build_model() -> nn.Module:
    """The trained network in eval mode."""
    return load_weights(untrained(), weights_path(__name__))


def add_tones(
    spectra: NDArray[np.complex64],
    orders: tuple[float, ...],
    rng: np.random.Generator,
    speed: NDArray[np.float64],
) -> None:
    """Add tones of random phase and loudness in place; spectra (N, 8192), speed (N,) in Hz."""
    rows = np.arange(len(spectra))[:, None]
    severity = rng.uniform(0.4, 1.6, (len(spectra), 1))
    for order in orders:
        frequency = (order * speed)[:, None]
        bins = np.round(frequency).astype(np.int64) + np.arange(-LEAKAGE, LEAKAGE + 1)
        offset = frequency - bins
        phase = rng.uniform(0, 2 * np.pi, (len(spectra), 1))
        loudness = SIGNAL * severity * rng.uniform(0.5, 1.5, (len(spectra), 1))
        tone = loudness * np.sinc(offset) * np.exp(1j * (phase + np.pi * offset))
        spectra[rows, bins - 1] += tone  # the first coefficient is 1 Hz


def recordings(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Shuffled, balanced samples: inputs (N, 8192) float32, states (N,) int64."""
    rng = np.random.default_rng(seed)
    states = rng.permutation(np.arange(samples) % len(FAULTS))
    speed = SHAFT * rng.uniform(1 - SPEED_SPREAD, 1 + SPEED_SPREAD, samples)
    spectra = rng.standard_normal((samples, 2 * BINS), dtype=np.float32).view(np.complex64)
    add_tones(spectra, BASE, rng, speed)
    for state, orders in enumerate(FAULTS.values()):
        mine = np.flatnonzero(states == state)
        part = spectra[mine]
        add_tones(part, orders, rng, speed[mine])
        spectra[mine] = part
    inputs = np.abs(spectra) * np.float32(0.4) - np.float32(0.5)  # the noise becomes about zero mean
    return torch.from_numpy(inputs), torch.from_numpy(states)


def example_inputs() -> tuple[Tensor, ...]:
    """One spectrum, (1, 8192)."""
    return (recordings(len(FAULTS), seed=2)[0][:1],)


@cache
def eval_data() -> tuple[Tensor, Tensor]:
    """Held-out spectra (1600, 8192) and states (1600,)."""
    return recordings(1600, seed=3)


@cache
def train_data() -> tuple[Tensor, Tensor]:
    """Training spectra (2400, 8192) and states (2400,)."""
    return recordings(2400, seed=0)
