"""A residual MLP of LAYERS linear layers (environment variable, default 150) for timing the board; not trained."""

import os

import torch
from torch import Tensor, nn

LAYERS = int(os.environ.get("LAYERS", "150"))
WIDTH = 96


class Block(nn.Module):
    """x + up(relu(down(x)))"""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.up(torch.relu(self.down(x)))


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS // 2)))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return Deep().eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.zeros(1, WIDTH),)


def eval_data() -> Tensor:
    return torch.randn(512, WIDTH, generator=torch.Generator().manual_seed(1))
