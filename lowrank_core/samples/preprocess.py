"""How samples are prepared, in a few words: `mean/std/size`, names, the JSON of an image processor, `target=NAME`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from lowrank_core.errors import InvalidSettings, cut
from lowrank_core.samples.preparation import Preparation
from lowrank_core.store.reference import words_of

LARGEST_SIDE = 10_000
"""Pixels of an image that a network is given, along each side."""

LARGEST_FILE = 10**6
"""Bytes of a file with labels or of an image processor."""

NAMES: dict[str, dict[str, Any]] = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "half": {"mean": (0.5,), "std": (0.5,)},
    "clip": {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)},
    "raw": {"rescale": 1.0},
}
"""What goes by one word: means and deviations that many networks were trained with, and values of 0 to 255."""

GRAMMAR = (
    "mean/std/size, any of them empty (0.5/0.5/224, //256:224), imagenet, half, clip, raw, a .json of an image "
    "processor, and size=, stretch, rescale=, rate=, length=, target=, header=, documents=, labels=FILE"
)

_OF_IMAGES = {"mean", "std", "size", "shorter", "stretch", "rescale"}
_OF_WAVES = {"rate", "length"}


def prepared(preprocess: str, base: Preparation) -> Preparation:
    """What a network's own files say of its samples, with what a person says instead; raises InvalidSettings.

    What is said of images or waves stands for all that the network's own processor would do with them.

    >>> prepared("imagenet //256:224", Preparation()).shorter
    256
    """
    said: dict[str, Any] = {}
    for word in words_of(preprocess):
        said.update(_said(word))
    if _OF_IMAGES & set(said):
        base = replace(base, images=None)
    if _OF_WAVES & set(said):
        base = replace(base, waves=None)
    return replace(base, **said)


def _said(word: str) -> dict[str, Any]:
    """What one word says, by the fields of `Preparation`."""
    name, equals, value = word.partition("=")
    if equals and name in _VALUES:
        return _VALUES[name](value)
    if word in NAMES:
        return NAMES[word]
    if word == "stretch":
        return {"stretch": True}
    if word.endswith(".json"):
        return _of_json(Path(word))
    parts = word.split("/")
    if not equals and len(parts) in (2, 3):
        mean, std, size = (*parts, "")[:3]
        said = {} if not mean else {"mean": _numbers(mean, "mean")}
        said |= {} if not std else {"std": _deviations(_numbers(std, "std"))}
        return said | ({} if not size else _size(size))
    raise InvalidSettings(f"--preprocess: {cut(word)!r} is none of {GRAMMAR}.")


def _numbers(text: str, what: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(isfinite, numbers)):
        raise InvalidSettings(
            f"--preprocess: {what} must be numbers with commas between them, as 0.5,0.5,0.5; got {cut(text)!r}."
        )
    return numbers


def _deviations(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if not all(n > 0 for n in numbers):
        raise InvalidSettings(f"--preprocess: std must be above 0; got {min(numbers):g}.")
    return numbers


def _size(text: str) -> dict[str, Any]:
    """'224', '160x240' (height, width), or either behind the length of the shorter side: '256:224'."""
    shorter, colon, size = text.rpartition(":")
    sides = size.split("x")
    try:
        whole = [int(side) for side in [*sides, *([shorter] if colon else [])]]
    except ValueError:
        whole = []
    if len(sides) > 2 or not whole or not all(1 <= n <= LARGEST_SIDE for n in whole):
        raise InvalidSettings(
            f"--preprocess: size must be as 224, 160x240 (height x width) or 256:224 (the shorter side, then the "
            f"middle of it), from 1 to {LARGEST_SIDE:,}; got {cut(text)!r}."
        )
    return {"size": (whole[0], whole[len(sides) - 1]), "shorter": whole[-1] if colon else None}


def _one(field: str, kind: Callable[[str], float], least: float) -> Callable[[str], dict[str, Any]]:
    def read(text: str) -> dict[str, Any]:
        try:
            number = kind(text)
        except ValueError:
            number = -1
        if not least <= number < 10**9:
            raise InvalidSettings(f"--preprocess: {field} must be a number from {least:g}; got {cut(text)!r}.")
        return {field: number}

    return read


def _header(text: str) -> dict[str, Any]:
    if text not in ("yes", "no"):
        raise InvalidSettings(f"--preprocess: header must be yes or no; got {cut(text)!r}.")
    return {"header": text == "yes"}


def _documents(text: str) -> dict[str, Any]:
    if text not in ("lines", "paragraphs", "file"):
        raise InvalidSettings(f"--preprocess: documents must be lines, paragraphs or file; got {cut(text)!r}.")
    return {"documents": text}


def _labels(text: str) -> dict[str, Any]:
    """Names of classes, one a line, in the order of their numbers."""
    lines = [line.strip() for line in _file(Path(text)).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) < 2 or not all(lines) or len(set(lines)) < len(lines):
        raise InvalidSettings(f"--preprocess: {cut(text)} must hold the names of two or more classes, one a line.")
    return {"labels": tuple(lines)}


def _file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
        if len(raw) > LARGEST_FILE:
            raise InvalidSettings(f"--preprocess: {path} is larger than {LARGEST_FILE / 1e6:g} MB.")
        return raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InvalidSettings(f"--preprocess: {path} cannot be read: {reason}.") from error


_VALUES: dict[str, Callable[[str], dict[str, Any]]] = {
    "mean": lambda text: {"mean": _numbers(text, "mean")},
    "std": lambda text: {"std": _deviations(_numbers(text, "std"))},
    "size": _size,
    "rescale": _one("rescale", float, 1e-9),
    "rate": _one("rate", int, 1),
    "length": _one("length", int, 1),
    "target": lambda text: {"target": text},
    "header": _header,
    "documents": _documents,
    "labels": _labels,
}


# ---- the JSON of an image processor ---------------------------------------------------------------------------------


def _of_json(path: Path) -> dict[str, Any]:
    """What a file as `preprocessor_config.json` of transformers says, or one with the fields of `Preparation`."""
    try:
        found = json.loads(_file(path))
    except (ValueError, RecursionError) as error:
        raise InvalidSettings(f"--preprocess: {path} is no JSON.") from error
    try:
        return _of_processor(found)
    except InvalidSettings as error:
        raise InvalidSettings(f"{str(error).rstrip('.')}, in {path}.") from error
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InvalidSettings(
            f"--preprocess: {path} is no description of an image processor ({error!r:.80})."
        ) from error


def _of_processor(found: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if found.get("do_normalize", True):
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            value = found.get(theirs, found.get(ours))
            if value is not None:
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                said |= _VALUES[ours](text)
    if not found.get("do_rescale", True):
        said["rescale"] = 1.0
    elif "rescale_factor" in found:
        said |= _VALUES["rescale"](str(found["rescale_factor"]))
    size, crop = found.get("size"), found.get("crop_size")
    if not found.get("do_center_crop", crop is not None):
        crop = None
    if isinstance(size, dict) and "shortest_edge" in size:
        side = size["shortest_edge"]
        said |= _size(f"{side}:{_sides(crop) if crop is not None else side}")
    elif size is not None and found.get("do_resize", True):
        said |= _size(_sides(size)) | {"stretch": crop is None}
        if crop is not None:
            said |= _size(f"{min(map(int, _sides(size).split('x')))}:{_sides(crop)}")
    elif crop is not None:
        said |= _size(_sides(crop))
    if "sampling_rate" in found:
        said |= _VALUES["rate"](str(found["sampling_rate"]))
    known = {field.name for field in fields(Preparation)}
    assert set(said) <= known
    if not said:
        raise KeyError("neither image_mean nor size")
    return said


def _sides(size: Any) -> str:
    return f"{size['height']}x{size['width']}" if isinstance(size, dict) else str(size)
