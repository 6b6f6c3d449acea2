"""A folder that `save_pretrained` of transformers has written: config.json and weights in safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidModel
from lowrank_core.extras import extra
from lowrank_core.sources import Source, register
from lowrank_core.sources._contract import ModelContract, open_contract
from lowrank_core.sources._opened import Opened

SAMPLES, TOKENS = 8, 16


def _accepts(ref: str) -> bool:
    folder = Path(ref).expanduser()
    return (folder / "config.json").is_file() and not _is_of_another_library(folder)


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
    config = _config(folder)
    contract = ModelContract(
        name=folder.name,
        build_model=lambda: _model(folder, config),
        example_inputs=lambda: _inputs(folder, config),
        description=f"{config['architectures'][0]} from a folder, with random inputs.",
        ref=str(folder),
        path=folder,
    )
    return open_contract(contract)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
        named = isinstance(config["architectures"][0], str)
    except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
        raise InvalidModel(f"{folder}: config.json must name its architectures, but has none ({error}).") from error
    if not named or "auto_map" in config:
        raise InvalidModel(f"{folder} needs code of its own, which is not run; write a model file that builds it.")
    if not any(folder.glob("*.safetensors")):
        raise InvalidModel(f"{folder} holds no .safetensors; other weights could run code: save it with safetensors.")
    return dict(config)


def _model(folder: Path, config: dict[str, Any]) -> nn.Module:
    with extra("hf", str(folder)):
        import transformers
    name = config["architectures"][0]
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise InvalidModel(f"{folder}: transformers {transformers.__version__} has no model {name!r}; update it.")
    loaded: Any = kind.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    model: nn.Module = loaded[0]
    about: dict[str, Any] = loaded[1]
    if absent := sorted(map(str, (*about["missing_keys"], *about["mismatched_keys"]))):
        few = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        raise InvalidModel(f"{folder}: its weights do not fit {name}: {few} would be random.")
    return model.eval()


def _inputs(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Random tokens, or random images, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    if "vocab_size" in config:
        longest = min(config.get(key, TOKENS) for key in ("max_position_embeddings", "n_positions"))
        shape = (SAMPLES, min(TOKENS, longest))
        names = ["input_ids"] + ["decoder_input_ids"] * bool(config.get("is_encoder_decoder"))
        return {name: torch.randint(config["vocab_size"], shape, generator=generator) for name in names}
    if "image_size" in config:
        side = config["image_size"]
        shape = (SAMPLES, config.get("num_channels", 3), *([side, side] if isinstance(side, int) else side))
        return {"pixel_values": torch.randn(shape, generator=generator)}
    raise InvalidModel(f"{folder}: its inputs are neither tokens nor images; write a model file with example_inputs().")


register(Source("pretrained", _accepts, _open, "a folder of save_pretrained (transformers)"))
