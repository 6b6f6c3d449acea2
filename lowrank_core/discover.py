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

from lowrank_core.attention import PROJECTIONS
from lowrank_core.data import Inputs, batch_size, call, evaluating
from lowrank_core.errors import InvalidModel, LowRankError
from lowrank_core.layers import LayerSpec, Size
from lowrank_core.methods import METHODS, Method
from lowrank_core.recurrent import KINDS, weight_shapes

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Embedding)
RESIZED = "called with an output_size, which a chain cannot pass on; set output_padding instead"
NEVER_RAN = "its forward never ran on the example inputs"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that can be compressed. in_sizes: one entry per call in one forward pass, () = never called.

    parameter: the name of its weight in its module; a recurrent module and an attention have several, each a layer of
    its own. rows: where the weight is a slice of the parameter. part: its name in the module, where that is another.
    transposed_weight: the module keeps it as (in, out), as the Conv1D of transformers does.
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

    @property
    def module(self) -> str:
        """The name of the module that holds the weight: the layer's own, or 'rnn' of 'rnn.weight_hh_l0'."""
        if not self.partial:
            return self.name
        return self.name.removesuffix(self.part or self.parameter).removesuffix(".")

    @property
    def partial(self) -> bool:
        """Whether the layer is one of several weights of a recurrent module or an attention."""
        return self.parameter != "weight"

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
    return model if is_whole(model, name) else model.get_submodule(name)


def is_whole(model: nn.Module, name: str) -> bool:
    """Whether the layer of that name is the whole network."""
    return name == type(model).__name__ and not hasattr(model, name)


def weight_at(model: nn.Module, layer: Layer) -> Tensor:
    """A layer's weight in its network, in the shape of its spec: a parameter, or some rows of one."""
    weight = _rows(_parameters(model, layer)[0], layer)
    return weight.mT if layer.transposed_weight else weight


def bias_at(model: nn.Module, layer: Layer) -> Tensor | None:
    """A layer's bias in its network, where it has one."""
    return _rows(_parameters(model, layer)[1], layer) if layer.spec.bias else None


def _rows(parameter: Tensor, layer: Layer) -> Tensor:
    return parameter if layer.rows is None else parameter[slice(*layer.rows)]


def _parameters(model: nn.Module, layer: Layer) -> list[nn.Parameter]:
    """The whole parameters that hold a layer's weight and, where it has one, its bias."""
    module = module_at(model, layer.module)
    names = (layer.parameter, layer.parameter.replace("weight", "bias"))
    return [module.get_parameter(name) for name in names[: 1 + layer.spec.bias]]


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
    looks: dict[nn.Module, list[tuple[Size, Size]]] = {}
    packed: set[nn.Module] = set()
    resized: set[nn.Module] = set()
    samples = batch_size(inputs)

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = [kwargs[name] for name in ("input", "query") if name in kwargs]
        given = (*args, *named, *kwargs.values())[0]
        if not isinstance(given, Tensor):
            packed.add(module)
        elif type(module) in _TRANSPOSED and len(args) + len(kwargs) > 1:
            resized.add(module)
        elif type(module) in KINDS:
            calls.setdefault(module, []).append(tuple(given.shape))
        elif type(module) is nn.MultiheadAttention:
            key = args[1] if len(args) > 1 else kwargs["key"]
            calls.setdefault(module, [])
            looks.setdefault(module, []).append((_tokens(given.shape, samples), _tokens(key.shape, samples)))
        else:
            calls.setdefault(module, []).extend(_sizes(module, given.shape, samples))

    maps = [module for module in names if _is_map(module) or type(module) in (*KINDS, nn.MultiheadAttention)]
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
    projected: set[nn.Module] = set()
    for module in names:
        own = [p for p in module.parameters(recurse=False) if p is not None]
        if not own and not getattr(module, "parametrizations", None):
            continue
        name, *aliases = names[module]
        if isinstance(module, nn.RNNBase) and type(module) in KINDS:
            reason = _recurrent_obstacle(model, module, owners, called=module in calls, packed=module in packed)
            if reason:
                skipped.append(Skipped(name, type(module).__name__, reason))
            else:
                layers += _weights(model, module, names[module], calls[module], samples)
            continue
        if type(module) is nn.MultiheadAttention:
            reason = _attention_obstacle(model, module, owners) or (None if module in calls else NEVER_RAN)
            if reason:
                skipped.append(Skipped(name, type(module).__name__, reason))
            else:
                layers += _projections(model, module, names[module], looks[module])
                projected.add(module.out_proj)
            continue
        if module in projected:
            continue
        if not _is_map(module):
            skipped.append(Skipped(name, type(module).__name__, _why_not_a_map(module)))
            continue
        spec = _spec(module)
        layer = Layer(
            name=name,
            type=type(module).__name__,
            spec=spec,
            in_sizes=tuple(calls.get(module, ())),
            itemsize=own[0].element_size() if own else 4,
            aliases=tuple(aliases),
            transposed_weight=_is_conv1d(module),
        )
        reason = RESIZED if module in resized else _obstacle(model, module, layer, owners)
        if reason:
            skipped.append(Skipped(name, layer.type, reason))
        else:
            layers.append(layer)

    order = {module: position for position, module in enumerate(calls)}
    layers.sort(key=lambda layer: order[module_at(model, layer.module)])
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


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is the Conv1D of transformers, as in GPT-2: a Linear whose weight is (in, out)."""
    known = type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
    return known and "weight" in module._parameters


def _is_map(module: nn.Module) -> bool:
    return type(module) in _LINEAR_MAPS or _is_conv1d(module)


def _spec(module: nn.Module) -> LayerSpec:
    if _is_conv1d(module):
        inputs, outputs = module.get_parameter("weight").shape
        return LayerSpec(inputs, outputs, bias=module._parameters.get("bias") is not None)
    return LayerSpec.of(module)


def _sizes(module: nn.Module, shape: torch.Size, samples: int) -> list[Size]:
    """Input extents of one call, for one sample: a Linear's tokens, or a convolution's window positions."""
    dimensions = len(_spec(module).kernel)
    if not dimensions:
        rows = shape.numel() if isinstance(module, nn.Embedding) else shape[:-1].numel()
        return [_tokens(torch.Size((rows, 1)), samples)]
    if len(shape) == dimensions + 1:
        return [tuple(shape[1:])]
    return [tuple(shape[2:])] * max(1, shape[0] // samples)


def _tokens(shape: torch.Size, samples: int) -> Size:
    """The tokens of one sample in a tensor (..., features)."""
    tokens = -(-shape[:-1].numel() // samples)
    return () if tokens == 1 else (tokens,)


def _projections(
    model: nn.Module, attention: nn.MultiheadAttention, names: list[str], looks: list[tuple[Size, Size]]
) -> Iterator[Layer]:
    """q, k, v as rows of in_proj_weight, and the output; looks: of each call the tokens that ask, and are looked at."""
    prefixes = ["" if module_at(model, name) is model else f"{name}." for name in names]
    width, biased = attention.embed_dim, attention.in_proj_bias is not None
    for number, part in enumerate(PROJECTIONS):
        inside = part != "out_proj"
        yield Layer(
            name=f"{prefixes[0]}{part}",
            type=type(attention).__name__,
            spec=LayerSpec(width, width, bias=biased),
            in_sizes=tuple(sizes[part in ("in_proj.k", "in_proj.v")] for sizes in looks),
            itemsize=attention.in_proj_weight.element_size(),
            aliases=tuple(f"{prefix}{part}" for prefix in prefixes[1:]),
            parameter="in_proj_weight" if inside else "out_proj.weight",
            rows=(number * width, (number + 1) * width) if inside else None,
            part=part,
        )


def _attention_obstacle(
    model: nn.Module, attention: nn.MultiheadAttention, owners: dict[Tensor, list[nn.Module]]
) -> str | None:
    own, output = attention._parameters, attention.out_proj
    if not attention._qkv_same_embed_dim:
        return "its keys or values have another width (kdim, vdim), so q, k, v are no slices of one matrix"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "add_bias_kv and add_zero_attn lengthen its keys and values; only plain attention is factorised"
    held = {name: parameter for name, parameter in own.items() if parameter is not None}
    if "in_proj_weight" not in held or "weight" not in output._parameters:
        return "a weight of it is computed by a hook or a parametrization; remove it first"
    if not held["in_proj_weight"].is_floating_point():
        return f"its weight is {held['in_proj_weight'].dtype}: only real numbers are factorised"
    beside = {name: parameter for name, parameter in output._parameters.items() if parameter is not None}
    return _shared(model, attention, held, owners) or _shared(model, output, beside, owners)


def _weights(model: nn.Module, rnn: nn.RNNBase, names: list[str], shapes: list[Size], samples: int) -> Iterator[Layer]:
    """The weights of a recurrent module in the order in which they are first used: input, hidden, projection.

    The input weight sees a whole sequence at once, the others see one step after the other.
    """
    steps_first = []
    for shape in shapes:
        length, rows = (shape[0], 1) if len(shape) == 2 else (shape[1], shape[0]) if rnn.batch_first else shape[:2]
        steps_first.append((length, rows))
    whole = [-(-length * rows // samples) for length, rows in steps_first]
    at_once: list[Size] = [() if tokens == 1 else (tokens,) for tokens in whole]
    by_step: list[Size] = []
    for (length, rows), tokens in zip(steps_first, whole, strict=True):
        each = rows // samples
        by_step += [() if each == 1 else (each,)] * length if each * samples == rows else [(tokens,)]
    prefixes = ["" if module_at(model, name) is model else f"{name}." for name in names]
    for parameter, (rows, columns, biased) in weight_shapes(rnn).items():
        yield Layer(
            name=f"{prefixes[0]}{parameter}",
            type=type(rnn).__name__,
            spec=LayerSpec(columns, rows, bias=biased),
            in_sizes=tuple(at_once if parameter.startswith("weight_ih") else by_step),
            itemsize=rnn.get_parameter(parameter).element_size(),
            aliases=tuple(f"{prefix}{parameter}" for prefix in prefixes[1:]),
            parameter=parameter,
        )


def _recurrent_obstacle(
    model: nn.Module, rnn: nn.RNNBase, owners: dict[Tensor, list[nn.Module]], *, called: bool, packed: bool
) -> str | None:
    own = {name: parameter for name, parameter in rnn._parameters.items() if parameter is not None}
    if packed:
        return "called with packed sequences; give it padded tensors, and its weights can be compressed"
    if not set(weight_shapes(rnn)) <= set(own):
        return "a weight of it is computed by a hook (weight_norm, spectral_norm or pruning); remove it first"
    if len(set(own.values())) < len(own):
        return "two of its weights are one tensor: factorising one would untie them and store both"
    return _shared(model, rnn, own, owners) or (None if called else NEVER_RAN)


def _shared(
    model: nn.Module, module: nn.Module, own: dict[str, nn.Parameter], owners: dict[Tensor, list[nn.Module]]
) -> str | None:
    for leaf, parameter in own.items():
        for sharer in owners[parameter]:
            if sharer is not module:
                other = next(n for n, m in model.named_modules() if m is sharer)
                return f"its {leaf} is shared with {other!r}: factorising one would untie them and store both"
    return None


def _why_not_a_map(module: nn.Module) -> str:
    if getattr(module, "parametrizations", None) or isinstance(module, nn.utils.parametrize.ParametrizationList):
        return "its weight is computed by a parametrization; remove it first (torch.nn.utils.parametrize)"
    if isinstance(module, (*_LINEAR_MAPS, nn.MultiheadAttention)):
        return f"a special kind of {type(module).__mro__[1].__name__}: its parent may read the weight directly"
    if isinstance(module, tuple(KINDS)):
        return f"a special kind of {type(module).__mro__[1].__name__}: what it does with its weights is its own affair"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "a single recurrent step: only whole LSTM, GRU and RNN modules are factorised"
    if isinstance(module, nn.EmbeddingBag):
        return "a table whose rows are summed as they are looked up; only Embedding is factorised"
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return "normalisation: one number per channel, nothing to factorise"
    if type(module).__name__ in ("InterpreterModule", "Program"):
        return "a part of an exported graph that does more with its weights than one linear map"
    return f"{type(module).__name__} holds bare parameters: it is none of the layers that are factorised"


def _obstacle(model: nn.Module, module: nn.Module, layer: Layer, owners: dict[Tensor, list[nn.Module]]) -> str | None:
    own = dict(module.named_parameters(recurse=False))
    if "weight" not in own:
        return "its weight is computed by a hook (weight_norm, spectral_norm or pruning); remove it first"
    if not own["weight"].is_floating_point():
        return f"its weight is {own['weight'].dtype}: only real numbers are factorised"
    if reason := _shared(model, module, own, owners):
        return reason
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return f"max_norm={module.max_norm:g} rescales its rows as they are looked up; set it to None after training"
    if not layer.in_sizes:
        return NEVER_RAN
    for parent_name, parent in model.named_modules():
        if _reads_weights(parent) and any(m is module for m in parent.modules()):
            return f"{type(parent).__name__} {parent_name!r} reads this weight directly, so a replacement would not run"
    if not layer.methods:
        return METHODS["svd"].obstacle(layer.spec) or "no decomposition fits"
    return None


def _reads_weights(module: nn.Module) -> bool:
    """Whether it may read its children's weights instead of calling them, and is not what `attention` can handle."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return type(module).forward is not nn.TransformerEncoderLayer.forward
    return isinstance(module, nn.MultiheadAttention)


def _rest(model: nn.Module, layers: list[Layer], multiplies: int) -> Rest:
    taken = {p for layer in layers for p in _parameters(model, layer)}
    outside = [p for p in model.parameters() if p not in taken]
    counted = sum(layer.spec.multiplies(size) for layer in layers for size in layer.in_sizes)
    return Rest(
        parameters=sum(p.numel() for p in outside),
        bytes=sum(p.numel() * p.element_size() for p in outside),
        multiplies=max(0, multiplies - counted),
        buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
    )
