"""Programs of ExecuTorch: a network lowered to XNNPACK, in float or int8, and run by ExecuTorch's own runtime."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from lowrank_core.errors import InvalidFile, InvalidModel
from lowrank_core.extras import extra
from lowrank_core.graphs.alone import Places, at_a_time
from lowrank_core.graphs.exporting import PLACES, exporters_turn, fixed_program
from lowrank_core.layers.data import Inputs, tensors
from lowrank_core.running.own_process import errors_alone, nothing_printed


def available() -> None:
    """Raise MissingExtra where ExecuTorch or what quantises for it is not installed."""
    with extra("edge", "ExecuTorch"), _importing, _quiet(), errors_alone("torchao", "torch.utils._pytree"):
        import executorch.runtime  # noqa: F401
        import torchao  # noqa: F401


_importing = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    """A network as a program. Called with texts that it is to answer under their names it gives the bytes of a file.

    wide: of int8, how many numbers of weights each operator keeps in float all the same; narrow: those in eight bits.
    """

    edge: Any
    wide: dict[str, int] = field(default_factory=dict)
    narrow: int = 0

    def __call__(self, said: dict[str, str]) -> bytes:
        from executorch.exir import EdgeProgramManager

        edge = self.edge
        with exporters_turn, _quiet():
            return bytes(EdgeProgramManager(edge.exported_program(), said, edge.compile_config).to_executorch().buffer)


def lowered(
    model: nn.Module, inputs: Inputs, *, samples: Iterator[list[Tensor]] | None = None, per_channel: bool = True
) -> Lowered:
    """A network as a program for XNNPACK, at the batch that `inputs` are; what XNNPACK lacks runs in portable kernels.

    samples: batches to learn the ranges of int8 from, in the order of `data.tensors`; without them it computes in
    float. Raises InvalidModel where the network cannot be traced, quantised or lowered.
    """
    available()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    inputs = tree_map_only(Tensor, torch.Tensor.contiguous, inputs)  # the order of its axes becomes the program's
    program, wide, narrow = fixed_program(model, inputs), dict[str, int](), 0
    with exporters_turn, _quiet():
        try:
            if samples is not None:
                quantiser = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=per_channel))
                prepared = prepare_pt2e(program.module(), quantiser)
                with torch.no_grad():
                    for batch in samples:
                        prepared(_as_given(inputs, batch))
                quantised = convert_pt2e(prepared)
                wide, narrow = _weights_of(quantised)
                program = torch.export.export(quantised, (inputs,))
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        except Exception as error:  # of a compiler with many passes
            raise InvalidModel(
                f"ExecuTorch cannot lower this network: {_short(error)}; .pt2 or a checkpoint (safetensors) hold it "
                "all the same."
            ) from error

    return Lowered(edge, wide, narrow)


def _weights_of(quantised: torch.fx.GraphModule) -> tuple[dict[str, int], int]:
    """Numbers of weights that each operator takes in float, and how many there are in whole numbers."""
    wide, narrow = dict[str, int](), 0
    for module in quantised.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            weight = attrgetter(node.target)(module) if node.op == "get_attr" and node.users else None
            if not isinstance(weight, Tensor) or weight.ndim < 2:
                continue
            if weight.is_floating_point():
                kind = str(next(iter(node.users)).target).removeprefix("aten.").partition(".")[0]
                wide[kind] = wide.get(kind, 0) + weight.numel()
            else:
                narrow += weight.numel()
    return wide, narrow


class ExecutorchNetwork(nn.Module):
    """A `.pte` file, or its bytes, run by ExecuTorch's runtime and called as the network was that it was made from.

    output_names: what its outputs are to be called. Raises InvalidFile where the runtime cannot open it.
    """

    def __init__(self, program: str | bytes, output_names: Sequence[str] = ()) -> None:
        super().__init__()
        available()
        from executorch.runtime import Runtime, Verification

        content = Path(program).read_bytes() if isinstance(program, str) else program
        try:
            with _quiet():
                self._program = Runtime.get().load_program(content, verification=Verification.Minimal)
                self._forward = self._program.load_method("forward")
        except Exception as error:
            raise InvalidFile(f"ExecuTorch cannot open it: {_short(error)}.") from error
        self._places = Places.from_json(said_in(self._program, PLACES))
        self._turn = threading.Lock()
        self.output_names = tuple(output_names)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExecutorchNetwork:
        """Itself: it keeps nothing between two calls."""
        return self

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        """All outputs of the program, in its order."""
        return at_a_time(self._answers, tensors((args, kwargs)), self._places)

    def _answers(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        with self._turn:
            answered = self._forward.execute([value.detach().cpu().contiguous() for value in inputs])
            return tuple(value.clone() for value in answered)  # the program answers in memory of its own


def said_in(program: Any, name: str) -> str:
    """A text that a program answers under a name; raises InvalidFile where it has none."""
    if name not in program.method_names:
        raise InvalidFile("it was not written by this product: it does not say where its samples are.")
    return str(program.load_method(name).execute([])[0])


def _as_given(inputs: Inputs, batch: Sequence[Tensor]) -> Any:
    """Tensors in the form that the inputs have."""
    parts = iter(batch)
    return tree_map(lambda leaf: next(parts) if isinstance(leaf, Tensor) else leaf, inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    with nothing_printed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200].rstrip('. ')}"
