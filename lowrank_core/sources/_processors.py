"""How raw samples become what a network of transformers takes: by the tokenizer and processors in its folder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lowrank_core.errors import InvalidData
from lowrank_core.layers.data import Dataset, distance, run
from lowrank_core.samples.preparation import Arrays, Preparation
from lowrank_core.sources._contract import told
from lowrank_core.sources._transformers_inputs import Folder, decoder_begin, random_inputs

MOST_TOKENS = 512
"""Of a text, where neither the network nor its tokenizer says how many it takes."""

CONTEXT = 1024
"""Tokens of a chunk of a long text, at most, where the network takes more."""


KINDS = {"input_ids": "texts", "pixel_values": "images", "input_values": "sound", "input_features": "sound"}
"""What a network is given of each kind of samples."""

ROUNDING = 8.0
"""Units of precision, of the largest number, within which what is said of the same tokens is the same."""


def preparation(folder: Folder) -> Preparation:
    """What prepares samples for the network of a folder: nothing is opened until samples are there.

    A tokenizer or processor that is missing, that needs code of its own, or that is another network's raises
    InvalidData then.
    """
    names = folder.names
    kinds = {kind: name for name, kind in KINDS.items() if name in names}
    tokenizer = cache(lambda: tokenizer_of(folder))
    reader = cache(lambda: _check_foretelling(folder, tokenizer()))
    processor = cache(lambda: _opened(folder, "AutoImageProcessor", "image processor"))
    extractor = cache(lambda: _opened(folder, "AutoFeatureExtractor", "feature extractor"))
    labels = getattr(folder.config, "id2label", None) or {}
    named = [str(labels[number]) for number in sorted(labels)]
    return Preparation(
        size=folder.size if "pixel_values" in names else None,
        rate=folder.rate if "sound" in kinds else None,
        labels=() if all(name.startswith("LABEL_") for name in named) else tuple(named),
        tokens=(lambda texts, second: _tokens(folder, tokenizer(), texts, second)) if "texts" in kinds else None,
        images=(lambda images: _images(folder, processor(), images)) if "images" in kinds else None,
        waves=(lambda waves, rate: _waves(folder, extractor(), waves, rate)) if "sound" in kinds else None,
        ids=(lambda text: token_ids(folder, reader(), text)) if "texts" in kinds else None,
        text=(lambda numbers: str(tokenizer().decode(list(numbers)))) if "texts" in kinds else None,
        context=min(folder.longest() or CONTEXT, CONTEXT) if "texts" in kinds else None,
    )


def _opened(folder: Folder, kind: str, what: str) -> Any:
    """A tokenizer or processor of the folder, offline, without code of the folder."""
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of one of many classes and their files
        cause = told(error, None)[:200]
        raise InvalidData(
            f"{folder.path}: its {what} cannot be opened ({cause}); save it there with save_pretrained, or give data "
            "that are prepared, in a .npz."
        ) from error


def tokenizer_of(folder: Folder) -> Any:
    """The tokenizer of the folder: without files of its own transformers would make one that knows no word."""
    tokenizer = _opened(folder, "AutoTokenizer", "tokenizer")
    files = sorted(set(getattr(tokenizer, "vocab_files_names", {}).values()))
    if files and not any((folder.path / file).is_file() for file in files):
        raise InvalidData(
            f"{folder.path} holds no tokenizer ({' or '.join(files)}); save it there with save_pretrained, or give "
            "data that are prepared, in a .npz."
        )
    return tokenizer


def _check_alone(folder: Folder) -> None:
    """Raise InvalidData where a sample is of two kinds at once, which no file of one of them tells."""
    kinds = [kind for name, kind in KINDS.items() if name in folder.names]
    if len(kinds) > 1:
        raise InvalidData(
            f"{folder.path}: {type(folder.model).__name__} takes {' and '.join(kinds)} together; give them prepared, "
            f"as {', '.join(folder.names)} in a .npz."
        )


def _tokens(folder: Folder, tokenizer: Any, texts: Sequence[str], second: Sequence[str] | None) -> Arrays:
    _check_alone(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    length = min(folder.longest() or MOST_TOKENS, tokenizer.model_max_length, MOST_TOKENS)
    pairs = None if second is None else list(second)
    found = tokenizer(
        list(texts),
        pairs,
        truncation=True,
        max_length=length,
        padding=True,
        return_tensors="pt",
        return_attention_mask=True,
        return_token_type_ids="token_type_ids" in folder.names,
    )
    _known(folder, found["input_ids"])
    return _in_order(folder, dict(found))


def _in_order(folder: Folder, found: Mapping[str, Tensor]) -> Arrays:
    """What the network is given, in its order, and with the begin of an answer where it has a decoder."""
    samples = len(next(iter(found.values())))
    begin = {"decoder_input_ids": torch.full((samples, 1), decoder_begin(folder))}
    given = {
        name: value.to(folder.dtype) if value.is_floating_point() else value
        for name, value in {**begin, **found}.items()
        if name in folder.names
    }
    return {name: given[name] for name in folder.names if name in given}


def _check_foretelling(folder: Folder, tokenizer: Any) -> Any:
    """The tokenizer, where the network tells each next token and looks at none of those that come: then a text has a
    perplexity. Raises InvalidData of any other.
    """
    able = set(folder.names) <= {"input_ids", "attention_mask", "token_type_ids"}
    if able:
        tokens = random_inputs(folder)["input_ids"][:2]
        tokens[1, :-1] = tokens[0, :-1]
        said = run(folder.model, Dataset({"input_ids": tokens})).get("logits", torch.zeros(2))
        able = said.ndim == 3 and said.shape[1] == tokens.shape[1] and said.shape[2] >= folder.of_text("vocab_size")
        able = able and distance(said[0, :-1], said[1, :-1])[1] <= ROUNDING * torch.finfo(said.dtype).eps
    if not able:
        raise InvalidData(
            f"{folder.path}: {type(folder.model).__name__} is no causal language model, which tells each next token of "
            "a text without looking at it, so the text has no perplexity; give lines as samples (--data): agreement "
            "with the dense network, or R2, needs no labels."
        )
    return tokenizer


def token_ids(folder: Folder, tokenizer: Any, text: str) -> Tensor:
    """(tokens,) of a text, none added before or after it; raises InvalidData where they are another network's."""
    found = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"]
    return _known(folder, found.reshape(-1))


def _known(folder: Folder, ids: Tensor) -> Tensor:
    """The tokens, which must be rows of the network's table."""
    words, largest = folder.of_text("vocab_size"), int(ids.max()) if ids.numel() else 0
    if words is not None and largest >= words:
        raise InvalidData(
            f"{folder.path}: its tokenizer gives token {largest:,}, but the network knows {words:,}; it is another "
            "network's."
        )
    return ids


def _images(folder: Folder, processor: Any, images: Sequence[Any]) -> Arrays:
    _check_alone(folder)
    height, width = folder.size
    alike = {} if _is_fixed(processor) else {"size": {"height": height, "width": width}}
    found = processor([image.convert("RGB") for image in images], return_tensors="pt", **alike)
    return _in_order(folder, found)


def _is_fixed(processor: Any) -> bool:
    """Whether images of any proportions come out at one size."""
    size = getattr(processor, "size", None) or {}
    return bool(getattr(processor, "do_center_crop", False)) or "height" in size


def _waves(folder: Folder, extractor: Any, waves: Sequence[Any], rate: int) -> Arrays:
    if rate != folder.rate:
        raise InvalidData(f"{folder.path}: it takes sound of {folder.rate:,} Hz, but got {rate:,} Hz.")
    own = inspect.signature(extractor.__call__).parameters.get("padding")
    whole = own is not None and own.default not in (False, None, own.empty)  # it has a length that it fills
    padding = {} if whole else {"padding": True}
    found = extractor(list(waves), sampling_rate=rate, return_tensors="pt", **padding)
    return _in_order(folder, found)
