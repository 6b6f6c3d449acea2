"""torchcrepe tiny: the pitch of synthetic tones, right within a quarter tone."""

import torch

from benchmarks.wild_networks._tones import PACKAGES as PACKAGES
from benchmarks.wild_networks._tones import crepe, percent, tones, within_a_quarter_tone

percent = percent
metric = within_a_quarter_tone


def build_model():
    return crepe("tiny")


def example_inputs():
    return (torch.zeros(1, 1024),)


def eval_data():
    return tones(256, seed=0)


def train_data():
    return tones(128, seed=1)
