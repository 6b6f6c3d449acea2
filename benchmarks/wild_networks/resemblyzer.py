"""Resemblyzer (3-layer LSTM): cosine of its embeddings of made-up voices with the dense network's."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.wild_networks._packages import alone, place

PACKAGES = ("Resemblyzer",)
metric = "cosine"

RATE, FRAMES, WINDOW, HOP, MELS = 16_000, 160, 400, 160, 40


def build_model():
    package = {"audio": None, "__path__": [str(place("resemblyzer"))]}
    return alone("resemblyzer/voice_encoder.py", resemblyzer=package).VoiceEncoder("cpu", verbose=False).eval()


def example_inputs():
    return (torch.zeros(1, FRAMES, MELS),)


def eval_data():
    return _voices(48, 0), None


def train_data():
    return _voices(96, 1), None


def _voices(count: int, seed: int) -> torch.Tensor:
    """(count, 160, 40) mel spectra of 1.6 s: a pitch that wanders, and six vowels of three resonances each."""
    draw = np.random.default_rng(seed)
    length = WINDOW + HOP * (FRAMES - 1)
    filters = _mel_filters()
    made = []
    for _ in range(count):
        bends = np.interp(np.arange(length), np.linspace(0, length, 6), draw.normal(0, 0.1, 6))
        pitch = draw.uniform(80, 260) * 2**bends
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        resonances = draw.uniform([250, 800, 2000], [850, 2400, 3300], (6, 3))
        now = np.minimum(np.arange(length) * 6 // length, 5)
        wave = np.zeros(length)
        for overtone in range(1, 31):
            near = np.exp(-(((overtone * pitch)[:, None] - resonances[now]) ** 2) / (2 * 120.0**2)).sum(1)
            wave += (near + 0.02) / overtone**0.5 * np.sin(overtone * phase) * (overtone * pitch < RATE / 2)
        wave += 0.01 * draw.standard_normal(length)
        wave *= 10 ** (-30 / 20) / np.sqrt((wave**2).mean())
        frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP] * np.hanning(WINDOW)
        made.append((np.abs(np.fft.rfft(frames)) ** 2) @ filters.T)
    return torch.from_numpy(np.stack(made)).float()


def _mel_filters() -> np.ndarray:
    """(40, 201): triangles evenly spaced on the mel scale, each of unit area (as librosa's, in the HTK scale)."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), MELS + 2)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    low, middle, high = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
    rise, fall = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low)
