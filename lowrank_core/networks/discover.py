"""discover: which layers a network has, which of them can be compressed, and what each costs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lowrank_core.errors import InvalidModel, LowRankError
from lowrank_core.layers.attention import PROJECTIONS
from lowrank_core.layers.computed import kind_of
from lowrank_core.layers.data import Inputs, batch_size, call, evaluating
from lowrank_core.layers.recurrent import CELLS, KINDS, Dense, Recurrent, weight_shapes
from lowrank_core.layers.spec import LayerSpec, Size
from lowrank_core.networks.obstacles import (
    NEVER_RAN,
    RESIZED,
    attention_obstacle,
    computed_obstacle,
    is_quantised,
    method_obstacle,
    parent_obstacles,
    recurrent_obstacle,
    shared_obstacle,
    weight_obstacle,
    why_not_a_map,
)
from lowrank_core.networks.profile import (
    TRANSPOSED,
    Layer,
    ModelProfile,
    Rest,
    Skipped,
    check_finite,
    fingerprint,
    is_conv1d,
    is_map,
    module_at,
    spec_of,
)
from lowrank_core.networks.watching import FlopCounter, Readers, countable


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
    parents = parent_obstacles(model)
    calls: dict[nn.Module, list[Size]] = {}
    looks: dict[nn.Module, list[tuple[Size, Size]]] = {}
    runs: dict[nn.Module, list[list[int]]] = {}
    resized: set[nn.Module] = set()
    samples = batch_size(inputs)

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = [kwargs[name] for name in ("input", "query") if name in kwargs]
        given = (*args, *named, *kwargs.values())[0]
        if kind_of(module) in TRANSPOSED and len(args) + len(kwargs) > 1:
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
    maps = [m for m in names if is_map(m) or type(m) in (*stepping, nn.MultiheadAttention)]
    readers = Readers(model, [module for module in maps if is_map(module)])
    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in maps]
    try:
        with evaluating(model), countable(model), readers, FlopCounter() as counter:
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
        found = computed_obstacle(module) or shared_obstacle(model, module, owners, group) or weight_obstacle(module)
        if found or (module not in calls and module is group[0]):
            return found or NEVER_RAN
        return parents.get(module) or readers.found.get(module) or method_obstacle(module)

    def layer_of(module: nn.Module) -> Layer:
        return Layer(
            name=names[module][0],
            type=kind_of(module).__name__,
            spec=spec_of(module),
            in_sizes=tuple(calls.get(module, ())),
            itemsize=next((p.element_size() for p in module.parameters()), 4),
            aliases=tuple(names[module][1:]),
            transposed_weight=is_conv1d(module),
            asked=module in readers.asked,
            extra=sum(p.numel() for p in module.parameters()) - spec_of(module).parameters,
        )

    for module in names:
        if module in settled or not _holds_weights(module):
            continue
        name = names[module][0]
        if type(module) in (*stepping, nn.MultiheadAttention):
            if isinstance(module, nn.MultiheadAttention):
                reason = attention_obstacle(module)
            else:
                assert isinstance(module, Dense)
                reason = recurrent_obstacle(module)
            reason = reason or shared_obstacle(model, module, owners) or (None if module in calls else NEVER_RAN)
            if reason:
                skipped.append(Skipped(name, type(module).__name__, reason))
            elif isinstance(module, nn.MultiheadAttention):
                layers += _projections(model, module, names[module], looks[module])
                settled.add(module.out_proj)
            elif isinstance(module, Dense):
                layers += _weights(model, module, names[module], runs[module], samples)
            continue
        if not is_map(module):
            skipped.append(Skipped(name, kind_of(module).__name__, why_not_a_map(module)))
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
    dimensions = len(spec_of(module).kernel)
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
    return own or hasattr(module, "parametrizations") or is_quantised(module)


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
