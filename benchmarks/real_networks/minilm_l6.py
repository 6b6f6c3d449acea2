"""MiniLM-L6's sizes (BERT, 6 layers of 384, 12 heads; Wang et al., arXiv 2002.10957) at random weights; 128 tokens."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

SAMPLES = int(os.environ.get("SAMPLES", "64"))
TOKENS, VOCABULARY = 128, 30_522
metric = "cosine"


class Sentence(nn.Module):
    """The mean of the tokens' vectors."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        vectors = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask.unsqueeze(2).to(vectors.dtype)
        return (vectors * there).sum(1) / there.sum(1)


def build_model() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return Sentence(BertModel(sizes, add_pooling_layer=False)).eval()


def example_inputs() -> tuple[Tensor, ...]:
    return sentences(1, seed=0)


def eval_data() -> tuple[tuple[Tensor, Tensor], None]:
    return sentences(SAMPLES, seed=1), None


def sentences(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(tokens, mask) of drawn tokens, low numbers more often than high ones, and drawn lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = (VOCABULARY ** torch.rand(count, TOKENS, generator=generator)).long()
    lengths = torch.randint(TOKENS // 4, TOKENS + 1, (count, 1), generator=generator)
    return tokens, (torch.arange(TOKENS) < lengths).long()
