"""Transformer encoder for 8 x 8 handwritten digits, a row of pixels a token."""

from functools import cache

import torch
from torch import Tensor, nn

from lowrank_core.builtin.samples import Split, digits
from lowrank_core.builtin.stored import load_weights, weights_path

DESCRIPTION = "Reads 8 x 8 pixel handwritten digits as eight rows that attend to each other: a two-layer transformer."


class RowAttention(nn.Module):
    """(N, 8 rows, 8 grey values in [0, 1]) -> (N, 10) logits."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(8, size)
        self.position = nn.Parameter(0.02 * torch.randn(8, size))
        layer = nn.TransformerEncoderLayer(size, nhead=4, dim_feedforward=2 * size, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.fc = nn.Linear(size, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Digits are told from the mean over the rows."""
        states = self.encoder(self.embed(rows) + self.position)
        logits: Tensor = self.fc(states.mean(1))
        return logits


def untrained() -> nn.Module:
    """(N, 8, 8) grey values in [0, 1] -> (N, 10) logits."""
    return RowAttention()


def build_model() -> nn.Module:
    """The trained network in eval mode."""
    return load_weights(untrained(), weights_path(__name__))


@cache
def _split() -> Split:
    return digits(8, 8)


def example_inputs() -> tuple[Tensor, ...]:
    """One image, (1, 8, 8)."""
    return (_split().eval[0][:1],)


def eval_data() -> tuple[Tensor, Tensor]:
    """Held-out images (N, 8, 8) and digits (N,)."""
    return _split().eval


def train_data() -> tuple[Tensor, Tensor]:
    """Training images (1000, 8, 8) and digits (1000,)."""
    return _split().train
