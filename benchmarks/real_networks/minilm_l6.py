"""MiniLM-L6's sizes (BERT, 6 layers of 384, 12 heads; Wang et al., arXiv 2002.10957) at random weights; 128 tokens."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from benchmarks.wild_networks._sentences import Sentence

SAMPLES = int(os.environ.get("SAMPLES", "64"))
TOKENS, VOCABULARY = 128, 30_522
metric = "cosine"


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
