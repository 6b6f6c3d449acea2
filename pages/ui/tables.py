"""What the pages list, as plain rows: computed here, drawn elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lowrank_core.algebra.spectra import cumulative_energy, effective_rank, rank_for_energy, stable_rank
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer, ModelProfile
from lowrank_core.plans.cost import Cost, break_even, dense_cost, layer_cost, plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.scoring.scores import Score
from lowrank_core.sources._adapter import Pair
from lowrank_core.sources._inventory import METHOD, Inventory
from lowrank_core.training.finetune import Epoch
from lowrank_core.training.recipe import Settings
from lowrank_core.training.sweep import Swept, summary
from lowrank_core.workspace import Workspace
from pages.ui import tuning, words
from pages.ui.tuning import Trained


def layer_costs(profile: ModelProfile) -> list[dict[str, Any]]:
    """One row per compressible layer, in order of execution."""
    rows = []
    for layer in profile.layers:
        cost = dense_cost(layer)
        rows.append(
            {
                "Layer": layer.name,
                "Type": layer.type,
                "Weight": words.sizes(layer.spec.weight_shape),
                "Input": ", ".join(dict.fromkeys(words.sizes(size) for size in layer.in_sizes)),
                "Calls": round(float(sum(share for *_, share in layer.work((layer.spec,)))), 3),
                "Parameters": cost.parameters,
                "Bytes": cost.bytes,
                "Multiplies": cost.multiplies,
                "Additions": cost.additions,
                "Methods": ", ".join(method.name for method in layer.methods),
            }
        )
    return rows


def layer_ranks(profile: ModelProfile) -> list[dict[str, Any]]:
    """One row per layer and method: its largest rank, and the largest that pays in bytes and in multiplies."""
    return [
        {
            "Layer": layer.name,
            "Method": method.label,
            "Axes": ", ".join(method.axes),
            "Maximum": words.sizes(method.max_rank(layer.spec)),
            "Break-even in bytes": words.sizes(break_even(layer, method.name, "bytes")),
            "Break-even in multiplies": words.sizes(break_even(layer, method.name, "multiplies")),
        }
        for layer in profile.layers
        for method in layer.methods
        if not method.reference
    ]


def weights(stock: Inventory) -> list[dict[str, Any]]:
    """One row per layer that weights without a model seem to belong to."""
    if stock.weights.adapter is not None:
        return [_pair(pair) for pair in stock.weights.adapter.pairs]
    rows = []
    for layer in stock.layers:
        cost = dense_cost(layer)
        rows.append(
            {
                "Layer": layer.name,
                "Type": layer.type,
                "Weight": words.sizes(layer.spec.weight_shape),
                "Parameters": cost.parameters,
                "Bytes": cost.bytes,
                "Maximum": words.sizes(METHODS[METHOD].max_rank(layer.spec)),
                "Break-even in bytes": words.sizes(break_even(layer, METHOD, "bytes")),
            }
        )
    return rows


def _pair(pair: Pair) -> dict[str, Any]:
    """The row of a module of an adapter: what its file holds of it."""
    return {
        "Layer": pair.name,
        "A": words.sizes(pair.a.shape),
        "B": words.sizes(pair.b.shape),
        "Rank": pair.rank,
        "Scale": pair.scale,
        "Parameters": pair.a.elements + pair.b.elements,
        "Bytes": pair.a.bytes + pair.b.bytes,
    }


def blocks(layers: Iterable[Layer], *, called: bool = True) -> list[dict[str, Any]]:
    """One row per block of the network, in order: how many layers it has and what they cost."""
    by_block: dict[str, list[Layer]] = {}
    for layer in layers:
        by_block.setdefault(words.block(layer.name), []).append(layer)
    rows = []
    for block, inside in by_block.items():
        cost = sum((dense_cost(layer) for layer in inside), Cost())
        row = {"Block": block or "–", "Layers": len(inside), "Parameters": cost.parameters, "Bytes": cost.bytes}
        rows.append(row | ({"Multiplies": cost.multiplies} if called else {}))
    return rows


def cost_shares(profile: ModelProfile) -> list[dict[str, Any]]:
    """One row per layer in order of execution, and one for all outside of them: shares of multiplies and of bytes."""
    total, rest = plan_cost(profile), profile.rest
    costs = [(layer.name, dense_cost(layer)) for layer in profile.layers]
    every = [*((name, cost.multiplies, cost.bytes) for name, cost in costs), (OTHERS, rest.multiplies, rest.bytes)]
    return [
        {"layer": name, "multiplies": multiplies / (total.multiplies or 1), "bytes": stored / (total.bytes or 1)}
        for name, multiplies, stored in every
    ]


OTHERS = "outside the layers"
"""What is left of a network beside its compressible layers."""


def plan_rows(profile: ModelProfile, plan: RankPlan) -> list[dict[str, Any]]:
    """One row per compressible layer: its method and rank under the plan, and the shares of its cost that are kept."""
    rows = []
    for layer in profile.layers:
        choice = plan.get(layer.name)
        cost, dense = layer_cost(layer, choice), dense_cost(layer)
        rows.append(
            {
                "Layer": layer.name,
                "Method": METHODS[choice.method].label if choice else "dense",
                "Rank": words.sizes(choice.rank) if choice else "–",
                "Multiplies": cost.multiplies / (dense.multiplies or 1),
                "Bytes": cost.bytes / (dense.bytes or 1),
            }
        )
    return rows


@dataclass(frozen=True, slots=True)
class Dot:
    """A measured plan on the trade-off chart: share of the dense cost, score with its interval, and what it is."""

    x: float
    y: float
    low: float | None
    high: float | None
    says: str


@dataclass(frozen=True, slots=True, eq=False)
class Learning:
    """One run on the chart of learning curves; main: the one that is looked at."""

    label: str
    from_scratch: bool
    epochs: tuple[Epoch, ...]
    main: bool


def learning(trained: Trained, main: Settings | None) -> list[Learning]:
    """Runs in the order they came, the main one last: the one given, or the latest."""
    last = main if main in trained.runs else next(reversed(trained.runs), None)
    ordered = sorted(trained.runs.items(), key=lambda run: run[0] == last)
    return [Learning(tuning.run_name(s), s.from_scratch, tuple(epochs), s == last) for s, epochs in ordered]


def spread(workspace: Workspace, trained: Trained) -> list[dict[str, Any]]:
    """One row per start of a training: mean, spread, best and worst of its runs; then untrained and dense."""
    rows = []
    for from_scratch in dict.fromkeys(tuned.settings.from_scratch for tuned in trained.tuned):
        finished = [tuned for tuned in trained.tuned if tuned.settings.from_scratch == from_scratch and tuned.complete]
        if not finished:
            continue
        all_runs = summary(finished)
        rows.append(
            {
                "Start": tuning.start(from_scratch).capitalize(),
                "Runs": str(len(finished)),
                "Mean": words.score(workspace, all_runs.mean),
                "Standard deviation": "" if all_runs.spread is None else words.score(workspace, all_runs.spread),
                "Best": words.score(workspace, all_runs.best),
                "Worst": words.score(workspace, all_runs.worst),
                "Chosen": words.score(workspace, finished[all_runs.chosen].score.value),
            }
        )
    if trained.before is not None:
        rows.append({"Start": "As compressed, untrained", "Mean": words.score(workspace, trained.before.score.value)})
        rows.append({"Start": "Dense", "Mean": words.score(workspace, trained.before.score.dense)})
    return rows


def swept_dots(workspace: Workspace, trained: Trained, quantity: str) -> tuple[list[Dot], list[Dot], Dot]:
    """The plans of a sweep as dots: as compressed, as trained, and the dense network."""
    whole = getattr(plan_cost(workspace.profile), quantity) or 1

    def at(plan: Swept, score: Score) -> Dot:
        return Dot(getattr(plan.cost, quantity) / whole, score.value, score.low, score.high, "")

    ordered = sorted(trained.swept, key=lambda plan: getattr(plan.cost, quantity))
    dense = Dot(1.0, ordered[0].direct.dense, None, None, "dense")
    return [at(plan, plan.indirect) for plan in ordered], [at(plan, plan.direct) for plan in ordered], dense


def swept(workspace: Workspace, trained: Trained) -> list[dict[str, Any]]:
    """One row per plan of a sweep: what it costs, and its score as compressed and as tuned."""
    scale = 100 if words.shares(workspace) else 1
    return [
        {
            "Multiplies": plan.cost.multiplies,
            "Bytes": plan.cost.bytes,
            "Indirect": scale * plan.indirect.value,
            "Direct": scale * plan.direct.value,
            "Change": words.moved(workspace, plan.direct, plan.direct.drop),
            "95 %": words.interval(workspace, plan.direct),
            "Epochs": plan.epochs,
        }
        for plan in trained.swept
    ]


@dataclass(frozen=True, slots=True)
class Curve:
    """The spectrum of one axis of a layer under a method, with the ranks that matter on it; chosen: None is dense."""

    layer: str
    axis: str
    sigma: tuple[float, ...]
    energy: tuple[float, ...]
    chosen: int | None
    even_bytes: int
    even_multiplies: int
    effective_rank: float
    stable_rank: float
    rank_90: int
    rank_99: int

    @property
    def top(self) -> int:
        """The largest rank this axis of the layer can have."""
        return len(self.sigma)


def curves(workspace: Workspace, layer: Layer, method: str, plan: RankPlan | None) -> tuple[Curve, ...]:
    """One curve per axis of the method; the plan's rank is on it where the plan uses this method."""
    choice = plan.get(layer.name) if plan else None
    chosen = choice.rank if choice and choice.method == method else None
    even = {quantity: break_even(layer, method, quantity) for quantity in ("bytes", "multiplies")}
    axes = next(m.axes for m in layer.methods if m.name == method)
    return tuple(
        _curve(layer.name, axis, spectrum, chosen[i] if chosen else None, even["bytes"][i], even["multiplies"][i])
        for i, (axis, spectrum) in enumerate(zip(axes, workspace.factors(layer.name, method).spectra, strict=True))
    )


def weights_curve(layer: Layer, spectrum: Tensor) -> Curve:
    """The spectrum of weights without a model, of which no plan and no multiplies are known."""
    pays = min(break_even(layer, METHOD, "bytes")[0], len(spectrum))  # of an adapter's product no more ranks are there
    return _curve(layer.name, "rank", spectrum, None, pays, 0)


def _curve(layer: str, axis: str, spectrum: Tensor, chosen: int | None, in_bytes: int, in_multiplies: int) -> Curve:
    floor = float(spectrum[0]) * 1e-12 or 1e-30  # a logarithm needs something above zero
    return Curve(
        layer,
        axis,
        tuple(spectrum.clamp_min(floor).tolist()),
        tuple(cumulative_energy(spectrum).tolist()),
        chosen,
        in_bytes,
        in_multiplies,
        effective_rank(spectrum),
        stable_rank(spectrum),
        rank_for_energy(spectrum, 0.9),
        rank_for_energy(spectrum, 0.99),
    )


def advice(curve: Curve) -> str:
    """What a spectrum says about its layer, in one sentence."""
    useful = max(curve.even_bytes, curve.even_multiplies)
    if useful == 0:
        return "No rank of this method is cheaper than the layer itself: leave it dense, or try another method."
    if curve.effective_rank == 0:
        return "Every weight of this layer is zero, so it answers with its bias alone: was it ever trained?"
    if curve.rank_90 > useful:
        return (
            f"Even 90 % of the energy needs rank {curve.rank_90}, above break-even at {useful}: expect a loss of "
            "accuracy from any rank that saves anything."
        )
    saved = f"Rank {curve.rank_90} of {curve.top} keeps 90 % of the energy"
    if curve.rank_99 <= useful:
        return f"{saved} and rank {curve.rank_99} keeps 99 %, within break-even at {useful}: good to compress."
    return f"{saved}, within break-even at {useful}; 99 % would need {curve.rank_99}: start low and measure."
