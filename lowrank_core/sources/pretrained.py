"""A folder that `save_pretrained` of transformers has written: config.json and weights in safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from lowrank_core.errors import InvalidModel, few
from lowrank_core.extras import extra
from lowrank_core.running.own_process import nothing_printed
from lowrank_core.sources import Source, register
from lowrank_core.sources._contract import ModelContract, open_contract, told
from lowrank_core.sources._opened import Opened
from lowrank_core.sources._pretrained_folder import architecture_in, beyond_memory
from lowrank_core.sources._processors import preparation
from lowrank_core.sources._transformers_inputs import Folder, random_inputs

LAYERS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
)
"""What configurations call how deep a network is; each layer holds a tensor at least."""

TIES = 8
"""Numbers that a configuration may describe for each that the files hold: tied tables are described several times."""


def _accepts(ref: str) -> bool:
    folder = Path(ref).expanduser()
    return (
        (folder / "config.json").is_file()
        and not _is_of_another_library(folder)
        and not (architecture_in(folder) and beyond_memory(folder))  # its weights can be looked at
    )


def _is_of_another_library(folder: Path) -> bool:
    """Whether diffusers or timm has written the folder: there its weights can be looked at."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (ValueError, OSError, RecursionError):
        return False
    return (
        isinstance(config, dict)
        and "architectures" not in config
        and bool({"_class_name", "architecture"} & set(config))
    )


def _open(ref: str) -> Opened:
    """Offline, no code of the folder is run and nothing is unpickled; there are no data but random ones."""
    folder = Path(ref).expanduser().resolve()
    config = configuration(folder)
    model = cache(lambda: _model(folder, config))
    about = cache(lambda: Folder.of(folder, model()))
    contract = ModelContract(
        name=folder.name,
        build_model=model,
        example_inputs=lambda: random_inputs(about()),
        description=f"{config['architectures'][0]} from a folder, with random inputs.",
        ref=str(folder),
        path=folder,
        preparation=preparation(about()),
    )
    return open_contract(contract)


def configuration(folder: Path) -> dict[str, Any]:
    """What config.json says; raises InvalidModel where it names no architecture, or code that would have to be run."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = isinstance(config["architectures"][0], str)
    except (ValueError, KeyError, TypeError, IndexError, OSError, RecursionError) as error:
        raise InvalidModel(f"{folder}: config.json must name its architectures, but has none ({error}).") from error
    if not named or "auto_map" in config:
        raise InvalidModel(f"{folder} needs code of its own, which is not run; write a model file that builds it.")
    if not any(folder.glob("*.safetensors")):
        raise InvalidModel(f"{folder} holds no .safetensors; other weights could run code: save it with safetensors.")
    return dict(config)


def architecture(folder: Path, config: dict[str, Any]) -> Any:
    """The class of transformers that the configuration of a folder names; raises InvalidModel where there is none."""
    with extra("hf", str(folder)), nothing_printed():  # its loggers keep to the stderr that is there at first
        import transformers

        if _is_ours(config):
            import lowrank_hf  # noqa: F401  # so that transformers knows what to put in
    name = config["architectures"][0]
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise InvalidModel(f"{folder}: transformers {transformers.__version__} has no model {name!r}; update it.")
    return kind


def _model(folder: Path, config: dict[str, Any]) -> nn.Module:
    kind = architecture(folder, config)
    name = kind.__name__
    try:
        with nothing_printed():
            _check_size(folder, kind, config)
            loaded: Any = kind.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, in one line
            )
    except InvalidModel:
        raise
    except Exception as error:  # whatever the code of one of some hundred architectures says
        raise InvalidModel(f"{folder}: {name} cannot be built from its files ({told(error, None)}).") from error
    model: nn.Module = loaded[0]
    about: dict[str, Any] = loaded[1]
    mismatched = [each if isinstance(each, str) else each[0] for each in about["mismatched_keys"]]
    if absent := sorted({*map(str, about["missing_keys"]), *map(str, mismatched)}):
        raise InvalidModel(
            f"{folder}: its weights do not fit {name}: {few(absent)} would be random; take config.json and weights of "
            "one model."
        )
    if _is_ours(config) and (foreign := sorted(map(str, about["unexpected_keys"]))):
        raise InvalidModel(f"{folder}: nothing takes {few(foreign)} of its weights; export it again.")
    answers_alone(model.config)
    return model.eval()


def answers_alone(config: Any) -> None:
    """Let a network's outputs have names, and nothing of earlier tokens be kept, which is no answer."""
    for part in _with_parts(config):
        part.return_dict = True
        if hasattr(part, "use_cache"):
            part.use_cache = False


def _is_ours(config: dict[str, Any]) -> bool:
    """Whether layers of the network are thin ones, as `export --format hf` writes it."""
    given = config.get("quantization_config")
    return isinstance(given, dict) and given.get("quant_method") == "lowrank"


def _with_parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside it, as composite models have one for each part."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        if (part := getattr(config, name, None)) is not None:
            yield from _with_parts(part)


def _check_size(folder: Path, kind: Any, config: dict[str, Any]) -> None:
    """Refuse a configuration that describes far more than the files hold, before memory is taken for it."""
    tensors = numbers = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        tensors += len(shapes)
        numbers += sum(torch.Size(shape).numel() for shape in shapes)
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in LAYERS:
            if isinstance(part.get(key), int) and part[key] > tensors:
                raise InvalidModel(
                    f"{folder}: config.json asks for {part[key]:,} layers ({key}), but its files hold {tensors:,} "
                    "tensors; take config.json and weights of one model."
                )
    with torch.device("meta"):
        model = kind(kind.config_class.from_pretrained(folder))
        if _is_ours(config):
            from lowrank_hf import put_in

            for layer in config["quantization_config"]["layers"]:
                put_in(model, layer["name"], layer["parts"])
        described = sum(p.numel() for p in model.parameters())
    if described > TIES * numbers:
        raise InvalidModel(
            f"{folder}: config.json describes {described:,} numbers, but its files hold {numbers:,}; take config.json "
            "and weights of one model."
        )


register(Source("pretrained", _accepts, _open, "a folder of save_pretrained (transformers)"))
