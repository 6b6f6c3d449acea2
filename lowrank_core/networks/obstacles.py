"""What is in the way of compressing a module, in words."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from lowrank_core.layers.computed import effective, kind_of
from lowrank_core.layers.recurrent import CELLS, KINDS, Dense, weight_shapes
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import LINEAR_MAPS

RESIZED = "called with an output_size, which a chain cannot pass on; set output_padding instead"


NEVER_RAN = "its forward never ran on the example inputs"

NEVER_GIVEN = "no product with its weight was seen on the example inputs"


def attention_obstacle(attention: nn.MultiheadAttention) -> str | None:
    own, output = attention._parameters, attention.out_proj
    if not attention._qkv_same_embed_dim:
        return "its keys or values have another width (kdim, vdim), so q, k, v are no slices of one matrix"
    if beside := _beside(attention, {"in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "out_proj"}):
        return beside
    if attention.bias_k is not None or attention.add_zero_attn:
        return "add_bias_kv and add_zero_attn lengthen its keys and values; only plain attention is factorised"
    weight = own.get("in_proj_weight")
    if weight is None or "weight" not in output._parameters:
        return "a weight of it is computed by a hook or a parametrization; remove it first"
    return None if weight.is_floating_point() else f"its weight is {weight.dtype}: only real numbers are factorised"


def _beside(module: nn.Module, known: Collection[str]) -> str:
    """What a module that stands in place of one of torch.nn would lack of it; "" for nothing."""
    held = {
        name
        for owned in (module._parameters, module._buffers, module._modules)
        for name, value in owned.items()
        if value is not None
    }
    further = sorted(held - set(known))
    return f"it holds {further[0]!r} beside its weights, which factors have no place for" if further else ""


def recurrent_obstacle(module: Dense) -> str | None:
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    if not set(weight_shapes(module)) <= set(own):
        return "a weight of it is computed by a hook (weight_norm, spectral_norm or pruning); remove it first"
    if beside := _beside(module, {name for name in own if name.startswith(("weight_", "bias_"))}):
        return beside
    if len(set(own.values())) < len(own):
        return "two of its weights are one tensor: factorising one would untie them and store both"
    if not all(parameter.is_floating_point() for parameter in own.values()):
        return f"its weights are {next(iter(own.values())).dtype}: only real numbers are factorised"
    return None


def shared_obstacle(
    model: nn.Module,
    module: nn.Module,
    owners: dict[Tensor, list[nn.Module]],
    together: Collection[nn.Module] = (),
) -> str | None:
    """Which parameter a module shares with one outside it; its weight may be shared with those it is tied to."""
    inside = set(module.modules())
    for leaf, parameter in module.named_parameters():
        for sharer in owners[parameter]:
            if sharer not in inside and not (leaf == "weight" and sharer in together):
                other = next(n for n, m in model.named_modules() if m is sharer)
                return shared_with(other, leaf)
    return None


def shared_with(other: str, leaf: str = "weight") -> str:
    """That a parameter is another module's as well, in words."""
    return f"its {leaf} is shared with {other!r}: factorising one would untie them and store both"


def is_quantised(module: nn.Module) -> bool:
    return hasattr(module, "_packed_params") or type(module).__module__.startswith("torch.ao.nn.quantized")


def why_not_a_map(module: nn.Module, misused: str = "") -> str:
    """Why a module is none of the layers that are factorised; misused: what is done with its weight, where known."""
    parent = next((kind.__name__ for kind in kind_of(module).__mro__[1:] if kind.__module__.startswith("torch.")), "")
    if is_quantised(module):
        return "its weights are quantised integers; compress the network first, then quantise"
    if kind_of(module) is not type(module) or isinstance(module, nn.utils.parametrize.ParametrizationList):
        return "its weight is computed by a parametrization; remove it first (torch.nn.utils.parametrize)"
    if isinstance(module, (*LINEAR_MAPS, nn.MultiheadAttention)):
        return f"a special kind of {parent}, and {misused or NEVER_GIVEN}"
    if isinstance(module, (*KINDS, *CELLS)):
        return f"a special kind of {parent}: what it does with its weights is its own affair"
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return "normalisation: one number per channel, nothing to factorise"
    if type(module) is nn.Module:
        return "weights that a graph computes with outside its layers"
    if type(module).__name__ in ("InterpreterModule", "Program"):
        return "a part of an exported graph that does more with its weights than one linear map"
    beside = f"; {misused}" if misused else ""
    return f"{type(module).__name__} holds bare parameters: it is none of the layers that are factorised{beside}"


def computed_obstacle(module: nn.Module) -> str | None:
    """What is in the way of taking the weight and bias for what the module computes with."""
    weight, further = effective(module, "weight"), set(module._parameters) - {"weight", "bias"}
    if weight is None:
        return "its weight is computed by a hook that is not known; remove it first"
    if effective(module, "weight") is weight:
        return f"it holds {min(further)!r} beside weight and bias, which factors have no place for" if further else None
    again = vars(module).get("weight", effective(module, "weight"))
    if again is None or not torch.equal(weight, again):
        return "its weight is another one at each call; a plain matrix cannot stand for it"
    return None


def weight_obstacle(module: nn.Module, name: str = "weight") -> str | None:
    """What of a weight itself is in the way of factorising it."""
    weight = effective(module, name)
    assert weight is not None
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}: only real numbers are factorised"
    if not weight.numel():
        return f"its weight is empty, {tuple(weight.shape)}: there is nothing to factorise"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        return f"max_norm={module.max_norm:g} rescales its rows as they are looked up; set it to None after training"
    if isinstance(module, nn.EmbeddingBag) and module.mode == "max":
        return "mode='max' keeps the largest of the rows it looks up, which factors cannot do; sum and mean can"
    return None


def parent_obstacles(model: nn.Module) -> dict[nn.Module, str]:
    """What is in the way of modules inside one that reads their weights."""
    obstacles: dict[nn.Module, str] = {}
    for name, parent in model.named_modules():
        if _reads_weights(parent):
            reason = f"{type(parent).__name__} {name!r} reads this weight directly, so a replacement would not run"
            for module in parent.modules():
                obstacles.setdefault(module, reason)
    return obstacles


def method_obstacle(spec: LayerSpec) -> str | None:
    """Why no decomposition fits a layer; None where one does."""
    reasons = {method.obstacle(spec) for method in METHODS.values()}
    if None in reasons:
        return None
    return METHODS["spatial_svd" if len(spec.kernel) == 2 else "svd"].obstacle(spec)


def _reads_weights(module: nn.Module) -> bool:
    """Whether it may read its children's weights instead of calling them, and is not what `attention` can handle."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return type(module).forward is not nn.TransformerEncoderLayer.forward
    return isinstance(module, nn.MultiheadAttention)
