"""What is in a network or a file of weights, and what each layer costs."""

from __future__ import annotations

from dataclasses import asdict

from lowrank_core.commands import Answer, command
from lowrank_core.commands._opening import COUNTED, looked_at
from lowrank_core.commands._options import MODEL
from lowrank_core.commands._terminal import cost_columns, rank_text, table
from lowrank_core.figures import count
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import Cost, break_even, dense_cost, plan_cost
from lowrank_core.sources._inventory import METHOD, Inventory


@command
@MODEL
def layers(model: str) -> Answer:
    """List the layers, what can be done with each, and what each costs."""
    workspace = looked_at(model)
    if isinstance(workspace, Inventory):
        return _listed(workspace)
    profile, total = workspace.profile, plan_cost(workspace.profile)
    document = {
        "name": workspace.name,
        "fingerprint": profile.fingerprint,
        **asdict(total),
        "counted": COUNTED,
        "rest": asdict(profile.rest),
        "layers": [
            {
                "name": layer.name,
                "type": layer.type,
                "weight_shape": layer.spec.weight_shape,
                "weights": layer.spec.weights,
                "in_sizes": layer.in_sizes,
                "shares": list(map(float, layer.shares)),
                "ways": [
                    {"back": way.back, "in_sizes": way.in_sizes, "shares": list(map(float, way.shares))}
                    for way in layer.ways
                ],
                "itemsize": layer.itemsize,
                **asdict(dense_cost(layer)),
                "methods": [
                    {
                        "name": method.name,
                        "max_rank": method.max_rank(layer.spec),
                        "break_even_bytes": break_even(layer, method.name, "bytes"),
                        "break_even_multiplies": break_even(layer, method.name, "multiplies"),
                    }
                    for method in layer.methods
                ],
            }
            for layer in profile.layers
        ],
        "skipped": [asdict(skipped) for skipped in profile.skipped],
    }
    rows = [_layer_row(layer) for layer in profile.layers]
    rest = Cost(profile.rest.parameters, profile.rest.bytes, profile.rest.multiplies)
    rows.append(["everything else", "", "", *cost_columns(rest), ""])
    rows.append(["total", "", "", *cost_columns(total), ""])
    text = [
        f"{workspace.name}, {profile.fingerprint[:19]}...",
        "",
        table(["layer", "type", "weight", "parameters", "bytes", "multiplies", "ranks that pay, up to"], rows),
        "",
        COUNTED,
    ]
    if profile.skipped:
        text += ["", "Left as they are:", table([], [["  " + s.name, s.type, s.reason] for s in profile.skipped])]
    return document, "\n".join(text)


def _listed(stock: Inventory) -> Answer:
    """What `layers` says of weights alone: sizes; what follows from a structure is null."""
    document = {
        "name": stock.weights.name,
        "fingerprint": stock.fingerprint(),
        "parameters": stock.parameters,
        "bytes": stock.bytes,
        "multiplies": None,
        "rest": {**asdict(stock.rest), "multiplies": None},
        "layers": [
            {
                "name": layer.name,
                "type": layer.type,
                "weight_shape": layer.spec.weight_shape,
                "weights": layer.spec.weights,
                "itemsize": layer.itemsize,
                "parameters": _stored(stock, layer).parameters,
                "bytes": _stored(stock, layer).bytes,
                "multiplies": None,
                "methods": [
                    {
                        "name": METHOD,
                        "max_rank": METHODS[METHOD].max_rank(layer.spec),
                        "break_even_bytes": _pays(stock, layer),
                        "break_even_multiplies": None,
                    }
                ],
            }
            for layer in stock.layers
        ],
        "skipped": [asdict(skipped) for skipped in stock.skipped],
    }

    def row(name: str, kind: str, shape: str, parameters: int, stored: int, ranks: str) -> list[str]:
        return [name, kind, shape, f"{parameters:,}", count(stored, "B"), "unknown", ranks]

    rows = []
    for layer in stock.layers:
        cost, shape = _stored(stock, layer), "x".join(map(str, layer.spec.weight_shape))
        ranks = f"{METHOD}: {rank_text(_pays(stock, layer))}"
        rows.append(row(layer.name, layer.type, shape, cost.parameters, cost.bytes, ranks))
    rows.append(row("everything else", "", "", stock.rest.parameters, stock.rest.bytes, ""))
    rows.append(row("total", "", "", stock.parameters, stock.bytes, ""))
    text = [
        f"{stock.weights.name}, {'weights' if stock.weights.adapter is None else 'a LoRA adapter'} without a model",
        "",
        table(["layer", "type", "weight", "parameters", "bytes", "multiplies", "ranks that save bytes, up to"], rows),
    ]
    if stock.skipped:
        text += ["", "Left as they are:", table([], [["  " + s.name, s.type, s.reason] for s in stock.skipped])]
    return document, "\n".join(text)


def _stored(stock: Inventory, layer: Layer) -> Cost:
    """What a layer takes in the file: of a product B A its two sides."""
    if stock.weights.adapter is None:
        return dense_cost(layer)
    pair = next(pair for pair in stock.weights.adapter.pairs if pair.name == layer.name)
    return Cost(pair.a.elements + pair.b.elements, pair.a.bytes + pair.b.bytes, 0)


def _pays(stock: Inventory, layer: Layer) -> tuple[int, ...]:
    """Up to which rank a layer takes fewer bytes than it does: of a product B A all below its own."""
    if stock.weights.adapter is None:
        return break_even(layer, METHOD, "bytes")
    return (stock.weights.adapter.ranks[layer.name] - 1,)


def _layer_row(layer: Layer) -> list[str]:
    method = layer.methods[0].name
    by_bytes, by_multiplies = (rank_text(break_even(layer, method, quantity)) for quantity in ("bytes", "multiplies"))
    told = by_bytes if by_bytes == by_multiplies else f"{by_bytes} for bytes, {by_multiplies} for multiplies"
    shape = "x".join(map(str, layer.spec.weight_shape))
    return [layer.name, layer.type, shape, *cost_columns(dense_cost(layer)), f"{method}: {told}"]
