"""A network without its weights: built as transformers builds it, its blocks found, its tensors in their files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowrank_core.errors import InvalidModel, few
from lowrank_core.networks.profile import is_conv1d, is_map
from lowrank_core.running.own_process import nothing_printed
from lowrank_core.sources import SOURCES
from lowrank_core.sources._contract import told
from lowrank_core.sources._stored import StoredTensor
from lowrank_core.sources._weights import Weights
from lowrank_core.sources.pretrained import answers_alone, architecture, configuration

OF_LINEAR = vars(nn.Linear(1, 1, device="meta")).keys()
"""What a Linear layer holds; one that holds more may answer by it."""

REAL = {torch.float16, torch.bfloat16, torch.float32}
"""Types that weights are stored in; arithmetic is done in float32."""


class Unfilled(TorchFunctionMode):
    """Inside, memory that is asked for without values is on the meta device: what a network computes for itself, such
    as frequencies of positions, is there, and its weights take no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """A network of which any part can be filled from its files, and emptied again.

    blocks: the repeated ones, by name, in the order they run. stored: the tensors in the files by the network's own
    names, tied ones once. ties: {name of a tensor: the one that it is}.
    """

    folder: Path
    config: dict[str, Any]
    model: Any
    blocks: dict[str, nn.Module]
    stored: dict[str, StoredTensor]
    ties: dict[str, str]

    @property
    def architecture(self) -> str:
        """The class of transformers."""
        return type(self.model).__name__

    @property
    def dtype(self) -> torch.dtype:
        """The type that its weights are stored in."""
        return next(one.dtype for one in self.stored.values() if one.dtype in REAL)

    @property
    def width(self) -> int:
        """Numbers of one hidden state."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def outside(self) -> list[str]:
        """Names of the tensors that are in no block."""
        inside = tuple(f"{name}." for name in self.blocks)
        return [name for name in self.stored if not name.startswith(inside)]

    def inside(self, block: str) -> list[str]:
        """Names of the tensors of a block."""
        return [name for name in self.stored if name.startswith(f"{block}.")]

    def linear(self, block: str) -> dict[str, nn.Module]:
        """The Linear layers of a block, by name; among them the Conv1D of GPT-2."""
        return {f"{block}.{name}": module for name, module in self.blocks[block].named_modules() if is_linear(module)}

    def fill(self, names: list[str], device: torch.device) -> None:
        """Read tensors of these names into the network, in float32; tied ones share their memory."""
        aliases: dict[str, list[str]] = {}
        for alias, name in self.ties.items():
            aliases.setdefault(name, []).append(alias)
        for name in names:
            value = self.stored[name].whole
            value = value.float() if value.is_floating_point() else value
            parameter = nn.Parameter(value.to(device), requires_grad=False) if value.is_floating_point() else value
            for each in (name, *aliases.get(name, ())):
                _put(self.model, each, parameter)

    def empty(self, names: list[str]) -> None:
        """Take the values of these tensors out of the network again."""
        tied = [alias for alias, name in self.ties.items() if name in set(names)]
        for name in (*names, *tied):
            owner, _, leaf = name.rpartition(".")
            held = self.model.get_submodule(owner)
            old = held._parameters.get(leaf)
            if old is not None:
                held._parameters[leaf] = nn.Parameter(torch.empty_like(old, device="meta"), requires_grad=False)

    def to(self, device: torch.device) -> None:
        """Move what the network has computed for itself to a device."""
        for module in self.model.modules():
            for name, value in module._buffers.items():
                if value is not None and not value.is_meta:
                    module._buffers[name] = value.to(device)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a Linear layer, or answers as one; among them the Conv1D of GPT-2."""
    if is_map(module):
        return is_conv1d(module) or isinstance(module, nn.Linear)
    plain = isinstance(module, nn.Linear) and all(name[0] == "_" for name in vars(module).keys() - OF_LINEAR)
    return plain and _answers_as_linear(module)


def _answers_as_linear(module: nn.Module) -> bool:
    """Whether its class has a `forward` of its own that answers as Linear all the same: Falcon's writes the product."""
    probe = nn.Linear(5, 3, module.bias is not None, device="meta").to_empty(device="cpu").requires_grad_(False)
    for parameter in probe.parameters():
        parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    given = torch.linspace(-2, 1, 40).reshape(2, 4, 5)
    answers = probe(given)
    probe.__class__ = type(module)  # type: ignore[assignment]
    try:
        return bool(torch.allclose(probe(given), answers, atol=1e-6))
    except Exception:  # whatever a class of somebody else's does
        return False


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    held = model.get_submodule(owner)
    if leaf in held._parameters:
        held._parameters[leaf] = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
    else:
        held._buffers[leaf] = value.detach()


def skeleton_of(folder: Path) -> Skeleton:
    """Read configuration and headers of a folder of `save_pretrained`; no code of it is run, no weight is read.

    Raises InvalidModel, and InvalidFile for shards that are missing, cut short or of another index.
    """
    if not (folder / "config.json").is_file():
        raise InvalidModel(f"{folder} is no folder of save_pretrained: it must hold config.json and weights.")
    config = configuration(folder)
    if "quantization_config" in config:
        kind = config["quantization_config"].get("quant_method", "unknown")
        what = "is compressed already" if kind == "lowrank" else f"is quantised ({kind})"
        raise InvalidModel(f"{folder} {what}; give the folder of the dense network, in 16 or 32-bit floats.")
    weights = SOURCES["safetensors"].open(str(folder))
    assert isinstance(weights, Weights)
    kind = architecture(folder, config)
    try:
        with nothing_printed(), Unfilled():
            model = kind(kind.config_class.from_pretrained(folder, local_files_only=True)).eval()
    except Exception as error:  # whatever the code of one of some hundred architectures says
        raise InvalidModel(f"{folder}: {kind.__name__} cannot be built ({told(error, None)}).") from error
    if getattr(model.config, "is_encoder_decoder", False) or model.main_input_name != "input_ids":
        raise InvalidModel(f"{folder}: {kind.__name__} is no encoder and no decoder of text alone; use `export`.")
    answers_alone(model.config)
    model.requires_grad_(False)
    stored, ties = _matched(folder, model, {tensor.name: tensor for tensor in weights.tensors})
    return Skeleton(folder, config, model, _blocks(folder, model), stored, ties)


def _blocks(folder: Path, model: Any) -> dict[str, nn.Module]:
    """The list of modules of one class that holds most of the network's matrices."""

    def matrices(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.ndim > 1)

    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(one) for one in module}) == 1
    }
    name = max(lists, key=lambda one: matrices(lists[one]), default=None)
    said = getattr(model.config.get_text_config(), "num_hidden_layers", None)  # ALBERT runs one block several times
    alike = name is not None and said in (None, len(lists[name]))
    if name is None or not alike or not any(is_linear(module) for module in lists[name].modules()):
        raise InvalidModel(
            f"{folder}: in {type(model).__name__} no list of like blocks with Linear layers is found, so it cannot be "
            "compressed block by block; open it as a whole (search, export --format hf)."
        )
    return {f"{name}.{number}": block for number, block in enumerate(lists[name])}


def _matched(folder: Path, model: Any, held: dict[str, StoredTensor]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """(tensors by the names of the network, ties); raises InvalidModel where one is missing or does not fit."""
    own: dict[str, Tensor] = model.state_dict()
    held = _renamed(folder, model, held)
    ties: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", {}))
    prefix = f"{model.base_model_prefix}."
    stored: dict[str, StoredTensor] = {}
    for name in own:
        found = next((held[key] for key in (name, name.removeprefix(prefix), prefix + name) if key in held), None)
        if found is not None:
            stored[name] = found
    for alias, name in list(ties.items()):  # of two that are tied either may be in the file
        if name not in stored and alias in stored:
            stored[name] = stored[alias]
        stored.pop(alias, None)
    if absent := [name for name in own if name not in stored and name not in ties]:
        raise InvalidModel(
            f"{folder}: its weights do not fit {type(model).__name__}: {few(absent)} would be random; take config.json "
            "and weights of one model, or save it again with save_pretrained of this transformers."
        )
    for name, tensor in stored.items():
        if tensor.shape != tuple(own[name].shape):
            raise InvalidModel(
                f"{folder}: {name!r} is {tuple(own[name].shape)} by config.json, but {tensor.shape} in the files; take "
                "config.json and weights of one model."
            )
        if own[name].is_floating_point() and tensor.dtype not in REAL:
            raise InvalidModel(
                f"{folder}: {name!r} is stored as {tensor.kind}; only 16 and 32-bit floats are streamed."
            )
    order = {name: place for place, name in enumerate(own)}
    return dict(sorted(stored.items(), key=lambda item: order[item[0]])), ties


def _renamed(folder: Path, model: Any, held: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors by the names that transformers loads them under; raises InvalidModel where it makes others of them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    changes: list[Any] = get_model_conversion_mapping(model)
    made = [one for one in changes if isinstance(one, WeightConverter)]
    names = {name: rename_source_key(name, [one for one in changes if one not in made], made) for name in held}
    if joined := [name for name, (_, source) in names.items() if source is not None]:
        raise InvalidModel(
            f"{folder}: {few(joined)} are joined or cut when {type(model).__name__} is loaded, as experts are, which "
            "is not streamed; open it as a whole (search, export --format hf)."
        )
    return {now: held[name] for name, (now, _) in names.items()}


def unfilled(module: nn.Module) -> Iterator[str]:
    """Names inside a module of what has no values, though nothing in the files gives them."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_meta:
            yield name
