"""What a network is to the product: its layers, what is left as it is and why, and what the rest costs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowrank_core.errors import NO_TEXT, InvalidModel, few
from lowrank_core.layers.computed import answers_as, effective, kind_of
from lowrank_core.layers.data import octets
from lowrank_core.layers.parts import Product
from lowrank_core.layers.spec import LayerSpec, Size, multiplied_by, turned_round
from lowrank_core.methods import METHODS, Method

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Embedding, nn.EmbeddingBag)


Work = tuple[tuple[LayerSpec, ...], Size, Fraction | int]
"""A chain that is computed, the extent of its input, and how many such inputs one sample sends through."""


@dataclass(frozen=True, slots=True)
class Way:
    """Another way in which functions multiply by the weight of a layer.

    back: by its transpose; else it is a table that is multiplied by, not looked up. in_sizes, shares: as of a layer.
    """

    back: bool
    in_sizes: tuple[Size, ...]
    shares: tuple[Fraction, ...] = ()

    def work(self, stages: tuple[LayerSpec, ...]) -> Iterator[Work]:
        """What the layer's chain computes in this way."""
        return _work(turned_round(stages) if self.back else multiplied_by(stages), self)


def _work(chain: tuple[LayerSpec, ...], seen: Layer | Way) -> Iterator[Work]:
    """A chain with the inputs that one sample sends through, size by size, and how many of each."""
    shares: tuple[Fraction | int, ...] = seen.shares or (1,) * len(seen.in_sizes)
    return ((chain, size, share) for size, share in zip(seen.in_sizes, shares, strict=True))


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that can be compressed. in_sizes: one entry per call in one forward pass, () = never called.

    shares: of each of these, how many such inputs one sample sends through on average, where that is not one: of an
    expert that only some rows are routed to, the mean over the samples, perhaps 0; () where every sample sends one.
    parameter: the name of its weight in its module; a recurrent module and an attention have several, each a layer of
    its own. rows: where the weight is a slice of the parameter. part: its name in the module, where that is another.
    transposed_weight: the module keeps it as (in, out), as the Conv1D of transformers does. tied: layers that share the
    weight and so the factors, each with its own bias. expert: its number, where the parameter holds one matrix for each
    expert of a mixture. extra: numbers stored for a weight that is computed from others.
    stored: bytes of the dense layer in its file, where they are kept in another type there.
    read: functions are given the weight, so the module stays with all else that it does, its bias too, and the chain
    takes the weight's place in it; the layer goes by the name of its module where the weight is called so. ways: how
    else they multiply by it, with the same factors.
    """

    name: str
    type: str
    spec: LayerSpec
    in_sizes: tuple[Size, ...]
    itemsize: int
    aliases: tuple[str, ...] = ()
    parameter: str = "weight"
    rows: tuple[int, int] | None = None
    part: str = ""
    transposed_weight: bool = False
    tied: tuple[Layer, ...] = ()
    extra: int = 0
    asked: bool = False
    shares: tuple[Fraction, ...] = ()
    expert: int | None = None
    stored: int | None = None
    read: bool = False
    ways: tuple[Way, ...] = ()

    def work(self, stages: tuple[LayerSpec, ...]) -> Iterator[Work]:
        """All that a chain in the layer's place computes for one sample, but for layers tied to it."""
        yield from _work(stages, self)
        for way in self.ways:
            yield from way.work(stages)

    @property
    def shared(self) -> bool:
        """Whether its factors serve several: layers that share its weight, or both ways round."""
        return bool(self.tied or self.ways)

    @property
    def reached(self) -> bool:
        """Whether any sample sent anything through it; an expert that none was routed to is a layer all the same."""
        return not self.shares or any(self.shares)

    @property
    def module(self) -> str:
        """The name of the module that holds the weight: the layer's own, or 'rnn' of 'rnn.weight_hh_l0'."""
        if self.parameter == "weight" and self.expert is None:
            return self.name
        return self.name.removesuffix(self.part or self.parameter).removesuffix(".")

    @property
    def place(self) -> str:
        """Where a plan puts something else: the module, or the parameter that holds the matrices of a mixture."""
        return self.module if self.expert is None else self.name.removesuffix(f".{self.expert}")

    @property
    def partial(self) -> bool:
        """Whether the layer is one of several weights of a recurrent module, an attention or a mixture of experts."""
        return self.expert is not None or (self.parameter != "weight" and not self.read)

    @property
    def plain(self) -> bool:
        """Whether an nn.Sequential of layers of torch.nn can stand for it wherever the network is rebuilt."""
        return not (self.partial or self.tied or self.spec.bag or self.asked or self.read)

    @property
    def stepwise(self) -> bool:
        """Whether what goes in at one step follows from what came out at the step before."""
        return self.parameter.startswith(("weight_hh", "weight_hr"))

    @property
    def methods(self) -> tuple[Method, ...]:
        """The decompositions that fit, the default first and references last."""
        fitting = [m for m in METHODS.values() if m.obstacle(self.spec) is None]
        preferred = ("spatial_svd", "svd")
        return tuple(sorted(fitting, key=lambda m: (m.reference, m.name not in preferred, m.name)))


@dataclass(frozen=True, slots=True)
class Skipped:
    """A module with weights that is left as it is, and why."""

    name: str
    type: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rest:
    """What the network costs outside its compressible layers, tied tensors once; buffers are listed apart."""

    parameters: int
    bytes: int
    multiplies: int
    buffer_bytes: int


@dataclass(frozen=True)
class ModelProfile:
    """The structure of a network as the product sees it; layers are in order of execution."""

    fingerprint: str
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]
    rest: Rest

    def layer(self, name: str) -> Layer:
        """The compressible layer of that name; KeyError otherwise."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The module of that layer name, or what stands there for its weight; a network that is one layer goes by the name
    of its type."""
    module = model if is_whole(model, name) else model.get_submodule(name)
    stands = module._modules.get("weight")
    return stands if isinstance(stands, Product) else module


def place_of(model: nn.Module, layer: Layer) -> str:
    """Where the chain of a layer is in a compressed copy: in the place of its module, "" of a whole network, or of its
    weight."""
    name = "" if is_whole(model, layer.module) else layer.module
    if layer.read:
        return f"{name}.{layer.parameter}".removeprefix(".")
    return layer.name if layer.partial else name


def is_whole(model: nn.Module, name: str) -> bool:
    """Whether the layer of that name is the whole network."""
    return name == type(model).__name__ and not hasattr(model, name)


def weight_at(model: nn.Module, layer: Layer) -> Tensor:
    """A layer's weight in its network, in the shape of its spec: a parameter, or some rows of one."""
    weight = _rows(_parameter(model, layer, layer.parameter), layer)
    return weight.mT if layer.transposed_weight else weight


def bias_at(model: nn.Module, layer: Layer) -> Tensor | None:
    """A layer's bias in its network, where it has one."""
    if not layer.spec.bias:
        return None
    return _rows(_parameter(model, layer, layer.parameter.replace("weight", "bias")), layer)


def _rows(parameter: Tensor, layer: Layer) -> Tensor:
    if layer.rows is not None:
        return parameter[slice(*layer.rows)]
    return parameter if layer.expert is None else parameter[layer.expert]


def matrices(parameter: Tensor, layer: Layer) -> Tensor:
    """(experts, ., .) of the parameter of a mixture of experts, which one of them is a layer of."""
    if layer.rows is None:
        return parameter
    start, end = layer.rows
    return parameter.view(-1, end - start, parameter.shape[1])


def _parameter(model: nn.Module, layer: Layer, name: str) -> Tensor:
    """The whole parameter that holds a layer's weight or bias, or what the layer computes in its place."""
    inside, _, leaf = name.rpartition(".")
    value = effective(module_at(model, layer.module).get_submodule(inside), leaf)
    if value is None:
        raise InvalidModel(f"{layer.name!r} has no {leaf}; open the model again, it is another one now.")
    return value


def fingerprint(model: nn.Module) -> str:
    """'sha256:' over sorted name, dtype, shape and bytes of the state_dict; the same on every machine."""
    state = sorted(model.state_dict().items())
    return fingerprint_over((name, value) for name, value in state if isinstance(value, Tensor))


def fingerprint_over(named: Iterable[tuple[str, Tensor]]) -> str:
    """The same over tensors that come one at a time, sorted by name."""
    digest = hashlib.sha256()
    for name, value in named:
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(octets(value))
    return f"sha256:{digest.hexdigest()}"


LONGEST_NAME = 1_000
"""Letters in the name of a layer or tensor, at most."""


def name_fault(name: str) -> str | None:
    """Why a name of a layer or tensor cannot be used, in words that follow it; None where it can.

    >>> name_fault("encoder.0.weight")
    >>> name_fault("a\\nb")
    'holds characters that are no text; give it another name'
    """
    if len(name) > LONGEST_NAME:
        return f"has {len(name):,} letters, at most {LONGEST_NAME:,} are taken; give it a shorter one"
    if NO_TEXT.search(name):
        return "holds characters that are no text; give it another name"
    return None


def check_finite(model: nn.Module) -> None:
    """Raise InvalidModel naming every parameter that holds NaN or Inf; a buffer may hold Inf, as attention masks do."""
    lazy = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if is_lazy(value)]
    if lazy:
        shown = few(lazy, repr)
        raise InvalidModel(f"{shown} have no shape yet; run the model once before it is handed over.")
    meta = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.is_meta]
    if meta:
        shown = few(meta, repr)
        raise InvalidModel(f"{shown} lie on the meta device, without values; load the weights first.")
    bad = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    bad += [name for name, value in model.named_buffers() if torch.isnan(value).any()]
    if bad:
        shown = few(bad, repr)
        raise InvalidModel(
            f"weights must be finite, but {shown} hold NaN or Inf; train again or repair the checkpoint."
        )


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the Conv1D of transformers, as in GPT-2: a Linear whose weight is (in, out)."""
    transformers_conv1d = type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
    return transformers_conv1d and "weight" in module._parameters


def is_map(module: nn.Module) -> bool:
    """Whether a chain can stand for it: a layer of torch.nn, or one that only begins otherwise."""
    kind = kind_of(module)
    return is_conv1d(module) or any(answers_as(kind, known) for known in LINEAR_MAPS)


def spec_of(module: nn.Module) -> LayerSpec:
    if is_conv1d(module):
        inputs, outputs = module.get_parameter("weight").shape
        return LayerSpec(inputs, outputs, bias=module._parameters.get("bias") is not None)
    return LayerSpec.of(module)
