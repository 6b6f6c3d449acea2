"""torchcrepe full: the pitch of synthetic tones, right within a quarter tone."""

import torch

from benchmarks.wild_networks._tones import PACKAGES as PACKAGES
from benchmarks.wild_networks._tones import crepe, percent, tones, within_a_quarter_tone

percent = percent
metric = within_a_quarter_tone


def build_model():
    return crepe("full")


def example_inputs():
    return (torch.zeros(1, 1024),)


def eval_data():
    return tones(64, seed=0)


def train_data():
    return tones(32, seed=1)
