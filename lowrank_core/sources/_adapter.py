"""Adapters: LoRA pairs A and B as PEFT and kohya's trainers name them, told by the names of tensors."""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lowrank_core.algebra.product import ThinProduct
from lowrank_core.errors import InvalidFile, cut, few
from lowrank_core.sources._stored import StoredTensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts in front of the name of every module."""

FIRST = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B", "lora_down": "lora_up", "lora.down": "lora.up"}
"""The parts of a pair: A, (rank, in), and B, (out, rank)."""

_PARTS = "|".join(re.escape(part) for pair in FIRST.items() for part in pair)
_PAIR = re.compile(rf"(?P<module>.+)\.(?P<part>{_PARTS})(?:\.(?!(?:weight|bias)$)(?P<adapter>\w+))?(?:\.weight)?")
_CARRIED = re.compile(r".*\.(?:lora_B(?:\.\w+)?\.bias|lora_magnitude_vector(?:\.\w+)*|dora_scale)")
_FAMILY = re.compile(r".*[._](?:lora[_.]|hada_|lokr_|oft_|boft_|vera_|glora)")


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A and B of one module. alpha: the tensor that holds it, in kohya's files.

    scale: what the product is multiplied by when it is added to the weight; None where no file says so.
    """

    name: str
    a: StoredTensor
    b: StoredTensor
    scale: float | None
    alpha: StoredTensor | None = None

    @property
    def rank(self) -> int:
        """Rows of A, columns of B."""
        return self.a.shape[0]

    @property
    def rank_bytes(self) -> int:
        """What each rank takes in the file."""
        return (self.a.bytes + self.b.bytes) // self.rank

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """(B, A) as matrices, (out, rank) and (rank, in * window), as they are stored."""
        return self.b.whole.flatten(1), self.a.whole.flatten(1)

    def product(self) -> ThinProduct:
        """The SVD of B A; raises InvalidFile for NaN or infinity."""
        b, a = self.factors
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise InvalidFile(f"{self.name!r}: A or B holds NaN or infinity; train the adapter again.")
        return ThinProduct.of(b, a)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """The pairs of an adapter, what else its file holds, and what its adapter_config.json says; None without one."""

    path: Path
    pairs: tuple[Pair, ...]
    others: tuple[StoredTensor, ...]
    config: Mapping[str, Any] | None
    _known: dict[str, ThinProduct] = field(default_factory=dict)

    @property
    def peft(self) -> bool:
        """Whether the names are PEFT's, and not kohya's."""
        return _PAIR.fullmatch(self.pairs[0].a.name)["part"] in ("lora_A", "lora_embedding_A")  # type: ignore[index]

    @property
    def rslora(self) -> bool:
        """Whether alpha is divided by the root of the rank."""
        return bool((self.config or {}).get("use_rslora"))

    @property
    def ranks(self) -> dict[str, int]:
        """{module: rank} as it is stored."""
        return {pair.name: pair.rank for pair in self.pairs}

    def product(self, name: str) -> ThinProduct:
        """The SVD of a module's product; kept."""
        if name not in self._known:
            self._known[name] = next(pair for pair in self.pairs if pair.name == name).product()
        return self._known[name]

    def bytes_at(self, ranks: Mapping[str, int]) -> int:
        """Bytes of all tensors at these ranks."""
        pairs = sum(pair.rank_bytes * ranks[pair.name] for pair in self.pairs)
        return pairs + sum(tensor.bytes for tensor in self.others) + sum(p.alpha.bytes for p in self.pairs if p.alpha)


MOST_BYTES_PACKED = 4 * 10**9
"""Of an adapter in a zip, unpacked."""


def in_zip(file: str | Path | IO[bytes], name: str, most_bytes: int = MOST_BYTES_PACKED) -> dict[str, bytes]:
    """The weights of an adapter in a zip, then its configuration if there is one, by the names that they have there.

    What else a zip holds is left there; nothing is unpacked by its own path. name: of the zip, for messages;
    most_bytes: of both together. Raises InvalidFile where it is damaged, locked or too large, or holds none or several.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [each for each in archive.infolist() if not each.is_dir() and "__MACOSX" not in each.filename]
            weights = [each for each in inside if each.filename.lower().endswith(".safetensors")]
            if len(weights) != 1:
                held = "no .safetensors" if not weights else f"{len(weights)} files of weights"
                raise InvalidFile(f"{name} holds {held}; give the zip of one adapter.")
            folder = weights[0].filename.rpartition("/")[0]
            beside = [each for each in inside if each.filename == f"{folder}/{CONFIG}".removeprefix("/")]
            taken = [*weights, *beside]
            if sum(each.file_size for each in taken) > most_bytes:
                raise InvalidFile(f"{name} holds more than {most_bytes:,} bytes; unpack it and give the path.")
            return {Path(each.filename).name: archive.read(each) for each in taken}
    except OSError as error:
        raise InvalidFile(f"{name} cannot be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:  # all that zipfile says
        raise InvalidFile(f"{name} is damaged, locked, or no zip ({error}); pack or download it again.") from error


def adapter_of(path: Path, tensors: Mapping[str, StoredTensor]) -> Adapter | None:
    """The adapter that tensors are of; None where they are none. path: their file, or folder.

    Raises InvalidFile where it is no whole one: a part without its partner, sizes that do not fit, names of two
    networks, kinds of adapters that are no products of two matrices, a configuration of another adapter.
    """
    found = {name: told for name in tensors if (told := _PAIR.fullmatch(name))}
    if any(".base_layer." in name for name in tensors) or not found:
        if tensors and all(".lora" in name for name in tensors):
            raise _unknown(path, next(iter(tensors)))
        return None
    _check_one(path, found)
    alphas = {name: tensor for name, tensor in tensors.items() if name.endswith(".alpha")}
    others = [tensor for name, tensor in tensors.items() if name not in found and name not in alphas]
    for tensor in others:
        if _FAMILY.match(tensor.name) and not _CARRIED.fullmatch(tensor.name):
            raise _unknown(path, tensor.name)
    config = _config(path)
    pairs, parts = [], {(told["module"], told["part"]): tensors[name] for name, told in found.items()}
    for (module, part), tensor in parts.items():
        if part in FIRST.values():
            if (module, next(a for a, b in FIRST.items() if b == part)) not in parts:
                raise InvalidFile(f"{path}: {cut(tensor.name)!r} has no A that it belongs to; download it again.")
            continue
        b = parts.get((module, FIRST[part]))
        if b is None:
            raise InvalidFile(f"{path}: {cut(tensor.name)!r} has no {FIRST[part]} beside it; download it again.")
        name, alpha = module.removeprefix(PREFIX), alphas.pop(f"{module}.alpha", None)
        _check_fit(path, tensor, b)
        pairs.append(Pair(name, tensor, b, _scale(path, name, tensor.shape[0], part, alpha, config), alpha))
    return Adapter(path, tuple(pairs), (*others, *alphas.values()), config)


def _check_one(path: Path, found: Mapping[str, re.Match[str]]) -> None:
    """Raise InvalidFile where pairs are of two adapters or networks."""
    parts = {told["part"] for told in found.values()}
    styles = {"PEFT's" if part[-1] in "AB" else "kohya's" if "_" in part else "diffusers'" for part in parts}
    if len(styles) > 1:
        raise InvalidFile(
            f"{path} holds pairs of two adapters: {' and '.join(sorted(styles))} names; give one of them."
        )
    adapters = {told["adapter"] for told in found.values()}
    if len(adapters) > 1:
        raise InvalidFile(f"{path} holds several adapters, {few(sorted(map(str, adapters)))}; save one of them.")
    inside = {name.startswith(PREFIX) for name in found}
    if len(inside) > 1:
        outside = next(name for name in found if not name.startswith(PREFIX))
        raise InvalidFile(
            f"{path} holds pairs of two base models: {cut(outside)!r} does not begin with {PREFIX!r} as others do; "
            "give the adapter of one."
        )


def _check_fit(path: Path, a: StoredTensor, b: StoredTensor) -> None:
    """Raise InvalidFile unless B A is a product, of 16, 32 or 64-bit floats."""
    real = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    for tensor in (a, b):
        if tensor.dtype not in real or not tensor.elements or len(tensor.shape) not in (2, 3, 4, 5):
            raise InvalidFile(f"{path}: {cut(tensor.name)!r} is {tensor.shape} {tensor.kind}, no matrix of an adapter.")
    if b.shape[1] != a.shape[0] or any(side != 1 for side in b.shape[2:]):
        raise InvalidFile(
            f"{path}: A and B do not fit: {cut(b.name)!r} is {b.shape} and must have as many columns as "
            f"{cut(a.name)!r}, {a.shape}, has rows, and a window of one; they are of two adapters, or grouped."
        )


def _unknown(path: Path, name: str) -> InvalidFile:
    return InvalidFile(
        f"{path}: {cut(name)!r} is of no pair lora_A and lora_B, or lora_down and lora_up; LoHa, LoKr, a lora_mid and "
        "others are no products of two matrices, which alone are resized."
    )


def _config(path: Path) -> dict[str, Any] | None:
    """adapter_config.json in the folder of the weights; None where there is none. Raises InvalidFile."""
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidFile(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidFile(f"{file} is cut short or damaged: it is no JSON{where}; download it again.") from error
    if not isinstance(config, dict):
        raise InvalidFile(f"{file} must be a JSON object that says r and lora_alpha; download it again.")
    for key in ("r", "lora_alpha"):
        if key not in config:
            raise InvalidFile(f"{file} must say r and lora_alpha of a LoRA, but has no {key}; download it again.")
        _check_number(f"{file}: {key}", config[key])
    if config.get("peft_type") != "LORA":
        raise InvalidFile(f"{file}: only peft_type LORA is read, but it is {cut(repr(config.get('peft_type')))}.")
    if config.get("target_parameters"):
        raise InvalidFile(f"{file}: only a LoRA of modules is read, but it has target_parameters.")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict):
            raise InvalidFile(f"{file}: {key} must be a JSON object of modules, but is {cut(repr(pattern))}.")
        for module, value in pattern.items():
            _check_number(f"{file}: {key} of {cut(module)!r}", value)
    return config


LEAST, MOST = 1e-30, 1e30
"""Bounds of ranks and alphas: the squares of what they multiply are finite and not 0."""


def _check_number(what: str, value: Any) -> None:
    """Raise InvalidFile unless it is a number that a scale can be made of."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST <= value <= MOST:
        raise InvalidFile(f"{what} must be a number above 0 ({LEAST:g} to {MOST:g}), but is {cut(repr(value))}.")


def _scale(
    path: Path, name: str, rank: int, part: str, alpha: StoredTensor | None, config: Mapping[str, Any] | None
) -> float | None:
    """What the product of a module is multiplied by; raises InvalidFile where the configuration is another's."""
    if part in ("lora_down", "lora.down"):
        return 1.0 if alpha is None else _number_in(path, alpha) / rank
    if config is None:
        return None
    said = matching(config.get("rank_pattern") or {}, name, config["r"])
    if said != rank:
        raise InvalidFile(
            f"{path}: {CONFIG} says rank {said} of {cut(name)!r}, but its A has {rank} rows; configuration and weights "
            "are of two adapters."
        )
    size = matching(config.get("alpha_pattern") or {}, name, config["lora_alpha"])
    return float(size / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _number_in(path: Path, alpha: StoredTensor) -> float:
    """The number that a tensor holds; raises InvalidFile."""
    what = f"{path}: {cut(alpha.name)!r}"
    if alpha.dtype is None or alpha.dtype.is_complex or alpha.elements != 1:
        raise InvalidFile(f"{what} must be one number, but is {alpha.shape} {alpha.kind}.")
    value = float(alpha.whole.double())
    _check_number(what, value)
    return value


def matching(pattern: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """What a pattern of PEFT says of a module: of the first key that its name ends with, a regular expression."""
    try:
        return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)
    except re.error as error:
        raise InvalidFile(f"{CONFIG}: a key of a pattern is no regular expression ({error}).") from error
