"""discover: which layers a network has, which of them can be compressed, and what each costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from lowrank_core.errors import MOST_LAYERS, InvalidModel
from lowrank_core.layers.attention import PROJECTIONS
from lowrank_core.layers.computed import answers_as, kind_of
from lowrank_core.layers.data import BatchAxes, Inputs
from lowrank_core.layers.parts import Recurrent
from lowrank_core.layers.recurrent import Dense, recurrent_kind, weight_shapes
from lowrank_core.layers.spec import LayerSpec, chain_multiplies, half_up
from lowrank_core.networks.beside import UNOWNED, unowned
from lowrank_core.networks.fused import Trial, with_trials
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
    shared_with,
    weight_obstacle,
    why_not_a_map,
)
from lowrank_core.networks.profile import (
    Layer,
    ModelProfile,
    Rest,
    Skipped,
    Way,
    check_finite,
    fingerprint,
    is_conv1d,
    is_map,
    module_at,
    spec_of,
)
from lowrank_core.networks.reads import Held, Read
from lowrank_core.networks.routing import add_unreached, watch_data
from lowrank_core.networks.watching import Watched, watch


def discover(
    model: nn.Module,
    inputs: Inputs,
    axes: BatchAxes | None = None,
    data: Callable[[], Iterable[Inputs]] = tuple,
) -> ModelProfile:
    """Look at a network through one forward pass of `inputs` (a batch as deployed); the network is not changed.

    axes: where the batch is in the inputs; without them it comes first. data: batches of evaluation samples, asked for
    where values decide how many rows a layer gets, as in a mixture of experts: then rows are counted over all of them.

    A layer is eligible where its own `forward` ran and nothing else reads its weight, or where functions are given the
    weight and all they do is multiply by it: by a matrix either way round, its rows looked up or not, by any other in
    one way. Everything else with weights is listed as skipped, with the reason. Multiplies are per sample, of all
    matrix products and convolutions that PyTorch's FLOP counter knows.

    Raises InvalidModel for NaN or Inf weights or a forward pass that fails, InvalidData for unusable inputs.
    """
    check_finite(model)
    original, (model, read_otherwise) = model, with_trials(model, inputs)
    names = _names(model)
    strangers = {module: name for module, name in unowned(model).items() if is_map(module) or _has_several(module)}
    owned = [module for module in names if is_map(module) or _has_several(module)]
    watched = watch(model, [inputs], [*owned, *strangers], axes)
    watched = watch_data(
        model, watched, data, [*owned, *strangers], names | {m: [n] for m, n in strangers.items()}, axes
    )
    add_unreached(watched, owned, names)
    network = _Network(model, names, _owners(model), parent_obstacles(model), watched)
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    settled: set[nn.Module] = set()

    def take(module: nn.Module) -> None:
        found, reason = network.bare(module, read_otherwise.get(module, ""))
        layers.extend(found)
        skipped.extend([network.skipped(module, reason)] if reason else [])

    for module in names:
        if module in settled or not _holds_weights(module):
            continue
        if isinstance(module, Trial):
            layers += network.experts(module)
        elif _has_several(module):
            reason = network.obstacle_of_several(module)
            if reason is None:
                layers += network.several(module)
                settled.update({module.out_proj} if isinstance(module, nn.MultiheadAttention) else ())
            else:
                skipped.append(network.skipped(module, reason))
        elif not is_map(module) and "weight" not in network.read(module):
            take(module)
        else:
            group = network.tied(module)
            for member in group:
                if network.read(member):  # a function is given its weight, and perhaps others of it
                    settled.add(member)
                    take(member)
                else:
                    settled.update(member.modules())
            obstacles = network.obstacles(group)
            if obstacles:
                skipped += map(network.skipped, group, obstacles)
            else:
                layers.append(network.layer(group))
    skipped += [Skipped(n, kind_of(m).__name__, UNOWNED) for m, n in strangers.items() if m in watched.calls]
    order = {held: position for position, held in enumerate(watched.calls)}
    if len(layers) > MOST_LAYERS:
        raise InvalidModel(
            f"this network has {len(layers):,} layers that can be compressed, at most {MOST_LAYERS:,} are taken; open "
            "a part of it."
        )
    layers.sort(key=lambda layer: order[_held(model, layer) if layer.read else module_at(model, layer.module)])
    return ModelProfile(
        fingerprint=fingerprint(original),
        layers=tuple(layers),
        skipped=tuple(skipped),
        rest=_rest(model, layers, watched.multiplies),
    )


@dataclass(frozen=True, slots=True)
class _Network:
    """A network as one forward pass has shown it, asked module by module."""

    model: nn.Module
    names: dict[nn.Module, list[str]]
    owners: dict[Tensor, list[nn.Module]]
    parents: dict[nn.Module, str]
    watched: Watched

    def skipped(self, module: nn.Module, reason: str) -> Skipped:
        """A module that stays as it is, under its first name, with the reason."""
        return Skipped(self.names[module][0], kind_of(module).__name__, reason)

    def obstacles(self, group: list[nn.Module]) -> list[str]:
        """Why modules that share one weight stay as they are, one reason for each; [] where nothing is in the way."""
        reasons = [self._obstacle(member, group) for member in group]
        at_fault = next((member for member, reason in zip(group, reasons, strict=True) if reason), None)
        if at_fault is None:
            return []
        shared = f"its weight is shared with {self.names[at_fault][0]!r}, which stays as it is"
        return [reason or shared for reason in reasons]

    def read(self, module: nn.Module) -> dict[str, Read]:
        """The weights of a module that functions are given, who only multiply by them, and how: a chain can take their
        place.

        Of a layer that a chain can stand for as a whole there are none.
        """
        alone = module in self.watched.calls and module not in self.watched.readers
        if is_map(module) and (alone or module in self.watched.resized):
            return {}
        return {
            name: self._reads(module, name)[0]
            for name, weight in module.named_parameters(recurse=False)
            if (module, name) in self.watched.reads and weight not in self.watched.misused
        }

    def _reads(self, module: nn.Module, name: str) -> list[Read]:
        """How functions multiply by a weight: looking its rows up comes first, then as F.linear takes it."""
        return sorted(self.watched.reads[module, name], key=lambda read: (read.kind != "embedding", read.turned))

    def tied(self, module: nn.Module) -> list[nn.Module]:
        """The modules that hold this one's weight and can share its factors: tables first, then Linear layers.

        The first stands for all. [module] where the weight is its own, or held by anything else.
        """
        weight = module._parameters.get("weight")
        sharers = [] if weight is None else self.owners[weight]
        tables = {member: self._table(member) for member in sharers}
        if None in tables.values() or module not in sharers:
            return [module]
        return sorted(sharers, key=lambda m: (not tables[m], not self._ran(m)))

    def _table(self, module: nn.Module) -> bool | None:
        """Whether a module looks rows of its weight up, else multiplies by it as a Linear; None for any other."""
        read = self.read(module).get("weight")
        if read is not None:
            return {"embedding": True, "linear": False}.get(read.kind) if not read.turned else None
        kind = kind_of(module)
        plain = is_map(module) and not is_conv1d(module) and "weight" in module._parameters
        if not plain or not issubclass(kind, nn.Embedding | nn.Linear):
            return None
        return issubclass(kind, nn.Embedding)

    def _ran(self, module: nn.Module) -> bool:
        return module in self.watched.calls or (module, "weight") in self.watched.calls

    def bare(self, module: nn.Module, otherwise: str) -> tuple[list[Layer], str]:
        """(layers of parameters that functions are given, why the module's others stay); "" where none does.

        Without a `weight` that is read, which may be shared. otherwise: why parameters stay that nothing multiplies by.
        """
        layers, reasons, own = [], [], self.read(module)
        for name in own:
            if name == "weight":
                continue
            if reason := self._read_obstacle(module, name, [module]):
                reasons.append(f"{name!r}: {reason}")
            else:
                layers.append(self._read_layer(module, name))
        taken = {layer.parameter for layer in layers} | own.keys() & {"weight"}
        left = [name for name, p in module.named_parameters(recurse=False) if p.ndim > 1 and name not in taken]
        if taken and not left:
            return layers, ""
        return layers, "; ".join(reasons) or otherwise or why_not_a_map(module, self._misused(module))

    def _misused(self, module: nn.Module) -> str:
        own = module.parameters(recurse=False)
        return next((self.watched.misused[p] for p in own if p in self.watched.misused), "")

    def _obstacle(self, module: nn.Module, group: list[nn.Module]) -> str | None:
        if "weight" in self.read(module):
            return self._read_obstacle(module, "weight", group)
        if module in self.watched.resized:
            return RESIZED
        own = computed_obstacle(module) or shared_obstacle(self.model, module, self.owners, group)
        if reason := own or weight_obstacle(module):
            return reason
        if module not in self.watched.calls and module is group[0]:
            return self._misused(module) or NEVER_RAN
        beside = self.watched.changed.get(module) or self.parents.get(module) or self.watched.readers.get(module)
        return beside or method_obstacle(spec_of(module))

    def _read_obstacle(self, module: nn.Module, name: str, group: list[nn.Module]) -> str | None:
        weight = module.get_parameter(name)
        outside = [owner for owner in self.owners[weight] if owner not in group]
        if outside:
            return shared_with(self.names[outside[0]][0])
        return weight_obstacle(module, name) or method_obstacle(_spec_of_read(weight, self.read(module)[name]))

    def layer(self, group: list[nn.Module]) -> Layer:
        """Modules that share one weight as one layer; nearly always a single one."""
        first, *others = (self._layer(member) for member in group)
        beside = f" with {', '.join(other.name for other in others)}" if others else ""
        return replace(first, type=first.type + beside, tied=tuple(others))

    def _read_layer(self, module: nn.Module, parameter: str) -> Layer:
        (read, *others), weight = self._reads(module, parameter), module.get_parameter(parameter)
        names = self.names[module]
        if parameter != "weight":
            names = [f"{'' if name == type(self.model).__name__ else name}.{parameter}" for name in names]
        name, *aliases = (name.removeprefix(".") for name in names)
        in_sizes, shares = self.watched.sizes(module, read.of(parameter))
        ways = [self.watched.sizes(module, other.of(parameter)) for other in others]
        backwards = [read.kind == "linear" or not other.turned for other in others]
        return Layer(
            name=name,
            type=kind_of(module).__name__,
            spec=_spec_of_read(weight, read),
            in_sizes=in_sizes,
            shares=shares,
            itemsize=weight.element_size(),
            aliases=tuple(aliases),
            parameter=parameter,
            transposed_weight=read.turned,
            read=True,
            ways=tuple(Way(back, *seen) for back, seen in zip(backwards, ways, strict=True)),
        )

    def _layer(self, module: nn.Module) -> Layer:
        if "weight" in self.read(module):
            return self._read_layer(module, "weight")
        name, *aliases = self.names[module]
        spec = spec_of(module)
        in_sizes, shares = self.watched.sizes(module)
        return Layer(
            name=name,
            type=kind_of(module).__name__,
            spec=spec,
            in_sizes=in_sizes,
            shares=shares,
            itemsize=next((p.element_size() for p in module.parameters()), 4),
            aliases=tuple(aliases),
            transposed_weight=is_conv1d(module),
            asked=module in self.watched.asked,
            extra=sum(p.numel() for p in module.parameters()) - spec.parameters,
            stored=stored_bytes(self.model).get(name),
        )

    def experts(self, trial: Trial) -> Iterator[Layer]:
        """The matrices of a parameter that holds one for each expert, each a layer of its own."""
        name, *aliases = self.names[trial]
        high = trial.matrices.shape[1]
        for number in range(trial.experts):
            in_sizes, shares = self.watched.sizes(trial, str(number))
            yield Layer(
                name=f"{name}.{number}",
                type=type(trial.host).__name__,
                spec=LayerSpec(trial.in_features, trial.out_features, bias=False),
                in_sizes=in_sizes,
                shares=shares,
                itemsize=trial.values.element_size(),
                aliases=tuple(f"{alias}.{number}" for alias in aliases),
                parameter=name.rpartition(".")[2],
                part=f"{name.rpartition('.')[2]}.{number}",
                rows=(number * high, (number + 1) * high) if trial.flat else None,
                transposed_weight=bool(trial.turned),
                expert=number,
            )

    def obstacle_of_several(self, module: nn.Module) -> str | None:
        """What is in the way of compressing the weights of a recurrent module or an attention."""
        if isinstance(module, nn.MultiheadAttention):
            reason = attention_obstacle(module)
        else:
            assert isinstance(module, Dense)
            reason = recurrent_obstacle(module)
        reason = reason or shared_obstacle(self.model, module, self.owners) or self.watched.changed.get(module)
        return reason or (None if module in self.watched.calls else NEVER_RAN)

    def several(self, module: nn.Module) -> Iterator[Layer]:
        """The weights of a recurrent module or an attention, each a layer of its own."""
        prefixes = ["" if module_at(self.model, name) is self.model else f"{name}." for name in self.names[module]]
        if isinstance(module, nn.MultiheadAttention):
            return _projections(module, prefixes, self.watched)
        assert isinstance(module, Dense)
        return _weights(module, prefixes, self.watched)


def _own_parameters(model: nn.Module, layer: Layer) -> Iterator[Tensor]:
    """The parameters that a layer is or is part of."""
    module = module_at(model, layer.module)
    if layer.read:
        return iter([module.get_parameter(layer.parameter)])
    return (module if layer.expert is None else module.get_submodule(layer.parameter)).parameters()


def _has_several(module: nn.Module) -> bool:
    """Whether it holds several weights: a recurrent module or cell of torch.nn, or an attention."""
    if kind_of(module) is not type(module):  # weights that are computed are none of its own
        return False
    return bool(recurrent_kind(module)) or answers_as(type(module), nn.MultiheadAttention)


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


def _projections(attention: nn.MultiheadAttention, prefixes: list[str], watched: Watched) -> Iterator[Layer]:
    """q, k, v as rows of in_proj_weight, and the output."""
    width, biased = attention.embed_dim, attention.in_proj_bias is not None
    for number, part in enumerate(PROJECTIONS):
        inside = part != "out_proj"
        in_sizes, shares = watched.sizes(attention, "key" if part in ("in_proj.k", "in_proj.v") else "query")
        yield Layer(
            name=f"{prefixes[0]}{part}",
            type=type(attention).__name__,
            spec=LayerSpec(width, width, bias=biased),
            in_sizes=in_sizes,
            shares=shares,
            itemsize=attention.in_proj_weight.element_size(),
            aliases=tuple(f"{prefix}{part}" for prefix in prefixes[1:]),
            parameter="in_proj_weight" if inside else "out_proj.weight",
            rows=(number * width, (number + 1) * width) if inside else None,
            part=part,
        )


def _weights(rnn: Dense, prefixes: list[str], watched: Watched) -> Iterator[Layer]:
    """The weights of a recurrent module in the order in which they are first used: input, hidden, projection.

    The input weight sees a whole sequence at once, the others see one step after the other.
    """
    gates = Recurrent.GATES[recurrent_kind(rnn).removesuffix("Cell")]
    for parameter, (rows, columns, biased) in weight_shapes(rnn).items():
        in_sizes, shares = watched.sizes(rnn, "whole" if parameter.startswith("weight_ih") else "step")
        yield Layer(
            name=f"{prefixes[0]}{parameter}",
            type=type(rnn).__name__,
            spec=LayerSpec(columns, rows, bias=biased, gates=0 if parameter.startswith("weight_hr") else gates),
            in_sizes=in_sizes,
            shares=shares,
            itemsize=rnn.get_parameter(parameter).element_size(),
            aliases=tuple(f"{prefix}{parameter}" for prefix in prefixes[1:]),
            parameter=parameter,
        )


def _held(model: nn.Module, layer: Layer) -> Held:
    """The parameter that a layer is of."""
    return module_at(model, layer.module), layer.parameter


def _spec_of_read(weight: Tensor, read: Read) -> LayerSpec:
    """The map that functions ask for who are given a weight, without the bias, which they are given beside it."""
    about: dict[str, Any] = dict(read.about)
    rows, columns, *kernel = weight.shape
    if read.kind == "embedding":
        padding = about["padding_idx"]
        padding = padding if padding is None or padding >= 0 else rows + padding
        return LayerSpec(rows, columns, bias=False, table=True, padding_idx=padding)
    if read.kind == "linear":
        return LayerSpec(rows, columns, bias=False) if read.turned else LayerSpec(columns, rows, bias=False)
    transposed, other = "transpose" in read.kind, columns * about["groups"]
    inputs, outputs = (rows, other) if transposed else (other, rows)
    return LayerSpec(inputs, outputs, bias=False, kernel=tuple(kernel), transposed=transposed, **about)


def _holds_weights(module: nn.Module) -> bool:
    """Whether it has parameters of its own, or numbers packed away as quantised modules have them."""
    own = any(p is not None for p in module._parameters.values())
    return own or hasattr(module, "parametrizations") or is_quantised(module)


def stored_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the parameters of a module in its file, where that keeps them in another type, as a quantised one."""
    said: dict[str, int] = getattr(model, "stored_bytes", {})
    return said if isinstance(said, dict) else {}


def _rest(model: nn.Module, layers: list[Layer], multiplies: Fraction) -> Rest:
    each = [one for layer in layers for one in (layer, *layer.tied)]
    taken = {p for layer in each for p in _own_parameters(model, layer)}
    outside = [p for p in model.parameters() if p not in taken]
    work = [done for layer in each for done in layer.work((layer.spec,))]
    counted = sum(share * chain_multiplies(chain, size) for chain, size, share in work)
    return Rest(
        parameters=sum(p.numel() for p in outside),
        bytes=_bytes_outside(model, outside),
        multiplies=max(0, half_up(multiplies) - half_up(counted)),
        buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
    )


def _bytes_outside(model: nn.Module, outside: list[nn.Parameter]) -> int:
    """Bytes of these parameters as they are stored; those of a module that its file keeps otherwise are as there."""
    left = {id(p) for p in outside}
    size = sum(p.numel() * p.element_size() for p in outside)
    for path, stored in stored_bytes(model).items():
        own = list(model.get_submodule(path).parameters())
        if own and all(id(p) in left for p in own):
            size += stored - sum(p.numel() * p.element_size() for p in own)
    return size
