"""How a network is written: weights rounded to fewer bytes, biases folded into weights, factors multiplied out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowrank_core.errors import InvalidModel, InvalidSettings
from lowrank_core.layers.attention import without_fused_paths
from lowrank_core.layers.computed import copied
from lowrank_core.layers.parts import IdentityColumns, IdentityRows
from lowrank_core.layers.spec import LayerSpec, inputs_first
from lowrank_core.networks.profile import Layer, ModelProfile, bias_at, module_at, place_of, weight_at

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""What weights may be rounded to; they are widened again before they are used."""

Int8 = Literal["per-channel", "per-tensor"]
INT8: tuple[Int8, ...] = ("per-channel", "per-tensor")

MOST_SAMPLES = 65_536
"""That a file may take at a time."""

_ROWS = 512


@dataclass(frozen=True, slots=True)
class Storage:
    """How weights are written; the defaults change nothing.

    dtype: "float16", "bfloat16", or "int8" where an export quantises. fold_bias: every Linear becomes [W b], its input
    extended by a one. dense: one weight per layer again, the product of its factors.
    int8: how many scales an int8 weight has, one per output channel or one alone. refit: whether int8's factors are
    fitted to each other as it rounds them (`compression.quantised`).
    batch: samples that a graph takes at a time, with no size left open; None for any number. opset: version of ONNX's
    operators; None for the exporter's own.
    """

    dtype: str | None = None
    fold_bias: bool = False
    dense: bool = False
    int8: Int8 = "per-channel"
    refit: bool = True
    batch: int | None = None
    opset: int | None = None

    @property
    def told(self) -> dict[str, Any]:
        """The settings that differ from the defaults, for provenance."""
        usual = asdict(Storage())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    @property
    def rounds(self) -> bool:
        """Whether what is written is another network than the one that was given."""
        return bool(self.dtype or self.fold_bias or self.dense)


class BiasFolded(nn.Sequential):
    """A Linear without a bias for inputs extended by a one: [W b] [x 1]."""

    def __init__(self, linear: nn.Linear) -> None:
        rows, columns = linear.weight.shape
        weight = linear.weight
        folded = nn.Linear(columns + 1, rows, bias=False, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            folded.weight.copy_(torch.cat([weight, linear.bias[:, None]], dim=1))
        super().__init__(nn.ConstantPad1d((0, 1), 1.0), folded)


def stored_as(model: nn.Module, dense: nn.Module, profile: ModelProfile, storage: Storage) -> nn.Module:
    """A copy of a compressed network as it is written; `dense` is the network that it was made from.

    Raises InvalidSettings where nothing can be folded, InvalidModel where a weight does not fit the dtype.
    """
    if storage.dense:
        model = multiplied_out(model, dense, profile)
    if storage.fold_bias:
        model = bias_folded(model)
    return rounded(model, DTYPES[storage.dtype]) if storage.dtype in DTYPES else model


def rounded(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with every real parameter rounded to a dtype, in its own dtype again: what is read back, exactly."""
    copy = copied(model)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if not parameter.is_floating_point():
                continue
            parameter.copy_(parameter.to(dtype))
            if not torch.isfinite(parameter).all():
                raise InvalidModel(f"{name!r} holds weights beyond the range of {dtype}; bfloat16 has room for them.")
    return copy


def bias_folded(model: nn.Module) -> nn.Module:
    """A copy in which every Linear with a bias, those in chains among them, is a `BiasFolded`.

    Left as they are: Linear layers that share weight or bias with another layer, and convolutions.
    """
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    memo: dict[int, Any] = {}
    for module in model.modules():
        if not isinstance(module, nn.Linear) or type(module) is not nn.Linear or "bias" not in _own(module):
            continue
        if holders.get(id(module.weight)) == holders.get(id(module.bias)) == 1:
            memo[id(module)] = BiasFolded(module).train(module.training)
    if not memo:
        raise InvalidSettings("no Linear layer of this network has a bias of its own, so there is none to fold.")
    folded: nn.Module = memo[id(model)] if id(model) in memo else copied(model, memo)
    return without_fused_paths(folded)


def multiplied_out(model: nn.Module, dense: nn.Module, profile: ModelProfile) -> nn.Module:
    """The dense architecture with the weights that the chains of a compressed copy stand for, biases included.

    Whatever was trained or corrected beside the chains is taken over.
    """
    product = copied(dense)
    own, given = product.state_dict(), model.state_dict()
    with torch.no_grad():
        product.load_state_dict({name: given[name] for name in own if name in given}, strict=False)
        for layer in profile.layers:
            for each in (layer, *layer.tied):
                place = place_of(dense, each)
                chain = _module(model, place)
                if chain is None or type(chain) is type(_module(dense, place)):
                    continue
                _set(product, each, chain)
    return product


def _set(model: nn.Module, layer: Layer, chain: nn.Module) -> None:
    """Give a layer of a dense network the weight and bias of a chain."""
    owner, _, leaf = layer.parameter.rpartition(".")
    if leaf not in module_at(model, layer.module).get_submodule(owner)._parameters:
        raise InvalidModel(
            f"layer {layer.name!r} computes its weight from others, which leaves no place for the product of its "
            "factors; write the factors themselves."
        )
    chain = copied(chain).double()
    weight, bias = _window(chain, layer.spec) if layer.spec.kernel else _map(chain, layer.spec)
    weight_at(model, layer).copy_(weight)
    own = bias_at(model, layer)
    if own is not None and bias is not None:
        own.copy_(bias)


class Widened(nn.Module):
    """A network that keeps its parameters in few bytes and computes with them in their own dtype."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = copied(network)
        self._own = {name: parameter.dtype for name, parameter in network.named_parameters()}
        for parameter in self.network.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the network, computed with its parameters in their own dtypes."""
        wide = {name: parameter.to(self._own[name]) for name, parameter in self.network.named_parameters()}
        return functional_call(self.network, wide, args, kwargs)


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in module._parameters.items() if value is not None}


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _map(chain: nn.Module, spec: LayerSpec) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a map of vectors, (out, in), or of a table, (in, out): its answers to all unit vectors."""
    if spec.table:
        first, *others = chain.children()
        rows = first.get_parameter("weight")
        for part in others:
            rows = part(rows)
        return rows, None
    bias = chain(torch.zeros(1, spec.in_channels, dtype=torch.float64))
    units = torch.split(torch.eye(spec.in_channels, dtype=torch.float64), _ROWS)
    return torch.cat([chain(rows) - bias for rows in units]).mT, bias[0]


def _window(chain: nn.Module, spec: LayerSpec) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a chain of convolutions of which at most one has a window on any axis."""
    kinds = nn.modules.conv._ConvNd, IdentityRows, IdentityColumns
    parts: list[Any] = [part for part in chain.modules() if isinstance(part, kinds)]
    weight, bias = _all_pairs(parts[0]), getattr(parts[-1], "bias", None)
    for part in parts[1:]:
        weight = torch.einsum("or...,ri...->oi...", _all_pairs(part), weight)
    rows, columns = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    blocks = [weight[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] for g in range(spec.groups)]
    grouped = torch.cat(blocks)
    return inputs_first(grouped, spec.groups) if spec.transposed else grouped, bias


def _all_pairs(part: Any) -> Tensor:
    """The weight of a convolution as (out, in, *window), zeros where a group does not see a channel."""
    weight: Tensor = part.full() if isinstance(part, IdentityRows | IdentityColumns) else part.weight
    groups = part.groups
    if isinstance(part, nn.modules.conv._ConvTransposeNd):
        weight = inputs_first(weight, groups)
    rows, columns = part.out_channels // groups, part.in_channels // groups
    full: Tensor = weight.new_zeros(part.out_channels, part.in_channels, *part.kernel_size)
    for g in range(groups):
        full[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = weight[g * rows : (g + 1) * rows]
    return full
