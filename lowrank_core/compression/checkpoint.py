"""Checkpoints: the weights of a compressed network, and in the same file the layers they belong to.

A safetensors file whose metadata key "lowrank" lists plain `torch.nn` layers with their arguments, so that a reader
needs neither the decomposition nor this package. Structure first, then weights: nothing is factorised on loading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank_core.compression.apply import partial_ranks, replacement_stages
from lowrank_core.compression.precision import BiasFolded
from lowrank_core.errors import InvalidFile, InvalidModel, InvalidPlan
from lowrank_core.layers.attention import KIND, attention_arguments, build_attention, without_fused_paths
from lowrank_core.layers.computed import copied, with_stand_ins
from lowrank_core.layers.experts import KIND as EXPERTS
from lowrank_core.layers.experts import build_experts, expert_arguments
from lowrank_core.layers.parts import (
    Attention,
    Chain,
    Experts,
    IdentityColumns,
    IdentityRows,
    Product,
    Recurrent,
)
from lowrank_core.layers.recurrent import OPS, arguments, build_recurrent, op_of
from lowrank_core.layers.spec import LayerSpec, build_part, sharing
from lowrank_core.networks.filling import filled, filled_by
from lowrank_core.networks.profile import ModelProfile, fingerprint, module_at
from lowrank_core.plans.plan import RankPlan, read_plan
from lowrank_core.store.as_json import whole_characters
from lowrank_core.store.trained import WeightSets, read_sets
from lowrank_core.version import versions

FORMAT = "lowrank-checkpoint/1"
KEY = "lowrank"
PRODUCT = "Product"
"""What stands for a weight that functions are given."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A network rebuilt from a file. plan: None where the file holds the weights of a dense network."""

    model: nn.Module
    plan: RankPlan | None = None
    correction: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    op: str
    args: dict[str, Any]


class _Product(msgspec.Struct, forbid_unknown_fields=True):
    parts: list[_Part]
    turned: bool


class _Layer(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parts: list[_Part]


class _About(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    layers: list[_Layer]
    ties: dict[str, str]
    plan: msgspec.Raw
    provenance: dict[str, Any]


class _Header(msgspec.Struct):
    format: str = ""


def write_checkpoint(
    model: nn.Module,
    profile: ModelProfile,
    plan: RankPlan,
    path: Path,
    *,
    plan_document: str,
    provenance: dict[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write the state_dict of a compressed copy and the list of its replaced layers; tied tensors once.

    dtype: what its real parameters are written in. A network whose factors are multiplied out has no replaced layers.
    """
    state, ties = untied(model, dtype)
    layers = listed_layers(model, profile, plan)
    about = {
        "format": FORMAT,
        "layers": layers,
        "ties": ties,
        "plan": json.loads(plan_document),
        "provenance": {"versions": versions(), **provenance},
    }
    told = whole_characters(json.dumps(about, sort_keys=True, ensure_ascii=False, allow_nan=False))
    save_file(state, path, metadata={KEY: told})


def listed_layers(model: nn.Module, profile: ModelProfile, plan: RankPlan) -> list[dict[str, Any]]:
    """The replaced layers of a compressed copy, {"name", "parts": [{"op", "args"}]} each, as a loader builds them."""
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = []
    for name, _ in plan.choices:
        layer = profile.layer(name)
        if layer.partial:
            continue
        stages = replacement_stages(layer, plan)
        for each in (layer, *layer.tied):
            place = each.name if each.name in modules else ""  # "": the network is that one layer
            place = f"{each.module if each.module in modules else ''}.{each.parameter}" if each.read else place
            chain = modules.get(place := place.removeprefix("."))
            if isinstance(chain, Chain):
                parts = [{"op": stage.op, "args": stage.arguments} for stage in sharing(stages, each.spec)]
                if isinstance(chain, Product):
                    parts = [{"op": PRODUCT, "args": {"parts": parts, "turned": chain.turned}}]
                layers.append({"name": place, "parts": parts})
    for name, ranks in partial_ranks(profile, plan).items():
        module = module_at(model, name)
        if isinstance(module, Attention):
            part = {"op": KIND, "args": {**attention_arguments(module), "ranks": ranks}}
        elif isinstance(module, Recurrent):
            part = {"op": op_of(module), "args": {**arguments(module), "ranks": ranks}}
        elif isinstance(module, Experts):
            part = {"op": EXPERTS, "args": {**expert_arguments(module), "ranks": ranks}}
        else:
            continue
        layers.append({"name": name, "parts": [part]})
    for name, module in model.named_modules():
        if isinstance(module, BiasFolded):
            layers.append({"name": name, "parts": [_PAD, {"op": "Linear", "args": LayerSpec.of(module[1]).arguments}]})
    return layers


_PAD = {"op": "ConstantPad1d", "args": {"padding": [0, 1], "value": 1.0}}
"""Extends an input by a one, in front of a weight that holds its bias as last column."""


def load_checkpoint(model: nn.Module, path: str | Path) -> Checkpoint:
    """A copy of `model`, as `build_model()` returns it, with the layers and weights of the file.

    `model` is not changed. The file is a checkpoint of this product, or a state_dict of the dense network
    (safetensors, .pt, .pth).

    Raises InvalidFile where it is damaged, unsafe, of another model, or where a weight is missing or does not fit.
    """
    path = Path(path)
    sets, metadata = read_weights(path)
    if metadata is None:
        return Checkpoint(filled_by(copied(model), sets, lambda tensor: tensor)[0])
    state = dict(sets.sets[""])
    about = _about(metadata, path)
    try:
        plan = read_plan(bytes(about.plan))
    except InvalidPlan as error:
        raise InvalidFile(f"{path} carries an unreadable plan: {error}") from error
    ours = fingerprint(model)
    if plan.plan.fingerprint != ours:
        raise InvalidFile(
            f"{path} was made from the model {plan.model_name!r} ({plan.plan.fingerprint[:19]}...), but this model is "
            f"{ours[:19]}...; open the model it was made from."
        )
    for alias, name in about.ties.items():
        if name not in state or alias in state:
            raise InvalidFile(f"{path} ties {alias!r} to {name!r}, which does not fit its tensors; export it again.")
    state |= {alias: state[name] for alias, name in about.ties.items()}
    compressed = filled(_restructured(model, about.layers, state, path), state, path)
    for alias, name in about.ties.items():
        owner, _, leaf = alias.rpartition(".")
        if leaf in compressed.get_submodule(owner)._parameters:
            compressed.get_submodule(owner).register_parameter(leaf, compressed.get_parameter(name))
    for name, module in compressed.named_modules():
        if isinstance(module, IdentityRows | IdentityColumns) and sorted(module.order.tolist()) != [
            *range(module.wide)
        ]:
            raise InvalidFile(f"{path}: the order of {name!r} is no permutation; export it again.")
    return Checkpoint(compressed, plan.plan, plan.correction or None, about.provenance)


def untied(model: nn.Module, dtype: torch.dtype | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state_dict with each shared tensor once, contiguous, and the other names of shared tensors."""
    narrowed = {name for name, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()}
    state: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise InvalidModel(f"{name!r} is {type(value).__name__}, not a tensor; safetensors holds tensors only.")
        identity = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and identity in first:
            ties[name] = first[identity]
            continue
        first[identity] = name
        state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        if dtype is not None and name in narrowed:
            state[name] = state[name].to(dtype)
    return state, ties


def read_weights(path: Path) -> tuple[WeightSets[Tensor], str | None]:
    """Tensors by name and our metadata, None where there is none; the kind of file is told by its first bytes.

    Raises InvalidFile for a file of another kind, or one that is damaged.
    """
    if not path.is_file():
        raise InvalidFile(f"there is no file {path}.")
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        try:
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return WeightSets(path, {"": state}), (file.metadata() or {}).get(KEY)
        except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
            raise InvalidFile(f"{path} is cut short or damaged ({error}); copy or export it again.") from error
    if head.startswith((b"PK", b"\x80")):
        return read_sets(path), None
    raise InvalidFile(f"{path} is neither safetensors nor a file of torch.save; give a checkpoint or a state_dict.")


def _about(metadata: str, path: Path) -> _About:
    try:
        header = msgspec.json.decode(metadata, type=_Header)
        if header.format != FORMAT:
            raise InvalidFile(
                f"{path}: the checkpoint format must be {FORMAT!r}, but got {header.format!r}; "
                "open it with the Rank Explorer that wrote it, or update this one."
            )
        return msgspec.json.decode(metadata, type=_About)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidFile(f"{path}: its list of layers cannot be read ({error}); export it again.") from error


def _restructured(model: nn.Module, layers: list[_Layer], state: dict[str, Tensor], path: Path) -> nn.Module:
    """A copy with the listed layers in place, their weights on the meta device where they take no memory.

    First those of the network, then those inside of what replaced them.
    """
    rebuilt = model
    inside = [layer for layer in layers if layer.parts and layer.parts[0].op == _PAD["op"]]
    for listed in ([layer for layer in layers if layer not in inside], inside):
        memo: dict[int, Any] = {}
        stand_ins: dict[str, nn.Module] = {}
        for layer in listed:
            try:
                owner, _, leaf = layer.name.rpartition(".")
                weight = rebuilt.get_submodule(owner)._parameters.get(leaf)
                old = rebuilt.get_submodule(layer.name if weight is None else owner)
                parts = [_part(part) for part in layer.parts]
                own = next(old.parameters()).dtype if weight is None else weight.dtype
                stands = [isinstance(part, Experts | Product) for part in parts]
                if any(stands) if weight is None else stands != [True]:
                    raise ValueError(f"{' and '.join(part.op for part in layer.parts)} cannot stand in its place")
            except Exception as error:
                raise InvalidFile(f"{path}: layer {layer.name!r} cannot be rebuilt ({error}).") from error
            whole = len(parts) == 1 and isinstance(parts[0], Recurrent | Attention | Experts | Product)
            new = parts[0] if whole else Chain(*parts)
            first = next((name for name, _ in new.named_parameters()), "")
            if f"{layer.name}.{first}".removeprefix(".") not in state and layer not in inside:
                raise InvalidFile(f"{path}: layer {layer.name!r} is listed, but the file holds no weights for it.")
            nn.Module.to(new, own).train(old.training)
            if weight is None:
                memo[id(old)] = new
            else:
                stand_ins[layer.name] = new
                memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), False)  # not copied: it is left out
        if memo or stand_ins or rebuilt is model:
            rebuilt = memo[id(rebuilt)] if id(rebuilt) in memo else copied(rebuilt, memo)
            with_stand_ins(rebuilt, stand_ins)
    return without_fused_paths(rebuilt) if layers else rebuilt


def _part(part: _Part) -> nn.Module:
    if part.op == KIND:
        attention = build_attention(part.args, device="meta")
        if {**attention_arguments(attention), "ranks": part.args.get("ranks")} != part.args:
            raise ValueError(f"the arguments {part.args} are not those of {part.op}")
        _check_chains(attention, part.args["ranks"])
        return attention
    if part.op == EXPERTS:
        experts = build_experts(part.args, device="meta")
        if {**expert_arguments(experts), "ranks": part.args.get("ranks")} != part.args:
            raise ValueError(f"the arguments {part.args} are not those of {part.op}")
        _check_chains(experts, part.args["ranks"])
        return experts
    if part.op in OPS:
        recurrent = build_recurrent(part.op, part.args, device="meta")
        if {**arguments(recurrent), "ranks": part.args.get("ranks")} != part.args:
            raise ValueError(f"the arguments {part.args} are not those of {part.op}")
        _check_chains(recurrent, part.args["ranks"])
        return recurrent
    if part.op == _PAD["op"]:
        if part.args != _PAD["args"]:
            raise ValueError(f"the arguments of {part.op} must be {_PAD['args']}, but got {part.args}")
        return nn.ConstantPad1d((0, 1), 1.0)
    if part.op == PRODUCT:
        given = msgspec.convert(part.args, type=_Product)
        return Product(*map(_map, given.parts), turned=given.turned)
    return _map(part)


def _map(part: _Part) -> nn.Module:
    built = build_part(part.op, part.args, device="meta")
    if LayerSpec.of(built).arguments != part.args:
        raise ValueError(f"the arguments {part.args} are not those of {part.op}")
    return built


def _check_chains(module: Recurrent | Experts | Attention, ranks: dict[str, Any]) -> None:
    """Raise ValueError where a chain that is listed part by part does not fit together or into its place."""
    for name, parts in ranks.items():
        if not isinstance(parts, list):
            continue
        if isinstance(module, Experts):
            rows, columns, biased = module.out_features, module.in_features, False
        elif isinstance(module, Attention):
            rows, columns, biased = module.embed_dim, module.embed_dim, module.bias
        else:
            rows, columns, biased = module.weights()[name]
        chain = [LayerSpec.of(part) for part in module.get_submodule(name).children()]
        ends = [columns, *(spec.out_channels for spec in chain)]
        starts = [*(spec.in_channels for spec in chain), rows]
        biases = [False] * (len(chain) - 1) + [biased]
        listed = [{"op": spec.op, "args": spec.arguments} for spec in chain]
        if ends != starts or [spec.bias for spec in chain] != biases or listed != parts:
            raise ValueError(f"the chain of {name} does not fit")
