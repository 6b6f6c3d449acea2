"""What a network and a plan cost, in closed form: parameters, bytes, multiplies; and where a rank begins to pay."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import product
from math import prod

from lowrank_core.errors import LISTED, InvalidPlan, cut, few
from lowrank_core.layers.spec import (
    LayerSpec,
    Rank,
    chain_additions,
    chain_multiplies,
    free_form,
    half_up,
    sharing,
)
from lowrank_core.methods import METHODS, Method
from lowrank_core.networks.profile import Layer, ModelProfile, Work
from lowrank_core.plans.plan import Choice, RankPlan


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs add up: `sum` over layers is the cost of the network, but for rounding where rows are routed."""

    parameters: int = 0
    bytes: int = 0  # as stored: elements times element size, tied tensors once
    multiplies: int = 0  # for one sample; bias additions are not counted
    additions: int = 0  # for one sample, of the compressible layers, bias additions included

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.bytes + other.bytes,
            self.multiplies + other.multiplies,
            self.additions + other.additions,
        )

    def __radd__(self, other: int) -> Cost:
        return self


def stages_of(spec: LayerSpec, choice: Choice | None) -> tuple[LayerSpec, ...]:
    """The chain that stands for a layer under a choice, as it is stored; None is dense: one stage, the layer itself."""
    if choice is None:
        return (spec,)
    stages = METHODS[choice.method].stages(spec, choice.rank)
    return free_form(stages) if choice.free else stages


def with_free_ranks(plan: RankPlan) -> RankPlan:
    """The same plan with free ranks wherever a method has them; `plan.plain` is the way back."""
    return RankPlan(plan.fingerprint, tuple((name, freed(choice)) for name, choice in plan.choices))


def freed(choice: Choice) -> Choice:
    """A choice with free ranks where its method has them."""
    return replace(choice, free=has_free_ranks(choice.method))


def has_free_ranks(method: str) -> bool:
    """Whether the factors of a method can be stored with free ranks."""
    return bool(getattr(METHODS.get(method), "free", False))


def dense_cost(layer: Layer) -> Cost:
    """What the layer costs as it is, with what a parametrization stores besides."""
    cost = chain_cost((layer.spec,), layer) + Cost(layer.extra, layer.extra * layer.itemsize)
    return cost if layer.stored is None else replace(cost, bytes=layer.stored)


def chain_cost(stages: tuple[LayerSpec, ...], layer: Layer) -> Cost:
    """What a chain costs in the layer's place: stored once, computed at every call, also of layers tied to it."""
    parameters = sum(stage.parameters for stage in stages)
    parameters += sum(other.spec.out_channels for other in layer.tied if other.spec.bias)
    return Cost(
        parameters=parameters,
        bytes=parameters * layer.itemsize,
        multiplies=half_up(_exact(stages, layer)),
        additions=half_up(
            sum(share * chain_additions(chain, size) for chain, size, share in computed(stages, layer)),
        ),
    )


def computed(stages: tuple[LayerSpec, ...], layer: Layer) -> Iterator[Work]:
    """A chain in the layer's place, and what it is turned to in those of layers tied to it, with what goes through."""
    for each in (layer, *layer.tied):
        yield from each.work(stages if each is layer else sharing(stages, each.spec))


def _exact(stages: tuple[LayerSpec, ...], layer: Layer) -> Fraction | int:
    """Multiplies of a chain in the layer's place for one sample, in the mean over all; a whole number where all send
    the same through."""
    return sum(share * chain_multiplies(chain, size) for chain, size, share in computed(stages, layer))


@lru_cache(maxsize=100_000)
def _exact_under(layer: Layer, choice: Choice | None) -> Fraction | int:
    return _exact(stages_of(layer.spec, choice), layer)


@lru_cache(maxsize=100_000)
def layer_cost(layer: Layer, choice: Choice | None) -> Cost:
    """What the layer costs under a choice; None is dense."""
    if choice is None:
        return dense_cost(layer)
    return chain_cost(stages_of(layer.spec, choice), layer)


def plan_cost(profile: ModelProfile, plan: RankPlan | None = None) -> Cost:
    """What the whole network costs under a plan; without one, dense. Multiplies are rounded once, at the end."""
    rest = profile.rest
    chosen = dict(plan.choices) if plan else {}
    total = sum(
        (layer_cost(layer, chosen.get(layer.name)) for layer in profile.layers),
        Cost(rest.parameters, rest.bytes, rest.multiplies),
    )
    routed = [(layer, chosen.get(layer.name)) for layer in profile.layers if layer.shares]
    lost = sum(_exact_under(*each) - layer_cost(*each).multiplies for each in routed)
    return replace(total, multiplies=total.multiplies + half_up(lost)) if routed else total


def rank_at(top: Rank, share: float) -> Rank:
    """The rank on the path where every axis keeps the same share of its maximum; at least 1.

    Half way between two ranks it is the even one, here and on the board.

    >>> rank_at((64, 32), 0.5), rank_at((5, 7), 0.5)
    ((32, 16), (2, 4))
    """
    return tuple(min(m, max(1, round(share * m))) for m in top)


@lru_cache(maxsize=10_000)
def break_even(layer: Layer, method_name: str, quantity: str, free: bool = False) -> Rank:
    """Largest rank strictly cheaper than dense in `quantity` ("bytes" or "multiplies"); zeros = never.

    Two axes: the point on the path of equal shares. free: with free ranks, where the method has them.

    >>> fc = Layer("fc", "Linear", LayerSpec(8192, 128), ((),), 4)
    >>> break_even(fc, "svd", "bytes")
    (126,)
    >>> break_even(fc, "svd", "bytes", free=True)
    (127,)
    """
    method = METHODS[method_name]
    top = method.max_rank(layer.spec)
    dense = amount(layer, None, quantity)
    closed = coefficients(layer, method, quantity, free)
    longest = max(top)

    def cheaper(step: int) -> bool:
        return bool(_evaluated(closed, rank_at(top, step / longest)) < dense)

    step = _last_true(cheaper, longest)
    return rank_at(top, step / longest) if step else (0,) * len(top)


def useful_rank(layer: Layer, method_name: str, free: bool = False) -> Rank:
    """Largest rank that is cheaper in bytes or in multiplies; zeros where no rank is. free: as in `break_even`."""
    limits = [break_even(layer, method_name, quantity, free) for quantity in ("bytes", "multiplies")]
    return max(limits, key=prod)


FITTED = 1024
"""A method that fits every rank by itself is tried up to here: a fit solves systems of that width over and over, which
takes seconds up to here and minutes from there on."""


def tried_rank(layer: Layer, method_name: str, free: bool = False) -> Rank:
    """Largest rank that searches and surveys try: `useful_rank`, at most FITTED where each rank is a fit of its own.

    free: as in `break_even`.
    """
    top = useful_rank(layer, method_name, free)
    return top if METHODS[method_name].nested else tuple(min(rank, FITTED) for rank in top)


def _last_true(holds: Callable[[int], bool], top: int) -> int:
    """Largest n in 1..top for which a statement that is true up to some point holds; 0 if it never does."""
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


Coefficients = tuple[Fraction | int, ...]


def coefficients(layer: Layer, method: Method, quantity: str, free: bool = False) -> Coefficients:
    """Exact numbers of the closed form, for a browser too: c0 + c1 r, or c0 + c1 r_out + c2 r_in + c3 r_out r_in.

    With free ranks squares are added: c2 r^2, or c4 r_out^2 + c5 r_in^2; of a method that has none as without.
    Integers, but for multiplies of a layer that rows are routed to.
    """
    at = _corners(layer, method.name, quantity, free := free and has_free_ranks(method.name))
    if len(method.axes) == 1:
        if not free:
            slope = at[2,] - at[1,]
            return at[1,] - slope, slope
        square = _half(at[3,] - 2 * at[2,] + at[1,])
        slope = at[2,] - at[1,] - 3 * square
        return at[1,] - slope - square, slope, square
    both = at[2, 2] - at[2, 1] - at[1, 2] + at[1, 1]
    squares = [_half(at[r] - 2 * at[q] + at[1, 1]) for r, q in (((3, 1), (2, 1)), ((1, 3), (1, 2)))] if free else [0, 0]
    out = at[2, 1] - at[1, 1] - both - 3 * squares[0]
    inner = at[1, 2] - at[1, 1] - both - 3 * squares[1]
    first = at[1, 1] - out - inner - both - sum(squares)
    return (first, out, inner, both, *squares) if free else (first, out, inner, both)


def _half(number: Fraction | int) -> Fraction | int:
    """Of whole numbers, which here are even, a whole one."""
    return number // 2 if isinstance(number, int) else number / 2


@lru_cache(maxsize=10_000)
def _corners(layer: Layer, method_name: str, quantity: str, free: bool) -> dict[Rank, Fraction | int]:
    """What the smallest ranks cost: they decide all others."""
    ranks = list(product((1, 2), repeat=len(METHODS[method_name].axes)))
    if free:
        ranks += [(3,)] if len(ranks[0]) == 1 else [(3, 1), (1, 3)]
    return {rank: amount(layer, Choice(method_name, rank, free), quantity) for rank in ranks}


def amount(layer: Layer, choice: Choice | None, quantity: str) -> Fraction | int:
    """What the layer costs under a choice in bytes or multiplies, not rounded; None is dense."""
    if quantity == "multiplies":
        return _exact_under(layer, choice)
    return int(getattr(layer_cost(layer, choice), quantity))


def _evaluated(closed: Coefficients, rank: Rank) -> Fraction | int:
    """The value of a closed form (coefficients by powers of the ranks) at a rank."""
    a, b = rank[0], rank[-1]
    terms = (1, a, a * a) if len(rank) == 1 else (1, a, b, a * b, a * a, b * b)
    return sum(c * term for c, term in zip(closed, terms, strict=False))


def amounts(layer: Layer, choices: Iterable[Choice | None], quantity: str) -> list[float]:
    """What the layer costs in one quantity, bytes or multiplies, under many choices at once; not rounded.

    >>> fc = Layer("fc", "Linear", LayerSpec(8192, 128), ((),), 4)
    >>> amounts(fc, [None, Choice("svd", (64,))], "multiplies")
    [1048576, 532480]
    """
    closed: dict[tuple[str, bool], Coefficients] = {}
    figures: list[Fraction | int] = []
    for choice in choices:
        if choice is None:
            figures.append(amount(layer, None, quantity))
            continue
        form = choice.method, choice.free
        if form not in closed:
            closed[form] = coefficients(layer, METHODS[choice.method], quantity, choice.free)
        figures.append(_evaluated(closed[form], choice.rank))
    return [float(n) if isinstance(n, Fraction) else n for n in figures]


def check_plan(profile: ModelProfile, plan: RankPlan) -> tuple[str, ...]:
    """Raise InvalidPlan with the first faults at once and how many more there are; return warnings.

    A warning is a layer whose rank saves nothing; of these, too, the first and how many more there are.
    """
    if plan.fingerprint != profile.fingerprint:
        raise InvalidPlan(
            f"the plan was made for the model {plan.fingerprint[:19]}..., but this model is "
            f"{profile.fingerprint[:19]}...; open the model it was made for, or make a new plan for this one."
        )
    layers = {layer.name: layer for layer in profile.layers}
    skipped = {s.name: s.reason for s in profile.skipped if s.name not in layers}
    for layer in profile.layers:
        skipped |= {
            other.name: f"it shares the weight of {layer.name!r}, which stands for both" for other in layer.tied
        }
    unknown = [name for name, _ in plan.choices if name not in layers and name not in skipped]
    faults = [_unknown(layers, name) for name in unknown[:LISTED]] + [""] * len(unknown[LISTED:])
    warnings = []
    for name, choice in plan.choices:
        if name not in layers and name not in skipped:
            continue
        if fault := _fault(layers, skipped, name, choice):
            faults.append(fault)
            continue
        chosen, dense = layer_cost(layers[name], choice), dense_cost(layers[name])
        if chosen.bytes >= dense.bytes and chosen.multiplies >= dense.multiplies:
            warnings.append(f"layer {name!r}: rank {list(choice.rank)} saves neither bytes nor multiplies")
    if faults:
        more = f"; and {len(faults) - LISTED:,} more faults" if len(faults) > LISTED else ""
        raise InvalidPlan(f"{'; '.join(faults[:LISTED])}{more}.")
    if len(warnings) > LISTED:
        return (*warnings[:LISTED], f"so do {len(warnings) - LISTED:,} more layers")
    return tuple(warnings)


def _unknown(layers: dict[str, Layer], name: str) -> str:
    near = difflib.get_close_matches(cut(name), layers, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the layers are {few(list(layers))}"
    return f"the model has no layer {cut(name)!r}; {hint}"


def _fault(layers: dict[str, Layer], skipped: dict[str, str], name: str, choice: Choice) -> str | None:
    if name in skipped:
        return f"layer {name!r} cannot be compressed ({skipped[name]}); leave it out of the plan"
    spec = layers[name].spec
    if choice.method not in METHODS:
        return f"layer {name!r}: unknown method {choice.method!r}; choose one of {', '.join(METHODS)}"
    method = METHODS[choice.method]
    if why := method.obstacle(spec):
        return f"layer {name!r}: {choice.method} does not fit, {why}"
    if len(choice.rank) != len(method.axes):
        return (
            f"layer {name!r}: method {choice.method!r} takes {len(method.axes)} rank(s) "
            f"({', '.join(method.axes)}), but got {list(choice.rank)}"
        )
    if choice.free and not has_free_ranks(choice.method):
        return f'layer {name!r}: {choice.method} has no free ranks; leave "free" out'
    top = method.max_rank(spec)
    if any(not 1 <= r <= m for r, m in zip(choice.rank, top, strict=True)):
        return (
            f"layer {name!r}: rank {list(choice.rank)} is outside 1..{list(top)} of method {choice.method!r}; "
            "choose a rank inside, or leave the layer out of the plan to keep it dense"
        )
    return None
