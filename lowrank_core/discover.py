"""discover: which layers a network has, which of them can be compressed, and what each costs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.data import Inputs, batch_size, call, evaluating
from lowrank_core.errors import InvalidModel, LowRankError
from lowrank_core.layers import LayerSpec, Size
from lowrank_core.methods import METHODS, Method

_LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_READS_WEIGHTS = (nn.TransformerEncoderLayer, nn.MultiheadAttention)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that can be compressed. in_sizes: one entry per call in one forward pass, () = never called."""

    name: str
    type: str
    spec: LayerSpec
    in_sizes: tuple[Size, ...]
    itemsize: int
    aliases: tuple[str, ...] = ()

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


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The structure of a network as the product sees it; layers are in order of execution."""

    fingerprint: str
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]
    rest: Rest

    def layer(self, name: str) -> Layer:
        """The compressible layer of that name; KeyError otherwise."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The module of that layer name; a network that is one layer goes by the name of its type."""
    return model if name == type(model).__name__ and not hasattr(model, name) else model.get_submodule(name)


def fingerprint(model: nn.Module) -> str:
    """'sha256:' over sorted name, dtype, shape and bytes of the state_dict; the same on every machine."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def discover(model: nn.Module, inputs: Inputs) -> ModelProfile:
    """Look at a network through one forward pass of `inputs` (a batch as deployed); the network is not changed.

    A layer is eligible only if its own `forward` ran: a layer whose weight is read by its parent instead would be
    replaced in vain. Everything else with weights is listed as skipped, with the reason. Multiplies are per sample,
    of all matrix products and convolutions that PyTorch's FLOP counter knows.

    Raises InvalidModel for NaN or Inf weights or a forward pass that fails, InvalidData for unusable inputs.
    """
    check_finite(model)
    names = _names(model)
    owners = _owners(model)
    calls: dict[nn.Module, list[Size]] = {}
    samples = batch_size(inputs)

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        calls.setdefault(module, []).extend(_sizes(module, given.shape, samples))

    maps = [module for module in names if type(module) in _LINEAR_MAPS]
    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in maps]
    try:
        with evaluating(model), _countable(model), FlopCounterMode(display=False) as counter:
            call(model, inputs)
    except LowRankError:
        raise
    except Exception as error:
        raise InvalidModel(
            f"the forward pass on the example inputs failed with {type(error).__name__}: "
            f"{' '.join(str(error).split())}; example_inputs() must return what the model is called with."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()

    layers: list[Layer] = []
    skipped: list[Skipped] = []
    for module in names:
        own = [p for p in module.parameters(recurse=False) if p is not None]
        if not own and not getattr(module, "parametrizations", None):
            continue
        name, *aliases = names[module]
        if type(module) not in _LINEAR_MAPS:
            skipped.append(Skipped(name, type(module).__name__, _why_not_a_map(module)))
            continue
        spec = LayerSpec.of(module)
        layer = Layer(
            name=name,
            type=type(module).__name__,
            spec=spec,
            in_sizes=tuple(calls.get(module, ())),
            itemsize=own[0].element_size() if own else 4,
            aliases=tuple(aliases),
        )
        reason = _obstacle(model, module, layer, owners)
        if reason:
            skipped.append(Skipped(name, layer.type, reason))
        else:
            layers.append(layer)

    order = {names[module][0]: position for position, module in enumerate(calls)}
    layers.sort(key=lambda layer: order[layer.name])
    return ModelProfile(
        fingerprint=fingerprint(model),
        layers=tuple(layers),
        skipped=tuple(skipped),
        rest=_rest(model, layers, counter.get_total_flops() // 2 // samples),
    )


def check_finite(model: nn.Module) -> None:
    """Raise InvalidModel naming every parameter that holds NaN or Inf; a buffer may hold Inf, as attention masks do."""
    lazy = [name for name, value in (*model.named_parameters(), *model.named_buffers()) if is_lazy(value)]
    if lazy:
        shown = ", ".join(map(repr, lazy[:5]))
        raise InvalidModel(f"{shown} have no shape yet; run the model once in build_model() before returning it.")
    bad = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    bad += [name for name, value in model.named_buffers() if torch.isnan(value).any()]
    if bad:
        shown = ", ".join(map(repr, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise InvalidModel(
            f"weights must be finite, but {shown} hold NaN or Inf; train again or repair the checkpoint."
        )


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """Take the paths that PyTorch's FLOP counter can see: no fused attention, no fused recurrent kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _unfused() if recurrent else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _unfused() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading the flags warns about hardware that is not there
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module with all the names it goes by."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name or type(module).__name__)
    return names


def _owners(model: nn.Module) -> dict[Tensor, list[nn.Module]]:
    """Every parameter with the modules that hold it."""
    owners: dict[Tensor, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(module)
    return owners


def _sizes(module: nn.Module, shape: torch.Size, samples: int) -> list[Size]:
    """Input extents of one call, for one sample: a Linear's tokens, or a convolution's window positions."""
    if isinstance(module, nn.Linear):
        rows = shape[:-1].numel()
        tokens = -(-rows // samples)
        return [()] if tokens == 1 else [(tokens,)]
    dimensions = len(LayerSpec.of(module).kernel)
    if len(shape) == dimensions + 1:
        return [tuple(shape[1:])]
    return [tuple(shape[2:])] * max(1, shape[0] // samples)


def _why_not_a_map(module: nn.Module) -> str:
    if getattr(module, "parametrizations", None) or isinstance(module, nn.utils.parametrize.ParametrizationList):
        return "its weight is computed by a parametrization; remove it first (torch.nn.utils.parametrize)"
    if isinstance(module, _LINEAR_MAPS):
        return f"a special kind of {type(module).__mro__[1].__name__}: its parent may read the weight directly"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "recurrent: its matrices are not layers of their own, so a plain chain cannot stand in for them"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "a table that is looked up, not multiplied"
    if isinstance(module, nn.MultiheadAttention):
        return "its q, k, v matrices are one bare parameter, not layers"
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "transposed convolution: no decomposition covers it"
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return "normalisation: one number per channel, nothing to factorise"
    return f"{type(module).__name__} holds bare parameters: only Linear and Conv1d/2d/3d are factorised"


def _obstacle(model: nn.Module, module: nn.Module, layer: Layer, owners: dict[Tensor, list[nn.Module]]) -> str | None:
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own:
        return "its weight is computed by a hook (weight_norm, spectral_norm or pruning); remove it first"
    if not own["weight"].is_floating_point():
        return f"its weight is {own['weight'].dtype}: only real numbers are factorised"
    for leaf, parameter in own.items():
        for sharer in owners[parameter]:
            if sharer is not module:
                other = next(n for n, m in model.named_modules() if m is sharer)
                return f"its {leaf} is shared with {other!r}: factorising one would untie them and store both"
    if not layer.in_sizes:
        return "its forward never ran on the example inputs"
    for parent_name, parent in model.named_modules():
        if isinstance(parent, _READS_WEIGHTS) and any(m is module for m in parent.modules()):
            return f"{type(parent).__name__} {parent_name!r} reads this weight directly, so a replacement would not run"
    if not layer.methods:
        return METHODS["svd"].obstacle(layer.spec) or "no decomposition fits"
    return None


def _rest(model: nn.Module, layers: list[Layer], multiplies: int) -> Rest:
    taken = {p for layer in layers for p in module_at(model, layer.name).parameters()}
    outside = [p for p in model.parameters() if p not in taken]
    counted = sum(layer.spec.multiplies(size) for layer in layers for size in layer.in_sizes)
    return Rest(
        parameters=sum(p.numel() for p in outside),
        bytes=sum(p.numel() * p.element_size() for p in outside),
        multiplies=max(0, multiplies - counted),
        buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
    )
