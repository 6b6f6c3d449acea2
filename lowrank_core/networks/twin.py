"""A copy of a network with modules of its own and the same weights, for hooks that must not touch the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from lowrank_core.layers.attention import watched_attention, without_fused_paths
from lowrank_core.layers.computed import sharing, with_stand_ins
from lowrank_core.layers.experts import watched_experts
from lowrank_core.layers.parts import Product
from lowrank_core.layers.recurrent import watched
from lowrank_core.layers.spec import build_part
from lowrank_core.networks.profile import Layer, matrices, module_at, place_of, weight_at


def twin(model: nn.Module, watch: Iterable[Layer] = ()) -> nn.Module:
    """A copy with modules of its own that shares every parameter and buffer with the original.

    Each layer in `watch` is a module under its name, which hooks can see: also the weights of recurrent modules and
    attentions.
    """
    memo: dict[int, Any] = {}
    watch = list(watch)
    stand_ins: dict[str, nn.Module] = {
        place_of(model, layer): _dense_product(model, layer) for layer in watch if layer.read
    }
    for place, layer in {layer.place: layer for layer in watch if layer.expert is not None}.items():
        values = matrices(module_at(model, layer.module).get_parameter(layer.parameter), layer)
        stand_ins[place] = watched_experts(values, layer.transposed_weight)
    for name in {layer.module for layer in watch if layer.partial and layer.expert is None}:
        module = module_at(model, name)
        if isinstance(module, nn.MultiheadAttention):
            memo[id(module)] = watched_attention(module)
            continue
        assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
        memo[id(module)] = watched(module)
    return without_fused_paths(with_stand_ins(sharing(model, memo), stand_ins))


def _dense_product(model: nn.Module, layer: Layer) -> Product:
    """One layer with the weight of another in the same memory, for functions that are given the weight."""
    spec = layer.spec
    part = build_part(spec.op, spec.arguments, device="meta", dtype=weight_at(model, layer).dtype)
    part.weight = nn.Parameter(weight_at(model, layer).detach(), requires_grad=False)
    return Product(part, turned=layer.transposed_weight)


def on_call(module: nn.Module, see: Callable[[Tensor, Tensor], Any]) -> Callable[[], None]:
    """Call see(input, output) after each call of the module; returns what takes the hook away again."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        see(args[0] if args else next(iter(kwargs.values())), output)

    return module.register_forward_hook(hook, with_kwargs=True).remove
