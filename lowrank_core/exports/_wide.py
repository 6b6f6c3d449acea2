"""Whether a file that is called int8 is one: what a runtime does not quantise stays in float32."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

MOST_WIDE = 0.1
"""Share of the weights that may stay in float32 in a file that is called int8: tables and odd layers, not the bulk."""


def wide_words(runtime: str, wide: Mapping[str, int], narrow: int) -> str:
    """What is to be said of a file whose operators keep so many numbers in float32, beside so many in eight bits.

    >>> wide_words("onnxruntime", {"LSTM": 97}, 3)
    'onnxruntime quantises no LSTM here: 97 % of the weights stay in float32'
    >>> wide_words("onnxruntime", {"Gather": 3}, 97)
    ''
    """
    left = sum(wide.values())
    if left <= MOST_WIDE * (left + narrow):
        return ""
    share = 100 * left / (left + narrow)
    return f"{runtime} quantises no {', no '.join(sorted(wide))} here: {share:.0f} % of the weights stay in float32"


def wide_in_onnx(proto: onnx.ModelProto) -> str:
    """`wide_words` of a quantised graph."""
    import onnx

    wide: dict[str, int] = {}
    sizes: dict[str, int] = {}
    users: dict[str, str] = {}
    graphs = [proto.graph]
    for graph in graphs:  # grows by what is inside of its nodes
        for weight in graph.initializer:
            if len(weight.dims) > 1:
                sizes[weight.name] = prod(weight.dims)
                if weight.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
                    users[weight.name] = ""
        for node in graph.node:
            users |= {name: node.op_type for name in node.input if name in users}
            graphs += [part.g for part in node.attribute if part.HasField("g")]
    for name, kind in users.items():
        wide[kind] = wide.get(kind, 0) + sizes[name]
    return wide_words("onnxruntime", wide, sum(sizes.values()) - sum(wide.values()))
