"""Training of the small networks: from a seed, on the samples that scikit-learn ships, the same numbers every time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Split = tuple[Tensor, Tensor, Tensor, Tensor]
"""Inputs and targets to train on, then those to judge by."""


def split(inputs: np.ndarray, targets: np.ndarray, judged: float = 0.4) -> Split:
    """Standardised inputs and their targets, shuffled by a seed; `judged` is the share that training never sees."""
    order = np.random.default_rng(0).permutation(len(inputs))
    cut = round((1 - judged) * len(inputs))
    centre, scale = inputs[order[:cut]].mean(0), inputs[order[:cut]].std(0) + 1e-6
    x = torch.tensor((inputs[order] - centre) / scale, dtype=torch.float32)
    y = torch.tensor(targets[order])
    y = y.float() if y.is_floating_point() else y
    return x[:cut], y[:cut], x[cut:], y[cut:]


def trained(
    model: Callable[[], nn.Module],
    inputs: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    epochs: int = 40,
) -> nn.Module:
    """The network after so many epochs of Adam on batches of 64; its random numbers are its own."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        network = model().train()
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(inputs)).chunk(-(-len(inputs) // 64)):
                optimiser.zero_grad()
                loss(network(inputs[batch]), targets[batch]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return network.eval()
