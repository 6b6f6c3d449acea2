"""`import lowrank_hf`, and `from_pretrained` of transformers loads what `rank-explorer export --format hf` wrote.

It registers a quantizer of the name `lowrank`, which puts the thin layers that config.json lists into the network
before its weights are read. Saved again by `save_pretrained`, the folder is one of these.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowrank_core.layers.parts import PARTS, Chain

METHOD, FORMAT = "lowrank", "lowrank-hf/1"


@register_quantization_config(METHOD)
class LowRankConfig(QuantizationConfigMixin):
    """Which layers are replaced by which parts, {"name", "parts": [{"op", "args"}]}, and {name: the same tensor}."""

    def __init__(self, layers: list[dict[str, Any]], ties: dict[str, str], format: str = FORMAT, **_: Any) -> None:
        if format != FORMAT:
            raise ValueError(f"the format must be {FORMAT!r}, but is {format!r}; update rank-explorer.")
        self.quant_method: Any = METHOD
        self.format, self.layers, self.ties = format, layers, ties


@register_quantizer(METHOD)
class LowRankQuantizer(HfQuantizer):
    """Puts thin layers in before weights are loaded; what it replaced is saved as empty tensors of the old names.

    Those do not fit the network as it was, so that loading without this module is an error, and nothing is random.
    """

    quantization_config: LowRankConfig
    is_trainable = is_qat_trainable = True

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        config, dense = self.quantization_config, {*model.state_dict()}
        for layer in config.layers:
            if (name := here(model, layer["name"])) is not None:  # a head that this class of network has not
                put_in(model, name, layer["parts"])
        own: dict[str, Any] = model.state_dict()
        self.replaced = sorted(dense - {*own})
        prefix = f"^({re.escape(model.base_model_prefix)}\\.)?"
        model._keys_to_ignore_on_load_unexpected |= {f"{prefix}{re.escape(name)}$" for name in self.replaced}
        kept = {a: b for a, b in model.all_tied_weights_keys.items() if {a, b} <= {*own}}
        ties = {here(model, a): here(model, b) for a, b in config.ties.items()}
        model.all_tied_weights_keys = kept | {a: b for a, b in ties.items() if a in own and b in own}
        model._tied_weights_keys = {**model.all_tied_weights_keys}

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `save_pretrained` writes: shared tensors once."""
        own = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
        return own | {name: torch.empty(0) for name in self.replaced}, {}

    def is_serializable(self) -> bool:
        """Factors are weights as others are."""
        return True


class LoadedChain(Chain):
    """A chain whose weight, which has no values, is not drawn at random by what a network does after loading."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name == "weight":
            value._is_hf_initialized = True
        return value


def here(model: Any, name: str) -> str | None:
    """What a network calls a layer or tensor of the one that was saved: with a head or without; None: it has none."""
    prefix = f"{model.base_model_prefix}."
    for known in (name, name.removeprefix(prefix), prefix + name):
        inside, _, leaf = known.rpartition(".")
        try:
            host = model.get_submodule(inside)
        except AttributeError:
            continue
        if leaf in host._modules or leaf in host._parameters or leaf in host._buffers:
            return known
    return None


def put_in(model: nn.Module, name: str, parts: list[dict[str, Any]]) -> None:
    """Replace a layer, wherever it stands, or a weight that functions are given, by one part or a chain of several."""
    inside, _, leaf = name.rpartition(".")
    host = model.get_submodule(inside)
    built = [PARTS[part["op"]](**part["args"]) for part in parts]
    new: Any = (LoadedChain(*built) if len(built) > 1 else built[0]).train(host.training)
    new._is_hf_initialized = True
    old = host._modules.get(leaf) or nn.Identity()
    host._parameters.pop(leaf, None)
    for module, key in [(m, k) for m in model.modules() for k, inner in m._modules.items() if inner is old]:
        module._modules[key] = new
    host._modules[leaf] = new
