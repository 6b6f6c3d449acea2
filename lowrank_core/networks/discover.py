"""discover: which layers a network has, which of them can be compressed, and what each costs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lowrank_core.errors import InvalidModel, LowRankError
from lowrank_core.layers.attention import PROJECTIONS
from lowrank_core.layers.computed import effective, kind_of
from lowrank_core.layers.data import Inputs, batch_size, call, evaluating, tensors
from lowrank_core.layers.recurrent import CELLS, KINDS, Dense, Recurrent, weight_shapes
from lowrank_core.layers.spec import LayerSpec, Size
from lowrank_core.methods import METHODS, Method
from lowrank_core.running.switches import plain_attention

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Embedding, nn.EmbeddingBag)
RESIZED = "called with an output_size, which a chain cannot pass on; set output_padding instead"
NEVER_RAN = "its forward never ran on the example inputs"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that can be compressed. in_sizes: one entry per call in one forward pass, () = never called.

    parameter: the name of its weight in its module; a recurrent module and an attention have several, each a layer of
    its own. rows: where the weight is a slice of the parameter. part: its name in the module, where that is another.
    transposed_weight: the module keeps it as (in, out), as the Conv1D of transformers does. tied: layers that share the
    weight and so the factors, each with its own bias. extra: numbers stored for a weight that is computed from others.
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
    def plain(self) -> bool:
        """Whether an nn.Sequential of layers of torch.nn can stand for it wherever the network is rebuilt."""
        return not (self.partial or self.tied or self.spec.bag or self.asked)

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


class _FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what PyTorch's FLOP counter knows of every operation.

    FlopCounterMode counts the same, but its first operation loads PyTorch's compiler, and that takes as long as loading
    PyTorch itself. What runs inside a higher-order operation is not counted.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, OpOverload):
            if func is not torch.ops.prim.device.default:
                with self:
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            out = func(*args, **kwargs)
            count = flop_registry.get(func.overloadpacket)
            self.total += 0 if count is None else count(*args, **kwargs, out_val=out)
            return out
        return func(*args, **kwargs)


def module_at(model: nn.Module, name: str) -> nn.Module:
    """The module of that layer name; a network that is one layer goes by the name of its type."""
    return model if is_whole(model, name) else model.get_submodule(name)


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
    return parameter if layer.rows is None else parameter[slice(*layer.rows)]


def _parameter(model: nn.Module, layer: Layer, name: str) -> Tensor:
    """The whole parameter that holds a layer's weight or bias, or what the layer computes in its place."""
    inside, _, leaf = name.rpartition(".")
    value = effective(module_at(model, layer.module).get_submodule(inside), leaf)
    if value is None:
        raise InvalidModel(f"{layer.name!r} has no {leaf}; open the model again, it is another one now.")
    return value


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
    parents = _parent_obstacles(model)
    calls: dict[nn.Module, list[Size]] = {}
    looks: dict[nn.Module, list[tuple[Size, Size]]] = {}
    runs: dict[nn.Module, list[list[int]]] = {}
    resized: set[nn.Module] = set()
    samples = batch_size(inputs)

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = [kwargs[name] for name in ("input", "query") if name in kwargs]
        given = (*args, *named, *kwargs.values())[0]
        if kind_of(module) in _TRANSPOSED and len(args) + len(kwargs) > 1:
            resized.add(module)
        elif type(module) in (*KINDS, *CELLS):
            runs.setdefault(module, []).append(_rows_by_step(module, given))
            calls.setdefault(module, [])
        elif type(module) is nn.MultiheadAttention:
            key = args[1] if len(args) > 1 else kwargs["key"]
            calls.setdefault(module, [])
            looks.setdefault(module, []).append((_tokens(given.shape, samples), _tokens(key.shape, samples)))
        elif isinstance(module, nn.EmbeddingBag):
            offsets = args[1] if len(args) > 1 else kwargs.get("offsets")
            bags = len(given) if offsets is None else len(offsets) - module.include_last_offset
            calls.setdefault(module, []).append(_tokens(torch.Size((bags, 1)), samples))
        else:
            calls.setdefault(module, []).extend(_sizes(module, given.shape, samples))

    stepping = (*KINDS, *CELLS)
    maps = [m for m in names if _is_map(m) or type(m) in (*stepping, nn.MultiheadAttention)]
    readers = _Readers(model, [module for module in maps if _is_map(module)])
    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in maps]
    try:
        with evaluating(model), _countable(model), readers, _FlopCounter() as counter:
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
    settled: set[nn.Module] = set()

    def obstacle(module: nn.Module, group: list[nn.Module]) -> str | None:
        if module in resized:
            return RESIZED
        found = _computed_obstacle(module) or _shared(model, module, owners, group) or _obstacle(module)
        if found or (module not in calls and module is group[0]):
            return found or NEVER_RAN
        return parents.get(module) or readers.found.get(module) or _no_method(module)

    def layer_of(module: nn.Module) -> Layer:
        return Layer(
            name=names[module][0],
            type=kind_of(module).__name__,
            spec=_spec(module),
            in_sizes=tuple(calls.get(module, ())),
            itemsize=next((p.element_size() for p in module.parameters()), 4),
            aliases=tuple(names[module][1:]),
            transposed_weight=_is_conv1d(module),
            asked=module in readers.asked,
            extra=sum(p.numel() for p in module.parameters()) - _spec(module).parameters,
        )

    for module in names:
        if module in settled or not _holds_weights(module):
            continue
        name = names[module][0]
        if type(module) in (*stepping, nn.MultiheadAttention):
            if isinstance(module, nn.MultiheadAttention):
                reason = _attention_obstacle(module)
            else:
                assert isinstance(module, Dense)
                reason = _recurrent_obstacle(module)
            reason = reason or _shared(model, module, owners) or (None if module in calls else NEVER_RAN)
            if reason:
                skipped.append(Skipped(name, type(module).__name__, reason))
            elif isinstance(module, nn.MultiheadAttention):
                layers += _projections(model, module, names[module], looks[module])
                settled.add(module.out_proj)
            elif isinstance(module, Dense):
                layers += _weights(model, module, names[module], runs[module], samples)
            continue
        if not _is_map(module):
            skipped.append(Skipped(name, kind_of(module).__name__, _why_not_a_map(module)))
            continue
        group = _tied(module, owners, calls)
        settled.update(*(set(member.modules()) for member in group))
        first, *others = (layer_of(member) for member in group)
        reasons = [obstacle(member, group) for member in group]
        if not any(reasons):
            beside = f" with {', '.join(other.name for other in others)}" if others else ""
            layers.append(replace(first, type=first.type + beside, tied=tuple(others)))
            continue
        at_fault = names[group[[bool(reason) for reason in reasons].index(True)]][0]
        for layer, reason in zip((first, *others), reasons, strict=True):
            reason = reason or f"its weight is shared with {at_fault!r}, which stays as it is"
            skipped.append(Skipped(layer.name, layer.type, reason))

    order = {module: position for position, module in enumerate(calls)}
    layers.sort(key=lambda layer: order[module_at(model, layer.module)])
    return ModelProfile(
        fingerprint=fingerprint(model),
        layers=tuple(layers),
        skipped=tuple(skipped),
        rest=_rest(model, layers, counter.total // 2 // samples),
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
    """Take the paths that PyTorch's FLOP counter can see: no fused attention, no fused recurrent kernels.

    Weights that a parametrization computes are computed before, so that they count for no sample.
    """
    parametrized = [module for module in model.modules() if parametrize.is_parametrized(module)]
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    unfused = _unfused() if recurrent else nullcontext()
    with plain_attention(), sdpa_kernel(SDPBackend.MATH), unfused, parametrize.cached():
        for module in parametrized:  # once, before anybody counts
            for name, _ in module.get_submodule("parametrizations").named_children():
                getattr(module, name)
        yield


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
    return kind_of(module) in _LINEAR_MAPS or _is_conv1d(module)


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


def _attention_obstacle(attention: nn.MultiheadAttention) -> str | None:
    own, output = attention._parameters, attention.out_proj
    if not attention._qkv_same_embed_dim:
        return "its keys or values have another width (kdim, vdim), so q, k, v are no slices of one matrix"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "add_bias_kv and add_zero_attn lengthen its keys and values; only plain attention is factorised"
    weight = own.get("in_proj_weight")
    if weight is None or "weight" not in output._parameters:
        return "a weight of it is computed by a hook or a parametrization; remove it first"
    return None if weight.is_floating_point() else f"its weight is {weight.dtype}: only real numbers are factorised"


def _weights(
    model: nn.Module, rnn: nn.RNNBase | nn.RNNCellBase, names: list[str], runs: list[list[int]], samples: int
) -> Iterator[Layer]:
    """The weights of a recurrent module in the order in which they are first used: input, hidden, projection.

    runs: of each call the rows at each step. The input weight sees a whole sequence at once, the others see one step
    after the other.
    """
    whole = [-(-sum(run) // samples) for run in runs]
    at_once: list[Size] = [() if tokens == 1 else (tokens,) for tokens in whole]
    by_step: list[Size] = []
    for run, tokens in zip(runs, whole, strict=True):
        even = all(n % samples == 0 for n in run)
        by_step += [() if n == samples else (n // samples,) for n in run] if even else [(tokens,)]
    prefixes = ["" if module_at(model, name) is model else f"{name}." for name in names]
    gates = Recurrent.GATES[(KINDS | CELLS)[type(rnn)]]
    for parameter, (rows, columns, biased) in weight_shapes(rnn).items():
        yield Layer(
            name=f"{prefixes[0]}{parameter}",
            type=type(rnn).__name__,
            spec=LayerSpec(columns, rows, bias=biased, gates=0 if parameter.startswith("weight_hr") else gates),
            in_sizes=tuple(at_once if parameter.startswith("weight_ih") else by_step),
            itemsize=rnn.get_parameter(parameter).element_size(),
            aliases=tuple(f"{prefix}{parameter}" for prefix in prefixes[1:]),
            parameter=parameter,
        )


def _rows_by_step(module: nn.Module, given: Tensor | PackedSequence) -> list[int]:
    """How many rows go through a recurrent module at each step of one call."""
    if isinstance(given, PackedSequence):
        return [int(rows) for rows in given.batch_sizes]
    if isinstance(module, nn.RNNCellBase):
        return [given.shape[:-1].numel()]
    if given.ndim == 2:
        return [1] * given.shape[0]
    rows, length = given.shape[:2] if module.batch_first else (given.shape[1], given.shape[0])
    return [rows] * length


def _recurrent_obstacle(module: Dense) -> str | None:
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    if not set(weight_shapes(module)) <= set(own):
        return "a weight of it is computed by a hook (weight_norm, spectral_norm or pruning); remove it first"
    if len(set(own.values())) < len(own):
        return "two of its weights are one tensor: factorising one would untie them and store both"
    if not all(parameter.is_floating_point() for parameter in own.values()):
        return f"its weights are {next(iter(own.values())).dtype}: only real numbers are factorised"
    return None


def _shared(
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
                return f"its {leaf} is shared with {other!r}: factorising one would untie them and store both"
    return None


def _tied(module: nn.Module, owners: dict[Tensor, list[nn.Module]], calls: Collection[nn.Module]) -> list[nn.Module]:
    """The modules that hold this one's weight and can share its factors: embeddings first, then Linear layers.

    The first stands for all. [module] where the weight is its own, or held by anything else.
    """
    weight = module._parameters.get("weight")
    sharers = [] if weight is None else owners[weight]
    if not all(type(m) in (nn.Embedding, nn.Linear) for m in sharers) or module not in sharers:
        return [module]
    return sorted(sharers, key=lambda m: (type(m) is nn.Linear, m not in calls))


def _holds_weights(module: nn.Module) -> bool:
    """Whether it has parameters of its own, or numbers packed away as quantised modules have them."""
    own = any(p is not None for p in module._parameters.values())
    return own or hasattr(module, "parametrizations") or _is_quantised(module)


def _is_quantised(module: nn.Module) -> bool:
    return hasattr(module, "_packed_params") or type(module).__module__.startswith("torch.ao.nn.quantized")


def _why_not_a_map(module: nn.Module) -> str:
    parent = kind_of(module).__mro__[1].__name__
    if _is_quantised(module):
        return "its weights are quantised integers; compress the network first, then quantise"
    if kind_of(module) is not type(module) or isinstance(module, nn.utils.parametrize.ParametrizationList):
        return "its weight is computed by a parametrization; remove it first (torch.nn.utils.parametrize)"
    if isinstance(module, (*_LINEAR_MAPS, nn.MultiheadAttention)):
        return f"a special kind of {parent}: its parent may read the weight directly"
    if isinstance(module, (*KINDS, *CELLS)):
        return f"a special kind of {parent}: what it does with its weights is its own affair"
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return "normalisation: one number per channel, nothing to factorise"
    if type(module).__name__ in ("InterpreterModule", "Program"):
        return "a part of an exported graph that does more with its weights than one linear map"
    return f"{type(module).__name__} holds bare parameters: it is none of the layers that are factorised"


def _computed_obstacle(module: nn.Module) -> str | None:
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


def _obstacle(module: nn.Module) -> str | None:
    weight = effective(module, "weight")
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


def _parent_obstacles(model: nn.Module) -> dict[nn.Module, str]:
    """What is in the way of modules inside one that reads their weights."""
    found: dict[nn.Module, str] = {}
    for name, parent in model.named_modules():
        if _reads_weights(parent):
            reason = f"{type(parent).__name__} {name!r} reads this weight directly, so a replacement would not run"
            for module in parent.modules():
                found.setdefault(module, reason)
    return found


def _no_method(module: nn.Module) -> str | None:
    """Why no decomposition fits."""
    spec = _spec(module)
    reasons = {method.obstacle(spec) for method in METHODS.values()}
    if None in reasons:
        return None
    return METHODS["spatial_svd" if len(spec.kernel) == 2 else "svd"].obstacle(spec)


class _Readers(TorchFunctionMode):
    """Who computes with a layer's weight outside that layer's own forward; asking for its type or shape is free."""

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.found: dict[nn.Module, str] = {}
        self.asked: set[nn.Module] = set()
        self._names = {module: name for name, module in model.named_modules()}
        self._open: list[nn.Module] = []
        self._owners: dict[Tensor, list[nn.Module]] = {}
        for layer in layers:
            for parameter in layer.parameters():
                self._owners.setdefault(parameter, []).append(layer)
        self._hooks = ExitStack()

    def __enter__(self) -> _Readers:
        for module in self._names:
            if not isinstance(module, torch.jit.ScriptModule):
                before = module.register_forward_pre_hook(lambda m, _: self._open.append(m), prepend=True)
                self._hooks.callback(before.remove)
                self._hooks.callback(module.register_forward_hook(lambda *_: self._close()).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.close()

    def _close(self) -> None:
        self._open.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors((args, kwargs)):
            owners = self._owners.get(tensor, [])
            if not owners or any(owner in self._open for owner in owners):
                continue
            if not tensors(result) or (func in (Tensor.to, Tensor.type_as) and tensor is not args[0]):
                self.asked.update(owners)
                continue
            reader = self._open[-1] if self._open else next(iter(self._names))
            name = f"{type(reader).__name__} {self._names[reader]!r}".removesuffix(" ''")
            reason = f"{name} also computes with its weight or bias directly, and factors have none to read"
            self.found |= dict.fromkeys(owners, reason)
        return result


def _reads_weights(module: nn.Module) -> bool:
    """Whether it may read its children's weights instead of calling them, and is not what `attention` can handle."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return type(module).forward is not nn.TransformerEncoderLayer.forward
    return isinstance(module, nn.MultiheadAttention)


def _rest(model: nn.Module, layers: list[Layer], multiplies: int) -> Rest:
    each = [one for layer in layers for one in (layer, *layer.tied)]
    taken = {p for layer in each for p in module_at(model, layer.module).parameters()}
    outside = [p for p in model.parameters() if p not in taken]
    counted = sum(layer.spec.multiplies(size) for layer in each for size in layer.in_sizes)
    return Rest(
        parameters=sum(p.numel() for p in outside),
        bytes=sum(p.numel() * p.element_size() for p in outside),
        multiplies=max(0, multiplies - counted),
        buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
    )
