"""Where models come from: each file of this package opens one kind of reference.

A source is a function `open(ref) -> Opened | Weights`, registered with a predicate that says whether a reference is its
kind. Weights alone can be listed and their spectra shown; everything else needs a model, which may get its weights from
such a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lowrank_core.errors import InvalidData, InvalidModel, UnknownModel
from lowrank_core.registry import enter, register_all
from lowrank_core.sources._adapter import CONFIG
from lowrank_core.sources._adapter import WEIGHTS as ADAPTER
from lowrank_core.sources._given import GivenData, given_by, opened_on
from lowrank_core.sources._opened import Opened, filled_with
from lowrank_core.sources._pretrained_folder import folder_of
from lowrank_core.sources._weights import Weights
from lowrank_core.store.reference import DATA, address_of, file_and_part, with_parts


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of reference by which a model is named: who accepts it, and how it is opened.

    open_on: opens it with data that a person names, where these decide how; else they are given to what was opened.
    """

    name: str
    accepts: Callable[[str], bool]
    open: Callable[[str], Opened | Weights]
    example: str
    open_on: Callable[[str, GivenData], Opened | Weights] | None = None


SOURCES: dict[str, Source] = {}


def register(source: Source) -> Source:
    """Make a kind of reference known."""
    return enter(SOURCES, source, "source")


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
    """Open a reference: a model that can be run, with weights and data of files if it names some, or weights alone."""
    address = address_of(ref)
    given, file = given_by(address), address.weights
    if given is None and file is None:
        return _open(ref)
    weights = None if file is None else _open(file)
    if weights is not None and (not isinstance(weights, Weights) or weights.wanting):
        raise InvalidModel(f"--weights {file} is a model of its own, no file of weights; open it as the model.")
    opened = _open(address.model, given)
    if isinstance(opened, Weights):
        raise (InvalidData if opened.wanting else InvalidModel)(weights_alone(opened))
    parts = replace(address, model=str(opened.ref), weights=None if weights is None else weights.ref)
    if isinstance(weights, Weights):
        opened = filled_with(
            opened, weights, str(replace(parts, data=None, train_data=None, preprocess=None, text=None))
        )
    if given is None:
        return opened
    whole = with_parts(str(parts), **{name: getattr(address, name) for name in DATA})
    if _source(address.model).open_on is not None:
        return replace(opened, ref=whole)
    return opened_on(opened, given, whole)


def _open(ref: str, given: GivenData | None = None) -> Opened | Weights:
    """Open a model alone, or with data that decide how it is opened."""
    source = _source(ref)
    return source.open(ref) if given is None or source.open_on is None else source.open_on(ref, given)


def _source(ref: str) -> Source:
    place = file_and_part(ref)[0]
    if place.exists() and not (place.is_file() or place.is_dir()):  # a pipe would be waited for, a device has no end
        raise InvalidModel(f"{ref} is no file but a pipe or device; write it to a file first.")
    for source in SOURCES.values():
        if source.accepts(ref):
            return source
    if place.suffix.lower() == ".zip" and place.is_file():
        raise InvalidModel(f"{ref} is a zip, which is not opened; unpack it and give the folder.")
    if (place / CONFIG).is_file():
        raise InvalidModel(f"{ref} has no {ADAPTER} beside its {CONFIG}; put it there.")
    examples = ", ".join(source.example for source in SOURCES.values())
    if Path(ref).expanduser().exists():
        raise InvalidModel(f"{ref} is no model file; give one of: {examples}.")
    raise UnknownModel(f"no model goes by {ref!r}; give one of: {examples}.")


def weights_alone(weights: Weights) -> str:
    """What is missing where weights alone are given, in one line."""
    if weights.wanting:
        return f"{weights.ref}: {weights.wanting}"
    if weights.adapter is not None:
        return (
            f"{weights.name} is a LoRA adapter without its model: spectra and ranks only. `python -m lowrank_core "
            "adapter` makes it smaller; what answers it changes is seen with its model, where it is used."
        )
    if folder_of(weights) is not None:
        return (
            f"{weights.name} is weights alone: sizes and spectra. `python -m lowrank_core compress FOLDER --text FILE "
            "--out FOLDER` makes its network smaller block by block, in little memory; Export of the app does it, too."
        )
    return (
        f"{weights.name} is weights without a model: sizes and spectra only. Give a Python model file to measure or "
        "compress; `python -m lowrank_core new FILE` writes one to fill in."
    )


register_all(__name__, __path__)
