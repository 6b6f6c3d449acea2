"""Weights on disk: one safetensors file per built-in module, with the score it reached in its metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights"
LARGE = 300_000
"""Bytes above which floating-point tensors are stored as float16."""


def weights_path(module: str, folder: Path = WEIGHTS) -> Path:
    """The weight file of a built-in, by the last part of its module path."""
    return folder / f"{module.rpartition('.')[2]}.safetensors"


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Fill the model from the file; it keeps its own float32 and comes back in eval mode."""
    model.load_state_dict(load_file(path))
    return model.eval()


def stored_metadata(path: Path) -> dict[str, Any]:
    """What `train` recorded: metric, score, samples, parameters, seed."""
    with safe_open(path, framework="pt") as file:
        recorded: dict[str, Any] = json.loads(file.metadata()["training"])
    return recorded


def rounded_state(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict as it will be stored: float16 when float32 would exceed `LARGE` bytes."""
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    if sum(tensor.nbytes for tensor in state.values()) <= LARGE:
        return state
    return {name: tensor.to(torch.float16) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
