"""Where models come from: each file of this package opens one kind of reference.

A source is a function `open(ref) -> Opened | Weights`, registered with a predicate that says whether a reference is its
kind. Weights alone can be listed and their spectra shown; everything else needs a model, which may get its weights from
such a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lowrank_core.errors import InvalidData, InvalidModel, UnknownModel
from lowrank_core.registry import register_all
from lowrank_core.sources._opened import Opened, filled_with
from lowrank_core.sources._weights import Weights
from lowrank_core.store.reference import WITH, file_and_part, model_and_weights


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of reference by which a model is named: who accepts it, and how it is opened."""

    name: str
    accepts: Callable[[str], bool]
    open: Callable[[str], Opened | Weights]
    example: str


SOURCES: dict[str, Source] = {}


def register(source: Source) -> Source:
    """Make a kind of reference known."""
    if source.name in SOURCES:
        raise ValueError(f"source {source.name!r} is registered twice")
    SOURCES[source.name] = source
    return source


def open_source(ref: str) -> Opened:
    """Open what can be run: `builtin:NAME`, a Python file, `package.module`, `save_pretrained` folder, .pt2, .onnx.

    Raises UnknownModel where nothing goes by that name, InvalidModel or InvalidData where it cannot be used, as weights
    alone cannot.
    """
    opened = open_any(ref)
    if isinstance(opened, Weights):
        raise (InvalidData if opened.wanting else InvalidModel)(weights_alone(opened))
    return opened


def open_any(ref: str) -> Opened | Weights:
    """Open a reference: a model that can be run, with weights of a file where one is named, or weights alone."""
    model, file = model_and_weights(ref)
    if file is None:
        return _open(ref)
    weights = _open(file)
    if not isinstance(weights, Weights) or weights.wanting:
        raise InvalidModel(f"--weights {file} is a model of its own, no file of weights; open it as the model.")
    opened = _open(model)
    if isinstance(opened, Weights):
        raise InvalidModel(weights_alone(opened))
    return filled_with(opened, weights, f"{opened.ref}{WITH}{weights.ref}")


def _open(ref: str) -> Opened | Weights:
    place = file_and_part(ref)[0]
    if place.exists() and not (place.is_file() or place.is_dir()):  # a pipe would be waited for, a device has no end
        raise InvalidModel(f"{ref} is no file but a pipe or device; write it to a file first.")
    for source in SOURCES.values():
        if source.accepts(ref):
            return source.open(ref)
    examples = ", ".join(source.example for source in SOURCES.values())
    if Path(ref).expanduser().exists():
        raise InvalidModel(f"{ref} is no model file; give one of: {examples}.")
    raise UnknownModel(f"no model goes by {ref!r}; give one of: {examples}.")


def weights_alone(weights: Weights) -> str:
    """What is missing where weights alone are given, in one line."""
    if weights.wanting:
        return f"{weights.ref}: {weights.wanting}"
    return (
        f"{weights.name} is weights without a model: sizes and spectra only. Give a Python model file to measure or "
        "compress; `python -m lowrank_core new FILE` writes one to fill in."
    )


register_all(__name__, __path__)
