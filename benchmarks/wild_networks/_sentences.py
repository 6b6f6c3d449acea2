"""A sentence encoder around a network that gives a vector for each token."""

from __future__ import annotations

from torch import Tensor, nn


class Sentence(nn.Module):
    """The mean of the tokens' vectors (1_Pooling of the package)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, 384) of (N, tokens) and their mask."""
        vectors = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask.unsqueeze(2).to(vectors.dtype)
        return (vectors * there).sum(1) / there.sum(1)
