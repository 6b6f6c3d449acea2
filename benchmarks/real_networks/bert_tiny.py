"""BERT-tiny's sizes (2 layers of 128, 2 heads; Turc et al., arXiv 1908.08962) at random weights; 32 tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

TOKENS, VOCABULARY = 32, 30_522


class Classifier(nn.Module):
    """(N, T) numbers of tokens -> (N, 5), from the first token's last state."""

    def __init__(self) -> None:
        super().__init__()
        sizes = BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)
        self.bert, self.head = BertModel(sizes, add_pooling_layer=False), nn.Linear(128, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        answer: Tensor = self.head(self.bert(tokens).last_hidden_state[:, 0])
        return answer


def untrained() -> nn.Module:
    return Classifier()


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return untrained().eval()


def example_inputs() -> tuple[Tensor, ...]:
    return (tokens(1, seed=0),)


def eval_data() -> tuple[Tensor, Tensor]:
    given = tokens(64, seed=1)
    with torch.no_grad():
        return given, build_model()(given).argmax(1)


def tokens(count: int, seed: int) -> Tensor:
    """Drawn tokens, low numbers more often than high ones."""
    generator = torch.Generator().manual_seed(seed)
    return (VOCABULARY ** torch.rand(count, TOKENS, generator=generator)).long()
