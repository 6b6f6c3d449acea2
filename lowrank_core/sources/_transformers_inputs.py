"""Inputs of a network of transformers: what it takes, as its class, configuration and folder tell, and random ones."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidModel

SAMPLES, FEWEST = 8, 2
"""Random samples of one batch, and how many there are at least where one is large."""

TOKENS = 16
"""Of a random text, at most."""

FRAMES = 100
"""Of a spectrogram, where the configuration does not say."""

RATE = 16_000
"""Samples of a second of sound where the folder does not say."""

SIDE = 224
"""Of an image, in pixels, where neither the folder's processor nor the configuration says."""

MOST_NUMBERS = 2**28
"""In one random sample, at most; of all samples together 2**22 where they are more than two."""

JUDGING = ("Classification", "QuestionAnswering")
"""Networks of which a decoder reads the same text again, and is given nothing of its own."""

PLACES = ("max_position_embeddings", "n_positions", "max_target_positions", "seq_length")
"""What configurations call the number of tokens that there are places for."""

PARTS = ("text_config", "vision_config", "audio_config", "encoder", "decoder", "text_encoder", "audio_encoder")


@dataclass(frozen=True, slots=True)
class Folder:
    """A network of transformers and the files beside it. processor: what preprocessor_config.json says, {} without."""

    path: Path
    model: nn.Module
    processor: dict[str, Any]

    @classmethod
    def of(cls, path: Path, model: nn.Module) -> Folder:
        """Read what its processor says; a file that cannot be read says nothing until samples are asked for."""
        return cls(path, model, {**_said(path, "processor_config.json"), **_said(path, "preprocessor_config.json")})

    @property
    def config(self) -> Any:
        """The configuration, as transformers has read it."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights, in which it takes images and sound."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    @property
    def takes(self) -> frozenset[str]:
        """The names that forward has for what it is given."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    @property
    def names(self) -> tuple[str, ...]:
        """What the network is given, in this order, be it random or a person's."""
        return tuple(self._names())

    def _names(self) -> Iterator[str]:
        takes = self.takes
        sounds = [name for name in ("input_values", "input_features") if name in takes]
        images = "pixel_values" in takes and not self._images_are_tokens
        if "input_ids" in takes:
            yield "input_ids"
            if "attention_mask" in takes:
                yield "attention_mask"
            if "token_type_ids" in takes and (self.of_text("type_vocab_size") or 0) > 1:
                yield "token_type_ids"
        if images:
            yield "pixel_values"
        yield from sounds
        if sounds and "attention_mask" in takes and "input_ids" not in takes and self._sound_is_masked:
            yield "attention_mask"
        if self.has_decoder and "decoder_input_ids" in takes and not type(self.model).__name__.endswith(JUDGING):
            yield "decoder_input_ids"

    @property
    def has_decoder(self) -> bool:
        """Whether a decoder answers to what an encoder has read."""
        return bool(getattr(self.config, "is_encoder_decoder", False))

    @property
    def _images_are_tokens(self) -> bool:
        """Whether images stand in the text, as so many tokens of their own: then text alone is given."""
        found = ("image_token_id", "image_token_index", "image_token")
        return "input_ids" in self.takes and any(getattr(self.config, name, None) is not None for name in found)

    @property
    def _sound_is_masked(self) -> bool:
        return bool(self.processor.get("return_attention_mask")) or self.read("input_feat_per_channel") is not None

    def read(self, *names: str) -> Any:
        """The first of these that the configuration says, itself or in one of its parts; None where it says none."""
        parts = [getattr(self.config, part, None) for part in PARTS]
        for part in (self.config, *(part for part in parts if part is not None)):
            for name in names:
                if (value := getattr(part, name, None)) is not None:
                    return value
        return None

    def of_text(self, name: str, *, answered: bool = False) -> Any:
        """What is said of the tokens that are read, or of those that are answered."""
        config = self.config
        for part in ("decoder",) if answered else ("text_encoder", "text_config"):
            own = getattr(config, part, None)
            config = config if own is None or isinstance(own, str | dict) else own
        return getattr(config, name, None)

    def longest(self, *, answered: bool = False) -> int | None:
        """Tokens that the network takes, or answers, at once; None where any number."""
        said = [self.of_text(key, answered=answered) for key in PLACES]
        known = [count for count in said if isinstance(count, int) and count > 0]
        if not known:
            return None
        before = [m.padding_idx + 1 for name, m in self.model.named_modules() if _is_of_places(name, m, known)]
        return max(1, min(known) - max(before, default=0))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its images, in pixels."""
        for given in (
            self.processor.get("crop_size") if self.processor.get("do_center_crop", True) else None,
            self.processor.get("size"),
            self.read("image_size"),
        ):
            if found := _pair(given):
                return found
        return SIDE, SIDE

    @property
    def rate(self) -> int:
        """Samples of its sound in a second."""
        said = self.processor.get("sampling_rate") or self.read("sampling_rate")
        return said if isinstance(said, int) and said > 0 else RATE


def _is_of_places(name: str, module: nn.Module, lengths: list[int]) -> TypeGuard[nn.Embedding]:
    """Whether a table tells places that begin behind its padding, as those of RoBERTa do."""
    padded = isinstance(module, nn.Embedding) and module.padding_idx is not None
    return padded and "position" in name and module.num_embeddings in lengths


def _said(folder: Path, file: str) -> dict[str, Any]:
    try:
        said = json.loads((folder / file).read_bytes())
    except (ValueError, OSError, RecursionError):
        return {}
    inside = said.get("image_processor") or said.get("feature_extractor") if isinstance(said, dict) else None
    return dict(inside) if isinstance(inside, dict) else said if isinstance(said, dict) else {}


def _pair(given: Any) -> tuple[int, int] | None:
    """(height, width) of what a processor or configuration says: one number, two, or by name."""
    if isinstance(given, dict):
        shorter = given.get("shortest_edge")
        given = (given.get("height", shorter), given.get("width", shorter))
    found = (given, given) if isinstance(given, int) else tuple(given) if isinstance(given, list | tuple) else ()
    whole = len(found) == 2 and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in found)
    return (found[0], found[1]) if whole else None


# ---- random ones ----------------------------------------------------------------------------------------------------


def random_inputs(folder: Folder, seed: int = 0) -> dict[str, Tensor]:
    """A batch of random inputs by name, the same in every process; no token of it is padding or has a meaning of its
    own but the first and last ones that the network looks for.

    Raises InvalidModel where the network takes what is none of tokens, images and sound, or too much of it.
    """
    names = folder.names
    if missing := sorted(_needed(folder) - set(names)):
        raise InvalidModel(
            f"{folder.path}: {type(folder.model).__name__} takes {', '.join(missing)}, which is none of tokens, images "
            "and sound; write a model file with example_inputs()."
        )
    shapes = {name: _shape(folder, name) for name in names}
    for name, shape in shapes.items():
        if prod(shape) > MOST_NUMBERS:
            raise InvalidModel(
                f"{folder.path}: by its config.json and processor files a sample has {name} of "
                f"{' x '.join(map(str, shape))}; correct them, or write a model file with example_inputs()."
            )
    largest = max(map(prod, shapes.values()))
    samples = max(FEWEST, min(SAMPLES, 2**22 // largest))
    generator = torch.Generator().manual_seed(seed)
    return {name: _drawn(folder, name, (samples, *shape), generator) for name, shape in shapes.items()}


def _needed(folder: Folder) -> set[str]:
    """What forward cannot do without: arguments without a default, and its main input."""
    given = inspect.signature(folder.model.forward).parameters.values()
    named = [p for p in given if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    main = getattr(folder.model, "main_input_name", None)
    return {p.name for p in named if p.default is p.empty or p.name == main}


def _shape(folder: Folder, name: str) -> tuple[int, ...]:
    """Of one sample."""
    if name == "pixel_values":
        return (folder.read("num_channels", "in_chans", "in_channels") or 3, *folder.size)
    if name in ("input_values", "input_features"):
        return _shape_of_sound(folder)
    if name == "attention_mask" and "input_ids" not in folder.names:
        return _shape_of_sound(folder)[:1]
    return (min(TOKENS, folder.longest(answered=name.startswith("decoder")) or TOKENS),)


def _shape_of_sound(folder: Folder) -> tuple[int, ...]:
    """One second of sound; of spectrograms the frames that the network has places for, or FRAMES."""
    bands = folder.read("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim")
    if bands is None:
        channels = folder.read("audio_channels")
        return (folder.rate,) if channels is None else (channels, folder.rate)
    if (size := folder.read("spec_size")) is not None:
        return 1, size * (size // bands), bands
    if (length := folder.read("max_length")) is not None and "input_values" in folder.takes:
        return length, bands
    if folder.read("input_feat_per_channel", "feature_projection_input_dim") is not None:
        return FRAMES, bands
    return bands, 2 * (folder.read("max_source_positions") or FRAMES // 2)


def _drawn(folder: Folder, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name == "attention_mask":
        return torch.ones(shape, dtype=torch.long)
    if name == "token_type_ids":
        return (torch.arange(shape[1]) >= shape[1] // 2).long().repeat(shape[0], 1)
    if not name.endswith("input_ids"):
        return torch.randn(shape, generator=generator).to(folder.dtype)
    answered = name.startswith("decoder")
    words = folder.of_text("vocab_size", answered=answered) or folder.read("vocab_size")
    meant = _own_meaning(folder)
    left = torch.tensor([word for word in range(words) if word not in meant] or [0])
    tokens = left[torch.randint(len(left), shape, generator=generator)]
    begin = decoder_begin(folder) if answered else None
    end = _whole(folder.of_text("eos_token_id")) if not answered and _is_pooled_at_end(folder) else None
    for place, token in ((0, begin), (-1, end)):
        if token is not None and 0 <= token < words:
            tokens[:, place] = token
    return tokens


def decoder_begin(folder: Folder) -> int:
    """The token with which an answer begins."""
    return _whole(folder.read("decoder_start_token_id", "bos_token_id", "pad_token_id")) or 0


def _is_pooled_at_end(folder: Folder) -> bool:
    """Whether the network looks for the end of a text, as encoders beside a decoder or an image do."""
    return folder.has_decoder or folder.read("projection_dim") is not None


def _own_meaning(folder: Folder) -> set[int]:
    """Tokens that are no words: padding, begin, end, and whatever else the configuration gives a number of its own."""
    parts = (folder.config, *(getattr(folder.config, part, None) for part in PARTS))
    said = [item for part in parts if hasattr(part, "__dict__") for item in vars(part).items()]
    numbers = [_whole(value) for name, value in said if name.endswith(("_token_id", "_token_index"))]
    return {number for number in numbers if number is not None}


def _whole(value: Any) -> int | None:
    """A number, or the first of several."""
    first = value[0] if isinstance(value, list | tuple) and value else value
    return first if isinstance(first, int) and not isinstance(first, bool) else None
