"""Recurrent networks as ONNX: what an export takes, what it writes, and whether that is faster than the dense file.

    python -m benchmarks.recurrent_export [--networks digits-lstm,...] [--before] [--steps N] [--weights FILE]
    python -m benchmarks.recurrent_export --borders

Each network dense, with factors on the side of the inputs, on the recurrent side, and on both, at a quarter of the
ranks (SVD): CPU seconds of the export, nodes (those inside of loops too), bytes of the file, microseconds per call in
onnxruntime with one thread and one sample, the ratio to the dense file of the same round, and the largest difference
from PyTorch, also at other lengths than the exported one. `--before` unrolls the steps, as versions before did for
layers with factors. voice-lstm is the VoiceEncoder of resemblyzer, with its weights where `--weights` names its
pretrained.pt. `--borders` instead: one layer alone, over widths and ranks, to see where a loop begins to pay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.page import benchmark_parser, run_benchmark
from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.builtin import digits_lstm
from lowrank_core.graphs import recurrent
from lowrank_core.graphs.exporting import OnnxNetwork, onnx_program
from lowrank_core.layers.parts import Recurrent
from lowrank_core.layers.recurrent import factored
from lowrank_core.measure.latency import race, session

SIDES = {"dense": (), "inputs": ("weight_ih",), "recurrent": ("weight_hh",), "both": ("weight_ih", "weight_hh")}


class LastOutput(nn.Module):
    """Sequences, batch first, to a Linear of the last output; how resemblyzer embeds a voice, but for its norm."""

    def __init__(self, rnn: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.lstm = rnn
        self.linear = nn.Linear(rnn.hidden_size * (1 + rnn.bidirectional), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, steps, in) -> (N, outputs)"""
        answer: Tensor = self.linear(self.lstm(x)[0][:, -1])
        return answer


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "digits-lstm": (digits_lstm.build_model, 8, 8),
    "voice-lstm": (lambda: LastOutput(nn.LSTM(40, 256, 3, batch_first=True), 256), 160, 40),
    "gru-both-ways": (lambda: LastOutput(nn.GRU(64, 128, batch_first=True, bidirectional=True), 10), 50, 64),
    "lstm-512": (lambda: LastOutput(nn.LSTM(64, 512, batch_first=True), 10), 50, 64),
}
"""How each is built, and the steps and the width of its inputs."""


def unrolled(model: nn.Module, inputs: Tensor) -> Any:
    """The ONNX model with a copy of the layer for every step."""
    with patch.object(recurrent, "place", lambda network: []):
        return onnx_program(model, inputs)


def compressed(model: nn.Module, inputs: Tensor, sides: tuple[str, ...]) -> nn.Module:
    """A copy with SVD at a quarter of the full rank of the recurrent layers' weights on those sides."""
    workspace = Workspace.of(model, inputs)
    chosen = [layer for layer in workspace.profile.layers if any(side in layer.name for side in sides)]
    choices = {layer.name: Choice("svd", (max(1, min(layer.spec.weight_shape) // 4),)) for layer in chosen}
    return workspace.compress(RankPlan.of(workspace.profile.fingerprint, choices), None) if sides else model


def nodes_in(graph: Any) -> int:
    """Nodes of a graph and of the graphs inside of them."""
    return sum(1 + sum(nodes_in(entry.g) for entry in node.attribute if entry.HasField("g")) for node in graph.node)


def difference(model: nn.Module, program: Any, inputs: Tensor) -> float:
    """The largest distance between PyTorch's outputs and onnxruntime's."""
    with torch.no_grad():
        return float((model(inputs) - OnnxNetwork(program.SerializeToString())(inputs)[0]).abs().max())


def networks(names: list[str], steps: int, weights: Path | None, *, before: bool) -> None:
    """One row per network and side."""
    print("| network | factors | export, CPU s | nodes | kB | µs | ratio to dense | difference | other lengths |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        build, length, width = NETWORKS[name]
        torch.manual_seed(0)
        model = build().eval()
        if weights is not None and name == "voice-lstm":
            model.load_state_dict(
                torch.load(weights, map_location="cpu", weights_only=True)["model_state"], strict=False
            )
        inputs = torch.rand(1, steps or length, width)
        dense = None
        for side, weights_of in SIDES.items():
            network = compressed(model, inputs, weights_of)
            export = unrolled if before and weights_of else onnx_program
            began = time.process_time()
            program = export(network, inputs)
            seconds = time.process_time() - began
            work = session(program, [inputs.numpy()], 1)
            dense = dense or work
            (timing,) = race(dense, [work])
            try:
                other = f"{difference(network, program, torch.rand(3, inputs.shape[1] + 5, width)):.1g}"
            except Exception:  # whatever onnxruntime says of a shape that the file does not take
                other = "refused"
            about = f"| {name}, {inputs.shape[1]} steps | {side} | {seconds:.1f} | {nodes_in(program.graph):,}"
            measured = f"{program.ByteSize() / 1000:,.0f} | {timing.compressed_us:,.0f} | {timing.ratio:.2f}"
            print(f"{about} | {measured} | {difference(network, program, inputs):.1g} | {other} |", flush=True)


def borders(steps: int = 40) -> None:
    """Ratio of one layer as a loop, and as a node with the factors multiplied out, to the dense node."""
    print("| layer | units | rank | saved in a step | node | loop | written as |\n|---|---|---|---|---|---|---|")
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        for hidden in (64, 256, 512, 1024):
            for rank in (hidden // 16, hidden // 4, hidden // 2):
                dense = factored(kind(hidden, hidden), {})
                layer = factored(kind(hidden, hidden), {"weight_hh_l0": rank})
                for weight in layer.parameters():
                    nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
                gates = len(dense.get_parameter("weight_hh_l0"))
                x = torch.rand(steps, 1, hidden).numpy()
                written = ((dense, 1), (layer, 10**9), (layer, -(10**9)))
                works = [session(alone(each, border), [x], 1) for each, border in written]
                node, loop = race(works[0], works[1:])
                saved = gates * hidden - rank * (gates + hidden)
                op = recurrent.forms(layer)[1].op
                about = f"| {kind.__name__} | {hidden} | {rank} | {saved:,}"
                print(f"{about} | {node.ratio:.2f} | {loop.ratio:.2f} | {op} |", flush=True)


def alone(rnn: Recurrent, border: int) -> Any:
    """One layer, time first, as an ONNX model; border: multiplies from which on a loop pays."""
    from onnx import TensorProto, helper

    count = 3 if rnn.kind == "LSTM" else 2
    node = helper.make_node("Recurrent", ["x"], ["y", "h", "c"][:count], domain=recurrent.DOMAIN, place=0, layer=0)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length", "batch", rnn.input_size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    domains = [helper.make_opsetid("", 20), helper.make_opsetid(recurrent.DOMAIN, 1)]
    proto = helper.make_model(helper.make_graph([node], "layer", [x], [y]), opset_imports=domains, ir_version=10)
    with patch.object(recurrent, "SCAN_PAYS", dict.fromkeys(recurrent.SCAN_PAYS, border)):
        recurrent.expand(proto, [("layer", rnn)])
    return proto


def main() -> None:
    """Print one of the tables."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--before", action="store_true", help="unroll the steps of layers with factors")
    parser.add_argument("--steps", type=int, default=0, help="length of all sequences")
    parser.add_argument("--borders", action="store_true", help="one layer over widths and ranks")
    parser.add_argument("--weights", type=Path, help="pretrained.pt of resemblyzer")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.borders:
        borders()
    else:
        networks(asked.networks.split(","), asked.steps, asked.weights, before=asked.before)


if __name__ == "__main__":
    run_benchmark(main)
