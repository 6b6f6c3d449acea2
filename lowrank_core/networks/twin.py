"""A copy of a network with modules of its own and the same weights, for hooks that must not touch the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from lowrank_core.layers.attention import watched_attention, without_fused_paths
from lowrank_core.layers.computed import sharing
from lowrank_core.layers.experts import put_in, watched_experts
from lowrank_core.layers.recurrent import watched
from lowrank_core.networks.profile import Layer, matrices, module_at


def twin(model: nn.Module, watch: Iterable[Layer] = ()) -> nn.Module:
    """A copy with modules of its own that shares every parameter and buffer with the original.

    Each layer in `watch` is a module under its name, which hooks can see: also the weights of recurrent modules and
    attentions.
    """
    memo: dict[int, Any] = {}
    watch = list(watch)
    experts = {layer.place: layer for layer in watch if layer.expert is not None}
    for name in {layer.module for layer in watch if layer.partial and layer.expert is None}:
        module = module_at(model, name)
        if isinstance(module, nn.MultiheadAttention):
            memo[id(module)] = watched_attention(module)
            continue
        assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
        memo[id(module)] = watched(module)
    copied = without_fused_paths(sharing(model, memo))
    for layer in experts.values():
        host = module_at(copied, layer.module)
        values = matrices(host.get_parameter(layer.parameter), layer)
        put_in(host, layer.parameter, watched_experts(values, layer.transposed_weight))
    return copied


def on_call(module: nn.Module, see: Callable[[Tensor, Tensor], Any]) -> Callable[[], None]:
    """Call see(input, output) after each call of the module; returns what takes the hook away again."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        see(args[0] if args else next(iter(kwargs.values())), output)

    return module.register_forward_hook(hook, with_kwargs=True).remove
