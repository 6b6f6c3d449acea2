"""Recurrent network for 8 x 8 handwritten digits, read row by row."""

from functools import cache

from torch import Tensor, nn

from lowrank_core.builtin.samples import Split, digits
from lowrank_core.builtin.stored import load_weights, weights_path

DESCRIPTION = "Reads 8 x 8 pixel handwritten digits row by row: an LSTM of 64 units over 8 steps."


class RowReader(nn.Module):
    """(N, 8 rows, 8 grey values in [0, 1]) -> (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 64, batch_first=True)
        self.fc = nn.Linear(64, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Digits are told from the state after the last row."""
        states, _ = self.rnn(rows)
        logits: Tensor = self.fc(states[:, -1])
        return logits


def untrained() -> nn.Module:
    """(N, 8, 8) grey values in [0, 1] -> (N, 10) logits."""
    return RowReader()


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
