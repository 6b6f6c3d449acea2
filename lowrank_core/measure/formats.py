"""Number formats: what a network and its plans take in the flash of a device, in closed form."""

from __future__ import annotations

from torch import nn

from lowrank_core.graphs import memory
from lowrank_core.layers.spec import sharing
from lowrank_core.networks.profile import Layer, ModelProfile, module_at
from lowrank_core.plans.cost import layer_cost, stages_of
from lowrank_core.plans.plan import Choice, RankPlan

FORMATS: dict[str, float | None] = {"as it is": None, "float32": 4, "float16": 2, "int8": 1}
"""Bytes of a floating-point number on the device, weights and activations alike; integers keep their size."""

AS_IT_IS = "as it is"
PLAIN = ("int8",)
"""Formats that factors are written in without free ranks: what is rounded once should not go through twice as many
scales (`exports.Compressed.stored`)."""

ORDER_ITEMSIZE = 4
"""Bytes of a place in an order of `layers.parts`."""


def dense_flash_bytes(model: nn.Module, number: str = AS_IT_IS) -> int:
    """Bytes of all parameters and buffers of the dense network, tied ones once, in a number format.

    >>> dense_flash_bytes(nn.Linear(10, 4)), dense_flash_bytes(nn.Linear(10, 4), "int8")
    (176, 44)
    """
    return memory.flash_bytes(model, itemsize=FORMATS[number])


def plan_flash_bytes(model: nn.Module, profile: ModelProfile, plan: RankPlan, number: str = AS_IT_IS) -> int:
    """Bytes of all parameters and buffers of the compressed network in a number format.

    What `graphs.memory` counts of the network that the plan becomes, without making it; model: the dense one.
    """
    size, total = FORMATS[number], float(dense_flash_bytes(model, number))
    for name, choice in (plan.plain if number in PLAIN else plan).choices:
        layer = profile.layer(name)
        more = layer_cost(layer, choice).parameters - layer_cost(layer, None).parameters
        total += more * (size or layer.itemsize) + order_bytes(layer, choice) - gone_bytes(model, layer, number)
    return round(total)


def gone_bytes(model: nn.Module, layer: Layer, number: str = AS_IT_IS) -> int:
    """Bytes of buffers that go with the dense layer, as the mask of a pruned one: usually none."""
    if layer.read or layer.module != layer.name:  # the module stays
        return 0
    buffers = nn.Module()
    for at, buffer in enumerate(module_at(model, layer.module).buffers()):
        buffers.register_buffer(str(at), buffer)
    return memory.flash_bytes(buffers, itemsize=FORMATS[number])


def order_bytes(layer: Layer, choice: Choice) -> int:
    """Bytes of the orders that factors with free ranks keep as buffers, whatever their ranks; 0 without free ranks."""
    if not choice.free:
        return 0
    stages = stages_of(layer.spec, choice)
    chains = [stages, *(sharing(stages, other.spec) for other in layer.tied)]
    places = sum(max(stage.in_channels, stage.out_channels) for chain in chains for stage in chain if stage.identity)
    return ORDER_ITEMSIZE * places
