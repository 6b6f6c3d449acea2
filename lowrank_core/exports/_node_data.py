"""Node data for Model Explorer: the graph of an exported program, and what each operator takes, a file each.

The keys are names of nodes in the graph of the `.pt2`. Sums over a group are those of the plan. The graph is a file of
its own: Model Explorer (0.1.34) opens no program whose batch is free, as ours are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from lowrank_core.compression.apply import restructure
from lowrank_core.exports import Compressed
from lowrank_core.graphs.exporting import exported_program
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.networks.profile import Layer, place_of
from lowrank_core.plans.cost import chain_cost, layer_cost, stages_of
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.store.kinds import NODE_QUANTITIES
from lowrank_core.workspace import Workspace

SUMMED = ("bytes", "multiplies", "microseconds")
"""What a group's sum is true of."""

GRAPH = "graph"
"""What Model Explorer calls the graph of an exported program."""

LIGHT, FULL = "#ffffff", "#56b4e9"


def node_data(workspace: Workspace, compressed: Compressed, table: LatencyTable | None = None) -> dict[str, str]:
    """JSON by quantity, of the program that the export `pt2` writes of a network; a quantity that no node has is left.

    graph: its operators, by modules. bytes of weights; multiplies of one sample; rank; relative error of the weight,
    before any correction; microseconds of layers in `table`, as the plan has them. Raises InvalidModel where the
    network has no graph.
    """
    program = exported_program(compressed.model, workspace.opened.example_inputs, workspace.opened.axes)
    found: dict[str, dict[str, float]] = {quantity: {} for quantity in NODE_QUANTITIES if quantity != "graph"}
    for node, quantity, value in _values(workspace, compressed, program, table):
        of = found[quantity]
        of[node] = of.get(node, 0) + value if quantity in SUMMED else value
    graph = {"graph": _graph_json(program, workspace.name)}
    return graph | {quantity: _as_json(quantity, values) for quantity, values in found.items() if values}


def node_data_of(workspace: Workspace, plan: RankPlan) -> Iterator[dict[str, str]]:
    """The same of a plan, whose weights do not matter: work for a process of its own, as exporters are (`apart`)."""
    model = restructure(workspace.model, workspace.profile, plan) if plan.choices else workspace.model
    yield node_data(workspace, Compressed(model, plan))


def files_of(path: Path) -> dict[str, Path]:
    """Where each quantity is written: net.json becomes net-bytes.json and so on.

    >>> files_of(Path("net.json"))["rank"].name
    'net-rank.json'
    """
    return {quantity: path.with_name(f"{path.stem}-{quantity}{path.suffix or '.json'}") for quantity in NODE_QUANTITIES}


def _as_json(quantity: str, values: dict[str, float]) -> str:
    hidden: dict[str, Any] = {} if quantity in SUMMED else {"hideAggregatedStats": ["sum"]}
    results = {node: {"value": value} for node, value in values.items()}
    gradient = [{"stop": 0, "bgColor": LIGHT}, {"stop": 1, "bgColor": FULL}]
    return json.dumps({GRAPH: {"results": results, "gradient": gradient, **hidden}}, indent=1) + "\n"


def _graph_json(program: ExportedProgram, name: str) -> str:
    """The operators and what they read of each other, in groups by module; weights are no nodes."""
    signature = program.graph_signature
    stored = {
        *signature.inputs_to_parameters,
        *signature.inputs_to_buffers,
        *signature.inputs_to_lifted_tensor_constants,
    }
    shown = [node for node in program.graph.nodes if node.name not in stored]
    nodes = [
        {
            "id": node.name,
            "label": node.op if node.op in ("placeholder", "output") else str(node.target),
            "namespace": _module_of(node),
            "incomingEdges": [
                {"sourceNodeId": given.name, "sourceNodeOutputId": "0", "targetNodeInputId": str(at)}
                for at, given in enumerate(node.all_input_nodes)
                if given.name not in stored
            ],
            "outputsMetadata": [{"id": "0", "attrs": [{"key": "shape", "value": _shape_of(node)}]}],
        }
        for node in shown
    ]
    return json.dumps({"label": name, "graphs": [{"id": GRAPH, "nodes": nodes}]}, indent=1) + "\n"


def _module_of(node: Any) -> str:
    """Where a node stands in the network, as groups within groups."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).replace(".", "/") if stack else ""


def _shape_of(node: Any) -> str:
    return " × ".join(map(str, getattr(node.meta.get("val"), "shape", ()))) or "–"


def _values(
    workspace: Workspace, compressed: Compressed, program: ExportedProgram, table: LatencyTable | None
) -> Iterator[tuple[str, str, float]]:
    """(node, quantity, value), each weight at the operator that first takes it."""
    weights = program.graph_signature.inputs_to_parameters
    layers = {layer.name: (layer, compressed.plan.get(layer.name)) for layer in workspace.profile.layers}
    seen: set[str] = set()
    begun: set[str] = set()
    for node in program.graph.nodes:
        for given in node.all_input_nodes:
            name = weights.get(given.name)
            if name is None:
                continue
            if name not in seen:
                value = program.state_dict[name]
                yield node.name, "bytes", value.numel() * value.element_size()
            for layer, choice, stage in _layers_of(workspace, layers, name):
                if name not in seen:
                    yield from _of_layer(workspace, node.name, layer, choice, stage, table, begun)
            seen.add(name)


def _layers_of(
    workspace: Workspace, layers: dict[str, tuple[Layer, Choice | None]], name: str
) -> Iterator[tuple[Layer, Choice | None, int | None]]:
    """The layers that a weight belongs to, and as which stage of their chains; biases belong to none."""
    for layer, choice in layers.values():
        if choice is None:
            if name == f"{layer.module}.{layer.parameter}":
                yield layer, None, None
            continue
        place = place_of(workspace.model, layer)
        inside = name.removeprefix(f"{place}." if place else "")
        if (place and inside == name) or not inside.endswith("weight"):
            continue
        number = next((int(part) for part in inside.split(".") if part.isdecimal()), None)
        yield layer, choice, number


def _of_layer(
    workspace: Workspace,
    node: str,
    layer: Layer,
    choice: Choice | None,
    stage: int | None,
    table: LatencyTable | None,
    begun: set[str],
) -> Iterator[tuple[str, str, float]]:
    first = layer.name not in begun
    begun.add(layer.name)
    if first and table is not None and (taken := table(layer.name, choice)) is not None:
        yield node, "microseconds", taken
    if choice is None:
        yield node, "multiplies", layer_cost(layer, None).multiplies
        return
    stages = stages_of(layer.spec, choice)
    if stage is not None and stage < len(stages):
        yield node, "multiplies", chain_cost((stages[stage],), layer).multiplies
        between = stages[stage].out_channels if stage < len(stages) - 1 else stages[stage].in_channels
        yield node, "rank", between
    elif first:
        yield node, "multiplies", layer_cost(layer, choice).multiplies
        yield node, "rank", choice.rank[0]
    yield node, "error", workspace.factors(layer.name, choice.method).error(choice.rank)
