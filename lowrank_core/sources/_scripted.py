"""TorchScript as a network of plain layers: a scripted or traced module that a model file gives, made a graph again."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import nn

from lowrank_core.errors import InvalidModel
from lowrank_core.layers.data import Inputs, call
from lowrank_core.sources._plain_layers import plain_layer

CONVERTER = "torch._export.converter"
"""Of PyTorch 2.5 and newer; a second and a thousand modules, which only who opens TorchScript waits for."""

TOLERANCE = 1e-4
"""Largest distance of the answers of graph and program, relative to the largest answer."""


def from_script(program: torch.jit.ScriptModule, inputs: Inputs) -> nn.Module:
    """The same network as a graph of PyTorch, in which layers are plain modules under the names that they had.

    Raises InvalidModel where PyTorch cannot make one of it, or one that answers otherwise.
    """
    try:
        network = _graph(program, inputs)
        with torch.no_grad():
            ours, theirs = call(network, inputs), call(program, inputs)
    except Exception as error:  # whatever the converter says of an operator, or of control flow
        raise InvalidModel(
            _refusal(program, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        ) from error
    for name, value in theirs.items():
        scale = max(1e-6, float(value.double().abs().max())) if value.numel() else 1.0
        if not torch.allclose(ours[name].double(), value.double(), rtol=0, atol=TOLERANCE * scale):
            raise InvalidModel(_refusal(program, f"its output {name!r} would differ"))
    return network


def _refusal(program: torch.jit.ScriptModule, why: str) -> str:
    return (
        f"the network is a program of TorchScript ({program.original_name}) that cannot be made one of plain layers "
        f"({why}); return the network as it was before torch.jit. A file of torch.jit.save gives it the weights: "
        "--weights FILE, or weights=FILE from Python."
    )


def _graph(program: torch.jit.ScriptModule, inputs: Inputs) -> nn.Module:
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    named = inputs if isinstance(inputs, dict) else None
    converter = import_module(CONVERTER).TS2EPConverter
    graph = converter(program, args, named).convert().module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    for node in list(graph.graph.nodes):
        weight = next(
            (n for n in node.all_input_nodes if n.op == "get_attr" and str(n.target).endswith(".weight")), None
        )
        if node.op != "call_function" or weight is None:
            continue
        name = str(weight.target).removesuffix(".weight")
        plain = plain_layer(node, f"{name}.", graph.get_submodule(name))
        users = [user for user in weight.users if user is not node]
        if plain is None or users:
            continue
        graph.set_submodule(name, plain.eval())
        with graph.graph.inserting_before(node):
            called = graph.graph.call_module(name, (_input(node, plain),))
            called.meta.update(node.meta)
        node.replace_all_uses_with(called)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        node.meta.clear()  # symbolic sizes, which cannot be copied
    return torch.fx.GraphModule(graph, graph.graph, program.original_name).eval()  # what is of use, and no more


def _input(node: torch.fx.Node, plain: nn.Module) -> torch.fx.Node:
    """What the layer is called on: a table's second argument, and the first of all others."""
    given = node.args[1 if isinstance(plain, nn.Embedding) else 0]
    assert isinstance(given, torch.fx.Node)
    return given
