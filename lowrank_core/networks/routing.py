"""Rows that values decide on: which networks route, and experts that no sample was routed to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from torch import nn

from lowrank_core.errors import InvalidModel
from lowrank_core.layers.data import BatchAxes, Inputs
from lowrank_core.networks.profile import is_map, spec_of
from lowrank_core.networks.watching import Watched, watch

Names = Mapping[nn.Module, Sequence[str]]


def depends_on_values(watched: Watched, modules: Collection[nn.Module], names: Names) -> bool:
    """Whether the values of the inputs, and not their shapes alone, may decide how many rows a layer gets.

    Python that looks at values decides something where an expert did not run.
    """
    return watched.shaped or (watched.valued and bool(_idle(watched, modules, names)))


def watch_data(
    model: nn.Module,
    watched: Watched,
    data: Callable[[], Iterable[Inputs]],
    modules: Collection[nn.Module],
    names: Names,
    axes: BatchAxes | None,
) -> Watched:
    """What passes over all of the data tell, where values decide on rows; else what is known from the example inputs.

    The same where there is no data or the network fails on it, which is said when it is scored.
    """
    if not depends_on_values(watched, modules, names):
        return watched
    try:
        over_data = watch(model, data(), modules, axes)
    except InvalidModel:
        return watched
    return over_data if over_data.samples else watched


def add_unreached(watched: Watched, modules: Collection[nn.Module], names: Names) -> None:
    """Put the experts that nothing was routed to among what ran, with nothing that went through, behind their kin.

    An expert is a layer among others of the same kind and sizes, whose names differ from its own by one number alone
    and of which at least one ran, in a network in which values decide what runs.
    """
    if not depends_on_values(watched, modules, names):
        return
    order = list(watched.calls)
    for module, kin in _idle(watched, modules, names).items():
        batches = watched.passed[kin, ""].values()
        watched.passed[module, ""] = {0: [(size, 0) for passed in batches for size, _ in passed]}
        order.insert(order.index(kin) + 1, module)
    watched.calls = dict.fromkeys(order)


def _idle(watched: Watched, modules: Collection[nn.Module], names: Names) -> dict[nn.Module, nn.Module]:
    """The experts that did not run, each with the last of its kin that did."""
    maps = {module: [(p, spec_of(module)) for p in _patterns(names[module][0])] for module in modules if is_map(module)}
    ran = {key: module for module, keys in maps.items() if module in watched.calls for key in keys}
    idle = {}
    for module, keys in maps.items():
        kin = [ran[key] for key in keys if key in ran]
        if kin and module not in watched.calls:
            idle[module] = kin[0]
    return idle


def _patterns(name: str) -> list[str]:
    """The name with one of its numbers left open, in all ways.

    >>> _patterns("layers.0.experts.3.up")
    ['layers.*.experts.3.up', 'layers.0.experts.*.up']
    """
    parts = name.split(".")
    return [".".join([*parts[:i], "*", *parts[i + 1 :]]) for i, part in enumerate(parts) if part.isdecimal()]
